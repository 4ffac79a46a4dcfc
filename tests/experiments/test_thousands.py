"""Families solved thousands of times: one measure of success, honest arithmetic, a study that survives its rivals."""

import dataclasses
import gzip
import importlib.util
import io
import json
import math
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from bygrad.cli import main
from bygrad.experiments import STUDIES, Task
from bygrad.experiments.thousands import CASES, Case, Effort, Goal, compare, ours, study
from bygrad.experiments.thousands.cvxpy_rivals import cvxpy_program
from bygrad.experiments.thousands.families import rolling, stocks
from bygrad.experiments.thousands.judge import (
    Assessed,
    assess,
    break_even,
    excess,
    gain,
    kind_of,
    profile,
    time_to_solve,
)
from bygrad.experiments.thousands.measure import Row, measure
from bygrad.experiments.thousands.numpy_models import cluster_energy, oscillation_model, voxel_model
from bygrad.experiments.thousands.program_rivals import hard_program
from bygrad.experiments.thousands.results import _level, break_even_of, fastest, gains_of, median_seed
from bygrad.experiments.thousands.rival import Outcome, Rival
from bygrad.experiments.thousands.rivals import RIVALS, scipy_least_squares
from bygrad.optimizers import LSTM, SGD
from bygrad.problems import (
    BallAndStick,
    DampedOscillation,
    LeastSquares,
    LennardJones,
    MeanVariance,
    OralDose,
    QuadraticProgram,
    QuadrotorControl,
    SparseCoding,
)
from bygrad.problems.structured import Bounded
from bygrad.solvers import ADMM, Card, Flat, LearnedSolver, candidates, solve
from bygrad.workflows import Display

TIMES = np.linspace(0.0, 2.0, 9)
RNG = np.random.default_rng(0)


class Decay(LeastSquares):
    def sample(self, key):
        rate, noise = jax.random.uniform(key, minval=0.5, maxval=2.0), jax.random.normal(key, (9,))
        return jnp.exp(-rate * jnp.asarray(TIMES, noise.dtype)) + 0.05 * noise

    def init(self, instance, key):
        return jnp.ones(2, instance.dtype)

    def residuals(self, params, instance):
        return params[0] * jnp.exp(-params[1] * jnp.asarray(TIMES, instance.dtype)) - instance


class Box(QuadraticProgram):
    """Minimize |p - q|² / 2 in the unit box with p_0 + p_1 = 1; what q is, the instance says."""

    def sample(self, key):
        return 2.0 * jax.random.normal(key, (2,))

    @property
    def matrices(self):
        return jnp.eye(2), jnp.concatenate([jnp.ones((1, 2)), jnp.eye(2)])

    @property
    def equations(self):
        return jnp.array([True, False, False])

    def vectors(self, instance):
        one = jnp.ones(1, instance.dtype)
        low, high = jnp.zeros(2, instance.dtype), jnp.ones(2, instance.dtype)
        return -instance, jnp.concatenate([one, low]), jnp.concatenate([one, high])


class Bowl(Bounded):
    spread: float = 1.0

    def sample(self, key):
        return self.spread * jax.random.normal(key, (3,))

    def init(self, instance, key):
        return jnp.zeros(3, instance.dtype)

    def loss(self, params, instance, key):
        return 1.0 + 0.5 * jnp.sum((params - instance) ** 2)

    def bounds(self, instance):
        return jnp.full(3, -9.0), jnp.full(3, 9.0)


def draws(family, count: int, seed: int = 0) -> np.ndarray:
    return np.asarray(jax.vmap(family.sample)(jax.random.split(jax.random.key(seed), count)), float)


def box_minimum(q: np.ndarray) -> np.ndarray:
    first = np.clip((1 + q[:, 0] - q[:, 1]) / 2, 0, 1)  # on the line p_1 = 1 - p_0
    return np.stack([first, 1 - first], axis=1)


