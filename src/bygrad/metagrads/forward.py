"""Forward-mode meta-gradients along a random direction (Silver et al., 2022)."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree

from .._core import trees
from ..optimizers import Optimizer
from ..unroll import Inner, Windows, lift_by_vmap, run
from . import particles
from .base import Estimate, Estimator


class Tangents(eqx.Module):
    """Inner problems, and what their params and optimizer states would change by along their direction."""

    inner: Inner
    tangent: PyTree


class Forward(Estimator):
    r"""Carries the derivative along one direction through a whole run, and lays it on that direction:

    $$\hat g = \frac1N \sum_i \epsilon_i \, \frac{d L_i(\theta + s \epsilon_i)}{ds} \Big|_{s=0} .$$

    `NRES` with $\sigma \to 0$: unbiased for the meta-loss of the whole horizon itself, derivatives of the problem's
    gradient included (one Hessian-vector product a step), and so without the smoothing that tames chaotic problems.
    What params in half precision change by is added up in it too, and stops growing in runs of hundreds of steps.
    """

    @property
    def biased(self) -> bool:
        return False

    def init(self, optimizer: Optimizer, windows: Windows, key: PRNGKeyArray) -> Tangents:
        inner = windows.begin(optimizer, key, lift_by_vmap)
        return Tangents(inner, jax.tree.map(jnp.zeros_like, _moving(inner)))

    def axes(self, optimizer: Optimizer, state: Tangents) -> Tangents:
        return jax.tree.map(lambda leaf: 0, state)

    def estimate(self, optimizer: Optimizer, windows: Windows, state: Tangents) -> tuple[Estimate, Tangents]:
        done = windows.done(state.inner)
        inner = windows.renew(optimizer, state.inner, lift_by_vmap)
        tangent = jax.tree.map(lambda leaf: jnp.where(trees.along_rows(done, leaf), 0, leaf), state.tangent)
        direction = particles.directions(optimizer, inner.key)
        theta = eqx.filter(optimizer, eqx.is_inexact_array)

        def particle(direction: PyTree, inner: Inner, tangent: PyTree) -> tuple[Inner, PyTree, Array, Array]:
            def window(theta: PyTree, moving: Any) -> Any:
                start = eqx.combine(moving, inner)
                end, losses = run(eqx.combine(theta, optimizer), windows.family, start, windows.truncation)
                return (jnp.mean(losses[1:]), _moving(end)), end

            (loss, _), (slope, tangent), end = jax.jvp(
                window, (theta, _moving(inner)), (direction, tangent), has_aux=True
            )
            return end, tangent, loss, slope

        end, tangent, losses, slopes = jax.vmap(particle)(direction, inner, tangent)
        live = jnp.isfinite(losses) & jnp.isfinite(slopes)
        slopes = jnp.where(live, slopes, 0)
        gradients = jax.tree.map(lambda leaf: particles.scaled(slopes, leaf), direction)
        estimate = particles.combine(windows, gradients, losses, live)
        return estimate, Tangents(particles.give_up(windows, end, live), tangent)


def _moving(inner: Inner) -> Inner:
    """What has a derivative with respect to the meta-parameters; `None` elsewhere."""
    fixed = jax.tree.map(lambda leaf: None, inner)
    params, state = eqx.filter((inner.params, inner.optimizer_state), eqx.is_inexact_array)
    return trees.replaced(fixed, params=params, optimizer_state=state)
