"""Damped oscillations: a signal that rings, as in Ramsey fringes, free induction decay, or a struck beam."""

from typing import Literal, TypeAlias, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, Real

from .._core.sizes import all_count, all_positive
from .structured import LeastSquares

Start: TypeAlias = Literal["spectrum", "constant"]


class DampedOscillation(LeastSquares):
    r"""Fit $a e^{-t/\tau} \cos(2 \pi f t + \varphi) + c$ to `points` noisy samples of $t \in [0, 1]$.

    Params: $(a, \log \tau, f, \varphi, c)$. Residuals are divided by `noise`. The cost has many local minima along the
    frequency, so the start decides: `start="spectrum"` reads it off the largest Fourier coefficient, as an expert
    would; `"constant"` starts in the middle of the range.

    An instance is the vector of samples. Drawn are $a \sim U(0.5, 2)$, $\tau \sim U(0.15, 1)$, $f \sim U(2, 15)$ and
    $\varphi \sim U(-\pi, \pi)$, $c \sim N(0, 0.3^2)$.
    """

    points: int = eqx.field(static=True, default=41)
    noise: float = eqx.field(static=True, default=0.1)
    start: Start = eqx.field(static=True, default="constant")

    def __check_init__(self) -> None:
        if not (all_count(self.points, least=8) and all_positive(self.noise)):
            raise ValueError(
                f"points is {self.points} and noise {self.noise}: five params need 8 points or more, and residuals are"
                " divided by the noise, which must be positive."
            )
        if self.start not in get_args(Start):
            raise ValueError(f"start is {self.start!r}, which there is not. Choose {' or '.join(get_args(Start))}.")

    def sample(self, key: PRNGKeyArray) -> Float[Array, " points"]:
        draw_key, noise_key = jax.random.split(key)
        a, tau, f, phase, c = jax.random.uniform(draw_key, (5,))
        angle = jnp.pi * (2 * phase - 1)
        offset = 0.3 * jax.scipy.special.ndtri(jnp.clip(c, 1e-6, 1 - 1e-6))
        params = jnp.stack([0.5 + 1.5 * a, jnp.log(0.15 + 0.85 * tau), 2 + 13 * f, angle, offset])
        return self.signal(params) + self.noise * jax.random.normal(noise_key, (self.points,))

    def signal(self, params: Float[Array, " 5"]) -> Float[Array, " points"]:
        """Return the model's samples."""
        t = jnp.linspace(0.0, 1.0, self.points)
        a, log_tau, f, phase, c = params
        return a * jnp.exp(-t * jnp.exp(-log_tau)) * jnp.cos(2 * jnp.pi * f * t + phase) + c

    def init(self, instance: Real[Array, " points"], key: PRNGKeyArray) -> Float[Array, " 5"]:
        if self.start == "constant":
            return jnp.array([1.0, -0.7, 8.5, 0.0, 0.0], jnp.result_type(instance.dtype, float))
        offset = jnp.mean(instance)
        t = jnp.linspace(0.0, 1.0, self.points)
        frequencies = jnp.linspace(1.0, 16.0, 91)
        waves = jnp.exp(-2j * jnp.pi * frequencies[:, None] * t)
        spectrum = waves @ (instance - offset)
        best = jnp.argmax(jnp.abs(spectrum))
        amplitude = jnp.abs(spectrum[best]) * 4 / self.points
        phase = jnp.angle(spectrum[best])
        return jnp.stack([amplitude, jnp.full_like(offset, -0.9), frequencies[best], phase, offset]).astype(
            jnp.result_type(instance.dtype, float)
        )

    def restart(self, instance: Real[Array, " points"], key: PRNGKeyArray) -> Float[Array, " 5"]:
        f, phase = jax.random.uniform(key, (2,), jnp.result_type(instance.dtype, float))
        return jnp.stack([1.0, -0.7, 2 + 13 * f, jnp.pi * (2 * phase - 1), 0.0]).astype(f.dtype)

    def residuals(self, params: Float[Array, " 5"], instance: Real[Array, " points"]) -> Float[Array, " points"]:
        return (self.signal(params) - instance) / self.noise
