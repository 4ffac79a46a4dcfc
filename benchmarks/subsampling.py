"""How many coordinates should a replay look at? Progress of meta-training, at equal meta-steps and at equal time.

    python benchmarks/subsampling.py [--shares 1 0.5 0.25 0.1] [--seeds 3] [--quick] [--json FILE]

Meta-trains the paper's LSTM on the small network on MNIST, with meta-gradients from all coordinates and from random
parts of them, by the quick recipe of `bygrad reproduce mnist` but for the meta-steps: once all take as many, once all
have the same seconds, compilation not included. What counts is the area, the sum of the losses before each of 100
updates, on held-out runs that are the same for all. Throughput alone would always choose the smallest part; a part is
the better default only if it learns more in the same time.
"""

import dataclasses
import statistics
from typing import Any

import jax
import numpy as np
from _common import console, parser, show, write_record

from bygrad.evaluation import area, run_curves
from bygrad.experiments import EXPERIMENTS
from bygrad.metagrads import Replay
from bygrad.problems import ProblemFamily, find_family
from bygrad.training import Recipe, Stepped, meta_train

MNIST = EXPERIMENTS["mnist"]


def learn(share: float, seed: int, family: ProblemFamily, recipe: Recipe, runs: int) -> dict[str, Any]:
    """Meta-train once; return how it went."""
    recipe = dataclasses.replace(recipe, estimator=Replay(share), seed=seed)
    warm = dataclasses.replace(recipe, meta_steps=2, seconds=None)
    optimizer = MNIST.optimizer(jax.random.key(seed))
    meta_train(optimizer, family, warm)  # compiles
    trained = meta_train(optimizer, family, recipe)
    steps = trained.log.of(Stepped)
    curves, _ = run_curves(trained.optimizer, family, jax.random.key(0x5B), horizon=recipe.horizon, runs=runs, chunk=4)
    return {"seed": seed, "area": float(np.mean(area(curves))), "meta_steps": len(steps), "seconds": steps[-1].seconds}


def summary(share: float, budget: str, found: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and range over the seeds."""
    areas = [one["area"] for one in found]
    return {
        "share": share,
        "budget": budget,
        "mean_area": statistics.mean(areas),
        "least": min(areas),
        "most": max(areas),
        "meta_steps": statistics.mean(one["meta_steps"] for one in found),
        "seconds": statistics.mean(one["seconds"] for one in found),
        "seeds": found,
    }


def main() -> None:
    """Measure and print."""
    command = parser(__doc__)
    command.add_argument("--shares", type=float, nargs="+", default=[1.0, 0.5, 0.25, 0.1], metavar="SHARE")
    command.add_argument("--seeds", type=int, default=3)
    command.add_argument("--meta-steps", type=int, default=200)
    command.add_argument("--seconds", type=float, default=30.0)
    command.add_argument("--runs", type=int, default=32, help="held-out runs to judge by")
    command.add_argument("--data", default="mnist", help="as in `bygrad train`")
    options = command.parse_args()
    if options.quick:
        options.seeds, options.meta_steps, options.seconds, options.runs = 1, 4, 1.0, 2

    family = find_family(MNIST.settings[0].family, data=options.data, split="train")
    # Validated at the end only: what is compared is where meta-training ends, not the best of several looks.
    recipe = dataclasses.replace(MNIST.recipes["quick"], validation_runs=1, validate_every=10**6)
    budgets = {
        f"{options.meta_steps} meta-steps": dataclasses.replace(recipe, meta_steps=options.meta_steps),
        f"{options.seconds:g} seconds": dataclasses.replace(recipe, meta_steps=10**6, seconds=options.seconds),
    }
    rows = []
    for budget, limited in budgets.items():
        for share in options.shares:
            found = [learn(share, seed, family, limited, options.runs) for seed in range(options.seeds)]
            rows.append(summary(share, budget, found))
            console.print(f"{budget}, {share:.0%} of the coordinates: area {rows[-1]['mean_area']:.1f}")
            write_record(options.json, {"rows": rows})
    cells = [
        {
            "budget": row["budget"],
            "coordinates": f"{row['share']:.0%}",
            "area, mean": f"{row['mean_area']:.1f}",
            "range": f"{row['least']:.1f} - {row['most']:.1f}",
            "meta-steps": f"{row['meta_steps']:.0f}",
            "seconds": f"{row['seconds']:.1f}",
        }
        for row in rows
    ]
    show(f"area on {options.runs} held-out runs after meta-training, {options.seeds} seeds", cells)


if __name__ == "__main__":
    main()