def test_success_is_one_measure_by_cost_by_proof_or_with_constraints():
    found = Assessed(np.array([1.1, 0.9, -0.5, np.nan, 2.0]), np.array([0.0, 0.3, 0.0, 0.0, np.inf]))
    best = np.array([1.0, 1.0, -1.0, 1.0, 2.0])
    inf = np.inf
    np.testing.assert_allclose(excess("cost", found, best), [0.1, 0.0, 0.5, inf, 0.0])
    np.testing.assert_allclose(excess("gap", found, np.full(5, -inf)), [0.0, 0.3, 0.0, inf, inf])
    np.testing.assert_allclose(excess("gap", found, np.array([0.0, 0.81, -1.0, 0.0, 1.5])), [0.0, 0.1, 0.0, inf, 0.25])
    np.testing.assert_allclose(excess("program", found, best), [0.05, 0.3, 0.25, inf, inf])
    zero = np.zeros(1)
    np.testing.assert_allclose(excess("cost", Assessed(np.array([1e-5]), zero), zero), [1e-5])


def test_answers_are_assessed_as_numpy_would():
    data = draws(Box(), 7)
    flat, x = Flat.of(Box(), data[0]), RNG.normal(size=(7, 2))
    assert kind_of(flat, data[0]) == "program"
    found = assess(flat, data, x)
    rows = np.concatenate([x.sum(axis=1, keepdims=True), x], axis=1)
    outside = np.abs(rows - np.clip(rows, [1, 0, 0], [1, 1, 1])).max(axis=1)
    np.testing.assert_allclose(found.error, outside / (1 + np.abs(rows).max(axis=1)), atol=1e-7)
    np.testing.assert_allclose(found.cost, 0.5 * (x**2).sum(axis=1) - (data * x).sum(axis=1), atol=1e-6)
    # Everybody's answers are moved into the bounds before they are judged.
    bowl = assess(Flat.of(Bowl(), jnp.zeros(3)), np.zeros((1, 3)), np.array([[1.0, 2.0, 99.0]]))
    assert bowl.cost[0] == pytest.approx(1 + 0.5 * (1 + 4 + 81))
    assert kind_of(Flat.of(Bowl(), jnp.zeros(3)), jnp.zeros(3)) == "cost"


def test_the_duality_gap_is_that_of_the_lasso():
    dictionary = RNG.normal(size=(5, 8))
    dictionary /= np.linalg.norm(dictionary, axis=0)
    patches = RNG.normal(size=(6, 5))
    family = SparseCoding(jnp.asarray(dictionary, jnp.float32), jnp.asarray(patches, jnp.float32))
    dictionary = np.asarray(family.dictionary, float)
    flat, x = Flat.of(family, patches[0]), RNG.normal(size=(6, 8))
    assert kind_of(flat, patches[0]) == "gap"
    found = assess(flat, patches, x)
    for y, z, cost, error in zip(patches, x, found.cost, found.error, strict=True):
        weight, residual = 0.2 * np.abs(dictionary.T @ y).max(), y - dictionary @ z
        primal = 0.5 * residual @ residual + weight * np.abs(z).sum()
        dual = residual * min(1.0, weight / np.abs(dictionary.T @ residual).max())
        assert cost == pytest.approx(primal, rel=1e-6)
        assert error == pytest.approx((primal - dual @ y + 0.5 * dual @ dual) / primal, rel=1e-5)
    certified = assess(flat, patches, solve(family, patches).x)
    assert (certified.error <= 1.01e-4).all()


def test_weights_that_are_no_portfolio_are_judged_as_the_nearest_one():
    family = MeanVariance.simulated(days=60, assets=6, window=30, cap=0.5)
    windows = family.windows()[:5]
    near, none, lost = np.full((5, 6), 1 / 6), np.full((5, 6), 1e-3), np.full((5, 6), np.nan)
    wanted, found, not_found = (assess(Flat.of(family, windows[0]), windows, it) for it in (near, none, lost))
    np.testing.assert_allclose(found.cost, [0.5 * moment.mean() for moment in windows], rtol=1e-6)
    np.testing.assert_allclose(found.error, wanted.error, rtol=1e-6)
    slopes = windows.mean(axis=2)  # at most half of everything goes into each of the two best
    gaps = windows.mean(axis=(1, 2)) - np.sort(slopes, axis=1)[:, :2].mean(axis=1)
    np.testing.assert_allclose(found.error * found.cost, gaps, rtol=1e-6)
    assert (excess("gap", not_found, np.zeros(5)) == np.inf).all()


