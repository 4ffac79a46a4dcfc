"""Quadratic programs: the reduction, its solutions, learned starts that lie, and what `learn` makes of programs."""

import dataclasses
import sys
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bygrad.deploy import solver as deployed
from bygrad.deploy.solver import load_solver, save_solver
from bygrad.problems import QuadraticProgram, SparseCoding, check_family
from bygrad.solvers import (
    ADMM,
    LBFGS,
    Flat,
    LearnedSchedule,
    LearnedSolver,
    LearnedWarmStart,
    ProximalGradient,
    Whitening,
    admm,
    learn,
    reduce_program,
    solve,
)
from bygrad.solvers.admm import relative_gap
from bygrad.solvers.base import OncePerFamily
from bygrad.solvers.training import Examples, train_schedule, train_warm_start


class Box(QuadraticProgram):
    """Matrices of whole numbers; the second row is an equation in its limits."""

    def sample(self, key):
        return jnp.zeros(2)

    @property
    def matrices(self):
        return np.diag([2, 1]), np.array([[1, 0], [1, 1]])

    def vectors(self, instance):
        return instance, jnp.array([-1.0, 0.5]), jnp.array([1.0, 0.5])


@pytest.mark.parametrize(("first", "curved"), [(0.1, 0.0), (2.0, 100.0)])
def test_limits_have_curvature_where_they_are_violated_and_equations_everywhere(first, curved):
    params, outer = jnp.array([first, 0.2]), np.ones((2, 2))
    hessian = jax.hessian(Box().loss)(params, jnp.zeros(2), None)
    np.testing.assert_allclose(hessian, np.diag([2 + curved, 1.0]) + 100 * outer, rtol=1e-6)


def test_whole_numbers_in_matrices_make_a_family_all_the_same():
    assert check_family(Box(), jax.random.key(0)).dtype == jnp.float32


class Plan(QuadraticProgram):
    """Four numbers with a given sum and, if `priced`, a row that may be violated at a price; the instance moves them.

    The lower bound drops all limits but the sum, which leaves a projection onto a plane.
    """

    priced: bool = eqx.field(static=True, default=False)
    proves: bool = eqx.field(static=True, default=False)

    def sample(self, key):
        return jax.random.normal(key, (4,))

    @property
    def matrices(self):
        rows = jnp.concatenate([jnp.ones((1, 4)), jnp.eye(4), jnp.array([[1.0, -1.0, 0.0, 0.0]])])
        return jnp.diag(jnp.array([1.0, 2.0, 0.0, 3.0])) + 0.1, rows

    @property
    def equations(self):
        return jnp.arange(6) == 0

    @property
    def ceiling(self):
        return jnp.array([jnp.inf] * 5 + [0.3 if self.priced else jnp.inf])

    def vectors(self, instance):
        low = jnp.concatenate([jnp.ones(1), jnp.zeros(4), -jnp.ones(1)]).astype(instance.dtype)
        high = jnp.concatenate([jnp.ones(1), jnp.ones(4), jnp.zeros(1)]).astype(instance.dtype)
        return instance, low, high

    def certify(self, params, dual, instance):
        if not self.proves:
            return None
        point = jnp.clip(params, 0, 1)
        point = jnp.where(jnp.any(point > 0), point, 1.0)
        point = point / jnp.sum(point)
        mean = 0.5 * (point[0] + point[1])
        point = jnp.where(point[0] > point[1], point.at[:2].set(mean), point)
        _, constraints = self.matrices
        _, low, high = self.vectors(instance)
        rows, up = constraints[1:] @ point, jnp.maximum(dual, 0)
        quadratic = self.matrices[0]
        slope = quadratic @ point + instance + constraints[1:].T @ dual
        # The Lagrangian is convex: below it lies its tangent, which is least at a vertex of the simplex.
        value = self.objective(point, instance) + dual @ rows - high[1:] @ up + low[1:] @ jnp.maximum(-dual, 0)
        return point, self.objective(point, instance), value + jnp.min(slope) - slope @ point


@pytest.fixture(scope="module")
def data() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(40, 4))


