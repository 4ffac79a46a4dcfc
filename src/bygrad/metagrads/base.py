"""What a meta-gradient estimator is."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from .._core.types import Scalar
from ..optimizers import Optimizer
from ..unroll import Windows


class Estimate(eqx.Module):
    r"""One estimate of the meta-gradient.

    `loss`: the meta-loss of the window, the mean of the losses after each of its updates, over steps and instances.
    `gradient`: with respect to $\theta$; the optimizer's structure, `None` for what is not a floating-point array.
    `losses`: the mean loss of each instance in the window.

    `lost`: the share of instances that were not finite and were left out, of estimators that do so. Those that have a
    gradient for every particle say more: `square`, the mean of its squared norm, from which `signal_to_noise` follows,
    and the share of particles whose part in it was `clipped`.
    """

    loss: Scalar
    gradient: PyTree
    losses: Float[Array, " instances"]
    square: Scalar | None = None
    clipped: Scalar | None = None
    lost: Scalar | None = None


def mean_of_live(
    windows: Windows, gradient: PyTree, losses: Float[Array, " instances"], live: Bool[Array, " instances"]
) -> Estimate:
    """Return an estimate from the instances that are not lost, as the mean over them; not a number if all are.

    The mean over the devices of what this returns is that over all instances: each counts alike, wherever it is.

    **Arguments:** `gradient`: the sum over those that are live, divided by the number of all.
    """
    here = live.astype(losses.dtype)
    part = jnp.mean(windows.everywhere(here))
    loss = jnp.mean(jnp.where(live, losses, 0)) / part
    gradient = jax.tree.map(lambda leaf: jnp.where(jnp.any(live), leaf, 0) / part.astype(leaf.dtype), gradient)
    return Estimate(loss, gradient, losses, lost=1 - jnp.mean(here))


def signal_to_noise(norm: Scalar, square: Scalar, particles: Scalar) -> Scalar:
    r"""Return $\lVert \bar g \rVert^2 N / \mathrm{tr} \, \mathrm{Cov}(g)$: how often the mean of $N$ particles'
    gradients is larger than its own noise, both squared. Pure noise gives about 1.

    **Arguments:** `norm`: of the mean gradient. `square`: mean of the particles' squared norms. `particles`: $N$; of a
    single one nothing can be said, and the result is not a number.
    """
    # Gradients that are all alike differ by rounding, and so does a single one from itself.
    apart = jnp.maximum(square - jnp.square(norm), jnp.finfo(square.dtype).eps * square)
    return jnp.where(particles > 1.5, jnp.square(norm) * (particles - 1) / apart, jnp.nan)


class Estimator(eqx.Module):
    """Estimates the gradient of the meta-loss with respect to an optimizer, one window at a time.

    The state in which a run starts is a constant, whatever `init` makes it of: what is learned is what `update` does.

    `biased` says whether its mean differs from the gradient of the meta-loss of the whole horizon (smoothed, where it
    is one of evolution strategies), at meta-parameters that stay as they are.

    The estimator carries what it needs from window to window in a state of its own.

    Where several devices share the instances, `estimate` runs on each of them with the part of the state that belongs
    to its instances, and the estimates are averaged. So what it draws must come from keys of the instances, as a key
    that is whole on every device would draw the same there, and be different for another number of devices.
    """

    @property
    def biased(self) -> bool:
        return True

    @property
    def differentiates(self) -> bool:
        """Whether it follows the derivatives of the losses, and not their values alone. Those of a family that is
        judged by other data than it is trained on (`bygrad.problems.HeldOut`) are not of its values."""
        return True

    @property
    def when_all_are_lost(self) -> str:
        """What has happened where all that an estimate is made of is `lost`."""
        return "no window counted: losses or gradients are not finite, or losses negative where logarithms count"

    @abc.abstractmethod
    def init(self, optimizer: Optimizer, windows: Windows, key: PRNGKeyArray) -> Any:
        """Begin the inner problems."""

    @abc.abstractmethod
    def estimate(self, optimizer: Optimizer, windows: Windows, state: Any) -> tuple[Estimate, Any]:
        """Advance every inner problem by one window; return the estimate and the state for the next."""

    @abc.abstractmethod
    def axes(self, optimizer: Optimizer, state: Any) -> PyTree:
        """Return which axis of every leaf of a state is that of the instances: a tree of numbers, as for `vmap`; `None`
        for a leaf that is the same for all. `bygrad.unroll.instance_axes` answers for an `Inner`."""
