"""The figures of an evaluation, as matplotlib `Figure` objects.

Losses that are missing or not finite are drawn as gaps.
"""

import base64
import math
import textwrap
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .drawing import (
    COLOURS,
    GREY,
    Array,
    Results,
    colours,
    dashes,
    floats,
    label_ends,
    limits_of,
    set_scale,
    styled,
    two_digits,
)

if TYPE_CHECKING:  # the annotations below name matplotlib in full, so that they resolve where it is installed
    import matplotlib.axes
    import matplotlib.figure

_INCH = 72.0  # points
_LINE = 20  # characters of a name's line
_SHARES = 0.5, 2.0
"""Between which shares of a reference's loss are drawn."""
_PAPER_ROOM = 0.42
"""Inches below the panels for the names of the paper's curves."""


@styled
def loss_curves(results: Results) -> "matplotlib.figure.Figure":
    """Mean loss against updates with its interval, one line per optimizer, named where it ends.

    The paper's curves are thin and broken, in the same colours, and named below. A second panel shows the learning
    rates tuned for the area where a baseline has an `area_curve`. Both panels share the loss axis. It is set by the
    first-order optimizers and the paper's: a curve that leaves it ran away (above) or belongs to a second-order method
    that is far ahead (below).

    **Arguments:** `results`: as described in `bygrad.evaluation.report`.

    **Returns:** the figure, 7.4 inches wide with two panels, 5.6 with one.
    """
    from matplotlib.figure import Figure

    optimizers = results["optimizers"]
    keys = ["curve"] + ["area_curve"] * any(entry.get("area_curve") for entry in optimizers.values())
    width, height = (7.4, 3.5) if len(keys) == 2 else (5.6, 3.6)
    paper, scale = _paper(results), results.get("paper_scale")
    below = (_PAPER_ROOM + 0.16 * bool(scale)) * bool(paper)
    figure = Figure(figsize=(width, height + below))
    room = _room(optimizers)
    panel = (width - 0.64) / len(keys) - room
    bottom, top = ((share * height + below) / (height + below) for share in (0.13, 0.91))
    grid = {"left": 0.64 / width, "right": 1 - room / width, "bottom": bottom, "top": top, "wspace": room / panel}
    panels = figure.subplots(1, len(keys), sharey=True, squeeze=False, gridspec_kw=grid)[0]
    limits, log = _loss_limits(optimizers, [losses for _, losses in paper.values()])
    for axes, key, measure in zip(panels, keys, ("final loss", "area"), strict=False):
        axes.set_title(f"learning rates tuned for the {measure}" if len(keys) == 2 else "")
        axes.set_xlabel("updates")
        axes.set_xlim(0, results["horizon"])
        set_scale(axes.yaxis, limits, log)
        _draw_losses(axes, optimizers, key, height * 0.78 * _INCH)
    panels[0].set_ylabel("mean loss")
    if paper:
        _draw_paper(panels[0], paper)
        lines, names = panels[0].get_legend_handles_labels()
        unit = (
            f";\nwithout a unit, x {float(f'{scale:.3g}'):,g}: its best baseline ends where ours does" if scale else ""
        )
        style = {"ncols": len(names), "alignment": "left", "handlelength": 2.2, "columnspacing": 1.4}
        place = {"loc": "lower left", "bbox_to_anchor": (0.3 / width, 0.0), "borderaxespad": 0.2}
        figure.legend(lines, names, title=f"the paper's, digitised{unit}", **style, **place)
    return figure


