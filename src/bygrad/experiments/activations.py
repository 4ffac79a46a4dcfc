"""No retraining after a change of activation: learned on sigmoid networks, used on networks with others."""

import json
from typing import Any

from .._core.files import write_text_atomically
from ..deploy.jax import versions
from ..evaluation import Protocol, Sheet, best_baseline, level_row, loss_of, strict_json, write_page, write_report
from ..optimizers import Optimizer
from ..problems import find_family
from .declaration import Budget
from .reproduce import claim
from .specialize import protocol_of, specialize, tune_rivals
from .study import Study, Task
from .work import evaluate

LEARNED_ON = "digits-sigmoid"
USED_ON = {"relu": "digits", "tanh": "digits-tanh", "gelu": "digits-gelu"}
"""Families of the same networks with other activations."""

HORIZON = 400
SECONDS: dict[Budget, float] = {"quick": 20.0, "paper": 600.0}
RUNS: dict[Budget, int] = {"quick": 8, "paper": 100}


def _carry_out(task: Task) -> dict[str, Any]:
    """Specialize on the one family, compare on the others with baselines that are tuned on each, and write a page."""
    runs = RUNS[task.budget]
    identity = {"experiment": ACTIVATIONS.name, "budget": task.budget, "seed": task.seed, "data": task.data}
    claim(task.folder, identity, task.resume)
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
        compared[activation] = _compare(learned.optimizer, activation, family, protocol, task)
    rows = [row for activation, results in compared.items() for row in _ratios(activation, results)]
    results = {
        "experiment": ACTIVATIONS.name,
        "title": ACTIVATIONS.title,
        "learned_on": LEARNED_ON,
        "ratios": rows,
        "levels": [_level(row) for row in rows if row["activation"] in USED_ON],
        "seconds": {"meta_training": learned.results["seconds"]["meta_training"]},
        "command": task.command,
        "versions": versions(),
    }
    write_text_atomically(task.folder / "results.json", json.dumps(strict_json(results), indent=1))
    statement = (
        f"A controller, meta-trained for {SECONDS[task.budget]:.0f} s on sigmoid networks, used without retraining or"
        f" tuning. The baselines are tuned on every activation. Ratios of the mean of {runs} runs of {HORIZON} steps:"
        f" below 1 is better. {task.command}"
    )
    write_page(task.folder, ACTIVATIONS.title, statement, [_sheet(rows)])
    return results


def _compare(optimizer: Optimizer, activation: str, family_name: str, protocol: Protocol, task: Task) -> dict[str, Any]:
    """Compare on one family, or read what an interrupted run has found."""
    folder = task.folder / activation
    if (kept := folder / "results.json").exists():
        return json.loads(kept.read_text())
    family = find_family(family_name, data=task.data)
    results = evaluate(
        {"Controller": optimizer},
        family,
        family,
        protocol,
        task.display,
        title=f"Learned on sigmoid networks, used with {activation}",
        command=task.command,
        tunings=tune_rivals(family, protocol, task.display),
    )
    write_report(strict_json(results), folder)
    return results


def _ratios(activation: str, results: dict[str, Any]) -> list[dict[str, Any]]:
    """Hold our mean and final losses against those of the tuned baselines."""
    rows, found = results["optimizers"], []
    for measure, what, steps in (("area", "mean", HORIZON), ("final", "final", 1)):
        label, best = best_baseline(rows, measure)
        ours, adam = (loss_of(rows[name][measure]["mean"]) for name in ("controller", "adam"))
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
