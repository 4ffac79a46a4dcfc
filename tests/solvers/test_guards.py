"""Guarantees under adversaries: proposals that are random, NaN, ascending or huge change no outcome."""

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bygrad import problems
from bygrad.deploy.solver import save_solver
from bygrad.problems import Bounded, Composite, MeanVariance, SparseCoding
from bygrad.solvers import (
    ADMM,
    LBFGS,
    Damping,
    Flat,
    GainRatio,
    LearnedDamping,
    LearnedDoubt,
    LearnedSchedule,
    LearnedSolver,
    LearnedStart,
    LevenbergMarquardt,
    ProximalGradient,
    Safeguarded,
    Status,
    Whitening,
    solve,
)
from bygrad.solvers.starts import draws

from .families import Decay, decays
from .test_programs import Plan, liar

ADVERSARIES = {
    "nan": lambda seen: (jnp.full_like(seen.x, jnp.nan), jnp.nan),
    "none": lambda seen: (jnp.zeros_like(seen.x), 1.0),
    "negative": lambda seen: (jnp.full_like(seen.x, -1e3), -2.0),
    "huge": lambda seen: (jnp.full_like(seen.x, 1e300), 1e300),
    "erratic": lambda seen: (jnp.abs(jnp.sin(1e4 * (seen.x + seen.nit))) * 10.0, 2.0),
}


class Adversary(Damping):
    kind: str = eqx.field(static=True)

    def start(self, instance: Any, x: Any) -> Any:
        return ()

    def next(self, seen: Any, state: Any) -> Any:
        damping, factor = ADVERSARIES[self.kind](seen)
        return damping, jnp.asarray(factor, seen.x.dtype), state


@pytest.fixture(scope="module")
def data() -> np.ndarray:
    return decays(16)


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind not in ("nan", "huge"))) for kind in ADVERSARIES]
)
def test_any_damping_rule_ends_where_the_classical_one_does_or_says_that_it_did_not(kind, data):
    classical = solve(Decay(), data, batch=16)
    found = solve(Decay(), data, method=LevenbergMarquardt(Adversary(kind), max_steps=200), batch=16)
    assert np.isfinite(found.cost).all()
    np.testing.assert_allclose(found.cost[found.success], classical.cost[found.success], rtol=1e-5)
    start = solve(Decay(), data, method=LevenbergMarquardt(max_steps=1), batch=16)
    assert (found.cost <= start.cost).all()
    if kind != "huge":  # steps of length nothing are rightly reported as no success
        assert found.success.all()


def spoilt_solver(fill: float, data: np.ndarray) -> LearnedSolver:
    """A learned solver whose networks answer `fill`."""
    whitening = Whitening.of(jnp.asarray(data, jnp.float32), jnp.ones((16, 2)))
    start = LearnedStart.untrained(whitening, 3, jax.random.key(0))
    damping = LearnedDamping.untrained(whitening, GainRatio(), jax.random.key(1))
    start, damping = (
        jax.tree.map(lambda leaf: jnp.full_like(leaf, fill) if eqx.is_inexact_array(leaf) else leaf, it)
        for it in (start, damping)
    )
    damping = eqx.tree_at(lambda it: it.base, damping, GainRatio())
    return LearnedSolver(Decay(), LevenbergMarquardt(damping), LevenbergMarquardt(), start, 2, 1)


RUINS = {
    "nan": lambda leaf: jnp.full_like(leaf, jnp.nan),
    "huge": lambda leaf: jnp.full_like(leaf, 1e30),
    "ascending": lambda leaf: jnp.full_like(leaf, -3.0),
    "random": lambda leaf: jnp.asarray(3 * np.random.default_rng(leaf.size).normal(size=leaf.shape), leaf.dtype),
}


class Valley(Bounded):
    """Convex and not quadratic, with limits of which some bind."""

    def sample(self, key):
        return 2.0 * jax.random.normal(key, (3,))

    def init(self, instance, key):
        return jnp.full(3, 0.5, instance.dtype)

    def loss(self, params, instance, key):
        return jnp.sum(jnp.array([1.0, 3.0, 9.0]) * jnp.cosh(params - instance))

    def bounds(self, instance):
        return jnp.full(3, -1.0), jnp.full(3, 1.5)


