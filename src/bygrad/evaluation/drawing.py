"""How figures are drawn: colours, style, axes, labels, and files.

matplotlib is imported inside the functions: the package works without it, and `Figure` objects need neither pyplot nor
a display.
"""

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
COLOURS = {
    "lstm": "#0072B2",
    "nesterov": "#D55E00",
    "adam": "#009E73",
    "rmsprop": "#CC79A7",
    "sgd": "#E69F00",
    "adamw": "#56B4E9",
    "lbfgs": "#000000",
}
# Tol's "muted"
_SPARE_COLOURS = ("#882255", "#117733", "#332288", "#AA4499", "#999933", "#661100", "#44AA99", "#DDCC77")
_DASHES: tuple[Any, ...] = ("-", (0, (6, 1.6)), (0, (1, 1.3)), (0, (5, 1.2, 1, 1.2, 1, 1.2)))
GREY = "#666666"
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


def colours(names: Sequence[str]) -> dict[str, str]:
    """The colour of each optimizer: fixed for those that the package compares, spare ones in order for the others."""
    spare = {name: _SPARE_COLOURS[i % len(_SPARE_COLOURS)] for i, name in enumerate(_others(names))}
    return {name: COLOURS.get(name) or spare[name] for name in names}


def dashes(names: Sequence[str]) -> dict[str, Any]:
    """The line style of each optimizer: solid, and broken for those whose spare colour another one has already."""
    rounds = {name: i // len(_SPARE_COLOURS) for i, name in enumerate(_others(names))}
    return {name: _DASHES[rounds.get(name, 0) % len(_DASHES)] for name in names}


def _others(names: Sequence[str]) -> list[str]:
    return sorted(set(names) - COLOURS.keys())


def two_digits(value: float) -> str:
    """Write a factor to two digits, or to the unit above 100, as people do: 0.034, 1.0, 12, 100.

    >>> two_digits(0.996), two_digits(99.7), two_digits(1234.0)
    ('1.0', '100', '1,234')
    """
    rounded = abs(float(f"{value:.2g}"))
    return f"{value:,.{max(0, 1 - math.floor(math.log10(rounded))) if rounded else 0}f}"


def styled(draw: Callable[[Results], Any]) -> Callable[[Results], Any]:
    """Draw with the style above; matplotlib's settings are as before afterwards."""

    @wraps(draw)
    def drawn(results: Results) -> Any:
        import matplotlib

        with matplotlib.rc_context(_STYLE):
            return draw(results)

    return drawn


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
    write_text_atomically(stem.with_name(stem.name + ".svg"), prefixed_ids(svg.getvalue(), stem.name))


def prefixed_ids(svg: str, name: str) -> str:
    """Put a name before the ids of an SVG: they must differ from those of every other figure on a page."""
    prefix = re.sub(r"[^A-Za-z0-9_-]", "-", name) + "-"
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", svg)


def floats(values: Sequence[float | int | None]) -> Array:
    """As floats, with NaN for what is missing (null in JSON) or infinite."""
    array = np.array([math.nan if value is None else value for value in values], np.float64)
    return np.where(np.isfinite(array), array, np.nan)


def limits_of(values: Array, *, top: float = math.inf) -> tuple[tuple[float, float], bool]:
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


def _tick(value: float) -> str:
    """Write a number in no more room than an axis has beside it: 1e-4, and not 0.0001."""
    if 0 < abs(value) < 1e-3:
        return np.format_float_scientific(value, precision=3, trim="-", exp_digits=1)
    return f"{value:g}".replace("e+0", "e")


def set_scale(axis: Any, limits: tuple[float, float], log: bool) -> None:
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
    axis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
    axis.set_minor_formatter(NullFormatter())


def label_ends(axes: "matplotlib.axes.Axes", labels: Sequence[tuple[float, str, str]], height: float) -> None:
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
    regression. Clipping its solution keeps it optimal within the bounds. Should the intervals need more than 1
    together, they keep their distances and stick out evenly.
    """
    from scipy.optimize import isotonic_regression

    offsets = np.cumsum(sizes) - np.divide(sizes, 2)
    room = 1 - sum(sizes)
    if room < 0:
        return (room / 2 + offsets).tolist()
    return (np.clip(isotonic_regression(np.subtract(wanted, offsets)).x, 0, room) + offsets).tolist()
