"""A stand-in for small labelled photographs: patches of the embedded ones, their photograph being the class."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bygrad.problems import ImageData
from bygrad.problems.data.pictures import load_photographs


def _patches(size: int = 32, classes: int = 10) -> ImageData:
    squares = load_photographs("train")[: 10 * classes : 10]
    corners = [(0, 0), (64 - size, 64 - size), (0, 64 - size), (64 - size, 0)]
    cut = np.stack([squares[:, i : i + size, j : j + size] for i, j in corners])
    labels = np.tile(np.arange(classes, dtype=np.int32), 2)
    train, test = (part.reshape(-1, size, size, 3) for part in (cut[:2], cut[2:]))
    return ImageData("patches of photographs", train, labels, test, labels)


@pytest.fixture(scope="session")
def patches() -> Callable[..., ImageData]:
    """Cuts two patches for each split from each of `classes` squares."""
    return _patches


@pytest.fixture(scope="session")
def patches_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten classes of 32 x 32 pixels, as an npz file that `load_images` reads."""
    path, data = tmp_path_factory.mktemp("patches") / "patches.npz", _patches()
    np.savez(path, x_train=data.x_train, y_train=data.y_train, x_test=data.x_test, y_test=data.y_test)
    return path