def test_the_loss_is_the_objective_and_what_violations_cost():
    family, instance, params = Plan(priced=True), np.array([0.5, -1.0, 2.0, 0.0]), np.array([1.5, 0.5, -0.25, 0.5])
    quadratic = np.diag([1.0, 2.0, 0.0, 3.0]) + 0.1
    hard = np.array([2.25 - 1, 1.5 - 1, -0.25])  # of the sum, and of two limits
    expected = 0.5 * params @ quadratic @ params + instance @ params + 0.5 * 100 * hard @ hard + 0.3 * 1.0
    found = family.loss(jnp.asarray(params, jnp.float32), jnp.asarray(instance, jnp.float32), None)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("flat", [False, True], ids=["curved", "flat"])
def test_the_reduction_is_diagonal_and_without_equations(flat):
    rng = np.random.default_rng(1)
    root, rows = rng.normal(size=(3 if flat else 7, 7)), rng.normal(size=(9, 7))
    equations = np.arange(9) < 3
    rows[2] = rows[0] + rows[1]  # a redundant equation
    quadratic = root.T @ root
    with jax.enable_x64(True):
        found = reduce_program(quadratic, rows, equations, np.full(9, np.inf), float)
        to = jax.tree.map(np.asarray, found)
    np.testing.assert_allclose(rows[:3] @ to.basis, 0, atol=1e-9)
    np.testing.assert_allclose(to.basis.T @ quadratic @ to.basis, np.diag(to.curvature), atol=1e-9)
    np.testing.assert_allclose(to.rows.T @ to.rows, np.diag(to.weight), atol=1e-9)
    np.testing.assert_allclose(to.rows, to.scale[:, None] * rows[3:] @ to.basis, atol=1e-9)
    point = rng.normal(size=7)
    given = rows[:3] @ point
    np.testing.assert_allclose(rows[:3] @ to.solve @ given, given, atol=1e-9)
    # Every point that satisfies the equations is reached.
    rest = point - to.solve @ given
    inner, *_ = np.linalg.lstsq(to.basis, rest, rcond=None)
    np.testing.assert_allclose(to.basis @ inner, rest, atol=1e-8)
    # `inverse` turns a gradient in these coordinates into one along the equations, of the same length as in the space.
    slope = rng.normal(size=7)
    along = slope - np.linalg.pinv(rows[:3]) @ rows[:3] @ slope
    assert np.linalg.norm(to.inverse.T @ (to.basis.T @ slope)) == pytest.approx(np.linalg.norm(along), rel=1e-6)


@pytest.mark.parametrize("priced", [False, True], ids=["hard", "soft"])
def test_programs_agree_with_scipy(priced, data):
    optimize = pytest.importorskip("scipy.optimize")
    family = Plan(priced=priced)
    found = solve(family, data[:10], method=ADMM(tol=1e-8, max_steps=20_000), batch=16)
    assert found.success.all()
    quadratic = np.asarray(family.matrices[0], float)
    for x, linear in zip(found.x, data, strict=False):

        def cost(p, linear=linear):
            return 0.5 * p @ quadratic @ p + linear @ p + (0.3 * max(p[0] - p[1], -1 - p[0] + p[1], 0) if priced else 0)

        limits = [{"type": "eq", "fun": lambda p: p.sum() - 1}]
        limits += [] if priced else [{"type": "ineq", "fun": lambda p: p[1] - p[0]}]
        starts = np.vstack([np.full(4, 0.25), np.eye(4)[1:]])
        theirs = [
            optimize.minimize(cost, x0, bounds=[(0, 1)] * 4, constraints=limits, options={"ftol": 1e-14})
            for x0 in starts
        ]
        assert x.sum() == pytest.approx(1, abs=1e-9) and (x > -1e-6).all()
        assert priced or x[0] <= x[1] + 1e-6
        assert cost(x) == pytest.approx(min(it.fun for it in theirs if it.success), abs=2e-5)


