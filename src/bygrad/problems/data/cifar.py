"""CIFAR-10 as its authors distribute it, and image sets that hold each image as a JPEG."""

import io
from itertools import pairwise
from pathlib import Path

import numpy as np

_TRAIN = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
_TEST = "test_batch.bin"
BINARY_FILES = frozenset((*_TRAIN, _TEST))

_RECORD = 1 + 3 * 32 * 32
"""A byte for the label, then the red, green and blue planes of 32 rows of 32 pixels."""

JPEG_ARRAYS = tuple(f"{kind}_{split}" for kind in ("jpeg", "offset", "label") for split in ("train", "test"))


def read_binary_folder(folder: Path) -> dict[str, np.ndarray]:
    """Read the folder `cifar-10-batches-bin`; its format: https://www.cs.toronto.edu/~kriz/cifar.html."""
    if missing := sorted(name for name in BINARY_FILES if not (folder / name).is_file()):
        raise FileNotFoundError(
            f"{folder} lacks {', '.join(missing)}. CIFAR-10 is six binary files, {_TRAIN[0]} to {_TRAIN[-1]} and"
            f" {_TEST}: unpack cifar-10-binary.tar.gz whole."
        )
    train = [_read_binary(folder / name) for name in _TRAIN]
    x_test, y_test = _read_binary(folder / _TEST)
    return {
        "x_train": np.concatenate([images for images, _ in train]),
        "y_train": np.concatenate([labels for _, labels in train]),
        "x_test": x_test,
        "y_test": y_test,
    }


def _read_binary(path: Path) -> tuple[np.ndarray, np.ndarray]:
    data = np.frombuffer(path.read_bytes(), np.uint8)
    if not data.size or data.size % _RECORD:
        raise ValueError(
            f"{path} holds {data.size} bytes, which is no multiple of {_RECORD}, the bytes of an image and its label:"
            " it is cut short or not a binary file of CIFAR-10. Copy or download it again."
        )
    records = data.reshape(-1, _RECORD)
    images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), records[:, 0]


def decode_jpegs(name: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Decode `jpeg_*` (bytes, one image after the other), `offset_*` (where each begins, and the end) and `label_*`."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            f"{name} holds JPEGs, which are decoded with Pillow, and it is not installed ({error}). Install it with:"
            " pip install pillow."
        ) from error
    decoded = {}
    for split in ("train", "test"):
        data, offsets = arrays[f"jpeg_{split}"].tobytes(), arrays[f"offset_{split}"]
        if not len(offsets) or offsets[0] != 0 or np.any(np.diff(offsets) <= 0) or offsets[-1] != len(data):
            raise ValueError(
                f"{name}: offset_{split} does not run from 0 up to {len(data)}, the bytes of jpeg_{split}, so where an"
                " image begins is not known. The file is damaged: make or copy it again."
            )
        images = []
        for i, (start, end) in enumerate(pairwise(offsets)):
            try:
                with Image.open(io.BytesIO(data[start:end]), formats=("JPEG",)) as image:
                    images.append(np.asarray(image))
            except (OSError, SyntaxError, ValueError) as error:
                raise ValueError(
                    f"{name}: image {i} of jpeg_{split} cannot be decoded ({error}). The file is damaged: make or copy"
                    " it again."
                ) from error
        if len({image.shape for image in images}) > 1:
            raise ValueError(f"{name}: the images of jpeg_{split} differ in size. Bring them to the same size.")
        decoded[f"x_{split}"], decoded[f"y_{split}"] = np.stack(images), arrays[f"label_{split}"]
    return decoded
