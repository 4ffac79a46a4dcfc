r"""Replay of windows whose gradients do not fit in memory: only the state at the start of each segment is kept.

Rolling out twice costs one more gradient a step, and in exchange the memory for a window of $K$ steps in segments of
$S$ falls from what $K$ steps record to what $S$ steps record and $K / S$ states (Chen et al., 2016, "Training deep nets
with sublinear memory cost", there for backpropagation). A run depends on its keys alone, so the second rollout meets
the same gradients as the first, bit for bit.
"""

import dataclasses
from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .._core.types import State
from ..optimizers import Coordinatewise, Optimizer
from ..problems import ProblemFamily
from .lift import lift
from .replay import cotangents, in_blocks
from .rollout import Inner, Trajectory, observe, rollout

AnyOptimizer = TypeVar("AnyOptimizer", bound=Optimizer)
AnyCoordinatewise = TypeVar("AnyCoordinatewise", bound=Coordinatewise)


def replay_in_segments(
    optimizer: AnyOptimizer, family: ProblemFamily, inner: Inner, steps: int, segment: int
) -> tuple[Inner, Float[Array, " instances"], AnyOptimizer]:
    r"""Roll out and replay `steps` steps, `segment` of them in memory at a time.

    **Arguments:** `segment`: a divisor of `steps`; memory is least near the square root of `steps`.

    **Returns:** where the instances stand after the window; the mean of the losses after each update, for each
    instance; and the gradient of the sum over instances and steps of those losses, with respect to the optimizer:
    what `rollout`, `cotangents` and `replay` give together.
    """

    def forward(inner: Inner, _: None) -> tuple[Inner, tuple[Inner, Array, Array]]:
        end, trajectory = rollout(optimizer, family, inner, segment)
        return end, (_without_problems(inner), trajectory.value[0], jnp.sum(trajectory.value[1:], axis=0))

    end, (starts, firsts, rest) = jax.lax.scan(forward, inner, None, length=steps // segment)
    end_value, end_grads, _ = observe(lift(optimizer), family, end)
    # The window's first loss is no loss after an update, and never in the sum: it may be larger than all others.
    losses = (jnp.sum(rest, axis=0) + jnp.sum(firsts[1:], axis=0) + end_value) / steps

    def backward(carry: tuple[PyTree, PyTree, PyTree], start: Inner) -> tuple[tuple[PyTree, PyTree, PyTree], None]:
        theta, later, state_cotangent = carry
        start = dataclasses.replace(start, instance=inner.instance)
        # `later` sums the gradients from the segment's end on: it stands where the end's own gradient would.
        trajectory = rollout(optimizer, family, start, segment)[1]
        trajectory = eqx.tree_at(lambda it: it.end_grads, trajectory, later)
        weights = cotangents(trajectory)
        part, before = _pull_back(optimizer, trajectory, weights, state_cotangent)
        later = jax.tree.map(lambda grads, weight: grads[0] + weight[0], trajectory.grads, weights)
        return (jax.tree.map(jnp.add, theta, part), later, before), None

    nothing = jax.tree.map(jnp.zeros_like, eqx.filter((optimizer, end.optimizer_state), eqx.is_inexact_array))
    (gradient, _, _), _ = jax.lax.scan(backward, (nothing[0], end_grads, nothing[1]), starts, reverse=True)
    return end, losses, gradient


def _without_problems(inner: Inner) -> Inner:
    """Leave out what no step changes, so that it is not kept once for each segment."""
    return dataclasses.replace(inner, instance=None)


def _pull_back(
    optimizer: AnyOptimizer, trajectory: Trajectory, weights: PyTree, state_cotangent: State
) -> tuple[AnyOptimizer, State]:
    """Pull the cotangents of a segment's updates and of its last state back to the optimizer and its first state."""
    if isinstance(optimizer, Coordinatewise):
        return _pull_coordinates_back(optimizer, trajectory, weights, state_cotangent)
    seen = (trajectory.grads, trajectory.params, trajectory.value, trajectory.key)

    def objective(moving: tuple[AnyOptimizer, State], fixed: tuple[AnyOptimizer, State]) -> Float[Array, ""]:
        optimizer, state = eqx.combine(moving, fixed)
        lifted = lift(optimizer, in_blocks=False)

        def body(state: State, inputs: tuple) -> tuple[State, Array]:
            (grads, params, value, key), cotangent = inputs
            updates, state = lifted.update(grads, state, params, value, key)
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

    def joined(tree: PyTree) -> PyTree:  # instances and coordinates are one axis
        return jax.tree.map(lambda leaf: leaf.reshape(*leaf.shape[:-2], -1), tree)

    def objective(theta: PyTree, state: PyTree, fixed_state: PyTree, seen: tuple) -> Float[Array, ""]:
        optimizer = eqx.combine(theta, fixed_theta)

        def body(state: State, inputs: tuple[Array, Array]) -> tuple[State, Array]:
            grads, cotangent = inputs
            updates, state = optimizer.step(grads, state)
            return state, jnp.vdot(updates, cotangent)

        grads, cots, end = seen
        state, terms = jax.lax.scan(body, eqx.combine(state, fixed_state), (grads, cots))
        ends = jax.tree.map(lambda s, c: jnp.sum(s * c), eqx.filter(state, eqx.is_inexact_array), end)
        return jnp.sum(terms) + sum(jax.tree.leaves(ends), start=jnp.zeros(()))

    def body(total: PyTree, piece: tuple) -> tuple[PyTree, State]:
        part, before = jax.grad(objective, argnums=(0, 1))(theta, *piece)
        return jax.tree.map(jnp.add, total, part), before

    grads, cots = (joined(array).astype(optimizer.dtype) for array in (trajectory.grads, weights))
    start, fixed_start, end = (joined(tree) for tree in (moving[1], fixed[1], state_cotangent))
    pieces = in_blocks((start, fixed_start, (grads, cots, end)), optimizer.block)
    total, before = jax.lax.scan(body, jax.tree.map(jnp.zeros_like, theta), pieces)

    def whole(pieces: Array, like: Array) -> Array:
        row = jnp.moveaxis(pieces, 0, -2).reshape(*like.shape[:-2], -1)
        return row[..., : like.shape[-2] * like.shape[-1]].reshape(like.shape)

    return total, jax.tree.map(whole, before, moving[1])
