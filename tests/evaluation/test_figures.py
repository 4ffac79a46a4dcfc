"""Figures show what they are given: where it changes, in each optimizer's colour."""

import numpy as np
import pytest

from bygrad.evaluation.drawing import COLOURS, colours, dashes
from bygrad.evaluation.figures import (
    gains,
    loss_curves,
    losses_in_time,
    meta_training_curve,
    profiles,
    ratios,
    tuning_curves,
)


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


@pytest.mark.parametrize("draw", [loss_curves, losses_in_time])
def test_names_stand_where_curves_are_drawn_to_end(draw):
    """Long curves are drawn as means of neighbours: a last loss that is by chance low is not where the line ends."""
    noise = np.where(np.arange(10_001) % 2, 0.5, -0.5)  # below the mean at the last step
    rows = {
        name: {"kind": "learned", "label": name, "curve": (level + sign * noise).tolist(), "seconds_per_step": 0.5}
        for name, level, sign in (("upper", 2.0, 1.0), ("lower", 1.9, -1.0))
    }
    rows["lost"] = {**rows["upper"], "label": "lost", "curve": [*rows["lower"]["curve"][:-1], None]}
    (axes,) = draw({"optimizers": rows, "horizon": 10_000}).axes
    at = {text.get_text(): text.xy[1] for text in axes.texts}
    to_axes = axes.transData + axes.transAxes.inverted()
    curves = [it for it in axes.lines if it.get_linestyle() == "-"]
    for line, name in zip(curves, ("upper", "lower", "lost\n(diverged)"), strict=True):
        drawn = line.get_ydata()[np.isfinite(line.get_ydata())]
        assert 400 < len(drawn) <= 500
        assert at[name] == pytest.approx(to_axes.transform((1.0, drawn[-1]))[1])
    assert at["lower"] < at["upper"]


def test_a_single_update_is_a_point_in_time():
    entry = {"kind": "hand-designed", "label": "Adam", "curve": [4.0, 2.0], "seconds_per_step": 0.5}
    (axes,) = losses_in_time({"optimizers": {"adam": entry}, "horizon": 1}).axes
    line = axes.lines[0]
    assert (line.get_xydata().tolist(), line.get_marker()) == ([[0.5, 2.0]], "o")
    low, high = axes.get_xlim()
    assert low < 0.5 < high


def test_each_panel_shows_the_intervals_of_its_own_curves():
    adam = {"kind": "hand-designed", "label": "Adam"}
    for key, loss in (("curve", 1.0), ("area_curve", 2.0)):
        adam |= {key + end: [4.0, loss * times] for end, times in (("", 1.0), ("_low", 0.9), ("_high", 1.1))}
    for axes, loss in zip(loss_curves({"optimizers": {"adam": adam}, "horizon": 1}).axes, (1.0, 2.0), strict=True):
        (band,) = axes.collections
        heights = band.get_paths()[0].vertices[:, 1]
        assert (min(heights), max(heights[heights < 4])) == pytest.approx((0.9 * loss, 1.1 * loss))
    del adam["area_curve_low"], adam["area_curve_high"]  # of an older record
    assert [len(it.collections) for it in loss_curves({"optimizers": {"adam": adam}, "horizon": 1}).axes] == [1, 0]


def test_rates_at_which_a_run_diverged_are_marked():
    tunings = {
        "adam": {"learning_rates": [0.1, 1.0, 10.0], "final": [2.0, 1.0, None], "area": [5.0, None, None]},
        "sgd": {"learning_rates": [0.1, 1.0, 10.0], "final": [2.0, None, None], "area": [5.0, 4.0, 3.0]},
    }
    entry = {"kind": "hand-designed", "curve": [4.0, 2.0, 1.0]}
    rows = {name: entry | {"label": name, "tuning": tuning} for name, tuning in tunings.items()}
    figure = tuning_curves({"optimizers": rows, "horizon": 2})
    marked = [
        {it.get_color(): it.get_xdata().tolist() for it in axes.lines if it.get_marker() == "x" and len(it.get_xdata())}
        for axes in figure.axes
    ]
    adam, sgd = COLOURS["adam"], COLOURS["sgd"]
    assert marked == [{adam: [10.0], sgd: [1.0, 10.0]}, {adam: [1.0, 10.0]}]
    heights = [it.get_ydata()[0] for it in figure.axes[0].lines if it.get_marker() == "x" and len(it.get_xdata())]
    assert len(set(heights)) == 2 and all(0.5 < height < 1 for height in heights)  # in parts of the axes
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["adam", "sgd", "chosen", "diverged"]


def test_optimizers_of_one_colour_differ_in_their_dashes():
    names = [f"optimizer {number:02}" for number in range(32)] + list(COLOURS)
    palette, broken = colours(names), dashes(names)
    assert len({(palette[name], broken[name]) for name in names}) == len(names)
    entry = {"kind": "hand-designed", "curve": [4.0, 2.0, 1.0], "levels": [0.1, 1.0, 10.0], "shares": [0.0, 0.5, 1.0]}
    rows = {name: entry | {"label": name} for name in names[:9]}
    for figure in (loss_curves({"optimizers": rows, "horizon": 2}), profiles({"measure": "loss", "profiles": rows})):
        first, *_, last = (line for line in figure.axes[0].lines if len(line.get_xdata()) == 3)
        assert first.get_color() == last.get_color() and first.is_dashed() < last.is_dashed()


def test_factors_are_written_as_people_write_them():
    found = {"portfolios": {"batching": 99.7, "tuning": 0.996, "learning": 1234.0}, "fits": {"batching": 0.034}}
    (axes,) = gains({"gains": found}).axes
    assert [text.get_text() for text in axes.texts] == ["100", "0.034", "1.0", "1,234"]


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