LEARNED = ("least squares", "bounds", "penalty", "constraints", "program", "program with bounds")
"""What is solved in the tests that ruin what was learned."""


def ruined_solver(kind: str, ruin: str, coding: SparseCoding, market: MeanVariance) -> tuple[LearnedSolver, np.ndarray]:
    """Return a solver whose learned numbers are others, with instances of its family; the classical one is precise."""
    ruined = lambda it: jax.tree.map(lambda leaf: RUINS[ruin](leaf) if eqx.is_inexact_array(leaf) else leaf, it)  # noqa: E731
    families = Decay(), Valley(), coding, market, Plan(), Plan(proves=True)
    family = dict(zip(LEARNED, families, strict=True))[kind]
    data = np.array(
        market.windows()[::4] if family is market else draws(family, jax.random.split(jax.random.key(1), 16))
    )
    if isinstance(family, Plan):
        warm, base = liar(0.0), ADMM(tol=1e-5, max_steps=20_000)
        return LearnedSolver(family, ADMM(tol=1e-2, max_steps=20_000, warm=ruined(warm)), base, None, 1, 1), data
    flat = Flat.of(family, data[0])
    whitening = Whitening.of(jnp.asarray(data.reshape(16, -1), jnp.float32), jnp.ones((16, flat.size)))
    start = ruined(LearnedStart.untrained(whitening, 3, jax.random.key(0)))
    if isinstance(family, Decay):
        damping = ruined(LearnedDamping.untrained(whitening, GainRatio(), jax.random.key(1)))
        damping = eqx.tree_at(lambda it: it.base, damping, GainRatio())
        methods = LevenbergMarquardt(damping, tol=1e-2), LevenbergMarquardt()
    elif isinstance(family, Valley):
        methods = LBFGS(gain=1e-3), LBFGS()
    else:
        params = flat.size if family.separable else None
        schedule = ruined(LearnedSchedule.classical(12, params))
        methods = (
            ProximalGradient(schedule, tol=1e-2, max_steps=20_000),
            ProximalGradient(tol=1e-5, max_steps=20_000),
        )
    solver = LearnedSolver(family, *methods, start, 2, 1)
    if not isinstance(family, SparseCoding):
        doubt = ruined(LearnedDoubt.untrained(whitening, jnp.ones(4), jax.random.key(2)))
        solver = dataclasses.replace(solver, doubt=doubt)
    return solver, data


@pytest.mark.parametrize(
    ("ruin", "guard"),
    [
        ("nan", "certificate"),
        pytest.param("random", "best_of_two", marks=pytest.mark.slow),
        *(pytest.param(ruin, "certificate", marks=pytest.mark.slow) for ruin in RUINS if ruin != "nan"),
    ],
)
@pytest.mark.parametrize("kind", LEARNED)
def test_ruined_numbers_cost_time_and_nothing_else(kind, ruin, guard, coding, market):
    solver, data = ruined_solver(kind, ruin, coding, market)
    data[3] = np.nan
    classical = solve(solver.family, data, method=solver.classical, batch=16)
    found = solver.solve(data, guard=guard, batch=16)
    good = np.arange(16) != 3
    np.testing.assert_array_equal(classical.success, good)
    np.testing.assert_array_equal(found.success, good)
    np.testing.assert_allclose(found.cost[good], classical.cost[good], rtol=2e-2, atol=2e-2)
    if guard == "certificate":  # what was learned is slow at worst
        np.testing.assert_array_equal(found.used_fallback, ~good)
    elif type(solver.family) is MeanVariance:  # its points may violate constraints a little, so costs say nothing
        assert (found.certificate[good] <= classical.certificate[good]).all()
    else:
        assert (found.cost[good] <= classical.cost[good]).all()
    if kind == "constraints":
        np.testing.assert_allclose(found.x[good].sum(axis=1), 1, atol=1e-12)


