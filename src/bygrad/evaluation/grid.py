"""A baseline at every learning rate of a grid, run once: tuned on one part of its instances, reported on the other."""

import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from .._core.programs import Program
from .._core.threads import in_thread
from .._core.types import Instance, Params, Scalar
from ..optimizers import FromOptax, Optimizer, declare, evaluation_point
from ..problems import ProblemFamily
from ..unroll import begin, lift, rollout
from .second_order import has_objective
from .tuning import with_learning_rate

JUDGED_ON = 16
"""Minibatches that stand for a family's objective where it gives none."""


@dataclasses.dataclass(frozen=True)
class GridRuns:
    """Runs of an optimizer at several learning rates.

    `curves` `[rates, runs, horizon + 1]`: the loss of the minibatch after each number of updates. `test` `[rates,
    runs]`: the loss on held-out data at the end, NaN where there are none. `seconds`: of a step of a run, when all run
    side by side, compilation left out.
    """

    curves: np.ndarray
    test: np.ndarray
    seconds: float


def run_grid(
    optimizer: Optimizer,
    rates: np.ndarray,
    family: ProblemFamily,
    held_out: ProblemFamily | None,
    keys: Shaped[PRNGKeyArray, " runs"],
    horizon: int,
    *,
    one_by_one: bool = False,
) -> GridRuns:
    """Run a baseline at every one of `rates`, all on the same instances.

    Anything else than a baseline is run as often, so that its time is comparable, and each time alike.

    **Arguments:** `held_out`: the same problem over data that is not trained on. `one_by_one`: not side by side but in
    turn, for convolutions, which have no fast form with other weights for every run.
    """
    program = _IN_TURN if one_by_one else _SIDE_BY_SIDE
    many = jnp.broadcast_to(keys, (len(rates), *keys.shape))
    arguments = (optimizer, jnp.asarray(rates, jnp.float32), family, held_out, many, horizon)
    in_thread(program.bytes_needed, *arguments)  # compiles, so that it is not timed
    started = time.perf_counter()
    curves, test = in_thread(lambda: [np.asarray(part, np.float64) for part in program(*arguments)])
    lanes = curves.shape[0] * curves.shape[1]
    return GridRuns(curves, test, (time.perf_counter() - started) / (lanes * horizon))


def _grid(
    one_by_one: bool,
    optimizer: Optimizer,
    rates: Float[Array, " rates"],
    family: ProblemFamily,
    held_out: ProblemFamily | None,
    keys: Shaped[PRNGKeyArray, "rates runs"],
    horizon: int,
) -> tuple[Float[Array, "rates runs steps"], Float[Array, "rates runs"]]:
    def run(rate: Float[Array, ""], keys: Shaped[PRNGKeyArray, " runs"]) -> tuple[Array, Array]:
        tuned = with_learning_rate(optimizer, rate) if isinstance(optimizer, FromOptax) else optimizer
        tuned = declare(tuned, horizon)
        end, trajectory = rollout(tuned, family, begin(tuned, family, keys), horizon)
        curves = jnp.concatenate([trajectory.value, trajectory.end_value[None]]).T
        judged = held_out
        if judged is None:
            return curves, jnp.full(keys.shape[0], jnp.nan)

        def judge(params: Params, state: Any, instance: Instance) -> Scalar:
            return objective(judged, evaluation_point(tuned, state, params), instance)

        axes = (0, lift(tuned).axes(end.optimizer_state), 0)
        return curves, jax.vmap(judge, in_axes=axes)(end.params, end.optimizer_state, end.instance)

    if not one_by_one:
        return jax.vmap(run)(rates, keys)

    def in_turn(lane: tuple[Array, Shaped[PRNGKeyArray, " runs"]]) -> tuple[Array, Array]:
        rate, keys = lane
        return jax.lax.map(lambda key: jax.tree.map(lambda it: it[0], run(rate, key[None])), keys)

    return jax.lax.map(in_turn, (rates, keys))


def objective(family: ProblemFamily, params: Params, instance: Instance) -> Scalar:
    """Return a family's objective without noise, or, where it gives none, the mean over a few minibatches."""
    if has_objective(family):
        return family.loss(params, instance, None)
    keys = jax.random.split(jax.random.key(0), JUDGED_ON)
    return jnp.mean(jax.lax.map(lambda key: family.loss(params, instance, key), keys))


_SIDE_BY_SIDE = Program(functools.partial(_grid, False))
_IN_TURN = Program(functools.partial(_grid, True))
