"""Budgets of time, as users write them."""

import pytest

from bygrad._core.times import parse_seconds

TIMES = {"90s": 90, "2m": 120, "5min": 300, "0.5 h": 1800, "1h": 3600, "7": 7, 3.5: 3.5, 1e-5: 1e-5, 1e16: 1e16}


@pytest.mark.parametrize(("text", "seconds"), TIMES.items(), ids=str)
def test_times_are_read(text, seconds):
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize(
    "text", ["0", "soon", "-3s", "10 parsecs", "nan", "9" * 400, 0, -1.0, float("nan"), float("inf")]
)
def test_what_is_no_time_is_refused(text):
    with pytest.raises(ValueError, match="is not a positive duration"):
        parse_seconds(text)