@settings(max_examples=40)
@given(st.floats(0.0, 1e6, allow_subnormal=False), st.floats(1e-6, 10.0), st.floats(1e-6, 10.0))
def test_break_even_is_the_least_number_that_repays(spent, rival, ours_):
    count = break_even(spent, rival, ours_)
    if rival <= ours_:
        assert count is None
    else:
        saved = rival - ours_
        assert count is not None and count * saved >= spent * (1 - 1e-12)
        assert count == 0 or (count - 1) * saved < spent * (1 + 1e-12)


def test_break_even_closed_forms():
    assert break_even(74.0, 1 / 6.4, 1 / 12447) == math.ceil(74 / (1 / 6.4 - 1 / 12447)) == 474
    assert break_even(10.0, 0.3, 0.1) == 50 + (10.0 / (0.3 - 0.1) > 50)
    assert break_even(0.0, 2.0, 1.0) == 0
    assert break_even(1.0, 1.0, 1.0) is break_even(1.0, None, 1.0) is break_even(1.0, 1.0, None) is None
    assert break_even(math.inf, 2.0, 1.0) is None
    assert gain(6.0, 2.0) == 3.0 and gain(None, 2.0) is gain(1.0, None) is gain(1.0, 0.0) is None


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.floats(0.0, 100.0), st.booleans()), min_size=1, max_size=40), st.sampled_from([0.5, 0.9, 1.0])
)
def test_time_to_solve_is_the_first_at_which_the_share_is_reached(rows, share):
    seconds, solved = np.array([it for it, _ in rows]), np.array([it for _, it in rows])
    found = time_to_solve(seconds, solved, share)

    def enough(at: float) -> bool:
        return np.sum(solved & (seconds <= at)) >= share * len(rows) - 1e-9

    if found is None:
        assert not enough(np.inf)
    else:
        assert enough(found) and (found == 0 or not enough(np.nextafter(found, -1)))
    twice = time_to_solve(seconds, solved, share, batch=2 * len(rows))
    assert twice == (None if found is None else pytest.approx(2 * found))
    times, shares = profile(seconds, solved)
    assert len(times) == len(shares) == len(set(seconds[solved]))
    if times:
        assert shares[-1] == pytest.approx(solved.mean())
        assert all(np.diff(times) > 0) and all(np.diff(shares) > 0)


def row(group: str, throughput: float, success: float, name: str = "", **more) -> dict:
    return {"name": name or group, "group": group, "throughput": throughput, "success": success} | {
        "success_of_all": success,
        "compiling": 1.0,
        **more,
    }


def card(pays: bool = True, **seconds: float) -> Card:
    return Card("learned start", {}, 100, 0, 0, 0.05, None, 0.95, 1e-3, seconds, {}, pays)


