"""The classical core: right answers against SciPy and closed forms, and no instance that harms another."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from jaxtyping import Array

from bygrad._core.programs import kept
from bygrad.problems import (
    BallAndStick,
    DampedOscillation,
    Oracle,
    OralDose,
    ProblemFamily,
    Quadratic,
    QuadrotorControl,
    SparseCoding,
)
from bygrad.problems.structured import Bounded, Composite, LeastSquares, QuadraticProgram
from bygrad.solvers import (
    ADMM,
    LBFGS,
    STATUS,
    Flat,
    LearnedSchedule,
    LevenbergMarquardt,
    ProximalGradient,
    Safeguarded,
    jacobian,
    learn,
    solve,
)
from bygrad.solvers.damping import GainRatio
from bygrad.solvers.small import solve_spd
from bygrad.solvers.solution import Status
from bygrad.solvers.solve import best_start, default_method, fitting_method, rows_at_once
from bygrad.solvers.starts import starting_points

from .families import TIMES, Decay
from .families import decays as draw


class Rosenbrock(Bounded):
    highest: float = np.inf

    def sample(self, key):
        return jax.random.uniform(key, minval=5.0, maxval=100.0)

    def init(self, instance, key):
        return jnp.array([-1.2, 1.0])

    def loss(self, params, instance, key):
        return (1 - params[0]) ** 2 + instance * (params[1] - params[0] ** 2) ** 2

    def bounds(self, instance):
        return jnp.full(2, -np.inf), jnp.full(2, self.highest)


class Crossed(Rosenbrock):
    def bounds(self, instance):
        return jnp.array([-3.0, 2.0]), jnp.array([3.0, 1.0])


@pytest.fixture(scope="module")
def decays() -> np.ndarray:
    return draw(40)


@pytest.mark.core
@pytest.mark.parametrize("limited", [False, True], ids=["free", "bounds"])
def test_least_squares_agrees_with_scipy(limited, decays):
    optimize = pytest.importorskip("scipy.optimize")
    found = solve(Decay(limited=limited), decays, batch=16)
    assert found.success.all() and (found.status[found.success] > 0).all()
    limits = ([0, 1], [0.9, 9]) if limited else (-np.inf, np.inf)
    for row, data in enumerate(decays[:12]):
        theirs = optimize.least_squares(
            lambda p, data=data: p[0] * np.exp(-p[1] * TIMES) - data, [0.5, 2.0], bounds=limits, xtol=1e-12, ftol=1e-12
        )
        assert found.cost[row] == pytest.approx(theirs.cost, rel=1e-6)
        assert [found.x["height"][row], found.x["rate"][row, 0]] == pytest.approx(list(theirs.x), abs=1e-4)
    if limited:
        assert np.sum(found.x["height"] == 0.9) > 3  # bounds bind, exactly


def test_one_bad_instance_costs_its_own_row_only(decays):
    spoilt = decays.copy()
    spoilt[3], spoilt[20, 2], spoilt[31] = np.nan, np.inf, 1e300
    good = np.ones(40, bool)
    good[[3, 20, 31]] = False
    clean, found = solve(Decay(), decays, batch=16), solve(Decay(), spoilt, batch=16)
    np.testing.assert_array_equal(found.cost[good], clean.cost[good])
    np.testing.assert_array_equal(found.nit[good], clean.nit[good])
    assert list(found.status[[3, 20]]) == [-1, -1] and not found.success[[3, 20, 31]].any()
    assert "not finite" in found.message[3] and found.message[0] == STATUS[int(found.status[0])]


@pytest.mark.parametrize(("rows", "batch"), [(1, 16), (70, 16), (5, 1), (7, 3)])
def test_the_size_of_the_batch_changes_nothing(rows, batch, decays):
    data = np.tile(decays, (2, 1))[:rows]
    found = solve(Decay(), data, batch=batch)
    np.testing.assert_allclose(found.cost, solve(Decay(), data, batch=256).cost, rtol=1e-9)
    assert len(found) == rows and found.x["rate"].shape == (rows, 1)


def test_an_empty_batch_is_solved():
    found = solve(Decay(), np.empty((0, 9)))
    assert len(found) == 0 and found.x["rate"].shape == (0, 1) and found.rows.shape == (0, 2)
    assert len(solve(Decay(), np.empty((0, 9)), x0=found.x)) == 0
    assert solve(Quadratic(), jax.vmap(Quadratic().sample)(jax.random.split(jax.random.key(0), 0))).x.shape == (0, 10)


def test_what_runs_out_of_steps_says_so_and_a_warm_start_needs_fewer(decays):
    given = solve(Decay(), decays, method=LevenbergMarquardt(max_steps=2), batch=16)
    for short in (given, solve(Decay(), decays, max_steps=2, batch=16)):
        assert (short.status == 0).all() and (short.nit == 2).all() and "Allow more steps" in short.message[0]
    with pytest.raises(ValueError, match="max_steps is 9, but the method that is given has a max_steps of its own"):
        solve(Decay(), decays, max_steps=9, method=LevenbergMarquardt())
    with pytest.raises(ValueError, match="max_steps is 0, so no instance would be solved"):
        solve(Decay(), decays, max_steps=0)
    whole = solve(Decay(), decays, max_steps=10**10, batch=16)  # more than 32 bits count
    warm = solve(Decay(), decays, x0=whole.x, batch=16)
    assert warm.success.all() and warm.nit.mean() < 0.6 * whole.nit.mean()


def test_the_params_of_one_instance_are_a_start_for_all(decays):
    one = {"height": np.array(0.7), "rate": np.array([1.3])}
    each = {"height": np.full(40, 0.7), "rate": np.full((40, 1), 1.3)}
    ours, theirs = (solve(Decay(), decays, x0=x0, batch=16) for x0 in (one, each))
    np.testing.assert_array_equal(ours.x["rate"], theirs.x["rate"])
    np.testing.assert_array_equal(ours.nit, theirs.nit)
    assert (ours.nit != solve(Decay(), decays, batch=16).nit).any()


@pytest.mark.parametrize("method", [LevenbergMarquardt(), LBFGS()])
def test_a_start_that_is_not_finite_is_that_of_the_family(method, decays):
    """So an instance that could not be solved is no end of a sequence of warm starts."""
    lost = np.where(np.arange(9) == 4, np.nan, decays)
    broken = solve(Decay(), np.concatenate([lost[:1], decays[1:]]), method=method)
    assert broken.status[0] == -1 and broken.success[1:].all()
    after, afresh = solve(Decay(), decays, x0=broken.x, method=method), solve(Decay(), decays, method=method)
    assert after.success.all()
    np.testing.assert_array_equal(after.x["height"][0], afresh.x["height"][0])


class Written(QuadraticProgram):
    """With arrays of NumPy and numbers, as one writes them down."""

    def sample(self, key):
        return jax.random.normal(key, (3,))

    @property
    def matrices(self):
        return np.eye(3), np.vstack([np.ones((1, 3)), np.eye(3)])

    @property
    def equations(self):
        return np.array([True, False, False, False])

    def vectors(self, instance):
        return -instance, np.array([1.0, 0.1, 0.1, 0.1]), np.array([1.0, np.inf, np.inf, np.inf])


class Positive(Written):
    @property
    def matrices(self):
        return np.eye(3), np.eye(3)

    @property
    def equations(self):
        return np.zeros(3, bool)

    def vectors(self, instance):
        return -instance, 0.0, np.inf


@pytest.mark.parametrize("dtype", [pytest.param(np.float32, marks=pytest.mark.slow), np.float64])
def test_a_program_may_be_written_with_arrays_of_numpy_and_single_limits(dtype):
    wish = np.array([[0.6, 0.2, -1.0]])
    found = solve(Written(), wish, tol=1e-6, dtype=dtype)
    np.testing.assert_allclose(found.x, [[0.65, 0.25, 0.1]], atol=1e-4)
    slope = jacobian(Written(), found, wish)
    np.testing.assert_allclose(slope, [[[0.5, -0.5, 0.0], [-0.5, 0.5, 0.0], [0.0, 0.0, 0.0]]], atol=1e-5)
    np.testing.assert_allclose(solve(Positive(), wish, tol=1e-6, dtype=dtype).x, np.maximum(wish, 0), atol=1e-4)


@pytest.mark.parametrize(
    ("part", "value", "said"),
    [
        ("matrices", (np.eye(3), np.eye(4)), r"A of shape \[4, 4\]"),
        ("matrices", (np.eye(4), np.eye(3)), r"A of shape \[3, 3\], for 4 params"),
        ("matrices", (np.ones((3, 4)), np.eye(3)), r"P of shape \[3, 4\]"),
        ("vectors", (np.ones(2), 0.0, 1.0), r"q of shape \[2\]"),
        ("vectors", (np.ones(3), np.zeros(2), 1.0), r"l of shape \[2\]"),
    ],
)
def test_a_program_whose_parts_do_not_fit_is_refused_by_name(part, value, said):
    wrong = type("Wrong", (Positive,), {part: property(lambda _: value) if part == "matrices" else lambda *_: value})
    with pytest.raises(TypeError, match=rf"Wrong's program has {said}"):
        solve(wrong(), np.ones((2, 3)))


@pytest.mark.parametrize("unit", [1e-6, *(pytest.param(it, marks=pytest.mark.slow) for it in (1.0, 1e6))])
@pytest.mark.parametrize("method", [ProximalGradient(), Safeguarded(lambda x, step: x)], ids=["plain", "safeguarded"])
def test_no_unit_of_a_loss_without_a_gap_changes_what_is_solved(unit, method):
    family, signal = Shrunk(unit), np.array([[3.0, 0.2, -1.0], [0.0, 0.0, 0.0], [0.3, 0.4, 0.1]])
    found = solve(family, unit * signal, method=method)
    assert found.success.all()
    np.testing.assert_allclose(found.x / unit, np.sign(signal) * np.maximum(np.abs(signal) - 0.5, 0), atol=1e-3)


class Nonnegative(Composite):
    """Least squares of numbers that are not below 0, without a duality gap; an instance has data and a scale."""

    matrix: np.ndarray

    def sample(self, key):
        return {"scale": jnp.ones(()), "data": jnp.zeros(self.matrix.shape[0])}

    def init(self, instance, key):
        return jnp.zeros(self.matrix.shape[1])

    def smooth(self, params, instance):
        return 0.5 * jnp.sum((instance["scale"] * (self.matrix @ params) - instance["data"]) ** 2)

    def penalty(self, params, instance):
        return jnp.zeros(())

    def prox(self, params, step, instance):
        return jnp.maximum(params, 0.0)

    def curvature(self):
        return jnp.linalg.norm(self.matrix, 2) ** 2


METHODS_WITHOUT_GAP = {
    "plain": ProximalGradient(max_steps=20_000),
    "safeguarded": Safeguarded(lambda x, step: x, max_steps=20_000),
}


@pytest.mark.parametrize("method", METHODS_WITHOUT_GAP.values(), ids=METHODS_WITHOUT_GAP.keys())
@pytest.mark.parametrize("condition", [pytest.param(3, marks=pytest.mark.slow), 30])
def test_without_a_gap_what_is_solved_costs_no_more_than_scipy_says(method, condition):
    rng = np.random.default_rng(condition)
    left, right = (np.linalg.qr(rng.normal(size=(rows, 8)))[0] for rows in (12, 8))
    matrix = left @ np.diag(np.logspace(0, -np.log10(condition), 8)) @ right.T
    data = np.maximum(rng.normal(size=(16, 8)), 0) @ matrix.T + 1e-3 * rng.normal(size=(16, 12))
    least = np.array([0.5 * scipy.optimize.nnls(matrix, row)[1] ** 2 for row in data])
    first = solve(Nonnegative(matrix), {"scale": np.ones(16), "data": data}, method=method)
    moved = data + 0.05 * rng.normal(size=data.shape) * np.abs(data).mean()
    warm = solve(Nonnegative(matrix), {"scale": np.ones(16), "data": moved}, method=method, x0=first.x)
    again = np.array([0.5 * scipy.optimize.nnls(matrix, row)[1] ** 2 for row in moved])
    for found, expected in ((first, least), (warm, again)):
        assert found.success.mean() > 0.9
        np.testing.assert_allclose(found.cost[found.success], expected[found.success], rtol=1e-3)


@pytest.mark.parametrize("method", METHODS_WITHOUT_GAP.values(), ids=METHODS_WITHOUT_GAP.keys())
def test_a_minimum_of_the_smooth_part_alone_is_none(method):
    """There the gradient is zero, and a step is that of the penalty."""
    signal = np.array([[3.0, 0.2, -1.0], [0.3, 0.4, 0.1]])
    found = solve(Shrunk(1.0), signal, x0=signal, method=method)
    assert found.success.all()
    np.testing.assert_allclose(found.x, np.sign(signal) * np.maximum(np.abs(signal) - 0.5, 0), atol=1e-3)


@pytest.mark.parametrize("dtype", [pytest.param(np.float64, marks=pytest.mark.slow), np.float32])
@pytest.mark.parametrize("method", METHODS_WITHOUT_GAP.values(), ids=METHODS_WITHOUT_GAP.keys())
def test_an_instance_that_is_flatter_than_others_is_not_solved_where_it_starts(method, dtype):
    scale = np.array([1.0, 0.1, 0.01, 1e-3, 1e-4])
    found = solve(
        Nonnegative(np.eye(2)), {"scale": scale, "data": 3 * scale[:, None] * [1, 2]}, method=method, dtype=dtype
    )
    assert found.success[0] and not found.success[-1]
    wanted = np.broadcast_to([3.0, 6.0], found.x.shape)
    np.testing.assert_allclose(found.x[found.success], wanted[found.success], rtol=1e-2)


class Raised(LeastSquares):
    """A decay on a baseline, which may be many times as large."""

    def sample(self, key):
        return jnp.zeros(20)

    def init(self, instance, key):
        return jnp.array([instance[-1], 0.5, 1.0])

    def residuals(self, params, instance):
        return (params[0] + params[1] * jnp.exp(-params[2] * jnp.linspace(0, 2, 20)) - instance) / 1e-3


@pytest.mark.parametrize("baseline", [0.0, 1e6, 1e8])
def test_a_param_that_is_large_hides_no_other(baseline):
    noise = 1e-3 * np.random.default_rng(0).normal(size=(4, 20))
    found = solve(Raised(), baseline + np.exp(-1.3 * np.linspace(0, 2, 20)) + noise)
    assert found.success.all() and (found.certificate < 1e-4).all()
    np.testing.assert_allclose(found.x[:, 1:], np.broadcast_to([1.0, 1.3], (4, 2)), atol=0.02)


def test_whole_numbers_that_would_be_cut_are_refused():
    times = np.array([[1_700_000_000_000_000_000] * 3])
    with pytest.raises(ValueError, match=r"up to 1,700,000,000,000,000,000, of which 32 bits"):
        solve(Counted(), times, dtype=np.float32)
    np.testing.assert_allclose(solve(Counted(), times).x, 1.7e9)
    assert solve(Counted(), times // 10**10, dtype=np.float32).success.all()


class Counted(LeastSquares):
    def sample(self, key):
        return jnp.zeros(3, int)

    def init(self, instance, key):
        return jnp.ones(1)

    def residuals(self, params, instance):
        return params[0] - instance * 1e-9


class Shrunk(Composite):
    unit: float

    def sample(self, key):
        return jax.random.normal(key, (3,))

    def init(self, instance, key):
        return jnp.zeros(3)

    def smooth(self, params, instance):
        return 0.5 * jnp.sum((params - instance) ** 2)

    def penalty(self, params, instance):
        return 0.5 * self.unit * jnp.sum(jnp.abs(params))

    def prox(self, params, step, instance):
        return jnp.sign(params) * jnp.maximum(jnp.abs(params) - 0.5 * self.unit * step, 0.0)

    def curvature(self):
        return 2.0  # a bound that is not tight, so that one step is not enough


def test_several_starts_are_never_worse():
    family = OralDose()
    data = np.asarray(jax.vmap(family.sample)(jax.random.split(jax.random.key(0), 10)), float)
    one, three = solve(family, data, batch=16), solve(family, data, starts=np.int64(3), batch=16)
    assert (three.cost <= one.cost * (1 + 1e-9)).all()
    assert (three.nfev > one.nfev).all()


def test_starts_are_independent_and_do_not_hang_on_how_many_others_there_are():
    flat, data = Flat.of(OralDose(), np.zeros(12)), np.zeros((9, 12))

    def drawn(rows: int, starts: int = 3) -> np.ndarray:
        x = starting_points(flat, data[:rows], rows, None, starts=starts, seed=5, batch=4, dtype=np.float64)
        return x.reshape(rows, starts, 4)

    many = drawn(9)
    np.testing.assert_array_equal(many[:3], drawn(3))
    np.testing.assert_array_equal(many[:, :2], drawn(9, starts=2))
    assert len(np.unique(many[:, 1:])) == 9 * 2 * 4


def test_units_of_the_params_change_nothing(decays):
    class Rescaled(Decay):
        def residuals(self, params, instance):
            return super().residuals({"height": 1e3 * params["height"], "rate": 1e-3 * params["rate"]}, instance)

        def init(self, instance, key):
            return {"height": jnp.full((), 1e-3), "rate": jnp.full((1,), 1e3)}

    here, there = solve(Decay(), decays, batch=16), solve(Rescaled(), decays, batch=16)
    np.testing.assert_allclose(here.cost, there.cost, rtol=1e-7)
    np.testing.assert_array_equal(here.nit, there.nit)


def test_a_damping_too_weak_for_the_precision_is_no_minimum():
    """Two params that do the same: without damping their system is singular, and in float32 there is no step."""

    class Redundant(LeastSquares):
        def sample(self, key):
            return jax.random.normal(key, (4,))

        def init(self, instance, key):
            return jnp.zeros(2)

        def residuals(self, params, instance):
            return jnp.exp(params[0] + params[1]) * jnp.arange(1.0, 5.0) - 3 * instance

    data = np.random.default_rng(0).uniform(1, 2, (50, 4))
    weak = LevenbergMarquardt(GainRatio(1e-11), tol=1e-3)
    found, exact = solve(Redundant(), data, method=weak, dtype=np.float32), solve(Redundant(), data)
    assert exact.success.all()
    np.testing.assert_allclose(found.cost[found.success], exact.cost[found.success], rtol=2e-3)
    assert found.success.mean() > 0.9


def test_the_best_of_several_starts():
    starts = {
        "cost": np.array([3.0, 1.0, np.nan, 2.0, 2.0, 5.0]),
        "status": np.array([1, 0, 1, 0, 2, 1]),
        "certificate": np.array([0.5, 9.0, 0.0, 9.0, 0.4, 0.3]),
    }
    assert best_start(Quadratic(), starts, 3).tolist() == [1, 1]  # the lowest cost, and solved where two are alike
    assert best_start(Quadratic(), starts, 3, solved_first=True).tolist() == [0, 1]
    starts["cost"] *= [1, 1, 1, 1 - 1e-15, 1, 1]  # which of two is lower by rounding decides nothing
    assert best_start(Quadratic(), starts, 3).tolist() == [1, 1]
    starts["cost"] *= [1, 1, 1, 1 - 1e-12, 1, 1]
    assert best_start(Quadratic(), starts, 3).tolist() == [1, 0]
    # What a program has not solved may cost less than its optimum.
    assert best_start(QuadrotorControl.build(horizon=4), starts, 3).tolist() == [2, 2]


@pytest.mark.parametrize("unit", [1e-9, 1e9])
def test_a_gain_is_relative_to_the_cost(unit):
    class Scaled(Rosenbrock):
        def loss(self, params, instance, key):
            return unit * (1 + super().loss(params, instance, key))

    found = solve(Scaled(), np.linspace(5.0, 100.0, 8), method=LBFGS(tol=1e-9 * unit))
    assert found.success.all()
    np.testing.assert_allclose(found.x, 1, atol=1e-2)


def test_a_tol_is_that_of_the_default_method_and_for_lbfgs_alone_a_success():
    class Raised(Rosenbrock):
        def loss(self, params, instance, key):
            return 1 + super().loss(params, instance, key)

    weights = np.linspace(5.0, 100.0, 8)
    strict, lax = solve(Raised(), weights, tol=1e-7), solve(Raised(), weights, method=LBFGS(tol=1e-7))
    assert (lax.success & (lax.certificate > 1e-7)).any()  # they hardly gain any more
    np.testing.assert_array_equal(strict.success, strict.certificate <= 1e-7)
    assert strict.success.any()
    for family in (Raised(), Decay(), QuadrotorControl.build(horizon=4), SparseCoding.embedded()):
        changed, longer = default_method(family, 0.5), default_method(family, max_steps=7)
        assert type(changed) is type(default_method(family)) and changed.tol == 0.5
        assert longer == dataclasses.replace(default_method(family), max_steps=7)
    with pytest.raises(ValueError, match="but the method that is given has a tol of its own"):
        solve(Raised(), weights, tol=0.1, method=LBFGS())


def test_lbfgs_finds_minima_free_and_bounded():
    weights = np.linspace(5.0, 100.0, 20)
    free = solve(Rosenbrock(), weights, batch=16)
    assert free.success.all()
    np.testing.assert_allclose(free.x, 1.0, atol=1e-3)
    bounded = solve(Rosenbrock(highest=0.5), weights, batch=16)
    assert bounded.success.all()
    np.testing.assert_allclose(bounded.x, np.tile([0.5, 0.25], (20, 1)), atol=1e-3)
    assert (bounded.certificate <= LBFGS().tol).any()


class Curved(Bounded):
    """Minimized at ones, by a sum over params with these weights."""

    weights: tuple[float, ...] = (1e8, 1.0, 1e-2, 1e-3)
    kind: str = "quadratic"

    def sample(self, key):
        return 2 * jax.random.normal(key, (len(self.weights),))

    def init(self, instance, key):
        return instance

    def loss(self, params, instance, key):
        squares = (params - 1) ** 2
        return 1 + jnp.array(self.weights) @ (squares if self.kind == "quadratic" else jnp.log1p(squares))


def test_a_step_too_short_to_gain_is_no_minimum():
    family = Curved()
    starts = np.asarray(jax.vmap(family.sample)(jax.random.split(jax.random.key(0), 50)), float)
    found = solve(family, starts)  # what the steepest param allows is next to nothing for the flattest
    assert found.success.all()
    np.testing.assert_allclose(found.cost, 1.0, rtol=1e-5)


def test_where_the_cost_does_not_curve_steps_grow():
    class Sloped(Bounded):
        def sample(self, key):
            return jax.random.normal(key, (3,))

        def init(self, instance, key):
            return jnp.zeros(4)

        def loss(self, params, instance, key):
            return 1e4 * params[0] ** 2 + instance @ params[1:]

        def bounds(self, instance):
            return jnp.full(4, -5.0), jnp.full(4, 7.0)

    slopes = np.random.default_rng(0).normal(size=(20, 3)) * [1.0, 1e-2, 1e-3]
    found = solve(Sloped(), slopes)
    assert found.success.all()
    np.testing.assert_allclose(found.x, np.pad(np.where(slopes > 0, -5.0, 7.0), ((0, 0), (1, 0))), atol=1e-6)

    far = Curved(weights=(1.0, 1.0, 1.0, 1.0), kind="cauchy")  # concave but near the minimum
    starts = 1e3 * np.random.default_rng(1).normal(size=(20, 4))
    found = solve(far, starts)
    assert found.success.all()
    np.testing.assert_allclose(found.x, 1.0, atol=1e-4)


def test_held_params_teach_the_free_ones_no_curvature():
    optimize = pytest.importorskip("scipy.optimize")
    rng = np.random.default_rng(0)
    matrix, targets = rng.random((30, 10)), 3 * rng.normal(size=(30, 30))

    class Box(Bounded):
        def sample(self, key):
            return jax.random.normal(key, (30,))

        def init(self, instance, key):
            return jnp.full(10, 0.5)

        def loss(self, params, instance, key):
            return 0.5 * jnp.sum((matrix @ params - instance) ** 2)

        def bounds(self, instance):
            return jnp.full(10, -0.5), jnp.full(10, 0.5)

    found = solve(Box(), targets)
    assert found.success.all() and (np.abs(found.x) == 0.5).mean() > 0.3
    exact = [optimize.lsq_linear(matrix, it, (-0.5, 0.5), method="bvls").cost for it in targets]
    np.testing.assert_allclose(found.cost, exact, rtol=1e-7)

    def evaluations(target: np.ndarray) -> int:
        loss = lambda p: (0.5 * np.sum((matrix @ p - target) ** 2), matrix.T @ (matrix @ p - target))  # noqa: E731
        limits = 10 * [(-0.5, 0.5)]
        return optimize.minimize(loss, np.full(10, 0.5), jac=True, method="L-BFGS-B", bounds=limits).nfev

    assert found.nfev.mean() < 1.25 * np.mean([evaluations(it) for it in targets])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_certificate_is_the_gradient_however_large_the_params(dtype):
    starts = np.geomspace(1e3, 1e15, 4)[:, None] * np.ones(4)
    weights = (1e-10, 1e-11, 1e-12, 1e-13)
    found = solve(Curved(weights=weights), starts.astype(dtype), dtype=dtype, method=LBFGS(tol=1e-30, max_steps=1))
    np.testing.assert_allclose(found.certificate, 2e-10 * (starts[:, 0] - 1), rtol=1e-5)


def test_bounds_that_cross_are_told():
    found = solve(Crossed(), np.full(2, 9.0), batch=16)
    assert list(found.status) == [-3, -3] and "contradict" in found.message[0]


def test_lbfgs_solves_a_problem_family_as_it_is():
    family = Quadratic(dimension=6, distribution="gaussian")
    instances = jax.vmap(family.sample)(jax.random.split(jax.random.key(0), 8))
    found = solve(family, instances, method=LBFGS(max_steps=3000, gain=0.0, tol=1e-6), batch=16)
    assert found.success.mean() >= 7 / 8  # one may be nearly singular
    assert (found.cost[found.success] < 1e-6).all()


@pytest.fixture(scope="module")
def coding() -> SparseCoding:
    rng = np.random.default_rng(0)
    images = np.cumsum(np.cumsum(rng.normal(size=(4, 24, 24)), axis=1), axis=2)
    return SparseCoding.from_images(images, side=4, atoms=6, count=32)


def test_the_gap_bounds_the_distance_to_the_minimum(coding):
    exact = solve(coding, coding.patches, method=ProximalGradient(tol=1e-8, max_steps=20_000), batch=16)
    rough = solve(coding, coding.patches, method=ProximalGradient(tol=1e-2), batch=16)
    assert exact.success.all() and rough.success.all()
    excess = rough.cost - exact.cost
    assert (excess <= rough.certificate * rough.cost + 1e-12).all() and (excess > 0).any()
    assert rough.nit.mean() < 0.5 * exact.nit.mean()


@pytest.mark.parametrize(
    "schedule", [None, LearnedSchedule(jnp.tile(jnp.array([0.5, 0.2, 0.8]), (12, 1)), jnp.zeros(12))]
)
def test_what_one_point_has_proven_holds_for_those_after_it(coding, schedule):
    least = solve(coding, coding.patches, method=ProximalGradient(tol=1e-8, max_steps=20_000), batch=32).cost
    gap = jax.vmap(lambda x, one: coding.gap(x, jax.grad(coding.smooth)(x, one), one))
    before, better = np.full(32, np.inf), 0
    for steps in range(1, 30):
        found = solve(coding, coding.patches, method=ProximalGradient(schedule, tol=1e-9, max_steps=steps), batch=32)
        assert (found.cost - least <= found.certificate * found.cost + 1e-9).all()
        if schedule is None:  # costs fall, so that the proof cannot get worse
            assert (found.certificate <= before + 1e-9).all()
        alone = gap(jnp.asarray(found.x), coding.patches) / found.cost
        assert (found.certificate <= alone + 1e-5).all()
        before, better = found.certificate, better + np.sum(found.certificate < 0.9 * np.asarray(alone))
    assert better > 0


def test_sparse_coding_agrees_with_coordinate_descent(coding):
    linear_model = pytest.importorskip("sklearn.linear_model")
    found = solve(coding, coding.patches, method=ProximalGradient(tol=1e-8, max_steps=20_000), batch=16)
    dictionary = np.asarray(coding.dictionary, float)
    for row in range(6):
        patch = np.asarray(coding.patches[row], float)
        strength = float(coding.strength) * np.max(np.abs(dictionary.T @ patch))
        theirs = linear_model.Lasso(alpha=strength / len(patch), fit_intercept=False, tol=1e-12, max_iter=100_000)
        theirs.fit(dictionary, patch)
        cost = 0.5 * np.sum((dictionary @ theirs.coef_ - patch) ** 2) + strength * np.sum(np.abs(theirs.coef_))
        assert found.cost[row] == pytest.approx(cost, rel=1e-6)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.ones((1, 3, 9)), "hold no patch of 4 x 4"),
        (np.ones((1, 9, 9)), "images are flat"),
        (np.ones((2, 9, 9, 3)), r"shape \[2, 9, 9, 3\].*Give images\.mean\(axis=3\)"),
        (np.full((1, 9, 9), np.nan), "NaN or infinite"),
    ],
)
def test_images_without_a_patch_to_code_are_refused(images, message):
    with pytest.raises(ValueError, match=message):
        SparseCoding.from_images(images, side=4, atoms=6, count=8)


class Projection(QuadraticProgram):
    """The nearest point of a box on a line through it: solutions by hand, and instances without any."""

    def sample(self, key):
        return jax.random.normal(key, (2,))

    @property
    def matrices(self):
        return jnp.eye(2), jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])

    @property
    def equations(self):
        return jnp.array([False, False, True])

    def vectors(self, instance):
        total = jnp.ones(1, instance.dtype) * jnp.where(instance[0] > 50, 5.0, 1.0)
        low, high = jnp.zeros(2, instance.dtype), jnp.ones(2, instance.dtype)
        return -instance, jnp.concatenate([low, total]), jnp.concatenate([high, total])


def test_quadratic_programs_by_hand_and_infeasible_ones():
    points = np.array([[0.5, 0.5], [2.0, 0.0], [0.3, 0.1], [100.0, 0.0], [np.nan, 0.0]])
    found = solve(Projection(), points, method=ADMM(tol=1e-8), batch=16)
    np.testing.assert_allclose(found.x[:3], [[0.5, 0.5], [1.0, 0.0], [0.6, 0.4]], atol=1e-6)
    assert list(found.status) == [1, 1, 1, -3, -1]


class Assets(QuadraticProgram):
    """Shares of a budget in units of their own: of money (the objective) and of shares (the params)."""

    money: float = 1.0
    share: float = 1.0

    def sample(self, key):
        return jax.random.normal(key, (5,))

    @property
    def matrices(self):
        spread = jnp.array([[0.9 ** abs(i - j) * (1 + i) * (1 + j) for i in range(5)] for j in range(5)])
        return 0.1 * self.money / self.share**2 * spread, jnp.concatenate([jnp.ones((1, 5)), jnp.eye(5)])

    @property
    def equations(self):
        return jnp.arange(6) == 0

    def vectors(self, instance):
        one, zero = jnp.ones(1, instance.dtype), jnp.zeros(5, instance.dtype)
        low, high = jnp.concatenate([one, zero]), jnp.concatenate([one, zero + 0.4])
        return -self.money / self.share * instance, self.share * low, self.share * high


@pytest.mark.parametrize(
    ("share", "money"),
    [
        (1e-6, 1e4),
        *(pytest.param(*it, marks=pytest.mark.slow) for it in ((1e-6, 1e-8), (1.0, 1e-4), (1e3, 1.0))),
        (1e3, 1e-8),
    ],
)
def test_units_of_a_program_change_neither_the_solution_nor_what_counts_as_one(money, share):
    expected = np.random.default_rng(0).normal(size=(50, 5))
    exact, found = (solve(Assets(*units), expected, tol=tol) for units, tol in (((), 1e-9), ((money, share), None)))
    assert exact.success.all() and found.success.all()
    # Of shares up to 0.4; an absolute tolerance of 1e-4 would leave them anywhere where units are that small.
    np.testing.assert_allclose(found.x / share, exact.x, atol=5e-3)


def test_nan_in_equations_that_leave_nothing_free_is_told_at_once():
    points = np.array([[0.5, 0.5], [np.nan, 0.0]])
    found = solve(Settled(), points)
    assert list(found.status) == [1, -1] and found.nit[1] < 100


class Settled(Projection):
    """Nothing is left to choose: both params are what the instance says."""

    @property
    def matrices(self):
        return jnp.eye(2), jnp.eye(2)

    @property
    def equations(self):
        return jnp.array([True, True])

    def vectors(self, instance):
        return -instance, instance, instance


class Programs(QuadraticProgram):
    """Two params, all of whose numbers are fields; an instance is the linear term."""

    quadratic: np.ndarray
    low: np.ndarray
    high: np.ndarray
    rows: tuple[tuple[float, ...], ...] = ((1.0, 0.0), (0.0, 1.0))
    equal: tuple[bool, ...] = (False, False)

    def sample(self, key):
        return jax.random.normal(key, (2,))

    @property
    def matrices(self):
        return jnp.asarray(self.quadratic), jnp.asarray(self.rows)

    @property
    def equations(self):
        return jnp.asarray(self.equal)

    def vectors(self, instance):
        return instance, jnp.asarray(self.low, instance.dtype), jnp.asarray(self.high, instance.dtype)


def test_a_program_that_is_not_convex_or_half_given_is_refused():
    box = np.full(2, -10.0), np.full(2, 10.0)
    triangle, symmetric = np.array([[2, 1.8], [0, 2]]), np.array([[2, 1.8], [1.8, 2]])
    linear = np.array([[-1.0, 1.0]])
    with pytest.raises(ValueError, match=r"not symmetric.*up to 1\.8"):
        solve(Programs(triangle, *box), linear)
    with pytest.raises(ValueError, match="eigenvalue -1, so the program is not convex"):
        solve(Programs(np.diag([1.0, -1.0]), *box), linear)
    exact = solve(Programs(symmetric, *box), linear, method=ADMM(tol=1e-8), batch=16)
    np.testing.assert_allclose(exact.x[0], np.linalg.solve(symmetric, -linear[0]), atol=1e-6)


def test_programs_without_a_solution_say_why():
    box = np.full(2, -1.0), np.full(2, 1.0)
    flat = Programs(np.diag([1.0, 0.0]), *(limit[:1] for limit in box), rows=((1.0, 0.0),), equal=(False,))
    found = solve(flat, np.array([[0.5, 0.0], [0.0, 1.0], [0.0, -1e-3]]), batch=16)
    assert list(found.status) == [1, -4, -4] and "falls without end" in found.message[1]
    crossed = solve(Programs(np.eye(2), box[1], box[0]), np.zeros((1, 2)), batch=16)
    assert list(crossed.status) == [-3] and "contradict" in crossed.message[0]
    loose = solve(Programs(np.eye(2), *box, equal=(True, False)), np.zeros((1, 2)), batch=16)
    assert list(loose.status) == [-3]  # a row that is called an equation and is none


@pytest.mark.parametrize("dtype", [np.float64, pytest.param(np.float32, marks=pytest.mark.slow)])
def test_what_falls_forever_within_one_sided_limits_is_told_and_nothing_else(dtype):
    # With no curvature, q = A^T y is bounded on A x >= l exactly if y >= 0, by l y: its limits are a cone.
    rows, low = np.array([[2.0, -1.0], [0.5, 1.0]]), np.array([-1.0, 3.0])
    weights = np.random.default_rng(0).uniform(0.05, 2.0, (60, 2)) * np.repeat([[1, 1], [1, -1], [-1, -1]], 20, axis=0)
    cone = Programs(np.zeros((2, 2)), low, np.full(2, np.inf), rows=tuple(map(tuple, rows.tolist())))
    found = solve(cone, weights @ rows, batch=64, dtype=dtype)
    assert list(found.status) == 20 * [1] + 40 * [-4] and "falls without end" in found.message[-1]
    np.testing.assert_allclose(found.cost[:20], weights[:20] @ low, atol=2e-3)
    # Curvature holds the first direction: q = alpha v + beta a is then bounded exactly if beta >= 0.
    bent = Programs(np.diag([1.0, 0.0]), low[:1], np.full(1, np.inf), rows=((1.0, 1.0),), equal=(False,))
    found = solve(bent, np.stack([weights[:, 0] + weights[:, 1], weights[:, 1]], axis=1), batch=64, dtype=dtype)
    assert list(found.status) == 20 * [1] + 40 * [-4]
    np.testing.assert_allclose(found.cost[:20], -0.5 * weights[:20, 0] ** 2 - weights[:20, 1], atol=2e-3)


def test_prices_of_soft_rows_hold_what_falls_more_slowly():
    class Priced(Programs):
        @property
        def ceiling(self):
            return jnp.full(2, 0.5)

    priced = Priced(np.zeros((2, 2)), np.zeros(2), np.full(2, np.inf))  # q x + max(-x, 0) / 2 for each of the params
    slopes = np.array([-1.0, -0.1, 0.1, 0.4, 0.6, 2.0])
    linear = np.stack(np.meshgrid(slopes, slopes), axis=-1).reshape(-1, 2)
    found = solve(priced, linear, batch=64)
    np.testing.assert_array_equal(found.status, np.where(((linear > 0) & (linear < 0.5)).all(axis=1), 1, -4))


def test_a_distant_optimum_is_not_taken_for_none():
    for flat, high, far in ((1e-7, np.inf, 1e7), (0.0, 1e7, 1e7)):  # what ends the fall is a weak curvature, or a limit
        family = Programs(np.diag([1.0, flat]), np.zeros(2), np.array([np.inf, high]))
        found = solve(family, np.array([[-1.0, -1.0]]), max_steps=20_000, batch=16)
        assert found.success.all()
        np.testing.assert_allclose(found.x, [[1.0, far]], rtol=1e-2)


def test_control_satisfies_the_conditions_of_an_optimum():
    family = QuadrotorControl.build(horizon=4)
    states = np.asarray(jax.vmap(family.sample)(jax.random.split(jax.random.key(0), 20)), float)
    found = solve(family, states, method=ADMM(tol=1e-6), batch=16)
    assert found.success.all()
    quadratic, constraints = (np.asarray(it, float) for it in family.matrices)
    for row in range(3):
        linear, low, high = (np.asarray(it, float) for it in family.vectors(jnp.asarray(states[row])))
        x = found.x[row]
        rows = constraints @ x
        assert (rows > low - 1e-4).all() and (rows < high + 1e-4).all()
        # No feasible direction descends: the gradient is a combination of the active rows with the right signs.
        active = (rows < low + 1e-4) | (rows > high - 1e-4)
        gradient = quadratic @ x + linear
        weights, *_ = np.linalg.lstsq(constraints[active].T, -gradient, rcond=None)
        assert np.abs(constraints[active].T @ weights + gradient).max() < 1e-3


@pytest.mark.parametrize("size", [1, 3, 8, 9])
def test_the_written_out_cholesky_solves(size):
    rng = np.random.default_rng(size)
    root, target = rng.normal(size=(size, size)).astype(np.float32), rng.normal(size=size).astype(np.float32)
    matrix = root @ root.T + np.eye(size, dtype=np.float32)
    np.testing.assert_allclose(
        solve_spd(jnp.asarray(matrix), jnp.asarray(target)), np.linalg.solve(matrix, target), rtol=2e-4, atol=1e-5
    )
    assert not np.isfinite(solve_spd(-jnp.asarray(matrix), jnp.asarray(target))).any()


@pytest.mark.core
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"starts": 0}, "starts is 0, but it counts the tries"),
        ({"x0": {"height": np.ones(3), "rate": np.ones((3, 1))}}, "x0 has shapes"),
        ({"instances": (np.ones((4, 9)), np.ones(3))}, "first axes differ"),
        (
            {"x0": [np.ones(()), np.ones(1)]},
            "x0 is a tree of arrays 0, 1, but params are a tree of arrays height",
        ),
        ({"instances": np.float64(1)}, "first axes differ"),
        ({"instances": np.ones((4, 1))}, r"shapes \[1\], but an instance of Decay has \[9\]: a single number would be"),
        ({"instances": (np.ones((4, 9)), np.ones(4))}, "are a tree of arrays 0, 1, but .* is one array"),
        ({"instances": np.ones((4, 9), complex)}, r"Decay\.residuals returned complex128\[9\]"),
        ({"instances": np.ones(9)}, r"Rows .* have shapes \[\], but an instance of Decay has \[9\]"),
        ({"batch": 0}, "batch is 0, but it counts the rows"),
        ({"dtype": np.int32}, "dtype is int32"),
        ({"method": ADMM()}, "ADMM solves QuadraticProgram families, and Decay is none"),
    ],
)
def test_mistakes_are_refused(change, says, decays):
    with pytest.raises((ValueError, TypeError), match=says):
        solve(Decay(), **({"instances": decays} | change))


@pytest.mark.parametrize("transform", [jax.jit, jax.grad, jax.vmap])
def test_inside_of_a_transformation_it_is_said_what_to_use_instead(transform, decays):
    with pytest.raises(TypeError, match=r"traced by JAX.* Solve outside.* bygrad\.solvers\.implicit"):
        transform(lambda data: solve(Decay(), data).cost.sum())(jnp.asarray(decays))


def test_nor_may_the_family_or_the_start_be_traced():
    signal = np.ones((2, 3))
    with pytest.raises(TypeError, match=r"The family, the start or the method is traced.*a part of the instance"):
        jax.grad(lambda unit: solve(Unit(unit), signal).cost.sum())(1.0)
    with pytest.raises(TypeError, match=r"The family, the start or the method is traced"):
        jax.jit(lambda x0: solve(Unit(jnp.ones(())), signal, x0=x0).x)(jnp.ones((2, 1)))


class Unit(LeastSquares):
    unit: Array

    def sample(self, key):
        return jnp.zeros(3)

    def init(self, instance, key):
        return jnp.zeros(1)

    def residuals(self, params, instance):
        return self.unit * params[0] - instance


def test_lists_are_refused_in_few_words(decays):
    for mistake in ({"instances": decays.tolist()}, {"instances": decays, "x0": {"height": decays.tolist()}}):
        with pytest.raises(ValueError, match=r"more.*numpy\.asarray") as refused:
            solve(Decay(), **mistake)
        assert len(str(refused.value)) < 800


class Halved(Decay):
    def bounds(self, instance):
        return self.init(instance, jax.random.key(0)), None


class Branching(Decay):
    def residuals(self, params, instance):
        return super().residuals(params, instance) if params["height"] > 0 else instance


class Parts(Decay):
    def residuals(self, params, instance):
        return super().residuals(params, instance), params["height"]


class TwoLosses(Rosenbrock):
    def loss(self, params, instance, key):
        return params


class WithNumber(Rosenbrock):
    def loss(self, params, instance, key):
        return super().loss(params, instance, key), 1


class NoParams(Rosenbrock):
    def init(self, instance, key):
        return {}


class ComplexParams(Rosenbrock):
    def init(self, instance, key):
        return jnp.ones(2) * 1j


class ThreeLimits(Decay):
    def bounds(self, instance):
        return {"height": jnp.zeros(3), "rate": 0.0}, {"height": 1.0, "rate": 1.0}


class Noisy(Rosenbrock):
    def loss(self, params, instance, key):
        return super().loss(params, instance, None) * jax.random.uniform(key)


class OtherStart(Decay):
    def restart(self, instance, key):
        return {"height": jnp.ones(2), "rate": jnp.ones((1,))}


class OtherNames(Decay):
    def restart(self, instance, key):
        return {"rate": jnp.ones((1,)), "slope": jnp.ones(())}


class NoRestart(Decay):
    def restart(self, instance, key):
        return key.nonsense


class Broken(Rosenbrock):
    def loss(self, params, instance, key):
        return params["gone"]


@pytest.mark.core
@pytest.mark.parametrize(
    ("family", "says"),
    [
        (Halved(), r"Halved\.bounds returned .* not a pair of params"),
        (ThreeLimits(), r"limits of shape \[3\] for params of shape \[\] at height, .* a single number for all"),
        (
            OtherStart(),
            r"OtherStart\.restart returned .* of shape \[2\], \[1\], but params are .* of shape \[\], \[1\]",
        ),
        (OtherNames(), r"OtherNames\.restart returned a tree of arrays rate, slope .* but params are .* height, rate"),
        (NoRestart(), r"NoRestart\.restart raised .* mend this one first"),
        (WithNumber(), r"WithNumber\.loss returned float64\[\], int64\[\]; .* return nothing else"),
        (NoParams(), r"NoParams\.init returned a tree without arrays, but .* there must be some"),
        (ComplexParams(), r"ComplexParams\.init returned complex128\[2\], but params are real"),
        (Branching(), r"Branching\.residuals raised TracerBoolConversionError"),
        (Parts(), r"Parts\.residuals returned a tuple, not one array"),
        (TwoLosses(), r"TwoLosses\.loss returned float64\[2\]; a loss must be one"),
        (Noisy(), r"Noisy\.loss works with a key, but without .* Return the loss on all data where key is None"),
        (Broken(), r"Broken\.loss raised .* mend this one first"),
    ],
)
def test_families_that_cannot_be_solved_are_refused(family, says):
    with pytest.raises((ValueError, TypeError), match=says):
        solve(family, np.ones(4) if isinstance(family, Rosenbrock) else np.ones((4, 9)))
    with pytest.raises((ValueError, TypeError), match=says):
        learn(family, heldout=50)


def test_a_class_is_not_taken_for_a_method():
    with pytest.raises(TypeError, match=r"method is the class LevenbergMarquardt.* Give LevenbergMarquardt\(\.\.\.\)"):
        fitting_method(Decay(), LevenbergMarquardt)  # not by `solve`, whose annotation the tests check first


def test_rows_of_another_length_are_solved_and_told(decays):
    class Early(Decay):
        def residuals(self, params, instance):
            times = jnp.asarray(TIMES[: len(instance)], instance.dtype)
            return params["height"] * jnp.exp(-params["rate"] * times) - instance

    assert solve(Early(), decays, batch=16).warnings == ()
    found = solve(Early(), decays[:, :7], batch=16)
    assert found.success.all() and "[7], but Early.sample draws [9]" in found.warnings[0]

    with pytest.raises(ValueError, match=r"have shapes \[7\], but Decay.sample draws \[9\].* Decay\.residuals raised"):
        solve(Decay(), decays[:, :7])

    class Given(Early):
        def sample(self, key):
            raise NotImplementedError

    given = solve(Given(), decays[:, :7], batch=16)
    np.testing.assert_array_equal(given.cost, found.cost)
    assert given.warnings == ()


def test_starts_that_are_all_the_same_are_told(decays):
    class Scattered(Decay):
        def restart(self, instance, key):
            return {"height": jnp.ones(()), "rate": jax.random.uniform(key, (1,), minval=0.5, maxval=2.0)}

    assert "All 3 starts of every instance are the same" in solve(Decay(), decays, starts=3, batch=16).warnings[0]
    assert solve(Scattered(), decays, starts=3, batch=16).warnings == ()
    assert solve(Decay(), decays, batch=16).warnings == ()
    lost = np.where(np.arange(len(decays))[:, None] == 1, np.nan, decays)
    assert "All 3 starts" in solve(FromData(), lost, starts=3, batch=16).warnings[0]
    near = {"height": np.full(len(decays), 1.1), "rate": np.ones((len(decays), 1))}
    assert "All 2 starts of every instance beside x0" in solve(Decay(), decays, x0=near, starts=3, batch=16).warnings[0]
    assert solve(Scattered(), decays, x0=near, starts=3, batch=16).warnings == ()


class FromData(Decay):
    """Starts are NaN where the data are."""

    def init(self, instance, key):
        return {"height": instance[0], "rate": jnp.ones((1,))}


@pytest.mark.parametrize("unit", [1e-18, 1e-24])
def test_of_squares_that_vanish_nothing_is_certified_unless_residuals_are_zero(unit, decays):
    data = np.concatenate([unit * decays[:3], np.zeros((1, 9))])
    found = solve(FromData(), data, dtype=np.float32, batch=16)
    assert (found.status[:3] == Status.UNDERFLOW).all() and np.isinf(found.certificate[:3]).all() and found.success[3]
    assert solve(FromData(), data, batch=16).success.all()


def test_products_are_exact_whatever_jax_would_keep_of_them(decays):
    told = set()

    class Told(Decay):
        def residuals(self, params, instance):
            told.add(jax.config.jax_default_matmul_precision)  # pyright: ignore[reportAttributeAccessIssue]
            return super().residuals(params, instance)

    solve(Told(), decays, dtype=np.float32, batch=16)
    before = len(kept)
    solve(Told(), decays, dtype=np.float32, batch=16)
    assert told == {"highest"} and len(kept) == before
    assert jax.config.jax_default_matmul_precision is None  # pyright: ignore[reportAttributeAccessIssue]


def test_an_oracle_is_solved_in_its_own_precision():
    family = Oracle(
        lambda p, seed, at: (np.sum((p - at) ** 2), 2 * (p - at)), np.zeros(3), draw=lambda seed: np.ones(3)
    )
    with pytest.raises(ValueError, match=r"Give dtype=np\.float32"):
        solve(family, np.ones((2, 3)))
    found = solve(family, np.array([[1.0, 2, 3], [0, 0, 1]]), dtype=np.float32, batch=16)
    np.testing.assert_allclose(found.x, [[1, 2, 3], [0, 0, 1]], atol=1e-4)


def test_numbers_of_python_are_params_and_limits_of_whole_arrays():
    class Line(LeastSquares):
        def sample(self, key):
            return jax.random.normal(key, (5,))

        def init(self, instance, key):
            return {"height": 0.5, "slopes": jnp.zeros(2)}

        def bounds(self, instance):
            return {"height": 0.0, "slopes": -0.1}, {"height": np.inf, "slopes": 0.1}

        def residuals(self, params, instance):
            times = jnp.arange(5.0)
            return params["height"] + params["slopes"] @ jnp.stack([times, -times]) - instance

    found = solve(Line(), np.arange(-1.0, 9.0).reshape(2, 5), batch=16)
    assert found.success.all() and (found.x["height"] > 0).all()
    np.testing.assert_allclose(found.x["slopes"], [[0.1, -0.1]] * 2, atol=1e-9)


def test_bounds_may_be_two_rows_of_an_array():
    class Boxed(Bounded):
        def sample(self, key):
            return jax.random.normal(key, (2,))

        def init(self, instance, key):
            return jnp.zeros(2)

        def bounds(self, instance):
            return jnp.array([[-1.0, -1.0], [1.0, 1.0]])

        def loss(self, params, instance, key):
            return jnp.sum((params - instance) ** 2)

    found = solve(Boxed(), np.array([[2.0, 0.5], [-3.0, 0.1]]), batch=16)
    np.testing.assert_allclose(found.x, [[1.0, 0.5], [-1.0, 0.1]], atol=1e-4)


def test_residuals_may_have_any_shape(decays):
    class Folded(Decay):
        def residuals(self, params, instance):
            return super().residuals(params, instance).reshape(3, 3)

    np.testing.assert_allclose(solve(Folded(), decays, batch=16).cost, solve(Decay(), decays, batch=16).cost)


@pytest.mark.parametrize("stored", ["<f2", ">f4", ">i2", "<i8", "bfloat16", "bool"])
def test_numbers_are_instances_however_they_are_stored(stored):
    class Third(LeastSquares):
        def sample(self, key):
            return jnp.zeros(2)

        def init(self, instance, key):
            return jnp.zeros(2)

        def residuals(self, params, instance):
            return params - instance / 3  # in the precision of the solver, not of the file

    stored_rows = np.array([[0, 1], [1, 1], [1, 0]]).astype(jnp.dtype(stored))
    found = solve(Third(), stored_rows)
    assert found.success.all()
    np.testing.assert_allclose(found.x, stored_rows.astype(float) / 3, atol=1e-9)


@pytest.mark.parametrize(
    ("family", "size"),
    [
        (DampedOscillation(start="constant"), 41),
        (DampedOscillation(start="spectrum"), 41),
        (BallAndStick.embedded(), 102),
        (OralDose(), 12),
        (OralDose(start="stripping"), 12),
    ],
)
def test_whole_numbers_start_where_the_same_floating_point_numbers_do(family, size):
    whole = np.random.default_rng(0).integers(1, 9, size).astype(np.uint16)
    both = whole, whole.astype(np.float32)
    for start in (family.init, family.restart):
        ours, theirs = (jax.jit(lambda it, start=start: start(it, jax.random.key(0)))(data) for data in both)
        assert ours.dtype == theirs.dtype == np.float32
        np.testing.assert_array_equal(ours, theirs)


def test_the_precision_of_the_caller_is_left_alone(decays):
    found = solve(Decay(), decays, batch=16)
    assert found.cost.dtype == np.float64 and jnp.zeros(1).dtype == jnp.float32
    rough = solve(Decay(), decays, dtype=np.float32, method=LevenbergMarquardt(tol=1e-4), batch=16)
    assert rough.cost.dtype == np.float32
    np.testing.assert_allclose(rough.cost, found.cost, rtol=1e-3)


def test_a_family_without_arrays_in_its_instances():
    class Bowl(ProblemFamily):
        def sample(self, key):
            return ()

        def init(self, instance, key):
            return jax.random.normal(key, (3,))

        def loss(self, params: Array, instance, key):
            return jnp.sum(jnp.square(params - 1))

    found = solve(Bowl(), (), x0=np.zeros((5, 3)), batch=16)
    np.testing.assert_allclose(found.x, 1.0, atol=1e-4)
    with pytest.raises(ValueError, match="number is not known"):
        solve(Bowl(), ())


def test_long_rows_are_worked_on_few_at_a_time():
    family, method = Decay(), LevenbergMarquardt()
    flat = Flat.of(family, jnp.zeros(9))
    assert rows_at_once(method, None, flat, np.zeros((5, 9))) == method.batch
    assert rows_at_once(method, None, flat, np.zeros((5, 1_000_000))) == 22
    assert rows_at_once(method, 7, flat, np.zeros((5, 1_000_000))) == 7
