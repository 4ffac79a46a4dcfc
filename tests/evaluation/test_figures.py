"""Figures show what they are given: where it changes, in each optimizer's colour."""

from bygrad.evaluation.drawing import COLOURS
from bygrad.evaluation.figures import profiles


def test_profiles_show_where_shares_change():
    entry = {"kind": "hand-designed", "levels": [0.01, 0.1, 1.0, 10.0, 100.0]}
    slow = {**entry, "label": "slow", "shares": [0.0, 0.0, 0.0, 0.5, 0.5]}
    fast = {**entry, "label": "fast", "shares": [0.0, 0.0, 1.0, 1.0, 1.0]}
    figure = profiles({"measure": "loss", "profiles": {"Adam": slow, "SGD": fast}})
    (axes,) = figure.axes
    assert axes.get_xlim() == (0.1, 10.0)
    assert [line.get_color() for line in axes.lines] == [COLOURS["adam"], COLOURS["sgd"]]
    same = profiles({"measure": "loss", "profiles": {"Adam": {**slow, "shares": [1.0] * 5}}})
    assert same.axes[0].get_xlim()[0] < same.axes[0].get_xlim()[1]
