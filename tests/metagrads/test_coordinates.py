"""Replay of a random part of the coordinates: unbiased, as a biased variant of the same test shows."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from bygrad.metagrads import Replay, choose_coordinates
from bygrad.optimizers import LSTM, Adam
from bygrad.problems import MLPClassifier, ProblemFamily
from bygrad.unroll import Windows, rollout, step_keys

Choice = Callable[[jax.Array, int, jax.Array], tuple[jax.Array, jax.Array]]


def deviation(draws: np.ndarray, expected: np.ndarray) -> float:
    """Largest distance between the mean of `draws` `[n, entries]` and `expected`, in standard errors."""
    error = draws.std(axis=0, ddof=1) / len(draws) ** 0.5
    return float(np.max(np.abs(draws.mean(axis=0) - expected) / np.maximum(error, 1e-6 * np.abs(expected) + 1e-30)))


def unweighted(size: jax.Array, count: int, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Biased: as if all coordinates had been equally likely."""
    chosen, weight = choose_coordinates(size, count, key)
    return chosen, jnp.full_like(weight, size.shape[0] / count)


def the_largest(size: jax.Array, count: int, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Biased: always the largest, scaled up."""
    chosen = jnp.argsort(-size)[:count]
    return chosen, jnp.full(count, size.shape[0] / count)


def sums(choose: Choice, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Weighted sums `[draws, 3]` of vectors that belong to 20 coordinates, some of them of size zero, and the truth."""
    rng = np.random.default_rng(0)
    size = np.exp(rng.uniform(-6, 2, 20)) * (rng.random(20) > 0.2)
    vectors = rng.standard_normal((20, 3)) * np.where(size[:, None] > 0, 1 + size[:, None], 0)

    def draw(key: jax.Array) -> jax.Array:
        chosen, weight = choose(jnp.asarray(size, jnp.float32), count, key)
        return weight @ jnp.asarray(vectors, jnp.float32)[chosen]

    draws = np.asarray(jax.vmap(draw)(jax.random.split(jax.random.key(count), 20_000)), np.float64)
    return draws, vectors.sum(axis=0)


@pytest.mark.parametrize("units", [2.0**31, 64.0])
@pytest.mark.parametrize("count", [1, 3, 8, 20])
def test_weighted_sums_are_right_on_average(count, units, monkeypatch):
    """However coarsely the shares are rounded: 64 parts for 20 coordinates are as 2**31 for 600 million."""
    monkeypatch.setattr("bygrad.metagrads.replay.UNITS", units)
    assert deviation(*sums(choose_coordinates, count)) < 4


def test_among_a_million_equal_coordinates_every_second_is_taken():
    """Also where the point is close to the end of an interval: an error of the ends would change some of them."""
    n, choose = 1_000_000, jax.jit(choose_coordinates, static_argnums=1)
    for seed in range(4):
        key = jax.random.key(seed)
        chosen, weight = choose(jnp.full(n, 0.1), n // 2, key)
        second = int(jax.random.uniform(key) >= 0.5)
        np.testing.assert_array_equal(chosen, np.arange(second, n, 2))
        np.testing.assert_array_equal(weight, 2.0)


@pytest.mark.parametrize("bad", [*(pytest.param(it, marks=pytest.mark.slow) for it in (np.nan, np.inf)), 3e38])
def test_what_is_not_finite_shows(bad, windows):
    """The last one is finite itself, but the sum is not."""
    size = jnp.ones(8).at[jnp.array([2, 3])].set(bad)
    assert np.all(np.isnan(choose_coordinates(size, 4, jax.random.key(0))[1]))

    optimizer = eqx.filter_jit(LSTM)(jax.random.key(0), (3,))
    state = windows.begin(optimizer, jax.random.key(1))
    end, trajectory = rollout(optimizer, windows.family, state, windows.truncation)
    weights = jnp.ones_like(trajectory.grads).at[0, 0, jnp.array([2, 3])].set(bad)
    gradient = Replay(0.3)._replay(optimizer, trajectory, weights, keys=end.key)
    assert not any(np.any(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("choose", [unweighted, the_largest])
def test_a_biased_choice_would_be_noticed(choose):
    assert deviation(*sums(choose, 3)) > 10


def test_more_coordinates_give_a_smaller_error():
    spreads = [sums(choose_coordinates, count)[0].std(axis=0).mean() for count in (1, 3, 8, 20)]
    assert spreads == sorted(spreads, reverse=True)
    assert spreads[-1] < 0.25 * spreads[0]


def test_coordinates_of_size_zero_are_never_drawn():
    size = jnp.array([0.0, 1e-20, 0.0, 5.0, 0.0, 1.0, 0.0])
    chosen, weight = jax.vmap(lambda key: choose_coordinates(size, 4, key))(jax.random.split(jax.random.key(0), 2000))
    assert set(np.unique(chosen)) == {1, 3, 5}
    assert np.all(np.isfinite(weight)) and np.all(weight > 0)


@pytest.mark.parametrize("count", [1, 5])
def test_no_sizes_give_no_weights(count):
    chosen, weight = choose_coordinates(jnp.zeros(5), count, jax.random.key(0))
    assert np.all((chosen >= 0) & (chosen < 5))
    np.testing.assert_array_equal(weight, np.zeros(count))


class WholeSet(ProblemFamily):
    """A perceptron without minibatches: its runs do not depend on keys, only the choice of coordinates does."""

    inner: MLPClassifier

    def sample(self, key):
        return ()

    def init(self, instance, key):
        return self.inner.init((), key)

    def loss(self, params, instance, key):
        return self.inner.loss(params, (), None)


@pytest.fixture(scope="module")
def windows() -> Windows:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (20, 6), dtype=np.uint8), rng.integers(0, 3, 20, dtype=np.int32)
    # The sixth pixel is dark, so that some coordinates have no gradient.
    images[:, 5] = 0
    family = MLPClassifier(jnp.asarray(images), jnp.asarray(labels), classes=3, hidden=4, scale=1.0)
    return Windows(WholeSet(family), horizon=3, truncation=3, instances=2)


def test_a_part_of_the_coordinates_gives_the_meta_gradient_on_average(windows):
    optimizer = eqx.filter_jit(LSTM)(jax.random.key(0), (3,))
    state = windows.begin(optimizer, jax.random.key(1))

    def gradient(estimator: Replay, key: jax.Array) -> jax.Array:
        again = eqx.tree_at(lambda it: it.key, state, jax.random.split(key, 2))
        return jax.flatten_util.ravel_pytree(estimator.estimate(optimizer, windows, again)[0].gradient)[0]

    draws = jax.jit(jax.vmap(lambda key: gradient(Replay(0.3), key)))(jax.random.split(jax.random.key(2), 2000))
    exact = jax.jit(lambda key: gradient(Replay(), key))(jax.random.key(3))
    draws, exact = np.asarray(draws, np.float64), np.asarray(exact, np.float64)
    assert np.all(draws.std(axis=0) > 0)
    assert deviation(draws, exact) < 4
    assert deviation(0.9 * draws, exact) > 4


def test_all_coordinates_or_an_optimizer_that_needs_them_all_give_the_exact_one(windows):
    optimizer = Adam()
    state = eqx.filter_jit(windows.begin)(optimizer, jax.random.key(1))
    part, whole = (eqx.filter_jit(it.estimate)(optimizer, windows, state)[0] for it in (Replay(0.3), Replay(1.0)))
    for a, b in zip(jax.tree.leaves(part), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("part", [0.0, -0.5, 1.5, float("nan")])
def test_a_part_outside_of_its_range_is_refused(part):
    with pytest.raises(ValueError, match=r"give a number above 0 and at most 1"):
        Replay(part)


class Narrow(ProblemFamily):
    """Cotangents whose squares float16 cannot hold."""

    def sample(self, key):
        return ()

    def init(self, instance, key):
        return 0.01 * jax.random.normal(key, (64,), jnp.float16)

    def loss(self, params, instance, key):
        return jnp.mean(params.astype(float) ** 2)


def test_small_cotangents_in_half_precision_are_not_taken_for_none():
    optimizer, windows = LSTM(jax.random.key(0), (4,)), Windows(Narrow(), 20, 20, 4)
    begun = windows.begin(optimizer, jax.random.key(1))
    exact, part = (
        jax.flatten_util.ravel_pytree(eqx.filter_jit(Replay(share).estimate)(optimizer, windows, begun)[0].gradient)[0]
        for share in (1.0, 0.9)
    )
    np.testing.assert_allclose(part, exact, rtol=0.5, atol=0.2 * float(jnp.max(jnp.abs(exact))))


def test_coordinates_are_not_drawn_from_a_key_of_the_next_step(windows, monkeypatch):
    drawn, optimizer = [], LSTM(jax.random.key(0), (2,))
    monkeypatch.setattr(Replay, "_replay", lambda *_, keys: drawn.append(keys))
    state = Replay().init(optimizer, windows, jax.random.key(1))
    _, end = Replay(0.5).estimate(optimizer, windows, state)
    data = jax.random.key_data
    for used in jax.vmap(step_keys)(end.key, end.step):
        assert not np.any(np.all(data(used) == data(drawn[0]), axis=-1))
