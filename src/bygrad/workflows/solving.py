"""What `bygrad learn` and `bygrad solve` do: a solver as a file, and files of instances larger than memory."""

import dataclasses
import hashlib
import math
import os
import secrets
import struct
import time
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
from numpy.lib.format import read_array_header_1_0, read_array_header_2_0, read_magic
from numpy.lib.npyio import NpzFile

from .._core import trees
from .._core.files import refuse_unwritable
from ..deploy.solver import save_solver
from ..problems import ProblemFamily, describe_family, find_family
from ..problems.base import digest_family
from ..solvers import STATUS, Flat, LearnedSolver, Method, Solution, learn, solve
from ..solvers.base import instance_like, parts_in_words
from ..solvers.fit import SolverGuard
from ..solvers.learn import HELDOUT
from ..solvers.solve import as_rows, count_rows, default_method, precision, rows_at_once
from .display import Display
from .parts import Parts

BLOCK = 65_536
"""Instances that are read, solved and written at a time, at most."""

BYTES = 2**28
"""Of the instances of a block, at most, so that what is computed from them fits as well."""


def learn_to_file(
    family: str,
    budget: str,
    tol: float,
    out: Path,
    display: Display,
    *,
    data: Path | None = None,
    heldout: int = HELDOUT,
    seed: int = 0,
    dtype: str = "float64",
) -> LearnedSolver:
    """Learn a solver for a family by name and keep it in `out`.

    **Raises:** before anything is learned, `FileExistsError` if `out` exists, `FileNotFoundError` without its folder or
    `data`, `PermissionError` if nothing can be written there. If `out` appears meanwhile, also `FileExistsError`, and
    the solver is kept beside it.
    """
    if os.path.lexists(out):
        raise FileExistsError(f"{out} already exists and would be overwritten. Choose another --out.")
    if not out.absolute().parent.is_dir():
        raise FileNotFoundError(f"There is no folder {out.absolute().parent} to write {out.name} to. Make it first.")
    refuse_unwritable(out)
    _refuse_missing(data)
    built = find_family(family)
    solver = learn(
        built,
        budget=budget,
        tol=tol,
        instances=None if data is None else read_instances(data, built),
        heldout=heldout,
        seed=seed,
        dtype=dtype,
        watch=_phase(display),
    )
    try:
        save_solver(solver, out, family=family, new=True)
    except FileExistsError as error:  # hours may be in what was learned
        aside = out.with_name(f"{out.stem}-{secrets.token_hex(4)}{out.suffix}")
        save_solver(solver, aside, family=family, new=True)
        raise FileExistsError(f"{out} has appeared meanwhile, so what was learned is in {aside}.") from error
    return solver


def read_instances(data: Path, family: ProblemFamily) -> Any:
    """Return the instances in a file: an npy, or an npz with an array for each part of an instance, named by its path
    as in `x/<path>` of the results. What is not compressed stays on the disk.

    **Raises:** `ValueError` for a file that holds neither, or other parts than an instance has.
    """
    arrays = _arrays_in(data)
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
    arrays = _arrays_in(x0, only=("x", "dual"))
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


def _arrays_in(file: Path, only: Collection[str] = ()) -> dict[str, np.ndarray]:
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
            " numpy.save or numpy.savez."
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


