"""Closed-loop runs of an optimizer on a batch of instances."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree, Shaped

from .._core import trees
from .._core.draws import own_keys
from .._core.programs import Program
from .._core.types import Instance, Params, State
from ..optimizers import Optimizer, declare, evaluation_point, judged_elsewhere
from ..problems import ProblemFamily
from ..problems.base import differentiable_value_and_grad
from .lift import Lifted, lift


class Inner(eqx.Module):
    """Inner problems under way, one or a batch; then every leaf but the optimizer's state starts with their axis."""

    params: Params
    optimizer_state: State
    instance: Instance
    key: Shaped[PRNGKeyArray, "*instances"]
    step: Int[Array, "*instances"]


class Trajectory(eqx.Module):
    r"""What the optimizer saw in a window of $K$ steps, and what it needs for a replay.

    `grads`, `params`: arranged as by `Lifted.see`, leaves `[K, instances, ...]`. `value`: `[K, instances]`. `key`:
    `[K, instances]`. `start`: the optimizer's state before the window. `end_grads` and `end_value`: gradient and loss
    after the last update, which the optimizer has not seen yet.
    """

    start: State
    grads: PyTree
    params: PyTree
    value: Float[Array, "k instances"]
    key: Shaped[PRNGKeyArray, "k instances"]
    end_grads: PyTree
    end_value: Float[Array, " instances"]


def draw(
    family: ProblemFamily, keys: Shaped[PRNGKeyArray, " instances"]
) -> tuple[Instance, Params, Shaped[PRNGKeyArray, " instances"]]:
    """Draw an instance, its initial params and the key of its run for every key.

    A run depends on its own key alone, whatever kind of keys is given (`own_keys`).
    """

    def one(key: PRNGKeyArray) -> tuple[Instance, Params, PRNGKeyArray]:
        sample_key, init_key, run_key = jax.random.split(key, 3)
        instance = family.sample(sample_key)
        return instance, family.init(instance, init_key), run_key

    return jax.vmap(one)(own_keys(keys))


def step_keys(run_key: PRNGKeyArray, step: Int[Array, ""]) -> tuple[PRNGKeyArray, PRNGKeyArray]:
    """Return the keys of the loss and of the optimizer at a step of a run.

    They depend on the run and the step alone: every optimizer that runs from one key meets the same minibatches.
    """
    loss_key, optimizer_key = jax.random.split(jax.random.fold_in(run_key, step))
    return loss_key, optimizer_key


def instance_axes(optimizer: Optimizer, inner: Inner) -> Inner:
    """Return which axis of every leaf of `inner` is that of the instances: a tree of numbers, as for `vmap`."""
    first = jax.tree.map(lambda leaf: 0, inner)
    return trees.replaced(first, optimizer_state=lift(optimizer).axes(inner.optimizer_state))


def begin(optimizer: Optimizer, family: ProblemFamily, keys: Shaped[PRNGKeyArray, " instances"]) -> Inner:
    """Draw an instance and its initial params for every key."""
    instance, params, run_keys = draw(family, keys)
    return Inner(params, lift(optimizer).init(params), instance, run_keys, jnp.zeros(keys.shape[0], jnp.int32))


def observe(
    lifted: Lifted, family: ProblemFamily, inner: Inner
) -> tuple[Float[Array, " instances"], PyTree, Shaped[PRNGKeyArray, " instances"]]:
    """Return loss, gradient (arranged for the optimizer) and the optimizer's key of every instance where it stands."""
    loss_keys, optimizer_keys = jax.vmap(step_keys)(inner.key, inner.step)
    value, grads = jax.vmap(differentiable_value_and_grad(family))(inner.params, inner.instance, loss_keys)
    # A sum over a run in half precision stops growing: bfloat16 has nothing between 256 and 258.
    return trees.widened(value), lifted.see(grads), optimizer_keys


def _stepped(lifted: Lifted, family: ProblemFamily, inner: Inner, *, cut: bool = False) -> tuple[Inner, tuple]:
    """Take a step of every instance; return also what the optimizer saw: gradients, params, values and keys.

    `cut`: give it these as constants.
    """
    value, grads, key = observe(lifted, family, inner)
    seen = grads, lifted.see(inner.params), value
    fed = jax.lax.stop_gradient(seen) if cut else seen
    updates, state = lifted.update(fed[0], inner.optimizer_state, fed[1], fed[2], key)
    moved = Inner(lifted.apply(inner.params, updates), state, inner.instance, inner.key, inner.step + 1)
    return moved, (grads, fed[1], value, key)


