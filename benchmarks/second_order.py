"""L-BFGS and Gauss-Newton, tuned, on problems that differ, in the time that tuned Adam takes.

    python benchmarks/second_order.py [--data mnist,cifar10.npz] [--rows base tanh] [--methods L-BFGS] [--out DIR]
        [--quick] [--json FILE]

The rows of `bygrad reproduce transfer` without its other optimizers, and all of them together. Losses are relative to
the mean of tuned Adam. What an interrupted run has measured stays in DIR, and is not measured again.
"""

import tempfile
from pathlib import Path
from typing import Any

from _common import console, parser, show, write_record

from bygrad.evaluation import strict_json
from bygrad.experiments.study import Task
from bygrad.experiments.transfer import run_row, second_order_methods
from bygrad.experiments.transfer_report import MEASURES, REFERENCE, aggregate
from bygrad.experiments.transfer_rows import EFFORTS, ROWS, images_of
from bygrad.optimizers import TRANSFER_BASELINES
from bygrad.workflows import Display

METHODS = second_order_methods()


def measure(names: list[str], methods: list[str], data: str, folder: Path, quick: bool) -> list[dict[str, Any]]:
    """Run, or read what was run, and return a row for every problem and method, and one of all together."""
    effort = EFFORTS["quick" if quick else "paper"]
    chosen = [row for row in effort.rows if row.name in names]
    images = images_of(chosen, data)
    baselines, second_order = {REFERENCE: TRANSFER_BASELINES[REFERENCE]}, {name: METHODS[name] for name in methods}
    with Display(console) as display:
        task = Task("quick" if quick else "paper", folder, display, data=data)
        rows = {
            row.name: run_row(row, effort, {}, {}, baselines, images[row.source], task, second_order)
            for row in chosen
            if row.source in images
        }
    found = aggregate(rows, [])
    ratios = [
        {"problem": name, "method": method}
        | {measure: cells[name][measure] / found["table"][REFERENCE][name][measure] for measure in MEASURES}
        | {"steps": len(row["optimizers"][method]["curves"][0]) - 1, "of Adam's": row["horizon"]}
        for method in methods
        for cells in [found["table"][method]]
        for name, row in rows.items()
    ]
    means = [
        {"problem": "all, interquartile mean", "method": method}
        | {measure: found["aggregates"][method][measure]["mean"] for measure in MEASURES}
        | {"steps": "", "of Adam's": ""}
        for method in methods
    ]
    return ratios + means


def main() -> None:
    command = parser(__doc__)
    command.add_argument("--data", default="mnist", help="as for `bygrad reproduce transfer`")
    command.add_argument("--rows", nargs="+", default=[row.name for row in ROWS], help="problems; if not given, all")
    command.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS, help="if not given, both")
    command.add_argument("--out", type=Path, help="where to keep what is measured, to go on after an interruption")
    options = command.parse_args()
    names = options.rows[:1] if options.quick else options.rows
    with tempfile.TemporaryDirectory() as passing:
        rows = measure(names, options.methods, options.data, options.out or Path(passing), options.quick)
    shown = [{key: f"{it:.3g}" if isinstance(it, float) else str(it) for key, it in row.items()} for row in rows]
    show("Losses relative to tuned Adam's", shown)
    write_record(options.json, {"rows": strict_json(rows)})


if __name__ == "__main__":
    main()
