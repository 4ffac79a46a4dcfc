"""Figures show what they are given: where it changes, in each optimizer's colour."""

import pytest

from bygrad.evaluation.drawing import COLOURS
from bygrad.evaluation.figures import loss_curves, losses_in_time, meta_training_curve, profiles, ratios, tuning_curves


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


def test_ratios_beyond_the_axis_stand_as_arrows_at_its_ends():
    rows = {
        "ours": {"kind": "learned", "label": "ours", "values": [0.9, 1.1, 0.1], "mean": 0.95},
        "L-BFGS": {"kind": "second-order", "label": "L-BFGS", "values": [30.0, float("inf"), None], "mean": 30.0},
    }
    (axes,) = ratios({"ratios": rows, "measure": "share"}).axes
    drawn = [(line.get_marker(), line.get_xdata().tolist(), set(line.get_ydata())) for line in axes.lines[:-1]]
    assert drawn == [
        (".", [0.9, 1.1], {0}), ("<", [0.5], {0}), (">", [], set()), ("|", [0.95], {0}),
        (".", [], set()), ("<", [], set()), (">", [2.0, 2.0, 2.0], {1}), ("|", [2.0], {1}),
    ]  # fmt: skip
    assert [text.get_text() for text in axes.get_yticklabels()] == ["ours", "L-BFGS"]
    low, high = axes.get_ylim()
    assert low > 1 and high < 0  # the first one on top


def test_losses_against_seconds_end_where_their_steps_do():
    entry = {"kind": "hand-designed", "curve": [4.0, 2.0, 1.0]}
    results = {
        "optimizers": {
            "adam": entry | {"label": "Adam", "seconds_per_step": 0.5},
            "lstm": entry | {"label": "LSTM", "kind": "learned", "seconds_per_step": 3.0},
            "untimed": entry | {"label": "untimed", "seconds_per_step": None},
        }
    }
    (axes,) = losses_in_time(results).axes
    drawn = [line.get_xydata().tolist() for line in axes.get_lines()]
    adam = [[[0.5, 2.0], [1.0, 1.0]], [[1.0, 1.0], [6.0, 1.0]]]
    lstm = [[[3.0, 2.0], [6.0, 1.0]], [[6.0, 1.0], [6.0, 1.0]]]
    assert drawn == adam + lstm
    assert axes.get_xlim() == (0.5, 6.0)
    assert {text.get_text() for text in axes.texts} == {"Adam", "LSTM"}


@pytest.mark.parametrize("draw", [loss_curves, losses_in_time])
def test_what_diverged_or_left_the_axis_is_said_beside_its_curve(draw):
    entry = {"kind": "hand-designed", "seconds_per_step": 0.5}
    rows = {
        "adam": entry | {"label": "Adam", "curve": [4.0, 2.0, 1.0]},
        "sgd": entry | {"label": "SGD", "curve": [4.0, 3.0, None]},
        "lost": entry | {"label": "lost", "curve": [None] * 3},
        "lbfgs": entry | {"label": "L-BFGS", "curve": [4.0, 1e-3, 1e-9], "kind": "second-order"},
    }
    (axes,) = draw({"optimizers": rows, "horizon": 2}).axes
    assert {text.get_text() for text in axes.texts} == {"Adam", "SGD\n(diverged)", "↓ L-BFGS"}
    low, high = axes.get_ylim()
    assert 1e-9 < low < 1 < 4 < high
    dotted = [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == ":"]
    # A lost run does not go on where it was last seen, and what lies below the axis does not go on at its edge.
    assert [end for end in dotted if low <= end <= high] == ([1.0] if draw is losses_in_time else [])


def test_axes_end_above_negative_losses_too():
    tuning = {"learning_rates": [0.1, 1.0, 10.0], "final": [-6.0, -10.0, 1e9], "area": [-11.0, -20.0, 1e9]}
    adam = {"kind": "hand-designed", "label": "Adam", "curve": [-5.0, -8.0, -10.0], "tuning": tuning}
    for axes, still in zip(
        tuning_curves({"optimizers": {"adam": adam}, "horizon": 2}).axes, (-5.0, -10.0), strict=True
    ):
        low, high = axes.get_ylim()
        assert low < 2 * still < still < high < 0
    training = {"steps": list(range(8)), "meta_loss": [50.0, -1.0, -1.5, -4.0, -8.0, -16.0, -20.0, -20.0]}
    (axes,) = meta_training_curve({"optimizers": {}, "meta_training": training}).axes
    assert axes.get_ylim()[1] > -1.5


@pytest.mark.filterwarnings("error")
def test_rates_are_drawn_where_every_start_is_infinite():
    tuning = {"learning_rates": [0.1, 1.0], "final": [2.0, 1.0], "area": [5.0, 4.0]}
    adam = {"kind": "hand-designed", "label": "Adam", "curve": [None, 2.0, 1.0], "tuning": tuning}
    for axes in tuning_curves({"optimizers": {"adam": adam}, "horizon": 2}).axes:
        low, high = axes.get_ylim()
        assert low < min(axes.lines[0].get_ydata()) < max(axes.lines[0].get_ydata()) < high


def test_an_optimizer_has_one_colour_in_every_figure():
    entry = {"kind": "hand-designed", "curve": [4.0, 2.0, 1.0]}
    rows = {name: entry | {"label": name.title()} for name in ("adam", "adamwcosine", "lion")}
    rows["controller"] = entry | {"label": "Controller", "kind": "learned"}
    training = {"validation_steps": [0, 5], "validation": [3.0, 2.0], "baselines": {"Adamwcosine": 2.5, "Lion": 2.6}}
    results = {"optimizers": rows, "horizon": 2, "meta_training": training}
    (losses,), (validation,) = loss_curves(results).axes, meta_training_curve(results).axes
    adam, cosine, lion, controller = (line.get_color() for line in losses.lines)
    assert len({adam, cosine, lion, controller}) == 4
    assert [line.get_color() for line in validation.lines] == [controller, cosine, lion]


@pytest.mark.parametrize("draw", [loss_curves, losses_in_time])
def test_long_names_leave_the_curves_their_room(draw):
    entry = {"kind": "hand-designed", "curve": [4.0, 2.0, 1.0], "area_curve": [4.0, 3.0, 2.0], "seconds_per_step": 0.5}
    labels = ("Adam", "the start (general/controller, its steps times 1.4)", f"the start ({'folder/' * 9}file)")
    figure = draw({"optimizers": {label: entry | {"label": label} for label in labels}, "horizon": 2})
    for axes in figure.axes:
        assert axes.get_position().width * len(figure.axes) > 0.4
        assert {"".join(text.get_text().split()) for text in axes.texts} == {"".join(it.split()) for it in labels}
