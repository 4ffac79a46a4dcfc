"""Labelled images from the package, from local files, or from a download that the user asks for by name."""

import dataclasses
import gzip
import math
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from .cifar import BINARY_FILES, JPEG_ARRAYS, decode_jpegs, read_binary_folder
from .embedded import embedded

_ARRAYS = ("x_train", "y_train", "x_test", "y_test")
_EMBEDDED = {"mnist": "mnist_10k_2k.npz"}
_DOWNLOAD = "hf:"
_LARGEST_LABEL = 2**16 - 1
_LABELS = f"Labels are class numbers, counted from 0 and at most {_LARGEST_LABEL:,}: renumber them."
_TO_PIXELS = "Pixels are whole numbers from 0 to 255: np.round(255 * x).astype(np.uint8), if x goes from 0 to 1."
_TO_LABELS = "Labels are class numbers: y.astype(np.int32), or y.argmax(-1).astype(np.int32) of one-hot rows."
_SOURCES = (
    "'mnist' (embedded: the first 10,000 training and 2,000 test images), "
    "'hf:ylecun/mnist', 'hf:uoft-cs/cifar10' or another data set on the Hugging Face hub (downloads it), "
    f"or the path of an npz file with the arrays {', '.join(_ARRAYS)}, of a folder of IDX files, or of the binary files"
    " of CIFAR-10"
)

# Each file of an IDX data set goes by two names; either may be compressed.
_IDX_FILES = {
    "x_train": ("train-images-idx3-ubyte", "train-images.idx3-ubyte"),
    "y_train": ("train-labels-idx1-ubyte", "train-labels.idx1-ubyte"),
    "x_test": ("t10k-images-idx3-ubyte", "t10k-images.idx3-ubyte"),
    "y_test": ("t10k-labels-idx1-ubyte", "t10k-labels.idx1-ubyte"),
}
_IDX_NAMES = {name + suffix for names in _IDX_FILES.values() for name in names for suffix in ("", ".gz")}


@dataclasses.dataclass(frozen=True, eq=False)
class ImageData:
    """Labelled images, split into a training and a test set, as plain NumPy arrays.

    **Arguments:**

    - `name`: where the images came from, as given to `load_images`; it begins every error message.
    - `x_train`, `x_test`: pixels in 0..255, `[n, height, width]` or `[n, height, width, channels]`; the image shape
        is the same in both sets.
    - `y_train`, `y_test`: the class of each image, counted from 0 (at most 65,535).

    **Raises:** `ValueError` when a shape, a dtype, a count or a label does not fit.

    **Example:**

        >>> import numpy as np
        >>> pixels, labels = np.zeros((3, 8, 8), np.uint8), np.array([0, 2, 1], np.int32)
        >>> ImageData("zeros", pixels, labels, pixels, labels).classes
        3
    """

    name: str
    # No shapes in these annotations: they come from users' files, and `__post_init__` says more than a type checker.
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray

    def __post_init__(self) -> None:
        for field in _ARRAYS:
            array = getattr(self, field)
            wanted, remedy = (np.uint8, _TO_PIXELS) if field.startswith("x") else (np.int32, _TO_LABELS)
            if not isinstance(array, np.ndarray) or array.dtype != wanted:
                found = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
                raise ValueError(
                    f"{self.name}: {field} must be a NumPy array of {np.dtype(wanted)}, not {found}. {remedy}"
                )
        _check_split(self.name, "train", self.x_train, self.y_train)
        _check_split(self.name, "test", self.x_test, self.y_test)
        if self.x_train.shape[1:] != self.x_test.shape[1:]:
            raise ValueError(
                f"{self.name}: one training image has shape {self.x_train.shape[1:]}, one test image "
                f"{self.x_test.shape[1:]}. A model has one input size: bring all images to the same shape."
            )

    @property
    def classes(self) -> int:
        """Number of classes: the largest label in either set, plus one."""
        return 1 + int(max(self.y_train.max(), self.y_test.max()))

    def shrunk(self, pixels: int) -> "ImageData":
        """Average the images over squares to `pixels` x `pixels`; what the squares leave over is cut from the border.

        **Raises:** `ValueError` for images that are not square, or that have fewer pixels a side.

        >>> load_images("mnist").shrunk(8).x_train.shape
        (10000, 8, 8)
        """
        height, width = self.x_train.shape[1:3]
        if height != width or not 1 <= pixels <= height:
            raise ValueError(
                f"{self.name} holds images of {height} x {width} pixels, which cannot be averaged over squares to"
                f" {pixels} x {pixels}. Use square ones of {pixels} pixels a side or more, as those of MNIST."
            )
        if pixels == height:
            return self
        return dataclasses.replace(self, x_train=_averaged(self.x_train, pixels), x_test=_averaged(self.x_test, pixels))