def test_gains_are_apart_and_at_equal_success():
    rows = [
        row("users", 10.0, 0.95, "accurate"),
        row("users", 90.0, 0.40, "fast and wrong"),
        {"name": "absent", "group": "users", "problem": "not installed"},
        row("compiled", 30.0, 0.95, "of others"),
        row("peer", 20.0, 0.95),
        row("batched", 200.0, 0.90),
        row("tuned", 300.0, 0.90),
        row("multistart", 100.0, 0.95),
        row("learned", 500.0, 0.95, "learned, seed 0", compiling=5.0),
        row("learned", 400.0, 0.95, "learned, seed 1"),
        row("learned", 50.0, 0.95, "learned, seed 2"),
    ]
    users = fastest(rows, ("users",))
    assert users is not None and users["name"] == "accurate"
    middle = median_seed(rows)
    assert middle is not None and middle["name"] == "learned, seed 1"
    cards = {seed: card(tuning=1.0, training=6.0 + seed) for seed in range(3)}
    found = gains_of(rows, cards)
    assert (found["batching"], found["tuning"], found["names"]["others"]) == (20.0, 1.5, "of others")
    assert found["learning"] == 4.0  # over the multistart, as one start solves less
    assert found["lower"] == ["batching"]
    even = break_even_of(rows, cards)
    assert even["seconds"] == 13.0  # of that seed, with the compilation that the first one spared it
    assert even["instances"]["users"] == math.ceil(13 / (1 / 10 - 1 / 400))
    assert even["instances"]["others"] == math.ceil(13 / (1 / 30 - 1 / 400))
    assert even["instances"]["best classical"] == math.ceil(13 / (1 / 100 - 1 / 400))
    assert break_even_of(rows[:6], cards) == {}


def test_what_was_not_learned_gains_nothing():
    rows = [row("users", 10.0, 0.95), row("tuned", 300.0, 0.95), row("learned", 310.0, 0.95, "learned, seed 0")]
    cards = {0: card(pays=False, tuning=1.0)}
    found = gains_of(rows, cards)
    assert found["learning"] is None and found["throughput"]["learned"] is None
    assert break_even_of(rows, cards) == {}


def test_break_even_counts_the_seconds_of_the_seed_where_an_earlier_one_failed():
    rows = [
        row("users", 10.0, 0.95),
        {"name": "learned, seed 0", "group": "learned", "problem": "ValueError"},
        row("learned", 400.0, 0.95, "learned, seed 1"),
        row("learned", 500.0, 0.95, "learned, seed 2"),
    ]
    even = break_even_of(rows, {1: card(training=7.0), 2: card(training=8.0)})
    assert even["seconds"] == 8.0  # of the slower of two, seed 1, and a second of compilation


def test_the_nearest_neighbour_is_nearest_in_units_of_the_spread():
    past = ours.Past(RNG.normal(size=(30, 3)) * [1.0, 100.0, 1e-3], np.zeros((30, 1)), np.zeros((30, 0)))
    new = RNG.normal(size=(9, 3)) * [1.0, 100.0, 1e-3]
    scale = past.instances.std(axis=0)
    distances = (((new[:, None] - past.instances) / scale) ** 2).sum(axis=2)
    np.testing.assert_array_equal(past.nearest(new), np.argmin(distances, axis=1))


@pytest.mark.slow
def test_starts_at_known_solutions_use_their_multipliers():
    data, flat = draws(Box(), 20), Flat.of(Box(), np.zeros(2))
    solver = LearnedSolver(Box(), ADMM(inner=1), ADMM(tol=1e-6, inner=1), None, 1, 1)
    past = ours.Past.of(flat, data)
    half = solve(Box(), data, method=ADMM(tol=1e-6, inner=1), x0=past.x)
    still = np.concatenate([data, data, data[:7]])  # nothing changes from step to step
    for run, rows in ((ours.nearest(flat, solver, past, 1.0), still), (ours.previous(flat, solver, 20, 1.0), still)):
        found = run(rows)
        np.testing.assert_allclose(found.x, box_minimum(rows), atol=1e-4)
        assert found.evaluations[20:].max() <= 2 < np.median(half.nit)


def test_the_papers_optimizer_stops_an_instance_when_it_is_solved():
    data, rate = draws(Bowl(), 4), 0.1
    flat = Flat.of(Bowl(), data[0])
    run = ours.paper(SGD(rate), flat, "cost", (data, np.ones(4)), 1e-3, 60)
    found = run(data[1:])
    # The distance shrinks by 1 - rate a step; the loss before step t is seen at it.
    start = 0.5 * (data[1:] ** 2).sum(axis=1)
    steps = np.ceil(np.log(start / 1e-3) / (-2 * np.log(1 - rate))) + 1
    np.testing.assert_array_equal(found.evaluations, np.minimum(np.ceil(steps / ours.LOOK) * ours.LOOK, 60))
    assert np.all(np.diff(found.finished[np.argsort(found.evaluations)]) >= 0)