def test_the_costs_of_proposals_are_evaluations(data):
    whitening = Whitening.of(jnp.asarray(data, jnp.float32), jnp.ones((16, 2)))
    start = jax.tree.map(
        lambda leaf: RUINS["nan"](leaf) if eqx.is_inexact_array(leaf) else leaf,
        LearnedStart.untrained(whitening, 3, jax.random.key(0)),
    )
    solver = LearnedSolver(Decay(), LevenbergMarquardt(), LevenbergMarquardt(), start, 1, 1)
    plain, found = solve(Decay(), data, batch=16), solver.solve(data, batch=16)  # both from the family's own start
    np.testing.assert_array_equal(found.nfev, plain.nfev + 3 + 2)
    again = {"height": np.ones(()), "rate": np.ones(1)}
    np.testing.assert_array_equal(solver.solve(data, x0=again, batch=16).nfev, plain.nfev + 3 + 3)
    single = dataclasses.replace(solver, start=start.only([1]))  # of one proposal the cost is computed once
    np.testing.assert_array_equal(single.solve(data, batch=16).nfev, plain.nfev + 1 + 1)


def test_the_better_of_two_has_the_lower_cost_even_where_it_ran_out_of_steps(data):
    """What was learned stops at once, and says that it succeeded; the classical solver goes further, without end."""
    start = LearnedStart.untrained(
        Whitening.of(jnp.asarray(data, jnp.float32), jnp.ones((16, 2))), 3, jax.random.key(0)
    )
    hasty, slow = LevenbergMarquardt(tol=0.5), LevenbergMarquardt(tol=0.0, max_steps=30)
    solver = LearnedSolver(Decay(), hasty, slow, start, 1, 1)
    first, classical = solver.solve(data), solve(Decay(), data, method=slow)
    assert first.success.any() and not classical.success.all()
    found = solver.solve(data, guard="best_of_two")
    assert (found.cost <= classical.cost).all() and (found.cost <= first.cost).all()


def test_an_untrained_damping_is_the_classical_rule(data):
    whitening = Whitening.of(jnp.asarray(data, jnp.float32), jnp.ones((16, 2)))
    learned = LearnedDamping.untrained(whitening, GainRatio(), jax.random.key(1))
    ours, theirs = (solve(Decay(), data, method=LevenbergMarquardt(rule), batch=16) for rule in (learned, GainRatio()))
    np.testing.assert_array_equal(ours.nit, theirs.nit)
    np.testing.assert_allclose(ours.cost, theirs.cost, rtol=1e-12)


def test_a_start_is_never_above_the_familys_own(data):
    solver = spoilt_solver(1.0, data)
    flat = Flat.of(Decay(), data[0])
    own = jnp.ones(2)
    for instance in data[:4]:
        best = solver.start.best(flat, jnp.asarray(instance, jnp.float32), own, 2)
        costs = [flat.loss(x, jnp.asarray(instance, jnp.float32)) for x in (*best, own)]
        assert costs[0] <= costs[1] and costs[0] <= costs[2]


@pytest.fixture(scope="module")
def coding() -> SparseCoding:
    rng = np.random.default_rng(0)
    images = np.cumsum(np.cumsum(rng.normal(size=(4, 24, 24)), axis=1), axis=2)
    return SparseCoding.from_images(images, side=4, atoms=6, count=16)


@pytest.fixture(scope="module")
def coded(coding: SparseCoding) -> np.ndarray:
    return solve(coding, coding.patches, method=ProximalGradient(tol=1e-6, max_steps=20_000), batch=16).cost


RANDOM = LearnedSchedule(jax.random.uniform(jax.random.key(0), (12, 3), minval=-4, maxval=4), jnp.zeros(12))


