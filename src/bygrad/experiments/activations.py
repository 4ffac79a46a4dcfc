"""No retraining after a change of activation: learned on sigmoid networks, used on networks with others."""

from typing import Any

from ..evaluation import Sheet, best_baseline, level_row, loss_of
from ..problems import find_family
from ..workflows.specialize import RIVALS, protocol_of, specialize
from .declaration import Budget
from .study import Study, Task

LEARNED_ON = "digits-sigmoid"
USED_ON = {"relu": "digits", "tanh": "digits-tanh", "gelu": "digits-gelu"}
"""Families of the same networks with other activations."""

HORIZON = 400
SECONDS: dict[Budget, float] = {"quick": 20.0, "paper": 600.0}
RUNS: dict[Budget, int] = {"quick": 8, "paper": 100}


def _carry_out(task: Task) -> dict[str, Any]:
    """Specialize on the one family, compare on the others with baselines that are tuned on each, and write a page."""
    runs = RUNS[task.budget]
    task.claim(ACTIVATIONS)
    learned = specialize(
        find_family(LEARNED_ON, data=task.data),
        SECONDS[task.budget],
        horizon=HORIZON,
        pretrained=None,  # it has seen other activations
        folder=task.folder / "sigmoid",
        resume=(task.folder / "sigmoid").exists(),
        seed=task.seed,
        runs=runs,
        display=task.display,
        command=task.command,
    )
    protocol = protocol_of(HORIZON, runs, task.seed)
    compared = {"sigmoid": learned.results}
    for activation, family in USED_ON.items():
        used = find_family(family, data=task.data)
        title = f"Learned on sigmoid networks, used with {activation}"
        compared[activation] = task.compare(
            activation, {"Controller": learned.optimizer}, used, used, protocol, title, RIVALS
        )
    rows = [row for activation, results in compared.items() for row in _ratios(activation, results)]
    results = {
        "learned_on": LEARNED_ON,
        "ratios": rows,
        "levels": [_level(row) for row in rows if row["activation"] in USED_ON],
        "seconds": {"meta_training": learned.results["seconds"]["meta_training"]},
    }
    kept = " It was no better than its start there, so all rows are of the start." * _is_start(learned.results)
    statement = (
        f"A controller, meta-trained for {SECONDS[task.budget]:.0f} s on sigmoid networks, used without retraining or"
        f" tuning.{kept} The baselines are tuned on every activation. Ratios of the mean of {runs} runs of {HORIZON}"
        " steps: below 1 is better."
    )
    return task.finish(ACTIVATIONS, results, statement, [_sheet(rows)])


def _is_start(results: dict[str, Any]) -> bool:
    """Whether these are results of a specialization that has kept its start, a row beside what was learned."""
    return results.get("specialization", {}).get("kept") == "start"


def _ratios(activation: str, results: dict[str, Any]) -> list[dict[str, Any]]:
    """Hold mean and final losses of the optimizer that was kept against those of the tuned baselines."""
    rows, found = results["optimizers"], []
    kept = "start" if _is_start(results) else "controller"
    for measure, what, steps in (("area", "mean", HORIZON), ("final", "final", 1)):
        label, best = best_baseline(rows, measure)
        ours, adam = (loss_of(rows[name][measure]["mean"]) for name in (kept, "adam"))
        ratios = {"to_adam": ours / adam, "to_best": ours / best}
        found.append({"activation": activation, "measure": what, "ours": ours / steps, "best": label, **ratios})
    return found


def _sheet(rows: list[dict[str, Any]]) -> Sheet:
    headings = ("activation", "loss", "best baseline", "ours", "ours / tuned Adam", "ours / best baseline")
    cells = (
        (
            it["activation"],
            it["measure"],
            it["best"],
            f"{it['ours']:.3g}",
            f"{it['to_adam']:.2f}",
            f"{it['to_best']:.2f}",
        )
        for it in rows
    )
    return Sheet("Ratios of losses", headings, tuple(cells), 3)


def _level(row: dict[str, Any]) -> dict[str, Any]:
    """The level of a report: not above Adam, tuned for the activation."""
    return level_row(
        f"sigmoid to {row['activation']}, {row['measure']} loss, share of tuned Adam's", 1.0, row["to_adam"]
    )


ACTIVATIONS = Study(
    "activations", "A controller learned on sigmoid networks, on networks with other activations", _carry_out
)
