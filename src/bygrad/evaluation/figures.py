"""The figures of an evaluation, as matplotlib `Figure` objects.

matplotlib is imported inside the functions: the package works without it, and `Figure` objects need neither pyplot nor
a display. Losses that are missing or not finite are drawn as gaps.
"""

import base64
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .._core.files import write_atomically, write_text_atomically

if TYPE_CHECKING:  # the annotations below name matplotlib in full, so that they resolve where it is installed
    import matplotlib.axes
    import matplotlib.figure

Results = Mapping[str, Any]
Array = NDArray[np.float64]

# Okabe and Ito (2008): distinct under the common colour deficiencies. One colour per optimizer in every figure.
_COLOURS = {
    "lstm": "#0072B2",
    "nesterov": "#D55E00",
    "adam": "#009E73",
    "rmsprop": "#CC79A7",
    "sgd": "#E69F00",
    "adamw": "#56B4E9",
    "lbfgs": "#000000",
}
_SPARE_COLOURS = ("#882255", "#117733", "#332288", "#AA4499", "#999933", "#661100")  # Tol's "muted"
_PAPER_NAMES = {"lstm": "lstm", "nesterov": "nesterov", "adam": "adam", "rmsprop": "rmsprop", "sgd": "sgd"}
_GREY = "#666666"
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same picture on every machine
    "font.size": 8.5,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 8.5,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#E8E8E8",
    "grid.linewidth": 0.6,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.minor.width": 0.5,
    "ytick.minor.width": 0.5,
    "lines.solid_capstyle": "round",
    "text.parse_math": False,  # a "$" in a name is a dollar
}
_INCH = 72.0  # points


def colours(names: Sequence[str]) -> dict[str, str]:
    """The colour of each optimizer: fixed for those that the package compares, spare ones in order for the others."""
    others = sorted(name for name in names if name not in _COLOURS)
    spare = {name: _SPARE_COLOURS[i % len(_SPARE_COLOURS)] for i, name in enumerate(others)}
    return {name: _COLOURS.get(name) or spare[name] for name in names}


def _styled(draw: Callable[[Results], Any]) -> Callable[[Results], Any]:
    """Draw with the style above; matplotlib's settings are as before afterwards."""

    @wraps(draw)
    def styled(results: Results) -> Any:
        import matplotlib

        with matplotlib.rc_context(_STYLE):
            return draw(results)

    return styled


@_styled
def loss_curves(results: Results) -> "matplotlib.figure.Figure":
    """Mean loss against updates with its interval, one line per optimizer, named where it ends.

    A second panel shows the learning rates tuned for the area where a baseline has an `area_curve`. Both panels share
    the loss axis. It is set by the first-order optimizers: a curve that leaves it ran away (above) or belongs to a
    second-order method that is far ahead (below).

    **Arguments:** `results`: as described in `bygrad.evaluation.report`.

    **Returns:** the figure, 7.4 inches wide with two panels, 5.6 with one.
    """
    from matplotlib.figure import Figure

    optimizers = results["optimizers"]
    keys = ["curve"] + ["area_curve"] * any(entry.get("area_curve") for entry in optimizers.values())
    width, height = (7.4, 3.5) if len(keys) == 2 else (5.6, 3.6)
    figure = Figure(figsize=(width, height))
    # Room for the longest name right of each panel, in inches.
    lines = [line for entry in optimizers.values() for line in entry["label"].replace(" (", "\n(").split("\n")]
    room = 0.3 + 0.068 * max(10, *map(len, lines))
    panel = (width - 0.64) / len(keys) - room
    grid = {"left": 0.64 / width, "right": 1 - room / width, "bottom": 0.13, "top": 0.91, "wspace": room / panel}
    panels = figure.subplots(1, len(keys), sharey=True, squeeze=False, gridspec_kw=grid)[0]
    limits, log = _loss_limits(optimizers)
    for axes, key, measure in zip(panels, keys, ("final loss", "area"), strict=False):
        axes.set_title(f"learning rates tuned for the {measure}" if len(keys) == 2 else "")
        axes.set_xlabel("updates")
        axes.set_xlim(0, results["horizon"])
        _set_scale(axes.yaxis, limits, log)
        _draw_losses(axes, optimizers, key, height * 0.78 * _INCH)
    panels[0].set_ylabel("mean loss")
    _draw_paper(panels[0], results)
    return figure


