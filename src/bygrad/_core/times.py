"""Times that a user writes."""

import math
import re

_UNITS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600}


def parse_seconds(budget: str | float | int) -> float:
    """Read a budget of time: a number of seconds, or text as `90s`, `10m`, `5min`, `1.5h`.

    **Raises:** `ValueError` for what is no time above zero.

    >>> parse_seconds("1.5m")
    90.0
    """
    if isinstance(budget, str):
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|min|m|h)?", budget.strip())
        seconds = float(match[1]) * _UNITS[match[2] or ""] if match else 0.0
    else:
        seconds = float(budget)
    if not 0 < seconds < math.inf:
        raise ValueError(f"The budget {budget!r} is not a positive duration. Write seconds, or 90s, 5min, 1.5h.")
    return seconds
