"""What counts as reaching a level."""

import math

import numpy as np
import pytest

from bygrad.evaluation import level_row


@pytest.mark.parametrize(
    ("reach", "measured", "how", "reached"),
    [
        (0.5, (0.5,), {}, True),
        (0.5, (0.6,), {}, False),
        (0.5, (0.5,), {"at_least": True}, True),
        (0.5, (0.4,), {"at_least": True}, False),
        (None, (0.4,), {}, None),
        (0.5, (None,), {}, False),
        (math.inf, (math.inf,), {}, False),
        (0.5, (math.inf,), {"at_least": True}, False),
        (0.5, (math.nan,), {}, False),
        (math.inf, (3,), {}, True),
        (0.5, (0.3, 0.2, 0.4), {"sure": True}, True),
        (0.5, (0.4, 0.3, 0.6), {"sure": True}, False),
        (0.0, (0.0, 0.0, 0.0), {"sure": True}, False),
        (0.5, (0.8, 0.6, 0.9), {"sure": True, "at_least": True}, True),
        (0.5, (0.8, 0.4, 0.9), {"sure": True, "at_least": True}, False),
    ],
)
def test_a_level_is_reached_by_a_mean_on_its_right_side_that_is_not_lost(reach, measured, how, reached):
    assert level_row("it", reach, *measured, **how)["reached"] is reached


def test_a_loss_from_a_file_is_lost_where_it_is_missing_and_a_ratio_is_not_known():
    assert level_row("loss", 0.5, None)["ours"] == math.inf
    assert level_row("ratio", 0.5, None, at_least=True)["ours"] is None


def test_a_row_says_whether_the_paper_is_beaten():
    assert level_row("it", None, 0.5, paper=0.7)["beats_paper"] is True
    assert level_row("it", None, 0.5, paper=0.7, at_least=True)["beats_paper"] is False
    assert level_row("it", None, math.inf, paper=0.7)["beats_paper"] is False
    assert level_row("it", 1.0, 0.5)["beats_paper"] is None
    other = level_row("it", None, 0.5, paper=0.7, comparable=False)
    assert (other["paper"], other["beats_paper"]) == (0.7, None)


def test_a_row_holds_json_values():
    row = level_row("it", 1.0, np.float64(0.5), 0.4, 0.6, paper=0.7)
    assert list(row) == ["what", "paper", "reach", "ours", "low", "high", "reached", "beats_paper"]
    assert list(row.values()) == ["it", 0.7, 1.0, 0.5, 0.4, 0.6, True, True]
    assert type(row["reached"]) is type(row["beats_paper"]) is bool
