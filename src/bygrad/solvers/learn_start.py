"""How many proposals a learned start keeps: each costs an evaluation of every instance."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from .._core.programs import Program
from .base import Flat
from .engine import run
from .fit import LearnedSolver, ready
from .learn_doubt import LOST, is_low
from .learned import LearnedStart
from .starts import in_blocks


def with_enough_proposals(
    solver: LearnedSolver, start: LearnedStart, instances: PyTree[np.ndarray], tol: float, nothing: float, seed: int
) -> LearnedStart:
    """Return the start with all of its proposals, a half, a quarter and so on, whichever takes the fewest evaluations
    of those from which no more than a share of `LOST` fewer instances are solved.

    Where minima are few, proposals are much alike in the end, and one is enough; where they are many, all are needed.

    **Arguments:** `solver`: classical. `instances`: to compare on. `tol`, `nothing`: a cost is lower if it is by more
    than that, relative and absolute.
    """
    one = dataclasses.replace(solver, starts=1)
    with ready(one, instances, seed) as (asked, method):
        flat, some, rows, batch = asked.flat, asked.instances, asked.rows, asked.at_once
        own = one.starting(asked)[:, 0]
        proposed = in_blocks(_proposed, flat, (some, own), rows, batch, asked.dtype, start)
        x, costs = proposed[..., :-1], proposed[..., -1]

        def solved_from(which: list[int]) -> tuple[np.ndarray, np.ndarray]:
            candidates = np.array([*which, start.proposals])  # the family's own start is the last
            best = candidates[np.argmin(costs[:, candidates], axis=1)]
            found = run(method, flat, some, x[np.arange(rows), best], batch=batch)
            return np.where(np.isfinite(found["cost"]), found["cost"], np.inf), found["nfev"]

        every = list(range(start.proposals))
        kept = {len(every): (every, *solved_from(every))}
        order = dropped(costs, kept[len(every)][1])
        size = start.proposals
        while (size := size // 2) > 0:
            which = sorted(order[-size:])
            kept[size] = which, *solved_from(which)
    best = np.min([cost for _, cost, _ in kept.values()], axis=0)[:, None]
    solved = {size: np.mean(is_low(cost[:, None], best, tol, nothing)) for size, (_, cost, _) in kept.items()}
    enough = [size for size, share in solved.items() if share >= max(solved.values()) - LOST]
    return start.only(kept[min(enough, key=lambda size: size + np.mean(kept[size][2]))][0])


def dropped(costs: Float[np.ndarray, "rows more"], lowest: Float[np.ndarray, " rows"]) -> list[int]:
    """Return proposals in the order in which they are missed least, each time by those that are left.

    **Arguments:** `costs`: of the proposals and, last, of the classical start. `lowest`: costs after solving.
    """
    with np.errstate(invalid="ignore"):  # no proposal of an instance may have a finite cost, nor what is solved
        excess = np.maximum(np.nan_to_num(costs - lowest[:, None], nan=np.inf), 0.0)
    middle = float(np.nan_to_num(np.median(excess.min(axis=1)), posinf=0.0))
    logs = np.log1p(np.minimum(excess / (middle if middle > 0 else 1.0), 1e6))
    left, order = list(range(logs.shape[1] - 1)), []
    while left:
        without = [np.mean(logs[:, [it for it in (*left, -1) if it != gone]].min(axis=1)) for gone in left]
        order.append(left.pop(int(np.argmin(without))))
    return order


@Program
def _proposed(
    flat: Flat, instances: PyTree, own: Float[Array, "rows p"], start: LearnedStart
) -> Float[Array, "rows candidates numbers"]:
    """Return the proposals of each instance and its own start, with the cost of each after its params."""

    def one(instance: Any, own: Array) -> Array:
        candidates = jnp.concatenate([start.propose(instance).astype(own.dtype), own[None]])
        candidates = jax.vmap(lambda x: flat.allowed(x, instance))(candidates)
        costs = jax.vmap(lambda x: flat.loss(x, instance))(candidates)
        sound = jnp.isfinite(costs) & jnp.all(jnp.isfinite(candidates), axis=1)
        return jnp.concatenate([candidates, jnp.where(sound, costs, jnp.inf)[:, None]], axis=1)

    return jax.vmap(one)(instances, own)
