"""All experiments one after the other, and one report of what each of them reached."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from .._core.files import write_text_atomically
from ..evaluation import LEVEL_HEADINGS, Picture, Sheet, level_cells, strict_json, write_page
from .declaration import Experiment
from .reproduce import carry_out
from .study import Study, Task


def everything(experiments: Mapping[str, Experiment | Study]) -> Study:
    """Return the study that carries all of `experiments` out, each in a folder of its own, and writes an index.

    The index is written anew after each of them. What an interrupted run has left is resumed. An experiment that
    cannot run (data that are not there, say) is named in the index with the reason, and the others go on. A folder that
    was begun with another budget, seed or data is refused as a whole: one index would be of both.
    """

    def run(task: Task) -> dict[str, Any]:
        task.claim(study)
        levels: dict[str, list[dict[str, Any]]] = {}
        refused: dict[str, str] = {}
        for number, (name, experiment) in enumerate(experiments.items()):
            task.display.say(f"[{number + 1}/{len(experiments)}] {name}: {experiment.title}", "bold")
            folder = task.folder / name
            own = dataclasses.replace(task, folder=folder, resume=folder.exists())
            try:
                levels[name] = carry_out(experiment, own).get("levels") or []
            except (ValueError, TypeError, OSError, ImportError, MemoryError, FloatingPointError) as error:
                refused[name] = str(error)
                task.display.say(f"{name} was not carried out: {error}", "yellow")
            _write_index(task, levels, refused)
        rows = [level for of_one in levels.values() for level in of_one]
        return {"experiment": "all", "title": "All experiments", "levels": rows, "refused": refused}

    study = Study("all", "Every experiment, resumed where it stopped, with one index of all levels", run)
    return study


def _write_index(task: Task, levels: Mapping[str, list[dict[str, Any]]], refused: Mapping[str, str]) -> None:
    judged = [level["reached"] for of_one in levels.values() for level in of_one if level["reached"] is not None]
    statement = (
        f"Budget {task.budget}, seed {task.seed}, data {task.data}. {sum(judged)} of {len(judged)} levels are reached."
        " Thin broken or dotted curves are the paper's. Each experiment's own folder holds its full report."
    )
    rows = [(name, *level_cells(level)) for name, of_one in levels.items() for level in of_one]
    parts: list[Picture | Sheet] = [Sheet("Levels", ("experiment", *LEVEL_HEADINGS), tuple(rows), text_columns=2)]
    if refused:
        parts.append(Sheet("Not carried out", ("experiment", "why"), tuple(refused.items()), text_columns=2))
    for name in levels:
        # Comparisons in further settings lie in folders of their own; those of a meta-training have no figures.
        for svg in sorted((task.folder / name).rglob("*.svg")):
            if svg.stem not in ("tuning", "metatraining"):
                place = svg.relative_to(task.folder).with_suffix("")
                parts.append(Picture(str(place), f"{place}", svg=svg.read_text(encoding="utf-8")))
    record = {"budget": task.budget, "seed": task.seed, "levels": levels, "refused": refused, "command": task.command}
    task.folder.mkdir(parents=True, exist_ok=True)
    write_text_atomically(task.folder / "results.json", json.dumps(strict_json(record), indent=1))
    write_page(task.folder, "All experiments", statement, parts)
