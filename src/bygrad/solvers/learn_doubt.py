"""How `learn` learns to doubt: which solutions are worth another start."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, PyTree

from .._core.draws import key_of
from .._core.types import Tick
from .doubt import CostLimit, LearnedDoubt, restarted
from .engine import run
from .fit import LearnedSolver, ready
from .learned import LearnedRestart, LearnedStart, Whitening, vector_of
from .solve import from_every_start
from .training import Doubted, Mistaken, single, train_doubt, train_restart

JUDGED = 0.25
"""Share of the instances that the limit is chosen on, and nothing trained."""

LOST = 0.005
"""Share of the instances that may be lost against all classical starts of each."""

MISTAKES = 50
"""Solutions that are not the lowest, from which a network at least learns where the lowest is."""

NUMBERS = 2**28
"""Numbers at most in the instances of the examples that a network learns from, an instance with every start of it: in
float32, 1 GiB."""


def doubting(
    solver: LearnedSolver,
    start: LearnedStart,
    instances: PyTree[np.ndarray],
    tol: float,
    nothing: float,
    seconds: Callable[[], float],
    seed: int,
    watch: Tick | None = None,
) -> dict[str, LearnedSolver]:
    """Return solvers that take another start only where it is worth it: of the classical starts, by a limit of the
    cost; by a network, with another one that says where to look next; and both after a learned start. Where next to
    none of the instances has a finite cost, no network is learned.

    **Arguments:** `solver`: classical, with the most starts. `instances`: to learn from. `tol`, `nothing`: a cost is
    lower if it is by more than that, relative and absolute. `seconds`: says how many there are for the next network.
    """
    # Whatever the doubt is, with one there are classical starts after a learned one, and there may be a restart.
    solver = dataclasses.replace(solver, doubt=CostLimit(jnp.asarray(-jnp.inf)))
    started = dataclasses.replace(solver, start=start)
    own, learned = (every_start(it, instances, seed, watch) for it in (solver, started))
    ways = {"learned doubt": (solver, own), "learned start and doubt": (started, learned)}
    parts = divided(np.isfinite(own.lowest()[0]) & np.isfinite(learned.lowest()[0]), seed)
    lowest = own.beside(learned).lowest()[0]
    restart = learned_restart(start.whitening, own.beside(learned), parts[1], tol, nothing, seconds(), seed, watch)
    if restart is not None:
        anew = {name: again(it, restart, ended, seed, watch) for name, (it, ended) in ways.items()}
        lowest = np.min([lowest, *(ended.lowest()[0] for ended in anew.values())], axis=0)
        by_two = lambda ended: np.sum(ended.judged(tol, nothing, lowest).solved[parts[0], 1])  # noqa: E731
        for name, (it, ended) in ways.items():
            if by_two(anew[name]) > by_two(ended):  # otherwise a second classical start finds as much
                ways[name] = dataclasses.replace(it, restart=restart), anew[name]
    classical = is_low(own.lowest()[0], lowest, tol, nothing)
    found = {"tuned": cost_limit(solver, own.judged(tol, nothing, lowest), float(np.mean(classical)) - LOST)}
    if len(parts[0]):
        for name, (it, ended) in ways.items():
            tried = ended.judged(tol, nothing, lowest)
            found[name] = learned_doubt(it, tried, classical, parts, seconds(), seed, watch)
    return {f"{name}, up to {it.starts} starts": it for name, it in found.items()}


class Tried(NamedTuple):
    """What all starts of some instances found: the lowest cost after each, where it is, whether no other start of the
    instance ends lower, and whether the instance is solved; `[rows, starts]`."""

    instances: PyTree[np.ndarray]
    cost: Float[np.ndarray, "rows starts"]
    x: Float[np.ndarray, "rows starts p"]
    lowest: Bool[np.ndarray, "rows starts"]
    solved: Bool[np.ndarray, "rows starts"]


class Ended(NamedTuple):
    """Where every start of some instances ended, infinitely high where that is no number."""

    instances: PyTree[np.ndarray]
    cost: Float[np.ndarray, "rows starts"]
    x: Float[np.ndarray, "rows starts p"]

    def beside(self, other: "Ended") -> "Ended":
        """Return these starts and others of the same instances."""
        cost, x = (np.concatenate([mine, theirs], axis=1) for mine, theirs in zip(self[1:], other[1:], strict=True))
        return Ended(self.instances, cost, x)

    def lowest(self) -> tuple[Float[np.ndarray, " rows"], Float[np.ndarray, "rows p"]]:
        """Return the lowest cost of each instance, and where it is."""
        rows, best = np.arange(len(self.cost)), np.argmin(self.cost, axis=1)
        return self.cost[rows, best], self.x[rows, best]

    def judged(self, tol: float, nothing: float, best: Float[np.ndarray, " rows"] | None = None) -> Tried:
        """Return what was found after each start; solved is what is as low as `best`, by default the lowest."""
        cost, x = so_far(self.cost, self.x)
        lowest = is_low(cost, cost[:, -1:], tol, nothing)
        solved = lowest if best is None else is_low(cost, best[:, None], tol, nothing)
        return Tried(self.instances, cost, x, lowest, solved)


def every_start(solver: LearnedSolver, instances: PyTree[np.ndarray], seed: int, watch: Tick | None = None) -> Ended:
    """Solve instances from all starts that the solver has for each."""
    with ready(solver, instances, seed, watch) as (asked, method):
        flat, some, starts = asked.flat, asked.instances, solver.starting(asked)
        found = from_every_start(method, flat, some, starts, batch=asked.at_once, watch=watch)
    cost, x = (found[name].reshape(asked.rows, -1, *found[name].shape[1:]) for name in ("cost", "x"))
    return Ended(some, np.where(np.isfinite(cost), cost, np.inf), x[..., : flat.size])


def again(solver: LearnedSolver, restart: LearnedRestart, ended: Ended, seed: int, watch: Tick | None = None) -> Ended:
    """Solve instances from where `restart` says, after their first start, instead of from their last one."""
    with ready(solver, ended.instances, seed, watch) as (asked, method):
        begin = restarted(restart, asked.flat, asked.instances, ended.x[:, 0], asked.at_once)
        found = run(method, asked.flat, asked.instances, begin, batch=asked.at_once, watch=watch)
    cost = np.where(np.isfinite(found["cost"]), found["cost"], np.inf)
    return ended._replace(
        cost=np.insert(ended.cost[:, :-1], 1, cost, axis=1), x=np.insert(ended.x[:, :-1], 1, found["x"], axis=1)
    )


def learned_restart(
    whitening: Whitening,
    ended: Ended,
    taught: np.ndarray,
    tol: float,
    nothing: float,
    seconds: float,
    seed: int,
    watch: Tick | None = None,
    steps: int | None = None,
) -> LearnedRestart | None:
    """Return a network that has learned from the rows `taught` where the lowest solution is, seen from the others of an
    instance; None where fewer than `MISTAKES` of these differ from it."""
    cost, x = ended.lowest()
    with np.errstate(over="ignore"):
        real = np.isfinite(ended.x.astype(np.float32)).all(axis=2)
    wrong = real & np.isfinite(ended.cost) & ~is_low(ended.cost, cost[:, None], tol, nothing)
    rows, starts = np.nonzero(wrong & np.isin(np.arange(len(cost)), taught)[:, None])
    if len(rows) < MISTAKES:
        return None
    if len(rows) > (most := examples_at_most(ended.instances)):
        kept = np.sort(np.random.default_rng(seed).choice(len(rows), most, replace=False))
        rows, starts = rows[kept], starts[kept]
    instances = jax.tree.map(lambda leaf: single(leaf[rows]), ended.instances)
    examples = Mistaken(instances, single(ended.x[rows, starts]), single(x[rows]))
    return train_restart(LearnedRestart.untrained(whitening, key_of(seed)), examples, seconds, seed, watch, steps)


def divided(known: Bool[np.ndarray, " rows"], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return which of the known rows to judge by, and which to learn from."""
    rows = np.random.default_rng(seed).permutation(np.flatnonzero(known))
    return rows[: int(JUDGED * len(rows))], rows[int(JUDGED * len(rows)) :]


