"""`bygrad solve` on whole files, from the command line: a million fits with a kill on the way, and a year of dispatch.

    python benchmarks/whole_files.py [--rows 1000000] [--budget 5min] [--quick] [--json FILE]

A million damped oscillations (41 samples each) are written to a file and solved classically, to 1e-3, in one go; then
once more by a process that is killed (SIGKILL) when half of the time is over, and by another that goes on with what it
left. The results of the two must be the same to the last bit. Said are seconds with starting and compiling, fits a
second, and the largest resident memory of a process, beside the size of the file.

A year of quarter-hours of the IEEE RTS-96, demands that nothing was learned from, is dispatched to a certified gap of
1e-2: by a solver that is learned here within the budget, and by the classical one; each by the command, the first time
and once more, when what was compiled is in its cache, and in this process, without starting and compiling. Where DAQP
is installed (pip install daqp), it dispatches the same year in this process one by one, as its documentation advises,
with its vectors ready before; it is exact, so that its costs say how far above the cheapest ours really are, beside
what their certificates allow. It and what was learned take turns, five times each; medians are said. DAQP uses one
core: for a comparison on the same core start all of it there (taskset -c 1 python ...).
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _common import Times, console, parser, show, write_record

from bygrad import load_solver, solve
from bygrad.experiments.thousands.program_rivals import daqp
from bygrad.problems import DampedOscillation, EconomicDispatch
from bygrad.solvers import Flat
from bygrad.solvers.solve import precision

BYGRAD = [sys.executable, "-m", "bygrad"]
TOL, TURNS = 0.01, 5
PLAIN = "--tol", TOL, "--dtype", "float32"
LONGEST = 600.0
"""Seconds to wait for half of a file, which takes half a minute on two cores."""


def draw(path: Path, rows: int) -> None:
    """Write so many instances, a part at a time."""
    family = DampedOscillation()
    sample = jax.jit(jax.vmap(family.sample))
    keys = jax.random.split(jax.random.key(1), rows)
    samples = jax.eval_shape(family.sample, keys[0]).shape
    file = np.lib.format.open_memmap(path, "w+", np.float32, (rows, *samples))
    for at in range(0, rows, 65_536):
        file[at : at + 65_536] = sample(keys[at : at + 65_536])
    file.flush()


def command(*arguments: object, kill_with: tuple[Path, int] | None = None) -> dict[str, float]:
    """Run a command, and say so; return its seconds, by the clock and on all cores, and the most memory that it took,
    in bytes. `kill_with`: kill it once so many parts are in this folder."""
    console.print(f"bygrad {' '.join(it.name if isinstance(it, Path) else str(it) for it in arguments)} ...", end=" ")
    began = time.perf_counter()
    process = subprocess.Popen([*BYGRAD, *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    if kill_with is not None:
        folder, parts = kill_with
        while time.perf_counter() - began < LONGEST and len(list(folder.glob("*.npz"))) < parts:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)  # `send_signal` may wait for it, and what it used would be lost
    assert process.stderr is not None
    said = process.stderr.read().decode()
    _, status, used = os.wait4(process.pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code != (0 if kill_with is None else -signal.SIGKILL):
        sys.exit(f"bygrad {arguments[0]} ended with {code}: {said}")
    console.print("killed" if code else f"{time.perf_counter() - began:.1f} s")
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "wall_seconds": time.perf_counter() - began,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "peak_bytes": unit * used.ru_maxrss,
    }


def fits(folder: Path, rows: int) -> list[dict[str, Any]]:
    """Solve a file in one go, and again with a kill; refuse to go on where the results differ."""
    data, whole, parts = (folder / name for name in ("data.npy", "whole.npz", "parts.npz"))
    draw(data, rows)
    # Blocks of one size: where a row is solved is then the same in both runs.
    block = min(65_536, -(-rows // 4))
    options, half = ("--tol", 1e-3, "--block", block), (folder / f".{parts.name}.parts", -(-rows // block) // 2)
    once = command("solve", "oscillation", data, "-o", whole, *options)
    killed = command("solve", "oscillation", data, "-o", parts, *options, kill_with=half)
    left = len(list(half[0].glob("*.npz")))
    resumed = command("solve", "oscillation", data, "-o", parts, *options, "--resume")
    with np.load(whole) as first, np.load(parts) as second:
        assert first.files == second.files
        differing = [name for name in first.files if first[name].tobytes() != second[name].tobytes()]
        success = float(np.mean(first["success"]))
    if differing:
        sys.exit(f"{', '.join(differing)} differ between a run in one go and one that was killed and gone on with.")
    common = {"instances": rows, "success": success, "file_bytes": data.stat().st_size}
    return [
        {"what": "fits, in one go", **common, **once, "per_second": rows / once["wall_seconds"]},
        {
            "what": "fits, killed and gone on with",
            **common,
            "wall_seconds": killed["wall_seconds"] + resumed["wall_seconds"],
            "cpu_seconds": killed["cpu_seconds"] + resumed["cpu_seconds"],
            "peak_bytes": max(killed["peak_bytes"], resumed["peak_bytes"]),
            "per_second": rows / (killed["wall_seconds"] + resumed["wall_seconds"]),
            "blocks_kept": left,
        },
    ]


def dispatch(folder: Path, rows: int, budget: str) -> list[dict[str, Any]]:
    """Dispatch a year by a learned solver, the classical one, and DAQP where it is installed."""
    family = EconomicDispatch.embedded()
    year, learned = family.year(1)[:rows], folder / "year.safetensors"
    np.save(folder / "year.npy", year)
    learning = command("learn", "dispatch", "--tol", TOL, "--budget", budget, "--dtype", "float32", "-o", learned)
    out = lambda what, time_of_it: folder / f"{what}, {time_of_it}.npz"  # noqa: E731
    # Before this process has used much memory, which counts as that of whom it starts.
    took = {
        (what, time_of_it): command("solve", name, folder / "year.npy", "-o", out(what, time_of_it), *options)
        for what, name, options in (("learned", learned, ()), ("classical", "dispatch", PLAIN))
        for time_of_it in ("the first time", "again")
    }
    solver = load_solver(learned)
    runs: dict[str, Callable[[], Any]] = {"learned": lambda: solver.solve(year)}
    try:
        with precision("float64", family):
            build = daqp(Flat.of(family, year[0]))
            solve_exactly, ready = build.at(TOL), build.ready(year)
        runs = {"DAQP": lambda: solve_exactly(ready)} | runs
    except ImportError:
        console.print("DAQP is not installed, so nothing stands beside ours: pip install daqp")
    found, exact, in_turns = [], None, timed(runs, TURNS)
    in_turns |= timed({"classical": lambda: solve(family, year, tol=TOL, dtype=np.float32)}, 1)
    if "DAQP" in runs:
        times, answers = in_turns["DAQP"]
        with precision("float64", family):
            exact = costs(family, answers.x, year)
        success = float(np.mean(np.isfinite(exact)))
        found.append({"what": "dispatch, DAQP", "instances": rows, "success": success, **per_second(times, rows)})
    for (what, time_of_it), times in took.items():
        with np.load(out(what, time_of_it)) as results:
            gap, success, x, steps = (results[name] for name in ("certificate", "success", "x", "nit"))
        row = {"what": f"dispatch, {what}, {time_of_it}", "instances": rows, "success": float(np.mean(success))}
        row |= {"largest_certified_gap": float(np.max(gap)), **times, "per_second": rows / times["wall_seconds"]}
        row |= {"proven_without_iterations": float(np.mean(steps == 0))}
        if exact is not None:
            with precision("float64", family):
                above = costs(family, x, year) / exact - 1
            # Costs and bounds are rounded to float32; DAQP's costs are exact up to the curvature that it needs.
            row |= {"largest_true_gap": float(np.max(above)), "beyond_certificate": float(np.max(above - gap))}
        found.append(row)
    for what in ("learned", "classical"):
        times, answers = in_turns[what]
        row = {"what": f"dispatch, {what}, in one process", "instances": rows, **per_second(times, rows)}
        found.append(row | {"success": float(np.mean(answers.success))})
    return [row | ({"learning_seconds": learning["wall_seconds"]} if "learned" in row["what"] else {}) for row in found]


def timed(runs: dict[str, Callable[[], Any]], turns: int) -> dict[str, tuple[list[Times], Any]]:
    """Run all in turns, as a machine is not always as fast, after one that compiles; return the times of each, and what
    it found."""
    found = {name: run() for name, run in runs.items()}
    times: dict[str, list[Times]] = {name: [] for name in runs}
    for _ in range(turns):
        for name, run in runs.items():
            times[name].append(Times.of(run)[0])
    return {name: (times[name], found[name]) for name in runs}


def per_second(times: list[Times], rows: int) -> dict[str, Any]:
    """Return the medians of the times of so many rows, all that were measured, and rows a second."""
    wall, cpu = (float(np.median([getattr(it, name) for it in times])) for name in ("wall", "cpu"))
    each = {"each_wall_seconds": [it.wall for it in times], "each_cpu_seconds": [it.cpu for it in times]}
    return {"wall_seconds": wall, "cpu_seconds": cpu, "per_second": rows / wall, **each}


def costs(family: EconomicDispatch, x: np.ndarray, instances: np.ndarray) -> np.ndarray:
    """What dispatches cost, with what overloads of lines cost."""
    cost = jax.jit(jax.vmap(lambda x, instance: family.loss(x, instance, jax.random.key(0))))
    return np.asarray(cost(jnp.asarray(x, float), jnp.asarray(instances, float)))


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--rows", type=int, default=1_000_000, help="how many fits (default: %(default)s)")
    made.add_argument("--budget", default="5min", help="of learning to dispatch (default: %(default)s)")
    options = made.parse_args()
    count, quarters, budget = (2_000, 64, "2s") if options.quick else (options.rows, 35_136, options.budget)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="bygrad-whole-files-") as name:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(name) / "compiled")  # of the commands: empty at first
        for part in (lambda: fits(Path(name), count), lambda: dispatch(Path(name), quarters, budget)):
            rows += part()
            write_record(options.json, {"rows": rows})
    show(
        "Whole files",
        [
            {
                "what": row["what"],
                "instances": f"{row['instances']:,}",
                "solved": f"{row['success']:.2%}",
                "seconds": f"{row['wall_seconds']:.1f}",
                "a second": f"{row['per_second']:,.0f}",
                "memory, MiB": f"{row['peak_bytes'] / 2**20:.0f}" if "peak_bytes" in row else "",
                "gap certified": f"{row['largest_certified_gap']:.4f}" if "largest_certified_gap" in row else "",
                "gap in truth": f"{row['largest_true_gap']:.4f}" if "largest_true_gap" in row else "",
            }
            for row in rows
        ],
    )


if __name__ == "__main__":
    main()
