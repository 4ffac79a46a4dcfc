"""Replay: cotangents by hand, and blocks that leave no trace."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bygrad.optimizers import LSTM, SGD, Coordinatewise
from bygrad.problems import Quadratic
from bygrad.unroll import Trajectory, begin, cotangents, replay, replay_coordinates, rollout

pytestmark = pytest.mark.core


def block_of(size: int) -> type[LSTM]:
    class Blocked(LSTM):
        @property
        def block(self) -> int:
            return size

    return Blocked


def test_cotangents_are_the_sums_of_the_gradients_that_follow():
    grads = {"p": jnp.array([[[1.0], [10.0]], [[2.0], [20.0]], [[4.0], [40.0]]])}  # [steps, instances, 1]
    trajectory = Trajectory(
        start=(),
        grads=grads,
        params=grads,
        value=jnp.zeros((3, 2)),
        key=jax.random.split(jax.random.key(0), (3, 2)),
        end_grads={"p": jnp.array([[8.0], [80.0]])},
        end_value=jnp.zeros(2),
    )
    expected = [[[14], [140]], [[12], [120]], [[8], [80]]]
    np.testing.assert_array_equal(cotangents(trajectory)["p"], expected)


def test_replay_of_gradient_descent_has_a_closed_form():
    family, rate = Quadratic(3), 0.05
    inner = begin(SGD(rate), family, jax.random.split(jax.random.key(0), 2))
    _, trajectory = rollout(SGD(rate), family, inner, 4)
    weights = cotangents(trajectory)
    # Updates are -rate times the gradient, so their derivative is minus the gradient.
    expected = -np.sum(np.asarray(trajectory.grads) * np.asarray(weights))
    np.testing.assert_allclose(replay(SGD(rate), trajectory, weights).learning_rate, expected, rtol=1e-5)


@pytest.mark.parametrize("block", [1, *(pytest.param(it, marks=pytest.mark.slow) for it in (4, 10)), 7, 1000])
def test_the_size_of_a_block_leaves_no_trace(block):
    count = 10
    with jax.enable_x64(True):
        optimizer = eqx.filter_jit(block_of(block))(jax.random.key(0), (3, 2))
        draw = np.random.default_rng(0).standard_normal
        grads, cots = (jnp.asarray(draw((3, count))) for _ in range(2))
        state = jax.tree.map(lambda leaf: jnp.asarray(draw(leaf.shape)), optimizer.start((count,)))

        def products(optimizer: LSTM) -> jax.Array:
            total, at = jnp.zeros(()), state
            for grad, cot in zip(grads, cots, strict=True):
                update, at = optimizer.step(grad, at)
                total += update @ cot
            return total

        ours = eqx.filter_jit(replay_coordinates)(optimizer, grads, state, cots)
        whole = eqx.filter_jit(eqx.filter_grad(products))(optimizer)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-14)


class Ratio(Coordinatewise):
    """Divides by its state, which is 1 at the start and never 0."""

    log_rate: jax.Array

    dtype = property(lambda self: jnp.float32)
    block = property(lambda self: 8)

    def start(self, shape):
        return jnp.ones(shape)

    def step(self, grads, state):
        state = 0.9 * state + 0.1 * jnp.abs(grads)
        return -jnp.exp(self.log_rate) * grads / state, state


def test_what_fills_a_block_up_is_what_the_rule_has_seen():
    """Updates are the rate times something, so that the derivative by its logarithm is the product with the updates."""
    rule, family = Ratio(jnp.asarray(-3.0)), Quadratic(10)
    inner = begin(rule, family, jax.random.split(jax.random.key(0), 1))
    end, trajectory = rollout(rule, family, inner, 2)
    ones = jnp.ones_like(trajectory.grads)
    moved = np.sum(np.asarray(end.params - inner.params))
    np.testing.assert_allclose(replay(rule, trajectory, ones).log_rate, moved, rtol=1e-5)


def test_coordinates_without_cotangent_count_for_nothing():
    optimizer = LSTM(jax.random.key(0), (3, 2))
    draw = np.random.default_rng(0).standard_normal
    grads, cots = (jnp.asarray(draw((3, 6)), jnp.float32) for _ in range(2))
    replayed = eqx.filter_jit(replay_coordinates)
    some = replayed(optimizer, grads[:, :4], optimizer.start((4,)), cots[:, :4])
    all_of_them = replayed(optimizer, grads, optimizer.start((6,)), cots.at[:, 4:].set(0))
    nothing = replayed(optimizer, grads, optimizer.start((6,)), jnp.zeros_like(cots))
    for a, b, zero in zip(*map(jax.tree.leaves, (some, all_of_them, nothing)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
        assert not np.any(zero)
