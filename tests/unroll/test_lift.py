"""Batches of instances: what suits the kind of a rule, and agrees with `vmap`."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bygrad.optimizers import Coordinatewise, Scheduled
from bygrad.optimizers.base import whole_steps
from bygrad.problems import Quadratic
from bygrad.unroll import Windows, lift, lift_by_vmap, rollout

pytestmark = pytest.mark.core


class Fading(Coordinatewise, Scheduled):
    """Gradient descent that stands still at the end of its run; it counts steps for every coordinate, or, wrongly, for
    all at once."""

    horizon: jax.Array
    counts_once: bool = eqx.field(static=True, default=False)

    dtype = property(lambda self: jnp.float32)
    block = property(lambda self: 256)

    def declare(self, horizon):
        return eqx.tree_at(lambda it: it.horizon, self, whole_steps(horizon))

    def start(self, shape):
        count = jnp.zeros(() if self.counts_once else shape)
        return count, jnp.broadcast_to(self.horizon.astype(jnp.float32), (2, *shape))

    def step(self, grads, state):
        count, horizon = state
        return -0.1 * (1 - count / horizon[0]) * grads, (count + 1, horizon)


def test_a_coordinatewise_rule_is_told_the_horizon_of_each_run():
    rule, windows = Fading(jnp.asarray(80, jnp.int32)), Windows(Quadratic(3), 80, 10, 4, shortest=10)
    inner = windows.begin(rule, jax.random.key(0))
    horizons = np.asarray(windows.horizons(inner.key))
    assert len(set(horizons)) > 1
    begun = [how(rule).init(inner.params, windows.horizons(inner.key)) for how in (lift, lift_by_vmap)]
    of_all, of_each = begun[0][1], begun[1][1]  # [2, instances, coordinates], and [instances, 2, coordinates]
    np.testing.assert_array_equal(jnp.moveaxis(of_all, 1, 0), of_each)
    np.testing.assert_array_equal(of_all[0, :, 0], horizons)
    np.testing.assert_array_equal(inner.optimizer_state[1], of_all)
    end, seen = rollout(rule, windows.family, inner, 2)
    rates = 0.1 * (1 - np.arange(2)[:, None] / horizons)[..., None]
    np.testing.assert_allclose(inner.params - np.sum(rates * np.asarray(seen.grads), axis=0), end.params, rtol=1e-5)


def test_a_state_that_has_no_entry_for_each_coordinate_is_refused():
    with pytest.raises(ValueError, match=r"Fading.start.*leaf of shape \(\).*an entry for each.*jnp.zeros\(shape\)"):
        lift(Fading(jnp.asarray(80, jnp.int32), counts_once=True))
