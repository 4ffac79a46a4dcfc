"""Doubt: further starts where they find less, and never worse than without it."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bygrad.deploy.solver import load_solver, save_solver
from bygrad.problems import DampedOscillation, LeastSquares
from bygrad.solvers import (
    CostLimit,
    LearnedDoubt,
    LearnedRestart,
    LearnedSolver,
    LearnedStart,
    LevenbergMarquardt,
    Whitening,
    solve,
)
from bygrad.solvers.learn_doubt import (
    Ended,
    Tried,
    cheapest_limit,
    cost_limit,
    divided,
    every_start,
    is_low,
    learned_doubt,
    learned_restart,
    so_far,
)
from bygrad.solvers.learn_doubt import doubting as doubting_solvers
from bygrad.solvers.learn_start import dropped, with_enough_proposals
from bygrad.solvers.starts import draws

STARTS = 4


@pytest.fixture(scope="module")
def family() -> DampedOscillation:
    return DampedOscillation()


def signals(family: LeastSquares, count: int, seed: int) -> np.ndarray:
    return np.asarray(draws(family, jax.random.split(jax.random.key(seed), count)), float)


@pytest.fixture(scope="module")
def plain(family) -> LearnedSolver:
    return LearnedSolver(family, LevenbergMarquardt(), LevenbergMarquardt(), None, STARTS, STARTS)


@pytest.fixture(scope="module")
def ended(family, plain) -> Ended:
    return every_start(plain, signals(family, 1000, 1), 0)


@pytest.fixture(scope="module")
def tried(ended) -> Tried:
    return ended.judged(1e-3, 0.0)


@pytest.fixture(scope="module")
def doubting(plain, tried) -> LearnedSolver:
    parts = divided(np.ones(1000, bool), 0)
    return learned_doubt(plain, tried, tried.solved[:, -1], parts, 0.0, 0, steps=600)


def shaped(start: LearnedStart, biases: np.ndarray) -> LearnedStart:
    """A start that proposes the same whatever the instance, in units of the params' spread."""
    blank = jax.tree.map(lambda leaf: 0 * leaf if eqx.is_inexact_array(leaf) else leaf, start.network)
    network = eqx.tree_at(lambda it: it.layers[-1].bias, blank, jnp.asarray(biases, jnp.float32))
    return dataclasses.replace(start, network=network)


def whitening_of(ended: Ended) -> Whitening:
    return Whitening.of(jnp.asarray(ended.instances, jnp.float32), jnp.asarray(ended.lowest()[1], jnp.float32))


@pytest.fixture(scope="module")
def knowing(doubting, ended) -> LearnedSolver:
    """A solver that also has a network for where to look again, which has learned nothing."""
    restart = LearnedRestart.untrained(whitening_of(ended), jax.random.key(0))
    return dataclasses.replace(doubting, restart=restart, starts=2)


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
        doubting = cost_limit(plain, tried)
    data = signals(family, 400, 5)
    best = solve(family, data, starts=12, seed=9)
    share = lambda found: np.mean(found.cost <= best.cost * (1 + 1e-3))  # noqa: E731
    one = solve(family, data, seed=7)
    every, spared = plain.solve(data, seed=7), doubting.solve(data, seed=7)
    assert share(one) < share(every) - 0.03  # otherwise there is nothing to doubt
    assert share(spared) > share(every) - 0.015
    assert spared.nfev.mean() < 0.6 * every.nfev.mean()
    assert (spared.cost <= one.cost * (1 + 1e-9)).all()


class Twins(LeastSquares):
    """Two minima, near a and -a, of which the first is lower; every start is at 1 or at -1, by chance."""

    def sample(self, key):
        return jax.random.uniform(key, (1,), minval=0.5, maxval=2.0)

    def init(self, instance, key):
        return jnp.where(jax.random.bernoulli(key), 1.0, -1.0).astype(instance.dtype)[None]

    def residuals(self, params, instance):
        return jnp.concatenate([params**2 - instance**2, 0.1 * (params - instance)])


def test_a_second_start_that_is_learned_finds_more_than_another_classical_one():
    plain = LearnedSolver(Twins(), LevenbergMarquardt(), LevenbergMarquardt(), None, STARTS, STARTS)
    ended = every_start(plain, signals(Twins(), 500, 1), 0)
    restart = learned_restart(whitening_of(ended), ended, np.arange(500), 1e-3, 1e-6, 0.0, 0, steps=500)
    two = dataclasses.replace(plain, starts=2, doubt=CostLimit(jnp.asarray(1e-3)))
    data = signals(Twins(), 200, 2)
    found, classical = (it.solve(data, seed=3) for it in (dataclasses.replace(two, restart=restart), two))
    wrong = solve(Twins(), data, seed=3).x[:, 0] < 0
    assert 0.3 < wrong.mean() < 0.7
    np.testing.assert_allclose(found.x, data, atol=1e-6)
    assert 0.3 < np.mean(classical.x[wrong] < 0) < 0.7 and (classical.x[~wrong] > 0).all()