def test_multipliers_fulfil_the_conditions_of_an_optimum(data):
    found = solve(Plan(), data, method=ADMM(tol=1e-8, max_steps=20_000), batch=16)
    quadratic, rows = (np.asarray(it, float) for it in Plan().matrices)
    slope = found.x @ quadratic + data + found.dual @ rows[1:]
    np.testing.assert_allclose(slope - slope.mean(axis=1, keepdims=True), 0, atol=1e-5)  # what is left: the sum's
    values = found.x @ rows[1:].T
    high, low = np.array([1, 1, 1, 1, 0.0]), np.array([0, 0, 0, 0, -1.0])
    assert (np.maximum(found.dual, 0) * (high - values) < 1e-5).all()
    assert (np.maximum(-found.dual, 0) * (values - low) < 1e-5).all()


def test_equations_that_contradict_each_other_are_told():
    class Twice(Plan):
        @property
        def matrices(self):
            quadratic, rows = super().matrices
            return quadratic, jnp.concatenate([rows[:1], rows])

        @property
        def equations(self):
            return jnp.arange(7) < 2

        @property
        def ceiling(self):
            return jnp.full(7, jnp.inf)

        def vectors(self, instance):
            linear, low, high = super().vectors(instance)
            other = jnp.where(instance[:1] > 1, 2.0, 1.0)
            return linear, jnp.concatenate([other, low]), jnp.concatenate([other, high])

    found = solve(Twice(), np.array([[2.0, 0, 0, 0], [0.5, 0, 0, 0]]), batch=16)
    assert list(found.status) == [-3, 1]


def liar(fill: float, key: int = 0) -> LearnedWarmStart:
    """A warm start whose arrays hold `fill`."""
    whitening = Whitening(jnp.zeros(4), jnp.ones(4), jnp.zeros(9), jnp.ones(9))
    blank = LearnedWarmStart.blank(whitening, 4, jax.random.key(key))
    return jax.tree.map(lambda leaf: jnp.full_like(leaf, fill) if eqx.is_inexact_array(leaf) else leaf, blank)


@pytest.mark.parametrize("proves", [False, True], ids=["residuals", "bounds"])
@pytest.mark.parametrize("fill", [np.nan, *(pytest.param(it, marks=pytest.mark.slow) for it in (1e30, -3.0, 0.7))])
def test_no_warm_start_changes_what_is_solved(fill, proves, data):
    family = Plan(proves=proves)
    classical = solve(family, data, method=ADMM(tol=1e-6, max_steps=20_000), batch=64)
    base = ADMM(tol=1e-6, max_steps=20_000)
    solver = LearnedSolver(family, dataclasses.replace(base, warm=liar(fill)), base, None, 1, 1)
    found = solver.solve(data, batch=64)
    assert classical.success.all() and found.success.all()
    np.testing.assert_allclose(found.cost, classical.cost, atol=1e-5)


class Known(LearnedWarmStart):
    """A warm start that knows solutions by heart, and answers every instance with the nearest one's."""

    instances: jax.Array
    answers: jax.Array

    def __call__(self, instance):
        nearest = jnp.argmin(jnp.sum(jnp.square(self.instances - instance), axis=1))
        return self.answers[nearest, :4], self.answers[nearest, 4:], jnp.zeros(())


@given(size=st.floats(1e-3, 1e6), rise=st.floats(0, 1e3), share=st.floats(0, 1), sign=st.sampled_from([1, -1]))
def test_a_cost_exceeds_the_minimum_by_no_larger_part_than_its_gap(size, rise, share, sign):
    lowest, cost = sorted([sign * size, sign * size * (1 + rise)])
    with jax.enable_x64(True):
        gap = float(relative_gap(jnp.float64(cost), jnp.float64(lowest)))
    assert gap == pytest.approx(rise, rel=1e-9, abs=1e-12)
    minimum = lowest + share * (cost - lowest)  # a bound is below the minimum, a cost above
    assert cost - minimum <= gap * abs(minimum) * (1 + 1e-9) + 1e-9


