"""Interquartile means, their intervals, performance profiles and runs over a grid."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bygrad.evaluation import bootstrap_iqm, bootstrap_share, interquartile_mean, run_grid
from bygrad.optimizers import SGD, Controller, ScheduleFree
from bygrad.problems import ProblemFamily


def test_the_interquartile_mean_is_that_of_the_middle_half():
    scores = np.random.default_rng(0).permutation(np.arange(40.0)).reshape(5, 8)
    assert interquartile_mean(scores) == np.mean(np.arange(10, 30))
    # Up to a quarter of lost runs does not reach it, more does.
    scores[scores >= 30] = np.nan
    assert interquartile_mean(scores) == np.mean(np.arange(10, 30))
    scores[scores == 29] = np.inf
    assert interquartile_mean(scores) == np.inf


def test_the_bootstrap_draws_within_problems():
    # Problems differ and runs do not: there is nothing to be unsure of.
    apart = np.repeat(np.arange(4.0)[:, None], 6, axis=1)
    assert bootstrap_iqm(apart) == (1.5, 1.5, 1.5)
    mixed = np.random.default_rng(0).standard_normal((4, 50))
    iqm, low, high = bootstrap_iqm(mixed)
    assert low < iqm < high
    assert high - low == pytest.approx(2 * 1.96 * 1.1 / 200**0.5, rel=0.3)
    with pytest.raises(ValueError, match=r"\[problems, runs\]"):
        bootstrap_iqm(np.zeros((0, 3)))


def test_a_share_of_problems_is_drawn_by_pairs_of_runs():
    # Runs differ more among themselves than within a pair: whichever are drawn, the first are below.
    apart = np.array([[10.0, 0.0, 5.0], [3.0, 30.0, 300.0]])
    assert bootstrap_share(apart, apart + 1.0) == (1.0, 1.0, 1.0)
    assert bootstrap_share(apart, apart) == (0.0, 0.0, 0.0)
    # One run of two decides: one of four draws has it twice, and wins a problem.
    assert bootstrap_share(np.zeros((1, 2)), np.array([[1.0, -3.0]])) == (0.0, 0.0, 1.0)
    assert bootstrap_share(np.zeros((1, 2)), np.array([[1.0, -3.0]]), level=0.4) == (0.0, 0.0, 0.0)
    assert bootstrap_share(np.array([[1.0, np.inf]]), np.array([[np.inf, np.inf]])) == (0.0, 0.0, 1.0)
    assert bootstrap_share(np.array([[1.0, 2.0]]), np.array([[np.nan, 0.0]])) == (1.0, 0.0, 1.0)
    with pytest.raises(ValueError, match="level=95"):
        bootstrap_share(apart, apart, level=95.0)
    with pytest.raises(ValueError, match="resamples=10"):
        bootstrap_iqm(apart, resamples=10)


def test_runs_of_one_key_tell_no_more_in_many_problems_than_in_one():
    runs = np.random.default_rng(0).standard_normal((1, 16))
    one, alike = bootstrap_iqm(runs), np.tile(runs, (9, 1))
    assert bootstrap_iqm(alike, together=True) == pytest.approx(one)
    apart = bootstrap_iqm(alike)
    assert apart.high - apart.low < 0.5 * (one.high - one.low)  # a third, if the nine were independent
    ours, theirs = np.zeros((9, 2)), np.tile([[1.0, -3.0]], (9, 1))
    assert bootstrap_share(ours, theirs, together=True) == (0.0, 0.0, 1.0)
    assert 0 < bootstrap_share(ours, theirs).high < 1


class Bowl(ProblemFamily):
    size: float = 1.0

    def sample(self, key):
        return ()

    def init(self, instance, key):
        return jnp.ones(2)

    def loss(self, params, instance, key):
        return self.size * 0.5 * jnp.sum(params**2)


@pytest.mark.parametrize("one_by_one", [False, True])
def test_a_grid_runs_every_rate_on_every_instance(one_by_one):
    rates = np.array([0.1, 0.5, 1.0])
    keys = jax.random.split(jax.random.key(0), 2)
    ran = run_grid(SGD(), rates, Bowl(), Bowl(2.0), keys, 3, one_by_one=one_by_one)
    expected = (1 - rates)[:, None] ** (2 * np.arange(4))
    np.testing.assert_allclose(ran.curves, np.broadcast_to(expected[:, None], (3, 2, 4)), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(ran.test, 2 * ran.curves[..., -1], rtol=1e-5, atol=1e-7)
    assert ran.seconds > 0


def test_training_and_held_out_losses_are_of_the_same_params():
    keys = jax.random.split(jax.random.key(0), 2)
    ran = run_grid(ScheduleFree(), np.array([0.1, 0.5]), Bowl(), Bowl(2.0), keys, 3)
    np.testing.assert_allclose(ran.test, 2 * ran.curves[..., -1], rtol=1e-5)


def test_what_has_no_rate_runs_alike_each_time_and_without_held_out_data_there_is_no_test():
    ran = run_grid(Controller(jax.random.key(0)), np.zeros(2), Bowl(), None, jax.random.split(jax.random.key(0), 1), 2)
    np.testing.assert_array_equal(ran.curves[0], ran.curves[1])
    assert np.isnan(ran.test).all()
