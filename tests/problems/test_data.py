"""Images: the embedded ones, npz and IDX files good and bad, and downloads through a stand-in for the library."""

import gzip
import re
import struct
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bygrad.problems.data import ImageData, load_images

Arrays = dict[str, np.ndarray]

IDX_NAMES = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}


@pytest.fixture
def arrays() -> Arrays:
    """A tiny data set that is valid as it stands."""
    rng = np.random.default_rng(0)
    return {
        "x_train": rng.integers(0, 256, (5, 4, 3), dtype=np.uint8),
        "y_train": np.array([0, 1, 2, 1, 0], np.uint8),
        "x_test": rng.integers(0, 256, (2, 4, 3), dtype=np.uint8),
        "y_test": np.array([2, 0], np.uint8),
    }


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_npz(path: Path, arrays: Arrays) -> None:
    np.savez(path, **arrays)


def write_idx(folder: Path, arrays: Arrays, suffix: str = "", compress: Callable[[bytes], bytes] = bytes) -> None:
    for field, name in IDX_NAMES.items():
        (folder / (name + suffix)).write_bytes(compress(idx_bytes(arrays[field])))


def assert_holds(data: ImageData, arrays: Arrays) -> None:
    for field, expected in arrays.items():
        actual = getattr(data, field)
        np.testing.assert_array_equal(actual, expected)
        assert actual.dtype == (np.uint8 if field.startswith("x") else np.int32)


def test_embedded_mnist_is_mnist() -> None:
    data = load_images()
    assert data.name == "mnist"
    assert data.x_train.shape == (10_000, 28, 28)
    assert data.x_test.shape == (2_000, 28, 28)
    assert data.classes == 10
    assert data.y_train[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert data.y_test[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert np.bincount(data.y_train).tolist() == [1001, 1127, 991, 1032, 980, 863, 1014, 1070, 944, 978]
    assert np.bincount(data.y_test).tolist() == [175, 234, 219, 207, 217, 179, 178, 205, 192, 194]
    assert data.x_train.mean() / 255 == pytest.approx(0.1307, abs=5e-4)
    assert data.x_train.std() / 255 == pytest.approx(0.3081, abs=1e-3)


def test_npz(arrays: Arrays, tmp_path: Path) -> None:
    write_npz(tmp_path / "tiny.npz", arrays)
    data = load_images(str(tmp_path / "tiny.npz"))
    assert_holds(data, arrays)
    assert data.classes == 3


def test_npz_without_its_suffix_and_as_a_path(arrays: Arrays, tmp_path: Path) -> None:
    write_npz(tmp_path / "tiny.npz", arrays)
    (tmp_path / "tiny.npz").rename(tmp_path / "tiny")
    assert_holds(load_images(tmp_path / "tiny"), arrays)


def test_color(arrays: Arrays, tmp_path: Path) -> None:
    arrays |= {field: np.stack([arrays[field]] * 3, axis=-1) for field in ("x_train", "x_test")}
    write_npz(tmp_path / "color.npz", arrays)
    assert_holds(load_images(tmp_path / "color.npz"), arrays)


def test_home(arrays: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    write_npz(tmp_path / "tiny.npz", arrays)
    assert_holds(load_images("~/tiny.npz"), arrays)


@pytest.mark.parametrize(("suffix", "compress"), [("", bytes), (".gz", gzip.compress)], ids=["plain", "gz"])
def test_idx_round_trip(arrays: Arrays, tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes]) -> None:
    write_idx(tmp_path, arrays, suffix, compress)
    assert_holds(load_images(tmp_path), arrays)
    assert_holds(load_images(tmp_path / (IDX_NAMES["y_test"] + suffix)), arrays)


def test_idx_files_by_their_other_names(arrays: Arrays, tmp_path: Path) -> None:
    write_idx(tmp_path, arrays)
    for name in IDX_NAMES.values():
        (tmp_path / name).rename(tmp_path / name.replace("-idx", ".idx"))
    assert_holds(load_images(tmp_path), arrays)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"x_train": np.zeros((5, 4, 3), np.float32)},
            "uint8, not float32. Pixels are whole numbers from 0 to 255: np",
        ),
        ({"x_train": np.zeros((5, 12), np.uint8)}, "x_train has shape (5, 12)"),
        ({"x_test": np.zeros((2, 3, 4), np.uint8)}, "training image has shape (4, 3), one test image (3, 4)"),
        ({"x_test": np.zeros((0, 4, 3), np.uint8), "y_test": np.zeros(0, np.int64)}, "nothing to train or test on"),
        ({"y_train": np.zeros(4, np.int64)}, "x_train holds 5 images but y_train has shape (4,)"),
        ({"y_train": np.zeros((5, 1), np.int64)}, "y_train has shape (5, 1)"),
        (
            {"y_train": np.zeros(5, np.float32)},
            "y_train must hold integers, not float32. Labels are class numbers: y.a",
        ),
        ({"y_test": np.array([0, -1])}, "y_test runs from -1 to 0"),
        ({"y_test": np.array([0, 2**16])}, "y_test runs from 0 to 65536. Labels are class numbers"),
        ({"y_test": np.array([0, 2**32])}, "y_test runs from 0 to 4294967296. Labels are class numbers"),
        ({"y_test": np.array([0, 2**64 - 1], np.uint64)}, "y_test runs from 0 to 18446744073709551615"),
    ],
)
def test_arrays_that_do_not_fit(arrays: Arrays, change: Arrays, message: str, tmp_path: Path) -> None:
    write_npz(tmp_path / "bad.npz", arrays | change)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load_images(tmp_path / "bad.npz")
    assert "bad.npz" in str(caught.value)


