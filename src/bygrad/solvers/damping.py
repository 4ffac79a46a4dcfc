"""How strongly Levenberg–Marquardt holds its steps back: the classical rules."""

import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._core.types import Instance, Params, Scalar
from .small import Factor

LOWEST, HIGHEST = 1e-12, 1e12
"""Limits of the damping. The upper one ends an instance: steps that small change nothing."""


class Seen(NamedTuple):
    """What a damping rule sees after a trial: whether it was taken, and the model where the instance stands now.

    `scale`: what damping is relative to, for each param. `free`: whether no bound holds it.
    """

    first: Bool[Array, ""]
    taken: Bool[Array, ""]
    ratio: Scalar
    cost: Scalar
    gained: Scalar
    nit: Any
    x: Float[Array, " p"]
    gram: Float[Array, "p p"]
    slope: Float[Array, " p"]
    scale: Float[Array, " p"]
    free: Bool[Array, " p"]


class Damping(eqx.Module):
    """How strongly each param is held back: the one choice that Levenberg–Marquardt leaves open."""

    @abc.abstractmethod
    def start(self, instance: Instance, x: Float[Array, " p"]) -> Params:
        """Return the rule's state before the first step."""

    @abc.abstractmethod
    def next(self, seen: Seen, state: Params) -> tuple[Float[Array, " p"], Scalar, Params]:
        """Return the damping of each param (relative to the scale), a factor on the step, and the new state."""


class TrustRegion(Damping):
    r"""MINPACK's rule: the least damping with which a step is no longer than a radius, in the scaled norm.

    The radius begins as `initial` times the length of the start (of the residuals, where the start is zero). It doubles
    to twice the step's length where a step gained three quarters of what it promised or was not held back, and is
    cut to half or less where it gained less than a quarter. The damping comes from that of the step before by one step
    of Newton's method for $1 / \Delta = 1 / \lVert D s(\lambda) \rVert$: further ones did not help.

    Steps are bounded from the first one, where the model at a poor start is worth little.

    **Arguments:** `initial`: radius of the first step, relative to the length of the start. MINPACK's is 100.

    **Source:** Moré, *The Levenberg–Marquardt algorithm: implementation and theory* (1978), sections 3 to 5.
    """

    initial: float | Array = 0.1

    def start(self, instance: Instance, x: Float[Array, " p"]) -> tuple[Array, Array, Array]:
        nothing = jnp.zeros((), x.dtype)
        return nothing, nothing, nothing

    def next(self, seen: Seen, state: Any) -> tuple[Array, Scalar, Any]:
        radius, value, length = state
        kind = jnp.finfo(seen.x.dtype)
        unit = jnp.sqrt(jnp.where(seen.scale > 0, seen.scale, 1.0))
        size = jnp.linalg.norm(unit * seen.x)
        begin = self.initial * jnp.where(size > 0, size, jnp.sqrt(2 * seen.cost))

        poor, good = seen.ratio < 0.25, (seen.ratio >= 0.75) | (value == 0)
        cut = jnp.where(seen.gained >= 0, 0.5, jnp.where(jnp.isfinite(seen.gained), 0.25, 0.1))
        radius = jnp.where(poor, cut * jnp.minimum(radius, 10 * length), jnp.where(good, 2 * length, radius))
        value = jnp.where(poor, value / cut, jnp.where(good, 0.5 * value, value))
        radius = jnp.clip(jnp.where(seen.first, begin, radius), kind.tiny / kind.eps, kind.max)

        both = seen.free[:, None] & seen.free[None, :]
        matrix = jnp.where(both, seen.gram / (unit[:, None] * unit[None, :]), 0.0)
        slope = jnp.where(seen.free, seen.slope / unit, 0.0)
        one = jnp.eye(len(unit), dtype=unit.dtype)

        def step(value: Scalar) -> tuple[Scalar, Scalar]:
            """Return the length of the step with this damping, and by which factor of it the damping's rise cuts it."""
            factor = Factor.of(matrix + value * one)
            found = factor.backward(factor.forward(slope))
            square = found @ found
            return jnp.sqrt(square), jnp.sum(factor.forward(found) ** 2) / square

        least = jnp.asarray(LOWEST, seen.x.dtype)
        whole, fall = step(least)
        inside = jnp.isfinite(whole) & (whole <= 1.1 * radius)
        low = jnp.nan_to_num((whole / radius - 1) / fall, nan=0.0, posinf=0.0)
        low, high = jnp.maximum(low, least), jnp.maximum(jnp.linalg.norm(slope) / radius, least)
        value = jnp.clip(jnp.where(value > 0, value, high * 1e-3), low, high)
        length, fall = step(value)
        better = value + (length / radius - 1) / fall
        value = jnp.where(jnp.isfinite(better), jnp.clip(better, low, high), jnp.sqrt(low * high))
        value, length = jnp.where(inside, 0.0, value), jnp.where(inside, whole, jnp.minimum(length, radius))
        # The first radius is a guess: a whole step inside of it tells more.
        radius = jnp.where(seen.first, jnp.minimum(radius, length), radius)
        state = radius, value, length
        value, state = jax.lax.stop_gradient((value, state))
        return jnp.full_like(seen.x, jnp.maximum(value, least)), jnp.ones((), seen.x.dtype), state


class GainRatio(Damping):
    r"""Nielsen's rule: $\lambda \gets \lambda \max(s, 1 - (2\varrho - 1)^3)$ after a step with gain ratio $\varrho$.

    After a rejected one $\lambda \gets \lambda \nu$ and $\nu \gets 2 \nu$.

    **Arguments:** `initial`: damping of the first step, relative to the diagonal of the Gram matrix. `shrink`: the
    smallest factor $s$ after a good step.

    **Source:** Nielsen, *Damping parameter in Marquardt's method* (1999), equation 2.4.
    """

    initial: float | Array = 1e-2
    shrink: float | Array = 1 / 3

    def start(self, instance: Instance, x: Float[Array, " p"]) -> tuple[Array, Array]:
        return jnp.full((), self.initial, x.dtype), jnp.full((), 2.0, x.dtype)

    def next(self, seen: Seen, state: Any) -> tuple[Array, Scalar, Any]:
        value, growth = state
        good = value * jnp.maximum(self.shrink, 1 - (2 * jnp.clip(seen.ratio, 0, 1) - 1) ** 3)
        value = jnp.where(seen.first, value, jnp.where(seen.taken, good, value * growth))
        growth = jnp.where(seen.taken, 2.0, 2 * growth)
        value = jnp.clip(value, LOWEST, HIGHEST * 10)
        return jnp.full_like(seen.x, value), jnp.ones((), seen.x.dtype), (value, growth)
