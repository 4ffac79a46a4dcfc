"""Files that are whole or absent: nothing here leaves a half-written file behind."""

import contextlib
import errno
import glob
import hashlib
import json
import os
import secrets
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

if sys.platform != "win32":
    import fcntl


def write_atomically(path: str | os.PathLike[str], *data: bytes | memoryview, new: bool = False) -> None:
    """Write `data`, one after the other, to `path` so that a reader sees the old file or the new one, never a mixture.

    The bytes go to a temporary file beside `path`, reach the disk (`fsync`), and only then take the name; the
    folder is synchronized last, so that the name survives a power cut as well. Where `path` is a symbolic link, all of
    this happens to what it points to. `new`: there must be no previous file.

    **Raises:** `OSError` as the system gives it (disk full, read-only folder), and for a folder, a device or a pipe;
    `FileExistsError` if `new` is on and something took the name in the meantime. The previous file is then untouched
    and the temporary one removed.
    """
    with _whole_or_absent(Path(path), new) as file:
        file.writelines(data)


def write_text_atomically(path: str | os.PathLike[str], text: str) -> None:
    """`write_atomically` for UTF-8 text."""
    write_atomically(path, text.encode())


def write_arrays_atomically(path: str | os.PathLike[str], arrays: Mapping[str, Any]) -> None:
    """`write_atomically` for arrays by name, as an npz; they are written one by one, not copied first."""
    with _whole_or_absent(Path(path)) as file:
        np.savez(file, **arrays)


def join_arrays_atomically(
    path: str | os.PathLike[str], parts: Sequence[Path], names: Sequence[str], rows: int, comment: bytes = b""
) -> None:
    """`write_arrays_atomically` for what several npz files hold under `names`, joined along the first axis to `rows`.

    One array of one file at a time is in memory. `comment`: of the archive, which readers of arrays do not see.
    """
    with _whole_or_absent(Path(path)) as file, zipfile.ZipFile(file, "w") as whole:
        whole.comment = comment
        for name in names:
            with reading_arrays(parts[0]) as part:
                shape, dtype = (rows, *part[name].shape[1:]), part[name].dtype
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
            with whole.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, header)
                for at in parts:
                    with reading_arrays(at) as part:
                        member.write(part[name].astype(dtype, copy=False).tobytes())


AGAIN = "Delete it and resume: what it held is done again."


@contextlib.contextmanager
def reading_arrays(path: Path) -> Iterator[Mapping[str, np.ndarray]]:
    """Give the arrays of an npz that an earlier run has kept.

    **Raises:** `ValueError` if it is damaged, as `read_json`.
    """
    try:
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            raise ValueError("it holds one array without a name")
        with found as arrays:
            yield arrays
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged ({error}), so what was kept there cannot be read. {AGAIN}") from error


def read_json(path: Path, remedy: str = AGAIN) -> Any:
    """Read what an earlier run has kept as JSON.

    **Raises:** `ValueError` if it is damaged (the file's own disk, an editor, an incomplete copy): here nothing is
    written by halves. `remedy`: what to do then.
    """
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}), so what was kept there cannot be read. {remedy}") from error


def unwritable(folder: Path, option: str = "--out") -> str:
    """Say why no file can be written in a folder, or where it would be made, and what to do; nothing where one can be.

    To be asked before hours go into what is to be written. Leaves nothing, nor is the folder made. `option`: of the
    command line, which chooses the folder.
    """
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    trial = there / f".{secrets.token_hex(8)}.tmp"
    try:
        trial.touch()
        trial.unlink()
    except OSError as error:
        return (
            f"Nothing can be written in {there} ({error.strerror}), so what comes out could not be kept, and nothing"
            f" was started. Make it writable, or choose another place ({option})."
        )
    return ""


def refuse_unwritable(file: Path | None, option: str = "--out") -> None:
    """**Raises:** `OSError` if this file, should one be given, could not be written when all is done."""
    if file is None:
        return
    _refuse_what_is_no_file(file)
    if why := unwritable(_itself(file).parent, option):
        raise PermissionError(why)


@contextlib.contextmanager
def locked(path: Path, shared: bool = False) -> Iterator[None]:
    """Hold a lock on a file, which is made for it, alone or with all who share it.

    The system ends it with the process, however that ends. Windows and file systems without locks hold nothing.

    **Raises:** `BlockingIOError` if another process holds it.
    """
    if sys.platform == "win32":
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            # Who held it may have removed it meanwhile: a lock on a file without that name keeps nobody out.
            if not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                raise BlockingIOError("It is another file by now.")
        except (BlockingIOError, FileNotFoundError, PermissionError) as error:
            raise BlockingIOError(f"Another process holds {path}.") from error
        except OSError:  # a file system without locks
            pass
        yield


def sweep(path: Path) -> None:
    """Remove what writing a file left behind where the process was killed meanwhile. Nobody else may be writing it."""
    path = _itself(path)
    for unfinished in path.parent.glob(f"{glob.escape(_hidden(path.name))}.{'[0-9a-f]' * 16}.tmp"):
        unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def _whole_or_absent(path: Path, new: bool = False) -> Iterator[BinaryIO]:
    """Give a file to write to, which takes the name of `path` when it is on the disk."""
    _refuse_what_is_no_file(path)
    path = path if new else _itself(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{_hidden(path.name)}.{secrets.token_hex(8)}.tmp")
    try:
        # Not by `tempfile`, whose files nobody else may read: this one may be read by whom the user's umask lets.
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if new:
            _take_new_name(temporary, path)
        else:
            os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        # A full disk says nothing of what did not fit.
        if isinstance(error, OSError) and error.errno and error.filename is None:
            error.filename = str(path)
        raise
    _synchronize_folder(path.parent)


def _itself(path: Path) -> Path:
    """Return the file behind a symbolic link, which a rename would replace."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def _hidden(name: str) -> str:
    """Return how the names of temporary files begin. A name may have 255 bytes, on some file systems 143."""
    long = len(os.fsencode(name)) > 100
    return f".{hashlib.sha256(os.fsencode(name)).hexdigest() if long else name}"


def _refuse_what_is_no_file(path: Path) -> None:
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, so no file can be written by that name. Choose another name.")
    if path.exists() and not path.is_file():
        raise FileExistsError(
            f"{path} is a device or a pipe, and a file that is whole or absent would take its place. Choose another"
            " name."
        )
    if any(_is_written_to(stream, path) for stream in (1, 2)):
        raise FileExistsError(
            f"{path} is the file that this program's own output goes to, and would be replaced, with all that stands in"
            " it. Choose another name."
        )


def _is_written_to(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:  # it is closed, or there is no file yet
        return False


def _take_new_name(temporary: Path, path: Path) -> None:
    """Rename a file, unless another has the name."""
    try:
        os.link(temporary, path)
    except OSError:  # the name is taken, or the file system has no links, which leaves a moment between the two
        if os.path.lexists(path):
            raise FileExistsError(
                f"{path} has appeared meanwhile and would be overwritten. Choose another name."
            ) from None
        os.replace(temporary, path)
    else:
        temporary.unlink()


def _synchronize_folder(folder: Path) -> None:
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # a platform that cannot open folders (Windows) gives no stronger guarantee than the rename
        return
    try:
        os.fsync(descriptor)
    except OSError as error:  # the file has its name, on a file system that does not synchronize folders
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
