"""The demand of a power system over a year: the chronological load model of the IEEE Reliability Test System."""

import numpy as np
from jaxtyping import Float

_WEEKS = """86.2 90.0 87.8 83.4 88.0 84.1 83.2 80.6 74.0 73.7 71.5 72.7 70.4 75.0 72.1 80.0 75.4 83.7 87.0 88.0 85.6
81.1 90.0 88.7 89.6 86.1 75.5 81.6 80.1 88.0 72.2 77.6 80.0 72.9 72.6 70.5 78.0 69.5 72.4 72.4 74.3 74.4 80.0 88.1 88.5
90.9 94.0 89.0 94.2 97.0 100.0 95.2"""
"""Peak of each week in percent of the year's."""

_DAYS = "93 100 98 96 94 77 75"
"""Peak of each day, from Monday, in percent of the week's."""

_HOURS = {
    ("winter", "weekday"): "67 63 60 59 59 60 74 86 95 96 96 95 95 95 93 94 99 100 100 96 91 83 73 63",
    ("winter", "weekend"): "78 72 68 66 64 65 66 70 80 88 90 91 90 88 87 87 91 100 99 97 94 92 87 81",
    ("summer", "weekday"): "64 60 58 56 56 58 64 76 87 95 99 100 99 100 100 97 96 96 93 92 92 93 87 72",
    ("summer", "weekend"): "74 70 66 65 64 62 62 66 81 86 91 93 93 92 91 91 92 94 95 95 100 93 88 80",
    ("between", "weekday"): "63 62 60 58 59 65 72 85 95 99 100 99 93 92 90 88 90 92 96 98 96 90 80 70",
    ("between", "weekend"): "75 73 69 66 65 65 68 74 83 89 92 94 91 90 90 86 85 88 92 100 97 95 90 85",
}
"""Load of each hour in percent of the day's peak."""


def year_of_load(days: int = 366) -> Float[np.ndarray, " quarters"]:
    """Return the load of every quarter-hour, relative to the peak of the year; the first day is a Monday.

    The published model has a value for every hour, which stands for its middle; quarters between are interpolated.

    **Source:** IEEE RTS Task Force, *IEEE reliability test system* (1979), tables 1 to 3.

    >>> load = year_of_load()
    >>> len(load), float(load.min().round(3)), float(load.max())
    (35136, 0.339, 1.0)
    """
    weeks, week_days = _numbers(_WEEKS), _numbers(_DAYS)
    hours = []
    for day in range(days):
        week, weekday = (day // 7) % 52, day % 7
        season = "winter" if week < 8 or week >= 43 else "summer" if 17 <= week < 30 else "between"
        kind = "weekend" if weekday >= 5 else "weekday"
        hours.append(weeks[week] * week_days[weekday] * _numbers(_HOURS[season, kind]))
    middles, quarters = np.arange(24 * days) + 0.5, (np.arange(96 * days) + 0.5) / 4
    return np.interp(quarters, middles, np.concatenate(hours))


def _numbers(percents: str) -> np.ndarray:
    return np.array(percents.split(), float) / 100
