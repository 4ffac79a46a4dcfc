"""Bounds hold at their stated level: by simulation, and against published values."""

import math

import numpy as np
import pytest

from bygrad.solvers import failure_bound, has_drifted, percentile_bound


@pytest.mark.parametrize(
    ("failures", "trials", "expected"), [(0, 1000, 0.0069), (0, 6396, 0.00108), (103, 1024, 0.133), (5, 5, 1.0)]
)
def test_known_bounds(failures, trials, expected):
    assert failure_bound(failures, trials) == pytest.approx(expected, rel=0.01)


def test_a_bound_without_failures_is_the_root():
    assert failure_bound(0, 300, 0.95) == pytest.approx(1 - 0.05 ** (1 / 300), rel=1e-9)


@pytest.mark.parametrize("rate", [0.05, 0.3])
def test_the_failure_bound_is_wrong_as_seldom_as_it_says(rate):
    draw, level = np.random.default_rng(0), 0.1
    counts = draw.binomial(80, rate, size=4000)
    bounds = {count: failure_bound(int(count), 80, 1 - level) for count in np.unique(counts)}
    wrong = np.mean([bounds[count] < rate for count in counts])
    assert wrong <= level + 3 * math.sqrt(level * (1 - level) / 4000)
    assert wrong > 0  # and it is no looser than it must be


def test_the_percentile_bound_is_wrong_as_seldom_as_it_says():
    draw, level = np.random.default_rng(1), 0.1
    truth = -math.log(0.05)  # the 95th percentile of the exponential distribution
    bounds = [percentile_bound(draw.exponential(size=100), 0.95, 1 - level) for _ in range(1000)]
    wrong = np.mean(np.array(bounds) < truth)
    assert 0 < wrong <= level + 3 * math.sqrt(level * (1 - level) / 1000)


def test_too_few_draws_bound_no_percentile():
    assert percentile_bound(np.arange(100.0)) == math.inf


def test_the_alarm_is_false_as_seldom_as_it_says_and_sees_drift():
    draw, level = np.random.default_rng(2), 0.1
    known, served = draw.binomial(500, 0.04, size=400), draw.binomial(400, 0.04, size=400)
    alarms = [has_drifted(int(b), 400, int(a), 500, 1 - level) for a, b in zip(known, served, strict=True)]
    assert np.mean(alarms) <= level
    assert has_drifted(80, 400, 20, 500)
    assert not has_drifted(0, 0, 20, 500) and not has_drifted(400, 400, 500, 500)


@pytest.mark.parametrize("counts", [(1, 0), (-1, 3), (4, 3)])
def test_impossible_counts_are_refused(counts):
    with pytest.raises(ValueError, match="bound nothing"):
        failure_bound(*counts)