def test_costs_and_gaps_are_the_best_so_far_as_iterates_swing(data):
    """A good start is not lost, whatever ADMM makes of it first."""
    family = Plan(proves=True)
    with jax.enable_x64(True):
        flat = Flat.of(family, jax.ShapeDtypeStruct(data.shape[1:], jnp.float64))
        method = ADMM(rho=1e-3, inner=1, tol=-1.0).prepare(flat, jnp.float64)
        instances = jnp.asarray(data[:20], jnp.float64)
        lowest = solve(family, data[:20], tol=1e-9).cost
        start = jax.vmap(lambda one: method.start(flat, one, family.init(one, jax.random.key(0))))(instances)

        def step(at: Any, _: None) -> tuple[Any, Any]:
            at = jax.vmap(lambda one, at: method.step(flat, one, at))(instances, at)
            return at, (at.cost, at.memory.bound)

        _, (costs, bounds) = jax.lax.scan(step, start, None, length=60)
    assert np.all(np.diff(costs, axis=0) <= 0) and np.all(np.diff(bounds, axis=0) >= 0)
    assert np.all(costs[0] <= start.cost) and np.all(bounds[0] >= start.memory.bound)
    assert np.all(costs >= lowest - 1e-7) and np.all(bounds <= lowest + 1e-7)
    assert np.all((costs - bounds)[-1] < 0.1 * (costs - bounds)[0])


def test_an_optimum_that_costs_nothing_but_rounding_has_no_gap():
    with jax.enable_x64(True):
        cost, lowest = jnp.float64(1e-16), jnp.float64(-3e-16)
        assert float(relative_gap(cost, lowest, 1.0)) == 0.0 and float(relative_gap(cost, lowest, 1e-3)) == 4.0
        assert float(relative_gap(1 + cost, 1 + 2 * lowest, 1.0)) > 0  # a cost that is one keeps its gap


def test_what_is_proven_is_not_iterated_and_all_else_is_solved(data):
    family = Plan(proves=True)
    exact = solve(family, data, method=ADMM(tol=1e-6, max_steps=20_000), batch=64)
    blank = liar(0.0)
    answers = jnp.asarray(np.concatenate([exact.x, exact.dual], axis=1)[:20], jnp.float32)
    known = Known(blank.network, blank.linear, blank.whitening, None, 4, jnp.asarray(data[:20], jnp.float32), answers)
    solver = LearnedSolver(family, ADMM(tol=1e-2, warm=known), ADMM(tol=1e-2), None, 1, 1, dtype="float32")
    found = solver.solve(data, batch=64)
    assert found.success.all() and (found.certificate <= 1e-2 * (1 + 1e-6)).all() and found.x.dtype == np.float32
    assert (found.nit[:20] == 0).all() and (found.nit[20:] > 0).any()
    np.testing.assert_array_equal(found.nfev, found.nit + 1)  # the bounds of the proposal
    assert (found.cost - exact.cost <= 1e-2 * np.abs(found.cost) + 1e-5).all()


def test_multipliers_below_their_threshold_are_zero_and_others_are_nearer_by_it():
    """Soft-thresholding, in units of each multiplier's spread."""
    draws = np.random.default_rng(0)
    rows, solutions = draws.normal(size=(50, 3)), draws.normal(size=(50, 6)) * [1, 1, 1, 5, 0.1, 1]
    warm = LearnedWarmStart.fitted(jnp.asarray(rows), jnp.asarray(solutions), 3, jax.random.key(0))
    assert warm.threshold is not None
    plain = eqx.tree_at(lambda it: it.threshold, warm, None)
    (x, dual, _), (expected, raw, _) = (jax.vmap(it)(jnp.asarray(rows)) for it in (warm, plain))
    np.testing.assert_array_equal(x, expected)
    least = 0.1 * solutions[:, 3:].std(axis=0)
    np.testing.assert_allclose(dual, np.sign(raw) * np.maximum(np.abs(raw) - least, 0), rtol=1e-4, atol=1e-5)
    assert 0 < np.mean(np.asarray(dual) == 0) < 0.5
    # It is learned: what presses more has a slope.
    slope = eqx.filter_grad(lambda it: jnp.sum(jnp.abs(jax.vmap(it)(jnp.asarray(rows))[1])))(warm).threshold
    assert np.all(np.asarray(slope) < 0)


