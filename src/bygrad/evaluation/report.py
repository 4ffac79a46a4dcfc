"""What an evaluation found, for the terminal and as a folder: data, figures and one HTML page that needs neither.

`results` is a dictionary of plain JSON types. Losses may be infinite; in JSON they are null and read back as infinite.

    {"experiment": "mnist", "title": ..., "convention": ..., "horizon": 100, "runs": 128, "seed": 0,
     "optimizers": {
        "adam": {"kind": "learned" | "teacher" | "hand-designed" | "second-order", "label": "Adam",
                 "final": {"mean", "low", "high", "median"}, "area": {"mean", "low", "high", "median"},
                 "each_run": {"final": [one per run], "area": [one per run]},        # missing in older records
                 "curve": [loss after t updates, t = 0 to horizon], "curve_low": [...], "curve_high": [...],
                 "area_curve": [...] | null, "area_curve_low", "area_curve_high",    # missing in older records
                 "learning_rate": ... | null, "area_learning_rate": ... | null,
                 "seconds_per_step": ..., "runs": ..., "diverged": ..., "note": ... | null,
                 "tuning": {"learning_rates": [...], "final": [...], "area": [...]} | null}, ...},
     "paper": {"LSTM": {"steps": [...], "losses": [...]}, ...},                      # may be missing
     "paper_scale": factor on its losses, where its figure has no unit,              # may be missing
     "meta_training": {"steps", "meta_loss", "validation_steps", "validation", "validation_label",
                       "baselines": {"Adam": level, ...}, "rollbacks": [{"step", "reason"}]} | null,
     "levels": [{"what", "paper", "reach", "ours", "low", "high", "reached",
                 "beats_paper"}],                                               # may be missing
     "pictures": {"caption", "columns": [title, ...],                                # may be missing
                  "rows": [{"label", "images": [{"shape": [h, w, 3], "data": bytes in base64}, ...]}, ...]},
     "configuration": {...}, "versions": {...}, "machine": ..., "command": ...,
     "seconds": {"tuning": ..., "meta_training": ..., "evaluation": ...}}
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from .._core.files import write_text_atomically

Results = Mapping[str, Any]
Number = float | int | None  # JSON does not tell 1.0 from 1, and has no infinity

_MISSING = "\N{EN DASH}"
FEW_RUNS = 10
"""Runs below which a bootstrap interval is told to be too narrow: of normal losses it covers 82 % with 4, not 95."""

_KINDS = ("learned", "teacher", "hand-designed", "second-order")
_HEADINGS = (
    "optimizer",
    "kind",
    "learning rate",
    "final [95 %]",
    "median",
    "area [95 %]",
    "median",
    "ms/step",
    "runs",
    "diverged",
)
LEVEL_HEADINGS: tuple[str, ...] = ("level", "paper", "to reach", "ours [95 %]", "reached", "than the paper")
"""Of the columns of `level_cells`."""
_TERMINAL_HEADINGS = ("optimizer", "rate", "final", "area", "ms/step", "runs", "lost")
_STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --soft: #5c5c5c; --rule: #c9c9c9; --paper: #ffffff; --mark: #f4f4f2; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e4e1; --soft: #a5a5a0; --rule: #4a4a48; --paper: #181817; --mark: #242423; } }
@media print { :root { --ink: #000; --soft: #444; --rule: #999; --paper: #fff; --mark: #fff; } }
body { background: var(--paper); color: var(--ink); font: 16px/1.5 Charter, "Bitstream Charter", Georgia, serif;
  max-width: 54rem; margin: 3rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.7rem; line-height: 1.2; font-weight: 600; margin: 0 0 1rem; }
h2 { font-size: 1.15rem; font-weight: 600; margin: 2.5rem 0 .6rem; }
p, figcaption { max-width: 44rem; }
figure { margin: 1.5rem 0; break-inside: avoid; }
figure svg { display: block; width: 100%; height: auto; background: #fff; }
figcaption, .notes { color: var(--soft); font-size: .88rem; margin-top: .4rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font: .8rem/1.4 "Helvetica Neue", Arial, "Liberation Sans", sans-serif;
  font-variant-numeric: tabular-nums; width: 100%;
  border-top: 1.5px solid var(--ink); border-bottom: 1.5px solid var(--ink); }
th, td { text-align: right; padding: .28rem .45rem; white-space: nowrap; }
th { font-weight: 600; border-bottom: 1px solid var(--rule); }
th.text, td.text { text-align: left; }
tr.second-order td { font-style: italic; }
tr.second-order:not(.second-order + .second-order) td { border-top: 1px solid var(--rule); }
pre, code { font: .82rem/1.45 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
pre { background: var(--mark); border: 1px solid var(--rule); padding: .7rem .9rem; white-space: pre-wrap;
  overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.2rem; font-size: .92rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
@page { margin: 18mm 16mm; }
@media print { body { max-width: none; margin: 0; padding: 0; font-size: 10.5pt; } .wide { overflow: visible; }
  table { font-size: 7.6pt; break-inside: avoid; } th, td { padding: 2pt 3pt; } th { white-space: normal; } }
"""


