"""Celo2's rule: a perceptron's direction in steps of a fixed root mean square (Moudgil et al., 2026)."""

from collections.abc import Sequence
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .base import drawing_key
from .features import (
    ADAFACTOR_FEATURES,
    MEAN_DECAYS,
    ArrayRule,
    Dense,
    Moments,
    adafactor_features,
    dense_layers,
    mean_square,
    perceptron,
    wire,
)

SQUARE_DECAY = 0.95
"""Of the running mean of the square, here."""

_ADAM = 7  # among the features: the mean with the shortest memory over the root of the square


class Celo2(ArrayRule):
    r"""A perceptron chooses the direction of the step of a matrix; the size is left to the learning rate.

    $$u = -\eta \left(\frac{d}{\mathrm{rms}(d)} + \lambda p\right), \qquad d = \mathrm{MLP}(x / \mathrm{rms}(x))$$

    Nothing in it knows the time, the loss or the horizon: the learning rate and its schedule are the user's, as with
    Adam. Steps of one size transfer between widths; they do not shrink near an optimum, so a schedule matters. Arrays
    of rank below 2 get AdamW with 20 times the rate, $\beta_1 = 0.9$ and $\beta_2 = 0.95$, from the same running means.
    With two layers of 8 units, 347 meta-parameters and $\eta$; of the 347, 18 have no gradient: those of a magnitude,
    which the published rule multiplies by zero, and of a third output, which it does not read. The state is 16 bytes a
    param. Untrained, $d$ is Adam's direction without correction of the start.

    The published rule normalizes arrays of rank above 2 over their last two axes; here over all of them. It leaves
    embeddings to AdamW as well: here a `Partition` does, with a part for them.

    **Arguments:** `key`: draws the weights. `hidden`: units of each hidden layer, at least two. `learning_rate`:
    $\eta$, the root mean square of a step; a meta-parameter, and what to tune. `weight_decay`: $\lambda$.

    **Example:**

        >>> import jax
        >>> from bygrad.optimizers import Celo2, parameter_count
        >>> parameter_count(Celo2(jax.random.key(0)))
        348

    **Source:** Moudgil et al., *Celo2* (ICLR 2026), the rule `celo2-base`.
    """

    feature_version: ClassVar[int] = 1

    layers: tuple[Dense, ...]
    learning_rate: Float[Array, "..."]
    weight_decay: float = eqx.field(static=True)

    def __init__(
        self,
        key: PRNGKeyArray,
        hidden: Sequence[int] = (8, 8),
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
    ):
        self.layers = wire(dense_layers(ADAFACTOR_FEATURES + 2, hidden, 3, key), _ADAM)
        self.learning_rate = jnp.asarray(learning_rate, jnp.result_type(float))
        self.weight_decay = float(weight_decay)

    @property
    def config(self) -> dict[str, Any]:
        return {"hidden": [layer.bias.shape[0] for layer in self.layers[:-1]], "weight_decay": self.weight_decay}

    @classmethod
    def from_config(cls, config: dict[str, Any], key: PRNGKeyArray | None = None) -> "Celo2":
        return cls(drawing_key(key), **config)

    def step_of(
        self, grad: Float[Array, "*c"], param: Float[Array, "*c"], moments: Moments, step: Int[Array, ""]
    ) -> tuple[Float[Array, "*c"], Moments]:
        moments = moments.take(grad, square_decay=SQUARE_DECAY)
        if grad.ndim < 2:
            time = (step + 1).astype(grad.dtype)
            square = moments.square / (1 - SQUARE_DECAY**time)
            mean = moments.means[0] / (1 - MEAN_DECAYS[0] ** time)
            # The constant under the root is there for the derivative at zero, and changes no step.
            direction = mean / (jnp.sqrt(square + 1e-30) + 1e-8)
            return -20 * self.learning_rate * (direction + self.weight_decay * param), moments
        direction, *_ = perceptron(self.layers, celo2_features, (grad, param, moments), None, epsilon=1e-9)
        direction = direction * jax.lax.rsqrt(mean_square(direction) + 1e-9)
        return -self.learning_rate * (direction + self.weight_decay * param), moments


def celo2_features(grad: Float[Array, "*c"], param: Float[Array, "*c"], moments: Moments) -> list[Float[Array, "..."]]:
    """Return the 30 inputs: those of `adafactor_features`, the gradient clipped at 0.1 after the gradient, and the
    gradient over the root of the square before the rows."""
    first, *middle = adafactor_features(grad, param, moments)
    statistics, factored = middle[:12], middle[12:]
    normalized = grad * jax.lax.rsqrt(moments.square + 1e-6)
    return [first, jnp.clip(grad, -0.1, 0.1), *statistics, normalized, *factored]
