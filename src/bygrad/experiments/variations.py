"""The variations of appendix D: do coordinates that communicate, or share a memory, learn more than an LSTM?"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from .._core.draws import key_of
from .._core.types import PRNGKeyArray
from ..artifacts import load as load_artifact
from ..deploy.jax import export, from_artifact
from ..evaluation import (
    Interval,
    Protocol,
    area,
    best_baseline,
    bootstrap_mean,
    compare_bfgs,
    final,
    level_row,
    loss_of,
    run_curves,
    strict_json,
    write_report,
)
from ..metagrads import Backprop, Replay
from ..optimizers import LSTM, GlobalLSTM, MemoryLSTM, Optimizer, Scaled, Window
from ..problems import ProblemFamily
from ..training import Recipe, describe
from ..workflows.evaluating import evaluate
from ..workflows.folder import reported
from ..workflows.work import meta_training_results, slug, train_seeds
from .declaration import Budget
from .study import Study, Task

Build = Callable[[PRNGKeyArray], Optimizer]

LOST = Interval(math.nan, math.nan, math.nan)

_RAW: dict[str, Any] = {"preprocess": Scaled(), "output_scale": 0.1, "initial_step": 0.3}
_NETWORK: dict[str, Any] = {"output_scale": 0.1, "initial_step": 0.3}


@dataclasses.dataclass(frozen=True)
class Contest:
    """Learned optimizers that are trained alike, by one recipe, and compared on the same fresh instances.

    `contenders`: how to build each of them, by label. `trainings`: how often each is trained, from seeds of its own.
    `bfgs`: whether the problem is small enough for full BFGS.
    """

    name: str
    title: str
    family: str
    contenders: Mapping[str, Build]
    recipes: Mapping[Budget, Recipe]
    protocols: Mapping[Budget, Protocol]
    trainings: Mapping[Budget, int]
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
            _QUADRATIC, instances=32, meta_steps=4_000, validate_every=200, validation_runs=2_048
        ),
    },
    protocols={
        "quick": Protocol(100, runs=512, tuning_runs=512, second_order_runs=64, chunk=512),
        "paper": Protocol(100, runs=4_096, tuning_runs=4_096, second_order_runs=256, chunk=512),
    },
    trainings={"quick": 1, "paper": 3},
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
    trainings={"quick": 1, "paper": 1},
)


def _carry_out(task: Task) -> dict[str, Any]:
    contests = (QUADRATICS,) if task.budget == "quick" else (QUADRATICS, MNIST)
    recipes = {contest.name: describe(contest.recipes[task.budget]) for contest in contests}
    task.claim(VARIATIONS, recipes=recipes, trainings={it.name: it.trainings[task.budget] for it in contests})
    main, *others = (hold(contest, task, task.folder / contest.name) for contest in contests)
    main["levels"] += [level for results in others for level in results["levels"]]
    write_report(main, task.folder)
    return main


def hold(contest: Contest, task: Task, folder: Path) -> dict[str, Any]:
    """Train the contenders of a contest, compare them, and return the results, also from an earlier run.

    Of the trainings of a contender, the report holds the best against the baselines, judged on the instances that
    these were tuned on. It is kept in a folder of the contender's name.
    """
    if (results := reported(folder)) is not None:
        return results
    recipe, protocol = contest.recipes[task.budget], dataclasses.replace(contest.protocols[task.budget], seed=task.seed)
    family = task.family(contest.family)
    trained, best, courses = {}, {}, {}
    for label, build in contest.contenders.items():
        name, place = f"paper/{contest.name}-{slug(label)}", folder / slug(label)
        seeds = range(task.seed, task.seed + contest.trainings[task.budget])
        start = lambda seed, build=build: build(key_of(seed))  # noqa: E731
        outcomes = dict(train_seeds(start, family, recipe, seeds, place, task.display, name=name))
        trained[label] = [outcome.optimizer for outcome in outcomes.values()]
        # Their own validations are on instances of their own seeds, and so not to be compared.
        curves = all_curves(trained[label], family, protocol.keys[0], protocol.tuning_runs, protocol)
        losses = final(curves, protocol.final_window) if recipe.select == "final" else area(curves)
        scores = dict(zip(outcomes, map(float, losses.mean(1)), strict=True))
        choice = keep_best(name, scores, task, place)
        chosen = outcomes[choice["chosen_seed"]]
        best[label], courses[label] = chosen.optimizer, meta_training_results(chosen, recipe) | choice
    fresh = task.family(contest.family, "test")
    results = evaluate(
        best,
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


def keep_best(name: str, scores: Mapping[int, float], task: Task, place: Path) -> dict[str, Any]:
    """Export the best of the trainings of a contender, and return the scores `by_seed` and the `chosen_seed`."""
    chosen = min(scores, key=lambda seed: loss_of(scores[seed]))
    artifact = load_artifact(place / f"seed-{chosen}" / "optimizer.safetensors")
    manifest = artifact.manifest
    command = f"bygrad reproduce {VARIATIONS.name} --budget {task.budget} --data {task.data} --seed {task.seed}"
    by_seed = strict_json({str(seed): score for seed, score in scores.items()})
    export(
        from_artifact(artifact),
        place / "optimizer.safetensors",
        name=name,
        training=manifest.training | {"command": command, "seeds": list(scores), "chosen_seed": chosen},
        validation=manifest.validation | {"by_seed": by_seed},
    )
    return {"by_seed": by_seed, "chosen_seed": chosen}


def differences(
    trained: Mapping[str, Sequence[Optimizer]],
    family: ProblemFamily,
    protocol: Protocol,
    title: str,
    results: dict[str, Any],
) -> list[dict[str, Any]]:
    """Compare the final losses of every two contenders, over all trainings, on the same instances.

    A difference counts as reached, the later contender as better, if all of its interval lies below zero; a contender,
    if all of its interval lies below the best tuned baseline.
    """
    finals = {}
    for label, optimizers in trained.items():
        curves = all_curves(optimizers, family, protocol.keys[1], protocol.runs, protocol)
        finals[label] = final(curves, protocol.final_window)
    baseline, level = best_baseline(results["optimizers"], "final")
    rows = []
    for label, values in finals.items():
        means = values.mean(1)
        trainings = f", {len(means)} trainings, {min(means):.4g} to {max(means):.4g}" if len(means) > 1 else ""
        what = f"{title}: final loss of {label}{trainings} (best tuned baseline: {baseline} {level:.4g})"
        rows.append(level_row(what, level, *mean_over_trainings(values), sure=True))
    for one, other in itertools.combinations(finals, 2):
        what = f"{title}: final loss of {other} minus that of {one}, pair by pair"
        rows.append(level_row(what, 0.0, *difference_over_trainings(finals[other], finals[one]), sure=True))
    return rows


def all_curves(
    optimizers: Sequence[Optimizer], family: ProblemFamily, key: PRNGKeyArray, runs: int, protocol: Protocol
) -> Float[np.ndarray, "trainings runs steps"]:
    """Run all of them on the same instances."""
    curves = [
        run_curves(it, family, key, horizon=protocol.horizon, runs=runs, chunk=protocol.chunk)[0] for it in optimizers
    ]
    return np.stack(curves)


def mean_over_trainings(losses: Float[np.ndarray, "trainings runs"]) -> Interval:
    """Return the mean and its 95 % interval over trainings (Student's): runs say nothing of how another training would
    end. Of a single training, the interval is one over runs. Where a run is lost, so is the mean: NaN."""
    from scipy.stats import ttest_1samp  # half a second that no other command needs

    if len(losses) == 1:
        return bootstrap_mean(losses[0])
    if not np.all(np.isfinite(losses)):
        return LOST
    means = losses.mean(1)
    return Interval(float(means.mean()), *map(float, ttest_1samp(means, 0.0).confidence_interval()))


def difference_over_trainings(
    losses: Float[np.ndarray, "trainings runs"], than: Float[np.ndarray, "trainings runs"]
) -> Interval:
    """Return the mean of `losses` minus that of others on the same instances, and its 95 % interval over trainings,
    pair by pair (Student's): with the same seed, both have met the same problems in the same order. Of a single
    training each, the interval is one over runs. Where a run is lost, so is the mean: NaN."""
    with np.errstate(invalid="ignore"):
        return mean_over_trainings(losses - than)


VARIATIONS = Study("variations", "LSTM, LSTM+GAC, NTM-BFGS and NTM-L-BFGS, trained alike", _carry_out)
