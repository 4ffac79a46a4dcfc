"""The variations of appendix D: do coordinates that communicate, or share a memory, learn more than an LSTM?"""

import dataclasses
import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from .._core.types import PRNGKeyArray
from ..evaluation import (
    Protocol,
    best_baseline,
    bootstrap_mean,
    compare_bfgs,
    final,
    level_row,
    run_curves,
    write_report,
)
from ..metagrads import Backprop, Replay
from ..optimizers import LSTM, GlobalLSTM, MemoryLSTM, Optimizer, Scaled, Window
from ..problems import ProblemFamily, find_family
from ..training import Recipe, describe, is_begun
from .declaration import Budget
from .study import Study, Task
from .work import evaluate, finished, meta_training_results, train

Build = Callable[[PRNGKeyArray], Optimizer]

_RAW: dict[str, Any] = {"preprocess": Scaled(), "output_scale": 0.1, "initial_step": 0.3}
_NETWORK: dict[str, Any] = {"output_scale": 0.1, "initial_step": 0.3}


@dataclasses.dataclass(frozen=True)
class Contest:
    """Learned optimizers that are trained alike, by one recipe, and compared on the same fresh instances.

    `contenders`: how to build each of them, by label. `bfgs`: whether the problem is small enough for full BFGS.
    """

    name: str
    title: str
    family: str
    contenders: Mapping[str, Build]
    recipes: Mapping[Budget, Recipe]
    protocols: Mapping[Budget, Protocol]
    bfgs: bool = False


_QUADRATIC = Recipe(
    instances=16,
    meta_steps=200,
    clip=0.1,
    estimator=Backprop(second_derivatives=True),
    validate_every=50,
    validation_runs=512,
    select="final",
)
_MNIST = Recipe(
    instances=1,
    meta_steps=60,
    clip=0.1,
    estimator=Replay(),
    validate_every=20,
    validation_runs=4,
    final_window=5,
)

QUADRATICS = Contest(
    name="quadratic",
    title="The variations on 10-dimensional quadratics",
    family="quadratic",
    contenders={
        "LSTM": lambda key: LSTM(key, **_RAW),
        "LSTM+GAC": lambda key: GlobalLSTM(key, **_RAW),
        "NTM-BFGS": lambda key: MemoryLSTM(key, **_RAW),
        "NTM-L-BFGS": lambda key: MemoryLSTM(key, memory=Window(10), **_RAW),
    },
    recipes={
        "quick": _QUADRATIC,
        "paper": dataclasses.replace(
            _QUADRATIC, instances=32, meta_steps=2_000, validate_every=200, validation_runs=2_048
        ),
    },
    protocols={
        "quick": Protocol(100, runs=512, tuning_runs=512, second_order_runs=64, chunk=512),
        "paper": Protocol(100, runs=4_096, tuning_runs=4_096, second_order_runs=256, chunk=512),
    },
    bfgs=True,
)
MNIST = Contest(
    name="mnist",
    title="The variations on MNIST",
    family="mnist",
    contenders={
        "LSTM": lambda key: LSTM(key, **_NETWORK),
        "LSTM+GAC": lambda key: GlobalLSTM(key, **_NETWORK),
        "NTM-L-BFGS": lambda key: MemoryLSTM(key, memory=Window(5), **_NETWORK),
    },
    recipes={"quick": _MNIST, "paper": dataclasses.replace(_MNIST, meta_steps=500, validate_every=50)},
    protocols={
        "quick": Protocol(100, runs=4, tuning_runs=2, second_order_runs=2, final_window=5, chunk=4),
        "paper": Protocol(100, runs=32, tuning_runs=4, second_order_runs=4, final_window=5, chunk=4),
    },
)


def _carry_out(task: Task) -> dict[str, Any]:
    contests = (QUADRATICS,) if task.budget == "quick" else (QUADRATICS, MNIST)
    recipes = {contest.name: describe(contest.recipes[task.budget]) for contest in contests}
    task.claim(VARIATIONS, recipes=recipes)
    main, *others = (hold(contest, task, task.folder / contest.name) for contest in contests)
    main["levels"] += [level for results in others for level in results["levels"]]
    write_report(main, task.folder)
    return main


def hold(contest: Contest, task: Task, folder: Path) -> dict[str, Any]:
    """Train the contenders of a contest, compare them, and return the results, also from an earlier run."""
    path = folder / "results.json"
    if path.exists():
        return json.loads(path.read_text())
    recipe = dataclasses.replace(contest.recipes[task.budget], seed=task.seed)
    protocol = dataclasses.replace(contest.protocols[task.budget], seed=task.seed)
    family = find_family(contest.family, data=task.data, split="train")
    trained, courses = {}, {}
    for label, build in contest.contenders.items():
        task.display.say(f"{contest.title}: {label}")
        name = label.lower().replace("+", "-")
        place = folder / name
        resume = is_begun(place / "metatraining")
        untrained, name = build(jax.random.key(task.seed)), f"paper/{contest.name}-{name}"
        outcome = finished(place) or train(untrained, family, recipe, place, task.display, name=name, resume=resume)
        trained[label], courses[label] = outcome.optimizer, meta_training_results(outcome, recipe)
    fresh = find_family(contest.family, data=task.data, split="test")
    results = evaluate(
        trained,
        fresh,
        family,
        protocol,
        task.display,
        title=contest.title,
        command=task.command,
        experiment=contest.name,
    )
    if contest.bfgs:
        results["optimizers"]["bfgs"] = compare_bfgs(fresh, protocol, task.display.phase)
    results["configuration"] |= {"data": task.data, "recipe": describe(recipe), "meta_training": courses}
    results["levels"] = differences(trained, fresh, protocol, contest.title, results)
    write_report(results, folder)
    return results


def differences(
    trained: Mapping[str, Optimizer], family: ProblemFamily, protocol: Protocol, title: str, results: dict[str, Any]
) -> list[dict[str, Any]]:
    """Compare the final losses of every two contenders, run by run on the same instances.

    A difference counts as reached, the later contender as better, if all of its interval lies below zero; a contender,
    if all of its interval lies below the best tuned baseline.
    """
    finals = {}
    for label, optimizer in trained.items():
        curves, _ = run_curves(
            optimizer,
            family,
            protocol.keys[1],
            horizon=protocol.horizon,
            runs=protocol.runs,
            chunk=protocol.chunk,
        )
        finals[label] = final(curves, protocol.final_window)
    baseline, level = best_baseline(results["optimizers"], "final")
    rows = [
        level_row(
            f"{title}: final loss of {label} (best tuned baseline: {baseline} {level:.4g})",
            level,
            *bootstrap_mean(values),
            sure=True,
        )
        for label, values in finals.items()
    ]
    for one, other in itertools.combinations(finals, 2):
        with np.errstate(invalid="ignore"):
            difference = bootstrap_mean(finals[other] - finals[one])
        what = f"{title}: final loss of {other} minus that of {one}, run by run"
        rows.append(level_row(what, 0.0, *difference, sure=True))
    return rows


VARIATIONS = Study("variations", "LSTM, LSTM+GAC, NTM-BFGS and NTM-L-BFGS, trained alike", _carry_out)
