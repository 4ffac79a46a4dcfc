"""A meta-step's rate, written again in NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from bygrad.training import Recipe
from bygrad.training.learner import Pace


@pytest.mark.parametrize("spent", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("warmup", [0, 5])
def test_the_meta_learning_rate_rises_and_falls_along_a_cosine(warmup, spent):
    pace = Pace.of(Recipe(meta_steps=20, meta_learning_rate=0.03, warmup=warmup))
    for step in (0, 4, 10, 20):
        progress = max(step / 20, spent)  # of the steps or of the time, whichever ends first
        expected = 0.03 * min((step + 1) / max(warmup, 1), 1) * (1 + np.cos(np.pi * progress)) / 2
        np.testing.assert_allclose(pace.rate(jnp.int32(step), jnp.float32(spent)), expected, rtol=1e-5, atol=1e-8)
