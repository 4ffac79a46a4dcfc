"""Backpropagation and evolution strategies, each where it is the more precise (Metz et al., 2019)."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree

from .._core import trees
from ..optimizers import Optimizer
from ..unroll import Inner, Windows, run
from . import particles
from .base import Estimate, Estimator
from .particles import Pairs


class Blend(Estimator):
    r"""Weights two estimates of the same smoothed gradient by their inverse variances, coordinate by coordinate of
    $\theta$ (section 3.2):

    $$\hat g = \frac{g_b / s_b^2 + g_e / s_e^2}{1 / s_b^2 + 1 / s_e^2},$$

    $g_b$ the mean of the gradients at both members of a pair, $g_e$ from the difference of their losses, $s^2$ the
    variances over the particles. Where backpropagation explodes its variance does too, and evolution strategies take
    over. Pairs begin every window together, as in `TruncatedES`: biased for the horizon where windows are shorter.

    **Arguments:** `sigma`: standard deviation of the meta-parameters of a pair.
    """

    sigma: float = eqx.field(static=True, default=0.02)

    def __check_init__(self) -> None:
        particles.check_sigma(self.sigma)

    def init(self, optimizer: Optimizer, windows: Windows, key: PRNGKeyArray) -> Pairs:
        if windows.instances < 2:
            raise ValueError(
                f"A meta-step has {windows.instances} instance, but Blend weighs by variances over the instances, which"
                " one alone does not have. Raise instances (--instances) to 2 or more."
            )
        return particles.begin(optimizer, windows, key)

    def axes(self, optimizer: Optimizer, state: Pairs) -> Pairs:
        return particles.axes(state)

    def estimate(self, optimizer: Optimizer, windows: Windows, state: Pairs) -> tuple[Estimate, Pairs]:
        start = particles.member(particles.renew(optimizer, windows, state).inner)
        direction = particles.directions(optimizer, start.key, start.step)

        def particle(sign: Array, direction: PyTree, inner: Inner) -> tuple[tuple[Array, Inner], PyTree]:
            @eqx.filter_value_and_grad(has_aux=True)
            def meta_loss(optimizer: Optimizer) -> tuple[Array, Inner]:
                end, losses = run(optimizer, windows.family, inner, windows.truncation)
                return jnp.mean(losses[1:]), end

            return meta_loss(particles.shifted(optimizer, direction, sign * self.sigma))

        both = jax.vmap(jax.vmap(particle, in_axes=(None, 0, 0)), in_axes=(0, None, None))
        (losses, end), slopes = both(jnp.array([1.0, -1.0]), direction, start)
        live = jnp.all(jnp.isfinite(losses), axis=0)
        differences = jnp.where(live, losses[0] - losses[1], 0) / (2 * self.sigma)

        def blended(slopes: Array, direction: Array) -> Array:
            by_backprop = jnp.mean(slopes, axis=0)
            by_evolution = particles.scaled(differences, direction)
            one, other = (_precision(windows, gradients, live) for gradients in (by_backprop, by_evolution))
            total = one + other
            # Equal where neither varies at all.
            share = jnp.where(total > 0, one / jnp.where(total > 0, total, 1), 0.5)
            return share * jnp.where(share > 0, by_backprop, 0) + (1 - share) * by_evolution

        gradients = jax.tree.map(blended, slopes, direction)
        estimate = particles.combine(windows, gradients, jnp.mean(losses, axis=0), live)
        plus = trees.rows(end, 0)
        return estimate, Pairs(particles.twice(particles.give_up(windows, plus, live)), None)


def _precision(windows: Windows, gradients: Array, live: Array) -> Array:
    """Return the inverse of the variance over all live instances; 0 where a gradient is not finite."""
    rows = trees.along_rows(live, gradients)
    count = jnp.maximum(windows.total(jnp.sum(live)), 1)
    mean = windows.total(jnp.sum(jnp.where(rows, gradients, 0), axis=0)) / count
    variance = windows.total(jnp.sum(jnp.where(rows, jnp.square(gradients - mean), 0), axis=0)) / count
    return jnp.where(jnp.isfinite(variance), 1 / jnp.maximum(variance, 1e-30), 0)
