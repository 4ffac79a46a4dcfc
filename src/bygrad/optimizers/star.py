"""STAR: a nominal step plus a learned residual, kept stable by construction (Harrison et al., 2022)."""

from collections.abc import Sequence
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .base import drawing_key
from .features import (
    ADAFACTOR_FEATURES,
    TIMESCALES,
    ArrayRule,
    Decays,
    Dense,
    Moments,
    adafactor_features,
    dense_layers,
    perceptron,
    time_features,
)


class STAR(ArrayRule):
    r"""Adam with three memories at once, plus a preconditioned learned residual, plus weight decay.

    $$u = -\lambda\, e^{c\, a_r} p - \alpha\, e^{c\, a_n} \frac{1}{3} \sum_k \frac{m_k}{\sqrt{v + 10^{-6}}}
    - s\, \frac{d\, e^{c\, a}}{\sqrt{v + 10^{-6}}}$$

    where $(d, a, a_n, a_r)$ are the outputs of a perceptron on the 39 inputs of `MLPRule`. The last layer starts at
    zero: untrained, the residual is nothing and the step is the nominal one. That term, the division of the residual by
    the root of the square, and the decay keep the loop of optimizer and problem contractive well beyond the horizons of
    meta-training. With two layers of 4 units, 207 meta-parameters; the state is 16 bytes a param.

    **Arguments:** `key`: draws the weights. `hidden`: units of each hidden layer, at least two. `nominal_rate`:
    $\alpha$, by default a rate at which Adam trains most small networks. `weight_decay`: $\lambda$, a step.
    `step_size`, `magnitude_scale`: $s$ and $c$, by default the published ones.

    **Example:**

        >>> import jax
        >>> from bygrad.optimizers import STAR, parameter_count
        >>> parameter_count(STAR(jax.random.key(0)))
        207

    **Source:** Harrison, Metz and Sohl-Dickstein, *A closer look at learned optimization: stability, robustness, and
    inductive biases* (NeurIPS 2022), and the class `MLPNomLOpt` of google/learned_optimization ("AdamAggMo").
    """

    feature_version: ClassVar[int] = 1

    layers: tuple[Dense, ...]
    decays: Decays
    nominal_rate: float = eqx.field(static=True)
    weight_decay: float = eqx.field(static=True)
    step_size: float = eqx.field(static=True)
    magnitude_scale: float = eqx.field(static=True)

    def __init__(
        self,
        key: PRNGKeyArray,
        hidden: Sequence[int] = (4, 4),
        nominal_rate: float = 3e-3,
        weight_decay: float = 1e-5,
        step_size: float = 1e-3,
        magnitude_scale: float = 1e-3,
    ):
        self.layers = dense_layers(ADAFACTOR_FEATURES + len(TIMESCALES), hidden, 4, key)
        self.decays = Decays()
        self.nominal_rate, self.weight_decay = float(nominal_rate), float(weight_decay)
        self.step_size, self.magnitude_scale = float(step_size), float(magnitude_scale)

    @property
    def config(self) -> dict[str, Any]:
        return {
            "hidden": [layer.bias.shape[0] for layer in self.layers[:-1]],
            "nominal_rate": self.nominal_rate,
            "weight_decay": self.weight_decay,
            "step_size": self.step_size,
            "magnitude_scale": self.magnitude_scale,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], key: PRNGKeyArray | None = None) -> "STAR":
        return cls(drawing_key(key), **config)

    def step_of(
        self, grad: Float[Array, "*c"], param: Float[Array, "*c"], moments: Moments, step: Int[Array, ""]
    ) -> tuple[Float[Array, "*c"], Moments]:
        moments = self.decays.take(moments, grad)
        direction, *magnitudes = perceptron(
            self.layers,
            adafactor_features,
            (grad, param, moments),
            time_features(step, grad.dtype),
            epsilon=1e-5,
        )
        size, of_nominal, of_decay = (jnp.exp(self.magnitude_scale * magnitude) for magnitude in magnitudes)
        inverse = jax.lax.rsqrt(moments.square + 1e-6)
        nominal = sum(moments.means) / len(moments.means)
        learned = self.nominal_rate * of_nominal * nominal + self.step_size * direction * size
        return -learned * inverse - self.weight_decay * of_decay * param, moments