def rollout(
    optimizer: Optimizer,
    family: ProblemFamily,
    inner: Inner,
    steps: int,
    *,
    second_derivatives: bool = True,
    in_blocks: bool = True,
) -> tuple[Inner, Trajectory]:
    """Run `steps` steps from `inner`, recording what the optimizer saw.

    With `second_derivatives=False` the optimizer is fed constants (gradients, params and values cut from the graph), as
    in the paper; that makes a difference only to somebody who differentiates the result. Somebody who does says
    `in_blocks=False` (see `lift`).
    """
    lifted = lift(optimizer, in_blocks=in_blocks)

    def body(inner: Inner, _: None) -> tuple[Inner, tuple]:
        return _stepped(lifted, family, inner, cut=not second_derivatives)

    end, (grads, params, value, key) = jax.lax.scan(body, inner, None, length=steps)
    end_value, end_grads, _ = observe(lifted, family, end)
    return end, Trajectory(inner.optimizer_state, grads, params, value, key, end_grads, end_value)


def run(
    optimizer: Optimizer, family: ProblemFamily, inner: Inner, steps: int
) -> tuple[Inner, Float[Array, " steps_plus_1"]]:
    """Run a single instance, leaves without an axis of instances; return where it ends and the loss after 0..`steps`.

    Under `vmap`, every instance can have an optimizer of its own, which a `rollout` cannot.
    """

    value_and_grad = differentiable_value_and_grad(family)

    def body(inner: Inner, _: None) -> tuple[Inner, Array]:
        loss_key, optimizer_key = step_keys(inner.key, inner.step)
        value, grads = value_and_grad(inner.params, inner.instance, loss_key)
        value = trees.widened(value)
        updates, state = optimizer.update(grads, inner.optimizer_state, inner.params, value=value, key=optimizer_key)
        return Inner(trees.add(inner.params, updates), state, inner.instance, inner.key, inner.step + 1), value

    end, values = jax.lax.scan(body, inner, None, length=steps)
    # Not `family.loss`: of what has a gradient by hand, forward mode knows that alone. XLA drops it where nobody asks.
    last, _ = value_and_grad(end.params, end.instance, step_keys(end.key, end.step)[0])
    return end, jnp.append(values, trees.widened(last))


def apart(
    family: ProblemFamily, keys: Shaped[PRNGKeyArray, " runs"]
) -> list[tuple[ProblemFamily, float, Shaped[PRNGKeyArray, " runs"]]]:
    """Return what runs by itself: each member of a mixture, with its weight and the keys of its runs; any other family
    as it is."""
    parts = family.parts()
    if len(parts) == 1:
        return [(family, 1.0, keys)]
    each = [jax.vmap(jax.random.fold_in, in_axes=(0, None))(own_keys(keys), i) for i in range(len(parts))]
    return [(part, weight, its) for (part, weight), its in zip(parts, each, strict=True)]


def loss_curves(
    optimizer: Optimizer,
    family: ProblemFamily,
    keys: Shaped[PRNGKeyArray, " runs"],
    horizon: int,
    *,
    in_passing: bool = False,
) -> Float[Array, "runs horizon_plus_1"]:
    """Run the optimizer on fresh instances: column `t` is the loss after `t` updates, `t = 0..horizon`, where the
    optimizer is judged (`evaluation_point`). Of a mixture, the mean of runs on each of its members.

    **Arguments:** `in_passing`: as for `judged_run`.
    """
    optimizer = declare(optimizer, horizon)
    curves = [
        weight * judged_run(optimizer, part, its, horizon, in_passing=in_passing)[2]
        for part, weight, its in apart(family, keys)
    ]
    return sum(curves[1:], start=curves[0])


def judged_run(
    optimizer: Optimizer,
    family: ProblemFamily,
    keys: Shaped[PRNGKeyArray, " runs"],
    horizon: int,
    *,
    in_passing: bool = False,
) -> tuple[Params, Instance, Float[Array, "runs horizon_plus_1"]]:
    """Run on fresh instances of a family that is no mixture; return the params that are judged at the end, leaves
    `[runs, ...]`, the instances, and the losses after 0..`horizon` updates at such params.

    **Arguments:** `in_passing`: take losses where gradients are taken. For an optimizer that is judged elsewhere, that
    saves an evaluation of the loss in every step, which is none of its work.
    """
    lifted = lift(optimizer)

    def judged(inner: Inner) -> Params:
        at = jax.vmap(
            lambda state, params: evaluation_point(optimizer, state, params), (lifted.axes(inner.optimizer_state), 0)
        )
        return at(inner.optimizer_state, inner.params)

    def value(inner: Inner, passing: Array) -> Array:
        if in_passing or not judged_elsewhere(optimizer):
            return passing
        return observe(lifted, family, trees.replaced(inner, params=judged(inner)))[0]

    # Not by `rollout`: of a long run nothing is kept but its losses.
    def body(inner: Inner, _: None) -> tuple[Inner, Array]:
        moved, (_, _, passing, _) = _stepped(lifted, family, inner)
        return moved, value(inner, passing)

    end, values = jax.lax.scan(body, begin(optimizer, family, keys), None, length=horizon)
    last = value(end, observe(lifted, family, end)[0])
    return judged(end), end.instance, jnp.concatenate([values, last[None]]).T


compiled_loss_curves = Program(loss_curves, runs="seldom")
"""`loss_curves`, compiled once for every structure, whoever runs it."""
