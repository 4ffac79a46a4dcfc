"""A small family that the tests of solvers share."""

import jax
import jax.numpy as jnp
import numpy as np

from bygrad.problems import LeastSquares

TIMES = np.linspace(0.0, 2.0, 9)


class Decay(LeastSquares):
    """An exponential with two params, whose solution SciPy knows."""

    limited: bool = False

    def sample(self, key):
        rate, noise = jax.random.uniform(key, minval=0.5, maxval=2.0), jax.random.normal(key, (9,))
        return jnp.exp(-rate * jnp.asarray(TIMES, noise.dtype)) + 0.05 * noise

    def init(self, instance, key):
        return {"height": jnp.ones(()), "rate": jnp.ones((1,))}

    def residuals(self, params, instance):
        return params["height"] * jnp.exp(-params["rate"] * jnp.asarray(TIMES, instance.dtype)) - instance

    def bounds(self, instance):
        if not self.limited:
            return None
        low = {"height": jnp.zeros(()), "rate": jnp.ones((1,))}
        return low, {"height": jnp.full((), 0.9), "rate": jnp.full((1,), 9.0)}


def decays(count: int, seed: int = 1) -> np.ndarray:
    """Draw instances of `Decay`."""
    return np.asarray(jax.vmap(Decay().sample)(jax.random.split(jax.random.key(seed), count)), float)


def decay_rates(count: int, seed: int = 1) -> np.ndarray:
    """Return the rates of these instances."""
    keys = jax.random.split(jax.random.key(seed), count)
    return np.asarray(jax.vmap(lambda key: jax.random.uniform(key, minval=0.5, maxval=2.0))(keys))
