"""Our own rows: the batched classical core, tuned, from other starts, learned, and the paper's own optimizer."""

import dataclasses
import re
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from ..._core import trees
from ..._core.draws import key_of
from ..._core.programs import Program
from ...optimizers import Optimizer, declare
from ...problems import Composite, LeastSquares, QuadraticProgram
from ...solvers import ADMM, LBFGS, Flat, LearnedSolver, LevenbergMarquardt, Method, Solution, classical_method, solve
from ...solvers.fit import classical_only
from ...solvers.learn_doubt import cost_limit, every_start
from ...solvers.solution import side_by_side
from ...solvers.solve import precision
from ...unroll import Inner, lift, observe
from .judge import MARGIN, Assessed, Kind, assess, excess
from .rival import Outcome, Run

REFERENCE_STARTS, REFERENCE_BATCH = 10, 256
LOOK = 10
"""Steps of the paper's optimizer between two looks at whether an instance is solved."""


def batched(flat: Flat, tol: float, dtype: str = "float64") -> Run:
    """Return the classical core with its default settings."""
    method = classical_method(flat.family, tol)
    return lambda instances: _outcome(solve(flat.family, instances, method=method, dtype=dtype))


def learned(solver: LearnedSolver, factor: float) -> Run:
    """Return a solver, learned or tuned, at its tolerance times a factor."""
    solver = at_tolerance(solver, factor)
    return lambda instances: _outcome(solver.solve(instances))


def at_tolerance(solver: LearnedSolver, factor: float) -> LearnedSolver:
    """Return a solver with the tolerances of its methods multiplied by a factor."""

    def scaled(method: Method) -> Any:
        scale = {name: getattr(method, name) * factor for name in ("tol", "gain") if hasattr(method, name)}
        return dataclasses.replace(method, **scale)

    method = scaled(solver.method)
    classical = method if solver.method is solver.classical else scaled(solver.classical)
    return dataclasses.replace(solver, method=method, classical=classical)


def tuned(solver: LearnedSolver) -> LearnedSolver:
    """Return the tuned classical solver that a learned one was compared with: of its numbers of starts, the fastest
    one whose success is near the best."""
    assert solver.card is not None
    # Those that stop where the cost is low have a row of their own, `where_costly`.
    rivals = {name: it for name, it in solver.card.candidates.items() if re.fullmatch(r"tuned, \d+ starts?", name)}
    best = max(it["success"] for it in rivals.values())
    enough = {name: it["seconds"] for name, it in rivals.items() if it["success"] >= best - MARGIN}
    return with_starts(solver, int(min(enough, key=lambda name: enough[name]).split()[1]))


def with_starts(solver: LearnedSolver, starts: int) -> LearnedSolver:
    """Return the tuned classical solver with so many starts for each instance."""
    return dataclasses.replace(classical_only(solver, starts), classical_starts=starts)


MOST = 5
"""Starts at most where a solution costs too much."""


def where_costly(solver: LearnedSolver, past: PyTree, tol: float, seed: int) -> LearnedSolver:
    """Return the tuned classical solver that takes another start, up to `MOST`, where a solution costs more than most
    that were the best of all starts, on past instances. Nothing of it is learned but one number."""
    solver = with_starts(solver, MOST)
    return cost_limit(solver, every_start(solver, past, seed).judged(tol, 0.0))


class Past(NamedTuple):
    """Instances that have been solved before; `dual` has no columns where there are no multipliers."""

    instances: Float[np.ndarray, "rows d"]
    x: Float[np.ndarray, "rows p"]
    dual: Float[np.ndarray, "rows m"]

    @classmethod
    def of(cls, flat: Flat, instances: PyTree) -> "Past":
        """Solve instances, to start others from their solutions."""
        found = solve(flat.family, instances, method=classical_method(flat.family, 1e-6))
        return cls(rows_of(instances), found.rows, found.dual)

    def nearest(self, instances: PyTree) -> Int[np.ndarray, " rows"]:
        """Return for each instance which past one is nearest, each coordinate in units of its spread; in float32, which
        takes half the time."""
        mean, spread = self.instances.mean(axis=0), self.instances.std(axis=0)
        scale = np.where(spread > 0, spread, 1.0)
        ours, theirs = (((it - mean) / scale).astype(np.float32) for it in (rows_of(instances), self.instances))
        blocks = [
            np.argmin(np.sum(theirs**2, axis=1) - 2 * ours[at : at + 512] @ theirs.T, axis=1)
            for at in range(0, len(ours), 512)
        ]
        return np.concatenate(blocks)


def nearest(flat: Flat, solver: LearnedSolver, past: Past, factor: float) -> Run:
    """Return the tuned method, started at the solution of the nearest past instance and its multipliers."""
    method = at_tolerance(solver, factor).classical

    def run(instances: PyTree) -> Outcome:
        which = past.nearest(instances)
        x0, dual0 = flat.params(past.x[which]), past.dual[which]
        return _outcome(solve(flat.family, instances, method=method, x0=x0, dual0=dual0, dtype=solver.dtype))

    return run


