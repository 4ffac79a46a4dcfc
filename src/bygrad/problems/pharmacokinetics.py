"""Oral pharmacokinetics with saturable elimination: an ordinary differential equation to fit for every patient."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .structured import LeastSquares

TIMES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 24.0)
"""Hours after the dose at which blood is drawn."""

SPREAD = (0.6, 0.4, 0.5, 0.7)
"""Standard deviations of the log params among patients."""

DOSE = 100.0
"""Milligrams."""


class OralDose(LeastSquares):
    r"""One compartment, first-order absorption, Michaelis–Menten elimination, from 12 concentrations after one dose.

    $$\dot g = -k_a g, \qquad \dot c = \frac{k_a g}{V} - \frac{v_{\max} c}{K_m + c}, \qquad g(0) = 100, \; c(0) = 0$$

    Params: $\log (k_a, V, v_{\max}, K_m)$ in 1/h, l, mg/l/h and mg/l. An instance is the vector of the 12 log
    concentrations; residuals are divided by `noise`, the standard deviation of a log concentration. Patients are drawn
    around (1.2, 20, 1, 1.5) with log standard deviations (0.6, 0.4, 0.5, 0.7); `init` is the center.

    The equation is solved by the classical Runge–Kutta rule in steps that grow with time; `substeps` in each interval
    between draws (4: errors below 3e-3 of the highest concentration; where next to nothing is left of the drug, they
    are no longer small against the noise of 1e-1, and 16 make them 100 times smaller).
    """

    noise: float = eqx.field(static=True, default=0.1)
    substeps: int = eqx.field(static=True, default=4)

    def __check_init__(self) -> None:
        if self.noise <= 0 or self.substeps < 1:
            raise ValueError(f"noise is {self.noise} and substeps {self.substeps}: both must be positive.")

    def sample(self, key: PRNGKeyArray) -> Float[Array, " 12"]:
        patient_key, noise_key = jax.random.split(key)
        params = self.center() + jnp.array(SPREAD) * jax.random.normal(patient_key, (4,))
        return self.log_concentrations(params) + self.noise * jax.random.normal(noise_key, (len(TIMES),))

    def center(self) -> Float[Array, " 4"]:
        """Return the params of the middle patient."""
        return jnp.log(jnp.array([1.2, 20.0, 1.0, 1.5]))

    def log_concentrations(self, params: Float[Array, " 4"]) -> Float[Array, " 12"]:
        """Return the logarithms of the concentrations at `TIMES`; below 1e-4 mg/l they level off."""
        absorption, volume, capacity, half = jnp.exp(jnp.clip(params, -8.0, 8.0))
        times = jnp.array((0.0, *TIMES), params.dtype)

        def rate(t: Array, c: Array) -> Array:  # the gut empties in closed form
            c = jnp.maximum(c, 0.0)
            inflow = absorption * DOSE * jnp.exp(-absorption * t) / volume
            return inflow - capacity * c / (half + c)

        def advance(c: Array, span: tuple[Array, Array]) -> tuple[Array, Array]:
            t, h = span
            k1 = rate(t, c)
            k2 = rate(t + h / 2, c + h / 2 * k1)
            k3 = rate(t + h / 2, c + h / 2 * k2)
            k4 = rate(t + h, c + h * k3)
            c = jnp.maximum(c + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), 0.0)
            return c, c

        steps = jnp.diff(times) / self.substeps
        begins = times[:-1, None] + steps[:, None] * jnp.arange(self.substeps, dtype=params.dtype)
        spans = begins.ravel(), jnp.repeat(steps, self.substeps, total_repeat_length=begins.size)
        _, course = jax.lax.scan(advance, jnp.zeros((), params.dtype), spans)
        return jnp.log(course[self.substeps - 1 :: self.substeps] + 1e-4)

    def init(self, instance: Float[Array, " 12"], key: PRNGKeyArray) -> Float[Array, " 4"]:
        return self.center().astype(instance.dtype)

    def restart(self, instance: Float[Array, " 12"], key: PRNGKeyArray) -> Float[Array, " 4"]:
        spread = jnp.array(SPREAD, instance.dtype)
        return self.init(instance, key) + spread * jax.random.normal(key, (4,), instance.dtype)

    def bounds(self, instance: Float[Array, " 12"]) -> tuple[Array, Array]:
        return self.center() - 5.0, self.center() + 5.0

    def residuals(self, params: Float[Array, " 4"], instance: Float[Array, " 12"]) -> Float[Array, " 12"]:
        return (self.log_concentrations(params) - instance) / self.noise
