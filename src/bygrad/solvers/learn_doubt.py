"""How `learn` learns to doubt: which solutions are worth another start."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, PyTree

from .._core.draws import key_of
from .._core.types import Tick
from .doubt import CostLimit, Doubt, LearnedDoubt
from .fit import Batch, LearnedSolver
from .learned import LearnedStart, Whitening, vector_of
from .solve import as_rows, flat_of_rows, from_every_start, precision, rows_at_once, with_arrays
from .training import Doubted, single, train_doubt

JUDGED = 0.25
"""Share of the instances that the limit is chosen on, and nothing trained."""

LOST = 0.005
"""Share of the instances that may be lost against all classical starts of each."""


def doubting(
    solver: LearnedSolver,
    start: LearnedStart,
    instances: PyTree[np.ndarray],
    tol: float,
    nothing: float,
    seconds: float,
    seed: int,
    watch: Tick | None = None,
) -> dict[str, LearnedSolver]:
    """Return solvers that take another start only where it is worth it: of the classical starts, by a limit of the cost
    and by a network, and of a learned start with classical ones after it. Where next to none of the instances has a
    finite cost, no network is learned.

    **Arguments:** `solver`: classical, with the most starts. `instances`: to learn from. `tol`, `nothing`: a cost is
    lower if it is by more than that, relative and absolute. `seconds`: for each network.
    """
    # Whatever the doubt is, with one there are classical starts after the learned one.
    started = dataclasses.replace(solver, start=start, doubt=CostLimit(jnp.asarray(-jnp.inf)))
    own, learned = (every_start(it, instances, tol, nothing, seed, watch) for it in (solver, started))
    best = np.minimum(own.cost[:, -1:], learned.cost[:, -1:])
    classical = is_low(own.cost[:, -1:], best, tol, nothing)[:, 0]
    own, learned = (it._replace(solved=is_low(it.cost, best, tol, nothing)) for it in (own, learned))
    doubts: dict[str, tuple[LearnedSolver, Doubt]] = {
        "tuned": (solver, cost_limit(own, float(np.mean(classical)) - LOST))
    }
    if JUDGED * np.isfinite(np.maximum(own.cost[:, -1], learned.cost[:, -1])).sum() >= 1:
        doubts |= {
            "learned doubt": (solver, learned_doubt(own, classical, seconds, seed, watch)),
            "learned start and doubt": (started, learned_doubt(learned, classical, seconds, seed, watch)),
        }
    up_to = f"up to {solver.starts} starts"
    return {f"{name}, {up_to}": dataclasses.replace(it, doubt=doubt) for name, (it, doubt) in doubts.items()}


class Tried(NamedTuple):
    """What all starts of some instances found: the lowest cost after each, where it is, whether no other start of the
    instance ends lower, and whether the instance is solved; `[rows, starts]`."""

    instances: PyTree[np.ndarray]
    cost: Float[np.ndarray, "rows starts"]
    x: Float[np.ndarray, "rows starts p"]
    lowest: Bool[np.ndarray, "rows starts"]
    solved: Bool[np.ndarray, "rows starts"]


def every_start(
    solver: LearnedSolver,
    instances: PyTree[np.ndarray],
    tol: float,
    nothing: float,
    seed: int,
    watch: Tick | None = None,
) -> Tried:
    """Solve instances from all starts that the solver has for each.

    **Arguments:** `tol`, `nothing`: a cost is lower if it is by more than that, relative and absolute.
    """
    dtype = np.dtype(solver.dtype)
    with precision(dtype, solver.family):
        some, rows = as_rows(instances, dtype)
        assert rows is not None
        flat, _ = flat_of_rows(solver.family, some, rows)
        method = with_arrays(solver.method, dtype).prepare(flat, dtype)
        batch = rows_at_once(solver.method, None, flat, some)
        starts = solver.starting(Batch(flat, some, rows, None, seed, batch, dtype, watch))
        found = from_every_start(method, flat, some, starts, batch=batch, watch=watch)
    cost, x = (found[name].reshape(rows, solver.starts, *found[name].shape[1:]) for name in ("cost", "x"))
    cost, x = so_far(cost, x[..., : flat.size])
    lowest = is_low(cost, cost[:, -1:], tol, nothing)
    return Tried(some, cost, x, lowest, lowest)


def cost_limit(tried: Tried, least: float = 1 - LOST) -> CostLimit:
    """Return the cost above which other starts pay, if `least` is the share to solve."""
    asked = np.asarray(single(tried.cost[:, :-1]))
    return CostLimit(jnp.asarray(cheapest_limit(asked, tried.solved, least), jnp.float32))


def learned_doubt(
    tried: Tried,
    classical: Bool[np.ndarray, " rows"],
    seconds: float,
    seed: int,
    watch: Tick | None = None,
    steps: int | None = None,
) -> LearnedDoubt:
    """Learn from most of the instances which solutions are not the lowest, and choose the limit on the others.

    **Arguments:** `classical`: whether an instance is solved by all classical starts. Of those that the limit is chosen
    on, at most `LOST` fewer are to be: as a share of all instances, chance would decide whether any limit is enough.
    """
    rows = np.random.default_rng(seed).permutation(np.flatnonzero(np.isfinite(tried.cost[:, -1])))
    judged, taught = np.split(rows, [int(JUDGED * len(rows))])
    examples = _examples(tried, taught)
    whitening = Whitening.of(jax.vmap(vector_of)(examples.instances), examples.params)
    doubt = LearnedDoubt.untrained(whitening, examples.cost, key_of(seed))
    doubt = train_doubt(doubt, examples, seconds, seed, watch, steps)
    asked = _examples(tried, judged)
    logits = np.asarray(jax.vmap(doubt)(asked.instances, asked.params, asked.cost)).reshape(len(judged), -1)
    limit = cheapest_limit(logits, tried.solved[judged], float(np.mean(classical[judged])) - LOST)
    return dataclasses.replace(doubt, limit=jnp.asarray(limit, jnp.float32))


def so_far(
    cost: Float[np.ndarray, "rows starts"], x: Float[np.ndarray, "rows starts p"]
) -> tuple[Float[np.ndarray, "rows starts"], Float[np.ndarray, "rows starts p"]]:
    """Return the lowest cost after each start, and where it is."""
    cost, rows = np.where(np.isfinite(cost), cost, np.inf), np.arange(len(cost))
    best = np.zeros(cost.shape, int)
    for start in range(1, cost.shape[1]):
        before = best[:, start - 1]
        best[:, start] = np.where(cost[:, start] < cost[rows, before], start, before)
    return cost[rows[:, None], best], x[rows[:, None], best]


def is_low(
    cost: Float[np.ndarray, "rows starts"], best: Float[np.ndarray, "rows 1"], tol: float, nothing: float
) -> Bool[np.ndarray, "rows starts"]:
    """Say which costs are as low as the best, within what counts."""
    return cost <= best + tol * np.abs(best) + nothing


def cheapest_limit(
    doubts: Float[np.ndarray, "rows fewer"], solved: Bool[np.ndarray, "rows starts"], least: float
) -> float:
    """Return the limit at which instances take the fewest starts, of those at which a share of `least` is solved; if
    there is none, the one at which they take all starts. It is finite, as all that is kept in a file must be.

    **Arguments:** `doubts`: after each start but the last. `solved`: whether an instance is solved after each start.
    """
    after = np.concatenate([doubts, np.full((len(doubts), 1), -np.inf)], axis=1)
    most = float(np.finfo(np.float32).max)
    cheapest, fewest = -most, np.inf
    for limit in np.quantile(doubts, np.linspace(0.0, 1.0, 201), method="lower"):
        stop = np.argmax(after <= limit, axis=1)
        if np.mean(stop) < fewest and np.mean(solved[np.arange(len(stop)), stop]) >= least:
            cheapest, fewest = float(np.clip(limit, -most, most)), float(np.mean(stop))
    return cheapest


def _examples(tried: Tried, rows: np.ndarray) -> Doubted:
    """Return an example for each of these rows and each of its starts but the last, in float32."""
    asked = tried.cost.shape[1] - 1
    flat = lambda values: values[rows, :asked].reshape(len(rows) * asked, *values.shape[2:])  # noqa: E731
    instances = jax.tree.map(lambda leaf: single(np.repeat(leaf[rows], asked, axis=0)), tried.instances)
    lower = flat(~tried.lowest).astype(float)
    return Doubted(instances, single(np.nan_to_num(flat(tried.x))), single(flat(tried.cost)), single(lower))
