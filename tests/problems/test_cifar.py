"""CIFAR-10's binary files and images kept as JPEGs, good and bad; families by label, and other data refused."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bygrad.problems import ImageData, find_family
from bygrad.problems.data import load_images
from bygrad.problems.data.cifar import BINARY_FILES


def write_binary(folder: Path, data: ImageData) -> None:
    """Four records in each of the five files for training, all the others in the one for tests."""

    def records(images: np.ndarray, labels: np.ndarray) -> bytes:
        rows = [labels[:, None].astype(np.uint8), *(images[..., c].reshape(len(images), -1) for c in range(3))]
        return np.concatenate(rows, axis=1).tobytes()

    for i in range(5):
        part = slice(4 * i, 4 * i + 4)
        (folder / f"data_batch_{i + 1}.bin").write_bytes(records(data.x_train[part], data.y_train[part]))
    (folder / "test_batch.bin").write_bytes(records(data.x_test, data.y_test))


def jpeg_arrays(data: ImageData) -> dict[str, np.ndarray]:
    arrays = {}
    for split in ("train", "test"):
        files = []
        for image in getattr(data, f"x_{split}"):
            file = io.BytesIO()
            Image.fromarray(image).save(file, "JPEG", quality=95)
            files.append(file.getvalue())
        arrays[f"jpeg_{split}"] = np.frombuffer(b"".join(files), np.uint8)
        arrays[f"offset_{split}"] = np.cumsum([0, *map(len, files)])
        arrays[f"label_{split}"] = getattr(data, f"y_{split}").astype(np.uint8)
    return arrays


def test_binary_files(patches, tmp_path):
    data = patches()
    write_binary(tmp_path, data)
    for path in (tmp_path, tmp_path / "data_batch_3.bin"):
        found = load_images(path)
        for field in ("x_train", "y_train", "x_test", "y_test"):
            np.testing.assert_array_equal(getattr(found, field), getattr(data, field))


def test_binary_files_that_are_missing_or_cut_short(patches, tmp_path):
    write_binary(tmp_path, patches())
    whole = (tmp_path / "data_batch_2.bin").read_bytes()
    for damaged in (whole[:-1], b""):
        (tmp_path / "data_batch_2.bin").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"data_batch_2.bin holds .* no multiple of 3073"):
            load_images(tmp_path)
    (tmp_path / "data_batch_2.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks data_batch_2.bin.*unpack"):
        load_images(tmp_path)
    assert len(BINARY_FILES) == 6


def test_jpegs(patches, tmp_path):
    data = patches()
    np.savez(tmp_path / "jpegs.npz", **jpeg_arrays(data))
    found = load_images(tmp_path / "jpegs.npz")
    for split in ("train", "test"):
        np.testing.assert_array_equal(getattr(found, f"y_{split}"), getattr(data, f"y_{split}"))
        difference = getattr(found, f"x_{split}").astype(int) - getattr(data, f"x_{split}")
        assert np.abs(difference).mean() < 8  # JPEG changes fine detail, and nothing is out of place


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offset_test": lambda it: it[:-1]}, "offset_test does not run from 0"),
        ({"offset_test": lambda it: it[::-1]}, "offset_test does not run from 0"),
        ({"offset_test": lambda it: it[:0]}, "offset_test does not run from 0"),
        ({"jpeg_test": np.zeros_like}, "image 0 of jpeg_test cannot be decoded"),
        ({"label_test": lambda it: it[:-1]}, "Each image needs exactly one label"),
    ],
    ids=["cut", "backwards", "empty", "no JPEG", "labels"],
)
def test_damaged_jpegs(change, message, patches, tmp_path):
    arrays = jpeg_arrays(patches(classes=2))
    arrays |= {name: alter(arrays[name]) for name, alter in change.items()}
    np.savez(tmp_path / "jpegs.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        load_images(tmp_path / "jpegs.npz")


def test_families_by_label(patches_file):
    path = str(patches_file)
    whole = find_family("cifar10", data=path)
    assert (whole.classes, len(whole.images)) == (10, 20)
    for name, classes in (("cifar5", 5), ("cifar5-held-out", 5), ("cifar2", 2), ("cifar2-held-out", 8)):
        family = find_family(name, data=path, split="test")
        assert (family.classes, len(family.images)) == (classes, 2 * classes)
    # What is held out is never among what is tested.
    for name in ("cifar5", "cifar2"):
        tested, held_out = (find_family(name + ending, data=path) for ending in ("", "-held-out"))
        assert not {it.tobytes() for it in np.asarray(tested.images)} & {
            it.tobytes() for it in np.asarray(held_out.images)
        }


def test_small_images_are_averages_of_squares(patches_file):
    large, small = (find_family(name, data=str(patches_file)) for name in ("cifar5", "cifar5-16"))
    squares = np.asarray(large.images, float).reshape(-1, 16, 2, 16, 2, 3)
    np.testing.assert_allclose(small.images, squares.mean(axis=(2, 4)), atol=0.5)
    np.testing.assert_array_equal(small.labels, large.labels)


def test_other_data_is_not_taken_for_it(patches, tmp_path):
    with pytest.raises(ValueError, match=r"does not come with the package.*hf:uoft-cs/cifar10"):
        find_family("cifar10")
    data = patches(classes=3)
    np.savez(tmp_path / "three.npz", x_train=data.x_train, y_train=data.y_train, x_test=data.x_test, y_test=data.y_test)
    with pytest.raises(ValueError, match="in 3 classes, and so is not CIFAR-10"):
        find_family("cifar2", data=str(tmp_path / "three.npz"))