class SoftBox(Box):
    """The same, but the box may be left for a price of 1/2 a unit."""

    @property
    def ceiling(self):
        return jnp.array([jnp.inf, 0.5, 0.5])


def test_soft_rows_get_slack_variables_at_their_price():
    q, p = np.array([4.0, 0.5]), np.linspace(-4.0, 5.0, 91)
    program = hard_program(Flat.of(SoftBox(), q))
    linear, low, high = (it[0] for it in program.vectors(q[None]))
    params = np.stack([p, 1 - p], axis=1)
    outside = np.abs(params - np.clip(params, 0, 1))

    def holds(slack: np.ndarray) -> np.ndarray:
        rows = np.concatenate([params, slack], axis=1) @ program.constraints.T
        return ((rows >= low - 1e-9) & (rows <= high + 1e-9)).all(axis=1)

    assert program.equations.tolist() == [True] + 6 * [False]
    assert holds(outside).all() and not holds(outside - 1e-3).any()
    points = np.concatenate([params, outside], axis=1)
    cost = 0.5 * np.einsum("ij,jk,ik->i", points, program.quadratic, points) + points @ linear
    np.testing.assert_allclose(cost, 0.5 * (params**2).sum(axis=1) - params @ q + 0.5 * outside.sum(axis=1))


@pytest.mark.slow
@pytest.mark.parametrize("rival", RIVALS, ids=lambda it: it.name)
def test_solvers_of_others_find_the_minimum(rival):
    if rival.missing:
        pytest.skip(f"{rival.name}: {rival.missing}")
    dictionary = RNG.normal(size=(5, 8)).astype(np.float32)
    sparse = SparseCoding(jnp.asarray(dictionary / np.linalg.norm(dictionary, axis=0)), jnp.ones((1, 5)))
    portfolio = MeanVariance.simulated(days=60, assets=6, window=30, cap=0.5)
    oscillation, cluster = DampedOscillation(start="spectrum"), LennardJones(3)
    families = sparse, portfolio, Box(), Decay(), Bowl(), OralDose(), BallAndStick.embedded(), oscillation, cluster
    family = next(it for it in families if rival.suits(it))
    # Of the first oral doses, MINPACK and Optimistix end at other minima than the lowest.
    instances = RNG.normal(size=(3, 5)) if family is sparse else draws(family, 5)[2:]
    flat = Flat.of(family, instances[0])
    found = rival.build(flat)(1e-6)(instances)
    best = ours.reference(flat, instances, 0).cost
    kind = kind_of(flat, instances[0])
    assert (excess(kind, assess(flat, instances, found.x), best) <= 1e-5).all()
    assert (found.evaluations >= 0).all() and (np.diff(found.finished) >= 0).all()  # 0: solved by what comes before
    if isinstance(family, Box):
        np.testing.assert_allclose(found.x, box_minimum(instances), atol=1e-3)


class Held(Decay):
    """The same, with limits, of which the first may be none."""

    highest: float = 0.9

    def bounds(self, instance):
        return jnp.full(2, -jnp.inf), jnp.array([self.highest, jnp.inf])


@pytest.mark.parametrize(("family", "method"), [(Decay(), "lm"), (Held(), "trf"), (Held(np.inf), "lm")])
def test_scipy_fits_by_minpack_where_there_are_no_limits(family, method, monkeypatch):
    optimize, methods = pytest.importorskip("scipy.optimize"), []
    fit = optimize.least_squares
    monkeypatch.setattr(optimize, "least_squares", lambda *a, **k: methods.append(k["method"]) or fit(*a, **k))
    data = draws(family, 2)
    found = scipy_least_squares(Flat.of(family, data[0]))(1e-6)(data)
    assert methods == [method, method]
    np.testing.assert_allclose(found.x, solve(family, data).x, rtol=1e-4)


