import numpy as np
import pytest

from bygrad.evaluation import statistics
from bygrad.evaluation.statistics import Interval, bootstrap_curves, bootstrap_mean, bootstrap_ratio


def naive(values, resamples, level, seed):
    generator = np.random.default_rng(seed)
    means = sorted(values[generator.integers(len(values), size=len(values))].mean() for _ in range(resamples))
    tail = (1 - level) / 2 * (resamples - 1)
    return Interval(values.mean(), means[int(np.floor(tail))], means[int(np.ceil(resamples - 1 - tail))])


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95])
@pytest.mark.parametrize("runs", [2, 7, 128])
def test_equals_a_loop_over_the_draws(runs, level):
    values = np.random.default_rng(runs).lognormal(size=runs)
    expected = naive(values, 1000, level, seed=3)
    np.testing.assert_allclose(bootstrap_mean(values, resamples=1000, level=level, seed=3), expected, rtol=1e-12)


def test_blocks_do_not_change_the_result(monkeypatch):
    curves = np.random.default_rng(0).normal(size=(20, 11))
    whole = bootstrap_curves(curves, resamples=500)
    monkeypatch.setattr(statistics, "_WEIGHTS_AT_ONCE", 20 * 7)
    monkeypatch.setattr(statistics, "_MEANS_AT_ONCE", 500 * 3)
    np.testing.assert_allclose(bootstrap_curves(curves, resamples=500), whole, rtol=1e-12)


def test_curves_are_the_means_of_each_step():
    curves = np.random.default_rng(0).normal(size=(30, 4))
    curves[3, 2] = np.nan
    mean, low, high = bootstrap_curves(curves, resamples=200)
    for step in range(4):
        expected = bootstrap_mean(curves[:, step], resamples=200)
        np.testing.assert_allclose((mean[step], low[step], high[step]), expected, rtol=1e-12)


def test_the_interval_covers_the_true_mean_as_often_as_it_says():
    data = np.random.default_rng(1).normal(2.0, 3.0, size=(400, 50))
    intervals = [bootstrap_mean(values, resamples=1000, seed=i) for i, values in enumerate(data)]
    covered = np.mean([interval.low <= 2.0 <= interval.high for interval in intervals])
    assert 0.90 <= covered <= 0.98


def test_the_interval_of_a_ratio_is_that_of_a_loop_over_pairs():
    data = np.random.default_rng(0)
    reference = data.lognormal(size=30)
    values = reference * data.lognormal(sigma=0.1, size=30)
    generator = np.random.default_rng(3)
    draws = [generator.integers(30, size=30) for _ in range(1000)]
    ratios = sorted(values[drawn].mean() / reference[drawn].mean() for drawn in draws)
    found = bootstrap_ratio(values, reference, resamples=1000, seed=3)
    np.testing.assert_allclose(found, (values.mean() / reference.mean(), ratios[24], ratios[975]), rtol=1e-12)
    # What makes a problem hard for both cancels.
    assert found.high - found.low < 0.2 * np.ptp(bootstrap_mean(values)[1:]) / reference.mean()


def test_the_interval_of_a_ratio_covers_the_true_ratio_as_often_as_it_says():
    data = np.random.default_rng(1)
    reference = data.lognormal(sigma=0.4, size=(300, 60))
    values = 0.8 * reference * data.lognormal(-0.125, 0.5, size=(300, 60))
    intervals = [
        bootstrap_ratio(*pair, resamples=500, seed=i) for i, pair in enumerate(zip(values, reference, strict=True))
    ]
    assert 0.89 <= np.mean([it.low <= 0.8 <= it.high for it in intervals]) <= 0.98


def test_a_ratio_to_what_is_lost_is_zero_and_of_what_is_lost_infinite():
    assert bootstrap_ratio([np.nan], [1.0]) == Interval(np.inf, np.inf, np.inf)
    assert bootstrap_ratio([1.0], [np.inf]) == Interval(0.0, 0.0, 0.0)
    assert bootstrap_ratio([np.inf], [np.nan]) == Interval(np.inf, np.inf, np.inf)
    assert bootstrap_ratio([0.0, 0.0], [0.0, 0.0]) == Interval(1.0, 1.0, 1.0)
    assert bootstrap_ratio([1.0], [0.0]) == Interval(np.inf, np.inf, np.inf)


def test_a_single_run_has_an_interval_of_no_width():
    assert bootstrap_mean([0.3]) == Interval(0.3, 0.3, 0.3)


@pytest.mark.parametrize("failure", [np.nan, np.inf, -np.inf])
def test_a_diverged_run_makes_the_mean_infinite(failure):
    interval = bootstrap_mean([1.0] * 99 + [failure])
    assert interval == Interval(np.inf, 1.0, np.inf)
    assert bootstrap_mean([1.0] * 50 + [failure] * 50) == Interval(np.inf, np.inf, np.inf)
    assert bootstrap_mean([failure]) == Interval(np.inf, np.inf, np.inf)


def test_divergence_is_infinite_only_from_its_step_on():
    curves = np.ones((10, 5))
    curves[0, 3:] = np.nan
    mean, _, high = bootstrap_curves(curves, resamples=100)
    assert np.isfinite(mean).tolist() == np.isfinite(high).tolist() == [True, True, True, False, False]


def test_losses_near_the_largest_float_stay_finite():
    assert np.isfinite(bootstrap_mean([1e308] * 8, resamples=100)).all()


def test_equal_seeds_give_equal_intervals():
    values = np.random.default_rng(0).normal(size=40)
    assert bootstrap_mean(values, seed=1) == bootstrap_mean(values, seed=1) != bootstrap_mean(values, seed=2)


@pytest.mark.parametrize(
    ("call", "what", "remedy"),
    [
        (lambda: bootstrap_mean([]), "no runs", "at least one run"),
        (lambda: bootstrap_ratio([], []), "no runs", "at least one run"),
        (lambda: bootstrap_ratio([1.0], [1.0, 2.0]), r"shape \(2,\)", "same problems"),
        (lambda: bootstrap_ratio([-44.0, -1.0], [-40.0, np.nan]), "least of them is -40", "Compare differences"),
        (lambda: bootstrap_mean([[1.0, 2.0]]), r"shape \(1, 2\)", "`bootstrap_curves`"),
        (lambda: bootstrap_mean(np.array(1.0)), r"shape \(\)", "one number per run"),
        (lambda: bootstrap_curves([1.0]), r"shape \(1,\)", "`bootstrap_mean`"),
        (lambda: bootstrap_curves(np.ones((0, 3))), "no runs", "at least one run"),
        (lambda: bootstrap_mean([1.0], level=95.0), "level=95.0", "0.95"),
        (lambda: bootstrap_mean([1.0], resamples=39), "resamples=39", "10,000"),
    ],
)
def test_errors_say_what_and_what_to_do(call, what, remedy):
    with pytest.raises(ValueError, match=what) as error:
        call()
    assert remedy in str(error.value)


@pytest.mark.parametrize(("runs", "covered"), [(2, 0.5), (4, 0.82)])
def test_intervals_of_few_runs_cover_as_little_as_reports_say(runs, covered):
    draws = np.random.default_rng(0).normal(size=(400, runs))
    intervals = [bootstrap_mean(some) for some in draws]
    share = np.mean([interval.low <= 0 <= interval.high for interval in intervals])
    assert abs(share - covered) < 0.06
