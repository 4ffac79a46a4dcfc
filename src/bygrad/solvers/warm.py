"""A learned start of ADMM: the solution, its multipliers and a penalty, from the instance."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from .._core.types import Instance, Scalar
from .learned import Whitening, network, unit_of, vector_of

WIDTH = 128
"""Hidden units of each of the two layers: the network costs as much as one or two iterations."""

THRESHOLD = 0.1
"""What thresholds begin with, in units of a multiplier's spread: half and twice as much prove as many proposals."""


class LearnedWarmStart(eqx.Module):
    r"""A network from an instance to $p$ and $y$ at the solution, and to a factor on the penalty.

    It is used once, before the first iteration, so the guarantee is that of `ADMM`, which converges from any start.

    **Arguments:** `network`: from the whitened instance to the whitened $(p, y)$, and $\log \rho$ relative to the
    classical penalty. `linear`: a linear map that is added, the least-squares fit of the examples. `threshold`: by how
    much multipliers are brought nearer to zero (soft-thresholding), through softplus, in units of their spread. Those
    of rows that nothing presses against are zero exactly (complementary slackness), which a smooth function never is,
    and a little of each makes a bound loose: without, several times as many proposals of a dispatch are not proven.
    None in files from before they were there.
    """

    network: eqx.nn.MLP
    linear: eqx.nn.Linear
    whitening: Whitening
    threshold: Float[Array, " m"] | None
    size: int = eqx.field(static=True)

    @classmethod
    def fitted(
        cls, instances: PyTree, solutions: Float[Array, "rows o"], size: int, key: PRNGKeyArray
    ) -> "LearnedWarmStart":
        """Return the best linear function from instances to $(p, y)$; the network is ready to be trained.

        `size`: how many of the numbers in a row of `solutions` are $p$.
        """
        vectors = jax.vmap(vector_of)(instances)
        mean, spread = jnp.mean(solutions, axis=0), jnp.std(solutions, axis=0)
        # What moves by rounding alone is in units of the p, or the y, that moves most, and those are 1 at most.
        largest = jnp.stack([jnp.max(part, initial=0.0) for part in (spread[:size], spread[size:])])
        scale = unit_of(spread, jnp.minimum(largest, 1.0)[(jnp.arange(spread.size) >= size).astype(int)])
        whitening = eqx.tree_at(
            lambda it: (it.params_mean, it.params_scale),
            Whitening.of(vectors, solutions),
            (mean, scale),
        )
        blank = cls.blank(whitening, size, key)
        seen = jax.vmap(whitening.instance)(vectors)
        ridge = 1e-4 * len(seen) * jnp.eye(seen.shape[1])
        targets = (solutions - mean) / scale
        weight = jnp.linalg.solve(seen.T @ seen + ridge, seen.T @ targets).T
        return eqx.tree_at(lambda it: it.linear.weight, blank, weight)

    @classmethod
    def blank(cls, whitening: Whitening, size: int, key: PRNGKeyArray, thresholds: bool = True) -> "LearnedWarmStart":
        """Return a start that answers the mean, whatever the instance, but for its thresholds, if it has them."""
        inputs, outputs = whitening.instance_mean.size, whitening.params_mean.size
        untrained = network(inputs, outputs + 1, WIDTH, jax.nn.relu, key)
        last = untrained.layers[-1]
        zero = eqx.tree_at(lambda it: (it.weight, it.bias), last, (jnp.zeros_like(last.weight), jnp.zeros(outputs + 1)))
        linear = eqx.nn.Linear(inputs, outputs, use_bias=False, key=key)
        linear = eqx.tree_at(lambda it: it.weight, linear, jnp.zeros((outputs, inputs)))
        threshold = jnp.full(outputs - size, math.log(math.expm1(THRESHOLD))) if thresholds else None
        return cls(eqx.tree_at(lambda it: it.layers[-1], untrained, zero), linear, whitening, threshold, size)

    def __call__(self, instance: Instance) -> tuple[Float[Array, " n"], Float[Array, " m"], Scalar]:
        """Return params, multipliers of the inequality rows, and the logarithm of a factor on the penalty."""
        fixed = jax.lax.stop_gradient(self.whitening)
        seen = self.whitening.instance(instance)
        raw = self.network(seen)
        found = fixed.params_mean + fixed.params_scale * (self.linear(seen) + raw[:-1])
        x, dual = found[: self.size], found[self.size :]
        if self.threshold is not None:
            least = fixed.params_scale[self.size :] * jax.nn.softplus(self.threshold)
            dual = jnp.sign(dual) * jnp.maximum(jnp.abs(dual) - least, 0.0)
        return x, dual, jnp.clip(raw[-1], -3.0, 3.0)
