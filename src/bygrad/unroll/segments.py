r"""Replay of windows whose gradients do not fit in memory: only the state at the start of each segment is kept.

Rolling out twice costs one more gradient a step, and in exchange the memory for a window of $K$ steps in segments of
$S$ changes from what $K$ steps record to what $S$ steps record and $K / S$ states (Chen et al., 2016, "Training deep
nets with sublinear memory cost", there for backpropagation). That is less for long windows only: an LSTM's state takes
as much as twenty recorded steps (`best_segment`). A run depends on its keys alone, so the second rollout meets the same
gradients as the first, bit for bit.
"""

import dataclasses
from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .._core import trees
from .._core.types import State
from ..optimizers import Coordinatewise, Optimizer, Partition
from ..problems import ProblemFamily
from .lift import lift
from .replay import cotangents, join_parts, seen_by_parts, watch, without_lost
from .rollout import Inner, Trajectory, observe, rollout

AnyOptimizer = TypeVar("AnyOptimizer", bound=Optimizer)
AnyCoordinatewise = TypeVar("AnyCoordinatewise", bound=Coordinatewise)


def replay_in_segments(
    optimizer: AnyOptimizer, family: ProblemFamily, inner: Inner, steps: int, segment: int
) -> tuple[Inner, Float[Array, " instances"], AnyOptimizer]:
    r"""Roll out and replay `steps` steps, `segment` of them in memory at a time.

    **Arguments:** `segment`: a divisor of `steps`; `best_segment` says which takes the least memory.

    **Returns:** where the instances stand after the window; the mean of the losses after each update, for each
    instance; and the gradient of the sum over instances and steps of those losses, with respect to the optimizer:
    what `rollout`, `cotangents` and `replay` give together. Instances whose losses or gradients are not finite are
    left out of the gradient, and their losses are NaN.
    """

    def forward(inner: Inner, _: None) -> tuple[Inner, tuple[Inner, Array, Array, Array]]:
        end, trajectory = rollout(optimizer, family, inner, segment)
        values = trajectory.value
        # The sum of all of an instance's gradients is finite only if each of them is.
        finite = trees.finite_rows(jax.tree.map(lambda grads: jnp.sum(grads, axis=0), trajectory.grads))
        return end, (_without_problems(inner), values[0], jnp.sum(values[1:], axis=0), finite)

    end, (starts, firsts, rest, finite) = jax.lax.scan(forward, inner, None, length=steps // segment)
    end_value, end_grads, _ = observe(lift(optimizer), family, end)
    # The window's first loss is no loss after an update, and never in the sum: it may be larger than all others.
    losses = (jnp.sum(rest, axis=0) + jnp.sum(firsts[1:], axis=0) + end_value) / steps
    live = jnp.isfinite(losses) & jnp.all(finite, axis=0) & trees.finite_rows(end_grads)

    def backward(carry: tuple[PyTree, PyTree, PyTree], start: Inner) -> tuple[tuple[PyTree, PyTree, PyTree], None]:
        theta, later, state_cotangent = carry
        start = dataclasses.replace(start, instance=inner.instance)
        # `later` sums the gradients from the segment's end on: it stands where the end's own gradient would.
        trajectory = rollout(optimizer, family, start, segment)[1]
        trajectory = eqx.tree_at(lambda it: it.end_grads, trajectory, later)
        trajectory, weights = without_lost(optimizer, trajectory, cotangents(trajectory), live)
        part, before = _pull_back(optimizer, trajectory, weights, state_cotangent)
        later = jax.tree.map(lambda grads, weight: grads[0] + weight[0], trajectory.grads, weights)
        return (jax.tree.map(jnp.add, theta, part), later, before), None

    nothing = jax.tree.map(jnp.zeros_like, eqx.filter((optimizer, end.optimizer_state), eqx.is_inexact_array))
    last = nothing[0], trees.widened(end_grads), nothing[1]
    (gradient, _, _), _ = jax.lax.scan(backward, last, starts, reverse=True)
    return end, jnp.where(live, losses, jnp.nan), gradient


def best_segment(inner: Inner, steps: int) -> int:
    r"""Return the segment with which a window of `steps` takes the least memory; 0 where a whole window takes less.

    If the params take $p$ bytes, and they and the optimizer's state $s$, a whole window of $K$ steps takes $4 K p$
    beside what both ways need, and one in segments of $S$ takes $3 S p + (K / S + 1) s$: least near
    $S = \sqrt{K s / 3 p}$. For the LSTM of the paper that is $5 \sqrt K$, and it is less from a $K$ of about 100 on.
    So it is for coordinatewise optimizers; a step of others keeps more on its way back, so that segments help sooner.
    """
    params, state = (
        sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
        for tree in (inner.params, inner.optimizer_state)
    )
    bytes_of = {s: 3 * s * params + (steps // s + 1) * (params + state) for s in range(1, steps) if steps % s == 0}
    bytes_of[0] = 4 * steps * params
    return min(bytes_of, key=bytes_of.__getitem__)


def _without_problems(inner: Inner) -> Inner:
    """Leave out what no step changes, so that it is not kept once for each segment."""
    return dataclasses.replace(inner, instance=None)


def _pull_back(
    optimizer: AnyOptimizer, trajectory: Trajectory, weights: PyTree, state_cotangent: State
) -> tuple[AnyOptimizer, State]:
    """Pull the cotangents of a segment's updates and of its last state back to the optimizer and its first state."""
    if isinstance(optimizer, Partition):
        pulled = {
            name: _pull_back(optimizer.parts[name], seen, weights[name], state_cotangent[name])
            for name, seen in seen_by_parts(optimizer, trajectory).items()
        }
        gradient = join_parts(optimizer, {name: gradient for name, (gradient, _) in pulled.items()})
        return gradient, {name: before for name, (_, before) in pulled.items()}
    if isinstance(optimizer, Coordinatewise):
        return _pull_coordinates_back(optimizer, trajectory, weights, state_cotangent)
    step, seen = watch(trajectory)

    def objective(moving: tuple[AnyOptimizer, State], fixed: tuple[AnyOptimizer, State]) -> Float[Array, ""]:
        optimizer, state = eqx.combine(moving, fixed)

        def body(state: State, inputs: tuple) -> tuple[State, Array]:
            seen, cotangent = inputs
            updates, state = step(optimizer, state, seen)
            products = jax.tree.map(lambda u, c: jnp.sum(u * c), updates, cotangent)
            return state, sum(jax.tree.leaves(products), start=jnp.zeros(()))

        state, terms = jax.lax.scan(body, state, (seen, weights))
        ends = jax.tree.map(lambda s, c: jnp.sum(s * c), eqx.filter(state, eqx.is_inexact_array), state_cotangent)
        return jnp.sum(terms) + sum(jax.tree.leaves(ends), start=jnp.zeros(()))

    moving, fixed = eqx.partition((optimizer, trajectory.start), eqx.is_inexact_array)
    return jax.grad(objective)(moving, fixed)


def _pull_coordinates_back(
    optimizer: AnyCoordinatewise, trajectory: Trajectory, weights: PyTree, state_cotangent: State
) -> tuple[AnyCoordinatewise, State]:
    """Do so block by block: what one run of the rule keeps for its way back is more than all that a segment records."""
    moving, fixed = eqx.partition((optimizer, trajectory.start), eqx.is_inexact_array)
    theta, fixed_theta = moving[0], fixed[0]
    if not weights.size:  # a part whose params have no entries
        return jax.tree.map(jnp.zeros_like, theta), state_cotangent

    def joined(tree: PyTree) -> PyTree:  # instances and coordinates are one axis
        return jax.tree.map(lambda leaf: leaf.reshape(*leaf.shape[:-2], -1), tree)

    def objective(
        theta: PyTree, state: PyTree, fixed_state: PyTree, seen: Array, cots: tuple[Array, PyTree]
    ) -> Float[Array, ""]:
        optimizer = eqx.combine(theta, fixed_theta)
        seen, of_updates = seen.astype(optimizer.dtype), cots[0].astype(optimizer.dtype)

        def body(state: State, inputs: tuple[Array, Array]) -> tuple[State, Array]:
            grads, cotangent = inputs
            updates, state = optimizer.step(grads, state)
            return state, jnp.vdot(updates, cotangent)

        state, terms = jax.lax.scan(body, eqx.combine(state, fixed_state), (seen, of_updates))
        ends = jax.tree.map(lambda s, c: jnp.sum(s * c), eqx.filter(state, eqx.is_inexact_array), cots[1])
        return jnp.sum(terms) + sum(jax.tree.leaves(ends), start=jnp.zeros(()))

    grads, weights, start, fixed_start = joined((trajectory.grads, weights, moving[1], fixed[1]))
    count = grads.shape[-1]
    width = min(optimizer.block, count)

    def pull_block(i: Array, carry: tuple[PyTree, State]) -> tuple[PyTree, State]:
        total, pulled = carry
        first = jnp.minimum(i * width, count - width)
        new = first + jnp.arange(width) >= i * width  # the last block begins in the one before it

        def columns(tree: PyTree) -> PyTree:
            return jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, first, width, axis=-1), tree)

        def put(pulled: Array, before: Array, after: Array) -> Array:
            return jax.lax.dynamic_update_slice_in_dim(pulled, jnp.where(new, before, after), first, axis=-1)

        after = columns(pulled)
        cots = jax.tree.map(lambda leaf: jnp.where(new, leaf, 0), (columns(weights), after))
        part, before = jax.grad(objective, argnums=(0, 1))(theta, *columns((start, fixed_start, grads)), cots)
        return jax.tree.map(jnp.add, total, part), jax.tree.map(put, pulled, before, after)

    # The cotangents of the first state take the place of those of the last, block by block.
    carry = jax.tree.map(jnp.zeros_like, theta), joined(state_cotangent)
    total, before = jax.lax.fori_loop(0, -(-count // width), pull_block, carry)
    return total, jax.tree.map(lambda leaf, like: leaf.reshape(like.shape), before, moving[1])
