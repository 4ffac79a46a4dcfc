"""A learned start of ADMM: the rows and multipliers of the solution, and a penalty, from the instance."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .._core.types import Instance, Scalar
from .learned import Whitening

WIDTH = 64
"""Hidden units: the network costs as much as a few iterations."""


class LearnedWarmStart(eqx.Module):
    r"""A network from an instance to $A p$ and $y$ at the solution, for the inequality rows, and to $\log \rho$.

    An untrained network answers the mean of the examples that it was made from. It is used once, before the first
    iteration, so the guarantee is that of `ADMM`, which converges from any start.
    """

    network: eqx.nn.MLP
    whitening: Whitening
    linear: Float[Array, "outputs d"]

    @classmethod
    def untrained(
        cls, whitening: Whitening, linear: Float[Array, "outputs d"], key: PRNGKeyArray
    ) -> "LearnedWarmStart":
        """Return a start that is a linear function of the instance, ready to be trained."""
        inputs, outputs = whitening.instance_mean.size, whitening.params_mean.size
        network = eqx.nn.MLP(inputs, outputs + 1, WIDTH, 2, activation=jax.nn.gelu, key=key)
        last = network.layers[-1]
        zero = eqx.tree_at(lambda it: (it.weight, it.bias), last, (jnp.zeros_like(last.weight), jnp.zeros(outputs + 1)))
        return cls(eqx.tree_at(lambda it: it.layers[-1], network, zero), whitening, linear)

    def __call__(self, instance: Instance) -> tuple[Float[Array, " m"], Float[Array, " m"], Scalar]:
        """Return rows, multipliers, and the logarithm of a factor on the penalty."""
        fixed = jax.lax.stop_gradient(self.whitening)
        seen = self.whitening.instance(instance)
        raw = self.network(seen)
        found = fixed.params_mean + fixed.params_scale * (self.linear @ seen + raw[:-1])
        rows, multipliers = jnp.split(found, 2)
        return rows, multipliers, jnp.clip(raw[-1], -3.0, 3.0)
