"""What `bygrad learn` and `bygrad solve` do: a solver as a file, and files of instances larger than memory."""

import dataclasses
import functools
import glob
import hashlib
import inspect
import json
import time
import zipfile
import zlib
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np

from .._core import trees
from .._core.files import write_arrays_atomically, write_text_atomically
from ..deploy.solver import save_solver
from ..problems import ProblemFamily, describe_family, find_family
from ..solvers import LearnedSolver, Solution, learn, solve
from ..solvers.base import instance_like
from ..solvers.solve import count_rows, default_method, parts_in_words
from .display import Display

IDENTITY = "run.json"
"""In the folder of a run, what it belongs to."""

BLOCK = 65_536
"""Instances that are read, solved and written at a time: after a kill no more than these are solved again."""

FIELDS = ("cost", "certificate", "status", "success", "nit", "nfev", "used_fallback", "dual")


def learn_to_file(
    family: str,
    budget: str,
    tol: float,
    out: Path,
    display: Display,
    *,
    data: Path | None = None,
    seed: int = 0,
    dtype: str = "float64",
) -> LearnedSolver:
    """Learn a solver for a family by name and keep it in `out`.

    **Raises:** before anything is learned, `FileExistsError` if `out` exists, `FileNotFoundError` without its folder.
    """
    if out.exists():
        raise FileExistsError(f"{out} already exists and would be overwritten. Choose another --out.")
    if not out.absolute().parent.is_dir():
        raise FileNotFoundError(f"There is no folder {out.absolute().parent} to write {out.name} to. Make it first.")
    built = find_family(family)
    solver = learn(
        built,
        budget=budget,
        tol=tol,
        instances=None if data is None else read_instances(data, built),
        seed=seed,
        dtype=dtype,
        watch=_phase(display),
    )
    save_solver(solver, out, family=family)
    return solver


def read_instances(data: Path, family: ProblemFamily) -> Any:
    """Return the instances in a file: an npy, which stays on the disk, or an npz with an array for each part of an
    instance, named by its path as in `x/<path>` of the results.

    **Raises:** `ValueError` for a file that holds neither, or other parts than an instance has.
    """
    try:
        found = np.load(data, mmap_mode="r", allow_pickle=False)
        if not isinstance(found, np.ndarray):
            with found:
                found = {name: found[name] for name in found.files}
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{data} is neither an npy nor an npz file of numbers ({error}), so no instances can be read from it. Write"
            " it by numpy.save or numpy.savez."
        ) from error
    if isinstance(found, np.ndarray):
        if found.ndim == 0:
            raise ValueError(f"{data} holds a single number, not instances. Its first axis must run over instances.")
        arrays: dict[str, np.ndarray] = {"": found}
    else:
        arrays = found
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


def solve_file(
    solver: Any,
    data: Path,
    out: Path,
    display: Display,
    *,
    resume: bool = False,
    tol: float | None = None,
    starts: int | None = None,
    dtype: str | None = None,
    batch: int | None = None,
) -> dict[str, Any]:
    """Solve every instance of an npy or npz file (`read_instances`) and write `out`, an npz with the fields of
    `Solution`.

    Params that are one array are its `x`; a tree of params is stored one array per leaf, named `x/<path>`.

    An npy is read block by block, so that it may be larger than memory. Each block's results go to a folder beside
    `out`; a run that was killed goes on after the last whole block. The folder goes when `out` is written.

    **Arguments:** `solver`: a `LearnedSolver`, or a family to solve classically. `tol`, `starts`, `dtype`: of the
    classical method, as in `bygrad.solve`; a learned solver has its own. `batch`: rows that are worked on at once.

    **Returns:** how many were solved, how fast, and the warnings.

    **Raises:** `FileExistsError` if `out` exists, or a folder of an interrupted run while `resume` is off; `ValueError`
    if that folder belongs to other data, or for settings that a learned solver has of its own.
    """
    chosen = {name: it for name, it in {"tol": tol, "starts": starts, "dtype": dtype}.items() if it is not None}
    if isinstance(solver, LearnedSolver):
        if chosen:
            raise ValueError(
                f"{' and '.join(chosen)} cannot be chosen for a learned solver: what its report says was measured with"
                " its own. Leave that out, learn again, or name the family to solve it classically."
            )
        family, named, solve_rows = solver.family, solver.digest, functools.partial(solver.solve, batch=batch)
    else:
        method = None if tol is None else dataclasses.replace(default_method(solver), tol=tol)
        family, named = solver, f"classical{f', {chosen}' if chosen else ''}"
        solve_rows = functools.partial(
            solve, solver, method=method, starts=1 if starts is None else starts, dtype=dtype or np.float64, batch=batch
        )
    instances = read_instances(data, family)
    rows = count_rows(instances)
    if rows is None:
        raise ValueError(f"The instances of {type(family).__name__} hold no arrays, so no file can hold them.")
    folder = out.with_name(f".{out.name}.parts")
    identity = _claim(folder, out, data, instances, family, named, resume)
    began, warnings, fresh = time.perf_counter(), [], 0
    starting = range(0, max(rows, 1), BLOCK) if not out.exists() else ()  # of no instances, too, the fields are known
    for at in starting:
        part = folder / f"{at:012d}.npz"
        if part.exists():
            continue
        block = jax.tree.map(lambda leaf: np.asarray(leaf[at : at + BLOCK]), instances)  # noqa: B023
        found = solve_rows(block, watch=_phase(display, at, rows))
        fresh += len(found)
        warnings += [warning for warning in found.warnings if warning not in warnings]
        write_text_atomically(folder / IDENTITY, identity)  # not before there is something to go on from
        _write(part, found)
    _join(folder, out)
    seconds = time.perf_counter() - began
    with np.load(out, allow_pickle=False) as results:
        solved = int(np.sum(results["success"]))
    return {
        "rows": rows,
        "solved": solved,
        "seconds": seconds,
        "rate": fresh / max(seconds, 1e-9),
        "warnings": warnings,
    }


