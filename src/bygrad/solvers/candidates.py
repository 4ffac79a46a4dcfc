"""Which of the candidates is kept, measured on held-out instances, and what can be promised of it."""

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from .._core.draws import SEEDS
from ..problems import ProblemFamily
from .base import certified
from .card import Card
from .certificate import CONFIDENCE, failure_bound, percentile_bound
from .drift import Usual
from .fit import LearnedSolver
from .solution import Solution

REFERENCE = 10
"""Starts of the multistart that tells the best known cost, beside all candidates."""

REPEATED = 0.1
"""Seconds for which quick candidates are timed again and again: other work of the machine may take as long as one."""

MARGIN = 0.01
"""How much success a faster candidate may give up against the best classical one."""

WITHIN = (5, 10, 20, 50, 100, 200, 500, 1000)
"""Numbers of steps whose probability of failure is bounded. Chosen before anything is measured: bounds at numbers that
suit what was measured would be too low."""


def keep_best(
    base: LearnedSolver,
    solvers: Mapping[str, LearnedSolver],
    held: Any,
    tol: float,
    seed: int,
    learning: Mapping[str, float],
    spent: float,
    scale: float = 1.0,
    usual: Usual | None = None,
) -> LearnedSolver:
    """Measure all candidates on held-out instances and return the best, with its card.

    **Arguments:** `base`: the tuned classical solver. `solvers`: candidates by name; the classical ones' names begin
    with "tuned". `learning`: seconds that were spent on them, by what for; `spent`: all of it on `work_clock`.
    `scale`: what costs are where nothing is solved. `usual`: where the instances lie that were learned from.
    """
    began, family = time.perf_counter(), base.family
    classical = {
        name: dataclasses.replace(solver, classical=base.classical, classical_starts=solver.starts)
        for name, solver in solvers.items()
        if name.startswith("tuned")
    }
    measured = {name: _measure(solver, held, seed) for name, solver in classical.items()}
    # Learned ones fall back on the classical one that solves most, and are measured with it.
    starts = _most_solved(family, classical, measured, tol, scale).starts
    finished = lambda it: dataclasses.replace(it, classical=base.classical, classical_starts=starts)  # noqa: E731
    solvers = classical | {name: finished(solver) for name, solver in solvers.items() if name not in classical}
    measured |= {name: _measure(it, held, seed) for name, it in solvers.items() if name not in classical}
    # The reference that success is measured against: every candidate, and ten starts.
    found = [it for it, _ in measured.values()]
    if len(classical) > 1:  # otherwise further starts find no more
        found.append(dataclasses.replace(base, start=None, starts=REFERENCE).solve(held, seed=(seed + 1) % SEEDS))
    best = BestKnown.of(found, scale)
    candidates = {name: _summary(family, it, time_, best, tol) for name, (it, time_) in measured.items()}
    kept = _choose(candidates)
    solution, each = measured[kept]
    solved = is_solved(family, solution, best, tol)
    failed, held_out = int(np.sum(~solved)), len(solution)
    # The kept one was chosen on the same instances, and so was what learned ones fall back on: each of the solvers that
    # could have come out gets an equal part of what may go wrong. Half of it goes to the bound on steps, a quarter to
    # the one on failures, the rest to those within a number of steps. Failures of a classical one hang on the fallback
    # too: it decides what is the best known cost.
    parts = len(classical) * (1 + len(candidates) - len(classical)), len(classical) * len(candidates)
    wrong, missed = ((1 - CONFIDENCE) / it for it in parts)
    bound = percentile_bound(solution.nit.astype(float), confidence=1 - wrong / 2)
    late = {steps: int(np.sum(~solved | (solution.nit > steps))) for steps in WITHIN}
    level = 1 - missed / (4 * len(WITHIN))
    pays = not kept.startswith("tuned")
    fallbacks = int(np.sum(solution.used_fallback | ~solution.success))
    card = Card(
        kept=kept,
        candidates=candidates,
        heldout=held_out,
        failures=failed,
        fallbacks=fallbacks,
        failure_bound=failure_bound(failed, held_out, 1 - missed / 4),
        steps_bound=bound if math.isfinite(bound) else None,
        confidence=CONFIDENCE,
        tol=tol,
        seconds={**learning, "comparison": time.perf_counter() - began},
        break_even={name: _break_even(spent, candidates[name]["seconds"], each) for name in classical},
        pays=pays,
        within={str(steps): [count, failure_bound(count, held_out, level)] for steps, count in late.items()},
        signs=_signs(solution.nit, bound, fallbacks, None if usual is None else usual.distance(held), wrong),
    )
    return dataclasses.replace(solvers[kept], card=card, usual=usual)