def examples_at_most(instances: PyTree[np.ndarray]) -> int:
    """Return how many examples with instances of this size are learned from."""
    return max(MISTAKES, NUMBERS // max(1, sum(leaf[:1].size for leaf in jax.tree.leaves(instances))))


def cost_limit(solver: LearnedSolver, tried: Tried, least: float = 1 - LOST) -> LearnedSolver:
    """Return a solver with the cost above which other starts pay, if `least` is the share to solve."""
    asked = np.asarray(single(tried.cost[:, :-1]))
    limit, starts = cheapest_limit(asked, tried.solved, least)
    return dataclasses.replace(solver, starts=starts, doubt=CostLimit(jnp.asarray(limit, jnp.float32)))


def learned_doubt(
    solver: LearnedSolver,
    tried: Tried,
    classical: Bool[np.ndarray, " rows"],
    parts: tuple[np.ndarray, np.ndarray],
    seconds: float,
    seed: int,
    watch: Tick | None = None,
    steps: int | None = None,
) -> LearnedSolver:
    """Return a solver that has learned which solutions are not the lowest.

    **Arguments:** `classical`: whether an instance is solved by all classical starts. Of those that the limit and the
    number of starts are chosen on, at most `LOST` fewer are to be: as a share of all instances, chance would decide
    whether any limit is enough. `parts`: the rows for that, and those to learn from (`divided`).
    """
    judged, taught = parts
    examples = _examples(tried, taught[: max(1, examples_at_most(tried.instances) // tried.cost.shape[1])])
    whitening = Whitening.of(jax.vmap(vector_of)(examples.instances), examples.params)
    doubt = LearnedDoubt.untrained(whitening, examples.cost, key_of(seed))
    doubt = train_doubt(doubt, examples, seconds, seed, watch, steps)
    asked = _examples(tried, judged)
    logits = np.asarray(jax.vmap(doubt)(asked.instances, asked.params, asked.cost)).reshape(len(judged), -1)
    limit, starts = cheapest_limit(logits, tried.solved[judged], float(np.mean(classical[judged])) - LOST)
    doubt = dataclasses.replace(doubt, limit=jnp.asarray(limit, jnp.float32))
    return dataclasses.replace(solver, starts=starts, doubt=doubt)


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
    cost: Float[np.ndarray, "*shape"], best: Float[np.ndarray, "*like"], tol: float, nothing: float
) -> Bool[np.ndarray, "*shape"]:
    """Say which costs are as low as the best, within what counts."""
    return cost <= best + tol * np.abs(best) + nothing


def cheapest_limit(
    doubts: Float[np.ndarray, "rows fewer"], solved: Bool[np.ndarray, "rows starts"], least: float
) -> tuple[float, int]:
    """Return the limit, and the most starts of an instance, at which instances take the fewest, of those at which a
    share of `least` is solved; if there are none, those at which they take all starts. The limit is finite, as all that
    is kept in a file must be.

    **Arguments:** `doubts`: after each start but the last. `solved`: whether an instance is solved after each start.
    """
    rows, starts = solved.shape
    largest = float(np.finfo(np.float32).max)
    cheapest, fewest = (-largest, starts), np.inf
    for limit in np.quantile(doubts, np.linspace(0.0, 1.0, 201), method="lower"):
        believed = np.argmax(np.column_stack([doubts <= limit, np.ones(rows, bool)]), axis=1)
        for most in range(2, starts + 1):
            stop = np.minimum(believed, most - 1)
            if np.mean(stop) < fewest and np.mean(solved[np.arange(rows), stop]) >= least:
                cheapest, fewest = (float(np.clip(limit, -largest, largest)), most), float(np.mean(stop))
    return cheapest


def _examples(tried: Tried, rows: np.ndarray) -> Doubted:
    """Return an example for each of these rows and each of its starts but the last, in float32."""
    asked = tried.cost.shape[1] - 1
    flat = lambda values: values[rows, :asked].reshape(len(rows) * asked, *values.shape[2:])  # noqa: E731
    instances = jax.tree.map(lambda leaf: single(np.repeat(leaf[rows], asked, axis=0)), tried.instances)
    lower = flat(~tried.lowest).astype(float)
    return Doubted(instances, single(np.nan_to_num(flat(tried.x))), single(flat(tried.cost)), single(lower))
