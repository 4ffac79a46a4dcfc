"""What moves the meta-parameters: Adam on clipped meta-gradients, and how clear those are."""

from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from .._core import trees
from .._core.types import Scalar

MEAN_DECAY = 0.9
"""Of the running means of the meta-gradient and of its squared norm."""


def meta_optimizer(clip: Scalar | float, b2: Scalar | float) -> optax.GradientTransformation:
    """Return Adam without its learning rate, on meta-gradients whose norm is clipped."""
    adam = optax.scale_by_adam(b1=MEAN_DECAY, b2=b2)  # pyright: ignore[reportArgumentType]
    return optax.chain(optax.clip_by_global_norm(clip), _mean_square(), adam)  # pyright: ignore[reportArgumentType]


def _mean_square() -> optax.GradientTransformation:
    """Change nothing; keep a running mean of the squared norm."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return updates, MEAN_DECAY * state + (1 - MEAN_DECAY) * jnp.square(trees.global_norm(updates))

    return optax.GradientTransformation(lambda params: jnp.zeros(()), update)


def running_signal_to_noise(meta_state: PyTree) -> Scalar:
    r"""Return the signal-to-noise ratio of a single meta-gradient, from how the last ones differ: about the last ten,
    clipped, as `meta_optimizer` keeps them.

    With $\bar g$ and $\bar q$ the running means of the gradient and of its squared norm, without the bias of their
    start, and $w$ the sum of the squares of their weights,

    $$N = \frac{\bar q - \lVert \bar g \rVert^2}{1 - w}, \qquad \frac{\bar q}{N} = \frac{S + N}{N}$$

    for gradients with a mean of squared norm $S$ and a noise of variance $N$, independent from step to step. Pure noise
    gives about 1, as in `bygrad.metagrads.signal_to_noise`. Of a single meta-gradient nothing can be said, and the
    result is not a number.
    """
    _, square, adam = meta_state
    grown = 1 - MEAN_DECAY**adam.count
    weight = (1 - MEAN_DECAY) / (1 + MEAN_DECAY) * (2 - grown) / grown
    square, mean = square / grown, trees.global_norm(adam.mu) / grown
    # Gradients without noise differ by rounding alone.
    apart = jnp.maximum(square - jnp.square(mean), jnp.finfo(square.dtype).eps * square)
    return jnp.where(adam.count > 1, square * (1 - weight) / apart, jnp.nan)
