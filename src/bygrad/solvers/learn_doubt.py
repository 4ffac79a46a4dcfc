"""How `learn` learns to doubt: which solutions are worth another start."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, PyTree

from .doubt import CostLimit, Doubt, LearnedDoubt
from .engine import Watch, run
from .fit import LearnedSolver
from .learn_programs import single
from .learned import LearnedStart, Whitening, vector_of
from .solve import as_rows, flat_of_rows, precision, rows_at_once, with_arrays
from .training import Doubted, train_doubt

JUDGED = 0.25
"""Share of the instances that the limit is chosen on, and nothing trained."""

LOST = 0.005
"""Share of the instances that may end above what all of their starts find."""


def doubting(
    solver: LearnedSolver,
    start: LearnedStart,
    instances: PyTree[np.ndarray],
    tol: float,
    nothing: float,
    seconds: float,
    seed: int,
    watch: Watch | None = None,
) -> dict[str, LearnedSolver]:
    """Return solvers that take another start only where it is worth it: of the classical starts, by a limit of the cost
    and by a network, and of a learned start with classical ones after it.

    **Arguments:** `solver`: classical, with the most starts. `instances`: to learn from. `tol`, `nothing`: a cost is
    lower if it is by more than that, relative and absolute. `seconds`: for each network.
    """
    up_to = f"up to {solver.starts} starts"
    tried = every_start(solver, instances, tol, nothing, seed, watch)
    doubts: dict[str, Doubt] = {"tuned": cost_limit(tried), "learned doubt": learned_doubt(tried, seconds, seed, watch)}
    found = {f"{name}, {up_to}": dataclasses.replace(solver, doubt=it) for name, it in doubts.items()}
    # Whatever the doubt is, with one there are classical starts after the learned one.
    started = dataclasses.replace(solver, start=start, doubt=doubts["learned doubt"])
    tried = every_start(started, instances, tol, nothing, seed, watch)
    doubt = learned_doubt(tried, seconds, seed, watch)
    return found | {f"learned start and doubt, {up_to}": dataclasses.replace(started, doubt=doubt)}


class Tried(NamedTuple):
    """What all starts of some instances found: the lowest cost after each, where it is, and whether no other start of
    the instance ends lower; `[rows, starts]`."""

    instances: PyTree[np.ndarray]
    cost: Float[np.ndarray, "rows starts"]
    x: Float[np.ndarray, "rows starts p"]
    enough: Bool[np.ndarray, "rows starts"]


def every_start(
    solver: LearnedSolver,
    instances: PyTree[np.ndarray],
    tol: float,
    nothing: float,
    seed: int,
    watch: Watch | None = None,
) -> Tried:
    """Solve instances from all starts that the solver has for each.

    **Arguments:** `tol`, `nothing`: a cost is lower if it is by more than that, relative and absolute.
    """
    dtype = np.dtype(solver.dtype)
    with precision(dtype, solver.family):
        some, rows = as_rows(instances, dtype)
        assert rows is not None
        flat, _ = flat_of_rows(solver.family, some, rows)
        method, batch = with_arrays(solver.method, dtype).prepare(flat, dtype), rows_at_once(solver.method, None)
        starts = solver.starting(flat, some, rows, None, seed, batch, dtype)
        every = jax.tree.map(lambda leaf: np.repeat(leaf, solver.starts, axis=0), some)
        found = run(method, flat, every, starts.reshape(-1, starts.shape[-1]), batch=batch, watch=watch)
    cost, x = (found[name].reshape(rows, solver.starts, *found[name].shape[1:]) for name in ("cost", "x"))
    return Tried(some, *so_far(cost, x[..., : flat.size], tol, nothing))


def cost_limit(tried: Tried) -> CostLimit:
    """Return the cost above which other starts pay."""
    asked = tried.cost[:, :-1].astype(np.float32)
    return CostLimit(jnp.asarray(cheapest_limit(asked, tried.enough), jnp.float32))


def learned_doubt(
    tried: Tried, seconds: float, seed: int, watch: Watch | None = None, steps: int | None = None
) -> LearnedDoubt:
    """Learn from most of the instances which solutions are not the lowest, and choose the limit on the others."""
    rows = len(tried.cost)
    judged, taught = np.split(np.random.default_rng(seed).permutation(rows), [int(JUDGED * rows)])
    examples = _examples(tried, taught)
    whitening = Whitening.of(jax.vmap(vector_of)(examples.instances), examples.params)
    doubt = LearnedDoubt.untrained(whitening, examples.cost, jax.random.key(seed))
    doubt = train_doubt(doubt, examples, seconds, seed, watch, steps)
    asked = _examples(tried, judged)
    logits = np.asarray(jax.vmap(doubt)(asked.instances, asked.params, asked.cost)).reshape(len(judged), -1)
    return dataclasses.replace(doubt, limit=jnp.asarray(cheapest_limit(logits, tried.enough[judged]), jnp.float32))


def so_far(
    cost: Float[np.ndarray, "rows starts"], x: Float[np.ndarray, "rows starts p"], tol: float, nothing: float
) -> tuple[np.ndarray, np.ndarray, Bool[np.ndarray, "rows starts"]]:
    """Return the lowest cost after each start, where it is, and whether all of the starts find no lower one."""
    cost = np.where(np.isfinite(cost), cost, np.inf)
    best = np.zeros(cost.shape, int)
    for start in range(1, cost.shape[1]):
        before = best[:, start - 1]
        best[:, start] = np.where(cost[:, start] < cost[np.arange(len(cost)), before], start, before)
    rows = np.arange(len(cost))[:, None]
    cost, x = cost[rows, best], x[rows, best]
    last = cost[:, -1:]
    return cost, x, cost <= last + tol * np.abs(last) + nothing


def cheapest_limit(doubts: Float[np.ndarray, "rows fewer"], enough: Bool[np.ndarray, "rows starts"]) -> float:
    """Return the limit at which instances take the fewest starts, of those at which next to none stops too early.

    **Arguments:** `doubts`: after each start but the last. `enough`: whether an instance may stop after each start.
    """
    limits = [-np.inf, *np.quantile(doubts, np.linspace(0.0, 1.0, 201), method="lower")]
    after = np.concatenate([doubts, np.full((len(doubts), 1), -np.inf)], axis=1)
    spent, lost = [], []
    for limit in limits:
        stop = np.argmax(after <= limit, axis=1)
        spent.append(np.mean(stop))
        lost.append(np.mean(~enough[np.arange(len(stop)), stop]))
    return float(limits[min((i for i, share in enumerate(lost) if share <= LOST), key=lambda i: spent[i])])


def _examples(tried: Tried, rows: np.ndarray) -> Doubted:
    """Return an example for each of these rows and each of its starts but the last, in float32."""
    asked = tried.cost.shape[1] - 1
    flat = lambda values: values[rows, :asked].reshape(len(rows) * asked, *values.shape[2:])  # noqa: E731
    instances = jax.tree.map(lambda leaf: single(np.repeat(leaf[rows], asked, axis=0)), tried.instances)
    lower = flat(~tried.enough).astype(float)
    return Doubted(instances, single(flat(tried.x)), single(flat(tried.cost)), single(lower))
