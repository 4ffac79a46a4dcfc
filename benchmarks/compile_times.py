"""How long compiling takes before meta-training on MNIST starts, and when JAX's persistent cache has the programs.

    python benchmarks/compile_times.py [--repeats 3] [--quick] [--json FILE]

Two programs of the quick recipe of `bygrad reproduce mnist`: the meta-step (all of it but Adam's few operations), and
the validation, with as few of the compiler's passes as meta-training asks for. Each process starts with nothing
compiled: the first finds an empty cache, the second the first one's. Tracing includes the lowering to StableHLO.
CPU-seconds are over all threads; medians of several pairs of processes.
"""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from typing import Any

import jax
from _common import Times, console, lower, parser, show, write_record

from bygrad._core.programs import OPTIONS
from bygrad.experiments import EXPERIMENTS
from bygrad.problems import find_family
from bygrad.unroll import Windows, loss_curves

EMPTY, FILLED = "empty", "filled"


def compile_all(runs: int | None) -> dict[str, dict[str, Times]]:
    """Trace and compile the programs; return the times of each."""
    experiment = EXPERIMENTS["mnist"]
    recipe, setting = experiment.recipe("quick"), experiment.settings[0]
    optimizer, family = experiment.optimizer(jax.random.key(0)), find_family(setting.family)
    windows = Windows(family, recipe.horizon, recipe.truncation, recipe.instances)
    keys = jax.random.split(jax.random.key(1), runs or recipe.validation_runs)
    inner = recipe.estimator.init(optimizer, windows, jax.random.key(2))

    def meta_step(optimizer: Any, windows: Any, inner: Any) -> Any:
        return recipe.estimator.estimate(optimizer, windows, inner)

    programs: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any] | None]] = {
        "meta-step": (meta_step, (optimizer, windows, inner), None),
        "validation": (loss_curves, (optimizer, family, keys, recipe.horizon), OPTIONS["seldom"]),
    }
    times = {}
    for name, (function, arguments, settings) in programs.items():
        tracing, lowered = Times.of(lambda f=function, a=arguments: lower(f, *a))
        compiling, _ = Times.of(lambda it=lowered, s=settings: it.compile(s))
        times[name] = {"tracing": tracing, "compiling": compiling}
    return times


def in_new_process(cache: str) -> dict[str, dict[str, Times]]:
    """Run `compile_all` in a process of its own, whose cache is a folder."""
    settings = {
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    output = subprocess.run(
        [sys.executable, __file__, "--compile-here", *(["--quick"] if "--quick" in sys.argv else [])],
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    ).stdout
    return {
        program: {phase: Times(**seconds) for phase, seconds in phases.items()}
        for program, phases in json.loads(output).items()
    }


def main() -> None:
    """Measure and print."""
    command = parser(__doc__)
    command.add_argument("--repeats", type=int, default=3)
    command.add_argument("--compile-here", action="store_true", help="compile in this process and print JSON")
    options = command.parse_args()
    if options.compile_here:
        times = compile_all(1 if options.quick else None)
        print(json.dumps(times, default=dataclasses.asdict))
        return

    samples: dict[str, list[Any]] = {EMPTY: [], FILLED: []}
    for _ in range(1 if options.quick else options.repeats):
        with tempfile.TemporaryDirectory() as cache:
            for taken in samples.values():
                taken.append(in_new_process(cache))

    rows, cells = [], []
    for state, taken in samples.items():
        for program in taken[0]:
            row = {"program": program, "cache": state}
            for phase in ("tracing", "compiling"):
                for clock in ("cpu", "wall"):
                    row[f"{phase}_{clock}_seconds"] = statistics.median(
                        getattr(sample[program][phase], clock) for sample in taken
                    )
            rows.append(row)
            cells.append(
                {
                    "program": program,
                    "cache": state,
                    "tracing CPU-s": f"{row['tracing_cpu_seconds']:.2f}",
                    "compiling CPU-s": f"{row['compiling_cpu_seconds']:.2f}",
                    "both, s": f"{row['tracing_wall_seconds'] + row['compiling_wall_seconds']:.2f}",
                }
            )
    show("compiling for meta-training on MNIST", cells)
    write_record(options.json, {"rows": rows})
    # An unused cache would look like a slow one.
    empty, filled = rows[0], next(row for row in rows if row["cache"] == FILLED)
    if filled["compiling_cpu_seconds"] > 0.9 * empty["compiling_cpu_seconds"]:
        console.print("The second process compiled as long as the first: JAX's persistent cache was not used.")


if __name__ == "__main__":
    main()
