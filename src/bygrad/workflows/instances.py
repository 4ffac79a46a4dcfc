"""Files of instances, and of params to start from: npy and npz, which stay on the disk where they can."""

import math
import struct
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpy.lib.format import read_array_header_1_0, read_array_header_2_0, read_magic
from numpy.lib.npyio import NpzFile

from .._core import trees
from ..problems import ProblemFamily
from ..solvers import Flat, Method
from ..solvers.base import instance_like, parts_in_words
from ..solvers.solve import as_rows, precision


def read_instances(data: Path, family: ProblemFamily) -> Any:
    """Return the instances in a file: an npy, or an npz with an array for each part of an instance, named by its path
    as in `x/<path>` of the results. What is not compressed stays on the disk.

    **Raises:** `ValueError` for a file that holds neither, or other parts than an instance has.
    """
    arrays = arrays_in(data)
    name, like = type(family).__name__, instance_like(family)
    if like is None:
        if list(arrays) == [""]:
            return arrays[""]
        raise ValueError(
            f"{data} holds {parts_in_words(arrays)}, and {name}.sample raises, so it is not known how an instance is"
            " built of them. Write `sample`, or make the instance one array and give an npy file."
        )
    if arrays.keys() != (wanted := trees.named_leaves(like)).keys():
        kind = "an npy file" if list(wanted) == [""] else "an npz file with these names"
        raise ValueError(
            f"{data} holds {parts_in_words(arrays)}, but an instance of {name} is {parts_in_words(wanted)}, so its"
            f" parts cannot be told apart. Give {kind}, one row for each instance."
        )
    return trees.replace_leaves(like, lambda path, _: arrays[path])


def read_start(
    x0: Path, method: Method, family: ProblemFamily, instances: Any, rows: int, dtype: Any
) -> tuple[Any, np.ndarray | None]:
    """Return the params in a file, one row for each instance or those of a single one, and the multipliers beside them,
    or None where there are none or the method starts without.

    The file is an npy, where params are one array, or an npz with the names that results have: `x` or `x/<path>`, and
    `dual`.

    **Raises:** `ValueError` for a file that holds other params, or multipliers of another shape.
    """
    arrays = arrays_in(x0, only=("x", "dual"))
    dual = arrays.pop("dual", None)
    arrays = {name.removeprefix("x").removeprefix("/"): leaf for name, leaf in arrays.items()}
    with precision(dtype, family):
        first, _ = as_rows(trees.rows(instances, slice(1)), dtype)
        flat = Flat.of(family, jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), first))
        multipliers = method.multipliers(flat)
    like = jax.tree.unflatten(flat.structure, [jax.ShapeDtypeStruct(shape, np.float64) for shape in flat.shapes])
    wanted = trees.named_leaves(like)
    if arrays.keys() != wanted.keys():
        raise ValueError(
            f"{x0} holds {parts_in_words(arrays)} for x, but the params of {type(family).__name__} are"
            f" {parts_in_words(wanted)}, so their parts cannot be told apart. Give an npy file for one array, or an npz"
            " file with the names x or x/<path>, as the results have them."
        )
    for name, leaf in arrays.items():
        shape = wanted[name].shape
        if leaf.shape not in (shape, (rows, *shape)):
            raise ValueError(
                f"{x0} holds params of shape {list(leaf.shape)}, but those of {rows} instances have"
                f" {[rows, *shape]}, so it does not say where each of them starts. Give one row for each instance, or"
                " the params of a single one for all."
            )
    x = trees.replace_leaves(like, lambda path, leaf: np.broadcast_to(arrays[path], (rows, *leaf.shape)))
    if dual is None or multipliers == 0:
        return x, None
    if dual.shape not in ((multipliers,), (rows, multipliers)):
        raise ValueError(
            f"{x0} holds multipliers of shape {list(dual.shape)}, but {rows} instances have {[rows, multipliers]}, so"
            " they belong to other programs. Give results of the same family, or a file without `dual`."
        )
    return x, np.broadcast_to(dual, (rows, multipliers))


def arrays_in(file: Path, only: Collection[str] = ()) -> dict[str, np.ndarray]:
    """Return the arrays of an npy or npz file by name; with `only`, of an npz those in these folders.

    An npy, whose name is empty, stays on the disk, and so does what an npz holds as it is: all that `numpy.savez`
    writes.
    """
    arrays = _whatever_is_in(file, only)
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf":
            raise ValueError(
                f"{file} holds {f'{name} of ' if name else ''}dtype {array.dtype}, and instances are real numbers."
                " Write them as floats or integers; of complex ones, the real and the imaginary part."
            )
    return arrays


def _whatever_is_in(file: Path, only: Collection[str]) -> dict[str, np.ndarray]:
    try:
        found = np.load(file, mmap_mode="r", allow_pickle=False)
        if not isinstance(found, np.ndarray):
            with found:
                names = [name for name in found.files if not only or name.partition("/")[0] in only]
                return {name: _member(file, found, name) for name in names}
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        with file.open("rb") as opened:  # of any other file, NumPy would say that it holds Python objects
            reason = f" ({error})" if opened.read(6).startswith((b"\x93NUMPY", b"PK")) else ""
        raise ValueError(
            f"{file} is neither an npy nor an npz file of numbers{reason}, so nothing can be read from it. Write it by"
            ' numpy.save or numpy.savez (from text: numpy.save("data.npy", numpy.loadtxt("data.csv", delimiter=","))).'
        ) from error
    if found.ndim == 0:
        raise ValueError(f"{file} holds a single number, not an array. Its first axis must run over instances.")
    return {"": found}


def _member(file: Path, archive: NpzFile, name: str) -> np.ndarray:
    """Return an array of an npz, without reading it where the file holds it as memory would."""
    inside, path = archive.zip, f"{name}.npy"
    if inside is None or path not in inside.namelist():
        return archive[name]
    member = inside.getinfo(path)
    with file.open("rb") as opened:
        # The header before the member, of 30 bytes, says how long its name is and what follows that.
        opened.seek(member.header_offset + 26)
        begin = member.header_offset + 30 + sum(struct.unpack("<HH", opened.read(4)))
        opened.seek(begin)
        plain = member.compress_type == zipfile.ZIP_STORED and not member.flag_bits & 1  # not encrypted
        read = {(1, 0): read_array_header_1_0, (2, 0): read_array_header_2_0}.get(read_magic(opened)) if plain else None
        if read is None:
            return archive[name]
        shape, fortran, dtype = read(opened)
        at = opened.tell()
    if dtype.hasobject or 0 in shape or at - begin + dtype.itemsize * math.prod(shape) != member.file_size:
        return archive[name]  # which says what is wrong, and reads nothing where there is nothing to map
    return np.memmap(file, dtype, "r", at, shape, "F" if fortran else "C")
