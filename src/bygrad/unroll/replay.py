r"""Replay: the gradient of a run's loss with respect to the optimizer, without a graph through the problem.

If the optimizer is fed constants, params are a sum of updates, $p_s = p_0 + \sum_{t<s} u_t$, and

$$\frac{d}{d\theta} \sum_{s=1}^K f_s(p_s)
= \sum_{t=0}^{K-1} \Big\langle \frac{du_t}{d\theta}, \sum_{s=t+1}^{K} \nabla f_s(p_s) \Big\rangle .$$

The gradients on the right are known once the run is over: what is left is to run the optimizer again on what it saw,
and to pull fixed cotangents back through it alone.
"""

from collections.abc import Callable
from typing import Any, Literal, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from .._core import trees
from .._core.types import State
from ..optimizers import Coordinatewise, Optimizer, Partition
from .lift import lift
from .rollout import Trajectory

AnyOptimizer = TypeVar("AnyOptimizer", bound=Optimizer)


def cotangents(trajectory: Trajectory, last: int = 0) -> PyTree:
    r"""Return $G_t = \sum_{s=t+1}^K \nabla f_s$, $t = 0..K-1$, for the sum of the losses after each update; or, where
    `last` is given, after each of the last so many. In float32 at least, as a sum over a long run leaves the range of
    float16, and in bfloat16 stops growing."""

    def later(grads: Array, end: Array) -> Array:
        after = jnp.concatenate([grads[1:], end[None]])
        if last:
            after = after.at[: after.shape[0] - last].set(0)
        return jnp.flip(jnp.cumsum(jnp.flip(after, 0), 0), 0)

    return jax.tree.map(later, *trees.widened((trajectory.grads, trajectory.end_grads)))


def replay(optimizer: AnyOptimizer, trajectory: Trajectory, weights: PyTree) -> AnyOptimizer:
    r"""Return $\sum_t \langle du_t/d\theta, \text{weights}_t \rangle$ over all instances of a trajectory.

    **Arguments:** `weights`: cotangents of the updates, arranged like `trajectory.grads`. The result has the structure
    of the optimizer, with `None` for what is not a floating-point array.
    """
    if isinstance(optimizer, Partition):
        return replay_parts(optimizer, trajectory, weights, replay)
    if isinstance(optimizer, Coordinatewise):
        grads, cots = (array.reshape(array.shape[0], -1) for array in (trajectory.grads, weights))
        state = jax.tree.map(lambda leaf: leaf.reshape(*leaf.shape[:-2], -1), trajectory.start)
        return replay_coordinates(optimizer, grads, state, cots)
    step, seen = watch(trajectory)
    return _pull(optimizer, step, trajectory.start, seen, weights)


def without_lost(
    optimizer: Optimizer, trajectory: Trajectory, weights: PyTree, live: Bool[Array, " instances"]
) -> tuple[Trajectory, PyTree]:
    """Let instances that are not live count for nothing in a replay: with cotangents of zero, of what the first live
    instance saw, as zero times what is not finite is no zero. Where none is live, nothing comes of it that is finite.
    """
    seen = (trajectory.start, trajectory.grads, trajectory.params, trajectory.value)
    steps = jax.tree.map(lambda leaf: 1, seen[1:])
    axes = (lift(optimizer).axes(trajectory.start), *steps)

    def of_live(leaf: Array, axis: int) -> Array:
        first = jax.lax.dynamic_index_in_dim(leaf, jnp.argmax(live), axis)
        return jnp.where(jnp.expand_dims(live, [i for i in range(leaf.ndim) if i != axis]), leaf, first)

    weights = jax.vmap(lambda weights: trees.select_rows(live, weights, jax.tree.map(jnp.zeros_like, weights)))(weights)
    # Before, and not while, it is replayed: what is put in the place of something else is kept for the way back.
    seen = trees.seldom(~jnp.all(live), lambda seen: jax.tree.map(of_live, seen, axes), seen)
    start, grads, params, value = seen
    return trees.replaced(trajectory, start=start, grads=grads, params=params, value=value), weights


def watch(trajectory: Trajectory) -> tuple[Callable[[Any, State, PyTree], tuple[PyTree, State]], PyTree]:
    """Return how to take a step of a batch as it was recorded, for somebody who pulls cotangents back through it, and
    what was recorded, step by step.

    In float32 at least: in half precision the updates would be, and so their cotangents, which vanish or overflow.
    """

    def step(optimizer: Optimizer, state: State, seen: tuple) -> tuple[PyTree, State]:
        *observed, key = seen
        grads, params, value = trees.widened(observed)
        updates, after = lift(optimizer, in_blocks=False).update(grads, state, params, value, key)
        return updates, jax.tree.map(lambda new, old: new.astype(old.dtype), after, state)

    return step, (trajectory.grads, trajectory.params, trajectory.value, trajectory.key)