def test_a_file_from_before_there_were_thresholds_is_read(data, tmp_path):
    warm = eqx.tree_at(lambda it: it.threshold, liar(2.0), None)
    solver = LearnedSolver(Plan(), ADMM(warm=warm), ADMM(), None, 1, 1)
    before, path = deployed._sizes, tmp_path / "old.safetensors"

    def old(network: Any) -> Any:
        sizes = before(network)
        return sizes and {name: it for name, it in sizes.items() if name != "thresholds"}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deployed, "_sizes", old)
        save_solver(solver, path)
    again = load_solver(path, Plan())
    assert again.method.warm.threshold is None and again.digest == solver.digest
    save_solver(dataclasses.replace(solver, method=ADMM(warm=liar(2.0))), path)
    assert load_solver(path, Plan()).method.warm.threshold is not None


@pytest.mark.parametrize("priced", [False, True], ids=["limits", "prices"])
def test_an_optimum_with_its_multipliers_needs_no_iterations(priced, data):
    family, method = Plan(priced=priced), ADMM(tol=1e-6, max_steps=20_000, inner=1)
    exact = solve(family, data, method=dataclasses.replace(method, tol=1e-9), batch=64)
    cold = solve(family, data, method=method, batch=64)
    half = solve(family, data, method=method, x0=exact.x, batch=64)
    warm = solve(family, data, method=method, x0=exact.x, dual0=exact.dual, batch=64)
    assert warm.success.all() and warm.nit.max() <= 2 < min(np.median(cold.nit), np.median(half.nit))
    # Multipliers that are not finite are none; further starts have none.
    lost = solve(family, data, method=method, x0=exact.x, dual0=np.full((40, 5), np.inf), batch=64)
    np.testing.assert_array_equal(lost.nit, half.nit)
    twice = solve(family, data, method=method, x0=exact.x, dual0=exact.dual, starts=2, batch=64)
    np.testing.assert_array_equal(twice.nit - warm.nit, cold.nit)


def test_multipliers_that_do_not_fit_are_refused(data):
    with pytest.raises(ValueError, match=r"dual0 has shape \[40, 3\], but 40 starts have \[40, 5\] multipliers"):
        solve(Plan(), data, x0=np.zeros(4), dual0=np.zeros((40, 3)))
    with pytest.raises(ValueError, match="x0 is None"):
        solve(Plan(), data, dual0=np.zeros((40, 5)))
    with pytest.raises(ValueError, match=r"40 starts have \[40, 0\] multipliers"):
        solve(Plan(), data, method=LBFGS(), x0=np.zeros(4), dual0=np.zeros((40, 5)))


@pytest.mark.parametrize("name", ["x0", "dual0"])
def test_what_is_no_guess_is_refused(name, data):
    found = solve(Plan(), data[:2])
    for wrong, says in ((found, "a Solution"), (getattr(found, name[:-1]) + 1j, "of dtype complex128"), ("x", "a str")):
        with pytest.raises(TypeError, match=rf"{name} is {says}, but it must hold real numbers\. Of a solution"):
            solve(Plan(), data[:2], **({"x0": found.x} | {name: wrong}))


