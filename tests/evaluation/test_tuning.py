"""Tuning finds an optimum that is known, wherever it lies, with the same budget for everyone."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bygrad.evaluation import Protocol, Tuning, strict_json, tune, tune_baselines, with_learning_rate
from bygrad.evaluation import tuning as tuning_module
from bygrad.evaluation.tuning import COMPILE, EXTENSIONS, POINTS, _curves, run_tuned
from bygrad.optimizers import PAPER_BASELINES, SGD, Adam
from bygrad.problems import Oracle, ProblemFamily, Quadratic
from bygrad.unroll import draw, loss_curves


class Isotropic(ProblemFamily):
    """Gradient descent is best at a rate of 1 / curvature, and lost at twice that rate and beyond."""

    curvature: float = 10.0

    def sample(self, key):
        return ()

    def init(self, instance, key):
        return jax.random.normal(key, (3,))

    def loss(self, params, instance, key):
        return 0.5 * self.curvature * jnp.sum(params**2)


def closed_form(curvature: float, rates: np.ndarray, initial: float, horizon: int) -> np.ndarray:
    """Mean losses `[rates, horizon + 1]`."""
    return initial * (1 - rates[:, None] * curvature) ** (2 * np.arange(horizon + 1))


@pytest.mark.parametrize(
    ("curvature", "extensions"),
    [(10.0, 0), (2.0, 0), (1e4, 1), (1e-2, 1), (10**7.5, 2)],
    ids=["centre", "between", "below", "above", "far below"],
)
def test_the_optimum_of_gradient_descent(curvature, extensions):
    tuning = tune(SGD(), Isotropic(curvature), jax.random.key(0), horizon=4, runs=3)
    assert len(tuning.learning_rates) == POINTS * (1 + extensions)
    assert extensions <= EXTENSIONS
    ratios = np.diff(np.log10(tuning.learning_rates))
    np.testing.assert_allclose(ratios, 0.25, rtol=1e-6)
    # The nearest rates of a grid of four a decade are within a factor of 10^(1/8).
    for best in (tuning.best_final, tuning.best_area):
        assert abs(np.log10(best * curvature)) <= 0.1251
        assert tuning.learning_rates[0] < best < tuning.learning_rates[-1]


def test_losses_are_those_of_the_closed_form():
    curvature, horizon = 10.0, 4
    tuning = tune(SGD(), Isotropic(curvature), jax.random.key(0), horizon=horizon, runs=3, final_window=2)
    curves = loss_curves(SGD(), Isotropic(curvature), jax.random.split(jax.random.key(0), 3), 0)
    expected = closed_form(curvature, tuning.learning_rates, float(jnp.mean(curves[:, 0])), horizon)
    atol = 1e-5 * expected[0, 0]
    np.testing.assert_allclose(tuning.area, expected[:, :-1].sum(axis=1), rtol=1e-4, atol=atol)
    np.testing.assert_allclose(tuning.final, expected[:, -2:].mean(axis=1), rtol=1e-4, atol=atol)


def test_a_rate_at_which_a_run_is_lost_is_infinitely_bad():
    tuning = tune(SGD(), Isotropic(10.0), jax.random.key(0), horizon=60, runs=2)
    lost = tuning.learning_rates > 1
    assert np.any(lost)
    assert np.all(np.isinf(tuning.final[lost])) and np.all(np.isinf(tuning.area[lost]))
    assert np.isfinite(tuning.final.min()) and np.isfinite(tuning.area.min())


def test_where_no_rate_makes_a_difference_the_middle_one_is_taken():
    class Flat(Quadratic):
        def loss(self, params, instance, key):
            return 3.0 + 0.0 * jnp.sum(params)

    tuning = tune(SGD(), Flat(2), jax.random.key(0), horizon=3, runs=2, points=5)
    assert len(tuning.learning_rates) == 5
    assert tuning.best_final == tuning.best_area == tuning.learning_rates[2]


def test_nothing_that_works_is_not_an_endless_search():
    class Lost(Isotropic):
        def loss(self, params, instance, key):
            return jnp.sum(params) * jnp.nan

    tuning = tune(SGD(), Lost(), jax.random.key(0), horizon=2, runs=1, confirming_runs=1)
    assert len(tuning.learning_rates) == POINTS * (1 + EXTENSIONS)
    assert np.all(np.isinf(tuning.final))


def test_measures_have_their_own_optimum_and_the_rest_of_the_optimizer_is_kept():
    optimizer = with_learning_rate(Adam(b1=0.5), 0.25)
    assert (float(optimizer.learning_rate), float(optimizer.b1)) == (0.25, 0.5)
    batch = with_learning_rate(Adam(), np.array([1e-3, 1e-2]))
    assert batch.learning_rate.shape == (2,)
    assert batch.b1.shape == ()


def test_every_baseline_gets_the_same_budget():
    told = []
    tunings = tune_baselines(
        Isotropic(), Protocol(4, tuning_runs=2), watch=lambda what, done, total: told.append((what, done, total))
    )
    assert list(tunings) == list(PAPER_BASELINES)
    assert told[0] == ("tuning SGD", 0, len(PAPER_BASELINES))
    assert told[-1] == ("tuning", len(PAPER_BASELINES), len(PAPER_BASELINES))
    for tuning in tunings.values():
        assert len(tuning.learning_rates) % POINTS == 0
        assert len(tuning.learning_rates) == len(tuning.final) == len(tuning.area)
        assert set(tuning.as_json()) == {"learning_rates", "final", "area"}


def test_an_interrupted_tuning_goes_on_where_it_was():
    whole, told = {}, []
    expected = tune_baselines(Isotropic(), Protocol(4, tuning_runs=2), results=whole)
    part = {"Adam": json.loads(json.dumps(strict_json(whole["Adam"])))}
    found = tune_baselines(
        Isotropic(),
        Protocol(4, tuning_runs=2),
        watch=lambda what, done, total: told.append((what, done)),
        results=part,
    )
    assert ("tuning Adam", 4) not in told and told[0] == ("tuning SGD", 1)
    assert list(found) == list(PAPER_BASELINES) and set(part) == set(PAPER_BASELINES)
    for name, tuning in found.items():
        np.testing.assert_array_equal(tuning.final, expected[name].final)
    lost = Tuning(np.array([0.1, 1.0]), final=np.array([1.0, np.inf]), area=np.array([2.0, np.inf]))
    again = Tuning.of_json(json.loads(json.dumps(strict_json(lost.as_json()))))
    np.testing.assert_array_equal(again.final, lost.final)  # diverged: infinite, which JSON cannot say


@pytest.mark.parametrize("at_once", [None, 1])
def test_what_is_tuned_runs_elsewhere_at_its_rate(at_once, monkeypatch):
    options, optimizer, family = {"horizon": 3, "runs": 2, "points": 5, "at_once": at_once}, Adam(), Isotropic()
    tuning = tune(optimizer, family, jax.random.key(0), **options)
    rate, keys = tuning.best_final, jax.random.split(jax.random.key(1), 5)  # two at a time, and one is left
    assert 0 < tuning.seconds < COMPILE / 3
    if at_once is None:
        monkeypatch.setattr(_curves, "_compile", None)  # nothing is compiled again
    found = run_tuned(optimizer, rate, family, keys, **options, seconds=tuning.seconds)
    expected = loss_curves(with_learning_rate(optimizer, rate), family, keys, 3)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("seconds", [None, COMPILE / 2], ids=["compiled elsewhere", "slow"])
def test_what_is_tuned_does_not_run_many_times_where_that_takes_longer_than_to_compile(seconds):
    """With a function on the host for a problem, who would notice at once."""
    rows = []

    def bowl(params, seed):
        rows.append(seed)
        return np.sum(params**2), 2 * params

    family, keys = Oracle(bowl, np.ones(2)), jax.random.split(jax.random.key(1), 4)
    rows.clear()
    curves = run_tuned(SGD(), 0.1, family, keys, horizon=3, runs=2, points=5, seconds=seconds)
    np.testing.assert_allclose(curves, np.broadcast_to(2 * 0.64 ** np.arange(4), (4, 4)), rtol=1e-5)
    assert len(rows) == 4 * 4


def test_the_first_grid_has_the_size_and_the_place_asked_for():
    tuning = tune(SGD(), Isotropic(1e-2), jax.random.key(0), horizon=3, runs=2, points=5, scale=1e3)
    np.testing.assert_allclose(tuning.learning_rates, 1e2 * 10 ** (np.arange(-2, 3) / 4), rtol=1e-5)
    assert tuning.best_final == pytest.approx(1e2)


@pytest.mark.parametrize("curvature", [10.0, 1e-2], ids=["centre", "above"])
def test_a_finer_grid_is_nearer_to_the_optimum_and_is_continued_as_finely(curvature):
    protocol = Protocol(4, tuning_runs=3, rates=65, rates_per_decade=16, confirming_runs=4)
    tuning = tune_baselines(Isotropic(curvature), protocol, {"SGD": SGD})["SGD"]
    np.testing.assert_allclose(np.diff(np.log10(tuning.learning_rates)), 1 / 16, rtol=1e-5)
    for best in (tuning.best_final, tuning.best_area):
        assert abs(np.log10(best * curvature)) <= 1 / 32 + 1e-4


def test_rates_one_after_the_other_give_what_all_at_once_give():
    options = {"horizon": 3, "runs": 2, "points": 5}
    together = tune(Adam(), Isotropic(), jax.random.key(0), **options)
    one_by_one = tune(Adam(), Isotropic(), jax.random.key(0), **options, at_once=1)
    np.testing.assert_allclose(one_by_one.learning_rates, together.learning_rates)
    np.testing.assert_allclose(one_by_one.final, together.final, rtol=1e-5)


def test_no_more_rates_go_side_by_side_than_fit_into_memory_beside_another_baseline(monkeypatch):
    family, keys = Isotropic(), jax.random.split(jax.random.key(0), 2)
    needs = _curves.bytes_more(with_learning_rate(Adam(), np.ones(5)), family, keys, 3, None)
    for room, at_once in ((2 * needs, None), (2 * needs - 2, 4), (needs, 2), (1, 1)):
        monkeypatch.setattr(tuning_module, "bytes_available", lambda room=room: room)
        assert tuning_module._fitting(Adam(), family, keys, 3, 5) == at_once
    options = {"horizon": 3, "runs": 2, "points": 5}
    little = tune(Adam(), family, jax.random.key(0), **options)
    one_by_one = tune(Adam(), family, jax.random.key(0), **options, at_once=1)
    np.testing.assert_array_equal(little.final, one_by_one.final)


class Mixed(Isotropic):
    """Bowls of two curvatures: which rate is best on a single one says little."""

    def sample(self, key):
        return 10.0 ** (2 * jax.random.bernoulli(key))

    def loss(self, params, instance, key):
        return 0.5 * instance * jnp.sum(params**2)


@pytest.mark.parametrize("at_once", [None, 1])
@pytest.mark.parametrize(("seed", "alone_best", "best"), [(1, 0.01, 0.01), (2, 1.0, 0.01)])
def test_the_best_rate_has_run_on_the_instances_that_confirm_it(at_once, seed, alone_best, best):
    """A single bowl of curvature 1 has its best rate where those of curvature 100 are lost."""
    key, family, more = jax.random.key(seed), Mixed(), 7
    options = {"horizon": 4, "runs": 1, "at_once": at_once}
    alone, found = tune(SGD(), family, key, **options), tune(SGD(), family, key, **options, confirming_runs=more)
    assert (alone.best_final, found.best_final) == pytest.approx((alone_best, best))
    keys = jnp.stack([*jax.random.split(key, 1), *jax.random.split(jax.random.fold_in(key, 0xC0F), more)])
    curves = jax.vmap(lambda rate: loss_curves(SGD(rate), family, keys, 4))(jnp.asarray(alone.learning_rates))
    finals, areas = np.asarray(curves[..., -1].mean(axis=1)), np.asarray(curves[..., :-1].sum(axis=-1).mean(axis=1))
    for expected, before, after in ((finals, alone.final, found.final), (areas, alone.area, found.area)):
        place = int(np.argmin(after))
        np.testing.assert_allclose(after[place - 1 : place + 2], expected[place - 1 : place + 2], rtol=1e-4)
        ran = np.isclose(after, expected, rtol=1e-4)
        assert not np.all(ran)
        np.testing.assert_allclose(after[~ran], before[~ran] + (expected - before)[place], rtol=1e-4)


def test_a_grid_is_continued_where_the_rate_that_is_confirmed_stands_at_its_edge():
    """Of five rates about 1e-2, a bowl of curvature 100 likes the middle one, and those of curvature 1 the highest."""

    class Rarely(Mixed):
        def sample(self, key):
            return 10.0 ** (2 * jax.random.bernoulli(key, 0.1))

        def init(self, instance, key):  # the others begin far up
            return jax.random.normal(key, (3,)) * jnp.where(instance == 1, 100.0, 1.0)

        def loss(self, params, instance, key):  # the steep ones are not lost at high rates
            return 0.5 * jnp.sum(jnp.where(instance == 1, params**2, jnp.minimum(100 * params**2, 1e3)))

    steep = lambda key: draw(Rarely(), jax.random.split(key, 1))[0][0] == 100  # noqa: E731
    key = next(filter(steep, map(jax.random.key, range(100))))
    options = {"horizon": 4, "runs": 1, "points": 5, "scale": 0.1}
    alone, found = (tune(SGD(), Rarely(), key, **options, confirming_runs=more) for more in (0, 30))
    assert len(alone.learning_rates) == 5 and alone.best_final == pytest.approx(0.01)
    assert len(found.learning_rates) > 5 and found.best_final > alone.learning_rates[-1]


class Steady(ProblemFamily):
    """After t steps the param is t times the rate. A second valley is as far away as one step at the highest rate."""

    centre: float

    def sample(self, key):
        return ()

    def init(self, instance, key):
        return jnp.full(1, 1e-9)

    def loss(self, params, instance, key):
        return jnp.log10(params[0] / self.centre) ** 2 - 100 * jnp.exp(-(((params[0] - 10) / 0.5) ** 2))

    def value_and_grad(self, params, instance, key):
        return self.loss(params, instance, key), -jnp.ones(1)


@pytest.mark.parametrize(
    ("centre", "measures", "low", "high"),
    [
        pytest.param(0.2, ("final",), 1e-3, 10, id="not for the area"),
        pytest.param(0.2, ("final", "area"), 1e-3, 10 ** (1 + 17 / 4), id="for the area"),
        pytest.param(2e-4, ("final", "area"), 10 ** (-3 - 17 / 4), 10 ** (1 + 17 / 4), id="both ways"),
    ],
)
def test_a_grid_is_continued_for_what_a_rate_is_chosen_by(centre, measures, low, high):
    rates = tune(SGD(), Steady(centre), jax.random.key(0), horizon=2, runs=1, measures=measures).learning_rates
    np.testing.assert_allclose(np.diff(np.log10(rates)), 0.25, rtol=1e-5)
    np.testing.assert_allclose(rates[[0, -1]], (low, high), rtol=1e-5)


def test_what_a_rate_is_not_chosen_by_is_not_confirmed(monkeypatch):
    class Stretched(Isotropic):  # best at the end at a higher rate than that of the least area
        def loss(self, params, instance, key):
            return 0.5 * jnp.sum(jnp.array([1.0, 10.0, 100.0]) * params**2)

    ran = []
    monkeypatch.setattr(
        tuning_module, "run_tuned", lambda *its, **options: ran.append(its[1]) or run_tuned(*its, **options)
    )
    options = {"horizon": 20, "runs": 1, "confirming_runs": 2}
    for measures, exponents in ((("final", "area"), [-2.25, -2, -1.75, -1.5]), (("final",), [-2, -1.75, -1.5])):
        found = tune(SGD(), Stretched(), jax.random.key(0), **options, measures=measures)
        np.testing.assert_allclose(sorted(ran), 10.0 ** np.array(exponents))
        assert found.best_final == pytest.approx(10**-1.75)
        ran.clear()
