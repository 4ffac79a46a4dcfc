"""What `bygrad learn` and `bygrad solve` do: a solver as a file, and files of instances larger than memory."""

import hashlib
import inspect
import json
import time
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np

from .._core import trees
from .._core.files import write_text_atomically
from ..deploy.solver import save_solver
from ..problems import ProblemFamily, describe_family, find_family
from ..solvers import LearnedSolver, Solution, learn, solve
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
    instances = None if data is None else np.load(data, mmap_mode="r", allow_pickle=False)
    solver = learn(
        find_family(family),
        budget=budget,
        tol=tol,
        instances=instances,
        seed=seed,
        dtype=dtype,
        watch=_phase(display),
    )
    save_solver(solver, out, family=family)
    return solver


def solve_file(solver: Any, data: Path, out: Path, display: Display, *, resume: bool = False) -> dict[str, Any]:
    """Solve every instance of an npy file and write `out`, an npz with the fields of `Solution`.

    Params that are one array are its `x`; those of a tree are `x/` and their path.

    The file is read block by block, so that it may be larger than memory. Each block's results go to a folder beside
    `out`; a run that was killed goes on after the last whole block. The folder goes when `out` is written.

    **Arguments:** `solver`: a `LearnedSolver`, or a family to solve classically.

    **Returns:** how many were solved, how fast, and the warnings.

    **Raises:** `FileExistsError` if `out` exists, or a folder of an interrupted run while `resume` is off; `ValueError`
    if that folder belongs to other data.
    """
    instances = np.load(data, mmap_mode="r", allow_pickle=False)
    if instances.ndim == 0:
        raise ValueError(f"{data} holds a single number, not instances. Its first axis must run over instances.")
    folder = out.with_name(f".{out.name}.parts")
    identity = _claim(folder, out, data, instances, solver, resume)
    began, rows, warnings = time.perf_counter(), len(instances), []
    fresh = 0
    for at in range(0, max(rows, 1), BLOCK):  # of no instances, too, the fields are known
        part = folder / f"{at:012d}.npz"
        if part.exists():
            continue
        block = np.asarray(instances[at : at + BLOCK])
        phase = _phase(display, at, rows)
        found = (
            solver.solve(block, watch=phase) if isinstance(solver, LearnedSolver) else solve(solver, block, watch=phase)
        )
        fresh += len(block)
        warnings += [warning for warning in found.warnings if warning not in warnings]
        write_text_atomically(folder / IDENTITY, identity)  # not before there is something to go on from
        _write(part, found)
    parts = [np.load(part, allow_pickle=False) for part in sorted(folder.glob("*.npz"))]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0].files}
    _write_arrays(out, joined)
    for part in sorted(folder.iterdir(), key=lambda path: path.name == IDENTITY):  # last: it says whose the others are
        part.unlink()
    folder.rmdir()
    seconds = time.perf_counter() - began
    return {
        "rows": rows,
        "solved": int(np.sum(joined["success"])),
        "seconds": seconds,
        "rate": fresh / max(seconds, 1e-9),
        "warnings": warnings,
    }


def _claim(folder: Path, out: Path, data: Path, instances: np.ndarray, solver: Any, resume: bool) -> str:
    """Return what says whose the folder is, after checking that it is this run's where it exists."""
    if out.exists():
        raise FileExistsError(f"{out} already exists and would be overwritten. Choose another --out.")
    # The first and the last instances tell files apart without reading all of them.
    ends = hashlib.sha256(
        np.ascontiguousarray(instances[:64]).tobytes() + np.ascontiguousarray(instances[-64:]).tobytes()
    )
    identity = {
        "data": str(data.resolve()),
        "shape": list(instances.shape),
        "ends": ends.hexdigest(),
        "family": describe_family(solver.family if isinstance(solver, LearnedSolver) else solver),
        "family_digest": _digest(solver.family if isinstance(solver, LearnedSolver) else solver),
        "solver": solver.digest if isinstance(solver, LearnedSolver) else "classical",
    }
    path = folder / IDENTITY
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
    _write_arrays(path, x | {name: getattr(found, name) for name in FIELDS})


def _write_arrays(path: Path, arrays: dict[str, Any]) -> None:
    """Write an npz that is whole or absent."""
    temporary = path.with_name(f"{path.name}.partial")
    with temporary.open("wb") as file:
        np.savez(file, **arrays)
    temporary.replace(path)


def _phase(display: Display, done: int = 0, total: int | None = None) -> Any:
    return lambda what, at, of: display.phase(what, done + at, total or of)
