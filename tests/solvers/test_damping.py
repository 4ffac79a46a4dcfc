"""The classical damping rules: radii that are met, and starts that are far away."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bygrad.problems import LeastSquares
from bygrad.solvers import GainRatio, LevenbergMarquardt, Seen, TrustRegion, solve
from bygrad.solvers.small import SMALL, products_of


def seen(jacobian, residuals, x, *, first=False, ratio=0.5, free=True):
    gram, slope = jacobian.T @ jacobian, jacobian.T @ residuals
    real = lambda value: jnp.asarray(value, float)  # noqa: E731
    return Seen(
        first=jnp.asarray(first),
        taken=jnp.asarray(ratio > 0),
        ratio=real(ratio),
        cost=real(0.5 * residuals @ residuals),
        gained=real(ratio),
        nit=0,
        x=real(x),
        gram=real(gram),
        slope=real(slope),
        scale=real(np.diagonal(gram)),
        free=jnp.broadcast_to(jnp.asarray(free), x.shape),
    )


def length_of(at, damping):
    """The scaled length of a step, by NumPy."""
    gram, slope, scale, free = (np.asarray(it) for it in (at.gram, at.slope, at.scale, at.free))
    gram, slope, scale = gram[np.ix_(free, free)], slope[free], scale[free]
    step = np.linalg.solve(gram + np.diag(np.asarray(damping)[free] * scale), -slope)
    return np.linalg.norm(np.sqrt(scale) * step)


@jax.jit
def after_many(at, state):
    """Damping and factor after 30 steps that are neither poor nor good, so that the radius stays."""

    def again(_, carry):
        damping, factor, state = TrustRegion().next(at, carry[2])
        return damping, jnp.asarray(factor, damping.dtype), state

    return jax.lax.fori_loop(0, 30, again, (jnp.zeros(4), jnp.zeros(()), state))[:2]


@given(seed=st.integers(0, 10**6), share=st.floats(1e-3, 0.5), held=st.booleans())
def test_the_damping_converges_to_the_one_whose_step_is_as_long_as_the_radius(seed, share, held):
    rng = np.random.default_rng(seed)
    with jax.enable_x64(True):
        jacobian, residuals, x = rng.normal(size=(12, 4)), rng.normal(size=12), rng.normal(size=4)
        free = np.array([not held, True, True, True])
        at = seen(jacobian, residuals, x, free=free)
        whole = length_of(at, np.zeros(4))
        radius = share * whole
        damping, factor = after_many(at, (jnp.asarray(radius), jnp.asarray(1.0), jnp.asarray(radius)))
        assert factor == 1 and np.ptp(damping) == 0
        np.testing.assert_allclose(length_of(at, damping), radius, rtol=1e-6)


def test_the_radius_follows_the_gain():
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        jacobian, residuals, x = rng.normal(size=(9, 3)), 100 * rng.normal(size=9), rng.normal(size=3)
        rule = TrustRegion(0.25)
        at = seen(jacobian, residuals, x, first=True, ratio=0.0)
        _, _, state = rule.next(at, rule.start(None, at.x))
        begin = 0.25 * np.linalg.norm(np.sqrt(np.asarray(at.scale)) * x)
        np.testing.assert_allclose(state[0], begin, rtol=1e-12)
        after = {ratio: float(rule.next(seen(jacobian, residuals, x, ratio=ratio), state)[2][0]) for ratio in RATIOS}
        expected = {0.9: 2 * begin, 0.5: begin, 0.1: 0.5 * begin, -1.0: 0.25 * begin}
        assert after == pytest.approx(expected, rel=1e-12)

        # A whole step inside of the radius has the least damping, and the first radius shrinks to it.
        damping, _, state = rule.next(at, rule.start(None, at.x))
        near = seen(jacobian, 1e-6 * residuals, x, first=True, ratio=0.0)
        damping, _, state = rule.next(near, rule.start(None, near.x))
        assert np.all(damping <= 1e-12)
        np.testing.assert_allclose(state[0], length_of(near, np.zeros(3)), rtol=1e-6)

        # A start of zeros has no length: that of the residuals stands in.
        at = seen(jacobian, residuals, np.zeros(3), first=True, ratio=0.0)
        _, _, state = TrustRegion(1e-3).next(at, rule.start(None, at.x))
        np.testing.assert_allclose(state[0], 1e-3 * np.linalg.norm(residuals), rtol=1e-12)


RATIOS = 0.9, 0.5, 0.1, -1.0


class Curve(LeastSquares):
    def sample(self, key):
        return jnp.zeros(20)

    def init(self, instance, key):
        return jnp.array([1.0, 1.0, 0.0])

    def residuals(self, params, instance):
        height, rate, offset = params
        return height * jnp.exp(-rate * jnp.linspace(0, 2, 20)) + offset - instance


@pytest.mark.parametrize("size", [1, 100, 1000])
def test_curves_much_higher_than_the_start_are_found_as_often_as_by_minpack(size):
    optimize, rng = pytest.importorskip("scipy.optimize"), np.random.default_rng(0)
    times = np.linspace(0, 2, 20)
    height, rate, offset = rng.uniform(0.5, 3, (100, 1)), rng.uniform(0.3, 3, (100, 1)), 0.3 * rng.normal(size=(100, 1))
    curves = size * (height * np.exp(-rate * times) + offset + 0.03 * rng.normal(size=(100, 20)))
    truth = np.concatenate([size * height, rate, size * offset], axis=1)
    best = solve(Curve(), curves, x0=truth).cost

    def minpack(curve):
        misfit = lambda x: x[0] * np.exp(np.minimum(-x[1] * times, 50)) + x[2] - curve  # noqa: E731
        return optimize.least_squares(misfit, [1.0, 1.0, 0.0], method="lm", max_nfev=400).cost

    theirs = np.mean(np.array([minpack(curve) for curve in curves]) <= 1.01 * best)
    shares = {
        type(rule).__name__: np.mean(
            solve(Curve(), curves, method=LevenbergMarquardt(damping=rule)).cost <= 1.01 * best
        )
        for rule in (TrustRegion(), GainRatio())
    }
    assert shares["TrustRegion"] >= theirs - 0.02
    assert shares["TrustRegion"] >= shares["GainRatio"]


@pytest.mark.parametrize("rows", [1, 2, SMALL, SMALL + 1, SMALL + 3])
@pytest.mark.parametrize("columns", [1, 30])
def test_products_agree_with_numpy(rows, columns):
    values = np.random.default_rng(rows).normal(size=(3, rows, columns))
    with jax.enable_x64(True):
        found = jax.jit(jax.vmap(products_of))(jnp.asarray(values))
    np.testing.assert_allclose(found, values @ np.swapaxes(values, 1, 2), rtol=1e-12, atol=1e-12)
