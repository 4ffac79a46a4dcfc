"""What an LSTM that is learned on sigmoid networks needs in order not to fail on ReLU networks: an ablation."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .._core.draws import key_of
from .._core.types import PRNGKeyArray
from ..deploy.jax import export, load
from ..evaluation import Protocol, Sheet, best_baseline, number
from ..metagrads import Estimator, Imitate, Replay
from ..optimizers import LSTM, Adam, Optimizer, RNNprop
from ..problems import ProblemFamily, RandomScale, describe_family
from ..training import Curriculum, Recipe, describe, learn_by_curriculum
from ..workflows.work import train_or_read
from .declaration import Budget
from .study import Study, Task

LEARNED_ON = "mnist"
USED_ON = {"sigmoid": "mnist", "ReLU": "mnist-relu", "two layers": "mnist-2-layers"}
"""Families of the same networks: the one learned on, another activation, another depth."""


@dataclasses.dataclass(frozen=True)
class Repair:
    """A way to meta-train: the optimizer, what is done to the family, the estimator, and the horizons of a curriculum.

    All spend the same number of meta-steps.
    """

    build: Callable[[PRNGKeyArray], Optimizer]
    change: Callable[[ProblemFamily], ProblemFamily] = lambda family: family
    estimator: Callable[[], Estimator] = lambda: Replay(0.25)
    horizons: tuple[int, ...] | None = None


def _lstm(key: PRNGKeyArray) -> Optimizer:
    return LSTM(key, output_scale=0.1, initial_step=0.3)


def _rnnprop(key: PRNGKeyArray) -> Optimizer:
    return RNNprop(key, output_scale=0.1, initial_step=0.1)


def _taught() -> Imitate:
    return Imitate(Replay(0.25), Adam())  # at its default rate, 1e-2


_GROWING = (20, 60, 100, 200)
"""Three stages; the last horizon is to be judged by only."""

REPAIRS: dict[str, Repair] = {
    "LSTM": Repair(_lstm),
    "LSTM+scaling": Repair(_lstm, RandomScale),
    "LSTM+imitation": Repair(_lstm, estimator=_taught),
    "LSTM+curriculum": Repair(_lstm, horizons=_GROWING),
    "RNNprop": Repair(_rnnprop),
    "RNNprop+scaling": Repair(_rnnprop, RandomScale),
    "RNNprop+all": Repair(_rnnprop, RandomScale, _taught, _GROWING),
}
"""The paper's LSTM as it is, in random units, with imitation of Adam, with growing horizons; RNNprop, whose inputs do
not know the scale of gradients and whose steps are bounded, as it is, in random units, and with all of it."""

_RECIPE = Recipe(
    instances=1, meta_steps=60, clip=0.1, estimator=Replay(0.25), validate_every=20, validation_runs=4, final_window=5
)
RECIPES: dict[Budget, Recipe] = {
    "quick": _RECIPE,
    "paper": dataclasses.replace(_RECIPE, meta_steps=1_200, validate_every=200, validation_runs=8),
}
PROTOCOLS: dict[Budget, Protocol] = {
    "quick": Protocol(100, runs=4, tuning_runs=1, second_order_runs=0, final_window=5, chunk=4),
    "paper": Protocol(100, runs=64, tuning_runs=4, second_order_runs=0, final_window=5, chunk=4),
}


def _carry_out(task: Task) -> dict[str, Any]:
    recipe = dataclasses.replace(RECIPES[task.budget], seed=task.seed)
    protocol = dataclasses.replace(PROTOCOLS[task.budget], seed=task.seed)
    task.claim(REPAIRED, recipe=json.loads(json.dumps(describe(recipe))))
    trained = {
        label: _train(label, repair, recipe, task.folder / f"{number}", task)
        for number, (label, repair) in enumerate(REPAIRS.items())
    }
    compared = {}
    for setting, name in USED_ON.items():
        fresh, seen = (task.family(name, split) for split in ("test", "train"))
        title = f"Learned on one layer of 20 sigmoid units, used with {setting}"
        compared[setting] = task.compare(setting, trained, fresh, seen, protocol, title)
    results = {
        "final": {setting: finals(found["optimizers"]) for setting, found in compared.items()},
        "levels": [],
        "recipe": describe(recipe),
    }
    statement = (
        f"Meta-trained on the paper's sigmoid network alone, {recipe.meta_steps} meta-steps each, one seed; final loss"
        f" after {protocol.horizon} steps, mean of {protocol.runs} runs with its 95 % interval. Beside each: the ratio"
        " to the best baseline, tuned for the setting. Scaling: coordinates in random units (Lv et al., 2017)."
        " Imitation: of Adam. Curriculum: of horizons (Chen et al., 2020). RNNprop: inputs without a scale, bounded"
        " steps. All: all three."
    )
    headings = ("trained how", *(text for setting in USED_ON for text in (setting, "to the best baseline")))
    return task.finish(REPAIRED, results, statement, [Sheet("Final losses", headings, rows_of(results["final"]))])


def _train(label: str, repair: Repair, recipe: Recipe, folder: Path, task: Task) -> Optimizer:
    """Meta-train in one of the ways, or read what an earlier run has trained."""
    kept = folder / "optimizer.safetensors"
    if kept.exists():
        return load(kept)
    task.display.say(label, "bold")
    family = repair.change(task.family(LEARNED_ON))
    recipe = dataclasses.replace(recipe, estimator=repair.estimator())
    optimizer, name = repair.build(key_of(task.seed)), f"repairs/{folder.name}"
    if repair.horizons is None:
        return train_or_read(optimizer, family, recipe, folder, task.display, name=name).optimizer
    stages = len(repair.horizons) - 1
    part = dataclasses.replace(recipe, meta_steps=recipe.meta_steps // stages)
    curriculum = Curriculum(part, repair.horizons, rounds=1, patience=1, runs=recipe.validation_runs)
    resume = (folder / "curriculum.json").exists()
    done = learn_by_curriculum(optimizer, family, curriculum, folder=folder, resume=resume, watch=task.display.event)
    training = {"family": describe_family(family), "recipe": describe(part), "horizons": list(repair.horizons)}
    export(done.optimizer, kept, name=name, training=training, validation={})
    return done.optimizer


def finals(rows: dict[str, Any]) -> dict[str, Any]:
    """Return the final losses of all learned optimizers by label, and that of the best baseline under its own."""
    label, best = best_baseline(rows, "final")
    found = {row["label"]: row["final"] for row in rows.values() if row["kind"] == "learned"}
    return found | {"best baseline": {"label": label, "mean": best}}


def rows_of(found: dict[str, dict[str, Any]]) -> tuple[tuple[str, ...], ...]:
    """Write a row for every way of training and one for the baselines: a loss and a ratio for every setting."""

    def cells(label: str) -> tuple[str, ...]:
        texts: list[str] = []
        for losses in found.values():
            mean, best = losses[label]["mean"], losses["best baseline"]["mean"]
            if label == "best baseline":
                texts += [f"{number(mean)} ({losses[label]['label']})", "1.00"]
            elif mean is None:
                texts += ["diverges", "–"]
            else:
                interval = f" [{number(losses[label]['low'])}, {number(losses[label]['high'])}]"
                texts += [number(mean) + interval, f"{mean / best:.2f}"]
        return tuple(texts)

    return tuple((label, *cells(label)) for label in next(iter(found.values())))


REPAIRED = Study("relu", "What an LSTM of sigmoid networks needs on ReLU networks: an ablation", _carry_out)