def _signs(
    steps: np.ndarray, steps_bound: float, fallbacks: int, far: np.ndarray | None, wrong: float
) -> list[dict[str, Any]]:
    """Return what the drift alarm counts. Rare instances that are far beyond the others and many that are a little so
    are seen by different quantiles.

    `wrong`: what may go wrong with the bounds of one candidate. Half of it was spent on `steps_bound`, a quarter goes
    to the four others, and a quarter is left to chance in service. Distances do not hang on which candidate is kept.
    """
    level, steps = 1 - wrong / 16, steps.astype(float)
    limits = [("steps", 0.01, steps_bound), ("steps", 0.1, percentile_bound(steps, 0.9, level))]
    if far is not None:
        any_level = 1 - (1 - CONFIDENCE) / 16
        limits += [("distance", rate, percentile_bound(far, 1 - rate, any_level)) for rate in (0.01, 0.1)]
    unsolved = {"what": "unsolved", "limit": 0.0, "rate": failure_bound(fallbacks, len(steps), level)}
    kept = [{"what": what, "limit": limit, "rate": rate} for what, rate, limit in limits if math.isfinite(limit)]
    return [unsolved, *kept]


def work_clock() -> float:
    """Return seconds of the processor, which do not depend on what else it has to do; without a CPU, of the clock."""
    return time.process_time() if jax.default_backend() == "cpu" else time.perf_counter()


def _measure(solver: LearnedSolver, held: Any, seed: int) -> tuple[Solution, float]:
    """Solve the held-out instances, and again, when nothing compiles; return seconds of work each, the least where it
    is so quick that it is repeated."""
    solution, times = solver.solve(held, seed=seed), []
    while not times or (sum(times) < REPEATED and len(times) < 10):
        began = work_clock()
        solution = solver.solve(held, seed=seed)
        times.append(work_clock() - began)
    return solution, min(times) / len(solution)


@dataclasses.dataclass(frozen=True)
class BestKnown:
    """The lowest cost that is known of each instance, `[rows]`, where it is, `[rows, params]`, and what is no cost."""

    cost: np.ndarray
    x: np.ndarray
    nothing: float

    @classmethod
    def of(cls, found: Sequence[Solution], scale: float = 1.0) -> "BestKnown":
        """Take of each instance the solution with the lowest cost; a cost that is not finite is none.

        `scale`: what costs are where nothing is solved; 1e-12 of it is no cost.
        """
        costs = np.stack([np.where(np.isfinite(it.cost), it.cost, np.inf) for it in found])
        chosen, rows = np.argmin(costs, axis=0), np.arange(costs.shape[1])
        return cls(costs[chosen, rows], np.stack([it.rows for it in found])[chosen, rows], 1e-12 * scale)


def is_solved(family: ProblemFamily, solution: Solution, best: BestKnown, tol: float) -> np.ndarray:
    """Say which instances are solved: by their certificate, or as well as the best that is known, within `tol`.

    As well is what the cost says, or every entry of x: where data are without noise, the lowest cost is zero but for
    rounding, and no other cost is near it, relative to it. Where x is zero as well, `best.nothing` counts.
    """
    if certified(family):
        return solution.success
    cheap = solution.cost <= best.cost + tol * np.abs(best.cost) + best.nothing
    near = np.all(np.abs(solution.rows - best.x) <= tol * np.abs(best.x), axis=1)
    return np.isfinite(solution.cost) & (cheap | near)


def _summary(
    family: ProblemFamily, solution: Solution, seconds: float, best: BestKnown, tol: float
) -> dict[str, float]:
    return {
        "success": float(np.mean(is_solved(family, solution, best, tol))),
        "seconds": seconds,
        "throughput": 1 / seconds,
        "evaluations": float(np.mean(solution.nfev)),
        "worst_steps": float(np.max(solution.nit)),
        "fallbacks": float(np.mean(solution.used_fallback)),
    }


def _choose(candidates: dict[str, dict[str, float]]) -> str:
    """Return the fastest whose success is near that of the best classical one; a tie of 5 % goes to the simpler."""
    best = max(it["success"] for name, it in candidates.items() if name.startswith("tuned"))
    enough = {name: it["seconds"] for name, it in candidates.items() if it["success"] >= best - MARGIN}
    fastest = min(enough.values())
    return next(name for name, seconds in enough.items() if seconds <= 1.05 * fastest)


def _most_solved(
    family: ProblemFamily,
    classical: Mapping[str, LearnedSolver],
    measured: Mapping[str, tuple[Solution, float]],
    tol: float,
    scale: float,
) -> LearnedSolver:
    """Return the classical candidate that solves most, and of those with as much success the first."""
    best = BestKnown.of([it for it, _ in measured.values()], scale)
    return classical[max(classical, key=lambda name: np.mean(is_solved(family, measured[name][0], best, tol)))]


def _break_even(learning: float, rival: float, ours: float) -> float | None:
    """Return how many instances repay the learning; None for never."""
    return float(math.ceil(learning / (rival - ours))) if rival > ours else None