def previous(flat: Flat, solver: LearnedSolver, sequences: int, factor: float) -> Run:
    """Return the tuned method on sequences, each step started at the solution and the multipliers of the one before."""
    method = at_tolerance(solver, factor).classical

    def run(instances: PyTree) -> Outcome:
        parts: list[Outcome] = []
        x0 = dual0 = None
        for at in range(0, trees.length(instances), sequences):
            some = trees.rows(instances, slice(at, at + sequences))
            if x0 is not None:
                x0, dual0 = trees.rows((x0, dual0), slice(trees.length(some)))
            found = solve(flat.family, some, method=method, x0=x0, dual0=dual0, dtype=solver.dtype)
            x0, dual0 = found.x, found.dual
            parts.append(_outcome(found))
        return Outcome(*(np.concatenate(it) for it in zip(*parts, strict=True)))

    return run


def paper(
    optimizer: Optimizer, flat: Flat, kind: Kind, known: tuple[PyTree, np.ndarray], tol: float, horizon: int
) -> Run:
    """Return the paper's optimizer, which is told what the minimum is and stops an instance that is near enough.

    No user can do that, and it is in its favour: it has no test of its own for when to stop. Every `LOOK` steps the
    best params so far are judged; an instance's evaluations are the steps until then. It works in float32, as trained.
    `known`: instances and their best known costs.
    """
    optimizer = declare(optimizer, horizon)
    costs = {row.tobytes(): cost for row, cost in zip(rows_of(known[0]), known[1], strict=True)}

    def run(instances: PyTree) -> Outcome:
        best = np.array([costs[row.tobytes()] for row in rows_of(instances)])
        rows = len(best)
        single = jax.tree.map(lambda leaf: leaf.astype(np.float32) if leaf.dtype == float else leaf, instances)
        best_x = np.zeros((rows, flat.size))
        finished, steps = np.full(rows, np.nan), np.full(rows, float(horizon))
        with precision(np.float32):
            state = _start(optimizer, flat, jax.tree.map(jnp.asarray, single))
        for step in range(0, horizon, LOOK):
            with precision(np.float32):
                state = _go_on(optimizer, flat, *state)
            running = np.isnan(finished)
            best_x[running] = np.asarray(state[1], float)[running]
            far = excess(kind, assess(flat, instances, best_x), best)
            done = running & (far <= tol)
            finished[done], steps[done] = time.perf_counter(), step + LOOK
            if not np.isnan(finished).any():
                break
        finished[np.isnan(finished)] = time.perf_counter()
        return Outcome(best_x, finished, steps, np.zeros(rows, bool))

    return run


@Program
def _start(optimizer: Optimizer, flat: Flat, instances: PyTree) -> tuple[Inner, Array, Array]:
    rows = trees.length(instances)
    keys = jax.random.split(key_of(0), rows)
    params = jax.vmap(flat.family.init)(instances, keys)
    inner = Inner(params, lift(optimizer).init(params), instances, keys, jnp.zeros(rows, jnp.int32))
    return inner, jax.vmap(flat.vector)(params), jnp.full(rows, jnp.inf)


@Program
def _go_on(
    optimizer: Optimizer, flat: Flat, inner: Inner, best: Float[Array, "rows p"], least: Float[Array, " rows"]
) -> tuple[Inner, Array, Array]:
    lifted = lift(optimizer)

    def body(carry: tuple[Inner, Array, Array], _: None) -> tuple[tuple[Inner, Array, Array], None]:
        inner, best, least = carry
        value, grads, key = observe(lifted, flat.family, inner)
        better = value < least
        best = jnp.where(better[:, None], jax.vmap(flat.vector)(inner.params), best)
        updates, state = lifted.update(grads, inner.optimizer_state, lifted.see(inner.params), value, key)
        moved = Inner(lifted.apply(inner.params, updates), state, inner.instance, inner.key, inner.step + 1)
        return (moved, best, jnp.where(better, value, least)), None

    return jax.lax.scan(body, (inner, best, least), None, length=LOOK)[0]


def reference(flat: Flat, instances: PyTree, seed: int) -> Assessed:
    """Return the best answers that can be had: many starts, to a tolerance far below all that are compared."""
    family = flat.family
    if isinstance(family, QuadraticProgram):
        found = solve(family, instances, method=ADMM(tol=1e-6, max_steps=10_000), batch=REFERENCE_BATCH)
    elif isinstance(family, Composite):
        accurate = dataclasses.replace(classical_method(family, 1e-6), max_steps=10_000)
        found = solve(family, instances, method=accurate, batch=REFERENCE_BATCH)
    else:
        accurate = LBFGS(tol=1e-9, gain=1e-14, max_steps=2_000)
        method = LevenbergMarquardt(tol=1e-10, max_steps=200) if isinstance(family, LeastSquares) else accurate
        found = solve(family, instances, method=method, starts=REFERENCE_STARTS, seed=seed, batch=REFERENCE_BATCH)
    return assess(flat, instances, found.rows)


def rows_of(instances: PyTree) -> Float[np.ndarray, "rows d"]:
    """Return instances as one array."""
    return side_by_side([np.asarray(leaf, float) for leaf in jax.tree.leaves(instances)])


def _outcome(found: Solution) -> Outcome:
    return Outcome(found.rows, found.finished, found.nfev.astype(float), found.used_fallback)
