"""Seconds from nothing to a learned optimizer of a given level, on the small network and MNIST of the paper.

    python benchmarks/time_to_level.py [--seeds 5] [--levels 66 55 48] [--data mnist] [--quick] [--json FILE]

Each seed is a process of its own that meta-trains from fresh weights, by the quick recipe of `bygrad reproduce mnist`.
The clock runs from the start of that process: imports, data and compilation are in it (JAX's persistent cache is off).
Every few meta-steps the optimizer is validated: its area, the sum of the losses before each of 100 updates, on
held-out runs. A level counts as reached at the first validation at or below it, since meta-training keeps the optimizer
that validated best; later validations may be worse again. The seconds that validations took to run are reported apart:
they depend on how often one looks, and learning does not need them.

"the best baseline" is the area of the best hand-designed optimizer (SGD, Nesterov, RMSprop, Adam, AdamW), tuned for the
area and run on fresh runs of the same problems. Its tuning happens beforehand and is not counted.
"""

import dataclasses
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
from _common import console, parser, show, write_record

from bygrad.evaluation import Protocol, best_baseline, compare, tune_baselines
from bygrad.experiments import EXPERIMENTS
from bygrad.optimizers import PAPER_BASELINES
from bygrad.problems import find_family
from bygrad.training import Event, Planned, Stepped, Validated, meta_train

MNIST = EXPERIMENTS["mnist"]
SETTING = MNIST.settings[0]


def learn(options: Any) -> None:
    """Meta-train in this process; print a line of JSON for every validation, and one when everything is compiled."""
    recipe = dataclasses.replace(
        MNIST.recipes["quick"],
        seed=options.learn,
        validate_every=options.every,
        validation_runs=options.validation_runs,
    )
    if options.meta_steps:
        recipe = dataclasses.replace(recipe, meta_steps=options.meta_steps)
    before, validating = 0.0, 0.0

    def watch(event: Event) -> None:
        nonlocal before, validating
        if isinstance(event, Validated):
            # A validation follows at once on the event before it.
            validating += event.seconds - before
            # JSON knows finite numbers only, and one this large reaches no level either.
            area = event.area if math.isfinite(event.area) else sys.float_info.max
            tell("validated", step=event.step, area=area, validating=validating)
        elif isinstance(event, Planned):
            tell("compiled", seconds=event.compile_seconds)
        elif isinstance(event, Stepped) and event.step == 1:
            tell("first meta-step", validating=validating)
        before = event.seconds

    def tell(what: str, **fields: Any) -> None:
        print(json.dumps({"what": what, **fields}), flush=True)

    family = find_family(SETTING.family, data=options.data, split="train")
    meta_train(MNIST.optimizer(jax.random.key(options.learn)), family, recipe, watch=watch)


def lines_of(seed: int) -> Iterator[dict[str, Any]]:
    """Run `learn` in a new process; yield what it tells, with the seconds since the process was started."""
    started = time.perf_counter()
    command = [sys.executable, __file__, *sys.argv[1:], "--learn", str(seed)]
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                yield {**json.loads(line), "clock": time.perf_counter() - started}
            if process.wait():
                raise SystemExit(f"Meta-training with seed {seed} ended with exit status {process.returncode}.")
        finally:
            process.kill()  # of no effect on a process that has ended


def course_of(seed: int, lowest: float) -> dict[str, Any]:
    """Follow one meta-training until it reaches the lowest level or ends."""
    course: dict[str, Any] = {"seed": seed, "compile_seconds": None, "first_step_seconds": None, "validations": []}
    for line in lines_of(seed):
        match line["what"]:
            case "compiled":
                course["compile_seconds"] = line["seconds"]
            case "first meta-step":
                course["first_step_seconds"] = line["clock"] - line["validating"]
            case "validated":
                seconds = line["clock"] - line["validating"]
                point = {name: line[name] for name in ("step", "area", "validating")}
                course["validations"].append(point | {"seconds": seconds})
                console.print(f"seed {seed}, meta-step {line['step']}, {seconds:.1f} s: area {line['area']:.1f}")
                if line["area"] <= lowest:
                    break
    return course