def _join(folder: Path, out: Path) -> None:
    """Write `out` from its parts, if it is not written yet, and remove them."""
    if not out.exists():
        for left in out.parent.glob(f".{glob.escape(out.name)}.*.tmp"):
            left.unlink(missing_ok=True)  # by a run that was killed while it wrote
        parts = [np.load(part, allow_pickle=False) for part in sorted(folder.glob("*.npz"))]
        write_arrays_atomically(out, {name: np.concatenate([part[name] for part in parts]) for name in parts[0].files})
    for part in sorted(folder.iterdir(), key=lambda path: path.name == IDENTITY):  # last: it says whose the others are
        part.unlink()
    folder.rmdir()


def _claim(
    folder: Path, out: Path, data: Path, instances: Any, family: ProblemFamily, solver: str, resume: bool
) -> str:
    """Return what says whose the folder is, after checking that it is this run's where it exists.

    Where `out` exists as well, the run was killed after it had written `out`, and only the folder is left to remove.
    """
    path = folder / IDENTITY
    if out.exists() and not (resume and path.exists()):
        raise FileExistsError(f"{out} already exists and would be overwritten. Choose another --out.")
    leaves = trees.named_leaves(instances)
    # The first and the last instances tell files apart without reading all of them.
    ends = hashlib.sha256()
    for leaf in leaves.values():
        ends.update(np.ascontiguousarray(leaf[:64]).tobytes() + np.ascontiguousarray(leaf[-64:]).tobytes())
    shapes = {name: list(leaf.shape) for name, leaf in leaves.items()}
    identity = {
        "data": str(data.resolve()),
        "shape": shapes.get("", shapes),
        "ends": ends.hexdigest(),
        "family": describe_family(family),
        "family_digest": _digest(family),
        "solver": solver,
    }
    if path.exists():
        if not resume:
            raise FileExistsError(f"{folder} holds an interrupted run. Go on with it (--resume), or remove the folder.")
        if (found := json.loads(path.read_text())) != identity:
            different = ", ".join(key for key in identity if found.get(key) != identity[key])
            raise ValueError(
                f"{folder} holds a run that differs in {different}, so its results do not belong to this one. Resume"
                " with the same arguments, or remove the folder."
            )
    return json.dumps(identity, indent=1)


def _digest(family: ProblemFamily) -> str:
    """SHA-256 of the file that a family is written in, and of its arrays: what was solved before either was mended does
    not belong to what is solved after."""
    digest = hashlib.sha256(Path(inspect.getfile(type(family))).read_bytes())
    for leaf in jax.tree.leaves(family):
        digest.update(np.asarray(leaf).tobytes() if eqx.is_array_like(leaf) else b"")
    return digest.hexdigest()


def _write(path: Path, found: Solution) -> None:
    x = {f"x/{name}" if name else "x": leaf for name, leaf in trees.named_leaves(found.x).items()}
    write_arrays_atomically(path, x | {name: getattr(found, name) for name in FIELDS})


def _phase(display: Display, done: int = 0, total: int | None = None) -> Any:
    return lambda what, at, of: display.phase(what, done + at, total or of)
