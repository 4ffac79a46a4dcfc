"""What meta-training carries from meta-step to meta-step, and the two programs that it runs."""

import dataclasses
import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree, Shaped

from .._core import trees
from .._core.programs import Program
from .._core.types import Scalar
from ..metagrads import Estimator, signal_to_noise
from ..optimizers import Optimizer
from ..problems import ProblemFamily
from ..unroll import Windows, loss_curves
from .devices import Devices
from .meta_optimizer import meta_optimizer, running_signal_to_noise
from .recipe import Recipe


class Learner(eqx.Module):
    """All that a checkpoint must hold; arrays only, beside the optimizer's static configuration.

    `inner`: the estimator's state. `rate`: factor on the meta-learning-rate, halved by every rollback. `good`: where to
    roll back to. `best_scores`: step, area and final loss of `best`. `start_scores`: area and final loss at the first
    validation. `validated`: the step of the last one; -1 before there is any.
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
    start_scores: Float[Array, " 2"]
    validated: Int[Array, ""]

    @classmethod
    def fresh(
        cls, optimizer: Optimizer, windows: Windows, estimator: Estimator, devices: Devices, key: PRNGKeyArray
    ) -> "Learner":
        """Return the learner before the first meta-step, on its devices."""
        learner = devices.place(cls._without_inner(optimizer))
        return learner.with_inner(begin(learner.optimizer, windows, estimator, devices, key))

    @classmethod
    def example(
        cls, optimizer: Optimizer, windows: Windows, estimator: Estimator, devices: Devices, key: PRNGKeyArray
    ) -> "Learner":
        """Return a learner like `fresh`, with shapes and dtypes in place of inner problems: none is drawn, and what
        would run at their beginning, such as the teacher of `Clone`, does not."""
        inner = eqx.filter_eval_shape(_begin, optimizer, windows, estimator, devices, key)
        return cls._without_inner(optimizer).with_inner(inner)

    @classmethod
    def _without_inner(cls, optimizer: Optimizer) -> "Learner":
        theta = eqx.filter(optimizer, eqx.is_inexact_array)
        meta_state = meta_optimizer(jnp.inf, 0.999).init(theta)
        return cls(
            optimizer=optimizer,
            meta_state=meta_state,
            inner=None,
            step=jnp.zeros((), jnp.int32),
            rate=jnp.ones(()),
            rollbacks=jnp.zeros((), jnp.int32),
            good=(optimizer, meta_state),
            best=optimizer,
            best_scores=jnp.array([0.0, jnp.inf, jnp.inf]),
            start_scores=jnp.array([jnp.inf, jnp.inf]),
            validated=jnp.array(-1, jnp.int32),
        )

    def with_inner(self, inner: PyTree) -> "Learner":
        """Return the learner with `inner`, where it has `None`."""
        return eqx.tree_at(lambda it: it.inner, self, inner, is_leaf=lambda leaf: leaf is None)


class Pace(eqx.Module):
    """The numbers of a recipe that a meta-step works with: as arrays, so that changing one compiles nothing."""

    meta_learning_rate: Scalar
    meta_steps: Scalar
    clip: Scalar
    b2: Scalar
    warmup: Scalar

    @classmethod
    def of(cls, recipe: Recipe) -> "Pace":
        values = (recipe.meta_learning_rate, recipe.meta_steps, recipe.clip, recipe.meta_b2, recipe.warmup)
        return cls(*(jnp.asarray(float(value)) for value in values))

    def rate(self, step: Int[Array, ""], spent: Scalar) -> Scalar:
        """Return the meta-learning-rate of a step; `spent`: the part of the time that is over, where that decides."""
        progress = jnp.minimum(jnp.maximum(step / self.meta_steps, spent), 1.0)
        rising = jnp.minimum((step + 1) / jnp.maximum(self.warmup, 1), 1.0)
        return rising * self.meta_learning_rate * 0.5 * (1 + jnp.cos(jnp.pi * progress))


class Report(eqx.Module):
    """What a meta-step says of itself: meta-loss, norm of the meta-gradient, meta-learning-rate, whether the loss, the
    gradient and the new meta-parameters are finite, and the share of the devices that asked to stop. Signal-to-noise
    ratio of the meta-gradient. Of the particles, where the estimator has any: shares of those clipped and lost."""

    loss: Scalar
    norm: Scalar
    rate: Scalar
    finite: Bool[Array, ""]
    asked: Scalar | None
    signal_to_noise: Scalar
    clipped: Scalar | None
    lost: Scalar | None


def settled(tree: PyTree) -> PyTree:
    """Return the tree with JAX's arrays of types that stay. NumPy's may have 64 bits where JAX has none; and what was
    made of a Python number takes on the type of others (`weak_type`), until the first step: that would then be another
    program than all that follow, with other roundings in half precision, and what is resumed would not have it."""

    def settle(leaf: Any) -> Any:
        if not eqx.is_array(leaf):
            return leaf
        array = jnp.asarray(leaf)
        return array.astype(array.dtype) if getattr(array, "weak_type", False) else array  # keys have no such thing

    return jax.tree.map(settle, tree)


def _begin(optimizer: Optimizer, windows: Windows, estimator: Estimator, devices: Devices, key: PRNGKeyArray) -> PyTree:
    # Not divided, only its result is: one key is split over all instances, whatever the number of devices.
    inner = settled(estimator.init(optimizer, windows, key))
    return devices.constrain(inner, estimator.axes(optimizer, inner))


Constant = tuple[Windows, Estimator, Pace, Devices]


def _meta_step(
    kept: tuple[Constant, Learner, Scalar], inner: PyTree, asked: Float[Array, " devices"] | None
) -> tuple[Learner, PyTree, Report]:
    (_, estimator, _, devices), learner, _ = kept
    axes = estimator.axes(learner.optimizer, inner)
    return devices.divide(_meta_step_of_part, (None, axes, 0), (None, axes, None))(kept, inner, asked)


def _meta_step_of_part(
    kept: tuple[Constant, Learner, Scalar], inner: PyTree, asked: Float[Array, " 1"] | None
) -> tuple[Learner, PyTree, Report]:
    """Take a meta-step with the instances of one device. θ moves on every device, alike: that is less to send."""
    (windows, estimator, pace, devices), learner, spent = kept
    windows = dataclasses.replace(windows, instances=windows.instances // devices.count, axis=devices.axis)
    estimate, inner = estimator.estimate(learner.optimizer, windows, inner)
    gradient, loss, asked, square, clipped, lost = devices.mean(
        (estimate.gradient, estimate.loss, asked, estimate.square, estimate.clipped, estimate.lost)
    )
    directions, meta_state = meta_optimizer(pace.clip, pace.b2).update(gradient, learner.meta_state)
    rate = learner.rate * pace.rate(learner.step, spent)
    optimizer = eqx.apply_updates(learner.optimizer, jax.tree.map(lambda d: (-rate * d).astype(d.dtype), directions))
    norm = trees.global_norm(gradient)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    finite &= trees.all_finite(eqx.filter(optimizer, eqx.is_inexact_array))
    moved = eqx.tree_at(
        lambda it: (it.optimizer, it.meta_state, it.step), learner, (optimizer, meta_state, learner.step + 1)
    )
    ratio = running_signal_to_noise(meta_state)
    if square is not None and lost is not None:  # the particles of this very step tell
        ratio = signal_to_noise(norm, square, windows.instances * devices.count * (1 - lost))
    asked = None if asked is None else asked[0]
    return moved, inner, Report(loss, norm, rate, finite, asked, ratio, clipped, lost)


begin = Program(_begin, runs="seldom")
"""Draw the first inner problems: `(optimizer, windows, estimator, devices, key)` to the estimator's state."""