def slopes_by_differences(f, x: np.ndarray) -> np.ndarray:
    return np.array([(f(x + step) - f(x - step)) / 2e-6 for step in 1e-6 * np.eye(len(x))])


@pytest.mark.parametrize(
    ("family", "model"),
    [(BallAndStick.embedded(), voxel_model), (DampedOscillation(points=17, noise=0.2), oscillation_model)],
)
def test_models_in_numpy_are_those_of_the_family(family, model):
    one = draws(family, 1)[0]
    residuals, slopes = model(family)
    for params in RNG.normal(size=(5, 5)):
        with jax.enable_x64(True):
            wanted = family.residuals(jnp.asarray(params), jnp.asarray(one))
        np.testing.assert_allclose(residuals(params, one), wanted, rtol=1e-6, atol=1e-8)
        differences = slopes_by_differences(lambda x: residuals(x, one), params)
        np.testing.assert_allclose(slopes(params, one), differences, rtol=1e-5, atol=1e-5)


def test_the_clusters_of_numpy_are_those_of_the_family():
    family = LennardJones(7)
    energy = cluster_energy(family)
    for shrink in (1.0, 0.5):  # of the second, many pairs are nearer than where the repulsion is capped
        x = shrink * draws(family, 1, seed=3)[0].ravel()
        with jax.enable_x64(True):
            wanted = jax.value_and_grad(lambda x: family.loss(x.reshape(-1, 3), x.reshape(-1, 3), None))(jnp.asarray(x))
        for found, it in zip(energy(x, None), wanted, strict=True):
            np.testing.assert_allclose(found, it, rtol=1e-9)
        differences = slopes_by_differences(lambda x: energy(x, None)[0], x)
        np.testing.assert_allclose(energy(x, None)[1], differences, rtol=1e-4, atol=1e-2)


def test_what_a_solver_of_others_is_given_is_ready_before_the_clock():
    told = []

    def run(ready):
        told.append(ready)
        return Outcome(ready[:, None], np.full(len(ready), time.perf_counter()), np.ones(len(ready)), ready > 0)

    def ready(instances):
        time.sleep(0.2)
        return 2 * instances

    row = Row("twice", "users", run, loops=True, ready=ready)
    cell = measure(row, np.arange(5.0), lambda instances, x: Assessed(x[:, 0] - 2 * instances, np.zeros(5)), 1)
    assert cell.wall < 0.1 and cell.finished.max() < 0.1
    assert (cell.cost == 0).all()
    # Passes of next to no time are repeated.
    first, *whole, one, another = (it.tolist() for it in told)
    assert (first, one, another) == ([0.0, 2.0], [0.0], [2.0])
    assert len(whole) > 1 and all(it == [0.0, 2.0, 4.0, 6.0, 8.0] for it in whole)


def test_cvxpy_has_no_answer_where_a_program_is_infeasible():
    pytest.importorskip("cvxpy")
    pytest.importorskip("clarabel")
    family = QuadrotorControl.build()
    low, rolling = np.zeros(12), np.zeros(12)
    low[5], rolling[6] = -0.5, 9.0  # it rolls so fast that no thrust keeps the limits of the next step
    found = cvxpy_program(Flat.of(family, low))(1e-4)(np.stack([low, rolling, low]))
    assert np.isnan(found.x).any(axis=1).tolist() == [False, True, False]
    np.testing.assert_allclose(found.x[0], found.x[2], atol=1e-6)


EFFORT = Effort(
    rows=48,
    loops=8,
    singles=1,
    past=32,
    seconds=1.0,
    seeds=1,
    heldout=50,
    meta_steps=2,
    horizon=20,
    sequences=12,  # as many rows in all as in the other sets, so that they share programs
    steps=4,
)


def wander(family, sequences: int, steps: int, seed: int) -> np.ndarray:
    moves = 0.1 * draws(family, sequences * steps, seed).reshape(steps, sequences, 2)
    return np.cumsum(moves, axis=0).reshape(-1, 2)


