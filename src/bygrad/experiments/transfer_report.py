"""What the rows of the transfer benchmark say together: shares of rows won, interquartile means, profiles, a page."""

from collections.abc import Collection, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from .._core.files import write_text_atomically
from ..evaluation import Interval, bootstrap_iqm, bootstrap_share, level_row, loss_of, write_report
from ..evaluation.drawing import save
from ..evaluation.figures import ratios
from ..evaluation.report import html_figure, html_page, html_table, number

MEASURES = {
    "mean": "mean training loss over the run",
    "final": "training loss at the end",
    "test": "loss on held-out data at the end",
    "timed": "mean training loss over the time that tuned Adam takes",
}
"""What is compared: three measures of runs of as many steps, and one of as many seconds. Who takes more time for
a step takes fewer steps in the last; who takes less, no more than in the others."""

MEASURED = ("mean", "final", "test")
"""Those that rows say, at every setting."""

CALIBRATED = {name: f"{name}, one rate" for name in ("AdamWCosine", "ScheduleFree")}
"""Baselines that have a second column, at the one learning rate that is best over all rows: what there is to be had
without tuning."""

REFERENCE = "Adam"
REACH = {CALIBRATED["AdamWCosine"]: 0.8, REFERENCE: 0.6}
"""Shares of rows in which an untuned optimizer should beat these."""
TOLD = {
    CALIBRATED["AdamWCosine"]: "AdamW with a cosine at one rate for all rows",
    CALIBRATED["ScheduleFree"]: "Schedule-Free at one rate for all rows",
    REFERENCE: "Adam tuned for each row",
}
BETTER_ADAM, ANY = "the better of tuned Adam and tuned AdamW with a cosine", "all tuned baselines"
SECOND_ORDER = "L-BFGS and Gauss-Newton, tuned, in the time that tuned Adam takes"

Rows = Mapping[str, Mapping[str, Any]]


def aggregate(rows: Rows, learned: Sequence[str], outside: Collection[str] = ()) -> dict[str, Any]:
    """Return what the rows say together, as JSON values; `outside`: those of kinds that nothing was learned on.

    `table`: for every row and column, means over the runs of each measure, the learning rate and the seconds of a step.
    `aggregates`: for every column and measure, the geometric mean of the middle half, over rows and runs, of losses
    relative to those of tuned Adam from the same key, with its interval; and the share of runs that diverged.
    `won`: for every learned optimizer, rival (or several at once) and measure, in how many rows it is below, and in how
    many of those outside. `levels`, `summary`: for the report and the terminal.
    """
    kinds = {name: entry["kind"] for name, entry in next(iter(rows.values()))["optimizers"].items()}
    rates = {name: calibrate(rows, name) for name in CALIBRATED if name in kinds}
    columns = _columns(rows, rates)
    kinds |= {CALIBRATED[name]: kinds[name] for name in rates}
    table, aggregates = {}, {}
    for name, cells in columns.items():
        shown = (*MEASURES, "rate", "schedule", "seconds")
        table[name] = {row: {key: cell[key] for key in shown} for row, cell in cells.items()}
        aggregates[name] = {"kind": kinds[name], "diverged": float(np.mean([cell["lost"] for cell in cells.values()]))}
        aggregates[name] |= {
            measure: _relative(*(_runs(it, measure) for it in (cells, columns[REFERENCE])))._asdict()
            for measure in MEASURES
        }
    won: dict[str, Any] = {name: {} for name in learned}
    levels, summary = [], []
    for name in learned:
        for rival, together in _rivals(kinds).items():
            below = _below(table, name, together)
            won[name][rival] = {
                measure: {"rows": len(those), "outside": sum(row in outside for row in those)}
                for measure, those in below.items()
            }
            told = ", ".join(f"{measure} {len(those)}" for measure, those in below.items())
            summary.append(f"{name}, not tuned, is below {TOLD.get(rival) or rival}, of {len(rows)} rows in: {told}")
        for rival, reach in REACH.items():
            what = f"share of rows in which {name}, not tuned, has a lower mean training loss than {TOLD[rival]}"
            share = bootstrap_share(*(_runs(columns[it], "mean") for it in (name, rival)), together=True)
            levels.append(level_row(what, reach, *share, at_least=True))
    return {
        "table": table,
        "aggregates": aggregates,
        "won": won,
        "outside": len(set(outside) & set(rows)),
        "calibrated": rates,
        "levels": levels,
        "summary": summary,
        "axes": {row: entry["axis"] for row, entry in rows.items()},
    }