@styled
def losses_in_time(results: Results) -> "matplotlib.figure.Figure":
    """Mean loss against seconds, on a logarithmic scale: where an optimizer's steps end, a dotted line goes on, unless
    it has diverged by then.

    **Arguments:** `results`: as described in `bygrad.evaluation.report`.

    **Returns:** the figure, 5.6 inches wide.
    """
    from matplotlib.figure import Figure

    optimizers = {name: it for name, it in results["optimizers"].items() if it.get("seconds_per_step")}
    width, height = 5.6, 3.6
    room = _room(optimizers)
    figure = Figure(figsize=(width, height))
    grid = {"left": 0.64 / width, "right": 1 - room / width, "bottom": 0.13, "top": 0.91}
    axes = figure.subplots(gridspec_kw=grid)
    set_scale(axes.yaxis, *_loss_limits(optimizers, []))
    axes.set(xscale="log", xlabel="seconds", ylabel="mean loss")
    # From the time of the first step that any of them ends to that of the last.
    steps = [entry["seconds_per_step"] for entry in optimizers.values()]
    first, last = min(steps), max(it["seconds_per_step"] * (len(it["curve"]) - 1) for it in optimizers.values())
    axes.set_xlim((first, last) if first < last else (last / 2, 2 * last))
    lines, labels = _lines(results["optimizers"]), []
    for name, entry in optimizers.items():
        width, level = (2.0, 30) if entry["kind"] == "learned" else (1.2, 10)
        colour, curve = lines[name]["color"], floats(entry["curve"])
        seconds, curve = (_thin(it[1:]) for it in (entry["seconds_per_step"] * np.arange(len(curve)), curve))
        # Of a single update there is no line.
        point = {"marker": "o", "markersize": 4, "clip_on": False} if len(curve) == 1 else {}
        axes.plot(seconds, curve, linewidth=width, zorder=level, **point, **lines[name])
        axes.plot([seconds[-1], last], [curve[-1]] * 2, color=colour, linewidth=0.7, linestyle=":", zorder=4)
        labels += _name_at_end(entry["label"], curve, axes.get_ylim(), colour)
    label_ends(axes, labels, height * 0.78 * _INCH)
    return figure


def _broken(label: str) -> str:
    """Break a name into lines that leave the panel its room."""
    parts = label.replace(" (", "\n(").split("\n")
    return "\n".join(line for part in parts for line in textwrap.wrap(part, _LINE, break_on_hyphens=False))


def _room(optimizers: Mapping[str, Any]) -> float:
    """Return the room for the longest name right of a panel, in inches."""
    lines = [line for entry in optimizers.values() for line in _broken(entry["label"]).split("\n")]
    return 0.3 + 0.068 * max(10, *map(len, lines))


def _draw_losses(axes: "matplotlib.axes.Axes", optimizers: Mapping[str, Any], key: str, height: float) -> None:
    lines = _lines(optimizers)
    low_limit, high_limit = axes.get_ylim()
    labels = []
    for order, (name, entry) in enumerate(optimizers.items()):
        shown = key if entry.get(key) else "curve"
        width, level = (2.0, 30) if entry["kind"] == "learned" else (1.2, 10)
        colour, curve = lines[name]["color"], floats(entry[shown])
        steps, curve = _thin(np.arange(len(curve))), _thin(curve)
        axes.plot(steps, curve, linewidth=width, zorder=level + order, **lines[name])
        if entry.get(f"{shown}_low") and entry.get(f"{shown}_high"):  # missing in older records of the area's curve
            low, high = floats(entry[f"{shown}_low"]), floats(entry[f"{shown}_high"])
            # A missing upper end beside a lower one is infinite: some runs diverged.
            high = np.where(np.isnan(high) & np.isfinite(low), 10 * abs(high_limit), high)
            axes.fill_between(steps, _thin(low), _thin(high), color=colour, alpha=0.16, linewidth=0, zorder=5)
        labels += _name_at_end(entry["label"], curve, (low_limit, high_limit), colour)
    label_ends(axes, labels, height)


def _name_at_end(label: str, curve: Array, limits: tuple[float, float], colour: str) -> list[tuple[float, str, str]]:
    """Return the name of a curve, as it is drawn, as `label_ends` takes it, none where nothing of it is finite: with an
    arrow where it has left the axis, and with a word where it ends early."""
    finite = np.flatnonzero(np.isfinite(curve))
    if not len(finite):
        return []
    end = float(curve[finite[-1]])
    arrow = "↓ " if end < limits[0] else "↑ " if end > limits[1] else ""
    text = arrow + _broken(label) + "\n(diverged)" * bool(finite[-1] < len(curve) - 1)
    return [(float(np.clip(end, *limits)), text, colour)]


def _thin(values: np.ndarray) -> np.ndarray:
    """Return a short curve as it is; of a long one the means of neighbours, 500 points in all."""
    return values if len(values) < 2_000 else np.array([part.mean() for part in np.array_split(values, 500)])