def test_a_learned_second_start_is_kept_where_it_finds_more():
    plain = LearnedSolver(Twins(), LevenbergMarquardt(), LevenbergMarquardt(), None, STARTS, STARTS)
    data = signals(Twins(), 600, 1)
    whitening = Whitening(jnp.zeros(1), jnp.ones(1), jnp.zeros(1), jnp.ones(1))
    start = shaped(LearnedStart.untrained(whitening, 1, jax.random.key(0)), np.array([-1.2]))  # often the wrong minimum
    found = doubting_solvers(plain, start, data, 1e-3, 1e-6, lambda: 0.0, 0)
    assert [name.split(",")[0] for name in found] == ["tuned", "learned doubt", "learned start and doubt"]
    kept = {name.split(",")[0]: it.restart is not None for name, it in found.items()}
    assert kept == {"tuned": False, "learned doubt": True, "learned start and doubt": True}
    assert all(it.doubt is not None for it in found.values())


def test_of_the_proposals_those_are_kept_that_are_asked_for():
    whitening = Whitening(jnp.zeros(3), jnp.ones(3), jnp.array([1.0, 2.0]), jnp.array([1.0, 3.0]))
    start = LearnedStart.untrained(whitening, 4, jax.random.key(0))
    instance = jnp.array([0.3, -1.0, 2.0])
    kept = start.only([3, 1])
    assert kept.proposals == 2
    np.testing.assert_allclose(kept.propose(instance), start.propose(instance)[jnp.array([3, 1])], rtol=1e-5)


@pytest.mark.parametrize(
    ("proposed", "kept"),
    # Where the right minimum is proposed first of all, once is enough; where it lies on either side, both are needed.
    [((1.0, -3.0, 1.0, -3.0), [1.0]), ((1.0, -1.0, 1.0, -1.0), [-1.0, 1.0])],
)
def test_no_more_proposals_are_kept_than_what_is_solved_needs(proposed, kept):
    either_side = len(kept) == 2
    data = signals(Twins(), 300, 3) * (np.where(np.arange(300) % 2, 1, -1)[:, None] if either_side else 1)
    whitening = Whitening(jnp.zeros(1), jnp.ones(1), jnp.zeros(1), jnp.ones(1))
    start = shaped(LearnedStart.untrained(whitening, 4, jax.random.key(0)), np.array(proposed))
    plain = LearnedSolver(Twins(), LevenbergMarquardt(), LevenbergMarquardt(), None, 1, 1)
    enough = with_enough_proposals(plain, start, data, 1e-3, 1e-6, 0)
    np.testing.assert_allclose(np.sort(enough.propose(jnp.ones(1))[:, 0]), kept, rtol=1e-6)


def test_proposals_are_dropped_in_the_order_in_which_they_are_missed_least():
    # The last column is the family's own start. Without the third, one instance in two has none that is near.
    costs = np.array([[1.0, 1.1, 50.0, 90.0], [80.0, 70.0, 1.0, 90.0]])
    assert dropped(costs, np.zeros(2)) == [1, 0, 2]


@pytest.mark.parametrize("ruin", [np.nan, np.inf, -1e30])
def test_a_second_start_that_is_nonsense_costs_time_and_nothing_else(family, plain, knowing, ruin):
    data = signals(family, 40, 2)
    bad = jax.tree.map(lambda leaf: leaf * ruin if eqx.is_inexact_array(leaf) else leaf, knowing.restart)
    found = dataclasses.replace(knowing, restart=bad, doubt=saying(1.0)).solve(data, seed=3, batch=16)
    one = solve(family, data, seed=3, batch=16)
    assert found.success.all()
    assert (found.cost <= one.cost * (1 + 1e-9)).all() and (found.nfev > one.nfev).all()


def test_where_nothing_looks_again_nothing_says_where(knowing):
    for change in ({"doubt": None}, {"starts": 1}):
        with pytest.raises(ValueError, match=r"so nothing would\. Give a doubt and two starts, or no restart"):
            dataclasses.replace(knowing, **change)


