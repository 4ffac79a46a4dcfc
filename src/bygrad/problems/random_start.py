"""A family whose problems start nearer to zero, or further from it."""

import dataclasses
import math

import equinox as eqx
import jax
import jax.numpy as jnp

from .._core.types import Instance, Params, PRNGKeyArray, Scalar
from .base import ProblemFamily, check_is_family, differentiable_loss


class RandomStart(ProblemFamily):
    r"""The problems of another family, begun from $c_i \, p_i$: every tensor of params with a factor of its own.

    Each instance draws them, uniform in their logarithms. The sizes of a network's initial weights decide how small its
    first gradients are, and with every further layer more so: an optimizer that is trained here has met gradients as
    small as a deeper network's.

    **Arguments:** `family`: whose problems. `low`, `high`: smallest and largest factor, positive.
    """

    family: ProblemFamily
    low: float = eqx.field(static=True, default=0.01)
    high: float = eqx.field(static=True, default=10.0)

    def __check_init__(self) -> None:
        check_is_family(self.family)
        if not 0 < self.low <= self.high < math.inf:
            raise ValueError(
                f"low={self.low}, high={self.high}: no factor can be drawn between them. Give 0 < low <= high."
            )

    def sample(self, key: PRNGKeyArray) -> Instance:
        own, factors = jax.random.split(key)
        instance = self.family.sample(own)
        structure = jax.tree.structure(jax.eval_shape(self.family.init, instance, own))
        low, high = math.log(self.low), math.log(self.high)
        drawn = jnp.exp(jax.random.uniform(factors, (structure.num_leaves,), minval=low, maxval=high))
        return instance, jax.tree.unflatten(structure, list(drawn))

    def init(self, instance: Instance, key: PRNGKeyArray) -> Params:
        inner, factors = instance
        return jax.tree.map(
            lambda leaf, factor: (factor * leaf).astype(leaf.dtype), self.family.init(inner, key), factors
        )

    def loss(self, params: Params, instance: Instance, key: PRNGKeyArray | None) -> Scalar:
        return differentiable_loss(self.family)(params, instance[0], key)

    def parts(self) -> tuple[tuple[ProblemFamily, float], ...]:
        return tuple((dataclasses.replace(self, family=part), weight) for part, weight in self.family.parts())

    def held_out_loss(self, params: Params, instance: Instance, key: PRNGKeyArray | None) -> Scalar:
        return self.family.held_out_loss(params, instance[0], key)
