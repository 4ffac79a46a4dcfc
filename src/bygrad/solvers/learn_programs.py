"""What `learn` tries for composite problems and quadratic programs, whose certificates say what is solved."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from .._core import trees
from .._core.draws import key_of
from .._core.types import Tick
from ..problems import Composite, QuadraticProgram
from .admm import ADMM
from .base import Flat
from .fit import LearnedSolver
from .proximal import ProximalGradient
from .schedule import LearnedSchedule
from .solve import solve
from .training import Examples, single, train_schedule, train_warm_start
from .warm import LearnedWarmStart

BLOCK = 1024
"""Examples that are solved at a time."""

PENALTIES, UNPROVEN, SEEN = (1.0, 10.0, 0.1), 256, 4096
"""Factors on the tuned penalty that are tried after a learned warm start, on how many instances that are not proven
without an iteration, and among how many these are looked for."""


def learned_programs(
    base: LearnedSolver, train: Any, left: Callable[[], float], seed: int, watch: Tick | None, sample: Any
) -> dict[str, LearnedSolver]:
    """Return what was learned for a family with certificates: a schedule, or a warm start."""
    flat = Flat.of(base.family, trees.rows(train, 0))
    if isinstance(base.family, Composite):
        assert isinstance(base.method, ProximalGradient)
        instances = jax.tree.map(single, train)
        schedule = LearnedSchedule.classical(params=flat.size if base.family.separable else None)
        schedule = train_schedule(schedule, base.method, flat, instances, max(left(), 1.0), seed, watch, sample=sample)
        method = dataclasses.replace(base.method, schedule=schedule)
        return {"learned schedule": dataclasses.replace(base, method=method)}
    assert isinstance(base.family, QuadraticProgram) and isinstance(base.method, ADMM)
    examples = _examples(base, train, 0.25 * left(), watch)
    warm = LearnedWarmStart.fitted(examples.instances, examples.params, flat.size, key_of(seed))
    warm = train_warm_start(warm, base.method, flat, examples, max(left(), 1.0), seed, watch, sample)
    method = dataclasses.replace(base.method, warm=warm)
    return {"learned warm start": _with_best_penalty(dataclasses.replace(base, method=method), train)}


def _with_best_penalty(solver: LearnedSolver, train: Any) -> LearnedSolver:
    """Choose the penalty again: it was tuned from far away, and what a learned start leaves is near the solution.

    Kept is the one with the fewest evaluations among those that solve no fewer at the first attempt.
    """
    assert isinstance(solver.method, ADMM)
    unproven, rho = np.zeros(0, int), solver.method.rho
    for at in range(0, min(SEEN, trees.length(train)), BLOCK):
        part = trees.rows(train, slice(at, at + BLOCK))
        unproven = np.append(unproven, at + np.flatnonzero(solver.solve(part).nit > 0))
        if len(unproven) >= UNPROVEN:
            break
    if not len(unproven):
        return solver
    some = trees.rows(train, unproven[:UNPROVEN])
    methods = [dataclasses.replace(solver.method, rho=factor * rho) for factor in PENALTIES]
    found = [dataclasses.replace(solver, method=method).solve(some) for method in methods]
    solved = [int(np.sum(it.success & ~it.used_fallback)) for it in found]
    enough = [i for i, count in enumerate(solved) if count == max(solved)]
    return dataclasses.replace(solver, method=methods[min(enough, key=lambda i: found[i].nfev.sum())])


def _examples(base: LearnedSolver, train: Any, seconds: float, watch: Tick | None) -> Examples:
    """Solve instances more exactly than asked, for as long as there is time; params are $(p, y)$."""
    assert isinstance(base.method, ADMM)
    exact = dataclasses.replace(base.method, tol=0.1 * base.method.tol)
    began, rows, parts = time.perf_counter(), trees.length(train), []
    for at in range(0, rows, BLOCK):
        if parts and time.perf_counter() - began > seconds:
            break
        part = trees.rows(train, slice(at, at + BLOCK))
        found = solve(base.family, part, method=exact, dtype=base.dtype)
        parts.append((part, np.concatenate([found.x, found.dual], axis=1), found.cost, found.success))
        if watch is not None:
            watch("solving examples", min(at + BLOCK, rows), rows)
    good = np.concatenate([part[3] for part in parts])
    if not good.any():
        raise ValueError(
            f"None of {len(good)} instances was solved to {exact.tol:g}, so there is nothing to learn from. Loosen tol,"
            " or check that the programs are feasible."
        )
    instances = jax.tree.map(lambda *leaves: single(np.concatenate(leaves)[good]), *[part[0] for part in parts])
    params, cost = (single(np.concatenate([part[i] for part in parts])[good]) for i in (1, 2))
    return Examples(instances, params, cost)
