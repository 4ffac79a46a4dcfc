"""Carrying out an experiment: tune the baselines, meta-train, compare in every setting, report. Resumable."""

import dataclasses
import json
from typing import Any

import numpy as np

from .._core.draws import key_of
from .._core.files import read_json, write_text_atomically
from ..evaluation import (
    CONVENTION,
    Protocol,
    Tuning,
    best_baseline,
    level_row,
    loss_of,
    ratio_to_best,
    strict_json,
    tuned_levels,
    with_learning_rate,
    write_report,
)
from ..optimizers import BASELINES, Optimizer
from ..training import describe, validation_keys
from ..workflows.evaluating import evaluate, tune
from ..workflows.folder import Kept, leaving_nothing
from ..workflows.work import MEASURES, meta_training_results, train_or_read
from .declaration import Experiment, Setting
from .paper import OF_IMAGES, paper_curves, paper_level, paper_scale
from .study import Study, Task


def carry_out(experiment: Experiment | Study, task: Task) -> dict[str, Any]:
    """Carry out an experiment or a study and return the results of its report."""
    with leaving_nothing(task.folder):
        return experiment.carry_out(task) if isinstance(experiment, Study) else reproduce(experiment, task)


def reproduce(experiment: Experiment, task: Task) -> dict[str, Any]:
    """Carry out an experiment in the task's folder and return the results of its first setting.

    Leaves there: `report.html`, `results.json` and figures; `optimizer.safetensors`; `metatraining/` with the log and
    the checkpoint; and for every further setting a folder with a report of its own.

    **Raises:** `FileExistsError` if the folder exists and `resume` is off; `ValueError` if it holds something else.
    """
    folder, display = task.folder, task.display
    recipe = dataclasses.replace(experiment.recipe(task.budget), seed=task.seed)
    protocol = dataclasses.replace(experiment.protocols[task.budget], seed=task.seed)
    task.claim(experiment, recipe=describe(recipe), protocol=dataclasses.asdict(protocol))
    main, *others = experiment.settings_of(task.budget)

    tunings, tuning_seconds = _tuned(task, main, protocol)
    family = task.family(experiment.training_family)
    if (experiment.training_family, recipe.horizon) == (main.family, main.horizon):
        alike = dataclasses.replace(protocol, horizon=recipe.horizon, final_window=recipe.final_window)
        kept = Kept(folder / "levels.json")
        levels = tuned_levels(tunings, family, validation_keys(recipe), recipe.select, alike, display.phase, kept)
        display.tuned(MEASURES[recipe.select], levels)
    else:  # validation is on other problems, or over other horizons: their losses say nothing of each other
        levels = {}
        lowest = {name: float(np.min(getattr(tuning, recipe.select))) for name, tuning in tunings.items()}
        display.tuned(MEASURES[recipe.select], lowest)

    untrained, name = experiment.optimizer(key_of(task.seed)), f"paper/{experiment.name}"
    trained = train_or_read(untrained, family, recipe, folder, display, name=name, levels=levels)

    results = _compared(task, experiment, main, trained.optimizer, protocol, tunings)
    results["experiment"] = experiment.name
    results["meta_training"] = meta_training_results(trained, recipe, levels)
    results["configuration"]["recipe"] = describe(recipe)
    results["seconds"] |= {"tuning": tuning_seconds, "meta_training": trained.best.seconds}
    results["levels"] = _levels(main, results, experiment.label)
    write_report(results, folder)
    for setting in others:
        part = dataclasses.replace(task, folder=folder / setting.name)
        result = _compared(part, experiment, setting, trained.optimizer, protocol)
        results["levels"] += _levels(setting, result, experiment.label)
        write_report(result, part.folder)
        write_report(results, folder)  # after every setting: the next may take hours
    return results


def _tuned(task: Task, setting: Setting, protocol: Protocol) -> tuple[dict[str, Tuning], float | None]:
    family = task.family(setting.family)
    return tune(family, _protocol_of(setting, protocol), task.folder, task.display)


