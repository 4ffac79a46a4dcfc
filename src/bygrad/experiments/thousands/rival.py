"""What a rival is: a solver of others, as a row of the comparison."""

import dataclasses
import importlib.util
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, PyTree

from ..._core import trees
from ...problems import Composite, LeastSquares, ProblemFamily, QuadraticProgram
from ...solvers import Flat
from ...solvers.solve import precision


class Outcome(NamedTuple):
    """Answers to a batch: params, when each was there (on the clock of `time.perf_counter`), evaluations, fallbacks."""

    x: Float[np.ndarray, "rows p"]
    finished: Float[np.ndarray, " rows"]
    evaluations: Float[np.ndarray, " rows"]
    fallback: np.ndarray


Run = Callable[[PyTree], Outcome]
"""Solves a batch of instances, rows of arrays."""

Build = Callable[[float], Run]
"""Maps a tolerance to what solves to it; what compiles, compiles once for all tolerances."""


@dataclasses.dataclass(frozen=True)
class Rival:
    """A solver of others.

    **Arguments:** `needs`: modules, and what to install where one is missing. `serves`: the families that it solves;
    `ProblemFamily` stands for those without a structure. `build`: from the flat family to solvers by tolerance.
    `loops`: it solves one instance after the other on one core; a process on every other core would serve as well, so
    that is what it is credited with.
    """

    name: str
    group: str
    needs: dict[str, str]
    serves: type[ProblemFamily]
    build: Callable[[Flat], Build]
    loops: bool = True

    def suits(self, family: ProblemFamily) -> bool:
        """Say whether it is for this family."""
        structured = isinstance(family, LeastSquares | Composite | QuadraticProgram)
        return isinstance(family, self.serves) and (self.serves is not ProblemFamily or not structured)

    @property
    def missing(self) -> str | None:
        """Say what to install, if anything."""
        absent = [package for module, package in self.needs.items() if importlib.util.find_spec(module) is None]
        return f"not installed: pip install {' '.join(absent)}" if absent else None


def looped(solve_one: Callable[[Any, float], tuple[np.ndarray, float]]) -> Build:
    """Return what solves instances one by one, from what maps instance and tolerance to params and evaluations."""

    def run(instances: PyTree, tol: float) -> Outcome:
        x, finished, evaluations = [], [], []
        for one in each(instances):
            found, count = solve_one(one, tol)
            x.append(found)
            evaluations.append(count)
            finished.append(time.perf_counter())
        return Outcome(np.stack(x), np.array(finished), np.array(evaluations, float), np.zeros(len(x), bool))

    return lambda tol: in_double(lambda instances: run(instances, tol))


def each(instances: PyTree) -> Iterator[Any]:
    """Yield the rows of a batch."""
    for row in range(trees.length(instances)):
        yield trees.rows(instances, row)


def in_double(run: Run) -> Run:
    """Run in float64, whatever `jax_enable_x64` says."""

    def inside(instances: PyTree) -> Outcome:
        with precision(np.float64):
            return run(instances)

    return inside