def results_table(results: Results) -> Table:
    """The comparison as a table for the terminal: one row per optimizer, the best mean of each measure in bold.

    Second-order methods come last, are marked `*`, and are not candidates for bold: they take another kind of step.

    **Arguments:** `results`: as described in this module.
    """
    caption = Text("\n".join(_notes(results)))
    table = Table(title=Text(results["title"]), caption=caption, caption_justify="left", box=box.SIMPLE_HEAD)
    # Intervals go under their means and the kind is left to the order of the rows, so that 80 columns are enough.
    for heading in _TERMINAL_HEADINGS:
        first = heading == _TERMINAL_HEADINGS[0]
        table.add_column(heading, justify="left" if first else "right", min_width=9 if first else None, overflow="fold")
    for _, cells, bold in _rows(results):
        (label, _, rates, final, _, area, _, *others), (leads, _, rated, first, _, second, _, *strong) = cells, bold
        others, strong = [final, area, *others], [rated, first, second, *strong]
        cells = [label, *(cell.replace(" / ", "\n").replace(" [", "\n[") for cell in (rates, *others))]
        styles = ["bold" if bold else "" for bold in (leads, *strong)]
        table.add_row(*(Text(cell, style=style) for cell, style in zip(cells, styles, strict=True)))
    return table


def write_report(results: dict[str, Any], folder: Path) -> Path:
    """Write `results.json`, the figures (`.png` and `.svg`) and `report.html` into `folder`.

    Every file is whole or absent. `results.json` comes first and is strict JSON, so that nothing measured is lost if
    drawing fails; passing it back (`json.loads`) writes the same report. Figures that these results have no data for
    (meta-training, tuning) are not written, and those of an earlier report in the folder are removed.

    **Arguments:**

    - `results`: as described in this module.
    - `folder`: created if missing.

    **Returns:** the path of `report.html`.

    **Raises:** `ImportError` without matplotlib; `TypeError` for values that JSON has no type for.
    """
    folder = Path(folder)
    plain = strict_json(results)
    data = folder / "results.json"
    write_text_atomically(data, json.dumps(plain, indent=1, allow_nan=False, ensure_ascii=False) + "\n")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "matplotlib is not installed, so the figures and report.html were not written. The results are safe in "
            f"{data}. Install it with `pip install matplotlib` and call `write_report` on them again."
        ) from error
    from . import drawing, figures

    training = plain.get("meta_training") or {}
    wanted = {
        "loss": (figures.loss_curves, True),
        "seconds": (figures.losses_in_time, any(it.get("seconds_per_step") for it in plain["optimizers"].values())),
        "metatraining": (figures.meta_training_curve, bool(training.get("validation") or training.get("meta_loss"))),
        "pictures": (figures.pictures, bool(plain.get("pictures"))),
        "tuning": (figures.tuning_curves, any(entry.get("tuning") for entry in plain["optimizers"].values())),
    }
    drawn = {}
    for name, (draw, has_data) in wanted.items():
        if has_data:
            drawing.save(draw(plain), folder / name)
            drawn[name] = (folder / f"{name}.svg").read_text(encoding="utf-8")
        else:
            for ending in (".png", ".svg"):
                (folder / (name + ending)).unlink(missing_ok=True)
    write_text_atomically(folder / "report.html", _page(plain, drawn))
    return folder / "report.html"


