"""Levels to reach, as rows of a report."""

import math
from typing import Any

from .report import Number, loss_of


def level_row(
    what: str,
    reach: Number,
    ours: Number,
    low: Number = None,
    high: Number = None,
    *,
    paper: Number = None,
    comparable: bool = True,
    at_least: bool = False,
    sure: bool = False,
) -> dict[str, Any]:
    """Hold what was measured against a level.

    **Arguments:** `what`: was measured. `reach`: the level; None where nothing is judged. `ours`, `low`, `high`: the
    mean and the ends of its interval, in the unit of `reach`; of losses, None (as in a file) or not finite where runs
    were lost; of what is better if it is more, None where it is not known. `paper`: the paper's own figure.
    `comparable`: whether that is a figure of the same problems. `at_least`: more is better. `sure`: the whole interval
    must lie beyond the level.

    **Returns:** the arguments that are numbers, and `reached`: None where nothing is judged, False for a mean that is
    lost; and `beats_paper`: whether the mean is better than the paper's, None where it has none that compares.

    >>> level_row("final loss", 0.21, 0.20)["reached"], level_row("share won", 0.8, 0.7, at_least=True)["reached"]
    (True, False)
    """
    ours = ours if at_least else loss_of(ours)
    judged = ours if not sure else low if at_least else high
    if reach is None:
        reached = None
    elif judged is None or not math.isfinite(judged):
        reached = False
    elif sure:
        reached = bool(judged > reach if at_least else judged < reach)
    else:
        reached = bool(judged >= reach if at_least else judged <= reach)
    beats = None
    if paper is not None and comparable:
        beats = ours is not None and bool(math.isfinite(ours) and (ours > paper if at_least else ours < paper))
    numbers = {"paper": paper, "reach": reach, "ours": ours, "low": low, "high": high}
    return {"what": what, **numbers, "reached": reached, "beats_paper": beats}