def _draw_losses(axes: "matplotlib.axes.Axes", optimizers: Mapping[str, Any], key: str, height: float) -> None:
    palette = colours(list(optimizers))
    low_limit, high_limit = axes.get_ylim()
    labels = []
    for order, (name, entry) in enumerate(optimizers.items()):
        learned = entry["kind"] == "learned"
        curve = _array(entry.get(key) or entry["curve"])
        steps = np.arange(len(curve))
        line = {"color": palette[name], "linestyle": _dashes(name, entry)}
        axes.plot(steps, curve, linewidth=2.0 if learned else 1.2, zorder=30 + order if learned else 10 + order, **line)
        is_main = key == "curve" or not entry.get(key)
        if is_main and entry.get("curve_low") and entry.get("curve_high"):
            low, high = _array(entry["curve_low"]), _array(entry["curve_high"])
            # A missing upper end beside a lower one is infinite: some runs diverged.
            high = np.where(np.isnan(high) & np.isfinite(low), 10 * abs(high_limit), high)
            axes.fill_between(steps, low, high, color=palette[name], alpha=0.16, linewidth=0, zorder=5)
        finite = np.flatnonzero(np.isfinite(curve))
        if len(finite):
            end = float(curve[finite[-1]])
            arrow = "↓ " if end < low_limit else "↑ " if end > high_limit else ""
            text = arrow + entry["label"].replace(" (", "\n(") + "\n(diverged)" * bool(finite[-1] < len(curve) - 1)
            labels.append((float(np.clip(end, low_limit, high_limit)), text, palette[name]))
    _label_ends(axes, labels, height)


def _dashes(name: str, entry: Mapping[str, Any]) -> Any:
    """AdamW has gaps because it often coincides with Adam, which then shows through."""
    return (0, (5, 1.5, 1, 1.5)) if entry["kind"] == "second-order" else (0, (4, 1.2)) if name == "adamw" else "-"


def _draw_paper(axes: "matplotlib.axes.Axes", results: Results) -> None:
    """The paper's LSTM and its best other curve, thin and dashed in the colour of the optimizer."""
    curves = (results.get("paper") or {}).items()
    paper = {name: (_array(curve["steps"]), _array(curve["losses"])) for name, curve in curves}
    shown = {name for name in paper if name.lower() == "lstm"}
    others = [name for name in paper if name not in shown and np.isfinite(paper[name][1][-1])]
    shown |= set(sorted(others, key=lambda name: paper[name][1][-1])[:1])
    for name in [name for name in paper if name in shown]:
        steps, losses = paper[name]
        inside = steps <= results["horizon"]
        colour = _COLOURS.get(_PAPER_NAMES.get(name.lower(), ""), _GREY)
        style = {"color": colour, "linewidth": 0.9, "linestyle": (0, (3, 2)), "zorder": 40}
        axes.plot(steps[inside], losses[inside], label=f"{name}: paper, digitised", **style)
    if shown:
        axes.legend(loc="upper right", borderaxespad=0.2, handlelength=2.2)


@_styled
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
    grid = {"left": 0.095, "right": 0.82, "bottom": 0.46 / height, "top": 1 - 0.28 / height, "hspace": 0.2}
    ratios = [3, 2][: len(rows)]
    panels = figure.subplots(len(rows), 1, sharex=True, squeeze=False, height_ratios=ratios, gridspec_kw=grid)[:, 0]
    inner = (height - 0.74) * _INCH * (0.55 if len(rows) == 2 else 1.0)
    for axes, row in zip(panels, rows, strict=True):
        _draw_validation(axes, results, inner) if row == "validation" else _draw_meta_loss(axes, training)
        for i, rollback in enumerate(training.get("rollbacks") or []):
            label = "rollback" if i == 0 else None
            axes.axvline(rollback["step"], color=_GREY, linewidth=0.9, linestyle=(0, (1, 1.5)), zorder=1, label=label)
    if training.get("rollbacks"):
        panels[0].legend(loc="upper right", borderaxespad=0.2, handlelength=1.6)
    panels[-1].set_xlabel("meta-steps")
    panels[-1].set_xlim(0, max([1, *training.get("steps", []), *training.get("validation_steps", [])]))
    figure.align_ylabels()
    return figure


