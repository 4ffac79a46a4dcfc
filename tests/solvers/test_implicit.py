"""Derivatives of solutions against finite differences of solutions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bygrad.problems import Composite, LeastSquares, MeanVariance, QuadraticProgram, QuadrotorControl, SparseCoding
from bygrad.solvers import ADMM, LevenbergMarquardt, ProximalGradient, implicit, jacobian, solve

from .families import Decay, decays


@pytest.mark.parametrize("limited", [False, True], ids=["free", "bounds"])
def test_derivatives_agree_with_finite_differences(limited):
    family, h = Decay(limited=limited), 1e-4  # rounding leaves 1e-9 of a solution open
    data = decays(8)
    direction = np.random.default_rng(0).normal(size=9)
    exact = LevenbergMarquardt(tol=1e-16, max_steps=200)
    every = np.concatenate([data, data + h * direction, data - h * direction])
    found = solve(family, every, method=exact, batch=32).x
    x = np.stack([found["height"], found["rate"][:, 0]], axis=1).reshape(3, 8, 2)
    differences = (x[1] - x[2]) / (2 * h)
    with jax.enable_x64(True):

        def vector(params):
            return jnp.concatenate([jnp.ravel(params["height"]), params["rate"]])

        @jax.jit
        @jax.vmap
        def both_modes(at, instance):
            solution = lambda instance: vector(implicit(family, at, instance))  # noqa: E731
            return *jax.jvp(solution, (instance,), (jnp.asarray(direction),)), jax.jacrev(solution)(instance)

        at = {"height": jnp.asarray(x[0, :, 0]), "rate": jnp.asarray(x[0, :, 1:])}
        value, forward, backward = map(np.asarray, both_modes(at, jnp.asarray(data)))
    np.testing.assert_allclose(value, x[0], rtol=1e-12)
    np.testing.assert_allclose(forward, differences, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(backward @ direction, forward, rtol=1e-9, atol=1e-12)
    held = limited & (x[0, :, 0] == 0.9)
    assert held.any() == limited and not forward[held, 0].any()  # a param at its bound stays there


def test_derivatives_of_a_batch_are_computed_in_float64():
    class Cubed(Decay):
        """Instances of two arrays, one of them whole numbers."""

        def sample(self, key):
            return {"data": super().sample(key), "power": jnp.int32(2)}

        def residuals(self, params, instance):
            return instance["power"] * super().residuals(params, instance["data"] ** 3)

    data, h = np.abs(decays(9)) + 0.1, 1e-5
    direction = np.random.default_rng(0).normal(size=9)
    exact = LevenbergMarquardt(tol=1e-16, max_steps=200)
    batches = [{"data": data + step * direction, "power": np.full(9, 2)} for step in (0.0, h, -h)]
    found, higher, lower = (solve(Cubed(), it, method=exact, batch=16) for it in batches)
    found = dataclasses.replace(found, status=np.where(np.arange(9) == 2, 0, found.status))  # out of steps
    derivatives = jacobian(Cubed(), found, batches[0], batch=4)
    assert derivatives["height"]["power"] is None and derivatives["rate"]["data"].shape == (9, 1, 9)
    good = np.arange(9) != 2
    for name, by in derivatives.items():
        differences = (higher.x[name] - lower.x[name]) / (2 * h)
        np.testing.assert_allclose((by["data"] @ direction)[good], differences[good], rtol=1e-4, atol=1e-6)
        assert np.isnan(by["data"][2]).all() and by["data"].dtype == np.float64
    with pytest.raises(ValueError, match="9 solutions and 8 instances"):
        jacobian(Cubed(), found, jax.tree.map(lambda leaf: leaf[:8], batches[0]))


@pytest.mark.core
def test_float64_is_not_differentiated_in_float32():
    family, (instance,) = Decay(), decays(1)
    params = {"height": np.ones(()), "rate": np.ones(1)}
    with pytest.raises(ValueError, match=r"are float64, .* but JAX computes in float32 here.*jax\.enable_x64"):
        jax.jacrev(lambda it: implicit(family, params, it)["rate"])(instance)
    single = jax.tree.map(np.float32, (params, instance))
    by = jax.jit(jax.jacrev(lambda it, params: implicit(family, params, it)["rate"]))
    assert by(single[1], single[0]).shape == (1, 9)
    with jax.enable_x64(True):
        assert by(instance, params).dtype == np.float64


class Capped(LeastSquares):
    """A line through data, with a slope that the instance limits, from above or from below."""

    above: bool

    def sample(self, key):
        return {"data": jax.random.normal(key, (5,)), "cap": jnp.ones(())}

    def init(self, instance, key):
        return jnp.zeros(2)

    def bounds(self, instance):
        cap, far = jnp.stack([jnp.inf, instance["cap"]]), jnp.full(2, jnp.inf)
        return (-far, cap) if self.above else (cap.at[0].set(-jnp.inf), far)

    def residuals(self, params, instance):
        return params[0] + params[1] * jnp.arange(5.0) - instance["data"]


@pytest.mark.parametrize("above", [True, False])
def test_a_limit_that_holds_takes_params_with_it_and_the_others_follow(above):
    data = np.array([[0.0, 2.1, 3.9, 6.0, 8.1]])
    holds, free = (1.0, 3.0) if above else (3.0, 1.0)
    for cap, expected in ((holds, [[-2.0, 1.0]]), (free, [[0.0, 0.0]])):
        instances = {"data": data, "cap": np.array([cap])}
        found = solve(Capped(above), instances, tol=1e-12)
        np.testing.assert_allclose(jacobian(Capped(above), found, instances)["cap"], expected, atol=1e-9)
    h = 1e-4
    moved = solve(Capped(above), {"data": np.repeat(data, 2, 0), "cap": holds + np.array([h, -h])}, tol=1e-14).x
    np.testing.assert_allclose((moved[0] - moved[1]) / (2 * h), [-2.0, 1.0], atol=1e-6)


@pytest.mark.parametrize(("above", "cap"), [(True, 1.3), (False, 3.7)])
def test_what_a_bound_holds_in_float32_is_held_in_float64(above, cap):
    instances = {"data": np.array([[0.0, 2.1, 3.9, 6.0, 8.1]]), "cap": np.array([cap])}
    found = solve(Capped(above), instances, dtype=np.float32)
    slope = float(found.x[0, 1])
    assert 0 < (cap - slope if above else slope - cap) < 1e-6  # inside, by rounding alone
    by = jacobian(Capped(above), found, instances)
    np.testing.assert_allclose(by["cap"], [[-2.0, 1.0]], atol=1e-9)
    np.testing.assert_allclose(by["data"][0], [np.full(5, 0.2), np.zeros(5)], atol=1e-9)


def test_instances_of_integers_have_no_derivatives():
    class Counts(Capped):
        def sample(self, key):
            return jnp.ones(5, int)

        def bounds(self, instance):
            return None

        def residuals(self, params, instance):
            return params[0] + params[1] * jnp.arange(5.0) - instance

    counts = np.array([[1, 2, 4, 5, 5], [0, 1, 1, 2, 4]])
    assert jacobian(Counts(True), solve(Counts(True), counts), counts) is None


def test_no_instances_have_no_derivatives():
    class Powered(Decay):
        def sample(self, key):
            return {"data": super().sample(key), "power": jnp.int32(2)}

        def residuals(self, params, instance):
            return super().residuals(params, instance["data"])

    none = {"data": np.zeros((0, 9)), "power": np.zeros(0, int)}
    found = jacobian(Powered(), solve(Powered(), none), none)
    assert found["height"]["data"].shape == (0, 9) and found["rate"]["data"].shape == (0, 1, 9)
    assert found["height"]["power"] is None and found["rate"]["data"].dtype == np.float64


class Product(LeastSquares):
    """Of two factors only the product is known; the third param has one value, in whatever unit."""

    def sample(self, key):
        return jnp.ones(2)

    def init(self, instance, key):
        return jnp.ones(3)

    def residuals(self, params, instance):
        return jnp.stack([params[0] * params[1] - instance[0], (1e-6 * params[2]) ** 3 - instance[1]])


class Settled(Product):
    """A bound holds the first factor, so that the other one is known."""

    def bounds(self, instance):
        return jnp.array([1.0, 0.0, 0.0]), jnp.full(3, np.inf)


@pytest.mark.parametrize("family", [Product(), Settled()])
def test_where_a_fit_is_not_unique_no_derivative_is_told(family):
    nearly = np.array([1.0, 2.0 + 1e-9, 2e6])  # as a solver leaves it
    with jax.enable_x64(True):
        found = jax.jit(jax.jacrev(lambda one: implicit(family, nearly, one)))(np.array([2.0, 8.0]))
    exact = [[0.0, 0.0], [1.0, 0.0], [0.0, 1e6 / 12]] if isinstance(family, Settled) else np.full((3, 2), np.nan)
    np.testing.assert_allclose(found, exact, rtol=1e-6)


class Codes(Composite):
    """The LASSO; the weight of the penalty belongs to the instance."""

    dictionary: np.ndarray

    def sample(self, key):
        return {"signal": jax.random.normal(key, self.dictionary.shape[:1]), "weight": jnp.ones(())}

    def init(self, instance, key):
        return jnp.zeros(self.dictionary.shape[1])

    def smooth(self, params, instance):
        return 0.5 * jnp.sum(jnp.square(self.dictionary @ params - instance["signal"]))

    def penalty(self, params, instance):
        return instance["weight"] * jnp.sum(jnp.abs(params))

    def prox(self, params, step, instance):
        return jnp.sign(params) * jnp.maximum(jnp.abs(params) - step * instance["weight"], 0.0)

    def curvature(self):
        return jnp.linalg.norm(self.dictionary, ord=2) ** 2


class Nearest(Composite):
    """The point of the simplex next to the instance."""

    def sample(self, key):
        return jax.random.normal(key, (6,))

    def init(self, instance, key):
        return jnp.full(6, 1 / 6)

    def smooth(self, params, instance):
        return 0.5 * jnp.sum(jnp.square(params - instance))

    def penalty(self, params, instance):
        return jnp.zeros(())

    def prox(self, params, step, instance):
        falling = jnp.sort(params)[::-1]
        means = (jnp.cumsum(falling) - 1) / jnp.arange(1, 7)
        return jnp.maximum(params - means[jnp.sum(falling > means) - 1], 0.0)

    def curvature(self):
        return jnp.ones(())


class Program(QuadraticProgram):
    """Any quadratic program; an instance is its vectors."""

    quadratic: np.ndarray
    rows: np.ndarray
    equal: np.ndarray
    price: float = np.inf

    def sample(self, key):
        return tuple(jnp.zeros(size) for size in (len(self.quadratic), len(self.rows), len(self.rows)))

    @property
    def matrices(self):
        return jnp.asarray(self.quadratic), jnp.asarray(self.rows)

    @property
    def equations(self):
        return jnp.asarray(self.equal)

    @property
    def ceiling(self):
        return jnp.full(len(self.rows), self.price)

    def vectors(self, instance):
        return instance


def both_ways(family, params, instance, dual=None):
    """Return the Jacobian of a solution by reverse mode, after comparing it with that of forward mode."""
    with jax.enable_x64(True):
        params, instance, dual = jax.tree.map(jnp.asarray, (params, instance, dual))

        def solution(params, instance, dual):
            return implicit(family, params, instance, dual)

        np.testing.assert_array_equal(jax.jit(solution)(params, instance, dual), params)
        backward, forward = (
            jax.tree.map(np.asarray, jax.jit(by(solution, argnums=1))(params, instance, dual))
            for by in (jax.jacrev, jax.jacfwd)
        )
        jax.tree.map(lambda *pair: np.testing.assert_allclose(*pair, rtol=1e-9, atol=1e-12), backward, forward)
        return backward


def test_the_codes_of_an_orthonormal_dictionary_are_thresholds():
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(7, 7)))[0]
    signal = np.random.default_rng(1).normal(size=7)
    spectrum = turn.T @ signal
    found = both_ways(
        Codes(turn), np.sign(spectrum) * np.maximum(abs(spectrum) - 0.5, 0), {"signal": signal, "weight": np.array(0.5)}
    )
    used = abs(spectrum) > 0.5
    assert 0 < used.sum() < 7
    np.testing.assert_allclose(found["signal"], used[:, None] * turn.T, atol=1e-12)
    np.testing.assert_allclose(found["weight"], np.where(used, -np.sign(spectrum), 0.0), atol=1e-12)


@pytest.mark.parametrize(
    "as_program", [pytest.param(False, id="composite", marks=pytest.mark.slow), pytest.param(True, id="program")]
)
def test_a_projection_onto_the_simplex_moves_its_support_within_the_plane(as_program):
    points = np.random.default_rng(2).normal(size=(8, 6))
    if as_program:
        family = Program(np.eye(6), np.vstack([np.ones(6), np.eye(6)]), np.arange(7) == 0)
        limits = np.tile(np.eye(7)[0], (8, 1)), np.tile([1.0] + 6 * [np.inf], (8, 1))
        data = (-points, *limits)
    else:
        family, data = Nearest(), points
    found = solve(family, data)
    derivatives = jacobian(family, found, data, batch=5)
    moved = -derivatives[0] if as_program else derivatives
    sizes = set()
    for row, point in enumerate(points):
        falling = np.sort(point)[::-1]
        means = (np.cumsum(falling) - 1) / np.arange(1, 7)
        support = (point > means[np.sum(falling > means) - 1]).astype(float)
        sizes.add(support.sum())
        exact = np.diag(support) - np.outer(support, support) / support.sum()
        np.testing.assert_allclose(moved[row], exact, atol=1e-12)
        if as_program:  # the sum that is asked for is spread over the support
            np.testing.assert_allclose(derivatives[1][row, :, 0], support / support.sum(), atol=1e-12)
    assert len(sizes) > 1


@pytest.mark.parametrize(("told", "force"), [(True, True), (False, True), (False, False)])
def test_programs_of_equations_alone_are_linear_systems(told, force):
    rng = np.random.default_rng(3)
    root, rows, x = (rng.integers(-3, 4, size=size).astype(float) for size in ((5, 5), (2, 5), 5))
    y = np.array([1.0, -2.0]) if force else np.zeros(2)  # multipliers of equations may be zero
    quadratic = root @ root.T
    linear, given = -quadratic @ x - rows.T @ y, rows @ x
    inverse = np.linalg.inv(np.block([[quadratic, rows.T], [rows, np.zeros((2, 2))]]))
    family = Program(quadratic, rows, np.full(2, told))
    by_linear, *by_limits = both_ways(family, x, (linear, given, given), np.zeros(0) if told else y)
    np.testing.assert_allclose(by_linear, -inverse[:5, :5], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(sum(by_limits), inverse[:5, 5:], rtol=1e-9, atol=1e-12)  # both limits move together


def test_params_in_a_box_follow_the_limit_that_holds_them():
    curvature, linear = np.array([1.0, 2.0, 4.0]), np.array([-0.5, 6.0, -8.0])
    low, high = np.array([-1.0, -2.0, -np.inf]), np.array([1.0, 2.0, 1.5])
    family, free = Program(np.diag(curvature), np.eye(3), np.zeros(3, bool)), -linear / curvature
    x = np.clip(free, low, high)  # free, at the lower limit, at the upper one
    by_linear, by_low, by_high = both_ways(family, x, (linear, low, high), curvature * (free - x))
    np.testing.assert_allclose(by_linear, np.diag([-1.0, 0.0, 0.0]), atol=1e-12)
    np.testing.assert_allclose(by_low, np.diag([0.0, 1.0, 0.0]), atol=1e-12)
    np.testing.assert_allclose(by_high, np.diag([0.0, 0.0, 1.0]), atol=1e-12)


def test_a_solution_of_zeros_between_its_limits_has_derivatives():
    family, zero = Program(np.diag([1.0, 2.0]), np.eye(2), np.zeros(2, bool)), np.zeros(2)
    by_linear, by_low, by_high = both_ways(family, zero, (zero, -np.ones(2), np.ones(2)), zero)
    np.testing.assert_allclose(by_linear, np.diag([-1.0, -0.5]), atol=1e-12)
    assert not by_low.any() and not by_high.any()


def test_where_the_price_of_a_row_is_paid_it_no_longer_holds_params():
    family = Program(np.eye(3), np.eye(3), np.zeros(3, bool), price=0.5)  # x² / 2 + q x + |x| / 2 for limits of 0
    linear, zero = np.array([-2.0, -0.25, 2.0]), np.zeros(3)
    x, dual = np.array([1.5, 0.0, -1.5]), np.array([0.5, 0.25, -0.5])
    by_linear, by_low, by_high = both_ways(family, x, (linear, zero, zero), dual)
    np.testing.assert_allclose(by_linear, np.diag([-1.0, 0.0, -1.0]), atol=1e-12)
    np.testing.assert_allclose(by_low + by_high, np.diag([0.0, 1.0, 0.0]), atol=1e-12)


def degenerate():
    """Solutions that have no derivative, and systems that are singular, by name."""
    none, zero, inf, line = np.zeros(1, bool), np.zeros(1), np.full(1, np.inf), np.ones((1, 2))
    flat = np.outer([0.1, 0.7], [0.1, 0.7])  # to rounding
    box, both = Program(np.eye(2), np.eye(2), np.zeros(2, bool)), np.array([-1.0, -2.0])
    twice = Program(np.eye(2), np.repeat(line, 2, axis=0), np.zeros(2, bool))
    priced = Program(np.eye(1), np.eye(1), none, price=0.5)
    codes = {"signal": np.array([3.0, -1.0, 0.25]), "weight": np.array(1.0)}
    return {
        "a coefficient at its threshold": (Codes(np.eye(3)), np.array([2.0, 0.0, 0.0]), codes),
        "an atom that is there twice": (Codes(np.repeat(np.eye(3)[:, :1], 2, axis=1)), np.ones(2), codes),
        "a point of the simplex": (Nearest(), np.eye(6)[0], np.eye(6)[0]),
        "a limit without force": (box, np.ones(2), (both, np.full(2, -9.0), np.ones(2)), np.array([0.0, 1.0])),
        "nothing but zeros": (Program(np.eye(1), np.eye(1), none), zero, (zero, zero, inf), zero),
        "no curvature": (Program(flat, line, none), np.zeros(2), (np.zeros(2), -inf, inf), zero),
        "a limit twice": (twice, np.array([0.0, 1.0]), (both, np.full(2, -9.0), np.ones(2)), np.full(2, 0.5)),
        "a price just paid": (priced, zero, (np.full(1, -0.5), zero, zero), np.full(1, 0.5)),
    }


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=[pytest.mark.slow] * (number % 3 > 0)) for number, case in enumerate(degenerate())],
)
def test_what_has_no_derivative_is_nan_and_never_a_number(case):
    for by in jax.tree.leaves(both_ways(*degenerate()[case])):
        assert np.isnan(by).all()


def test_from_anywhere_derivatives_are_right_or_nan():
    rng = np.random.default_rng(4)
    root, linear, limit = rng.normal(size=(6, 6)), 3 * rng.normal(size=6), np.ones(6)
    family = Program(root @ root.T + 0.1 * np.eye(6), np.eye(6), np.zeros(6, bool))
    instance = (linear, -limit, limit)
    found = solve(family, jax.tree.map(lambda leaf: leaf[None], instance), tol=1e-12)
    held = np.abs(found.dual[0]) > 1e-6
    assert 0 < held.sum() < 6
    exact = np.zeros((6, 6))
    exact[np.ix_(~held, ~held)] = -np.linalg.inv(family.quadratic[np.ix_(~held, ~held)])
    known = []
    with jax.enable_x64(True):
        by = jax.jit(jax.jacrev(lambda linear, x, dual: implicit(family, x, (linear, -limit, limit), dual)))
        for scale in np.geomspace(1e-9, 10.0, 40):
            near, dual = (it[0] + scale * rng.normal(size=6) for it in (found.x, found.dual))
            derivatives = np.asarray(by(linear, near, dual))
            known.append(not np.isnan(derivatives).any())
            assert known[-1] or np.isnan(derivatives).all()
            if known[-1]:
                np.testing.assert_allclose(derivatives, exact, atol=1e-9)
    assert all(known[:10]) and not all(known)


def quadrotors(count):
    family = QuadrotorControl.build(horizon=3)
    return family, np.asarray(jax.vmap(family.sample)(jax.random.split(jax.random.key(0), count)), float)


def codes_of_patches(count):
    family = SparseCoding.embedded(count=64)
    return family, np.asarray(family.patches[:count], float)


def portfolios(count):
    family = MeanVariance.simulated()
    return family, family.windows()[:: 2269 // count][:count]


@pytest.mark.parametrize(
    "build", [*(pytest.param(it, marks=pytest.mark.slow) for it in (quadrotors, codes_of_patches)), portfolios]
)
def test_derivatives_of_shipped_families_agree_with_finite_differences(build):
    (family, data), h = build(6), 1e-6
    direction = np.random.default_rng(0).normal(size=data.shape)
    found = solve(family, data)  # no more exactly than by default: the piece is known, and on it the solution
    derivatives = jacobian(family, found, data, batch=6)
    exact = ADMM(tol=1e-11, max_steps=50_000) if found.dual.size else ProximalGradient(tol=1e-14, max_steps=50_000)
    assert not found.dual.size or np.any(found.dual)  # limits bind
    near = solve(
        family, np.concatenate([data + h * direction, data - h * direction]), method=exact, x0=np.tile(found.x, (2, 1))
    )
    differences = (near.x[:6] - near.x[6:]) / (2 * h)
    along = np.sum(derivatives * direction[:, None], axis=tuple(range(2, derivatives.ndim)))
    np.testing.assert_allclose(along, differences, atol=1e-5 * np.abs(differences).max())


def test_which_rows_of_a_program_bind_is_asked_for():
    family, data = quadrotors(1)
    with pytest.raises(ValueError, match="do not tell which rows bind"):
        implicit(family, family.init(data[0], jax.random.key(1)), data[0].astype(np.float32))
