"""A baseline at every learning rate of a grid, run once: tuned on one part of its instances, reported on the other."""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, Shaped

from .._core import trees
from .._core.draws import key_of
from .._core.programs import Program
from .._core.threads import in_thread
from .._core.types import Instance, Params, Scalar
from ..optimizers import FromOptax, Optimizer, declare, judged_elsewhere
from ..problems import ProblemFamily
from ..unroll import apart, draw, judged_run
from .second_order import LBFGS, GaussNewton, SecondOrder, no_objective, second_order_curve
from .tuning import with_learning_rate

TRIED = 3
"""Steps of a second-order method that tell how long one takes."""

JUDGED_ON = 16
"""Minibatches that stand for a family's objective where it gives none."""


@dataclasses.dataclass(frozen=True)
class GridRuns:
    """Runs of an optimizer at several learning rates, or of a second-order method at several dampings.

    `curves` `[rates, runs, steps + 1]`: the loss of the minibatch after each number of updates. `test` `[rates,
    runs]`: the loss on held-out data at the end, NaN where there are none. `seconds`: of a step of a run, when all run
    side by side, without compilation. From `run_grid`, it has its part of the start of a run and of the held-out loss
    at its end, but of an optimizer that is judged elsewhere not the losses there; from `run_in_time` neither start nor
    end, nor the losses that are recorded.
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
    many = jnp.broadcast_to(keys, (len(rates), *keys.shape))
    arguments = (one_by_one, optimizer, jnp.asarray(rates, jnp.float32), family, held_out, many, horizon)
    ran = _timed(_grid, (*arguments, True), horizon)
    if not judged_elsewhere(optimizer):
        return ran
    return dataclasses.replace(_timed(_grid, (*arguments, False), horizon), seconds=ran.seconds)


def run_in_time(
    method: SecondOrder,
    dampings: np.ndarray,
    family: ProblemFamily,
    held_out: ProblemFamily | None,
    keys: Shaped[PRNGKeyArray, " runs"],
    seconds: float,
    most: int,
    *,
    one_by_one: bool = False,
) -> GridRuns:
    """Run a second-order method as `run_grid` runs a baseline, but for as many steps as take `seconds` for a run.

    How many these are is measured; one is taken in any case. L-BFGS has no damping, and runs one by one: side by side,
    all would wait for the longest line search, and pay for what theirs does not ask for.

    **Arguments:** `seconds`: compilation left out. `most`: steps that are taken at most.
    """
    one_by_one = one_by_one or isinstance(method, LBFGS)
    many = jnp.broadcast_to(keys, (len(dampings), *keys.shape))

    def run(steps: int, aside: float, recorded: bool = False) -> GridRuns:
        grid = jnp.asarray(dampings, jnp.float32)
        arguments = (one_by_one, method, grid, family, held_out, many, jnp.asarray(steps), most, recorded)
        return _timed(_in_time, arguments, steps, aside)

    aside = run(0, 0.0).seconds  # starts and held-out losses, which would be most of the time of a few steps
    steps = min(TRIED, most)
    while True:
        ran = run(steps, aside)
        left = seconds / (steps * ran.seconds)
        if steps == most or left < 1.25:
            break
        steps = min(most, max(steps + 1, int(min(left, 4.0) * steps)))  # later steps may take longer than the first
    if left <= 0.8 and steps > 1:
        steps = max(1, int(left * steps))
        ran = run(steps, aside)
    return dataclasses.replace(run(steps, aside, recorded=True), seconds=ran.seconds)


def _timed(program: Program[Any], arguments: tuple[Any, ...], steps: int, aside: float = 0.0) -> GridRuns:
    """Run and take the time, `aside` of which, for every run, is none of the steps'; that of a run for no steps."""
    in_thread(program.bytes_needed, *arguments)  # compiles, so that it is not timed
    started = time.perf_counter()
    curves, test = in_thread(lambda: [np.asarray(part, np.float64) for part in program(*arguments)])
    each = (time.perf_counter() - started) / (curves.shape[0] * curves.shape[1])
    return GridRuns(curves[..., : steps + 1], test, max(each - aside, 0.1 * each) / max(1, steps))