def test_npz_that_lacks_an_array(arrays: Arrays, tmp_path: Path) -> None:
    del arrays["y_test"]
    write_npz(tmp_path / "bad.npz", arrays)
    with pytest.raises(ValueError, match=r"has no y_test; it holds x_train, y_train, x_test\."):
        load_images(tmp_path / "bad.npz")


def test_npz_of_objects_is_never_unpickled(arrays: Arrays, tmp_path: Path) -> None:
    write_npz(tmp_path / "bad.npz", arrays | {"y_test": np.array([0, None], object)})
    with pytest.raises(ValueError, match=r"y_test cannot be read .* unpickling runs code"):
        load_images(tmp_path / "bad.npz")


def test_text_is_no_npz(tmp_path: Path) -> None:
    (tmp_path / "bad.npz").write_text("not an archive")
    with pytest.raises(ValueError, match="is not an npz file"):
        load_images(tmp_path / "bad.npz")


@given(st.data())
def test_damaged_npz_is_refused_or_whole(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    images, labels = np.zeros((2, 2, 2), np.uint8), np.zeros(2, np.uint8)
    np.savez_compressed(folder / "bad.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    content = bytearray((folder / "bad.npz").read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    (folder / "bad.npz").write_bytes(content)
    try:
        loaded = load_images(folder / "bad.npz")
    except ValueError:
        return
    np.testing.assert_array_equal(loaded.x_train, images)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "begins with nothing"),
        (b"\x00\x00\x0d\x01" + bytes(8), "begins with 00 00 0d 01"),
        (b"\x00\x00\x08\xff" + bytes(99), "begins with 00 00 08 ff"),
        (b"\x00\x00\x08\x03" + bytes(5), "announces the shape () and holds 9 bytes"),
        (idx_bytes(np.zeros((2, 4, 3), np.uint8))[:-1], "announces the shape (2, 4, 3) and holds 39 bytes"),
        (idx_bytes(np.zeros((2, 4, 3), np.uint8)) + b"\x00", "holds 41 bytes"),
        (gzip.compress(bytes(99))[:-9], "cannot be decompressed"),
    ],
    ids=["empty", "floats", "rank", "header", "short", "long", "gzip"],
)
def test_bad_idx(arrays: Arrays, content: bytes, message: str, tmp_path: Path) -> None:
    write_idx(tmp_path, arrays)
    (tmp_path / IDX_NAMES["x_test"]).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load_images(tmp_path)
    assert IDX_NAMES["x_test"] in str(caught.value)


def test_folder_that_lacks_an_idx_file(arrays: Arrays, tmp_path: Path) -> None:
    write_idx(tmp_path, arrays)
    (tmp_path / IDX_NAMES["y_train"]).unlink()
    with pytest.raises(FileNotFoundError, match="lacks train-labels-idx1-ubyte"):
        load_images(tmp_path)


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"Unknown data 'mnits'.*'mnist'.*'hf:ylecun/mnist'"):
        load_images("mnits")


