"""Beyond the horizon: what the paper's LSTM does after 100 times the steps that it learned on, and others that last."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from .._core.draws import key_of
from .._core.files import read_json, write_text_atomically
from ..deploy.jax import load
from ..evaluation import Protocol, best_baseline, level_row, strict_json, write_report
from ..metagrads import Clone, Imitate, Replay
from ..optimizers import LSTM, Adam
from ..training import Recipe, describe
from ..workflows.evaluating import evaluate, tune
from ..workflows.work import meta_training_results, train_or_read
from .declaration import Budget
from .study import Study, Task

PLAIN = "paper/mnist"
"""The LSTM of the paper's experiment, learned from what it achieves in runs of 100 steps."""
CLONED, LEARNED = "LSTM, cloned", "LSTM, cloned, then learned"
"""What the others are called in the results."""


def teacher() -> Adam:
    """At the rate that is best for long runs, with a second moment of ten steps: a memory that an LSTM can learn to
    have in runs of a few hundred, and then nothing in what it does depends on how many steps have gone."""
    return Adam(jnp.asarray(5.6e-3), b2=jnp.asarray(0.9))


_CLONING = Recipe(
    horizon=500,
    truncation=500,
    instances=4,
    meta_steps=1_000,
    meta_learning_rate=1e-2,
    warmup=20,
    validate_every=250,
    validation_runs=2,
    final_window=20,
    select="final",
    keep="last",
)
CLONING: dict[Budget, Recipe] = {
    "quick": dataclasses.replace(_CLONING, horizon=200, truncation=200, instances=2, meta_steps=60, validate_every=30),
    "paper": _CLONING,
}
_LEARNING = Recipe(
    horizon=500,
    truncation=20,
    instances=4,
    meta_steps=1_500,
    meta_learning_rate=2e-3,
    clip=0.1,
    validate_every=500,
    validation_runs=2,
    final_window=20,
    keep="last",
)
LEARNING: dict[Budget, Recipe] = {
    "quick": dataclasses.replace(_LEARNING, horizon=200, instances=1, meta_steps=40, validate_every=20),
    "paper": _LEARNING,
}
PROTOCOLS: dict[Budget, Protocol] = {
    "quick": Protocol(500, runs=2, tuning_runs=1, second_order_runs=0, final_window=100, chunk=2, rates=5),
    # 10,000 steps of L-BFGS on all data would take an hour: over 100 and 200 steps it is in `mnist`.
    "paper": Protocol(10_000, runs=20, tuning_runs=1, second_order_runs=0, final_window=100, chunk=4, area_rates=False),
}


def _carry_out(task: Task) -> dict[str, Any]:
    budget, display, folder = task.budget, task.display, task.folder
    cloning = dataclasses.replace(CLONING[budget], estimator=Clone(teacher()), seed=task.seed)
    # A clone begins as slowly as its teacher, and learns from what it achieves to do better. The teacher stays beside
    # it for what comes late, which windows of 20 steps do not show.
    both = Imitate(Replay(0.25), teacher(), weight=0.3, every=4)
    learning = dataclasses.replace(LEARNING[budget], estimator=both, seed=task.seed)
    protocol = dataclasses.replace(PROTOCOLS[budget], seed=task.seed)
    recipes = {"recipe": describe(learning), "cloning": describe(cloning)}
    task.claim(HORIZON, **recipes, protocol=dataclasses.asdict(protocol))
    kept = folder / "comparison.json"
    if kept.exists():
        results = read_json(kept)
        write_report(results, folder)
        return results

    family = task.family("mnist")
    untrained = LSTM(key_of(task.seed), output_scale=0.1, initial_step=0.1)
    clone = train_or_read(untrained, family, cloning, folder / "clone", display, name="paper/mnist-long")
    trained = train_or_read(clone.optimizer, family, learning, folder, display, name="paper/mnist-imitation")
    tunings, seconds = tune(family, protocol, folder, display)
    results = evaluate(
        {"LSTM": load(PLAIN), CLONED: clone.optimizer, LEARNED: trained.optimizer},
        task.family("mnist", "test"),
        family,
        protocol,
        display,
        title=f"MNIST, {protocol.horizon:,} steps",
        command=task.command,
        tunings=tunings,
        experiment=HORIZON.name,
        folder=folder,
        teacher=teacher(),
    )
    results["configuration"] |= {"data": task.data} | recipes
    results["meta_training"] = meta_training_results(trained, learning)
    results["seconds"] |= {"tuning": seconds, "meta_training": clone.best.seconds + trained.best.seconds}
    results["levels"] = levels_of(results["optimizers"], protocol)
    results = strict_json(results)
    write_text_atomically(kept, json.dumps(results))
    write_report(results, folder)
    return results


def levels_of(rows: Mapping[str, Any], protocol: Protocol) -> list[dict[str, Any]]:
    """Hold the LSTMs against the best of the tuned baselines, and not against their teacher."""
    label, best = best_baseline(rows, "final")
    return [
        level_row(
            f"{row['label']}, mean of the last {protocol.final_window} of {protocol.horizon} updates"
            f" (best tuned baseline: {label} {best:.4g})",
            best if name in (CLONED.lower(), LEARNED.lower()) else None,
            *(row["final"][key] for key in ("mean", "low", "high")),
        )
        for name, row in rows.items()
        if row["kind"] == "learned"
    ]


HORIZON = Study("horizon", "The LSTM of MNIST run on to 10,000 steps, and others that imitate Adam", _carry_out)