@functools.partial(Program, runs="seldom")
def _grid(
    one_by_one: bool,
    optimizer: Optimizer,
    rates: Float[Array, " rates"],
    family: ProblemFamily,
    held_out: ProblemFamily | None,
    keys: Shaped[PRNGKeyArray, "rates runs"],
    horizon: int,
    in_passing: bool,
) -> tuple[Float[Array, "rates runs steps"], Float[Array, "rates runs"]]:
    def run(rate: Float[Array, ""], keys: Shaped[PRNGKeyArray, " runs"]) -> tuple[Array, Array]:
        tuned = with_learning_rate(optimizer, rate) if isinstance(optimizer, FromOptax) else optimizer
        tuned = declare(tuned, horizon)
        end, instances, curves = judged_run(tuned, family, keys, horizon, in_passing=in_passing)
        return curves, _judged(held_out, end, instances)

    return _all(one_by_one, run, rates, keys)


@functools.partial(Program, runs="seldom")
def _in_time(
    one_by_one: bool,
    method: SecondOrder,
    rates: Float[Array, " rates"],
    family: ProblemFamily,
    held_out: ProblemFamily | None,
    keys: Shaped[PRNGKeyArray, "rates runs"],
    steps: Int[Array, ""],
    most: int,
    recorded: bool,
) -> tuple[Float[Array, "rates runs steps"], Float[Array, "rates runs"]]:
    def run(rate: Float[Array, ""], keys: Shaped[PRNGKeyArray, " runs"]) -> tuple[Array, Array]:
        tuned = eqx.tree_at(lambda it: it.damping, method, rate) if isinstance(method, GaussNewton) else method
        parts, found = apart(family, keys), []
        judges = [None] * len(parts) if held_out is None else [judge for judge, _, _ in apart(held_out, keys)]
        for (part, weight, its), judge in zip(parts, judges, strict=True):
            instances, params, run_keys = draw(part, its)

            def solve(drawn: tuple[Any, ...], part: ProblemFamily = part) -> tuple[Params, Array]:
                instance, start, key = drawn
                return second_order_curve(tuned, part, instance, start, key, steps, most, recorded=recorded)

            drawn = (instances, params, run_keys)
            params, curves = jax.lax.map(solve, drawn) if one_by_one else jax.vmap(solve)(drawn)
            found.append((weight * curves, weight * _judged(judge, params, instances)))
        return jax.tree.map(lambda *each: sum(each[1:], start=each[0]), *found)

    return _all(one_by_one, run, rates, keys)


def _judged(held_out: ProblemFamily | None, params: Params, instances: Instance) -> Float[Array, " runs"]:
    """Return the loss on held-out data for every run, NaN where there are none."""
    if held_out is None:
        return jnp.full(trees.length(params), jnp.nan)
    return jax.vmap(functools.partial(objective, held_out))(params, instances)


def _all(
    one_by_one: bool,
    run: Callable[[Float[Array, ""], Shaped[PRNGKeyArray, " runs"]], tuple[Array, Array]],
    rates: Float[Array, " rates"],
    keys: Shaped[PRNGKeyArray, "rates runs"],
) -> tuple[Float[Array, "rates runs steps"], Float[Array, "rates runs"]]:
    """Run `run` at every rate, all runs side by side, or in turn."""
    if not one_by_one:
        return jax.vmap(run)(rates, keys)

    def in_turn(lane: tuple[Array, Shaped[PRNGKeyArray, " runs"]]) -> tuple[Array, Array]:
        rate, keys = lane
        return jax.lax.map(lambda key: trees.rows(run(rate, key[None]), 0), keys)

    return jax.lax.map(in_turn, (rates, keys))


def objective(family: ProblemFamily, params: Params, instance: Instance) -> Scalar:
    """Return a family's objective without noise, or, where it gives none, the mean over a few minibatches."""
    if no_objective(family) is None:
        return family.loss(params, instance, None)
    keys = jax.random.split(key_of(0), JUDGED_ON)
    return jnp.mean(jax.lax.map(lambda key: family.loss(params, instance, key), keys))
