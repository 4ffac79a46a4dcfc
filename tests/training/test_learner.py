"""A meta-step's rate, written again in NumPy."""

from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from bygrad.metagrads.base import mean_of_live
from bygrad.problems import Quadratic
from bygrad.training import Recipe
from bygrad.training.devices import AXIS, Devices
from bygrad.training.learner import Pace
from bygrad.unroll import Windows


@pytest.mark.parametrize("spent", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("warmup", [0, 5])
def test_the_meta_learning_rate_rises_and_falls_along_a_cosine(warmup, spent):
    pace = Pace.of(Recipe(meta_steps=20, meta_learning_rate=0.03, warmup=warmup))
    for step in (0, 4, 10, 20):
        progress = max(step / 20, spent)  # of the steps or of the time, whichever ends first
        expected = 0.03 * min((step + 1) / max(warmup, 1), 1) * (1 + np.cos(np.pi * progress)) / 2
        np.testing.assert_allclose(pace.rate(jnp.int32(step), jnp.float32(spent)), expected, rtol=1e-5, atol=1e-8)


def test_devices_count_by_what_is_left_of_their_instances():
    """By `vmap` in the place of three devices, of which the last has lost all of its instances."""
    devices, windows = Devices(Mock(Mesh, size=3), 0), Windows(Quadratic(2), 1, 1, 2, axis=AXIS)
    live = np.array([[1, 1], [1, 0], [0, 0]], bool)
    gradients, losses = np.array([[1.0, 2.0], [5.0, np.nan], [np.inf, np.nan]]), np.array([[3.0, 4.0], [8, 9], [1, 1]])

    def mean(gradients, losses, live):
        # What comes back from a replay of none is rubbish.
        total = jnp.where(jnp.any(live), jnp.sum(jnp.where(live, gradients, 0)) / 2, jnp.nan)
        estimate = mean_of_live(windows, {"a": total}, losses, live)
        return devices.mean((estimate.gradient["a"], estimate.loss, estimate.lost))

    found = jax.vmap(mean, axis_name=AXIS)(jnp.asarray(gradients), jnp.asarray(losses), jnp.asarray(live))
    for values, expected in zip(found, (8 / 3, 5.0, 0.5), strict=True):
        np.testing.assert_allclose(values, 3 * [expected], rtol=1e-6)