def _draw_validation(axes: "matplotlib.axes.Axes", results: Results, height: float) -> None:
    training = results["meta_training"]
    name, label = _learned(results)
    steps, validation = _array(training["validation_steps"]), _array(training["validation"])
    baselines = {key: float(level) for key, level in (training.get("baselines") or {}).items() if level is not None}
    known = {entry["label"]: colours([key])[key] for key, entry in results["optimizers"].items()}
    levels = np.array(list(baselines.values()))
    limits, log = _limits(np.concatenate([validation, levels]), top=20 * float(np.max(levels, initial=-math.inf)))
    _set_scale(axes.yaxis, limits, log)
    colour = colours([name])[name]
    axes.plot(steps, validation, color=colour, linewidth=1.6, marker="o", markersize=2.6, zorder=3, clip_on=False)
    labels = []
    for text, level in baselines.items():
        axes.axhline(level, color=known.get(text, _GREY), linewidth=0.8, zorder=2)
        labels.append((float(np.clip(level, *limits)), text, known.get(text, _GREY)))
    finite = validation[np.isfinite(validation)]
    if len(finite):
        labels.append((float(np.clip(finite[-1], *limits)), label, colour))
    axes.set_ylabel("validation")
    axes.set_title(training.get("validation_label") or "")
    _label_ends(axes, labels, height)