def _lines(optimizers: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return colour and line style of each. AdamW has gaps because it often coincides with Adam, which then shows
    through."""
    palette, broken = colours(list(optimizers)), dashes(list(optimizers))
    broken |= {"adamw": (0, (4, 1.2))}
    broken |= {name: (0, (5, 1.5, 1, 1.5)) for name, it in optimizers.items() if it["kind"] == "second-order"}
    return {name: {"color": palette[name], "linestyle": broken[name]} for name in optimizers}


def _paper(results: Results) -> dict[str, tuple[Array, Array]]:
    """Return the steps and the losses of the paper's curves up to the horizon."""
    found = {}
    for name, curve in (results.get("paper") or {}).items():
        steps, losses = floats(curve["steps"]), (results.get("paper_scale") or 1.0) * floats(curve["losses"])
        found[name] = steps[steps <= results["horizon"]], losses[steps <= results["horizon"]]
    return found


def _draw_paper(axes: "matplotlib.axes.Axes", curves: Mapping[str, tuple[Array, Array]]) -> None:
    for name, (steps, losses) in curves.items():
        kind, _, variant = name.lower().partition("-")
        dashes = (0, (1, 1.2)) if variant else (0, (3, 2))
        style = {"color": COLOURS.get(kind, GREY), "linewidth": 0.9, "linestyle": dashes, "zorder": 25}
        axes.plot(steps, losses, label=name, **style)


@styled
def meta_training_curve(results: Results) -> "matplotlib.figure.Figure":
    """Validation during meta-training against the levels of the baselines, and the meta-loss below it.

    The two have different scales (a whole run on held-out instances; one truncation on training instances), hence two
    panels over the same meta-steps. Rollbacks are dotted vertical lines.

    **Raises:** `ValueError` if `results["meta_training"]` is missing or has neither series.
    """
    from matplotlib.figure import Figure

    training = results.get("meta_training") or {}
    rows = [row for row in ("validation", "meta_loss") if training.get(row)]
    if not rows:
        raise ValueError(
            "These results have no meta-training record, so there is no meta-training curve to draw. Pass results "
            "with `meta_training` holding `validation` or `meta_loss`, or leave this figure out."
        )
    height = 4.4 if len(rows) == 2 else 2.9
    figure = Figure(figsize=(6.4, height))
    grid = {"left": 0.115, "right": 0.82, "bottom": 0.46 / height, "top": 1 - 0.28 / height, "hspace": 0.2}
    ratios = [3, 2][: len(rows)]
    panels = figure.subplots(len(rows), 1, sharex=True, squeeze=False, height_ratios=ratios, gridspec_kw=grid)[:, 0]
    inner = (height - 0.74) * _INCH * (0.55 if len(rows) == 2 else 1.0)
    for axes, row in zip(panels, rows, strict=True):
        _draw_validation(axes, results, inner) if row == "validation" else _draw_meta_loss(axes, training)
        for i, rollback in enumerate(training.get("rollbacks") or []):
            label = "rollback" if i == 0 else None
            axes.axvline(rollback["step"], color=GREY, linewidth=0.9, linestyle=(0, (1, 1.5)), zorder=1, label=label)
    if training.get("rollbacks"):
        panels[0].legend(loc="upper right", borderaxespad=0.2, handlelength=1.6)
    panels[-1].set_xlabel("meta-steps")
    panels[-1].set_xlim(0, max([1, *training.get("steps", []), *training.get("validation_steps", [])]))
    figure.align_ylabels()
    return figure


def _draw_validation(axes: "matplotlib.axes.Axes", results: Results, height: float) -> None:
    training = results["meta_training"]
    name, label = _learned(results)
    steps, validation = floats(training["validation_steps"]), floats(training["validation"])
    baselines = {key: float(level) for key, level in (training.get("baselines") or {}).items() if level is not None}
    names = [*results["optimizers"], name]
    palette, broken = colours(names), dashes(names)
    known = {it["label"]: (palette[key], broken[key]) for key, it in results["optimizers"].items()}
    levels = np.array(list(baselines.values()))
    limits, log = limits_of(np.concatenate([validation, levels]), top=_above(levels, 20.0))
    set_scale(axes.yaxis, limits, log)
    colour = palette[name]
    axes.plot(steps, validation, color=colour, linewidth=1.6, marker="o", markersize=2.6, zorder=3, clip_on=False)
    labels = []
    for text, level in baselines.items():
        shade, style = known.get(text, (GREY, "-"))
        axes.axhline(level, color=shade, linestyle=style, linewidth=0.8, zorder=2)
        labels.append((float(np.clip(level, *limits)), text, shade))
    finite = validation[np.isfinite(validation)]
    if len(finite):
        labels.append((float(np.clip(finite[-1], *limits)), label, colour))
    axes.set_ylabel("validation")
    axes.set_title(training.get("validation_label") or "")
    label_ends(axes, labels, height)


def _draw_meta_loss(axes: "matplotlib.axes.Axes", training: Mapping[str, Any]) -> None:
    steps, losses = floats(training["steps"]), floats(training["meta_loss"])
    axes.plot(steps, losses, color="#BBBBBB", linewidth=0.7, zorder=2)
    window = max(1, len(losses) // 25)
    if window > 2:  # the median over a window shows the trend, and one diverged instance does not bend it
        bounded = np.where(np.isfinite(losses), losses, np.inf)
        padded = np.pad(bounded, (window // 2, window - 1 - window // 2), constant_values=np.nan)  # shorter at the ends
        trend = np.nanmedian(np.lib.stride_tricks.sliding_window_view(padded, window), axis=1)
        axes.plot(steps, np.where(np.isfinite(trend), trend, np.nan), color="#333333", linewidth=1.3, zorder=3)
    finite = losses[np.isfinite(losses)]
    set_scale(axes.yaxis, *limits_of(losses, top=_above(finite[len(finite) // 4 :], 10.0)))
    axes.set_ylabel("meta-loss")


def _above(values: Array, times: float) -> float:
    """Return `times` the largest, or where that is negative as far above it; infinite where there is none."""
    largest = float(np.max(values, initial=-math.inf))
    return largest + (times - 1) * abs(largest) if math.isfinite(largest) else math.inf


def _learned(results: Results) -> tuple[str, str]:
    entries = results["optimizers"].items()
    found = [(name, entry["label"]) for name, entry in entries if entry["kind"] == "learned"]
    return found[0] if len(found) == 1 else ("lstm", "learned")


@styled
def tuning_curves(results: Results) -> "matplotlib.figure.Figure":
    """Final loss and area against the learning rate for each baseline; the chosen rates are marked.

    The axes end a little above the loss of doing nothing. A curve that leaves them there is a learning rate that does
    harm, and a cross below their upper end one at which a run diverged; each optimizer's are in a row of their own.

    **Raises:** `ValueError` if no optimizer has a `tuning` record.
    """
    from matplotlib.figure import Figure

    tuned = {name: entry for name, entry in results["optimizers"].items() if entry.get("tuning")}
    if not tuned:
        raise ValueError(
            "None of these results has a tuning record, so there is no tuning figure to draw. Pass results in which "
            "a baseline has `tuning`, or leave this figure out."
        )
    figure = Figure(figsize=(7.4, 3.2))
    grid = {"left": 0.075, "right": 0.865, "bottom": 0.15, "top": 0.9, "wspace": 0.25}
    panels = figure.subplots(1, 2, gridspec_kw=grid)
    lines = _lines(results["optimizers"])
    rates = np.concatenate([floats(entry["tuning"]["learning_rates"]) for entry in tuned.values()])
    chosen = {"final": "learning_rate", "area": "area_learning_rate"}
    starts = floats([entry["curve"][0] for entry in tuned.values()])
    top = _above(starts[np.isfinite(starts)], 1.4)
    tops = {"final": top, "area": top * results["horizon"]}
    for axes, (measure, title) in zip(panels, {"final": "final loss", "area": "area"}.items(), strict=True):
        losses = {name: floats(entry["tuning"][measure]) for name, entry in tuned.items()}
        set_scale(axes.yaxis, *limits_of(np.concatenate(list(losses.values())), top=tops[measure]))
        set_scale(axes.xaxis, *limits_of(rates))
        diverged = {name: np.isnan(its) for name, its in losses.items() if np.isnan(its).any()}
        for name, entry in tuned.items():
            tested, colour = floats(entry["tuning"]["learning_rates"]), lines[name]["color"]
            line = {"label": entry["label"], "linewidth": 1.2, **lines[name]}
            axes.plot(tested, losses[name], marker=".", markersize=3, **line)
            if name in diverged:
                at = tested[diverged[name]]
                row = np.full(len(at), 0.975 - 0.04 * list(diverged).index(name))
                axes.plot(at, row, "x", color=colour, markersize=4, transform=axes.get_xaxis_transform(), zorder=4)
            rate = entry.get(chosen[measure])
            if rate is not None:
                nearest = int(np.argmin(np.abs(np.log(tested / rate))))
                dot = {"markersize": 6.5, "markeredgecolor": "white", "markeredgewidth": 0.8, "zorder": 5}
                axes.plot([tested[nearest]], [losses[name][nearest]], "o", color=colour, **dot)
        axes.set_title(title)
        axes.set_xlabel("learning rate")
    panels[0].plot([], [], "o", color=GREY, markersize=5.5, label="chosen")
    if any(np.isnan(floats(entry["tuning"][measure])).any() for entry in tuned.values() for measure in chosen):
        panels[0].plot([], [], "x", color=GREY, markersize=4, label="diverged")
    place = {"loc": "upper left", "bbox_to_anchor": (0.87, 0.92), "borderaxespad": 0}
    figure.legend(*panels[0].get_legend_handles_labels(), handlelength=1.6, **place)
    return figure


@styled
def pictures(results: Results) -> "matplotlib.figure.Figure":
    """The images of `results["pictures"]`, a row for each optimizer and instance, under the names of the columns."""
    from matplotlib.figure import Figure

    columns, rows = results["pictures"]["columns"], results["pictures"]["rows"]
    figure = Figure(figsize=(7.4, 7.4 / (len(columns) + 1) * len(rows) + 0.3))
    grid = {"left": 0.13, "right": 0.995, "bottom": 0.005, "top": 1 - 0.3 / figure.get_figheight()}
    panels = figure.subplots(
        len(rows), len(columns), squeeze=False, gridspec_kw=grid | {"wspace": 0.03, "hspace": 0.03}
    )
    for row, line in zip(rows, panels, strict=True):
        for image, axes in zip(row["images"], line, strict=True):
            pixels = np.frombuffer(base64.b64decode(image["data"]), np.uint8).reshape(image["shape"])
            axes.imshow(pixels, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        line[0].set_ylabel(row["label"], rotation=0, ha="right", va="center")
    for column, axes in zip(columns, panels[0], strict=True):
        axes.set_title(column, loc="center")
    return figure


@styled
def profiles(results: Results) -> "matplotlib.figure.Figure":
    """Profiles: the share of runs whose loss is at most so many times the reference's, for each optimizer; or of
    instances that a solver has solved after so many seconds.

    **Arguments:** `results`: `measure`, the label of the axis, and `profiles`, for each optimizer its `label`, `kind`,
    `levels` and `shares`. `share` labels the other axis; `steps`: the shares rise at the levels and not between them.
    """
    from matplotlib.figure import Figure

    entries = results["profiles"]
    room = 0.55 + 0.066 * max(len(entry["label"]) for entry in entries.values())  # for the longest name, in inches
    width = 4.2 + room
    figure = Figure(figsize=(width, 3.4))
    axes = figure.subplots(gridspec_kw={"left": 0.6 / width, "right": 1 - room / width, "bottom": 0.15, "top": 0.95})
    names = [name.lower() for name in entries]
    palette, broken = colours(names), dashes(names)
    for name, entry in entries.items():
        learned = entry["kind"] == "learned"
        axes.plot(
            entry["levels"],
            entry["shares"],
            color=palette[name.lower()],
            linestyle=broken[name.lower()],
            linewidth=2.0 if learned else 1.2,
            label=entry["label"],
            zorder=30 if learned else 10,
            drawstyle="steps-post" if results.get("steps") else "default",
        )
    low, high = _where_shares_change(entries.values())
    set_scale(axes.xaxis, (low, high) if low < high else (low / 2, high * 2), log=True)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel(results["measure"])
    axes.set_ylabel(results.get("share", "share of runs"))
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def _where_shares_change(entries: Iterable[Mapping[str, Any]]) -> tuple[float, float]:
    """From the last level at which every share is its first, to the first at which every share is its last."""
    starts, ends = [], []
    for entry in entries:
        levels, shares = floats(entry["levels"]), floats(entry["shares"])
        starts.append(levels[max(int(np.argmax(shares > shares[0])) - 1, 0)])
        ends.append(levels[int(np.argmax(shares >= shares[-1]))])
    return min(starts), max(ends)


@styled
def ratios(results: Results) -> "matplotlib.figure.Figure":
    """Losses as shares of a reference's: a dot for every problem and an upright stroke for their mean, a line for each
    optimizer. What lies beyond the axis stands as an arrow at its end.

    **Arguments:** `results`: `measure`, the label of the axis; `ratios`, for each optimizer its `label`, `kind`,
    `values`, one for each problem, and `mean`.
    """
    from matplotlib.figure import Figure

    entries = list(results["ratios"].values())
    room, height = 0.3 + 0.075 * max(len(entry["label"]) for entry in entries), 0.24 * len(entries)
    width = room + 4.6
    figure = Figure(figsize=(width, height + 0.6))
    grid = {"left": room / width, "right": 0.98, "bottom": 0.5 / (height + 0.6), "top": 1 - 0.1 / (height + 0.6)}
    axes = figure.subplots(gridspec_kw=grid)
    for place, entry in enumerate(entries):
        values, colour = floats(entry["values"]), "#0072B2" if entry["kind"] == "learned" else GREY
        low, high = _SHARES
        for marker, those in ((".", (values > low) & (values < high)), ("<", values <= low), (">", ~(values < high))):
            at = np.clip(np.nan_to_num(values[those], nan=high), low, high)
            axes.plot(at, np.full(len(at), place), marker, color=colour, alpha=0.6, clip_on=False)
        axes.plot(np.clip(entry["mean"], low, high), place, "|", color=colour, markersize=13, markeredgewidth=2)
    axes.axvline(1, color="black", linewidth=0.6, zorder=0)
    set_scale(axes.xaxis, _SHARES, log=True)
    axes.set_yticks(range(len(entries)), [entry["label"] for entry in entries])
    axes.set_ylim(len(entries) - 0.4, -0.6)
    axes.set_xlabel(results["measure"])
    return figure


@styled
def gains(results: Results) -> "matplotlib.figure.Figure":
    """What batching, tuning and learning each multiply the throughput by, as bars for every family, from a line at 1.

    **Arguments:** `results`: `gains`, for each family the factors by name; None where one is not known.
    """
    from matplotlib.figure import Figure

    steps = {"batching": "#009E73", "tuning": "#E69F00", "learning": "#0072B2"}
    families = list(results["gains"])
    width = max(4.0, 1.3 * len(families) + 1.5)
    figure = Figure(figsize=(width, 3.2))
    axes = figure.subplots(gridspec_kw={"left": 0.65 / width, "right": 0.97, "bottom": 0.12, "top": 0.88})
    for place, (step, colour) in enumerate(steps.items()):
        factors = floats([results["gains"][family].get(step) for family in families])
        at = np.arange(len(families)) + 0.27 * (place - 1)
        axes.bar(at, factors - 1, 0.25, bottom=1, color=colour, label=step)
        for x, factor in zip(at, factors, strict=True):
            if np.isfinite(factor):
                align = "bottom" if factor >= 1 else "top"
                axes.text(x, factor, two_digits(float(factor)), ha="center", va=align, fontsize=7)
    axes.axhline(1.0, color=GREY, linewidth=0.8)
    every = floats([it.get(step) for it in results["gains"].values() for step in steps])
    every = every[np.isfinite(every) & (every > 0)]
    limits = min(0.5, *(every / 1.6), 1.0), max(2.0, *(1.6 * every), 1.0)
    set_scale(axes.yaxis, limits, True)
    axes.set_ylabel("factor on the throughput")
    axes.set_xticks(range(len(families)), families)
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=3, borderaxespad=0.2)
    return figure


def _loss_limits(optimizers: Mapping[str, Any], paper: list[Array]) -> tuple[tuple[float, float], bool]:
    curves = {"first": [np.empty(0)], "second": [np.empty(0)]}
    for entry in optimizers.values():
        order = "second" if entry["kind"] == "second-order" else "first"
        curves[order] += [floats(entry[key]) for key in ("curve", "area_curve") if entry.get(key)]
    first, second = np.concatenate(curves["first"]), np.concatenate(curves["second"])
    if not np.isfinite(first).any():
        return limits_of(second)
    start = max((float(curve[0]) for curve in curves["first"][1:] if np.isfinite(curve[0])), default=math.inf)
    (low, high), log = limits_of(np.concatenate([first, *paper]), top=10 * abs(start))
    below = second[(second > 0) & (second < low)]
    return (max(float(below.min()), low / 5) if log and len(below) else low, high), log