def _columns(rows: Rows, rates: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """Return what every optimizer reaches in every row; `rates`: of those that have a second column at one rate."""
    names = [*next(iter(rows.values()))["optimizers"], *(CALIBRATED[name] for name in rates)]
    columns: dict[str, dict[str, Any]] = {name: {} for name in names}
    for row, entry in rows.items():
        seconds = entry["horizon"] * entry["optimizers"][REFERENCE]["seconds"]
        for name, optimizer in entry["optimizers"].items():
            beside = optimizer.get("adam_seconds")
            columns[name][row] = _at_best(optimizer, seconds if beside is None else entry["horizon"] * beside)
        for name, rate in rates.items():
            columns[CALIBRATED[name]][row] = _at_rate(entry["optimizers"][name], rate, seconds)
    return columns


def _below(table: Rows, name: str, together: Sequence[str]) -> dict[str, list[str]]:
    """Return for every measure the rows in which one column is below each of some others."""
    return {
        measure: [
            row for row, cell in table[name].items() if cell[measure] < min(table[it][row][measure] for it in together)
        ]
        for measure in MEASURES
    }


def _rivals(kinds: Mapping[str, str]) -> dict[str, list[str]]:
    """Return rivals, and what is beaten only where each of several is: who tunes would take the best for a problem."""
    at_one_rate = [column for column in CALIBRATED.values() if column in kinds]
    tuned = [name for name, kind in kinds.items() if kind == "hand-designed" and name not in at_one_rate]
    rivals = {rival: [rival] for rival in (*at_one_rate, REFERENCE)}
    rivals |= {BETTER_ADAM: [REFERENCE, "AdamWCosine"], ANY: tuned}
    second_order = [name for name, kind in kinds.items() if kind == "second-order"]
    return rivals | ({SECOND_ORDER: second_order} if second_order else {})


def calibrate(rows: Rows, name: str) -> float:
    """Return the one learning rate at which a baseline does best over all rows, by the runs kept for tuning: least in
    the mean over rows of the logarithm of its mean loss."""
    entries = [row["optimizers"][name] for row in rows.values()]
    losses = np.stack([_tuned(entry, "mean") for entry in entries])
    return float(entries[0]["rates"][int(np.argmin(np.mean(np.log(losses), axis=0)))])


def _tuned(entry: Mapping[str, Any], measure: str) -> np.ndarray:
    """Return the mean of a measure at every setting, over the runs kept for tuning."""
    return np.array([_losses(at_setting[: entry["tuning_runs"]]).mean() for at_setting in entry[measure]])


def _losses(runs: Sequence[float | None]) -> np.ndarray:
    return np.array([loss_of(loss) for loss in runs])


def _runs(cells: Mapping[str, Mapping[str, Any]], measure: str) -> np.ndarray:
    """Return a column's losses, `[rows, runs]`."""
    return np.stack([cell["runs"][measure] for cell in cells.values()])


def _relative(losses: np.ndarray, reference: np.ndarray) -> Interval:
    """Return how losses stand to a reference's, `[rows, runs]` both: the geometric mean of the middle half of ratios.

    Runs are divided in pairs, which share their key and so start and minibatches; divided by the mean of its own runs,
    the reference itself would not stand at 1. Logarithms, because half and twice the loss are equally far from it. Keys
    are the same in all rows, and drawn for all of them at once.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(losses == reference, 1.0, losses / reference)
    # Where the reference alone is lost, the ratio is the least there is: a score of -inf would count as lost.
    ratios = np.where(np.isfinite(losses), np.maximum(ratios, np.finfo(float).tiny), np.inf)
    return Interval(*(float(np.exp(end)) for end in bootstrap_iqm(np.log(ratios), together=True)))


def _at_best(entry: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Return what an optimizer reaches, in every measure at the setting that tuned best for it; `seconds`: of tuned
    Adam's run."""
    curves = np.asarray(entry["curves"], float)[:, :-1]
    if entry["rates"] is None:
        return _cell(entry, dict.fromkeys(MEASURED, 0), curves, seconds)
    return _cell(entry, {measure: int(np.argmin(_tuned(entry, measure))) for measure in MEASURED}, curves, seconds)


def _at_rate(entry: Mapping[str, Any], rate: float, seconds: float) -> dict[str, Any]:
    index = int(np.argmin(np.abs(np.log(np.asarray(entry["rates"]) / rate))))
    curves = np.asarray(entry["curves_at_rates"][index], float)
    return _cell(entry, dict.fromkeys(MEASURED, index), curves, seconds)


def _cell(entry: Mapping[str, Any], settings: Mapping[str, int], curves: np.ndarray, seconds: float) -> dict[str, Any]:
    """`curves` `[runs, steps]`: losses before each update, or means over as many updates, that divide the run."""
    runs = {measure: _losses(entry[measure][setting][entry["tuning_runs"] :]) for measure, setting in settings.items()}
    steps = len(entry["curves"][0]) - 1
    part = min(1.0, seconds / (steps * entry["seconds"]))
    with np.errstate(over="ignore", invalid="ignore"):
        runs["timed"] = _losses(np.mean(curves[:, : max(1, round(part * curves.shape[1]))], axis=1).tolist())
    return {
        **{measure: float(np.mean(values)) for measure, values in runs.items()},
        "runs": runs,
        "rate": None if entry["rates"] is None else entry["rates"][settings["mean"]],
        "schedule": None if entry["rates"] is None else entry["schedules"][settings["mean"]],
        "seconds": entry["seconds"],
        "lost": float(np.mean(~np.isfinite(runs["final"]))),
    }


def write_transfer_report(found: Mapping[str, Any], results: dict[str, Any], folder: Path) -> Path:
    """Write `report.html`, its figure, and beside them, in `base`, the report of the base row; return the page."""
    write_report(results, folder / "base")
    save(ratios({"ratios": _ratios(found), "measure": "mean loss, as a share of tuned Adam's"}), folder / "ratios")
    write_text_atomically(folder / "results.json", (folder / "base" / "results.json").read_text())
    columns = list(found["table"])
    parts = [
        "<h1>Transfer</h1>",
        "<p>Every row differs from the first in one respect. Learned optimizers run as they are. Baselines are tuned in"
        " each row, their learning rates without and with a cosine, on other runs than those shown, and shown in each"
        " measure at the setting that tuned best for it; the last columns have one learning rate for all rows, the best"
        " over them. L-BFGS and Gauss-Newton take as many steps as fit in the time of tuned Adam, and are tuned, too:"
        " their damping, and how many minibatches a step is made from. ScheduleFree is judged at its average.</p>",
        *(f"<p>{escape(line)}</p>" for line in found["summary"]),
        "<h2>Rows won</h2>",
        html_table(("optimizer, not tuned", "is below", *MEASURES.values()), _won_cells(found), text_columns=2),
        f'<p class="notes">Of {len(found["axes"])} rows, and of the {found["outside"]} of kinds that'
        " <code>general/controller</code> did not learn on (in brackets).</p>",
        "<h2>All rows together</h2>",
        html_table(
            ("optimizer", *(f"{text}, interquartile mean [95 %]" for text in MEASURES.values()), "diverged"),
            [(entry["kind"], _aggregate_cells(name, entry)) for name, entry in found["aggregates"].items()],
            text_columns=1,
        ),
        '<p class="notes">Losses relative to those of tuned Adam in the same row and from the same key, and their'
        " geometric mean over the middle half: below 1 is better. Runs of one key are drawn together for the intervals,"
        " as they begin alike in all rows. A run that ends in a loss that is not finite has diverged, and counts as"
        " infinite.</p>",
        html_figure(
            (folder / "ratios.svg").read_text(),
            "Mean losses as shares of tuned Adam's: a dot for each row, its means over runs; a stroke for all together,"
            " the interquartile mean of runs in pairs. Arrows lie beyond.",
        ),
    ]
    for measure, text in MEASURES.items():
        rows = [(row, _row_cells(found, row, measure, columns)) for row in found["axes"]]
        parts += [f"<h2>{escape(text.capitalize())}</h2>", html_table(("row", "differs in", *columns), rows, 2)]
    rows = [(row, _row_cells(found, row, "seconds", columns, 1e6)) for row in found["axes"]]
    parts += [
        "<h2>Microseconds of a step</h2>",
        html_table(("row", "differs in", *columns), rows, 2),
        '<p class="notes">Of problem and optimizer together, many runs side by side.</p>',
        f"<pre>{escape(results['command'])}</pre>",
    ]
    write_text_atomically(folder / "report.html", html_page("Transfer", parts))
    return folder / "report.html"


def _ratios(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the figure shows."""
    table, drawn = found["table"], {}
    for name, cells in table.items():
        values = [cell["mean"] / table[REFERENCE][row]["mean"] for row, cell in cells.items()]
        told = found["aggregates"][name]
        drawn[name] = {"label": name, "kind": told["kind"], "values": values, "mean": told["mean"]["mean"]}
    return drawn


def _aggregate_cells(name: str, entry: Mapping[str, Any]) -> list[str]:
    intervals = [entry[measure] for measure in MEASURES]
    shown = [f"{number(it['mean'])} [{number(it['low'])}, {number(it['high'])}]" for it in intervals]
    return [escape(name), *shown, f"{entry['diverged']:.0%}"]


def _won_cells(found: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    cells = []
    for name, of_all in found["won"].items():
        for rival, won in of_all.items():
            counts = [f"{it['rows']} ({it['outside']})" for it in won.values()]
            cells.append(("", [escape(name), escape(TOLD.get(rival) or rival), *counts]))
    return cells


def _row_cells(found: Mapping[str, Any], row: str, key: str, columns: list[str], times: float = 1.0) -> list[str]:
    values = [times * found["table"][name][row][key] for name in columns]
    best = min(values)
    shown = [f"<b>{number(value)}</b>" if value == best else number(value) for value in values]
    return [escape(row), escape(found["axes"][row]), *shown]
