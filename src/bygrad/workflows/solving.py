"""What `bygrad learn` and `bygrad solve` do: a solver as a file, and files of instances larger than memory."""

import dataclasses
import hashlib
import math
import os
import secrets
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np

from .._core import trees
from .._core.files import refuse_unwritable
from ..deploy.solver import save_solver
from ..problems import ProblemFamily, describe_family, find_family
from ..problems.base import digest_family
from ..solvers import STATUS, LearnedSolver, Method, Solution, learn, solve
from ..solvers.fit import SolverGuard
from ..solvers.learn import HELDOUT
from ..solvers.solve import count_rows, default_method, rows_at_once
from .display import Display
from .instances import read_instances, read_start
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
    if Path(out).suffix != ".npz":
        raise ValueError(f"The results go into {out}, but they are an npz file, whatever its name. Let it end in .npz.")
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
