"""Programs and fits at the edge of what can be solved: what is called solved is solved, whatever else is said."""

import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

from bygrad.problems import LeastSquares, QuadraticProgram
from bygrad.solvers import ADMM, Solution, solve
from bygrad.solvers.reduction import reduce_program
from bygrad.solvers.solution import Status


@pytest.mark.parametrize("unit", [1.0, 100.0, 1e4])
def test_no_row_hides_behind_those_in_larger_units(unit):
    """Two programs in one, of which the first is in another unit."""
    rng = np.random.default_rng(1)
    halves = [(lambda root: root @ root.T + 0.1 * np.eye(3))(rng.normal(size=(3, 3))) for _ in range(2)]
    quadratic, rows = np.zeros((6, 6)), np.zeros((10, 6))
    quadratic[:3, :3], quadratic[3:, 3:] = halves[0] / unit**2, halves[1]
    rows[:5, :3], rows[5:, 3:] = rng.normal(size=(2, 5, 3))
    units, row_units = np.repeat([unit, 1.0], 3), np.repeat([unit, 1.0], 5)
    family = Program(*map(jnp.asarray, (quadratic, rows, np.zeros(10, bool), np.full(10, np.inf))))
    at = rng.normal(size=(32, 6)) * units @ rows.T
    low, high = (at + sign * row_units * rng.uniform(0, 1, (32, 10)) for sign in (-1, 1))
    found = solve(family, (3 * rng.normal(size=(32, 6)) / units, low, high))
    missed = np.maximum(low - found.x @ rows.T, found.x @ rows.T - high) / row_units
    assert found.success.any() and missed[found.success].max() < 2e-3
    assert found.success.mean() > 0.95 or unit > 100  # what is not solved says so


class Program(QuadraticProgram):
    """A program with matrices as given; an instance is its vectors."""

    quadratic: Array
    rows: Array
    which: Array
    prices: Array

    def sample(self, key):
        size, rows = self.quadratic.shape[0], self.rows.shape[0]
        return jnp.zeros(size), jnp.zeros(rows), jnp.zeros(rows)

    @property
    def matrices(self):
        return self.quadratic, self.rows

    @property
    def equations(self):
        return self.which

    @property
    def ceiling(self):
        return self.prices

    def vectors(self, instance):
        return instance


def solved(quadratic, rows, linear, low, high, *, equations=(), prices=None, dtype=float, **options) -> Solution:
    """Solve one program; `equations`: which rows are."""
    quadratic, rows = np.asarray(quadratic, dtype), np.asarray(rows, dtype)
    which, prices = np.isin(np.arange(len(rows)), equations), np.full(len(rows), np.inf) if prices is None else prices
    family = Program(quadratic, rows, which, np.asarray(prices, float))  # pyright: ignore[reportArgumentType]
    instances = tuple(np.asarray(it, float)[None] for it in (linear, low, high))
    return solve(family, instances, method=ADMM(**options), batch=16)