def tiny_cases() -> tuple[Case, ...]:
    goal = Goal("batched against the multistart", "batched", "multistart or tuned", 1e-9)
    return (
        Case("bowl", "A bowl", Bowl, lambda: Bowl(3.0), "three times as far", (1e-2, 1e-3, 1e-5), goals=(goal,)),
        Case("box", "A box", Box, Box, "not at all", (1e-2, 1e-3, 1e-4), sequence=wander),
    )


def test_of_several_seeds_the_middle_one_reaches_a_level_and_not_the_best():
    rows = [row("compiled", 100.0, 1.0), row("tuned", 50.0, 1.0)]
    rows += [row("learned", rate, 1.0, f"learned, seed {seed}") for seed, rate in enumerate((290.0, 310.0, 280.0))]
    case = Case("box", "A box", Box, Box, "not at all", (1e-2, 1e-3, 1e-4))
    family = {"sets": {"held out": {"0.01": rows}}}
    level = _level(family, case, Goal("ours", "classical or learned", "compiled", 3.0, tolerance=0))
    assert (level["ours"], level["reached"]) == (2.9, False) and "seed 0" in level["what"]
    rows[1]["throughput"] = 320.0
    assert _level(family, case, Goal("ours", "classical or learned", "compiled", 3.0, tolerance=0))["ours"] == 3.2


def task_in(folder, resume: bool = False) -> tuple[Task, io.StringIO]:
    said = io.StringIO()
    return Task("quick", folder, Display(Console(file=said, width=200)), resume, command="bygrad reproduce"), said


@pytest.mark.slow
def test_it_runs_reports_goes_on_and_no_rival_can_stop_it(tmp_path, monkeypatch):
    def fails(flat):
        raise ZeroDivisionError("this rival is broken")

    rivals = (
        next(it for it in RIVALS if it.group == "users"),
        Rival("Nowhere", "users", {"no_such_module": "no-such-package"}, Bowl, fails),
        Rival("Broken", "users", {}, Bowl, fails),
    )
    monkeypatch.setattr(study, "RIVALS", rivals)
    monkeypatch.setattr(study, "LSTM", lambda key: LSTM(key, (2,)))  # one layer compiles sooner than two
    learning = sys.modules["bygrad.solvers.learn"]
    monkeypatch.setattr(learning, "STARTS", (1, 2))
    monkeypatch.setattr(candidates, "REFERENCE", 2)
    broken = dataclasses.replace(tiny_cases()[0], name="absent", build=lambda: {}["data"])
    cases = (*tiny_cases(), broken)
    task, said = task_in(tmp_path / "run")
    results = compare(task, EFFORT, cases)

    assert "KeyError" in results["problems"]["absent"]
    kept = json.loads((tmp_path / "run" / "results.json").read_text())
    assert kept["families"]["bowl"]["judged_by"] == "cost" and kept["families"]["box"]["judged_by"] == "program"
    rows = {it["name"]: it for it in kept["families"]["bowl"]["sets"]["held out"]["0.001"]}
    assert rows["Nowhere"]["problem"] == "not installed: pip install no-such-package"
    assert "this rival is broken" in rows["Broken"]["problem"]
    for name in ("batched", "tuned", "nearest neighbour's solution", "learned, seed 0"):
        assert rows[name]["success"] == 1.0 and rows[name]["throughput"] > 0
        assert 0 < rows[name]["solved_after"]["0.5"] <= rows[name]["solved_after"]["1"]
    sequence = {it["name"]: it for it in kept["families"]["box"]["sets"]["sequence"]["0.0001"]}
    assert sequence["previous solution"]["success"] == 1.0
    gains = kept["families"]["bowl"]["gains"]["0.001"]
    learned = kept["families"]["bowl"]["learning"][0]
    assert gains["tuning"] > 0 and (gains["learning"] is not None) == learned["pays"]
    assert [level["reached"] for level in kept["levels"]] == [True]
    page = (tmp_path / "run" / "report.html").read_text()
    for text in ("Three gains", "Break-even", "no-such-package", "previous solution", "three times as far", "<svg"):
        assert text in page
    assert "this rival is broken" in said.getvalue()

    # Going on measures and learns nothing again, and tries again what failed.
    def never(*arguments, **options):
        raise AssertionError("measured twice")

    monkeypatch.setattr(study, "measure", never)
    monkeypatch.setattr(study, "learn", never)
    monkeypatch.setattr(study, "train_or_read", never)
    monkeypatch.setattr(ours.Past, "of", never)
    monkeypatch.setattr(ours, "where_costly", never)
    monkeypatch.setattr(study, "RIVALS", rivals[:-2])
    with pytest.raises(FileExistsError, match="--resume"):
        compare(task, EFFORT, cases[:1])
    again = compare(task_in(tmp_path / "run", resume=True)[0], EFFORT, cases[:1])
    assert set(again["families"]) == {"bowl"}
    ours_again = {it["name"]: it for it in again["families"]["bowl"]["sets"]["held out"]["0.001"]}
    assert ours_again["batched"]["throughput"] == rows["batched"]["throughput"]
    with pytest.raises(ValueError, match="another experiment"):
        compare(task_in(tmp_path / "run", resume=True)[0], dataclasses.replace(EFFORT, rows=49), cases[:1])