def _draw_meta_loss(axes: "matplotlib.axes.Axes", training: Mapping[str, Any]) -> None:
    steps, losses = _array(training["steps"]), _array(training["meta_loss"])
    axes.plot(steps, losses, color="#BBBBBB", linewidth=0.7, zorder=2)
    window = max(1, len(losses) // 25)
    if window > 2:  # the median over a window shows the trend, and one diverged instance does not bend it
        padded = np.pad(losses, (window // 2, window - 1 - window // 2), mode="edge")
        windows = np.lib.stride_tricks.sliding_window_view(padded, window)
        trend = np.median(np.where(np.isfinite(windows), windows, np.inf), axis=1)
        axes.plot(steps, np.where(np.isfinite(trend), trend, np.nan), color="#333333", linewidth=1.3, zorder=3)
    finite = losses[np.isfinite(losses)]
    _set_scale(axes.yaxis, *_limits(losses, top=10 * float(np.max(finite[len(finite) // 4 :], initial=-math.inf))))
    axes.set_ylabel("meta-loss")


def _learned(results: Results) -> tuple[str, str]:
    entries = results["optimizers"].items()
    found = [(name, entry["label"]) for name, entry in entries if entry["kind"] == "learned"]
    return found[0] if len(found) == 1 else ("lstm", "learned")


@_styled
def tuning_curves(results: Results) -> "matplotlib.figure.Figure":
    """Final loss and area against the learning rate for each baseline; the chosen rates are marked.

    The axes end a little above the loss of doing nothing. A curve that leaves them there is a learning rate that does
    harm or diverges.

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
    palette = colours(list(results["optimizers"]))
    rates = np.concatenate([_array(entry["tuning"]["learning_rates"]) for entry in tuned.values()])
    chosen = {"final": "learning_rate", "area": "area_learning_rate"}
    initial = float(np.nanmax([_array(entry["curve"])[0] for entry in tuned.values()]))
    still = {"final": initial, "area": initial * results["horizon"]}
    for axes, (measure, title) in zip(panels, {"final": "final loss", "area": "area"}.items(), strict=True):
        losses = {name: _array(entry["tuning"][measure]) for name, entry in tuned.items()}
        _set_scale(axes.yaxis, *_limits(np.concatenate(list(losses.values())), top=1.4 * still[measure]))
        _set_scale(axes.xaxis, *_limits(rates))
        for name, entry in tuned.items():
            tested = _array(entry["tuning"]["learning_rates"])
            line = {"color": palette[name], "linewidth": 1.2, "linestyle": _dashes(name, entry)}
            axes.plot(tested, losses[name], label=entry["label"], marker=".", markersize=3, **line)
            rate = entry.get(chosen[measure])
            if rate is not None:
                nearest = int(np.argmin(np.abs(np.log(tested / rate))))
                dot = {"markersize": 6.5, "markeredgecolor": "white", "markeredgewidth": 0.8, "zorder": 5}
                axes.plot([tested[nearest]], [losses[name][nearest]], "o", color=palette[name], **dot)
        axes.set_title(title)
        axes.set_xlabel("learning rate")
    panels[0].plot([], [], "o", color=_GREY, markersize=5.5, label="chosen")
    place = {"loc": "upper left", "bbox_to_anchor": (0.87, 0.92), "borderaxespad": 0}
    figure.legend(*panels[0].get_legend_handles_labels(), handlelength=1.6, **place)
    return figure


@_styled
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


@_styled
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
    palette = colours(list(entries))
    for name, entry in entries.items():
        learned = entry["kind"] == "learned"
        axes.plot(
            entry["levels"],
            entry["shares"],
            color=palette[name],
            linewidth=2.0 if learned else 1.2,
            label=entry["label"],
            zorder=30 if learned else 10,
            drawstyle="steps-post" if results.get("steps") else "default",
        )
    axes.set_xscale("log")
    axes.set_ylim(0, 1.02)
    axes.set_xlabel(results["measure"])
    axes.set_ylabel(results.get("share", "share of runs"))
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


@_styled
def gains(results: Results) -> "matplotlib.figure.Figure":
    """What batching, tuning and learning each multiply the throughput by, as bars for every family, from a line at 1.

    **Arguments:** `results`: `gains`, for each family the factors by name; None where one is not known.
    """
    from matplotlib.figure import Figure

    steps = {"batching": "#009E73", "tuning": "#E69F00", "learning": "#0072B2"}
    families = list(results["gains"])
    figure = Figure(figsize=(max(4.0, 1.3 * len(families) + 1.5), 3.2))
    axes = figure.subplots(gridspec_kw={"left": 0.13, "right": 0.97, "bottom": 0.12, "top": 0.88})
    for place, (step, colour) in enumerate(steps.items()):
        factors = _array([results["gains"][family].get(step) for family in families])
        at = np.arange(len(families)) + 0.27 * (place - 1)
        axes.bar(at, factors - 1, 0.25, bottom=1, color=colour, label=step)
        for x, factor in zip(at, factors, strict=True):
            if np.isfinite(factor):
                align = "bottom" if factor >= 1 else "top"
                axes.text(x, factor, f"{factor:.2g}", ha="center", va=align, fontsize=7)
    axes.axhline(1.0, color=_GREY, linewidth=0.8)
    every = _array([it.get(step) for it in results["gains"].values() for step in steps])
    every = every[np.isfinite(every) & (every > 0)]
    limits = min(0.5, *(every / 1.6), 1.0), max(2.0, *(1.6 * every), 1.0)
    _set_scale(axes.yaxis, limits, True)
    axes.set_ylabel("factor on the throughput")
    axes.set_xticks(range(len(families)), families)
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=3, borderaxespad=0.2)
    return figure


def save(figure: "matplotlib.figure.Figure", stem: Path) -> None:
    """Write `figure` as `<stem>.png` (200 dots per inch) and `<stem>.svg`, each whole or absent.

    The SVG depends on the figure alone: no date, no random ids. Its ids begin with the file's name, so that several
    figures can stand in one HTML document, and its letters are outlines, so that no font is needed.
    """
    import matplotlib

    stem = Path(stem)
    png, svg = io.BytesIO(), io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": stem.name}):
        figure.savefig(png, format="png", dpi=200, metadata={"Software": None})
        figure.savefig(svg, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    write_atomically(stem.with_name(stem.name + ".png"), png.getvalue())
    prefix = re.sub(r"[^A-Za-z0-9_-]", "-", stem.name) + "-"
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", svg.getvalue())
    write_text_atomically(stem.with_name(stem.name + ".svg"), text)


def _array(values: Sequence[float | int | None]) -> Array:
    """As floats, with NaN for what is missing (null in JSON) or infinite."""
    array = np.array([math.nan if value is None else value for value in values], np.float64)
    return np.where(np.isfinite(array), array, np.nan)


def _limits(values: Array, *, top: float = math.inf) -> tuple[tuple[float, float], bool]:
    """Ends of an axis around `values`, cut at `top` if any value is below it, and whether the axis is logarithmic."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return (0.1, 1.0), True
    low, high = float(finite.min()), float(finite.max())
    high = min(high, top) if top > low else high
    if low >= 0 and high > 0:
        low = max(float(finite[finite > 0].min()), 1e-16 * high)  # less than that is zero but for rounding
        margin = max((high / low) ** 0.05, 1.02)
        return (low / margin, high * margin), True
    margin = 0.05 * (high - low) or 1.0
    return (low - margin, high + margin), False


def _loss_limits(optimizers: Mapping[str, Any]) -> tuple[tuple[float, float], bool]:
    curves = {"first": [np.empty(0)], "second": [np.empty(0)]}
    for entry in optimizers.values():
        order = "second" if entry["kind"] == "second-order" else "first"
        curves[order] += [_array(entry[key]) for key in ("curve", "area_curve") if entry.get(key)]
    first, second = np.concatenate(curves["first"]), np.concatenate(curves["second"])
    if not np.isfinite(first).any():
        return _limits(second)
    start = max((float(curve[0]) for curve in curves["first"][1:] if np.isfinite(curve[0])), default=math.inf)
    (low, high), log = _limits(first, top=10 * abs(start))
    below = second[(second > 0) & (second < low)]
    return (max(float(below.min()), low / 5) if log and len(below) else low, high), log


def _set_scale(axis: Any, limits: tuple[float, float], log: bool) -> None:
    """Limits and ticks that can be read: plain numbers, a few within each decade where the axis has few decades."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    axis.axes.set(**{f"{axis.axis_name}scale": "log" if log else "linear", f"{axis.axis_name}lim": limits})
    if not log:
        return
    decades = math.log10(limits[1]) - math.log10(limits[0])
    choices = {1.0: (1, 2, 3, 5, 7), 1.3: (1, 2, 3, 5), 2.3: (1, 2, 5), 3.3: (1, 3), math.inf: (1,)}
    within = next(subs for most, subs in choices.items() if decades < most)
    axis.set_major_locator(MaxNLocator(5) if decades < 0.5 else LogLocator(subs=within, numticks=12))
    axis.set_minor_locator(LogLocator(subs=range(2, 10), numticks=200))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}".replace("e-0", "e-").replace("e+0", "e")))
    axis.set_minor_formatter(NullFormatter())


def _label_ends(axes: "matplotlib.axes.Axes", labels: Sequence[tuple[float, str, str]], height: float) -> None:
    """Write each text right of the axes at its height in data, moved apart where they would touch.

    `labels` are (height in data, text, colour); `height` is that of the axes, in points.
    """
    to_axes = axes.transData + axes.transAxes.inverted()
    ends = [(float(to_axes.transform((1.0, at))[1]), text, colour) for at, text, colour in labels]
    ends.sort(key=lambda end: end[0])
    sizes = [10.0 * (text.count("\n") + 1) / height for _, text, _ in ends]
    for (end, text, colour), place in zip(ends, spread([end for end, _, _ in ends], sizes), strict=True):
        leader = {"arrowstyle": "-", "color": colour, "linewidth": 0.7, "shrinkA": 1, "shrinkB": 0, "relpos": (0, 0.5)}
        style = {"color": "#222222", "va": "center", "linespacing": 1.05, "fontsize": 8, "arrowprops": leader}
        axes.annotate(text, (1.0, end), (1.06, place), xycoords="axes fraction", textcoords="axes fraction", **style)


def spread(wanted: Sequence[float], sizes: Sequence[float]) -> list[float]:
    """Centres for intervals of `sizes`, in the order given, near `wanted`, within [0, 1] and without overlap.

    Least squares: minus the room that the intervals below need, the centres must not decrease, which is isotonic
    regression (pool adjacent violators). Clipping its solution keeps it optimal within the bounds. Should the
    intervals need more than 1 together, they keep their distances and stick out evenly.
    """
    offsets = [sum(sizes[:i]) + size / 2 for i, size in enumerate(sizes)]
    pools: list[tuple[float, int]] = []
    for at, offset in zip(wanted, offsets, strict=True):
        pool = (at - offset, 1)
        while pools and pools[-1][0] > pool[0]:
            mean, count = pools.pop()
            pool = ((mean * count + pool[0] * pool[1]) / (count + pool[1]), count + pool[1])
        pools.append(pool)
    room = 1 - sum(sizes)
    bases = [min(max(mean, 0.0), room) if room >= 0 else room / 2 for mean, count in pools for _ in range(count)]
    return [base + offset for base, offset in zip(bases, offsets, strict=True)]