def _pull(
    optimizer: AnyOptimizer,
    step: Callable[[AnyOptimizer, State, PyTree], tuple[PyTree, State]],
    start: State,
    seen: PyTree,
    weights: PyTree,
) -> AnyOptimizer:
    """Run an optimizer alone on what it saw, and pull cotangents of its updates back."""

    def surrogate(optimizer: AnyOptimizer) -> Float[Array, ""]:
        def body(state: State, inputs: tuple[PyTree, PyTree]) -> tuple[State, Array]:
            seen, weight = inputs
            updates, state = step(optimizer, state, seen)
            products = jax.tree.map(lambda u, c: jnp.sum(u * c), updates, weight)
            return state, sum(jax.tree.leaves(products), start=jnp.zeros(()))

        return jnp.sum(jax.lax.scan(body, start, (seen, weights))[1])

    return eqx.filter_grad(surrogate)(optimizer)


def replay_parts(
    optimizer: Partition,
    trajectory: Trajectory,
    weights: PyTree,
    replay_one: Callable[[Optimizer, Trajectory, PyTree], Optimizer],
) -> Partition:
    """Replay every part of a partition with `replay_one` on what that part saw, and put the results together."""
    seen = seen_by_parts(optimizer, trajectory)
    replayed = {name: replay_one(optimizer.parts[name], seen[name], weights[name]) for name in seen}
    return join_parts(optimizer, replayed)


def seen_by_parts(optimizer: Partition, trajectory: Trajectory) -> dict[str, Trajectory]:
    """Return what every part of a partition saw, of the parts that own any params."""
    keys = jax.vmap(jax.vmap(optimizer.part_keys))(trajectory.key)
    arranged = (trajectory.start, trajectory.grads, trajectory.params, trajectory.end_grads)
    seen = {}
    for name in trajectory.grads:
        start, grads, params, end_grads = (tree[name] for tree in arranged)
        ends = end_grads, trajectory.end_value
        seen[name] = Trajectory(start, grads, params, trajectory.value, keys[name], *ends)
    return seen


def join_parts(optimizer: Partition, gradients: dict[str, PyTree]) -> Partition:
    """Put gradients with respect to parts together; those with respect to parts that saw nothing are zero."""
    nothing = jax.tree.map(jnp.zeros_like, eqx.filter(optimizer, eqx.is_inexact_array))
    return eqx.tree_at(lambda it: it.parts, nothing, nothing.parts | gradients)


def replay_coordinates(
    optimizer: Coordinatewise, grads: Float[Array, "k c"], state: State, cots: Float[Array, "k c"]
) -> Coordinatewise:
    """Replay a coordinatewise optimizer block by block, so that the working set of a block stays in cache.

    `state` has leaves `[..., c]`. The last block is filled up with the last coordinate, again and again, with
    cotangents of zero: what no rule has ever seen, such as a state of zeros, might have no derivative, and zero times
    that is NaN.
    """

    def step(optimizer: Coordinatewise, state: State, grads: Array) -> tuple[Array, State]:
        return optimizer.step(grads, state)

    def body(total: PyTree, inputs: tuple) -> tuple[PyTree, None]:
        grads, state, cots = inputs
        return jax.tree.map(jnp.add, total, _pull(optimizer, step, state, grads, cots)), None

    dtype = optimizer.dtype
    seen = in_blocks((grads.astype(dtype), state), optimizer.block, "edge")
    pieces = (*seen, in_blocks(cots.astype(dtype), optimizer.block, "constant"))
    zero = jax.tree.map(jnp.zeros_like, eqx.filter(optimizer, eqx.is_inexact_array))
    total, _ = jax.lax.scan(body, zero, pieces)
    return total


def in_blocks(arrays: PyTree, block: int, fill: Literal["constant", "edge"]) -> PyTree:
    """Cut arrays `[..., c]` into `[blocks, ..., block]`; the last block is filled up with zeros or the last entry."""

    def split(array: Array) -> Array:
        count = array.shape[-1]
        width = max(1, min(block, count))
        blocks = -(-count // width)
        padding = [(0, 0)] * (array.ndim - 1) + [(0, blocks * width - count)]
        array = jnp.pad(array, padding, fill).reshape(*array.shape[:-1], blocks, width)
        return jnp.moveaxis(array, -2, 0)

    return jax.tree.map(split, arrays)
