"""Files that are whole or absent: nothing here leaves a half-written file behind."""

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to `path` so that a reader sees the old file or the new one, never a mixture.

    The bytes go to a temporary file beside `path`, reach the disk (`fsync`), and only then take the name; the
    folder is synchronized last, so that the name survives a power cut as well.

    **Raises:** `OSError` as the system gives it (disk full, read-only folder); the previous file is then untouched
    and the temporary one removed.
    """
    with _whole_or_absent(Path(path)) as file:
        file.write(data)


def write_text_atomically(path: str | os.PathLike[str], text: str) -> None:
    """`write_atomically` for UTF-8 text."""
    write_atomically(path, text.encode())


def write_arrays_atomically(path: str | os.PathLike[str], arrays: Mapping[str, Any]) -> None:
    """`write_atomically` for arrays by name, as an npz; they are written one by one, not copied first."""
    with _whole_or_absent(Path(path)) as file:
        np.savez(file, **arrays)


@contextlib.contextmanager
def _whole_or_absent(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write to, which takes the name of `path` when it is on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _synchronize_folder(path.parent)


def _synchronize_folder(folder: Path) -> None:
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # a platform that cannot open folders (Windows) gives no stronger guarantee than the rename
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
