"""Beyond the horizon: what the paper's optimizer does after 100 times its steps, and what a curriculum makes of it."""

import dataclasses
import json
import time
from typing import Any

from .._core.files import write_text_atomically
from ..deploy.jax import export, load
from ..evaluation import Protocol, best_baseline, level_row, strict_json, tune_baselines, write_report
from ..metagrads import Imitate, Replay
from ..optimizers import Adam
from ..problems import describe_family, find_family
from ..training import Curriculum, Recipe, Round, describe, learn_by_curriculum
from .declaration import Budget
from .reproduce import claim
from .study import Study, Task
from .work import evaluate

PLAIN = "paper/mnist"
"""The optimizer that the curriculum starts from, trained on runs of 100 steps."""

_ROUND = Recipe(
    instances=1,
    meta_steps=100,
    meta_learning_rate=3e-3,
    clip=0.1,
    estimator=Imitate(Replay(0.25), Adam()),  # at its default rate, 1e-2
    validation_runs=2,
    final_window=10,
)
CURRICULA: dict[Budget, Curriculum] = {
    "quick": Curriculum(dataclasses.replace(_ROUND, meta_steps=20), horizons=(100, 200), rounds=1, patience=1, runs=2),
    "paper": Curriculum(_ROUND, horizons=(200, 500, 1_000, 2_000), rounds=3, patience=2, runs=2),
}
PROTOCOLS: dict[Budget, Protocol] = {
    "quick": Protocol(500, runs=2, tuning_runs=1, second_order_runs=0, final_window=100, chunk=2),
    "paper": Protocol(10_000, runs=4, tuning_runs=1, second_order_runs=0, final_window=100, chunk=4),
}


def _carry_out(task: Task) -> dict[str, Any]:
    budget, display = task.budget, task.display
    curriculum = CURRICULA[budget]
    recipe = dataclasses.replace(curriculum.recipe, seed=task.seed)
    curriculum = dataclasses.replace(curriculum, recipe=recipe)
    protocol = dataclasses.replace(PROTOCOLS[budget], seed=task.seed)
    settings = dataclasses.asdict(curriculum) | {"recipe": describe(recipe)}
    identity = {"experiment": HORIZON.name, "budget": budget, "seed": task.seed, "data": task.data}
    claim(task.folder, identity | {"curriculum": json.loads(json.dumps(settings))}, task.resume)
    kept = task.folder / "comparison.json"
    if kept.exists():
        results = json.loads(kept.read_text())
        write_report(results, task.folder)
        return results

    def tell(round_: Round) -> None:
        display.say(
            f"stage {round_.stage}, round {round_.round}: trained for {round_.horizon} steps; late loss of runs of"
            f" {round_.judged_by} steps {round_.loss:.4g}",
            "bold" if round_.best else "",
        )

    family = find_family("mnist", data=task.data, split="train")
    plain = load(PLAIN)
    started = time.perf_counter()
    place = task.folder / "curriculum"
    resume = (place / "curriculum.json").exists()
    learned = learn_by_curriculum(
        plain, family, curriculum, folder=place, resume=resume, watch=display.event, tell=tell
    )
    seconds = time.perf_counter() - started
    course = [dataclasses.asdict(round_) for round_ in learned.rounds]
    export(
        learned.optimizer,
        task.folder / "optimizer.safetensors",
        name="paper/mnist-long",
        training={"family": describe_family(family), "curriculum": settings, "started_from": PLAIN},
        validation={"rounds": strict_json(course)},
    )
    results = evaluate(
        {"LSTM": plain, "LSTM, curriculum": learned.optimizer},
        find_family("mnist", data=task.data, split="test"),
        family,
        protocol,
        display,
        title=f"MNIST, {protocol.horizon:,} steps",
        command=task.command,
        tunings=tune_baselines(family, protocol, {"Adam": Adam}, display.phase),
        experiment=HORIZON.name,
    )
    results["configuration"] |= {"data": task.data, "curriculum": settings, "course": course}
    results["seconds"]["meta_training"] = seconds
    label, level = best_baseline(results["optimizers"], "final")
    results["levels"] = [
        level_row(
            f"{row['label']}, mean of the last {protocol.final_window} of {protocol.horizon} updates"
            f" (tuned {label} {level:.4g})",
            None if name == "lstm" else level,
            *(row["final"][key] for key in ("mean", "low", "high")),
        )
        for name, row in results["optimizers"].items()
        if row["kind"] == "learned"
    ]
    results = strict_json(results)
    write_text_atomically(kept, json.dumps(results))
    write_report(results, task.folder)
    return results


HORIZON = Study("horizon", "The LSTM of MNIST run on to 10,000 steps, plain and trained by a curriculum", _carry_out)
