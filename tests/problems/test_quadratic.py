"""Quadratics against NumPy, and the levels at which the paper's curves start."""

import jax
import numpy as np
import pytest

from bygrad.problems import Quadratic

DISTRIBUTIONS = ["uniform", "gaussian"]


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("dimension", [1, 10])
def test_loss_and_gradient(distribution, dimension):
    family = Quadratic(dimension, distribution)
    with jax.enable_x64(True):
        sample_key, init_key = jax.random.split(jax.random.key(0))
        instance = family.sample(sample_key)
        params = family.init(instance, init_key)
        value, grads = jax.value_and_grad(family.loss)(params, instance, None)
    matrix, target = map(np.asarray, instance)
    assert matrix.shape == (dimension, dimension)
    assert matrix.dtype == np.float64
    residual = matrix @ np.asarray(params) - target
    np.testing.assert_allclose(value, residual @ residual, rtol=1e-13)
    np.testing.assert_allclose(grads, 2 * matrix.T @ residual, rtol=1e-12)


@pytest.mark.parametrize(("distribution", "level"), [("uniform", 10 / 3), ("gaussian", 10)], ids=DISTRIBUTIONS)
def test_the_mean_loss_at_the_start(distribution, level):
    family = Quadratic(distribution=distribution)

    def initial(key: jax.Array) -> jax.Array:
        instance = family.sample(key)
        return family.loss(family.init(instance, jax.random.fold_in(key, 1)), instance, None)

    losses = np.asarray(jax.vmap(initial)(jax.random.split(jax.random.key(1), 4000)))
    assert abs(losses.mean() - level) < 4 * losses.std() / len(losses) ** 0.5


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_matrix_and_target_have_their_distribution(distribution):
    matrix, target = jax.vmap(Quadratic(distribution=distribution).sample)(jax.random.split(jax.random.key(2), 2000))
    mean, variance, fourth = {"uniform": (1 / 2, 1 / 12, 1 / 80), "gaussian": (0, 1, 3)}[distribution]
    for draws in (np.ravel(matrix), np.ravel(target)):
        assert abs(draws.mean() - mean) < 4 * (variance / draws.size) ** 0.5
        assert abs(draws.var() - variance) < 4 * ((fourth - variance**2) / draws.size) ** 0.5
    if distribution == "uniform":
        assert np.min(matrix) >= 0 and np.max(matrix) < 1
    assert abs(np.corrcoef(np.asarray(matrix)[:, 0, 0], np.asarray(target)[:, 0])[0, 1]) < 4 / 2000**0.5


@pytest.mark.parametrize("scale", [0.01, 2.0])
def test_the_start_has_its_scale(scale):
    family = Quadratic(scale=scale)
    starts = jax.vmap(lambda key: family.init(family.sample(key), key))(jax.random.split(jax.random.key(3), 1000))
    assert abs(np.std(starts) / scale - 1) < 4 / (2 * starts.size) ** 0.5


@pytest.mark.parametrize("fields", [{"dimension": 0}, {"distribution": "cauchy"}, {"scale": -1.0}], ids=str)
def test_what_does_not_exist_is_refused(fields):
    with pytest.raises((ValueError, TypeError), match=next(iter(fields))):
        Quadratic(**fields)