def test_resuming_with_other_families_keeps_those_of_the_report(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(study, "compare", lambda task, effort, cases: asked.append({it.name for it in cases}) or {})
    (tmp_path / "results.json").write_text('{"families": {"oral-dose": {}}}')
    for resume in (False, True):
        task = dataclasses.replace(task_in(tmp_path, resume=resume)[0], families=("ball-and-stick",))
        study.THOUSANDS.carry_out(task)
    assert asked == [{"ball-and-stick"}, {"ball-and-stick", "oral-dose"}]


def test_rolling_windows_follow_each_other_by_a_day():
    family = MeanVariance.simulated(days=60, assets=4, window=20, cap=0.5)
    every = MeanVariance.simulated(days=60, assets=4, seed=7, window=20, cap=0.5).windows()
    apart = np.abs(rolling(family, 5, 3, seed=7)[:, None] - every).max(axis=(2, 3))
    days = np.argmin(apart, axis=1).reshape(3, 5)
    assert apart.min(axis=1).max() < 1e-12 and len(set(days[0])) == 5
    np.testing.assert_array_equal(days, days[0] + np.arange(3)[:, None])


def test_stocks_are_read_from_where_skfolio_is(tmp_path, monkeypatch):
    folder = tmp_path / "skfolio" / "datasets" / "data"
    folder.mkdir(parents=True)
    (tmp_path / "skfolio" / "__init__.py").write_text("raise ImportError('only its file is read')")
    prices = np.exp(np.random.default_rng(0).normal(size=(9, 20)))
    lines = ["Date," + ",".join("ABCDEFGHIJKLMNOPQRST")]
    lines += [f"2000-01-0{day}," + ",".join(str(float(it)) for it in row) for day, row in enumerate(prices, 1)]
    (folder / "sp500_dataset.csv.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    monkeypatch.syspath_prepend(tmp_path)
    family = stocks(slice(2, None), window=3)
    np.testing.assert_allclose(family.returns, prices[3:] / prices[2:-1] - 1, rtol=1e-6)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="Install it, pip install skfolio, or choose other families"):
        stocks(slice(None))


def test_it_is_listed_and_every_case_is_whole(capsys, tmp_path):
    main(["list"])
    assert "thousands: " in capsys.readouterr().out
    assert "thousands" in STUDIES
    assert len({case.name for case in CASES}) == len(CASES)
    with pytest.raises(ValueError, match=r"called 'dispach'\. Known: ball-and-stick, .*dispatch"):
        STUDIES["thousands"].carry_out(dataclasses.replace(task_in(tmp_path)[0], families=("dispach",)))
    for case in CASES:
        loose, medium, tight = case.tolerances
        assert loose > medium > tight > 0 and case.shift