# The inner problems are by far the largest part, and nobody needs them as they were: their memory is used again. A
# meta-step that differentiates an LSTM runs slower if less time is spent on compiling it, and trainings are long.
_programs = {
    differentiates: Program(_meta_step, donate="all-except-first", runs="often" if differentiates else "seldom")
    for differentiates in (False, True)
}


@functools.partial(Program, runs="seldom")
def curves(
    optimizer: Optimizer, family: ProblemFamily, keys: Shaped[PRNGKeyArray, " runs"], horizon: int, devices: Devices
) -> Float[Array, "runs horizon_plus_1"]:
    """Return the losses of fresh runs, as `bygrad.unroll.loss_curves` does."""
    if devices.mesh is None:
        return loss_curves(optimizer, family, keys, horizon)
    # Where the runs cannot be divided evenly, a few are done twice: nobody would be done earlier without them.
    padded = keys[jnp.arange(-(-keys.size // devices.count) * devices.count) % keys.size]

    def part(optimizer: Optimizer, family: ProblemFamily, padded: Shaped[PRNGKeyArray, " part"]) -> Array:
        return devices.join(loss_curves(optimizer, family, padded, horizon))[: keys.size]

    return devices.divide(part, (None, None, 0), None)(optimizer, family, padded)


def advance(
    constant: Constant, learner: Learner, asked: Array | None = None, spent: float = 0.0
) -> tuple[Learner, Report]:
    """Take one meta-step. The inner problems of `learner` are used up.

    **Arguments:** `asked`: `Devices.flag`, a request to stop. `spent`: the part of the time that is over.
    """
    moved, inner, report = _of(constant)(*_arguments(constant, learner, spent), asked)
    return moved.with_inner(inner), report


def bytes_of_meta_step(constant: Constant, learner: Learner) -> tuple[int, int]:
    """Compile a meta-step and return the memory that it holds at its peak, and how much of it is not there yet."""
    arguments = *_arguments(constant, learner, 0.0), constant[-1].flag(False)
    program = _of(constant)
    return program.bytes_needed(*arguments), program.bytes_more(*arguments)


def _of(constant: Constant) -> Program[Any]:
    _, estimator, *_ = constant
    return _programs[estimator.differentiates]


def _arguments(constant: Constant, learner: Learner, spent: float) -> tuple[Any, Any]:
    *_, devices = constant
    part = devices.place(jnp.asarray(spent, jnp.float32))
    return (constant, eqx.tree_at(lambda it: it.inner, learner, None), part), learner.inner
