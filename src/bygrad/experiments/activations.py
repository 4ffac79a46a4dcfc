"""No retraining after a change of activation: learned on sigmoid networks, used on networks with others."""

import dataclasses
from collections.abc import Callable
from typing import Any

from ..evaluation import Sheet, best_baseline, bootstrap_ratio, level_row, loss_of
from ..optimizers import Optimizer
from ..problems import Mixture, MLPClassifier, ProblemFamily
from ..workflows.plan import protocol_of
from ..workflows.specialize import RIVALS, specialize
from .declaration import Budget
from .study import Study, Task

LEARNED_ON = "digits-sigmoid"
USED_ON = {"sigmoid": LEARNED_ON, "relu": "digits", "tanh": "digits-tanh", "gelu": "digits-gelu"}
"""Families of the same networks with these activations."""


def four_networks(network: MLPClassifier) -> Mixture:
    """Return sigmoid networks that differ in the size of the initial weights, in width and in depth: on one alone, what
    is learned are steps that only a sigmoid forgives."""
    others = ({"scale": 0.5}, {"hidden": 128}, {"layers": 2, "scale": 0.5})
    return Mixture((network, *(dataclasses.replace(network, **other) for other in others)))


LEARNED: dict[str, Callable[[MLPClassifier], ProblemFamily]] = {
    "one network": lambda network: network,
    "four networks": four_networks,
}
"""What is learned on, all of it with sigmoids. The first is the plainest way, and the second the one to recommend."""

RECOMMENDED = "four networks"

HORIZON = 400
SECONDS: dict[Budget, float] = {"quick": 20.0, "paper": 600.0}
RUNS: dict[Budget, int] = {"quick": 8, "paper": 100}


def _carry_out(task: Task) -> dict[str, Any]:
    """Specialize in both ways, compare with baselines that are tuned for each activation, and write a page."""
    runs, seconds = RUNS[task.budget], SECONDS[task.budget]
    task.claim(ACTIVATIONS)
    network = task.family(LEARNED_ON)
    assert isinstance(network, MLPClassifier)
    learned: dict[str, Optimizer] = {}
    unlearned: list[str] = []
    spent = 0.0
    for name, family_of in LEARNED.items():
        folder = task.folder / name.replace(" ", "-")
        task.display.say(f"learning on {name}", "bold")
        done = specialize(
            family_of(network),
            seconds,
            horizon=HORIZON,
            pretrained=None,  # it has seen other activations
            folder=folder,
            resume=folder.exists(),
            seed=task.seed,
            runs=runs,
            display=task.display,
            command=task.command,
        )
        learned[name] = done.optimizer
        unlearned += [name] * (done.kept == "start")
        spent += done.results["seconds"]["meta_training"]
    protocol = protocol_of(HORIZON, runs, task.seed)
    rows = []
    for activation, family in USED_ON.items():
        used = task.family(family)
        title = f"Learned on sigmoid networks, used with {activation}"
        results = task.compare(activation, learned, used, used, protocol, title, RIVALS)
        rows += ratios(activation, results["optimizers"])
    results = {
        "learned_on": LEARNED_ON,
        "ratios": rows,
        "levels": [_level(row) for row in rows if row["activation"] != "sigmoid"],
        "seconds": {"meta_training": spent},
    }
    kept = "".join(
        f" What was learned on {name} was no better than its start there, so its rows are of the start."
        for name in unlearned
    )
    statement = (
        f"Controllers, meta-trained for {seconds:.0f} s each on sigmoid networks, used without retraining or tuning:"
        f" one learned on one network, one on four that differ in initial scale, width and depth.{kept} The baselines"
        f" are tuned on every activation. Ratios of the mean of {runs} runs of {HORIZON} steps: below 1 is better;"
        " brackets are 95 % intervals over pairs of runs."
    )
    return task.finish(ACTIVATIONS, results, statement, [_sheet(rows)])


def ratios(activation: str, rows: dict[str, Any]) -> list[dict[str, Any]]:
    """Hold mean and final losses of what was learned against those of the tuned Adam and of the best baseline."""
    found = []
    for name in LEARNED:
        for measure, what, steps in (("area", "mean", HORIZON), ("final", "final", 1)):
            label, best = best_baseline(rows, measure)
            ours, adam = (list(map(loss_of, rows[it]["each_run"][measure])) for it in (name, "adam"))
            share, low, high = bootstrap_ratio(ours, adam)
            mean = loss_of(rows[name][measure]["mean"])
            row = {"activation": activation, "learned_on": name, "measure": what, "ours": mean / steps, "best": label}
            found.append(row | {"to_adam": share, "low": low, "high": high, "to_best": mean / best})
    return found


def _sheet(rows: list[dict[str, Any]]) -> Sheet:
    headings = (
        "activation",
        "learned on",
        "loss",
        "best baseline",
        "ours",
        "ours / tuned Adam",
        "ours / best baseline",
    )
    cells = (
        (
            it["activation"],
            it["learned_on"],
            it["measure"],
            it["best"],
            f"{it['ours']:.3g}",
            f"{it['to_adam']:.2f} [{it['low']:.2f}, {it['high']:.2f}]",
            f"{it['to_best']:.2f}",
        )
        for it in rows
    )
    return Sheet("Ratios of losses", headings, tuple(cells), 4)


def _level(row: dict[str, Any]) -> dict[str, Any]:
    """The level of a report: not above Adam, tuned for the activation, as learned in the way to recommend."""
    what = f"{row['learned_on']}, sigmoid to {row['activation']}, {row['measure']} loss, share of tuned Adam's"
    reach = 1.0 if row["learned_on"] == RECOMMENDED else None
    return level_row(what, reach, row["to_adam"], row["low"], row["high"])


ACTIVATIONS = Study("activations", "Controllers learned on sigmoid networks, used with other activations", _carry_out)
