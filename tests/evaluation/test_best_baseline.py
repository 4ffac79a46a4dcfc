"""Which baseline is the best one where runs were lost, or where there is none."""

import math

import numpy as np
import pytest

from bygrad.evaluation import best_baseline, ratio_to_best
from bygrad.evaluation.compare import interval_of


def row(label, finals, kind="hand-designed"):
    finals = np.array(finals)
    lost = int(np.sum(~np.isfinite(finals)))
    return {"kind": kind, "label": label, "final": interval_of(finals), "each_run": {"final": finals.tolist()}} | {
        "diverged": lost
    }


def test_where_all_lost_runs_the_one_that_lost_fewest_is_best_and_nothing_is_won():
    inf = math.inf
    rows = {
        "lstm": row("LSTM", [5.0, 5, 5, 5], "learned"),
        "a": row("A", [1, 1, inf, inf]),
        "b": row("B", [2, 2, 2, inf]),
    }
    assert best_baseline(rows, "final") == ("B", inf)
    label, ratio = ratio_to_best(rows, "lstm", "final")
    assert (label, *ratio) == ("B", inf, 0.0, inf)
    rows["c"] = row("C", [4.0, 4, 4, 4])
    label, ratio = ratio_to_best(rows, "lstm", "final")
    assert label == "C" and ratio.mean == pytest.approx(1.25)


def test_without_a_hand_designed_optimizer_there_is_no_best_one():
    with pytest.raises(ValueError, match="no tuned hand-designed optimizer"):
        best_baseline({"lstm": row("LSTM", [1.0], "learned")}, "final")