def solve_file(
    solver: Any,
    data: Path,
    out: Path,
    display: Display,
    *,
    resume: bool = False,
    tol: float | None = None,
    max_steps: int | None = None,
    starts: int | None = None,
    dtype: str | None = None,
    x0: Path | None = None,
    guard: SolverGuard | None = None,
    seed: int = 0,
    batch: int | None = None,
    block: int | None = None,
    place: tuple[int, int] = (0, 1),
) -> dict[str, Any]:
    """Solve every instance of an npy or npz file (`read_instances`) and write `out`, an npz with the fields of
    `Solution`.

    Params that are one array are its `x`; a tree of params is stored one array per leaf, named `x/<path>`.

    The file is read block by block, unless it is compressed, and the results are joined so, so that both may be larger
    than memory. Each block's results go to a folder beside `out`; a run that was killed goes on after the last whole
    block. The folder goes when `out` is written.

    **Arguments:**

    - `solver`: a `LearnedSolver`, or a family to solve classically.
    - `tol`, `max_steps`, `starts`, `dtype`: of the classical method, as in `bygrad.solve`; a learned solver has its
      own.
    - `x0`: a file of params to start from, and perhaps of multipliers (`read_start`).
    - `guard`: of a learned solver. `seed`: of what is drawn, which is the same in every block.
    - `batch`: rows that are worked on at once. `block`: rows that are read and kept at a time. Default: what takes
      about `parts.SECONDS`; where starts are drawn, give it for the same draws whatever the speed of the machine.
    - `place`: which process this is, from 0, of how many that solve the file together in a folder that all see.

    **Returns:** how many of how many rows were solved, how many ended with which `status`, how fast, and the warnings;
    for processes other than 0, of those that it has solved itself.

    **Raises:** `FileExistsError` if `out` exists (unless `resume` is on and this run has written it: then nothing is
    left to do), or a folder of an interrupted run while `resume` is off, or another process is at work on it;
    `ValueError` if that folder belongs to other data or a row of them has changed, or for settings that a learned
    solver has of its own, or a classical one has not.
    """
    _refuse_files(data, x0, out)
    if block is not None and block < 1:
        raise ValueError(f"block is {block}, so no row would ever be solved. Give 1 or more, or None.")
    settings = {"tol": tol, "max_steps": max_steps, "starts": starts, "dtype": dtype, "x0": x0, "guard": guard}
    chosen: dict[str, Any] = {name: it for name, it in settings.items() if it is not None}
    _refuse_settings(solver, chosen)
    if not isinstance(solver, LearnedSolver):
        method = default_method(solver, tol, max_steps)
        solver = _Classical(solver, method, 1 if starts is None else starts, dtype or "float64")
    family, method = solver.family, solver.method
    instances = read_instances(data, family)
    rows = count_rows(instances)
    if rows is None:
        raise ValueError(f"The instances of {type(family).__name__} hold no arrays, so no file can hold them.")
    begin: Any = (None, None)
    if x0 is not None:
        begin = read_start(x0, method, family, instances, rows, solver.dtype)
        chosen["x0"] = _ends(begin)
    identity = _identity(data, instances, family, f"{solver.digest}, {chosen}, {seed}")
    if place[0] == 0:  # who writes the identity reads all of the files; the others, who compare with it, their ends
        identity["contents"] = [_contents(file) for file in (data, x0) if file is not None]
    options: dict[str, Any] = {"seed": seed, "batch": batch} | ({} if guard is None else {"guard": guard})

    def solve_rows(at: int, stop: int) -> Solution:
        some, (start, dual) = jax.tree.map(lambda leaf: np.asarray(leaf[at:stop]), (instances, begin))
        found = solver.solve(some, x0=start, dual0=dual, watch=_phase(display, at, stop - at, rows), **options)
        # The alarm is for the whole file: each block would see less, and more alarms would be false.
        alarm = solver.alarm([found.tally])
        return dataclasses.replace(found, warnings=tuple(it for it in found.warnings if it not in alarm))

    numbers = sum(math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(instances))
    limit = max(1, min(BLOCK, BYTES // (8 * max(1, numbers * solver.starts))))
    first = block or min(rows_at_once(method, batch) * jax.local_device_count(), limit)
    parts = Parts(out, rows, place, first, block, limit)
    began, warnings = time.perf_counter(), []
    status: list[np.ndarray] = [np.zeros(0, int)]
    with parts.at_work():
        parts.claim(identity, resume, display)
        for at, stop in parts.own():
            since = time.perf_counter()
            found = solve_rows(at, stop)
            parts.keep(at, found, time.perf_counter() - since)
            status.append(found.status)
        rate = sum(map(len, status)) / max(time.perf_counter() - began, 1e-9)
        if parts.index == 0:
            warnings, tallies = parts.join(display)
            warnings += solver.alarm(tallies)
            with np.load(out, allow_pickle=False) as results:
                status = [results["status"]]
    codes = np.concatenate(status)
    return {
        "rows": len(codes),
        "solved": int(np.sum(codes > 0)),
        "status": {code: int(np.sum(codes == code)) for code in STATUS},
        "seconds": time.perf_counter() - began,
        "rate": rate,
        "warnings": warnings,
    }


@dataclasses.dataclass(frozen=True)
class _Classical:
    """The classical method of a family, with its settings, in the words of a `LearnedSolver`."""

    family: ProblemFamily
    method: Method
    starts: int
    dtype: str
    digest: ClassVar[str] = "classical"

    def solve(self, instances: Any, **options: Any) -> Solution:
        return solve(self.family, instances, method=self.method, starts=self.starts, dtype=self.dtype, **options)

    def alarm(self, tallies: Any) -> tuple[str, ...]:
        return ()  # it has learned from no instances that others could differ from


def _refuse_files(data: Path, x0: Path | None, out: Path) -> None:
    """Refuse what cannot be read or written, before anything is computed."""
    _refuse_missing(data, x0)
    if not out.name or out.is_dir():
        raise FileExistsError(f"{out} is a folder, so no results can be written there. Give a file (--out).")
    refuse_unwritable(out)


def _refuse_missing(*files: Path | None) -> None:
    for file in files:
        if file is not None and not file.is_file():
            raise FileNotFoundError(f"There is no file {file}, so nothing can be read from it. Check the path.")


def _refuse_settings(solver: Any, chosen: Collection[str]) -> None:
    """Refuse settings that a solver of this kind does not have."""
    if isinstance(solver, LearnedSolver):
        if strange := [name for name in chosen if name not in ("guard", "x0")]:
            raise ValueError(
                f"{' and '.join(strange)} cannot be chosen for a learned solver: what its report says was measured with"
                " its own. Leave that out, learn again, or name the family to solve it classically."
            )
    elif "guard" in chosen:
        raise ValueError(
            f"guard is chosen, but {type(solver).__name__} is solved classically, so there is nothing to guard against."
            " Leave that out, or give a file of `bygrad learn`."
        )


def _identity(data: Path, instances: Any, family: ProblemFamily, solver: str) -> dict[str, Any]:
    """Return what tells a run from others."""
    shapes = {name: list(leaf.shape) for name, leaf in trees.named_leaves(instances).items()}
    return {
        "data": str(data.resolve()),
        "shape": shapes.get("", shapes),
        "ends": _ends(instances),
        "family": describe_family(family),
        "family_digest": digest_family(family),
        "solver": solver,
    }


def _ends(arrays: Any) -> str:
    """SHA-256 of the first and the last rows, which tell files apart without reading all of them."""
    ends = hashlib.sha256()
    for leaf in jax.tree.leaves(arrays):
        ends.update(np.ascontiguousarray(leaf[:64]).tobytes() + np.ascontiguousarray(leaf[-64:]).tobytes())
    return ends.hexdigest()


def _contents(file: Path) -> str:
    """SHA-256 of a file: rows that were corrected in its middle are another file's."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _phase(display: Display, done: int = 0, block: int = 0, total: int | None = None) -> Any:
    """Show what is told of a whole, or of a block of it as that part: of several starts, each is told by itself."""
    if total is None:
        return display.phase
    return lambda what, at, of: display.phase(what, done + at * block // of, total)
