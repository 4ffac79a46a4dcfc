"""Carrying out an experiment: tune the baselines, meta-train, compare in every setting, report. Resumable."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from .._core.files import read_json, write_text_atomically
from ..evaluation import (
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
from ..problems import find_family
from ..training import Recipe, describe, validation_keys
from ..workflows.display import Display
from ..workflows.folder import Kept, claim
from ..workflows.work import MEASURES, evaluate, meta_training_results, train_or_read, tune
from .declaration import Budget, Experiment, Setting
from .paper import paper_curves, paper_scale


def reproduce(
    experiment: Experiment,
    budget: Budget,
    folder: Path,
    display: Display,
    *,
    resume: bool = False,
    seed: int = 0,
    data: str = "mnist",
    command: str = "",
) -> dict[str, Any]:
    """Carry out an experiment in `folder` and return the results of its first setting.

    Leaves there: `report.html`, `results.json` and figures; `optimizer.safetensors`; `metatraining/` with the log and
    the checkpoint; and for every further setting a folder with a report of its own.

    **Raises:** `FileExistsError` if the folder exists and `resume` is off; `ValueError` if it holds something else.
    """
    recipe = dataclasses.replace(experiment.recipe(budget), seed=seed)
    protocol = dataclasses.replace(experiment.protocols[budget], seed=seed)
    identity = {"experiment": experiment.name, "budget": budget, "seed": seed, "data": data}
    identity |= {"recipe": describe(recipe), "protocol": dataclasses.asdict(protocol)}
    claim(folder, identity, resume)
    main, *others = experiment.settings_of(budget)

    tunings, tuning_seconds = _tunings(folder, main, protocol, data, display)
    family = find_family(experiment.training_family, data=data, split="train")
    if (experiment.training_family, recipe.horizon) == (main.family, main.horizon):
        alike = dataclasses.replace(protocol, horizon=recipe.horizon, final_window=recipe.final_window)
        kept = Kept(folder / "levels.json")
        levels = tuned_levels(tunings, family, validation_keys(recipe), recipe.select, alike, kept)
        display.tuned(MEASURES[recipe.select], levels)
    else:  # validation is on other problems, or over other horizons: their losses say nothing of each other
        levels = {}
        lowest = {name: float(np.min(getattr(tuning, recipe.select))) for name, tuning in tunings.items()}
        display.tuned(MEASURES[recipe.select], lowest)

    untrained, name = experiment.optimizer(jax.random.key(seed)), f"paper/{experiment.name}"
    trained = train_or_read(untrained, family, recipe, folder, display, name=name, levels=levels)
    course = meta_training_results(trained, recipe, levels)

    results, reached = {}, []
    for setting in (main, *others):
        target = folder if setting is main else folder / setting.name
        result = _results_of(
            target, setting, trained.optimizer, protocol, tunings, main, data, display, command, experiment, recipe
        )
        if setting.figure is not None:
            result["paper"] = paper_curves(setting.figure)
            result["paper_scale"] = paper_scale(setting.figure, best_baseline(result["optimizers"], "final")[1])
        if setting is main:
            result["experiment"] = experiment.name
            results = result
            result["meta_training"] = course
            result["configuration"]["recipe"] = describe(recipe)
            result["seconds"] |= {"tuning": tuning_seconds, "meta_training": trained.best.seconds}
        reached += _levels(setting, result, experiment.label)
        if setting is not main:
            write_report(result, target)
        results["levels"] = reached
        write_report(results, folder)  # after every setting: the next may take hours
    return results


def _tunings(
    folder: Path, setting: Setting, protocol: Protocol, data: str, display: Display
) -> tuple[dict[str, Tuning], float | None]:
    family = find_family(setting.family, data=data, split="train")
    return tune(family, _protocol_of(setting, protocol), folder, display)


def _protocol_of(setting: Setting, protocol: Protocol) -> Protocol:
    return dataclasses.replace(protocol, horizon=setting.horizon, final_window=setting.final_window)


def _results_of(
    folder: Path,
    setting: Setting,
    optimizer: Optimizer,
    protocol: Protocol,
    tunings: dict[str, Tuning],
    main: Setting,
    data: str,
    display: Display,
    command: str,
    experiment: Experiment,
    recipe: Recipe,
) -> dict[str, Any]:
    """Compare in one setting, or read what an interrupted run has compared. Every setting tunes its own baselines."""
    path = folder / "comparison.json"
    if path.exists():
        return read_json(path)
    seconds = None
    if setting is not main:
        tunings, seconds = _tunings(folder, setting, protocol, data, display)
    results = evaluate(
        {experiment.label: optimizer},
        find_family(setting.family, data=data, split="test"),
        find_family(setting.family, data=data, split="train"),
        _protocol_of(setting, protocol),
        display,
        title=setting.title,
        command=command,
        tunings=tunings,
        experiment=setting.name if setting is not main else None,
        kept=Kept(folder / "optimizers.json"),
        teacher=getattr(recipe.estimator, "teacher", None),
    )
    results["configuration"]["data"], results["seconds"]["tuning"] = data, seconds
    if experiment.illustrate is not None:
        results["pictures"] = experiment.illustrate(
            find_family(setting.family, data=data, split="test"),
            {experiment.label: optimizer, **_best_two(results["optimizers"])},
            protocol.keys[1],
        )
    write_text_atomically(path, json.dumps(strict_json(results)))
    label, level = best_baseline(results["optimizers"], "final")
    ours = loss_of(results["optimizers"][experiment.label.lower()]["final"]["mean"])
    display.say(f"{setting.title}: {experiment.label} {ours:.4g}, best tuned baseline {label} {level:.4g}")
    return results


def _best_two(optimizers: dict[str, Any]) -> dict[str, Optimizer]:
    """Return the two baselines whose final losses are lowest, at the rates tuned for it, by label."""
    baselines = [row for row in optimizers.values() if row["kind"] == "hand-designed"]
    best = sorted(baselines, key=lambda row: loss_of(row["final"]["mean"]))[:2]
    return {row["label"]: with_learning_rate(BASELINES[row["label"]](), row["learning_rate"]) for row in best}


def _levels(setting: Setting, results: dict[str, Any], label: str) -> list[dict[str, Any]]:
    rows, learned = [], label.lower()
    for level in setting.levels:
        ours = results["optimizers"][learned][level.measure]
        rival, best = best_baseline(results["optimizers"], level.measure)
        if level.relative:
            ours = ratio_to_best(results["optimizers"], learned, level.measure)[1]._asdict()
        what = f"{setting.title}: {level.what} (best tuned baseline: {rival} {best:.4g})"
        rows.append(level_row(what, level.reach, ours["mean"], ours["low"], ours["high"], paper=level.paper))
    return rows