@pytest.mark.parametrize("little", [1e-5, 4e-6, 1e-6, 1e-7])
def test_curvature_of_one_variable_is_not_rounding_in_float32_either(little):
    """It is exact there, and where nothing else holds the variable, without it the program would be unbounded."""
    found = solved(np.diag([1.0, little]), [[1.0, 0.0]], [0.0, -1.0], [-np.inf], [np.inf], dtype=np.float32)
    assert found.success.all()
    np.testing.assert_allclose(found.x[0], [0.0, 1 / little], rtol=1e-3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("seed", range(3))
def test_a_limit_that_the_equations_settle_changes_nothing(seed, dtype):
    rng = np.random.default_rng(seed)
    root, weights, linear = rng.normal(size=(5, 5)), rng.uniform(0.1, 1, 5), rng.normal(size=5)
    quadratic, rows = root @ root.T + np.eye(5), np.vstack([weights, 3 * weights, np.eye(5)])
    low, high = np.r_[1.0, -np.inf, np.zeros(5)], np.r_[1.0, 5.0, np.full(5, np.inf)]
    found = solved(quadratic, rows, linear, low, high, equations=[0], dtype=dtype, tol=1e-7)
    others = [0, 2, 3, 4, 5, 6]
    without = solved(quadratic, rows[others], linear, low[others], high[others], equations=[0], dtype=dtype, tol=1e-7)
    assert found.success.all() and without.success.all()
    np.testing.assert_allclose(found.x, without.x, atol=1e-5)
    high[1] = 2.0  # three times the sum of weights is 3
    assert solved(quadratic, rows, linear, low, high, equations=[0], dtype=dtype).status[0] == Status.CONTRADICTION


def test_a_curvature_that_the_equations_use_up_is_none():
    found = solved(
        np.ones((2, 2)),
        [[1, 1], [1, 0], [0, 1]],
        [0, 1],
        [1, 0, 0],
        [1, 2, 2],
        equations=[0],
        tol=1e-6,
    )
    assert found.success.all()
    np.testing.assert_allclose(found.x[0], [1, 0], atol=1e-5)
    assert found.cost[0] == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_slope_that_cancels_along_the_equations_is_none(dtype):
    """Equal shares are the optimum: all of the slope, or of what curvature leaves of it, is along the equation."""
    family = Program(
        *map(jnp.asarray, (np.eye(3), np.vstack([np.ones(3), np.eye(3)]), np.arange(4) == 0, [np.inf] * 4))
    )
    linear = np.outer([0.0, 0.2, 0.7, -1 / 3], np.ones(3))
    low, high = np.tile([1.0, 0.1, 0.1, 0.1], (4, 1)), np.tile([1.0, *[np.inf] * 3], (4, 1))
    found = solve(family, (linear, low, high), batch=16, dtype=dtype)
    assert found.success.all() and found.nit.max() < 100
    np.testing.assert_allclose(found.x, 1 / 3, rtol=1e-6)


@pytest.mark.parametrize(("linear", "status"), [
    ([1e6, 0.0, 0.1, 0.0], Status.UNBOUNDED),
    ([1.0, 0.0, 1e-6, 0.0], Status.UNBOUNDED),
    ([1e6, 1.0, 0.0, 0.0], Status.CERTIFIED),
])  # fmt: skip
def test_a_direction_that_nothing_holds_is_compared_with_its_own_slope(linear, status):
    assert solved(np.diag([1.0, 1.0, 0.0, 0.0]), np.eye(4)[:2], linear, -np.ones(2), np.ones(2)).status == status


def test_a_slope_that_only_rounding_moves_into_what_nothing_holds_is_none():
    """Of least squares without an own curvature in some directions, of which one is seen but little."""
    rng = np.random.default_rng(0)
    root = np.linalg.qr(rng.normal(size=(6, 6)))[0][:, :4] * [1.0, 1.0, 1.0, 1e-4] @ rng.normal(size=(4, 6))
    linear = -(root.T @ rng.normal(size=6)).astype(np.float32)
    found = solved(root.T @ root, np.zeros((1, 6)), linear, [-1.0], [1.0])
    assert found.status[0] != Status.UNBOUNDED


@pytest.mark.parametrize("price", [1.0, 10.0, 100.0, 1000.0])
def test_limits_with_a_price_contradict_nothing(price):
    """Half of x², at least 1 at a price, at most 0: the minimum is at 0, and costs the price."""
    found = solved([[1.0]], [[1.0], [1.0]], [0.0], [1.0, -np.inf], [np.inf, 0.0], prices=[price, np.inf], tol=1e-6)
    assert found.success.all()
    assert (found.x[0, 0], found.cost[0]) == pytest.approx((0, price), rel=1e-4, abs=1e-4)
    both = solved([[1.0]], [[1.0], [1.0]], [0.0], [1.0, -np.inf], [np.inf, 0.0], prices=[price, 10 * price], tol=1e-6)
    assert both.success.all()
    hard = solved([[1.0]], [[1.0], [1.0]], [0.0], [1.0, -np.inf], [np.inf, 0.0])
    assert hard.status[0] == Status.CONTRADICTION


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"quadratic": [[np.nan]]}, "P of the quadratic program is not finite"),
        ({"rows": [[np.inf]]}, "A of the quadratic program is not finite"),
        ({"prices": [-1.0]}, "price of the quadratic program is -1, so that"),
        ({"prices": [np.nan]}, "price of the quadratic program is nan, so that"),
        ({"prices": [1.0], "equations": [0]}, "Row 0 .* is an equation and has a price"),
    ],
)
def test_numbers_that_make_no_program_are_refused(given, says):
    program = {"quadratic": [[1.0]], "rows": [[1.0]], "linear": [0.0], "low": [1.0], "high": [1.0]}
    with pytest.raises(ValueError, match=says):
        solved(**(program | given))


def test_the_cost_has_what_violations_cost():
    found = solved([[1.0]], [[1.0]], [0.0], [1.0], [np.inf], prices=[0.5], tol=1e-8)
    assert (found.x[0, 0], found.cost[0]) == pytest.approx((0.5, 0.125 + 0.25))


@pytest.mark.parametrize("unit", [1e3, 1e5, 1e7])
def test_a_variable_in_another_unit_is_the_same_variable(unit):
    rng = np.random.default_rng(0)
    root, linear = rng.normal(size=(4, 4)), rng.normal(size=4)
    quadratic, rows = root @ root.T + np.eye(4), np.vstack([rng.normal(size=(2, 4)), np.eye(4)[:2]])
    high = np.array([0.2, 0.2, 0.3, 0.3])
    units = np.array([1, 1, 1, unit])
    one = solved(quadratic, rows, linear, -high, high, tol=1e-8)
    other = solved(units[:, None] * quadratic * units, rows * units, linear * units, -high, high, tol=1e-8)
    assert one.success.all() and other.success.all()
    np.testing.assert_allclose(other.x * units, one.x, atol=1e-4)
    assert other.cost[0] == pytest.approx(one.cost[0], rel=1e-6)


