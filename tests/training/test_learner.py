"""A meta-step's rate and Adam, written again in NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from bygrad.training import Recipe
from bygrad.training.learner import Pace, _meta_optimizer


@pytest.mark.parametrize("spent", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("warmup", [0, 5])
def test_the_meta_learning_rate_rises_and_falls_along_a_cosine(warmup, spent):
    pace = Pace.of(Recipe(meta_steps=20, meta_learning_rate=0.03, warmup=warmup))
    for step in (0, 4, 10, 20):
        progress = max(step / 20, spent)  # of the steps or of the time, whichever ends first
        expected = 0.03 * min((step + 1) / max(warmup, 1), 1) * (1 + np.cos(np.pi * progress)) / 2
        np.testing.assert_allclose(pace.rate(jnp.int32(step), jnp.float32(spent)), expected, rtol=1e-5, atol=1e-8)


def test_meta_gradients_are_clipped_and_adam_has_the_decays_of_the_recipe():
    clip, b1, b2 = 0.5, 0.9, 0.95
    optimizer = _meta_optimizer(jnp.float32(clip), jnp.float32(b2))
    state, mean, square = optimizer.init(jnp.zeros(2)), 0.0, 0.0
    for step, grad in enumerate(np.array([[30.0, -40.0], [0.003, 0.001], [0.1, 0.2]]), 1):
        directions, state = optimizer.update(jnp.asarray(grad, jnp.float32), state)
        clipped = grad * min(1, clip / np.linalg.norm(grad))
        mean, square = b1 * mean + (1 - b1) * clipped, b2 * square + (1 - b2) * clipped**2
        expected = mean / (1 - b1**step) / (np.sqrt(square / (1 - b2**step)) + 1e-8)
        np.testing.assert_allclose(directions, expected, rtol=1e-4)
