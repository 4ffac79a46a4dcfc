"""A family whose coordinates are measured in random units: Lv et al. (2017), section 3.1."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from .._core.types import Instance, Params, PRNGKeyArray, Scalar
from .base import ProblemFamily, check_is_family, differentiable_loss


class RandomScale(ProblemFamily):
    r"""The problems of another family after a random change of every coordinate's unit: $f_c(p) = f(c \circ p)$.

    Each instance draws $c = e^s$, $s$ uniform in $[-\ell, \ell]$ for every coordinate, and starts from $p_0 / c$, so
    that its losses at the start are those of the other family. A coordinate's gradient is $c$ times as large, and the
    step that is right for it $c$ times as small: an optimizer that is trained here cannot rely on the sizes of the
    gradients of one family.

    **Arguments:** `family`: whose problems. `spread`: $\ell$, at least 0; 3 lets units differ by $e^6 = 400$ times.

    **Source:** Lv, Jiang and Li, *Learning gradient descent: better generalization and longer horizons* (ICML 2017).
    """

    family: ProblemFamily
    spread: float = eqx.field(static=True, default=3.0)

    def __check_init__(self) -> None:
        check_is_family(self.family)
        if not 0 <= self.spread < 40:
            raise ValueError(
                f"spread is {self.spread}, but units are drawn between exp(-spread) and exp(spread), which float32 must"
                " hold. Give a number from 0 to below 40, such as 3."
            )

    def sample(self, key: PRNGKeyArray) -> Instance:
        own, units = jax.random.split(key)
        instance = self.family.sample(own)
        leaves, structure = jax.tree.flatten(jax.eval_shape(self.family.init, instance, own))
        keys = jax.random.split(units, len(leaves))
        scales = [
            jnp.exp(jax.random.uniform(key, leaf.shape, leaf.dtype, -self.spread, self.spread))
            for key, leaf in zip(keys, leaves, strict=True)
        ]
        return instance, jax.tree.unflatten(structure, scales)

    def init(self, instance: Instance, key: PRNGKeyArray) -> Params:
        inner, scales = instance
        return jax.tree.map(jnp.divide, self.family.init(inner, key), scales)

    def loss(self, params: Params, instance: Instance, key: PRNGKeyArray | None) -> Scalar:
        return differentiable_loss(self.family)(self._restored(params, instance), instance[0], key)

    def parts(self) -> tuple[tuple[ProblemFamily, float], ...]:
        return tuple((dataclasses.replace(self, family=part), weight) for part, weight in self.family.parts())

    def held_out_loss(self, params: Params, instance: Instance, key: PRNGKeyArray | None) -> Scalar:
        return self.family.held_out_loss(self._restored(params, instance), instance[0], key)

    def _restored(self, params: Params, instance: Any) -> Params:
        return jax.tree.map(jnp.multiply, params, instance[1])