@pytest.mark.parametrize(
    "row",
    [None, (np.nan, 0, 0), (9.0, 9.0, 9.0), (3.0, -4.0, -3.0), (1.0, 0.0, 0.9), (0.0, 0.0, 0.0)],
    ids=["random", "nan", "huge", "ascending", "mild", "momenta"],
)
def test_sufficient_decrease_holds_any_schedule(row, coding, coded):
    schedule = RANDOM
    if row is not None:
        metric = jnp.tile(jnp.linspace(-5, 5, 36), (12, 1)) if row[0] == 1 else jnp.zeros(12)
        momenta = None if any(row) else jax.random.uniform(jax.random.key(1), (12, 36), minval=-4, maxval=4)
        schedule = LearnedSchedule(jnp.tile(jnp.array(row), (12, 1)), metric, momenta)
    method = ProximalGradient(schedule, tol=1e-4, max_steps=20_000)
    found = solve(coding, coding.patches, method=method, batch=16)
    assert found.success.all()
    assert (found.cost <= coded * (1 + 1.1e-4)).all()
    early = solve(coding, coding.patches, method=ProximalGradient(schedule, max_steps=8), batch=16)
    zero = 0.5 * np.sum(np.asarray(coding.patches, float) ** 2, axis=1)
    assert (early.cost <= zero + 1e-9).all()


@pytest.fixture(scope="module")
def market() -> MeanVariance:
    return MeanVariance.simulated(days=120, assets=8, window=60, cap=0.3)


@pytest.mark.parametrize(
    "method",
    [ProximalGradient(), ProximalGradient(RANDOM), Safeguarded(lambda x, nit: 0.9 * x, max_steps=20_000)],
    ids=["classical", "schedule", "proposals"],
)
@pytest.mark.parametrize("kind", [SparseCoding, MeanVariance])
def test_nothing_is_proven_outside_of_what_is_allowed(kind, method, coding, market):
    family, data = {SparseCoding: (coding, coding.patches), MeanVariance: (market, market.windows()[::4])}[kind]
    best = solve(family, data, method=ProximalGradient(tol=1e-9, max_steps=20_000), batch=16)
    assert best.success.all()
    for start in (0 * best.x, 0.97 * best.x, -best.x, 1e3 + best.x):
        found = solve(family, data, x0=start, method=method, batch=16)
        assert found.success.all() and (found.certificate <= 1e-4).all()
        excess = found.cost - best.cost
        assert (excess <= found.certificate * found.cost).all() and (excess >= -1e-8 * best.cost).all()
        early = solve(family, data, x0=start, method=dataclasses.replace(method, max_steps=3), batch=16)
        for weights in (found.x, early.x) if kind is MeanVariance else ():
            np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-14)
            assert (weights >= 0).all() and (weights <= 0.3).all()


def test_all_composite_families_are_covered_above():
    shipped = [getattr(problems, name) for name in problems.__all__]
    assert {it for it in shipped if isinstance(it, type) and issubclass(it, Composite)} == {
        Composite,
        MeanVariance,
        SparseCoding,
    }


def test_an_untrained_schedule_is_the_classical_method(coding):
    # As long as no trial is rejected: momentum then begins anew, but a schedule goes on.
    methods = ProximalGradient(max_steps=6), ProximalGradient(LearnedSchedule.classical(20, params=36), max_steps=6)
    classical, found = (solve(coding, coding.patches, method=method, batch=16) for method in methods)
    np.testing.assert_allclose(found.cost, classical.cost, rtol=1e-6)


PROPOSALS = {
    "nan": lambda x, nit: jnp.full_like(x, jnp.nan),
    "huge": lambda x, nit: 1e30 * jnp.ones_like(x),
    "random": lambda x, nit: jnp.sin(1e4 * (jnp.arange(x.size) + nit)),
    "ascending": lambda x, nit: 1.5 * x + 0.1,
    "stay": lambda x, nit: x,
}


@pytest.mark.parametrize("kind", PROPOSALS)
def test_safe_l2o_converges_for_any_proposal(kind, coding, coded):
    method = Safeguarded(PROPOSALS[kind], tol=1e-4, max_steps=20_000)
    found = solve(coding, coding.patches, method=method, batch=16)
    assert found.success.all()
    assert (found.cost <= coded * (1 + 1e-3)).all()


