r"""Replay of windows whose gradients do not fit in memory: only the state at the start of each segment is kept.

Rolling out twice costs one more gradient a step, and in exchange the memory for a window of $K$ steps in segments of
$S$ falls from what $K$ steps record to what $S$ steps record and $K / S$ states (Chen et al., 2016, "Training deep nets
with sublinear memory cost", there for backpropagation). A run depends on its keys alone, so the second rollout meets
the same gradients as the first, bit for bit.
"""

from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .._core.types import State
from ..optimizers import Optimizer
from ..problems import ProblemFamily
from .lift import lift
from .replay import cotangents
from .rollout import Inner, Trajectory, observe, rollout

AnyOptimizer = TypeVar("AnyOptimizer", bound=Optimizer)


def replay_in_segments(
    optimizer: AnyOptimizer, family: ProblemFamily, inner: Inner, steps: int, segment: int
) -> tuple[Inner, Float[Array, " instances"], AnyOptimizer]:
    r"""Roll out and replay `steps` steps, `segment` of them in memory at a time.

    **Arguments:** `segment`: a divisor of `steps`; memory is least near the square root of `steps`.

    **Returns:** where the instances stand after the window; the mean of the losses after each update, for each
    instance; and the gradient of the sum over instances and steps of those losses, with respect to the optimizer:
    what `rollout`, `cotangents` and `replay` give together.
    """

    def forward(inner: Inner, _: None) -> tuple[Inner, tuple[Inner, Array]]:
        end, trajectory = rollout(optimizer, family, inner, segment)
        return end, (inner, jnp.sum(trajectory.value, axis=0))

    end, (starts, sums) = jax.lax.scan(forward, inner, None, length=steps // segment)
    end_value, end_grads, _ = observe(lift(optimizer), family, end)
    first_value, _, _ = observe(lift(optimizer), family, inner)
    losses = (jnp.sum(sums, axis=0) - first_value + end_value) / steps

    def backward(carry: tuple[PyTree, PyTree, PyTree], start: Inner) -> tuple[tuple[PyTree, PyTree, PyTree], None]:
        theta, later, state_cotangent = carry
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


def _pull_back(
    optimizer: AnyOptimizer, trajectory: Trajectory, weights: PyTree, state_cotangent: State
) -> tuple[AnyOptimizer, State]:
    """Pull the cotangents of a segment's updates and of its last state back to the optimizer and its first state."""
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
