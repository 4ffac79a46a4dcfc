"""Damped oscillations against their formula, and the start that reads their frequency off the spectrum."""

import jax
import jax.numpy as jnp
import numpy as np

from bygrad.problems import DampedOscillation

RNG = np.random.default_rng(0)
T = np.linspace(0, 1, 41)


def draw(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return params, of which the second is the logarithm of a time, and the signals that they make."""
    low, high = np.array([0.5, 0.15, 2, -np.pi, -0.6]), np.array([2, 1, 15, np.pi, 0.6])
    drawn = RNG.uniform(low, high, (count, 5))
    a, tau, f, phase, c = drawn.T[:, :, None]
    signals = a * np.exp(-T / tau) * np.cos(2 * np.pi * f * T + phase) + c
    drawn[:, 1] = np.log(drawn[:, 1])
    return drawn, signals


def test_signals_and_residuals_are_those_of_the_formula():
    family = DampedOscillation(noise=0.5)
    for params, signal in zip(*draw(10), strict=True):
        np.testing.assert_allclose(family.signal(jnp.asarray(params, jnp.float32)), signal, atol=1e-4)
        data = signal + RNG.normal(size=41)
        residuals = family.residuals(jnp.asarray(params, jnp.float32), jnp.asarray(data, jnp.float32))
        np.testing.assert_allclose(residuals, 2 * (signal - data), atol=1e-3)


def test_the_spectrum_tells_the_frequency():
    params, signals = draw(200)
    family = DampedOscillation(start="spectrum")
    begins = jax.vmap(lambda data: family.init(data, jax.random.key(0)))(jnp.asarray(signals, jnp.float32))
    np.testing.assert_allclose(begins[:, 2], params[:, 2], rtol=0, atol=0.5)