def test_what_two_starts_leave_is_solved_from_all(family, plain):
    """A solver that learned to take two of four starts falls back on all of them."""
    data, impatient = signals(family, 4, 2), LevenbergMarquardt(tol=1e-12, max_steps=2)
    solver = dataclasses.replace(plain, method=impatient, classical=impatient, doubt=saying(1.0), starts=2)
    found = solver.solve(data)
    assert found.used_fallback.all() and (found.nit >= 2 * (2 + STARTS)).all()


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
    right, starts = cheapest_limit(logits, solved, 0.998)
    assert starts == 2  # a third one finds nothing more
    assert np.max(logits[first, 0]) <= right <= np.sort(logits[~first, 0])[2]
    # One that says nothing of use: all starts of all instances, but for what may be lost.
    useless = rng.random((1000, 2))
    limit, starts = cheapest_limit(useless, np.stack([first, first, np.ones(1000, bool)], axis=1), 0.998)
    assert np.mean(useless[:, 0] > limit) > 0.9 and starts == 3
    none, starts = cheapest_limit(useless, np.zeros((1000, 3), bool), 0.5)
    assert np.float32(none) == np.finfo(np.float32).min  # a number that a file takes
    assert starts == 3
    lost = np.where(first[:, None], useless, np.inf)
    assert np.isfinite(np.float32(cheapest_limit(lost, np.ones((1000, 3), bool), 0.5)[0]))


@pytest.mark.parametrize("kind", ["cost", "network", "restart"])
def test_a_file_gives_the_doubt_back(kind, family, doubting, knowing, tmp_path):
    if kind == "cost":
        doubting = dataclasses.replace(doubting, doubt=CostLimit(jnp.float32(20.0)))
    elif kind == "restart":
        doubting = knowing
    save_solver(doubting, tmp_path / "fit.bygrad")
    again, data = load_solver(tmp_path / "fit.bygrad", family), signals(family, 30, 6)
    assert again.digest == doubting.digest != dataclasses.replace(doubting, doubt=None, restart=None).digest
    np.testing.assert_array_equal(again.solve(data).cost, doubting.solve(data).cost)


def test_time_that_tuning_has_spent_ends_the_training_too():
    rng = np.random.default_rng(0)
    cost = np.sort(rng.uniform(1.0, 2.0, (64, STARTS)), axis=1)[:, ::-1]
    lowest = is_low(cost, cost[:, -1:], 1e-3, 0.0)
    tried = Tried(rng.normal(size=(64, 41)), cost, rng.normal(size=(64, STARTS, 5)), lowest, lowest)

    def watch(what: str, done: int, total: int) -> None:
        assert 0 <= done <= total  # the training would otherwise go on for ever

    plain = LearnedSolver(DampedOscillation(), LevenbergMarquardt(), LevenbergMarquardt(), None, STARTS, STARTS)
    learned_doubt(plain, tried, lowest[:, -1], divided(np.ones(64, bool), 0), -5.0, 0, watch)


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_what_has_no_solution_teaches_nothing(plain, ended):
    broken = ended._replace(cost=ended.cost.copy(), x=ended.x.copy())
    broken.cost[600:610, 0], broken.x[600:610, 0] = 1e60, -1e60  # beyond float32
    broken.cost[:300], broken.x[:300] = np.inf, np.nan  # in every start
    broken.cost[300:600, 0], broken.x[300:600, 0] = np.inf, np.nan  # in the first
    parts = divided(np.isfinite(broken.lowest()[0]), 0)
    assert not np.isin(np.arange(300), np.concatenate(parts)).any()
    tried = broken.judged(1e-3, 0.0)
    doubt = learned_doubt(plain, tried, tried.solved[:, -1], parts, 0.0, 0, steps=20).doubt
    assert np.isfinite(cost_limit(plain, tried).doubt.limit)
    restart = learned_restart(whitening_of(ended), broken, parts[1], 1e-3, 0.0, 0.0, 0, steps=20)
    assert restart is not None
    assert learned_restart(whitening_of(ended), broken, parts[1][:9], 1e-3, 0.0, 0.0, 0) is None  # from next to nothing
    for network in (doubt, restart):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(eqx.filter(network, eqx.is_inexact_array)))


@pytest.mark.slow
@pytest.mark.parametrize(("known", "candidates"), [(3, 1), (4, 3)])
def test_of_next_to_no_instances_no_doubt_is_learned(family, plain, known, candidates):
    data = signals(family, 60, 1)
    data[known:] = np.nan
    whitening = Whitening(jnp.zeros(41), jnp.ones(41), jnp.zeros(5), jnp.ones(5))
    start = LearnedStart.untrained(whitening, 2, jax.random.key(0))
    found = doubting_solvers(plain, start, data, 1e-3, 0.0, lambda: 0.0, 0)
    assert len(found) == candidates and next(iter(found)).startswith("tuned, up to ")
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
