"""How a row of the comparison is measured: clocks, what is kept of it, and what it runs on."""

import dataclasses
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import PyTree

from ..._core import trees
from ..._core.hosts import usable_cores
from ...deploy.jax import versions
from ...workflows.work import machine
from .judge import Assessed
from .rival import Outcome, Ready, Run, as_they_are

BUSY = 0.5
"""A load average a core above which times say little."""

LONG, PASSES = 1.0, 15
"""Seconds that a solver is timed for at least, and passes over the instances at most: a pass of milliseconds alone says
little."""


@dataclasses.dataclass(frozen=True)
class Row:
    """A solver in a comparison.

    **Arguments:** `group`: what kind of solver (`GROUPS` in the report). `loops`: see `Rival`. `problem`: why there is
    nothing to run. `note`: what to say beside the name. `ready`: see `Build`.
    """

    name: str
    group: str
    run: Run | None
    loops: bool = False
    problem: str | None = None
    note: str = ""
    ready: Ready = as_they_are


class Cell(NamedTuple):
    """What was measured of a row: arrays with one entry an instance, and seconds.

    `finished`: from the beginning until each answer was there. `wall`, `cpu`: for all, on the clock and of all threads.
    `compiling`: how much longer the first call took. `latency`: for one instance alone, the median of several.
    """

    cost: np.ndarray
    error: np.ndarray
    finished: np.ndarray
    evaluations: np.ndarray
    fallback: np.ndarray
    wall: float
    cpu: float
    compiling: float
    latency: float

    @property
    def assessed(self) -> Assessed:
        """What the answers are worth."""
        return Assessed(self.cost, self.error)


def measure(row: Row, instances: PyTree, assess: Any, singles: int) -> Cell:
    """Solve once, then on the clock, for a second or once, of which the median pass counts, then a few instances alone;
    `assess` maps instances and x to worth.

    What a solver of others wants to be given is ready before. A solver that loops is first given two instances only:
    what it compiles does not depend on their number.
    """
    run, rows = row.run, trees.length(instances)
    assert run is not None
    ready = row.ready(instances)
    first_rows = min(2, rows) if row.loops else rows
    first, _ = _timed(run, trees.rows(ready, slice(first_rows)))
    passes = [_timed(run, ready)]
    while len(passes) < PASSES and sum(seconds for (seconds, _), _ in passes) < LONG:
        passes.append(_timed(run, ready))
    (wall, cpu), (began, found) = sorted(passes, key=lambda it: it[0][0])[len(passes) // 2]
    alone = [_timed(run, trees.rows(ready, slice(i % rows, i % rows + 1)))[0][0] for i in range(singles + 1)]
    assessed = assess(instances, found.x)
    return Cell(
        assessed.cost,
        assessed.error,
        found.finished - began,
        found.evaluations,
        found.fallback,
        wall,
        cpu,
        max(first[0] - wall * first_rows / rows, 0.0),
        float(np.median(alone[1:])),
    )


def _timed(run: Run, instances: PyTree) -> tuple[tuple[float, float], tuple[float, Outcome]]:
    cpu, began = time.process_time(), time.perf_counter()
    found = run(instances)
    return (time.perf_counter() - began, time.process_time() - cpu), (began, found)


def kept(path: Path) -> Cell:
    """Read a cell."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in Cell._fields}
    fields: dict[str, Any] = {name: it if it.ndim else float(it) for name, it in arrays.items()}
    return Cell(**fields)


def circumstances() -> dict[str, Any]:
    """Describe what all times depend on: device, cores, versions, and what else the machine has to do."""
    load = None if sys.platform == "win32" else os.getloadavg()[0]
    return {
        "machine": machine(),
        "usable_cores": usable_cores(),
        "load_at_start": load,
        "busy": load is not None and load > BUSY * (os.cpu_count() or 1),
        "python": platform.python_version(),
        "versions": versions() | _versions_of(*PACKAGES),
    }


PACKAGES = ("scipy", "scikit-learn", "osqp", "clarabel", "daqp", "piqp", "highspy", "cvxpy", "optimistix", "dipy")
"""Of the rivals, as far as they are installed."""


def _versions_of(*packages: str) -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