class Bowl(Composite):
    """A quadratic of two curvatures around a point, without a penalty; L is 4."""

    bound: float = 4.0

    def sample(self, key):
        return jax.random.normal(key, (2,))

    def init(self, instance, key):
        return jnp.array([3.0, -2.0], instance.dtype)

    def smooth(self, params, instance):
        return 0.5 * jnp.sum(jnp.array([1.0, 4.0]) * jnp.square(params - instance))

    def penalty(self, params, instance):
        return jnp.zeros((), params.dtype)

    def prox(self, params, step, instance):
        return params

    def curvature(self):
        return jnp.asarray(self.bound)


@pytest.mark.parametrize("method", [ProximalGradient(), Safeguarded(PROPOSALS["stay"])])
def test_a_curvature_that_is_too_small_is_named_as_the_cause(method):
    data = np.array([[1.0, 1.0], [-2.0, 0.5]])
    assert solve(Bowl(2.5), data, method=method).success.all()  # steps below 2 / L still converge
    for bound in (1.0, 1e-3):
        found = solve(Bowl(bound), data, method=method)
        assert (found.status == Status.TOO_CURVED).all() and "curvature()" in found.message[0]
        assert np.isfinite(found.x).all() and np.isfinite(found.cost).all()


class Sparse(Bowl):
    """The bowl with a penalty of 0.5 for each unit, and a proximal map that shrinks by another amount."""

    shrink: Callable = eqx.field(static=True, default=lambda step: 0.5 * step)

    def penalty(self, params, instance):
        return 0.5 * jnp.sum(jnp.abs(params))

    def prox(self, params, step, instance):
        return jnp.sign(params) * jnp.maximum(jnp.abs(params) - self.shrink(step), 0.0)


@pytest.mark.parametrize("dtype", [pytest.param(np.float32, marks=pytest.mark.slow), np.float64])
def test_a_proximal_map_of_another_penalty_is_named_as_the_cause(dtype):
    data = np.random.default_rng(0).normal(size=(64, 2)) + 2.0
    right = solve(Sparse(), data, method=ProximalGradient(tol=1e-6), dtype=dtype)  # of x, in steps of a quarter
    assert right.success.all()
    size = np.maximum(np.abs(data) - 0.5 / np.array([1.0, 4.0]), 0.0)
    np.testing.assert_allclose(right.x, np.sign(data) * size, atol=2e-5)
    for shrink in (lambda step: 0.5, lambda step: step, lambda step: 0.25 * step):  # without the step; by factors of 2
        found = solve(Sparse(shrink=shrink), data, method=ProximalGradient(tol=1e-5), dtype=dtype)
        failed = found.status[~found.success]  # momentum may lead to where the wrong map stays, which it certifies
        assert len(failed) > len(data) / 2
        assert (failed == Status.WRONG_PROX).mean() > 0.9 and not (failed == Status.TOO_CURVED).any()
        assert any("Check prox()" in message for message in found.message)


class Lost(Bowl):
    """A bowl whose proximal map is NaN where the instance says so."""

    def init(self, instance, key):
        return jnp.ones(16, instance.dtype)

    def smooth(self, params, instance):
        return 0.5 * jnp.sum(jnp.square(params - instance))

    def prox(self, params, step, instance):
        return jnp.where(instance[0] > 0, params, jnp.nan)


@pytest.mark.parametrize("method", [ProximalGradient(max_steps=50), Safeguarded(PROPOSALS["stay"], max_steps=50)])
@pytest.mark.parametrize("rows", [8, 512])  # of so many XLA's maximum forgets NaN, and all would seem solved
def test_a_proximal_map_that_is_lost_certifies_nothing(method, rows):
    data = np.random.default_rng(0).normal(size=(rows, 16))
    found = solve(Lost(1.0), data, method=method, batch=rows)
    np.testing.assert_array_equal(found.success, data[:, 0] > 0)
    assert np.isfinite(found.x).all()