def strict_json(value: Any, where: str = "results") -> Any:
    """`value` with arrays as lists and numbers that are not finite as None; all the rest must be plain JSON already."""
    if isinstance(value, np.ndarray | np.generic):
        return strict_json(value.tolist(), where)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, list | tuple):
        return [strict_json(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: strict_json(item, f"{where}[{key!r}]") for key, item in value.items()}
    raise TypeError(
        f"{where} is {value!r:.80}, of type {type(value).__name__}, which JSON has no type for (keys must be strings). "
        "It would not come back as it was written. Convert it to numbers, strings, lists and dictionaries first."
    )


def loss_of(value: Number) -> float:
    """Read a loss that `strict_json` has written: what JSON could not hold was infinite or NaN, and both count as
    infinite.

    >>> loss_of(0.5), loss_of(None), loss_of(float("nan"))
    (0.5, inf, inf)
    """
    return float(value) if value is not None and math.isfinite(value) else math.inf


def _rows(results: Results) -> list[tuple[str, list[str], list[bool]]]:
    """(kind, cells, whether each is bold) for each optimizer, in the order of the kinds."""
    entries = sorted(results["optimizers"].values(), key=lambda entry: _KINDS.index(entry["kind"]))
    first_order = [entry for entry in entries if entry["kind"] != "second-order"]
    best = {
        key: min((loss_of(entry[key]["mean"]) for entry in first_order), default=math.nan) for key in ("final", "area")
    }
    rows = []
    for entry in entries:
        rates = [entry.get(key) for key in ("learning_rate", "area_learning_rate")]
        rates = [f"{rate:.3g}" for rate in dict.fromkeys(rates) if rate is not None]
        second_order = entry["kind"] == "second-order"
        measures, leads = [], []
        for key in best:
            median = loss_of(entry[key]["median"]) if "median" in entry[key] else None  # missing in older records
            measures += [_interval(entry[key], entry["runs"]), number(median)]
            leads += [not second_order and math.isfinite(best[key]) and loss_of(entry[key]["mean"]) == best[key], False]
        cells = [
            entry["label"] + "*" * second_order,
            entry["kind"],
            " / ".join(rates) or _MISSING,
            *measures,
            number(entry["seconds_per_step"] and 1000 * entry["seconds_per_step"]),
            str(entry["runs"]),
            str(entry["diverged"]),
        ]
        rows.append((entry["kind"], cells, [False, False, False, *leads, False, False, False]))
    return rows


def _notes(results: Results) -> list[str]:
    entries = list(results["optimizers"].values())
    tuned = [entry for entry in entries if entry["kind"] == "hand-designed"]
    own_rates = bool(tuned) and all(entry.get("area_learning_rate") is not None for entry in tuned)
    rate = "the learning rate tuned for the area (the second of two rates)" if own_rates else "the same learning rate"
    few = min(entry["runs"] for entry in entries)
    window = (results.get("configuration") or {}).get("protocol", {}).get("final_window", 1)
    ends = (
        f"after {results['horizon']} updates"
        if window == 1
        else f"of the last {window} of {results['horizon']} updates"
    )
    notes = [
        f"Final: mean loss {ends}, with the learning rate tuned for it. Area: mean sum of "
        f"the losses before each of the {results['horizon']} updates, with {rate}. Brackets: 95 % bootstrap interval of"
        " the mean over runs. Bold: lowest mean among first-order methods."
    ]
    if few < FEW_RUNS:
        notes.append(f"Of {few} runs an interval covers less than it says: of 2 about half, of 4 four fifths.")
    if tuned and not own_rates:
        notes.append("The baselines were not tuned for the area: that comparison favours what is learned for it.")
    if any(entry["kind"] == "second-order" for entry in entries):
        notes.append("* Second-order: another kind of method, whose steps cost more; compare time, not steps.")
    if any(entry["seconds_per_step"] for entry in entries):
        notes.append(
            "ms/step: milliseconds that an update of one run takes, problem and optimizer together, without"
            " compilation; runs side by side share the time."
        )
    if any(entry["diverged"] for entry in entries):
        notes.append("A run that diverged counts as an infinite loss and is not dropped.")
    for entry in entries:
        median = entry["final"].get("median")
        if median is not None and loss_of(entry["final"]["mean"]) > 10 * abs(median) and not entry["diverged"]:
            notes.append(f"{entry['label']}: a few bad runs decide its mean. Median final loss: {number(median)}.")
    notes += [f"{entry['label']}: {entry['note']}" for entry in entries if entry.get("note")]
    return notes + list(results.get("notes", []))


def _page(results: Results, drawn: Mapping[str, str]) -> str:
    rows = [(kind, [_cell(*pair) for pair in zip(cells, bold, strict=True)]) for kind, cells, bold in _rows(results)]
    parts = [
        f"<h1>{escape(results['title'])}</h1>",
        f"<p>{escape(_statement(results))}</p>",
        html_figure(drawn["loss"], "Mean loss over runs with its 95 % interval. An arrow: goes on beyond the axis."),
        "<h2>Results</h2>",
        html_table(_HEADINGS, rows, text_columns=2),
        *(f'<p class="notes">{escape(note)}</p>' for note in _notes(results)),
        *_levels(results.get("levels") or []),
    ]
    if "seconds" in drawn:
        caption = (
            "Mean loss against time: that of a step, problem and optimizer together, without compilation, as in"
            " the table. Dotted: the end of a run. An arrow: goes on beyond the axis."
        )
        parts += ["<h2>In seconds</h2>", html_figure(drawn["seconds"], caption)]
    if "pictures" in drawn:
        parts += ["<h2>Pictures</h2>", html_figure(drawn["pictures"], results["pictures"]["caption"])]
    if "metatraining" in drawn:
        rollbacks = (results.get("meta_training") or {}).get("rollbacks") or []
        returned = "; ".join(f"meta-step {rollback['step']}: {rollback['reason']}" for rollback in rollbacks)
        caption = "Validation with the baselines' levels (horizontal lines), and the meta-loss with its running median."
        caption += f" Rollbacks: {returned}." if returned else ""
        parts += ["<h2>Meta-training</h2>", html_figure(drawn["metatraining"], caption)]
    if "tuning" in drawn:
        caption = "Each baseline over its learning rates. A line that leaves the top does harm; a cross: a run is lost."
        parts += ["<h2>Tuning of the baselines</h2>", html_figure(drawn["tuning"], caption)]
    parts += _provenance(results)
    return html_page(results["title"], parts)


def html_page(title: str, parts: Iterable[str]) -> str:
    """Return a whole document of these parts, which are HTML already."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body>\n</html>\n"
    )


def _statement(results: Results) -> str:
    labels = [entry["label"] for entry in results["optimizers"].values()]
    who = " and ".join(filter(None, [", ".join(labels[:-1]), labels[-1]]))
    return (
        f"{who} on {results['experiment']}: {results['runs']} runs each of {results['horizon']} updates, from seed "
        f"{results['seed']}. {results['convention']}"
    )


def _levels(levels: Sequence[Mapping[str, Any]]) -> list[str]:
    if not levels:
        return []
    in_paper = any(level.get("paper") is not None for level in levels)
    shown = [heading for heading in LEVEL_HEADINGS if in_paper or "paper" not in heading]
    rows = []
    for level in levels:
        # Losses, and levels that any were held against, are known, and infinite where JSON has no number for them.
        known = ["ours"] + ["reach"] * (level.get("reached") is not None)
        level = {**level, **{key: loss_of(level[key]) for key in known}}
        cells = dict(zip(LEVEL_HEADINGS, level_cells(level), strict=True))
        rows.append(("", [_cell(cells[heading], False) for heading in shown]))
    return ["<h2>Levels to reach</h2>", html_table(shown, rows, text_columns=1)]


def level_cells(level: Mapping[str, Any]) -> tuple[str, ...]:
    """Write a level as texts: what, paper, to reach, ours with its interval, whether it is reached, and whether it is
    better than the paper's."""
    words = {True: "yes", False: "no", None: _MISSING}
    than = {True: "better", False: "not better", None: _MISSING}
    ours = {"mean": level["ours"], "low": level.get("low"), "high": level.get("high")}
    if any(it is not None and math.isfinite(it) for it in (ours["low"], ours["high"])):
        shown = _interval(ours, 0)
    else:
        shown = number(ours["mean"]) + " (no interval)" * math.isfinite(loss_of(ours["mean"]))
    numbers = (number(level.get("paper")), _as_precise(level.get("reach"), shown), shown)
    return (level["what"], *numbers, words[level.get("reached")], than[level.get("beats_paper")])


def _as_precise(value: Number, shown: str) -> str:
    """Write a level with as many decimals as what is held against it, or they might seem to be the other way round."""
    decimals = re.match(r"-?\d+\.(\d+)", shown)
    fine, coarse = None if decimals is None or value is None else number(value, len(decimals[1])), number(value)
    return coarse if fine is None or len(fine) < len(coarse) or not fine.strip("-0.") else fine


def _provenance(results: Results) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in (results.get("versions") or {}).items())
    facts = {
        "command": results.get("command"),
        "seed": str(results["seed"]),
        "versions": versions,
        "machine": results.get("machine"),
        "time": time_line(results),
    }
    terms = "".join(f"<dt>{name}</dt><dd>{escape(fact)}</dd>" for name, fact in facts.items() if fact)
    configuration = json.dumps(results.get("configuration") or {}, indent=2, ensure_ascii=False)
    return [f"<h2>How to repeat this</h2>\n<dl>{terms}</dl>", f"<pre>{escape(configuration)}</pre>"]


