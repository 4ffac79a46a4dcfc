"""Economic dispatch: its grid obeys Kirchhoff, its bounds hold for any proposal, and small cases agree by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bygrad.problems import EconomicDispatch
from bygrad.problems.load_profile import year_of_load
from bygrad.problems.merit_order import REACH
from bygrad.problems.power_grid import transfer_factors
from bygrad.solvers import ADMM, solve


def two_buses(price: float) -> EconomicDispatch:
    """A cheap unit on one side of a line of rating 1, a dear one and the load on the other."""
    return EconomicDispatch(
        cost=jnp.array([[0.5, 10.0], [0.5, 30.0]]),
        capacity=jnp.array([5.0, 5.0]),
        rating=jnp.array([1.0]),
        transfer=jnp.array([[0.0, -1.0]]),
        loads=jnp.array([[-1.0]]),
        demand=jnp.array([2.0]),
        profile=jnp.array([1.0, 0.5]),
        price=price,
    )


@pytest.fixture(scope="module")
def grid() -> EconomicDispatch:
    return EconomicDispatch.embedded()


@pytest.mark.parametrize(
    ("price", "outputs", "cost", "rent"), [(100.0, [1, 1], 41.0, 20.0), (5.0, [2, 0], 27.0, 5.0)], ids=["hard", "soft"]
)
def test_two_buses_by_hand(price, outputs, cost, rent):
    found = solve(two_buses(price), np.array([[2.0]]), method=ADMM(tol=1e-6), batch=16)
    np.testing.assert_allclose(found.x[0], outputs, atol=1e-3)
    assert found.success[0] and found.cost[0] == pytest.approx(cost, rel=1e-5)
    # The multiplier of a congested line is the difference of the marginal costs at its ends, or the price of overload.
    assert abs(found.dual[0, -1]) == pytest.approx(rent, rel=1e-2)


def test_demand_beyond_capacity_is_never_certified():
    found = solve(two_buses(100.0), np.array([[2.0], [11.0]]), method=ADMM(tol=1e-3, max_steps=500), batch=16)
    assert list(found.success) == [True, False] and found.certificate[1] == np.inf


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_demand_costs_nothing_and_is_certified(dtype):
    found = solve(two_buses(100.0), np.array([[0.0], [1e-6]]), method=ADMM(tol=1e-3), batch=16, dtype=dtype)
    assert found.success.all() and found.cost[0] == 0.0 == found.certificate[0]
    assert found.cost[1] == pytest.approx(1e-5, rel=1e-3)


def test_flows_obey_kirchhoff():
    rng, lines = np.random.default_rng(0), np.array([[0, 1], [1, 2], [2, 0], [2, 3], [0, 3]])
    reactance, power = rng.uniform(0.1, 1.0, 5), rng.normal(size=4)
    power -= power.mean()
    flow = transfer_factors(lines, reactance, 4) @ power
    balance = np.zeros(4)
    np.add.at(balance, lines[:, 0], flow)
    np.add.at(balance, lines[:, 1], -flow)
    np.testing.assert_allclose(balance, power, atol=1e-12)  # what flows out of a bus was fed in there
    angles = flow * reactance
    assert angles[:3].sum() == pytest.approx(0, abs=1e-12)  # and around a loop the angles add up to nothing
    assert angles[0] + angles[1] + angles[3] == pytest.approx(angles[4])


def test_the_year_is_that_of_the_test_system(grid):
    load = year_of_load()
    assert len(load) == 35_136 and load.max() == 1.0
    assert load[50 * 7 * 96 : 51 * 7 * 96].max() == 1.0  # the peak is in week 51
    year = grid.year()
    assert year.shape == (35_136, 51)
    np.testing.assert_allclose(year.sum(axis=1).max(), 85.5, rtol=0.05)  # 8,550 MW, and noise
    np.testing.assert_allclose(np.asarray(grid.capacity).sum(), 102.15, rtol=1e-6)


def test_the_merit_order_is_the_cheapest_way_to_serve_a_demand(grid):
    linear, total = grid.cost[:, 1], jnp.float32(60.0)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), grid)
        outputs, value = (np.asarray(it)[1] for it in wide.units.merit_order(linear.astype(float), total.astype(float)))
    slopes = 2 * np.asarray(grid.cost[:, 0], float) * outputs + np.asarray(linear, float)
    inside = (outputs > 1e-6) & (outputs < np.asarray(grid.capacity) - 1e-6)
    assert (slopes[outputs <= 1e-6] >= value - 1e-4).all() and (slopes[outputs > 1e-6] <= value + 1e-4).all()
    np.testing.assert_allclose(slopes[inside], value, rtol=1e-5)


def test_what_is_proven_is_the_cheapest_point_near_the_outputs(grid):
    rng = np.random.default_rng(0)
    outputs, slope = rng.uniform(-0.2, 1.2, 96) * np.asarray(grid.capacity, float), rng.normal(20.0, 30.0, 96)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), grid)
        found = np.asarray(wide.units.cheaper(jnp.asarray(outputs), jnp.asarray(slope), jnp.float64(50.0)))
    assert found.sum() == pytest.approx(50.0, rel=1e-12)
    cut = np.clip(outputs, 0, np.asarray(grid.capacity, float))
    slopes = 2 * np.asarray(grid.cost[:, 0], float) * found + slope + (found - cut) / REACH
    low, high = found <= 1e-9, found >= np.asarray(grid.capacity) - 1e-6
    price = slopes[~low & ~high].mean()
    np.testing.assert_allclose(slopes[~low & ~high], price, rtol=1e-9)
    assert (slopes[low] >= price - 1e-6).all() and (slopes[high] <= price + 1e-6).all()


def test_the_gap_has_the_derivative_of_finite_differences(grid):
    demand, rng = grid.year()[20_000], np.random.default_rng(1)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), grid)

        def gap(at):
            _, cost, lowest = wide.certify(at[:96], at[96:], jnp.asarray(demand))
            return cost - lowest

        at = jnp.asarray(np.concatenate([rng.uniform(0.2, 0.8, 96) * np.asarray(grid.capacity), rng.normal(size=204)]))
        way = jnp.asarray(rng.normal(size=at.size))
        slope = jax.grad(gap)(at) @ way
        difference = (gap(at + 1e-6 * way) - gap(at - 1e-6 * way)) / 2e-6
    assert float(slope) == pytest.approx(float(difference), rel=1e-4)


def test_a_solution_proves_itself_and_needs_no_repair(grid):
    demand = grid.year()[[3000, 30_000]]
    exact = solve(grid, demand, method=ADMM(tol=1e-7, max_steps=40_000), batch=16)
    assert exact.success.all()
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), grid)
        repaired = np.asarray(jax.vmap(wide.repair)(jnp.asarray(exact.x), jnp.asarray(demand)))
        costs = np.asarray(jax.vmap(lambda x, one: wide.loss(x, one, None))(repaired, jnp.asarray(demand)))
    np.testing.assert_allclose(repaired, exact.x, atol=1e-9)
    np.testing.assert_allclose(costs, exact.cost, rtol=1e-9)
    others = np.asarray(jax.vmap(grid.repair)(jnp.asarray(exact.x + 0.3, jnp.float32), jnp.asarray(demand)))
    np.testing.assert_allclose(others.sum(axis=1), demand.sum(axis=1), rtol=1e-6)
    assert (others >= 0).all() and (others <= np.asarray(grid.capacity) + 1e-6).all()


@settings(max_examples=25)
@given(seed=st.integers(0, 2**20), size=st.sampled_from([0.0, 1.0, 1e3, 1e12]), other=st.sampled_from([0.0, 10.0, 1e4]))
def test_no_point_costs_less_than_any_bound(grid, seed, size, other):
    """Weak duality: bounds come from multipliers that are random, huge or zero, points from outputs that are too."""
    rng = np.random.default_rng(seed)
    demand = np.asarray(grid.demand, float) * rng.uniform(0.3, 1.0) * rng.uniform(0.7, 1.2, 51)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), grid)
        certify = jax.jit(lambda family, *it: family.certify(*it))
        dual, outputs = size * rng.normal(size=204), other * rng.normal(size=96)
        point, cost, lowest = (np.asarray(it) for it in certify(wide, outputs, dual, demand))
    quadratic, linear = np.asarray(grid.cost, float).T
    assert lowest <= cost * (1 + 1e-9)
    assert (point >= 0).all() and (point <= np.asarray(grid.capacity) + 1e-9).all()
    assert point.sum() == pytest.approx(demand.sum(), rel=1e-9)
    flow = np.asarray(grid.transfer, float) @ point - np.asarray(grid.loads, float) @ demand
    overload = np.maximum(np.abs(flow) - np.asarray(grid.rating, float), 0).sum()
    assert cost == pytest.approx(quadratic @ point**2 + linear @ point + grid.price * overload, rel=1e-9)


def test_the_certificate_bounds_the_distance_to_the_optimum(grid):
    demand = grid.year()[[0, 5000, 17_000, 30_000]]
    exact = solve(grid, demand, method=ADMM(tol=1e-5, max_steps=20_000), batch=16)
    rough = solve(grid, demand, method=ADMM(tol=1e-2), batch=16)
    assert exact.success.all() and rough.success.all()
    assert (rough.cost >= exact.cost * (1 - 1e-5)).all()
    assert (rough.cost * (1 - rough.certificate) <= exact.cost * (1 + 1e-9)).all()
    assert (rough.nit < exact.nit).all()


def test_a_margin_that_lines_do_not_have_is_refused():
    with pytest.raises(ValueError, match=r"margin is 1\.5"):
        EconomicDispatch.embedded(margin=1.5)
