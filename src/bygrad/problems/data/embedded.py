"""Files that come with the package."""

import contextlib
import importlib.resources
from pathlib import Path

import numpy as np


def embedded(file: str) -> contextlib.AbstractContextManager[Path]:
    """Give the path of a file of this folder, also where the package is not unpacked."""
    return importlib.resources.as_file(importlib.resources.files("bygrad.problems.data") / file)


def read_arrays(file: str) -> dict[str, np.ndarray]:
    """Read an npz file of this folder."""
    with embedded(file) as path, np.load(path) as archive:
        return {name: archive[name] for name in archive.files}