def time_line(results: Results) -> str:
    """Say how long every part took, and all of them together where each is known."""
    seconds = results.get("seconds") or {}
    parts = [f"{name.replace('_', '-')} {_duration(value)}" for name, value in seconds.items()]
    if len(seconds) > 1 and None not in seconds.values():
        parts.append(f"in all {_duration(sum(seconds.values()))}")
    return ", ".join(parts)


def html_figure(svg: str, caption: str) -> str:
    """The SVG as an element of a page: without its XML prolog and comments, and with its caption as description."""
    svg = re.sub(r"<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{escape(caption)}"', 1)
    return f"<figure>{svg.strip()}<figcaption>{escape(caption)}</figcaption></figure>"


def html_table(headings: Iterable[str], rows: Iterable[tuple[str, list[str]]], text_columns: int) -> str:
    """A table of rows (kind, cells) that are HTML already; the first `text_columns` align left, the numbers right."""

    def line(tag: str, cells: Iterable[str]) -> str:
        kinds = ((' class="text"' if i < text_columns else "", cell) for i, cell in enumerate(cells))
        return "".join(f"<{tag}{kind}>{cell}</{tag}>" for kind, cell in kinds)

    body = "\n".join(f'<tr class="{kind}">{line("td", cells)}</tr>' for kind, cells in rows)
    head = line("th", map(escape, headings))
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def _cell(text: str, bold: bool) -> str:
    return f"<b>{escape(text)}</b>" if bold else escape(text)


def number(value: Number, decimals: int | None = None) -> str:
    """Three significant digits, or the `decimals` given; an en dash for what is missing."""
    if value is None:
        return _MISSING
    if math.isinf(value) or math.isnan(value):
        return "∞"
    if value == 0 or 1e-4 <= abs(value) < 1e5:
        size = math.floor(math.log10(abs(value))) if value else 0
        return f"{value:.{max(0, 2 - size) if decimals is None else decimals}f}"
    return f"{value:.2e}"


def _interval(interval: Mapping[str, Number], runs: int) -> str:
    """`mean [low, high]` to two digits of the width. From one run there is no interval to show."""
    mean, low, high = (loss_of(interval[key]) for key in ("mean", "low", "high"))
    if runs == 1:
        return number(mean)
    width = high - low if math.isfinite(high) else 0.0
    size = math.floor(math.log10(abs(mean))) if mean and math.isfinite(mean) else 0
    exponential = not 1e-4 <= abs(mean) < 1e5  # as `number` writes it
    decimals = (
        None
        if width <= 0 or exponential
        else min(max(0, 1 - math.floor(math.log10(width)), 2 - size), max(0, 4 - size))
    )
    return f"{number(mean, decimals)} [{number(low, decimals)}, {number(high, decimals)}]"


def _duration(seconds: Number) -> str:
    if seconds is None:
        return _MISSING
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{seconds:.0f} s" if seconds < 120 else f"{hours} h {minutes} min" if hours else f"{minutes} min"
