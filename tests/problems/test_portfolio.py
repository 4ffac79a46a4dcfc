"""Portfolios: the projection and the gap against their definitions, the windows against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bygrad.problems import MeanVariance
from bygrad.solvers import ProximalGradient, solve


@pytest.fixture(scope="module")
def family() -> MeanVariance:
    return MeanVariance.simulated(days=120, assets=8, window=60, cap=0.3)


@settings(max_examples=50)
@given(seed=st.integers(0, 2**20), scale=st.sampled_from([0.0, 0.01, 1.0, 100.0]))
def test_the_proximal_map_is_the_projection(family, seed, scale):
    rng = np.random.default_rng(seed)
    point = scale * rng.normal(size=8)
    with jax.enable_x64(True):
        found = np.asarray(family.prox(jnp.asarray(point), jnp.ones(()), jnp.eye(8)))
    assert found.sum() == pytest.approx(1, abs=1e-9) and (found >= 0).all() and (found <= 0.3).all()
    # The angle to every other portfolio is obtuse: that is what a projection onto a convex set means.
    others = rng.dirichlet(np.ones(8), size=200)
    others = others[(others <= 0.3).all(axis=1)]
    assert ((others - found) @ (point - found) <= 1e-9 * (1 + scale)).all()


@pytest.mark.parametrize("seed", range(4))
def test_the_gap_is_that_of_the_best_vertex(family, seed):
    optimize = pytest.importorskip("scipy.optimize")
    gradient, weights = np.random.default_rng(seed).normal(size=8), np.full(8, 1 / 8)
    best = optimize.linprog(gradient, A_eq=np.ones((1, 8)), b_eq=[1.0], bounds=(0, 0.3))
    with jax.enable_x64(True):
        gap = family.gap(jnp.asarray(weights), jnp.asarray(gradient), jnp.eye(8))
    assert float(gap) == pytest.approx(gradient @ weights - best.fun, abs=1e-9)


@pytest.mark.parametrize("outside", ["sum", "short", "cap"])
def test_what_is_no_portfolio_has_an_infinite_gap_and_a_price(family, outside):
    weights = {
        "sum": np.full(8, 0.97 / 8),
        "short": np.array([-0.05, 0.15, 0.15, 0.15, 0.15, 0.15, 0.15, 0.15]),
        "cap": np.array([0.37, 0.09, 0.09, 0.09, 0.09, 0.09, 0.09, 0.09]),
    }[outside]
    violation = {"sum": 0.03, "short": 0.05, "cap": 0.07}[outside]
    with jax.enable_x64(True):
        moment = jnp.asarray(family.windows()[0])
        gap = float(family.gap(jnp.asarray(weights), moment @ weights, moment))
        price = float(family.loss(jnp.asarray(weights), moment, None) - family.smooth(jnp.asarray(weights), moment))
        allowed = family.prox(jnp.asarray(weights), jnp.zeros(()), moment)
        assert family.penalty(allowed, moment) < 1e-28 and family.gap(allowed, moment @ allowed, moment) < 1
    assert gap == np.inf
    assert price == pytest.approx(0.5 * 100 * violation**2)


@pytest.mark.parametrize("scale", [0.1, 10.0, 300.0])
def test_projections_from_far_away_are_precise_enough_for_a_gap(family, scale):
    points = scale * (5 + np.random.default_rng(0).normal(size=(500, 8))).astype(np.float32)
    moment = jnp.asarray(family.windows()[0], jnp.float32)

    def gap(point):
        weights = family.prox(point, jnp.ones(()), moment)
        return family.gap(weights, moment @ weights, moment)

    assert np.isfinite(jax.vmap(gap)(jnp.asarray(points))).all()


def test_windows_are_the_moments_of_their_days(family):
    windows, returns = family.windows(), np.asarray(family.returns, float) - family.target
    assert windows.shape == (61, 8, 8)
    for first in (0, 17, 60):
        moment = returns[first : first + 60].T @ returns[first : first + 60]
        np.testing.assert_allclose(windows[first] * (moment[0, 0] / windows[first][0, 0]), moment, rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose(np.linalg.eigvalsh(windows)[:, -1], 1.0, rtol=1e-6)
    one = np.asarray(family.sample(jax.random.key(0)))
    nearest = np.min(np.abs(windows - one).max(axis=(1, 2)))
    assert nearest < 1e-4


def test_solutions_satisfy_the_conditions_of_an_optimum(family):
    found = solve(family, family.windows(), method=ProximalGradient(tol=1e-8, max_steps=20_000), batch=64)
    assert found.success.all()
    for weights, moment in zip(found.x[::10], family.windows()[::10], strict=True):
        slope = moment @ weights
        free = (weights > 1e-5) & (weights < 0.3 - 1e-5)
        level = slope[free].mean()
        assert np.ptp(slope[free]) < 1e-3 * level
        assert (slope[weights <= 1e-5] > level * (1 - 1e-3)).all()  # what is left out would not help
        assert (slope[weights >= 0.3 - 1e-5] < level * (1 + 1e-3)).all()  # and of what is full, more would


@pytest.mark.parametrize(
    ("prices", "change", "says"),
    [
        (np.ones((5, 4)), {"window": 9}, "window 9"),
        (np.ones((9, 4)), {"window": 3, "cap": 0.2}, "cap is 0.2"),
        (np.ones((9, 4)), {"window": 3, "target": float("nan")}, "target is nan"),
        (np.zeros((9, 4)), {"window": 3}, "positive"),
        (np.full((9, 4), np.nan), {"window": 3}, "positive"),
        (np.full((9, 4), np.inf), {"window": 3}, "finite"),
    ],
)
def test_mistakes_are_refused(prices, change, says):
    with pytest.raises(ValueError, match=says):
        MeanVariance.from_prices(prices, **change)
