"""What a rival is: a solver of others, as a row of the comparison."""

import dataclasses
import importlib.util
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, PyTree

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

Ready = Callable[[PyTree], PyTree]
"""Maps a batch of instances to what a solver is given of them, rows of NumPy arrays."""


def as_they_are(instances: PyTree) -> PyTree:
    """Give a solver the instances themselves."""
    return instances


class Build(NamedTuple):
    """What `at` maps a tolerance to solves what `ready` makes of instances, and compiles once for all tolerances.

    Who calls a solver in a loop has its vectors and starts in NumPy, so that `ready` is not on the clock. Ours get the
    instances: they compute all of that while the clock runs.
    """

    at: Callable[[float], Run]
    ready: Ready = as_they_are

    def __call__(self, tol: float) -> Run:
        """Return what solves instances to a tolerance, from the beginning."""
        run = self.at(tol)
        return lambda instances: run(self.ready(instances))


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


def ready_by(one: Callable[[Any], PyTree]) -> Ready:
    """Return what computes arrays for all instances at once, from a function of one in JAX."""
    compiled = jax.jit(jax.vmap(one))

    def ready(instances: PyTree) -> PyTree:
        with precision(np.float64):
            return jax.tree.map(np.array, compiled(instances))  # copies, as some solvers only take what can be written

    return ready


def looped(solve_one: Callable[[Any, float], tuple[np.ndarray, float]], ready: Ready = as_they_are) -> Build:
    """Return what solves one by one, from what maps what is ready of one and a tolerance to params and evaluations."""

    def run(instances: PyTree, tol: float) -> Outcome:
        x, finished, evaluations = [], [], []
        for one in each(instances):
            found, count = solve_one(one, tol)
            x.append(found)
            evaluations.append(count)
            finished.append(time.perf_counter())
        return Outcome(np.stack(x), np.array(finished), np.array(evaluations, float), np.zeros(len(x), bool))

    return Build(lambda tol: in_double(lambda instances: run(instances, tol)), ready)


def each(instances: PyTree) -> Iterator[Any]:
    """Yield the rows of a batch."""
    leaves, structure = jax.tree.flatten(instances)
    for row in zip(*leaves, strict=True):
        yield jax.tree.unflatten(structure, row)


def in_double(run: Run) -> Run:
    """Run in float64, whatever `jax_enable_x64` says."""

    def inside(instances: PyTree) -> Outcome:
        with precision(np.float64):
            return run(instances)

    return inside