@pytest.mark.parametrize("method", [ProximalGradient(tol=1e-30), ProximalGradient(tol=1e-30, step_size=1.9)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rounding_is_not_taken_for_curvature(method, dtype, coding):
    found = solve(coding, coding.patches, method=method, dtype=dtype, batch=16)
    assert not (found.status == Status.TOO_CURVED).any()


@pytest.mark.parametrize("bound", [0.0, -1.0, np.nan, np.inf])
@pytest.mark.parametrize("method", [ProximalGradient(), Safeguarded(PROPOSALS["stay"])])
def test_a_curvature_that_is_none_is_refused(bound, method):
    with pytest.raises(ValueError, match=r"Bowl.curvature returned .*, but it must be one positive number L"):
        solve(Bowl(bound), np.ones((1, 2)), method=method)


class Column(Bowl):
    def init(self, instance, key):
        return jnp.zeros((2, 1), instance.dtype)


class Repeated(Bowl):
    def prox(self, params, step, instance):
        return params[0]


class GapOfEach(Bowl):
    def gap(self, params, gradient, instance):
        return gradient**2


@pytest.mark.parametrize(
    ("family", "says"),
    [
        (Column(), r"Column.init returned one array of shape \[2, 1\], but params of a Composite are one vector"),
        (Repeated(), r"Repeated.prox returned \[\], but it must be of shape \[2\]"),
        (GapOfEach(), r"GapOfEach.gap returned \[2\], but it must be of shape \[\]"),
    ],
)
def test_shapes_that_would_be_repeated_to_fit_are_refused(family, says):
    with pytest.raises(TypeError, match=says):
        solve(family, np.ones((3, 2)))


def test_safe_l2o_is_algorithm_1_with_one_evaluation_a_step(monkeypatch):
    def propose(x, nit):  # now far too bold, now near the minimum
        return jnp.where(nit % 3 == 0, 0.2, -3.0) * x

    evaluated, gradient = [], jax.grad
    monkeypatch.setattr(jax, "grad", lambda function: evaluated.append(1) or gradient(function))
    with jax.enable_x64(True):
        flat, instance, x = Flat.of(Bowl(), np.zeros(2)), jnp.zeros(2), np.array([3.0, -2.0])
        method = Safeguarded(propose).prepare(flat, np.float64)
        at = method.start(flat, instance, jnp.asarray(x))
        points, accepted = [], 0
        for count in range(1, 13):
            at = method.step(flat, instance, at)
            assert at.nfev == at.nit == len(evaluated) == count
            points.append(np.asarray(at.x))

    residual = lambda x: np.linalg.norm(np.array([0.25, 1.0]) * x)  # noqa: E731  x - T(x)
    level, wanted = residual(x), [x]
    while len(wanted) < 12:
        proposal = np.asarray(propose(x, len(wanted)))
        if residual(proposal) <= 0.9 * level:
            x, level, accepted = proposal, 0.5 * residual(proposal) + 0.5 * level, accepted + 1
        else:
            wanted.append(x)  # it stays for a step
            x = np.array([0.75, 0.0]) * x
        wanted.append(x)
    assert 0 < accepted < 6
    np.testing.assert_allclose(points, wanted[:12], rtol=1e-6)


def test_a_trial_must_lower_the_cost_by_what_it_moves():
    flat, instance = Flat.of(Bowl(), np.zeros(2)), jnp.zeros(2)
    method = ProximalGradient().prepare(flat, np.float32)
    at = method.step(flat, instance, method.start(flat, instance, jnp.array([3.0, -2.0])))
    mirrored = method.step(flat, instance, at._replace(memory=at.memory._replace(trial=-at.x)))
    np.testing.assert_array_equal(mirrored.x, at.x)  # it costs the same
    lower = method.step(flat, instance, at._replace(memory=at.memory._replace(trial=-0.9 * at.x)))
    np.testing.assert_array_equal(lower.x, -0.9 * at.x)


@pytest.mark.parametrize("size", [1.3, 1.9, 5.0])
def test_the_guard_holds_any_step_size(size, coding, coded):
    plain, found = (
        solve(coding, coding.patches, method=ProximalGradient(step_size=it, max_steps=20_000), batch=16)
        for it in (1.0, size)
    )
    assert found.success.all() and (found.cost <= coded * (1 + 1.1e-4)).all()
    assert size > 2 or found.nfev.sum() < plain.nfev.sum()


def test_a_method_that_holds_code_is_not_written_to_a_file(coding, tmp_path):
    method = Safeguarded(PROPOSALS["stay"])
    solver = LearnedSolver(coding, method, method, None, 1, 1)
    with pytest.raises(TypeError, match=r"Safeguarded holds more than numbers .* ADMM, LBFGS, LevenbergMarquardt"):
        save_solver(solver, tmp_path / "solver.safetensors")
    assert not list(tmp_path.iterdir())


WRONG = """
import numpy as np
from bygrad.deploy.solver import load_solver, save_solver
from bygrad.problems import DampedOscillation
from bygrad.solvers import *

family, method = DampedOscillation(), LevenbergMarquardt()
calls = [
    ("damping is the class GainRatio", lambda: LevenbergMarquardt(damping=GainRatio)),
    ("damping is of type float", lambda: LevenbergMarquardt(damping=0.1)),
    ("schedule is the class LearnedSchedule", lambda: ProximalGradient(schedule=LearnedSchedule)),
    ("warm is the class LearnedWarmStart", lambda: ADMM(warm=LearnedWarmStart)),
    ("propose is the class LearnedSchedule", lambda: Safeguarded(LearnedSchedule)),
    ("propose is of type NoneType", lambda: Safeguarded(None)),
    ("method is of type str", lambda: solve(family, np.ones((1, 41)), method="lm")),
    ("method is the class LevenbergMarquardt", lambda: LearnedSolver(family, method, LevenbergMarquardt, None, 1, 1)),
    ("ADMM solves QuadraticProgram families", lambda: LearnedSolver(family, ADMM(), method, None, 1, 1)),
    ("the class DampedOscillation", lambda: LearnedSolver(DampedOscillation, method, method, None, 1, 1)),
    ("the class DampedOscillation", lambda: implicit(DampedOscillation, np.ones(5), np.ones(41))),
    ("the class DampedOscillation", lambda: jacobian(DampedOscillation, None, np.ones((1, 41)))),
    ("solution is of type ndarray", lambda: jacobian(family, np.ones((1, 5)), np.ones((1, 41)))),
    ("the class DampedOscillation", lambda: classical_method(DampedOscillation, 1e-3)),
    ("the class DampedOscillation", lambda: load_solver("none", DampedOscillation)),
    ("solver is of type LevenbergMarquardt", lambda: save_solver(method, "none")),
]
for says, call in calls:
    try:
        call()
        raise SystemExit(f"accepted: {says}")
    except TypeError as error:
        assert says in str(error), (says, error)
"""


def test_a_class_or_another_kind_of_thing_is_refused_before_anything_is_solved():
    subprocess.run([sys.executable, "-c", WRONG], check=True)


@pytest.mark.parametrize("setting", ["delta", "theta"])
@pytest.mark.parametrize("value", [-0.1, 0.0, 1.0, np.nan])
def test_a_setting_without_a_guarantee_is_refused(setting, value):
    with pytest.raises(ValueError, match=f"{setting} is {value}, where nothing is guaranteed"):
        Safeguarded(lambda x, nit: x, **{setting: value})


def test_any_penalty_converges_in_the_end():
    from .test_solve import Projection

    points = np.array([[0.5, 0.5], [2.0, 0.0], [0.3, 0.1]])
    for rho in (1e-5, 1e5):
        found = solve(Projection(), points, method=ADMM(rho, tol=1e-6, max_steps=20_000), batch=16)
        np.testing.assert_allclose(found.x, [[0.5, 0.5], [1.0, 0.0], [0.6, 0.4]], atol=1e-4)
