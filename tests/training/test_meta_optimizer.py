"""The meta-optimizer, and what it says of the noise of meta-gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bygrad.metagrads import Replay
from bygrad.optimizers import LSTM
from bygrad.problems import Quadratic
from bygrad.training import Recipe, Stepped, meta_train
from bygrad.training.meta_optimizer import MEAN_DECAY, meta_optimizer, running_signal_to_noise

STEPS, SIZE, SIGNAL = 30, 40, 0.5


def after(gradients: jax.Array, clip: float = jnp.inf) -> tuple[jax.Array, tuple]:
    """Feed gradients `[steps, n]` to the meta-optimizer; return its directions and its last state."""
    moving = meta_optimizer(clip, 0.99)

    def step(state: tuple, gradient: jax.Array) -> tuple[tuple, jax.Array]:
        directions, state = moving.update({"theta": gradient}, state)
        return state, directions["theta"]

    state, directions = jax.lax.scan(step, moving.init({"theta": gradients[0]}), gradients)
    return directions, state


def noisy(key: jax.Array) -> jax.Array:
    """Gradients of squared norm `SIGNAL` and a noise of variance `SIZE`."""
    mean = jnp.full(SIZE, (SIGNAL / SIZE) ** 0.5)
    return mean + jax.random.normal(key, (STEPS, SIZE))


def test_the_meta_optimizer_is_adam_on_clipped_gradients():
    gradients = noisy(jax.random.key(0))
    adam = optax.chain(optax.clip_by_global_norm(0.3), optax.scale_by_adam(b2=0.99))
    state, expected = adam.init(gradients[0]), []
    for gradient in gradients:
        direction, state = adam.update(gradient, state)
        expected.append(direction)
    np.testing.assert_allclose(after(gradients, clip=0.3)[0], jnp.stack(expected), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("steps", [2, 5, STEPS])
def test_the_ratio_is_that_of_weighted_means(steps):
    gradients = np.asarray(noisy(jax.random.key(1)), np.float64)[:steps]
    weights = MEAN_DECAY ** np.arange(steps)[::-1]
    weights /= weights.sum()
    square, mean = weights @ (gradients**2).sum(1), weights @ gradients
    noise = (square - mean @ mean) / (1 - weights @ weights)
    ours = running_signal_to_noise(after(jnp.asarray(gradients, jnp.float32))[1])
    assert float(ours) == pytest.approx(square / noise, rel=1e-4)


@pytest.mark.parametrize("times", [0.0, 1.0, 8.0])
def test_its_inverse_is_the_share_of_noise(times):
    """1 / ratio times the mean square is the noise, without bias; so over many runs the shares add up."""

    def shares(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        mean = jnp.full(SIZE, (times * SIGNAL / SIZE) ** 0.5)
        _, state = after(mean + jax.random.normal(key, (STEPS, SIZE)))
        square = state[1] / (1 - MEAN_DECAY**STEPS)
        return square / running_signal_to_noise(state), square

    noise, square = (np.asarray(it) for it in jax.jit(jax.vmap(shares))(jax.random.split(jax.random.key(2), 2_000)))
    for found, true in ((noise, SIZE), (square, SIZE + times * SIGNAL)):
        assert abs(found.mean() - true) < 4 * found.std() / len(found) ** 0.5


def test_gradients_without_noise_have_a_large_ratio_and_a_single_one_has_none():
    same = jnp.ones((STEPS, SIZE))
    assert float(running_signal_to_noise(after(same)[1])) > 1e5
    assert np.isnan(running_signal_to_noise(after(same[:1])[1]))


def test_every_meta_step_tells_how_clear_its_gradient_is():
    recipe = Recipe(horizon=4, truncation=2, instances=2, meta_steps=4, validation_runs=2, estimator=Replay(0.5))
    steps = meta_train(LSTM(jax.random.key(0), (2,)), Quadratic(2), recipe).log.of(Stepped)
    assert steps[0].signal_to_noise is None  # one alone has no noise to be seen
    assert all(step.signal_to_noise > 0 for step in steps[1:])