@pytest.mark.parametrize("curved", [0.0, 1e-9, 1.0])  # of 1e-9 a penalty must go as far as without
@pytest.mark.parametrize(("money", "length"), [(1.0, 1.0), (1e-6, 1e4), (1.0, 1e5), (1e8, 1e-3), (1.0, 1e-6)])
def test_no_unit_of_objective_or_params_makes_a_program_impossible_or_too_hard(money, length, curved):
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(8, 4))
    rows[7] = rows[0] + rows[1]
    inside, linear = rng.normal(size=(20, 4)) @ rows.T, rng.normal(size=(20, 4))
    low, high = (inside + side * rng.exponential(size=inside.shape) for side in (-1, 1))
    low[10:, 7] = high[10:, 0] + high[10:, 1] + 0.1  # which the sum of two limits contradicts
    high[10:, 7] = low[10:, 7] + 1
    free, prices = np.zeros(8, bool), np.full(8, np.inf)
    family = Program(curved * np.eye(4), rows, free, prices)  # pyright: ignore[reportArgumentType]
    exact = solve(family, (linear, low, high), method=ADMM(tol=1e-7, max_steps=20_000), batch=64)
    family = Program(curved * money / length**2 * np.eye(4), rows, free, prices)  # pyright: ignore[reportArgumentType]
    found = solve(family, (linear * money / length, low * length, high * length), batch=64)
    for solution in exact, found:
        assert list(solution.status) == 10 * [Status.CERTIFIED] + 10 * [Status.CONTRADICTION]
    np.testing.assert_allclose(found.cost[:10] / money, exact.cost[:10], rtol=0.01, atol=0.01)


@pytest.mark.parametrize("curved", [0, 2])
def test_rounding_is_no_curvature_whatever_the_penalty(curved):
    """Low penalties would weigh little beside it, and a program that falls without end would have a solution."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        root, rows = rng.normal(size=(6, curved)), rng.normal(size=(8, 6))
        to = reduce_program(root @ root.T, rows, np.zeros(8, bool), np.full(8, np.inf), np.float32)
        assert np.count_nonzero(to.curvature) == curved
        to = reduce_program(np.eye(6), rows[:curved], np.zeros(curved, bool), np.full(curved, np.inf), np.float32)
        assert np.count_nonzero(to.weight) == curved


def test_little_curvature_is_not_none():
    found = solved(np.diag([1e11, 1]), [[1, 0]], [0, -1], [-np.inf], [np.inf])
    assert found.success.all()
    np.testing.assert_allclose(found.x[0], [0, 1], atol=1e-6)
    assert solved(np.diag([1.0, 0]), [[1, 0]], [0, -1], [-np.inf], [np.inf]).status[0] == Status.UNBOUNDED


def test_equations_that_contradict_each_other_by_more_than_the_tolerance_have_no_solution():
    for tol, apart, status in ((1e-9, 5e-5, -3), (1e-3, 5e-5, 1), (1e-3, 5e-4, -3), (1e-6, 1e-8, 1)):
        found = solved([[1.0]], [[1.0], [1.0]], [0.0], [0.0, apart], [0.0, apart], equations=[0, 1], tol=tol)
        assert found.status[0] == status
        assert status < 0 or apart / 4 < found.certificate[0] <= tol


class Exponential(LeastSquares):
    """a exp(b t) at ten times, whose slopes shrink by many orders of magnitude on the way from a steep start."""

    def sample(self, key):
        return jnp.zeros(10)

    def init(self, instance, key):
        return jnp.ones(2)

    def residuals(self, params, instance):
        return params[0] * jnp.exp(params[1] * jnp.arange(10.0)) - instance


# In float32 rounding decides which of them leave the plateau from the farthest start: half, more or less, of 400.
@pytest.mark.parametrize(("dtype", "least"), [(np.float64, 0.8), (np.float32, 0.3)])
@pytest.mark.parametrize("rate", [0.0, 1.0, 1.5])
def test_a_step_that_damping_made_small_is_no_minimum(rate, dtype, least):
    optimize, rng, times = pytest.importorskip("scipy.optimize"), np.random.default_rng(0), np.arange(10)
    curves = rng.uniform(0.5, 3, (40, 1)) * np.exp(-rng.uniform(0.1, 1, (40, 1)) * times)
    curves += 0.01 * rng.normal(size=curves.shape)
    found = solve(Exponential(), curves, x0=np.array([1.0, rate]), dtype=dtype, batch=64)
    assert found.success.mean() >= least
    for x, cost, curve in zip(found.x[found.success], found.cost[found.success], curves[found.success], strict=True):
        again = optimize.least_squares(lambda p, y=curve: p[0] * np.exp(np.minimum(p[1] * times, 50)) - y, x)
        assert again.cost >= (1 - 1e-3) * cost
