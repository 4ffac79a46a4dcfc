"""What a coordinatewise optimizer sees of a gradient."""

import hypothesis
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bygrad.optimizers import PREPROCESSORS, LogSign, Scaled

pytestmark = pytest.mark.core


def two_branches(grads: np.ndarray, p: float) -> np.ndarray:
    """Appendix A of the paper, as it is written there."""
    inputs = []
    for g in np.asarray(grads, np.float64):
        inputs.append((np.log(abs(g)) / p, np.sign(g)) if abs(g) >= np.exp(-p) else (-1, np.exp(p) * g))
    return np.array(inputs).T


def test_features_are_counted():
    for kind in PREPROCESSORS.values():
        assert kind()(jnp.ones((2, 3))).shape == (kind.features, 2, 3)


@pytest.mark.parametrize("p", [1.0, 5.0, 10.0, 30.0])
@pytest.mark.parametrize(("x64", "tolerance"), [(True, 1e-12), (False, 1e-5)], ids=["float64", "float32"])
def test_log_and_sign_are_those_of_the_paper(p, x64, tolerance):
    border = np.exp(-p)
    sizes = [0.0, 1e-300, 1e-45, 1e-30, border / 2, border * (1 - 1e-4), border, border * (1 + 1e-4), 1.0, 1e30]
    grads = np.array(sizes + [-size for size in sizes])
    with jax.enable_x64(x64):
        grads = jnp.asarray(grads)
        inputs = LogSign(p)(grads)
        assert inputs.dtype == grads.dtype
        np.testing.assert_allclose(inputs, two_branches(np.asarray(grads), p), rtol=tolerance, atol=tolerance)


@hypothesis.settings(max_examples=30)
@hypothesis.given(hnp.arrays(np.float32, 16, elements={"allow_nan": False, "allow_infinity": False}))
def test_inputs_are_bounded_odd_and_monotone(grads):
    log, direction = np.asarray(LogSign()(jnp.asarray(grads)))
    mirrored = np.asarray(LogSign()(jnp.asarray(-grads)))
    np.testing.assert_array_equal(mirrored, [log, -direction])
    assert log.min() >= -1 and log.max() < 10 and np.abs(direction).max() <= 1
    order = np.argsort(grads)
    assert np.all(np.diff(direction[order]) >= 0)
    assert np.all(np.diff(log[np.argsort(np.abs(grads))]) >= 0)


@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-30, float(np.exp(-10)), 1.0, 1e30], ids=str)
def test_the_derivative_is_finite(size):
    slopes = jax.jacobian(LogSign())(jnp.float32(size))
    assert np.all(np.isfinite(slopes))


def test_scaled_multiplies():
    grads = jnp.array([-2.0, 0.0, 3.0])
    np.testing.assert_array_equal(Scaled()(grads), [grads])
    np.testing.assert_array_equal(Scaled(0.5)(grads), [grads / 2])


@pytest.mark.parametrize("p", [0.0, -1.0, 89.0, float("nan")])
def test_an_empty_range_of_magnitudes_is_refused(p):
    with pytest.raises(ValueError, match=r"range of magnitudes would be empty.*Give a positive number"):
        LogSign(p)