@pytest.mark.slow
@pytest.mark.parametrize("proves", [False, True], ids=["residuals", "bounds"])
def test_of_a_guess_and_a_learned_warm_start_the_better_one_is_taken(proves, data):
    family, base = Plan(proves=proves), ADMM(tol=1e-4, max_steps=20_000, inner=1)
    exact = solve(Plan(), data, method=ADMM(tol=1e-9, max_steps=20_000), batch=64)
    blank = liar(0.0)
    answers = jnp.asarray(np.concatenate([exact.x, exact.dual], axis=1), jnp.float32)
    known = Known(blank.network, blank.linear, blank.whitening, None, 4, jnp.asarray(data, jnp.float32), answers)
    knows, lies = (
        LearnedSolver(family, dataclasses.replace(base, warm=warm), base, None, 1, 1) for warm in (known, liar(0.7))
    )
    far = exact.x + 1.0
    guesses = {"x0": exact.x, "dual0": exact.dual}
    for solver, guess in ((knows, {}), (knows, {"x0": far}), (lies, guesses)):
        found = solver.solve(data, batch=64, **guess)
        assert found.success.all() and found.nit.max() <= 2 and not found.used_fallback.any()
    assert np.median(lies.solve(data, batch=64).nit) > 2
    # A warm start that stops at once: the classical solver begins at a start of its own, not at the guess.
    stopped = dataclasses.replace(lies, method=dataclasses.replace(lies.method, tol=-1.0, max_steps=1))
    found, alone = stopped.solve(data, batch=64, **guesses), solve(family, data, method=base, batch=64)
    assert found.success.all() and found.used_fallback.all()
    np.testing.assert_allclose(found.x, alone.x, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(found.nit, alone.nit + 1)


def test_the_penalty_is_chosen_again_after_a_learned_warm_start(data):
    module, base = sys.modules["bygrad.solvers.learn_programs"], ADMM(rho=0.02, tol=1e-5, max_steps=20_000)
    solver = LearnedSolver(Plan(), dataclasses.replace(base, warm=liar(0.7)), base, None, 1, 1)
    with_penalty = lambda rho: dataclasses.replace(solver, method=dataclasses.replace(solver.method, rho=rho))  # noqa: E731
    work = {rho: with_penalty(rho).solve(data).nfev.sum() for rho in (0.02, 0.2, 0.002)}
    found = module._with_best_penalty(solver, data)
    assert work[found.method.rho] == min(work.values()) < work[0.02]
    assert found.classical == base and found.method.warm is solver.method.warm


@pytest.mark.slow
def test_training_brings_a_warm_start_nearer_to_a_proof(data):
    family = Plan(proves=True)
    train = np.random.default_rng(1).normal(size=(256, 4))
    solved = solve(family, train, method=ADMM(tol=1e-5, max_steps=20_000), batch=64)
    solutions = jnp.asarray(np.concatenate([solved.x, solved.dual], axis=1), jnp.float32)
    examples = Examples(jnp.asarray(train, jnp.float32), solutions, jnp.asarray(solved.cost, jnp.float32))
    fitted = LearnedWarmStart.fitted(examples.instances, solutions, 4, jax.random.key(0))
    flat = Flat.of(family, train[0])
    trained = train_warm_start(fitted, ADMM(tol=1e-2), flat, examples, 1.0, 0, sample=family.sample, steps=150)

    def gaps(warm):
        def gap(instance):
            _, cost, lowest = family.certify(*warm(instance)[:2], instance)
            return cost - lowest

        return np.asarray(jax.vmap(gap)(jnp.asarray(data, jnp.float32)))

    assert np.median(gaps(trained)) < 0.7 * np.median(gaps(fitted))


@pytest.mark.slow
def test_learning_compares_a_warm_start_with_the_tuned_solver():
    solver = learn(Plan(), budget=2, tol=1e-3, heldout=100, dtype=np.float32)
    assert solver.card is not None and set(solver.card.candidates) == {"tuned, 1 start", "learned warm start"}
    assert all(it["success"] == 1 for it in solver.card.candidates.values())
    assert "a certificate of 0.001 or less" in solver.report()


@pytest.mark.slow
def test_a_warm_start_is_fitted_in_every_unit():
    rng, units = np.random.default_rng(0), jnp.repeat(jnp.array([2.0**-40, 2.0**-30]), jnp.array([3, 2]))
    rows = jnp.asarray(rng.normal(size=(60, 4)), jnp.float32)
    moved = 0.2 * rng.normal(size=(60, 5)) * np.array([1.0, 1.0, 1e-8, 1.0, 0.0])  # a param and a multiplier never do
    solutions = jnp.asarray(moved, jnp.float32)
    warm, small = (LearnedWarmStart.fitted(rows, it, 3, jax.random.key(0)) for it in (solutions, units * solutions))
    np.testing.assert_allclose(small.whitening.params_scale, units * warm.whitening.params_scale, rtol=1e-6)
    assert (warm.whitening.params_scale > 0.1).all()
    for ours, theirs, unit in zip(small(rows[0])[:2], warm(rows[0])[:2], (units[0], units[4]), strict=True):
        np.testing.assert_allclose(ours, unit * theirs, rtol=1e-4, atol=1e-6 * float(unit))


def test_limits_that_are_none_do_not_reach_what_is_learned():
    rows = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    rows[:, 1], rows[:, 2], rows[::2, 3], rows[1, 4] = np.inf, -np.inf, np.inf, np.nan
    solutions = rows[:, :1] * np.ones(2, np.float32)
    whitening = Whitening.of(jnp.asarray(rows), jnp.asarray(solutions))
    finite = [column[np.isfinite(column)] for column in rows.T]
    means = [column.mean() if len(column) else 0.0 for column in finite]
    scales = [column.std() if len(column) else 1.0 for column in finite]
    np.testing.assert_allclose(whitening.instance_mean, means, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(whitening.instance_scale, scales, rtol=1e-5)
    warm = LearnedWarmStart.fitted(jnp.asarray(rows), jnp.asarray(solutions), 1, jax.random.key(0))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(eqx.filter(warm, eqx.is_array)))


def test_files_keep_warm_starts_and_precision(tmp_path, data):
    base = ADMM(tol=1e-2)
    solver = LearnedSolver(
        Plan(proves=True), dataclasses.replace(base, warm=liar(0.7)), base, None, 1, 1, dtype="float32"
    )
    save_solver(solver, tmp_path / "plan.safetensors")
    back = load_solver(tmp_path / "plan.safetensors", Plan(proves=True))
    assert back.dtype == "float32"
    np.testing.assert_array_equal(back.solve(data, batch=64).x, solver.solve(data, batch=64).x)


@pytest.fixture(scope="module")
def codes() -> SparseCoding:
    rng = np.random.default_rng(0)
    images = np.cumsum(np.cumsum(rng.normal(size=(4, 24, 24)), axis=1), axis=2)
    return SparseCoding.from_images(images, side=4, atoms=6, count=128)


@pytest.mark.slow
@pytest.mark.parametrize("fresh", [False, True])
def test_training_brings_a_schedule_to_the_tolerance_in_fewer_steps(codes, fresh):
    patches = np.asarray(codes.patches)
    flat, method = Flat.of(codes, patches[0]), ProximalGradient(tol=1e-2)
    classical = LearnedSchedule.classical(params=flat.size)
    sample = codes.sample if fresh else None
    trained = train_schedule(classical, method, flat, codes.patches, 1.0, 0, steps=100, sample=sample)
    before, after = (
        solve(codes, patches, method=dataclasses.replace(method, schedule=it), batch=64, dtype=np.float32)
        for it in (classical, trained)
    )
    assert before.success.all() and after.success.all()
    assert after.nit.mean() < 0.8 * before.nit.mean()


@pytest.mark.slow
def test_a_learned_schedule_is_kept_in_a_file(tmp_path, codes):
    patches = np.asarray(codes.patches)
    solver = learn(codes, budget=1, tol=1e-2, heldout=100, instances=patches, dtype=np.float32)
    assert solver.card is not None and set(solver.card.candidates) == {"tuned, 1 start", "learned schedule"}
    assert all(it["success"] == 1 for it in solver.card.candidates.values())
    save_solver(solver, tmp_path / "codes.safetensors")
    back = load_solver(tmp_path / "codes.safetensors", codes)
    ours, theirs = (it.solve(patches[:32], batch=64) for it in (solver, back))
    np.testing.assert_array_equal(ours.x, theirs.x)
    np.testing.assert_array_equal(ours.nit, theirs.nit)


def test_a_file_from_before_params_had_momenta_is_read(codes, tmp_path, monkeypatch):
    base, path, sizes = ProximalGradient(tol=1e-2), tmp_path / "codes.safetensors", deployed._sizes
    blank = LearnedSchedule.classical(12, codes.dictionary.shape[1])

    def saved(momenta: Any) -> Any:
        schedule = dataclasses.replace(blank, momenta=momenta)
        save_solver(LearnedSolver(codes, dataclasses.replace(base, schedule=schedule), base, None, 1, 1), path)
        return load_solver(path, codes).method.schedule.momenta

    np.testing.assert_array_equal(saved(blank.momenta + 0.25), blank.momenta + 0.25)

    def old(part: Any) -> Any:
        return (found := sizes(part)) and {name: it for name, it in found.items() if name != "momenta"}

    monkeypatch.setattr(deployed, "_sizes", old)
    assert saved(None) is None


def test_the_step_size_of_proximal_gradients_is_tuned(codes):
    module, patches = sys.modules["bygrad.solvers.learn"], np.asarray(codes.patches)
    grid = module._grid(codes, 1e-4)
    assert grid[0] == ProximalGradient(tol=1e-4)
    base = LearnedSolver(codes, grid[0], grid[0], None, 1, 1)
    tuned = module._tuned(base, grid, patches, 1e-4, 1.0, 0)
    found = [solve(codes, patches[20:], method=method, batch=64) for method in (grid[0], tuned.method)]
    assert tuned.classical is tuned.method and all(it.success.all() for it in found)
    assert found[1].nfev.mean() < 0.9 * found[0].nfev.mean()


class Weighted(Plan):
    """A plan whose curvature is an array."""

    weights: Any = dataclasses.field(default=None, kw_only=True)

    @property
    def matrices(self):
        return jnp.diag(jnp.asarray(self.weights)), super().matrices[1]


@pytest.mark.slow
def test_a_program_is_reduced_once_for_its_family_and_never_for_another(data, monkeypatch):
    reduced = []
    monkeypatch.setattr(admm, "reduce_program", lambda *given: reduced.append(given) or reduce_program(*given))
    weights = np.array([1.0, 2.0, 3.0, 4.0])
    family, other = Weighted(weights=jnp.asarray(weights)), Weighted(weights=weights)
    first = solve(family, data, batch=64)
    np.testing.assert_array_equal(solve(family, data, batch=64).x, first.x)
    solve(family, data, method=ADMM(tol=1e-3), batch=64)
    assert len(reduced) == 1
    solve(family, data, dtype=np.float32, batch=64)
    assert len(reduced) == 2  # another precision
    np.testing.assert_allclose(solve(other, data, batch=64).x, first.x, atol=1e-6)
    solve(other, data, batch=64)
    assert len(reduced) == 3  # another array
    weights[:] = 9.0  # NumPy's arrays may change
    changed = solve(other, data, batch=64)
    assert len(reduced) == 4
    np.testing.assert_allclose(changed.x, solve(Weighted(weights=jnp.full(4, 9.0)), data, batch=64).x, atol=1e-6)
    with jax.enable_x64(True):
        prepared = ADMM().prepare(Flat.of(family, data[0]), np.float64)  # for one family, and given to another
    np.testing.assert_array_equal(solve(other, data, method=prepared, batch=64).x, changed.x)


def test_what_is_kept_for_families_has_a_bound(monkeypatch):
    monkeypatch.setattr(OncePerFamily, "BYTES", 100)
    computed = []
    bound = OncePerFamily(lambda family, dtype: (computed.append(family), jnp.sum(family.weights))[1])
    few, many = [Weighted(weights=np.arange(4.0) + i) for i in range(3)], Weighted(weights=np.ones(99))
    for family in (*few[:2], *few[:2], few[2], few[1], few[0], many, many, few[0]):
        assert bound(family, np.float32) == np.sum(family.weights)
    # Two of 36 bytes fit; the third takes the place of the first, and one that is too large is kept alone.
    assert list(map(id, computed)) == list(map(id, [*few, few[0], many, few[0]]))


def test_nothing_is_kept_of_what_is_traced():
    bound = OncePerFamily(lambda family, dtype: jnp.sum(family.weights))
    family = Weighted(weights=jnp.ones(4))
    assert jax.jit(lambda: bound(family, np.float32))() == 4 == bound(family, np.float32)
