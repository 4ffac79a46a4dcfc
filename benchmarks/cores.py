"""Meta-steps per second where cores share the instances of a meta-step, and where they share single operations.

    python benchmarks/cores.py [--rounds 3] [--quick] [--json FILE]

`bygrad train` and `bygrad specialize` make a device of every core, among which instances divide; a Python process has
one device for all cores, unless it asks for more. Each measurement is a process of its own, and the two kinds take
turns. The controllers learn as in `bygrad specialize`, over 400 steps; the LSTM as in the experiment of that name.
Seconds are those between meta-steps, without compiling.
"""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
from typing import Any

import jax
from _common import parser, show, write_record

from bygrad._core.hosts import usable_cores
from bygrad.deploy.jax import load
from bygrad.experiments import EXPERIMENTS
from bygrad.optimizers import Optimizer
from bygrad.problems import ProblemFamily, find_family
from bygrad.training import Recipe, Stepped, meta_train
from bygrad.workflows.plan import choose_recipe
from bygrad.workflows.specialize import PRETRAINED

CASES = {"digits": 300, "mnist": 60, "digits-conv": 40, "quadratic": 100}
"""Meta-steps of a measurement, by family; the first fifth is not timed."""


def setting(name: str) -> tuple[Optimizer, ProblemFamily, Recipe]:
    """Return what is meta-trained, on what, and how."""
    if name == "quadratic":
        experiment = EXPERIMENTS[name]
        family = find_family(experiment.training_family)
        return experiment.optimizer(jax.random.key(0)), family, experiment.recipe("quick")
    family = find_family(name)
    return load(PRETRAINED), family, choose_recipe(400, 90.0, 0, "training", family)


def worker(name: str, steps: int) -> None:
    """Meta-train in this process, and print the meta-steps per second."""
    optimizer, family, recipe = setting(name)
    recipe = dataclasses.replace(recipe, meta_steps=steps, seconds=None, validate_every=steps)
    log = meta_train(optimizer, family, recipe, watch=lambda event: None).log
    seconds = [event.seconds for event in log.of(Stepped)][steps // 5 :]
    print(json.dumps((len(seconds) - 1) / (seconds[-1] - seconds[0])))


def measure(name: str, steps: int, devices: int) -> float:
    """Run `worker` in a new process with so many devices."""
    command = [sys.executable, __file__, "--worker", name, str(steps)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    return json.loads(subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout)


def main() -> None:
    """Measure, print and record."""
    command = parser(__doc__)
    command.add_argument("--rounds", type=int, default=3, help="measurements of each, of which the medians count")
    command.add_argument("--worker", nargs=2)
    options = command.parse_args()
    if options.worker:
        worker(options.worker[0], int(options.worker[1]))
        return
    cases = {"digits": 10} if options.quick else CASES
    cores, rows = usable_cores(), []
    for name, steps in cases.items():
        rounds = [
            {devices: measure(name, steps, devices) for devices in (1, cores)}
            for _ in range(1 if options.quick else options.rounds)
        ]
        one, each = (statistics.median(it[devices] for it in rounds) for devices in (1, cores))
        ratios = sorted(it[cores] / it[1] for it in rounds)
        row: dict[str, Any] = {"family": name, "meta_steps_per_second": {"one device": one, "one a core": each}}
        rows.append(row | {"ratio": each / one, "ratios": ratios})
    show(
        f"Meta-steps per second on {cores} cores",
        [
            {
                "family": row["family"],
                **{name: f"{rate:.3g}" for name, rate in row["meta_steps_per_second"].items()},
                "ratio": f"{row['ratio']:.2f} ({row['ratios'][0]:.2f} to {row['ratios'][-1]:.2f})",
            }
            for row in rows
        ],
    )
    write_record(options.json, {"rows": rows})


if __name__ == "__main__":
    main()
