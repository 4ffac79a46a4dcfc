"""Pattern search: what it finds, what noise does to it, and that it can be left and gone on with."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bygrad.training.search import SMALLEST, PatternSearch, is_lower

ALWAYS = lambda: True  # noqa: E731
PLACES = st.lists(st.floats(-3, 3), min_size=1, max_size=4)


def bowl(best, noise=0.0, seed=0):
    """Judge of a quadratic around a place, in 16 runs that differ alike for all settings, and by noise besides."""
    rng = np.random.default_rng(seed)

    def judge(turns):
        away = np.array(list(turns.values())) - best
        return 1.0 + away @ away + 5.0 * np.arange(16) + noise * rng.normal(size=16)

    return judge


def found(judge, dials, rounds=200, **options):
    search = PatternSearch.begin(dials)
    while not search.is_over and search.rounds < rounds:
        search.round(judge, **{"in_time": ALWAYS} | options)
    return search


@settings(max_examples=30)
@given(best=PLACES)
def test_it_ends_within_half_of_the_smallest_turn_that_it_tries(best):
    search = found(bowl(np.array(best)), [f"dial {i}" for i in range(len(best))])
    assert search.is_over
    # Along each axis of a bowl, a turn helps where the place is further away than half of it.
    np.testing.assert_allclose(list(search.turned.values()), best, atol=SMALLEST / 2 + 1e-9)


@settings(max_examples=20)
@given(best=PLACES, seed=st.integers(0, 1000))
def test_no_round_ends_higher_than_it_began(best, seed):
    levels = np.random.default_rng(seed).normal(size=(len(best), 3))

    def rough(turns):
        away = np.array(list(turns.values())) - best
        return np.full(16, np.sum(away**2) + np.sum(levels[:, 0] * np.sin(9 * levels[:, 1] * away + levels[:, 2])))

    search = PatternSearch.begin([str(i) for i in range(len(best))])
    for _ in range(8):
        before = rough(search.turned)[0]
        search.round(rough, ALWAYS)
        assert rough(search.turned)[0] <= before


def test_dials_that_do_nothing_are_turned_seldom_and_the_others_in_spite_of_noise():
    far, idle = [], 0
    for seed in range(40):
        judge = bowl(np.array([2.0, 0.0]), noise=0.5, seed=seed)
        search = found(lambda turns, judge=judge: judge({"a": turns["a"], "b": 0.0}), ["a", "idle"], rounds=6)
        far.append(search.turned["a"])
        idle += search.turned["idle"] != 0
    assert abs(np.mean(far) - 2.0) < 0.1 and np.std(far) < 0.4
    assert idle < 40 * 0.95  # at each of its turns chance alone is one standard error better in 16 of 100


def test_runs_that_are_lost_are_never_better():
    good, lost = np.array([1.0, 2.0]), np.array([0.0, np.nan])
    assert is_lower(good, lost) and is_lower(good, np.array([0.0, np.inf]))
    assert not is_lower(lost, good) and not is_lower(lost, lost) and not is_lower(good, good)
    assert not is_lower(np.array([0.0, 3.0]), good)  # one each
    search = found(lambda turns: np.where(turns["a"] > 0.5, np.nan, np.array([3.0, 4.0]) - turns["a"]), ["a"])
    assert search.turned == {"a": 0.5}


def test_it_goes_on_where_it_was_left():
    judge = bowl(np.array([1.3, -2.2, 0.4]))
    whole, parts = PatternSearch.begin(["a", "b", "c"]), PatternSearch.begin(["a", "b", "c"])
    while not whole.is_over:
        whole.round(judge, ALWAYS)
        parts.round(judge, ALWAYS)
        parts = PatternSearch(**json.loads(json.dumps(dataclasses.asdict(parts))))
    assert parts == whole


@pytest.mark.parametrize("settings_in_time", [0, 1, 2, 5])
def test_a_round_that_runs_out_of_time_keeps_what_it_has_found_and_judges_nothing_more(settings_in_time):
    judged, quadratic = [], bowl(np.array([2.0, 2.0, 2.0]))

    def judge(turns):
        judged.append(dict(turns))
        return quadratic(turns)

    search = PatternSearch.begin(["a", "b", "c"])
    search.round(judge, lambda: len(judged) < 1 + settings_in_time)
    assert len(judged) == 1 + min(settings_in_time, 3)
    assert list(search.turned.values()) == [1.0] * min(settings_in_time, 3) + [0.0] * (3 - min(settings_in_time, 3))
    assert set(search.next.values()) == {1.0}  # what was not tried is not smaller
