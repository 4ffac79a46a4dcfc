"""What meta-training carries from meta-step to meta-step, and the two programs that it runs."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from .._core import trees
from .._core.programs import Program
from .._core.types import Scalar
from ..metagrads import Estimator
from ..optimizers import Optimizer
from ..unroll import Windows, loss_curves
from .recipe import Recipe


class Learner(eqx.Module):
    """All that a checkpoint must hold; arrays only, beside the optimizer's static configuration.

    `inner`: the estimator's state. `rate`: factor on the meta-learning-rate, halved by every rollback. `good`: where to
    roll back to. `best_scores`: step, area and final loss of `best`.
    """

    optimizer: Optimizer
    meta_state: PyTree
    inner: PyTree
    step: Int[Array, ""]
    rate: Scalar
    rollbacks: Int[Array, ""]
    good: tuple[Optimizer, PyTree]
    best: Optimizer
    best_scores: Float[Array, " 3"]

    @classmethod
    def fresh(cls, optimizer: Optimizer, windows: Windows, estimator: Estimator, key: PRNGKeyArray) -> "Learner":
        """Return the learner before the first meta-step."""
        theta = eqx.filter(optimizer, eqx.is_inexact_array)
        meta_state = _meta_optimizer(jnp.inf).init(theta)
        return cls(
            optimizer=optimizer,
            meta_state=meta_state,
            inner=begin(optimizer, windows, estimator, key),
            step=jnp.zeros((), jnp.int32),
            rate=jnp.ones(()),
            rollbacks=jnp.zeros((), jnp.int32),
            good=(optimizer, meta_state),
            best=optimizer,
            best_scores=jnp.array([0.0, jnp.inf, jnp.inf]),
        )


class Pace(eqx.Module):
    """The numbers of a recipe that a meta-step works with: as arrays, so that changing one compiles nothing."""

    meta_learning_rate: Scalar
    meta_steps: Scalar
    clip: Scalar

    @classmethod
    def of(cls, recipe: Recipe) -> "Pace":
        return cls(
            *(jnp.asarray(float(value)) for value in (recipe.meta_learning_rate, recipe.meta_steps, recipe.clip))
        )


class Report(eqx.Module):
    """What a meta-step says of itself: meta-loss, norm of the meta-gradient, meta-learning-rate, and whether the loss,
    the gradient and the new meta-parameters are finite."""

    loss: Scalar
    norm: Scalar
    rate: Scalar
    finite: Bool[Array, ""]


def _begin(optimizer: Optimizer, windows: Windows, estimator: Estimator, key: PRNGKeyArray) -> PyTree:
    return estimator.init(optimizer, windows, key)


Constant = tuple[Windows, Estimator, Pace]


def _meta_step(kept: tuple[Constant, Learner], inner: PyTree) -> tuple[Learner, PyTree, Report]:
    (windows, estimator, pace), learner = kept
    estimate, inner = estimator.estimate(learner.optimizer, windows, inner)
    directions, meta_state = _meta_optimizer(pace.clip).update(estimate.gradient, learner.meta_state)
    progress = jnp.minimum(learner.step / pace.meta_steps, 1.0)
    rate = learner.rate * pace.meta_learning_rate * 0.5 * (1 + jnp.cos(jnp.pi * progress))
    optimizer = eqx.apply_updates(learner.optimizer, jax.tree.map(lambda d: -rate * d, directions))
    norm = trees.global_norm(estimate.gradient)
    finite = jnp.isfinite(estimate.loss) & jnp.isfinite(norm)
    finite &= trees.all_finite(eqx.filter(optimizer, eqx.is_inexact_array))
    moved = eqx.tree_at(
        lambda it: (it.optimizer, it.meta_state, it.step), learner, (optimizer, meta_state, learner.step + 1)
    )
    return moved, inner, Report(estimate.loss, norm, rate, finite)


def _meta_optimizer(clip: Float[Array, ""] | float) -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(clip), optax.scale_by_adam())  # pyright: ignore[reportArgumentType]


begin = Program(_begin)
"""Draw the first inner problems: `(optimizer, windows, estimator, key)` to the estimator's state."""

# The inner problems are by far the largest part, and nobody needs them as they were: their memory is used again.
_program = Program(_meta_step, donate="all-except-first")

curves = Program(loss_curves)
"""Losses of fresh runs, as `bygrad.unroll.loss_curves`."""


def advance(constant: Constant, learner: Learner) -> tuple[Learner, Report]:
    """Take one meta-step. The inner problems of `learner` are used up."""
    moved, inner, report = _program(*_arguments(constant, learner))
    return eqx.tree_at(lambda it: it.inner, moved, inner, is_leaf=lambda leaf: leaf is None), report


def bytes_of_meta_step(constant: Constant, learner: Learner) -> int:
    """Compile a meta-step and return the memory that it holds at its peak."""
    return _program.bytes_needed(*_arguments(constant, learner))


def _arguments(constant: Constant, learner: Learner) -> tuple[Any, Any]:
    return (constant, eqx.tree_at(lambda it: it.inner, learner, None)), learner.inner