def load_images(source: str | os.PathLike[str] = "mnist") -> ImageData:
    """Load labelled images by name or from a local file.

    **Arguments:**

    - `source`: one of

        - `"mnist"` (the default, because it needs neither files nor network): the first 10,000 training and 2,000
            test images of MNIST, embedded in the package;
        - the path of an `.npz` file with the arrays `x_train`, `y_train`, `x_test` and `y_test`, or, with each image a
            JPEG, `jpeg_train`, `offset_train`, `label_train` and the same for the test set (needs Pillow);
        - the path of a folder of IDX files, MNIST's own format (`train-images-idx3-ubyte` and the three others,
            plain or `.gz`), or of one of these files; the others are read beside it;
        - the path of CIFAR-10's folder of binary files (`data_batch_1.bin` and the five others), or of one of them;
        - `"hf:owner/name"`, such as `"hf:ylecun/mnist"`: a data set on the Hugging Face hub with the splits `train`
            and `test`. It is downloaded, and kept in that library's cache; needs `pip install datasets pillow`.

        A `~` at the beginning is the home folder.

    **Returns:** An `ImageData`; labels of any integer type become int32.

    **Raises:** `FileNotFoundError` when a path does not exist; `ValueError` when a name is unknown or a file does
    not hold what it should; `ImportError` and `ConnectionError` when a download is not possible.

    **Example:**

        >>> load_images("mnist").x_train.shape
        (10000, 28, 28)

    The source of the embedded images is LeCun, Cortes and Burges, *The MNIST database of handwritten digits*.
    """
    name = os.fspath(source)
    if name in _EMBEDDED:
        with embedded(_EMBEDDED[name]) as file:
            return _assemble(name, _read_npz(file))
    if name.startswith(_DOWNLOAD):
        from .download import download  # the only way to the network: taken when asked for

        return _assemble(name, download(name.removeprefix(_DOWNLOAD)))
    path = Path(os.path.expanduser(name))  # leaves the home of an unknown user as it is, which then does not exist
    if not path.exists():
        if path.name == name and not path.suffix:
            raise ValueError(f"Unknown data {name!r}. Give {_SOURCES}.")
        raise FileNotFoundError(f"{path} does not exist. Give {_SOURCES}.")
    folder = path if path.is_dir() else path.parent
    if any((folder / file).is_file() for file in BINARY_FILES) and (path.is_dir() or path.name in BINARY_FILES):
        return _assemble(name, read_binary_folder(folder))
    if path.is_dir():
        return _assemble(name, _read_idx_folder(path))
    if path.name in _IDX_NAMES:
        return _assemble(name, _read_idx_folder(path.parent))
    if path.suffix == ".npz" or zipfile.is_zipfile(path):
        return _assemble(name, _read_npz(path))
    raise ValueError(f"{path} is neither an npz file nor named like a file of IDX or of CIFAR-10. Give {_SOURCES}.")


def _check_split(name: str, split: str, images: np.ndarray, labels: np.ndarray) -> None:
    if images.ndim not in (3, 4):
        raise ValueError(
            f"{name}: x_{split} has shape {images.shape}. "
            "Images are [n, height, width] or [n, height, width, channels]: reshape them."
        )
    if 0 in images.shape:
        raise ValueError(f"{name}: x_{split} has shape {images.shape}, so there is nothing to train or test on.")
    if labels.shape != images.shape[:1]:
        raise ValueError(
            f"{name}: x_{split} holds {images.shape[0]} images but y_{split} has shape {labels.shape}. "
            "Each image needs exactly one label."
        )
    if labels.min() < 0 or labels.max() > _LARGEST_LABEL:
        raise ValueError(f"{name}: y_{split} runs from {labels.min()} to {labels.max()}. {_LABELS}")