def test_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.npz does not exist"):
        load_images(tmp_path / "absent.npz")
    with pytest.raises(FileNotFoundError, match="~nobody-of-this-name/absent does not exist"):
        load_images("~nobody-of-this-name/absent")


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match="neither an npz file nor named like a file of IDX"):
        load_images(tmp_path / "notes.txt")


def test_data_is_checked_without_a_file_too(arrays: Arrays) -> None:
    with pytest.raises(ValueError, match=r"mine: y_train must be a NumPy array of int32, not uint8\. Labels are"):
        ImageData("mine", **arrays)


def test_images_become_means_of_squares() -> None:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (2, 28, 28), dtype=np.uint8), np.array([0, 1], np.int32)
    data = ImageData("random", images, labels, images, labels)
    small = data.shrunk(8)
    assert small.x_train.shape == small.x_test.shape == (2, 8, 8) and small.x_train.dtype == np.uint8
    np.testing.assert_array_equal(small.x_train[1, 2, 3], np.round(images[1, 8:11, 11:14].mean()))
    assert data.shrunk(28) is data


@pytest.mark.parametrize(("shape", "pixels"), [((8, 6), 4), ((8, 8), 9), ((8, 8, 3), 0)])
def test_images_that_cannot_be_averaged_over_squares(shape: tuple[int, ...], pixels: int) -> None:
    images, labels = np.zeros((2, *shape), np.uint8), np.array([0, 1], np.int32)
    with pytest.raises(ValueError, match=rf"zeros holds images of {shape[0]} x {shape[1]} pixels.*Use square ones"):
        ImageData("zeros", images, labels, images, labels).shrunk(pixels)


def test_nothing_can_download_unless_asked() -> None:
    code = (
        "import sys; from bygrad.problems.data import load_images; load_images(); "
        "print([name for name in ('datasets', 'bygrad.problems.data.download') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


class Table:
    """What `datasets.load_dataset` returns, as far as the package uses it."""

    def __init__(self, columns: Arrays) -> None:
        self.columns = columns

    def with_format(self, name: str) -> "Table":
        assert name == "numpy"
        return self

    def __getitem__(self, rows: slice) -> Arrays:
        return {name: column[rows] for name, column in self.columns.items()}


def put_library_in_place(monkeypatch: pytest.MonkeyPatch, load_dataset: Callable[..., Table]) -> None:
    library = types.ModuleType("datasets")
    monkeypatch.setattr(library, "load_dataset", load_dataset, raising=False)
    monkeypatch.setitem(sys.modules, "datasets", library)


@pytest.mark.parametrize("column", ["image", "img"])
def test_download(arrays: Arrays, column: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(name: str, *, split: str) -> Table:
        assert name == "ylecun/mnist"
        return Table({column: arrays[f"x_{split}"], "label": arrays[f"y_{split}"].astype(np.int64)})

    put_library_in_place(monkeypatch, load_dataset)
    data = load_images("hf:ylecun/mnist")
    assert_holds(data, arrays)
    assert data.name == "hf:ylecun/mnist"


def test_download_with_other_columns(arrays: Arrays, monkeypatch: pytest.MonkeyPatch) -> None:
    put_library_in_place(monkeypatch, lambda name, split: Table({"text": arrays[f"y_{split}"]}))
    with pytest.raises(
        ValueError, match=r"hf:some/text has no column image or img; it has text\. Name a data set with"
    ):
        load_images("hf:some/text")


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (ConnectionError("no route"), ConnectionError, "could not be downloaded .*no route.* Offline, use"),
        (RuntimeError("closed"), ConnectionError, "could not be downloaded .*RuntimeError: closed"),
        (
            FileNotFoundError("no such data set"),
            ValueError,
            r"no usable split 'train' \(no such data set\)\. Name a data set with",
        ),
        (ValueError("unknown split"), ValueError, r"no usable split 'train' \(unknown split\)\. Name a data set with"),
    ],
)
def test_download_that_fails(
    error: Exception, expected: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_dataset(name: str, *, split: str) -> Table:
        raise error

    put_library_in_place(monkeypatch, load_dataset)
    with pytest.raises(expected, match=message):
        load_images("hf:ylecun/mnist")


def test_download_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"pip install datasets pillow"):
        load_images("hf:ylecun/mnist")
