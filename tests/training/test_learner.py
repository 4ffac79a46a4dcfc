"""A meta-step's rate, written again in NumPy."""

from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from bygrad.metagrads import Estimate
from bygrad.training import Recipe
from bygrad.training.devices import AXIS, Devices
from bygrad.training.learner import Pace, _mean


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
    devices = Devices(Mock(Mesh, size=3), 0)
    gradients, weights = np.array([[1.0, 2.0], [5.0, -6.0], [np.nan, 0.0]]), np.array([1.0, 0.5, 0.0])

    def mean(gradient, weight):
        estimate = Estimate(gradient[0], {"a": gradient}, jnp.zeros(4), lost=1 - weight, weight=weight)
        (gradient, loss), _, _, _, lost = _mean(devices, estimate, None)
        return gradient["a"], loss, lost

    found = jax.vmap(mean, axis_name=AXIS)(jnp.asarray(gradients), jnp.asarray(weights))
    expected = (gradients[0] + 0.5 * gradients[1]) / 1.5
    for gradient, loss, lost in zip(*found, strict=True):
        np.testing.assert_allclose(gradient, expected, rtol=1e-6)
        np.testing.assert_allclose([loss, lost], [expected[0], 0.5], rtol=1e-6)
