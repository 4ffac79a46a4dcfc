"""Beyond the horizon: what the paper's LSTM does after 100 times the steps that it learned on, and one that lasts."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from .._core.files import read_json, write_text_atomically
from ..deploy.jax import load
from ..evaluation import Protocol, best_baseline, level_row, strict_json, write_report
from ..metagrads import Clone
from ..optimizers import LSTM, Adam
from ..problems import find_family
from ..training import Recipe, describe
from ..workflows.folder import Kept
from ..workflows.work import evaluate, meta_training_results, train_or_read, tune
from .declaration import Budget
from .study import Study, Task

PLAIN = "paper/mnist"
"""The LSTM of the paper's experiment, learned from what it achieves in runs of 100 steps."""


def teacher() -> Adam:
    """At the rate that is best for long runs, with a second moment of ten steps: a memory that an LSTM can learn to
    have in runs of a few hundred, and then nothing in what it does depends on how many steps have gone."""
    return Adam(jnp.asarray(5.6e-3), b2=jnp.asarray(0.9))


_PAPER = Recipe(
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
RECIPES: dict[Budget, Recipe] = {
    "quick": dataclasses.replace(_PAPER, horizon=200, truncation=200, instances=2, meta_steps=60, validate_every=30),
    "paper": _PAPER,
}
PROTOCOLS: dict[Budget, Protocol] = {
    "quick": Protocol(500, runs=2, tuning_runs=1, second_order_runs=0, final_window=100, chunk=2, rates=5),
    # 10,000 steps of L-BFGS on all data would take an hour: over 100 and 200 steps it is in `mnist`.
    "paper": Protocol(10_000, runs=20, tuning_runs=1, second_order_runs=0, final_window=100, chunk=4, area_rates=False),
}


def _carry_out(task: Task) -> dict[str, Any]:
    budget, display, folder = task.budget, task.display, task.folder
    recipe = dataclasses.replace(RECIPES[budget], estimator=Clone(teacher()), seed=task.seed)
    protocol = dataclasses.replace(PROTOCOLS[budget], seed=task.seed)
    task.claim(HORIZON, recipe=describe(recipe), protocol=dataclasses.asdict(protocol))
    kept = folder / "comparison.json"
    if kept.exists():
        results = read_json(kept)
        write_report(results, folder)
        return results

    family = find_family("mnist", data=task.data, split="train")
    untrained = LSTM(jax.random.key(task.seed), output_scale=0.1, initial_step=0.1)
    trained = train_or_read(untrained, family, recipe, folder, display, name="paper/mnist-long")
    tunings, seconds = tune(family, protocol, folder, display)
    results = evaluate(
        {"LSTM": load(PLAIN), "LSTM, cloned": trained.optimizer},
        find_family("mnist", data=task.data, split="test"),
        family,
        protocol,
        display,
        title=f"MNIST, {protocol.horizon:,} steps",
        command=task.command,
        tunings=tunings,
        experiment=HORIZON.name,
        kept=Kept(folder / "optimizers.json"),
        teacher=teacher(),
    )
    results["configuration"] |= {"data": task.data, "recipe": describe(recipe)}
    results["meta_training"] = meta_training_results(trained, recipe)
    results["seconds"] |= {"tuning": seconds, "meta_training": trained.best.seconds}
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
            best if name == "lstm, cloned" else None,
            *(row["final"][key] for key in ("mean", "low", "high")),
        )
        for name, row in rows.items()
        if row["kind"] == "learned"
    ]


HORIZON = Study("horizon", "The LSTM of MNIST run on to 10,000 steps, and one that is cloned from Adam", _carry_out)
