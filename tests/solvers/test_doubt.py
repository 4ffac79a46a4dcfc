"""Doubt: further starts where they find less, and never worse than without it."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bygrad.deploy.solver import load_solver, save_solver
from bygrad.problems import DampedOscillation
from bygrad.solvers import (
    CostLimit,
    LearnedDoubt,
    LearnedSolver,
    LearnedStart,
    LevenbergMarquardt,
    Whitening,
    solve,
)
from bygrad.solvers.learn_doubt import Tried, cheapest_limit, cost_limit, every_start, is_low, learned_doubt, so_far
from bygrad.solvers.learn_doubt import doubting as doubting_solvers
from bygrad.solvers.starts import draws

STARTS = 4


@pytest.fixture(scope="module")
def family() -> DampedOscillation:
    return DampedOscillation()


def signals(family: DampedOscillation, count: int, seed: int) -> np.ndarray:
    return np.asarray(draws(family, jax.random.split(jax.random.key(seed), count)), float)


@pytest.fixture(scope="module")
def plain(family) -> LearnedSolver:
    return LearnedSolver(family, LevenbergMarquardt(), LevenbergMarquardt(), None, STARTS, STARTS)


@pytest.fixture(scope="module")
def tried(family, plain) -> Tried:
    return every_start(plain, signals(family, 1000, 1), 1e-3, 0.0, 0)


@pytest.fixture(scope="module")
def doubting(plain, tried) -> LearnedSolver:
    return dataclasses.replace(plain, doubt=learned_doubt(tried, tried.solved[:, -1], 0.0, 0, steps=600))


def saying(logit: float, limit: float = 0.0) -> LearnedDoubt:
    """A doubt that says the same of all solutions."""
    whitening = Whitening(jnp.zeros(41), jnp.ones(41), jnp.zeros(5), jnp.ones(5))
    blank = LearnedDoubt.blank(whitening, jnp.ones((2, 2)), jax.random.key(0))
    silent = jax.tree.map(lambda leaf: 0 * leaf if eqx.is_inexact_array(leaf) else leaf, blank.network)
    network = eqx.tree_at(lambda it: it.layers[-1].bias, silent, jnp.full_like(silent.layers[-1].bias, logit))
    return dataclasses.replace(blank, network=network, limit=jnp.asarray(limit))


@pytest.mark.parametrize(
    ("logit", "limit", "starts"),
    [
        (1.0, 0.0, STARTS),
        *(pytest.param(*it, STARTS, marks=pytest.mark.slow) for it in ((np.nan, 0.0), (np.inf, 0.0), (0.0, -np.inf))),
        (0.0, np.inf, 1),
    ],
)
def test_whatever_it_says_the_lowest_of_the_starts_that_were_tried_is_kept(family, plain, logit, limit, starts):
    data = signals(family, 40, 2)
    found = dataclasses.replace(plain, doubt=saying(logit, limit)).solve(data, seed=3, batch=16)
    expected = solve(family, data, starts=starts, seed=3, batch=16)
    assert found.success.all() and not found.used_fallback.any()
    rows = expected.success  # what is not solved is doubted in any case
    assert rows.mean() > 0.8
    np.testing.assert_allclose(found.cost[rows], expected.cost[rows], rtol=1e-9)
    np.testing.assert_array_equal(found.nfev[rows], expected.nfev[rows])
    np.testing.assert_array_equal(found.nit[rows], expected.nit[rows])


def test_what_is_not_solved_is_doubted_whatever_the_network_says(family, plain):
    data = signals(family, 4, 2)
    impatient = LevenbergMarquardt(tol=1e-12, max_steps=2)
    found = dataclasses.replace(plain, method=impatient, classical=impatient, doubt=saying(-1.0)).solve(data)
    assert (found.status == 0).all() and (found.nit >= 2 * STARTS).all()


@pytest.mark.parametrize("guard", ["certificate", "best_of_two"])
def test_of_an_empty_batch_nothing_is_doubted(family, plain, guard):
    found = dataclasses.replace(plain, doubt=saying(1.0)).solve(signals(family, 1, 2)[:0], guard=guard)
    assert len(found) == 0 and found.x.shape == (0, 5)


@pytest.mark.parametrize("kind", [pytest.param("cost", marks=pytest.mark.slow), "network"])
def test_doubt_spares_starts_and_finds_as_much(kind, family, plain, tried, doubting):
    if kind == "cost":
        doubting = dataclasses.replace(plain, doubt=cost_limit(tried))
    data = signals(family, 400, 5)
    best = solve(family, data, starts=12, seed=9)
    share = lambda found: np.mean(found.cost <= best.cost * (1 + 1e-3))  # noqa: E731
    one = solve(family, data, seed=7)
    every, spared = plain.solve(data, seed=7), doubting.solve(data, seed=7)
    assert share(one) < share(every) - 0.03  # otherwise there is nothing to doubt
    assert share(spared) > share(every) - 0.015
    assert spared.nfev.mean() < 0.6 * every.nfev.mean()
    assert (spared.cost <= one.cost * (1 + 1e-9)).all()


def test_answers_so_far_are_the_running_minimum():
    cost = np.array([[3.0, 2.0, 2.0005, 1.0], [1.0, 4.0, np.nan, 2.0], [np.inf, np.inf, 5.0, 5.1]])
    x = np.arange(12.0).reshape(3, 4, 1)
    lowest, where = so_far(cost, x)
    np.testing.assert_array_equal(lowest, [[3, 2, 2, 1], [1, 1, 1, 1], [np.inf, np.inf, 5, 5]])
    np.testing.assert_array_equal(where[..., 0], [[0, 1, 1, 3], [4, 4, 4, 4], [8, 8, 10, 10]])
    low = [[0, 0, 0, 1], [1, 1, 1, 1], [0, 0, 1, 1]]
    np.testing.assert_array_equal(is_low(lowest, lowest[:, -1:], 1e-3, 0.0), low)
    assert is_low(lowest, lowest[:, -1:], 1e-3, 1.0)[0].tolist() == [False, True, True, True]


def test_the_limit_is_the_cheapest_that_loses_next_to_nothing():
    # A logit that is right: above 0 where a further start finds less.
    rng = np.random.default_rng(0)
    first = rng.random(1000) < 0.8
    logits = np.stack([np.where(first, -1.0, 1.0), np.full(1000, -2.0)], axis=1) + 0.1 * rng.random((1000, 2))
    solved = np.stack([first, np.ones(1000, bool), np.ones(1000, bool)], axis=1)
    right = cheapest_limit(logits, solved, 0.998)
    assert np.max(logits[first, 0]) <= right <= np.sort(logits[~first, 0])[2]
    # One that says nothing of use: all starts of all instances, but for what may be lost.
    useless = rng.random((1000, 2))
    limit = cheapest_limit(useless, np.stack([first, first, np.ones(1000, bool)], axis=1), 0.998)
    assert np.mean(useless[:, 0] > limit) > 0.9
    none = cheapest_limit(useless, np.zeros((1000, 3), bool), 0.5)
    assert np.float32(none) == np.finfo(np.float32).min  # all starts, and a number that a file takes
    lost = np.where(first[:, None], useless, np.inf)
    assert np.isfinite(np.float32(cheapest_limit(lost, np.ones((1000, 3), bool), 0.5)))


@pytest.mark.parametrize("kind", ["cost", "network"])
def test_a_file_gives_the_doubt_back(kind, family, doubting, tmp_path):
    if kind == "cost":
        doubting = dataclasses.replace(doubting, doubt=CostLimit(jnp.float32(20.0)))
    save_solver(doubting, tmp_path / "fit.bygrad")
    again, data = load_solver(tmp_path / "fit.bygrad", family), signals(family, 30, 6)
    assert again.digest == doubting.digest != dataclasses.replace(doubting, doubt=None).digest
    np.testing.assert_array_equal(again.solve(data).cost, doubting.solve(data).cost)


def test_time_that_tuning_has_spent_ends_the_training_too():
    rng = np.random.default_rng(0)
    cost = np.sort(rng.uniform(1.0, 2.0, (64, STARTS)), axis=1)[:, ::-1]
    lowest = is_low(cost, cost[:, -1:], 1e-3, 0.0)
    tried = Tried(rng.normal(size=(64, 41)), cost, rng.normal(size=(64, STARTS, 5)), lowest, lowest)

    def watch(what: str, done: int, total: int) -> None:
        assert 0 <= done <= total  # the training would otherwise go on for ever

    learned_doubt(tried, lowest[:, -1], -5.0, 0, watch)


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_what_has_no_solution_teaches_nothing(tried):
    broken = tried._replace(cost=tried.cost.copy(), x=tried.x.copy())
    broken.cost[600:610, 0], broken.x[600:610, 0] = 1e60, -1e60  # beyond float32
    broken.cost[:300], broken.x[:300] = np.inf, np.nan  # in every start
    broken.cost[300:600, 0], broken.x[300:600, 0] = np.inf, np.nan  # in the first
    doubt = learned_doubt(broken, broken.solved[:, -1], 0.0, 0, steps=20)
    assert np.isfinite(cost_limit(broken).limit)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(eqx.filter(doubt, eqx.is_inexact_array)))


@pytest.mark.slow
@pytest.mark.parametrize(("known", "candidates"), [(3, 1), (4, 3)])
def test_of_next_to_no_instances_no_doubt_is_learned(family, plain, known, candidates):
    data = signals(family, 60, 1)
    data[known:] = np.nan
    whitening = Whitening(jnp.zeros(41), jnp.ones(41), jnp.zeros(5), jnp.ones(5))
    start = LearnedStart.untrained(whitening, 2, jax.random.key(0))
    found = doubting_solvers(plain, start, data, 1e-3, 0.0, 0.0, 0)
    assert len(found) == candidates and "tuned, up to 4 starts" in found
    assert all(it.doubt is not None and np.isfinite(it.doubt.limit) for it in found.values())


def test_instances_of_another_size_are_refused(doubting):
    with pytest.raises(ValueError, match=r"An instance here has 30 numbers, but those .* had 41"):
        doubting.solve(np.zeros((2, 30)))
    with pytest.raises(ValueError, match=r"For a single one give instance\[None\]"):
        doubting.solve(np.zeros(41))


def test_the_network_sees_costs_of_any_size_and_sign():
    costs = jnp.asarray([-44.3, -44.2, -41.0, 1e-30, 0.0, 1e30, jnp.inf])
    whitening = Whitening(jnp.zeros(3), jnp.ones(3), jnp.zeros(2), jnp.ones(2))
    doubt = LearnedDoubt.untrained(whitening, costs, jax.random.key(0))
    assert np.isfinite(jax.vmap(lambda cost: doubt(jnp.ones(3), jnp.ones(2), cost))(costs)).all()