def baseline_level(options: Any) -> tuple[str, float]:
    """Tune the hand-designed optimizers; return the best one and its area on fresh runs."""
    family = find_family(SETTING.family, data=options.data, split="train")
    runs, tuning_runs = (2, 1) if options.quick else (64, 8)
    protocol = Protocol(
        SETTING.horizon,
        runs=runs,
        tuning_runs=tuning_runs,
        second_order_runs=0,
        final_window=SETTING.final_window,
        chunk=4,
    )
    kinds = {"Adam": PAPER_BASELINES["Adam"]} if options.quick else PAPER_BASELINES
    return best_baseline(compare({}, tune_baselines(family, protocol, kinds), family, protocol), "area")


def summary_of(name: str, level: float, courses: list[dict[str, Any]]) -> dict[str, Any]:
    """Median and range over the seeds of the seconds to a level; a seed that never reaches it counts as infinite."""
    reached = [next((v for v in course["validations"] if v["area"] <= level), None) for course in courses]
    seconds = [math.inf if one is None else one["seconds"] for one in reached]
    quantities = {"median": statistics.median(seconds), "least": min(seconds), "most": max(seconds)}
    return {
        "level": name,
        "area": level,
        "seeds": len(courses),
        "reached": sum(map(math.isfinite, seconds)),
        "meta_steps": [None if one is None else one["step"] for one in reached],
        "validation_seconds": [None if one is None else one["validating"] for one in reached],
        # JSON has no infinity: None is a level that was not reached.
        "seconds": {name: value if math.isfinite(value) else None for name, value in quantities.items()},
    }


def cells_of(row: dict[str, Any]) -> dict[str, str]:
    """A row of the table."""

    def words(seconds: float | None) -> str:
        return "not reached" if seconds is None else f"{seconds:.1f}"

    steps = [step for step in row["meta_steps"] if step is not None]
    looking = [seconds for seconds in row["validation_seconds"] if seconds is not None]
    return {
        "level": row["level"],
        "area": f"{row['area']:.1f}",
        "reached": f"{row['reached']} of {row['seeds']}",
        "seconds": words(row["seconds"]["median"]),
        "range": f"{words(row['seconds']['least'])} - {words(row['seconds']['most'])}",
        "meta-steps": f"{statistics.median(steps):.0f}" if steps else "-",
        "validations, s": f"{statistics.median(looking):.1f}" if looking else "-",
    }


def main() -> None:
    """Measure and print."""
    command = parser(__doc__)
    command.add_argument("--seeds", type=int, default=5, help="how many processes, one after the other")
    command.add_argument("--levels", type=float, nargs="*", default=[66.0, 55.0, 48.0], metavar="AREA")
    command.add_argument("--every", type=int, default=10, help="meta-steps between validations")
    command.add_argument("--validation-runs", type=int, default=8)
    command.add_argument("--meta-steps", type=int, help="as many as the recipe's, by default")
    command.add_argument("--data", default="mnist", help="as in `bygrad train`")
    command.add_argument("--learn", type=int, metavar="SEED", help="meta-train in this process and print JSON lines")
    options = command.parse_args()
    if options.quick:
        options.seeds, options.every, options.validation_runs, options.meta_steps = 1, 1, 1, 2
    if options.learn is not None:
        learn(options)
        return

    label, level = baseline_level(options)
    console.print(f"best tuned baseline: {label}, area {level:.1f}")
    levels = {f"the best baseline ({label})": level} | {f"{area:g}": area for area in options.levels}
    courses = [course_of(seed, min(levels.values())) for seed in range(options.seeds)]
    rows = [summary_of(name, area, courses) for name, area in levels.items()]
    show("seconds from nothing, validations not counted; medians over seeds", [cells_of(row) for row in rows])
    write_record(options.json, {"rows": rows, "courses": courses})


if __name__ == "__main__":
    main()
