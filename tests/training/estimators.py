"""An estimator with a known gradient, for tests of what is done with it."""

import equinox as eqx
import jax
import jax.numpy as jnp

from bygrad.metagrads import Estimate, Estimator


class Upward(Estimator):
    """Says that every meta-parameter should grow."""

    name: str = eqx.field(static=True, default="upward")

    def init(self, optimizer, windows, key):
        return jnp.int32(0)

    def estimate(self, optimizer, windows, state):
        gradient = jax.tree.map(lambda leaf: -jnp.ones_like(leaf), eqx.filter(optimizer, eqx.is_inexact_array))
        return Estimate(jnp.zeros(()), gradient, jnp.zeros(windows.instances)), state

    def axes(self, optimizer, state):
        return None