def _protocol_of(setting: Setting, protocol: Protocol) -> Protocol:
    return dataclasses.replace(protocol, horizon=setting.horizon, final_window=setting.final_window)


def _compared(
    task: Task,
    experiment: Experiment,
    setting: Setting,
    optimizer: Optimizer,
    protocol: Protocol,
    tunings: dict[str, Tuning] | None = None,
) -> dict[str, Any]:
    """Compare in one setting, or read what an interrupted run has compared in the task's folder, and add the paper's
    curves."""
    kept = task.folder / "comparison.json"
    results = read_json(kept) if kept.exists() else _compare(task, experiment, setting, optimizer, protocol, tunings)
    if setting.figure is not None:
        results["paper"] = paper_curves(setting.figure)
        results["paper_scale"] = paper_scale(setting.figure, best_baseline(results["optimizers"], "final")[1])
        if _of_images(results):
            results["convention"] = f"{CONVENTION} {OF_IMAGES}"
    return results


def _compare(
    task: Task,
    experiment: Experiment,
    setting: Setting,
    optimizer: Optimizer,
    protocol: Protocol,
    tunings: dict[str, Tuning] | None,
) -> dict[str, Any]:
    """Compare, and keep what came out. Without `tunings`, those of the first setting, a setting tunes baselines of its
    own."""
    name, seconds = None, None
    if tunings is None:
        name, (tunings, seconds) = setting.name, _tuned(task, setting, protocol)
    test = task.family(setting.family, "test")
    results = evaluate(
        {experiment.label: optimizer},
        test,
        task.family(setting.family),
        _protocol_of(setting, protocol),
        task.display,
        title=setting.title,
        command=task.command,
        tunings=tunings,
        experiment=name,
        folder=task.folder,
        teacher=getattr(experiment.recipe(task.budget).estimator, "teacher", None),
    )
    results["configuration"]["data"], results["seconds"]["tuning"] = task.data, seconds
    if experiment.illustrate is not None:
        shown = {experiment.label: optimizer, **_best_two(results["optimizers"])}
        results["pictures"] = experiment.illustrate(test, shown, protocol.keys[1])
    write_text_atomically(task.folder / "comparison.json", json.dumps(strict_json(results)))
    label, level = best_baseline(results["optimizers"], "final")
    ours = loss_of(results["optimizers"][experiment.label.lower()]["final"]["mean"])
    task.display.say(f"{setting.title}: {experiment.label} {ours:.4g}, best tuned baseline {label} {level:.4g}")
    return results


def _best_two(optimizers: dict[str, Any]) -> dict[str, Optimizer]:
    """Return the two baselines whose final losses are lowest, at the rates tuned for it, by label."""
    baselines = [row for row in optimizers.values() if row["kind"] == "hand-designed"]
    best = sorted(baselines, key=lambda row: loss_of(row["final"]["mean"]))[:2]
    return {row["label"]: with_learning_rate(BASELINES[row["label"]](), row["learning_rate"]) for row in best}


def _of_images(results: dict[str, Any]) -> bool:
    return "labels" in results["configuration"]["family"]


def _levels(setting: Setting, results: dict[str, Any], label: str) -> list[dict[str, Any]]:
    rows, learned = [], label.lower()
    for level in setting.levels:
        ours = results["optimizers"][learned][level.measure]
        rival, best = best_baseline(results["optimizers"], level.measure)
        if level.relative:
            ours = ratio_to_best(results["optimizers"], learned, level.measure)[1]._asdict()
        what = f"{setting.title}: {level.what} (best tuned baseline: {rival} {best:.4g})"
        paper, comparable = paper_level(setting, level), level.relative or not _of_images(results)
        found = ours["mean"], ours["low"], ours["high"]
        rows.append(level_row(what, level.reach, *found, paper=paper, comparable=comparable))
    return rows