def _assemble(name: str, arrays: Mapping[str, np.ndarray]) -> ImageData:
    """Build an `ImageData` from arrays as a file holds them, where labels may have any integer type."""
    labels = {}
    for field in ("y_train", "y_test"):
        array = np.asarray(arrays[field])
        if not np.issubdtype(array.dtype, np.integer):
            raise ValueError(f"{name}: {field} must hold integers, not {array.dtype}. {_TO_LABELS}")
        labels[field] = array.astype(np.int32)
        if not np.array_equal(labels[field], array):  # a large number would wrap, perhaps into the range of the labels
            raise ValueError(f"{name}: {field} runs from {array.min()} to {array.max()}. {_LABELS}")
    return ImageData(name, arrays["x_train"], labels["y_train"], arrays["x_test"], labels["y_test"])


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is not an npz file, or only the beginning of one. Write it with numpy.savez.")
    arrays, reading = {}, "the table of contents"
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = archive.files
            for reading in set(names).intersection((*_ARRAYS, *JPEG_ARRAYS)):
                arrays[reading] = archive[reading]
    except (ValueError, OSError, EOFError, MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{path}: {reading} cannot be read ({error}). The file is damaged, or holds Python objects, which are "
            "never loaded because unpickling runs code: write plain arrays with numpy.savez."
        ) from error
    if arrays.keys() >= set(JPEG_ARRAYS):
        return decode_jpegs(str(path), arrays)
    if missing := [field for field in _ARRAYS if field not in arrays]:
        raise ValueError(
            f"{path} has no {', '.join(missing)}; it holds {', '.join(names) or 'nothing'}. "
            f"The arrays must be called {', '.join(_ARRAYS)}."
        )
    return arrays


def _read_idx_folder(folder: Path) -> dict[str, np.ndarray]:
    found = {}
    for field, names in _IDX_FILES.items():
        candidates = [folder / (name + suffix) for name in names for suffix in ("", ".gz")]
        found[field] = next((path for path in candidates if path.is_file()), None)
    if missing := [_IDX_FILES[field][0] for field, path in found.items() if path is None]:
        raise FileNotFoundError(
            f"{folder} lacks {', '.join(missing)} (plain or .gz). An IDX data set is four files: images and labels, "
            "for training (train-...) and test (t10k-...)."
        )
    return {field: _read_idx(path) for field, path in found.items() if path is not None}


def _read_idx(path: Path) -> np.ndarray:
    """Read one IDX file: two zero bytes, the type (8: unsigned bytes), the rank, big-endian sizes, then the data."""
    data = path.read_bytes()
    if data.startswith(b"\x1f\x8b"):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} cannot be decompressed ({error}): copy or download it again.") from error
    rank = data[3] if len(data) > 3 else 0
    if data[:3] != b"\x00\x00\x08" or not 1 <= rank <= 4:
        raise ValueError(
            f"{path} begins with {data[:4].hex(' ') or 'nothing'}. An IDX file of unsigned bytes begins with 00 00 08 "
            "and a rank from 1 to 4: give one, or an npz file."
        )
    start = 4 + 4 * rank
    shape = tuple(np.frombuffer(data[4:start], ">u4").tolist()) if len(data) >= start else ()
    if len(data) - start != math.prod(shape):
        raise ValueError(
            f"{path} announces the shape {shape} and holds {len(data)} bytes, which do not fit: it is cut short or "
            "damaged. Copy or download it again."
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _averaged(images: np.ndarray, pixels: int) -> np.ndarray:
    size = images.shape[1] // pixels
    start = (images.shape[1] - size * pixels) // 2
    cut = images[:, start : start + size * pixels, start : start + size * pixels]
    means = cut.reshape(-1, pixels, size, pixels, size, *images.shape[3:]).mean(axis=(2, 4))
    return np.round(means).astype(np.uint8)
