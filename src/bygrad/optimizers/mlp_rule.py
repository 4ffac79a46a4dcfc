"""A small perceptron on Adafactor's statistics for every param (Metz et al., 2022)."""

from collections.abc import Sequence
from typing import Any, ClassVar

import equinox as eqx
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
    wire,
)

_ADAM = 6  # among the features: the mean with the shortest memory over the root of the square


class MLPRule(ArrayRule):
    r"""A perceptron that sees 28 statistics of a param and 11 of time, and answers with direction and magnitude.

    $$u = -s\, d\, e^{c\, a}, \qquad (d, a) = \mathrm{MLP}(x / \mathrm{rms}(x), \tanh(t / \tau - 1))$$

    with the root mean square over the array. The decays of the running means are learned too. With two layers of 4
    units these are 197 meta-parameters; the state is 16 bytes a param. Untrained, $d$ is the mean gradient with
    $\beta = 0.9$ over the root of the mean square, as in Adam, in units of its own root mean square: a step of $s$.

    **Arguments:** `key`: draws the weights. `hidden`: units of each hidden layer, at least two; 4 and 4, or 32 and 32,
    in publications. With more than 8, an update takes 8 bytes a param and unit beside the state. `step_size`,
    `magnitude_scale`: $s$ and $c$, by default the published ones.

    **Example:**

        >>> import jax
        >>> from bygrad.optimizers import MLPRule, parameter_count
        >>> parameter_count(MLPRule(jax.random.key(0)))
        197

    **Source:** Metz et al., *Practical tradeoffs between memory, compute, and performance in learned optimizers*
    (2022), where it is called `small_fc_lopt`.
    """

    feature_version: ClassVar[int] = 1

    layers: tuple[Dense, ...]
    decays: Decays
    step_size: float = eqx.field(static=True)
    magnitude_scale: float = eqx.field(static=True)

    def __init__(
        self,
        key: PRNGKeyArray,
        hidden: Sequence[int] = (4, 4),
        step_size: float = 1e-3,
        magnitude_scale: float = 1e-3,
    ):
        self.layers = wire(dense_layers(ADAFACTOR_FEATURES + len(TIMESCALES), hidden, 2, key), _ADAM)
        self.decays = Decays()
        self.step_size, self.magnitude_scale = float(step_size), float(magnitude_scale)

    @property
    def config(self) -> dict[str, Any]:
        hidden = [layer.bias.shape[0] for layer in self.layers[:-1]]
        return {"hidden": hidden, "step_size": self.step_size, "magnitude_scale": self.magnitude_scale}

    @classmethod
    def from_config(cls, config: dict[str, Any], key: PRNGKeyArray | None = None) -> "MLPRule":
        return cls(drawing_key(key), **config)

    def step_of(
        self, grad: Float[Array, "*c"], param: Float[Array, "*c"], moments: Moments, step: Int[Array, ""]
    ) -> tuple[Float[Array, "*c"], Moments]:
        moments = self.decays.take(moments, grad)
        direction, magnitude = perceptron(
            self.layers,
            adafactor_features,
            (grad, param, moments),
            time_features(step, grad.dtype),
            epsilon=1e-5,
        )
        return -self.step_size * direction * jnp.exp(self.magnitude_scale * magnitude), moments
