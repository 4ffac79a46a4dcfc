"""Time and communication of a meta-step over devices and processes: a model, beside what is measured here.

    python benchmarks/scaling.py [--instances 128] [--steps 20] [--cores 0,1] [--quick] [--json FILE]

The model (docs/scaling.md). A device with m instances needs s(m) = a + b m seconds of one core for its part of a
meta-step; an all-reduce among n devices takes r(n) = 2 (n - 1) h as a ring, 2 ceil(log2 n) h as a tree, where h is one
hop with a message of the size of θ. On k cores, n devices take s(I / n) n / min(n, k) + r(n). a and b are fitted to one
device on one core, with I, I/2, I/4 and I/8 instances; h to the bare all-reduce of two devices. Everything else in the
table is predicted from these three.

What is honest to compare here. Virtual devices of one machine share its cores: the same work cannot become faster than
the cores allow, and the table shows what dividing it costs. XLA may use several cores for one device, so "one process"
stands there twice: on all cores that two processes have together, which is the comparison that decides whether a second
process pays on one machine, and on a single core, which is what a second machine would add to. Every process is pinned
to its cores. Times are medians; a machine that is busy with something else makes all of them meaningless.
"""

import argparse
import json
import math
import os
import socket  # noqa: TID251 - loopback only: to find a free port
import subprocess
import sys
import time
from typing import Any

from _common import console, parser, show, write_record

THETA_BYTES = 4 * 5141
PREDICTED = (1, 8, 64, 256, 1000)
NETWORKS = {"ring over TCP, 50 µs a hop": ("ring", 50e-6), "tree over InfiniBand, 10 µs a hop": ("tree", 10e-6)}
"""What the prediction for more devices than there are here assumes; a bare all-reduce there tells the true numbers."""


def hops(devices: int, kind: str) -> int:
    """How many messages an all-reduce sends one after the other."""
    return 2 * (devices - 1) if kind == "ring" else 2 * math.ceil(math.log2(devices))


def worker(options: argparse.Namespace) -> None:
    """Measure in one process: medians of seconds a meta-step, for every number of instances, and of an all-reduce."""
    os.sched_setaffinity(0, options.pin)
    import jax

    if options.processes > 1:
        jax.distributed.initialize(f"127.0.0.1:{options.port}", options.processes, options.index)
    import jax.numpy as jnp
    import numpy as np

    from bygrad import LSTM, Quadratic, Recipe, Replay
    from bygrad.training.devices import Devices
    from bygrad.training.learner import Learner, Pace, advance
    from bygrad.unroll import Windows

    def median(step: Any) -> float:
        times = []
        for _ in range(options.steps + 2):
            started = time.perf_counter()
            jax.block_until_ready(step())
            times.append(time.perf_counter() - started)
        return float(np.median(times[2:]))

    result: dict[str, Any] = {"meta_step": {}}
    devices = Devices.sharing(min(options.instances))
    for instances in options.instances:
        recipe = Recipe(horizon=100, truncation=20, instances=instances)
        windows, optimizer, pace, key = devices.place(
            (
                Windows(Quadratic(), recipe.horizon, recipe.truncation, instances),
                LSTM(jax.random.key(0)),
                Pace.of(recipe),
                jax.random.key(1),
            )
        )
        constant = (windows, Replay(), pace, devices)
        learner = Learner.fresh(optimizer, windows, Replay(), devices, key)

        def step(constant: Any = constant) -> Any:
            nonlocal learner
            learner, report = advance(constant, learner, devices.flag(False))
            return float(report.loss)  # the loop reads it every step, and so does this

        result["meta_step"][instances] = median(step)
    if devices.count > 1:
        reduce = jax.jit(devices.divide(lambda x: devices.mean(x[0]), (0,), None))
        message = devices.place(jnp.zeros((devices.count, THETA_BYTES // 4 + 1)), 0)
        result["all_reduce"] = median(lambda: reduce(message))
    print("RESULT", json.dumps(result), flush=True)


def measure(instances: list[int], steps: int, devices: int, pins: list[set[int]]) -> dict[str, Any]:
    """Run one process for every set of cores in `pins`, each with so many virtual devices; process 0's result."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    running = []
    for index, pin in enumerate(pins):
        options = {"instances": instances, "steps": steps, "pin": sorted(pin), "index": index}
        options |= {"processes": len(pins), "port": port}
        command = [sys.executable, __file__, "--worker", json.dumps(options)]
        running.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    said = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise SystemExit(
            f"A worker with {devices} devices failed, so there is nothing to report; its message is above."
        )
    (line,) = [line for line in said[0].splitlines() if line.startswith("RESULT ")]
    return json.loads(line.removeprefix("RESULT "))


def main() -> None:
    """Measure, predict and print."""
    command = parser(__doc__)
    command.add_argument("--instances", type=int, default=128, help="of a meta-step in all; a multiple of 8")
    command.add_argument("--steps", type=int, default=20)
    command.add_argument("--cores", default=",".join(map(str, sorted(os.sched_getaffinity(0))[:2])), help="two of them")
    command.add_argument("--worker", help=argparse.SUPPRESS)
    options = command.parse_args()
    if options.worker:
        worker(argparse.Namespace(**json.loads(options.worker)))
        return
    import numpy as np

    if options.quick:
        options.instances, options.steps = 8, 1
    if len(cores := {int(core) for core in options.cores.split(",")}) != 2:
        command.error(f"needs two cores to divide the work between, and got {options.cores}: give --cores 0,1, say")
    first, second = sorted(cores)
    both, total, steps = {first, second}, options.instances, options.steps
    sizes = [total, total // 2, total // 4, total // 8]
    alone = measure(sizes, steps, 1, [{first}])["meta_step"]
    b, a = (float(x) for x in np.polyfit(sizes, [alone[str(size)] for size in sizes], 1))
    a = max(a, 0.0)
    runs = {n: measure([total], steps, n, [both]) for n in (1, 2, 4, 8)}
    pair = measure([total], steps, 1, [{first}, {second}])
    hop = {"devices": runs[2]["all_reduce"] / 2, "processes": pair["all_reduce"] / 2}

    def predicted(devices: int, cores: int, hop: float) -> float:
        return (a + b * total / devices) * devices / min(devices, cores) + hops(devices, "ring") * hop

    rows = [("1 process, 1 device, 1 core", predicted(1, 1, 0), alone[str(total)])]
    for n, run in runs.items():
        rows.append((f"1 process, {n} devices, 2 cores", predicted(n, 2, hop["devices"]), run["meta_step"][str(total)]))
    rows.append(
        ("2 processes, 1 device and 1 core each", predicted(2, 2, hop["processes"]), pair["meta_step"][str(total)])
    )

    console.print(
        f"{total} instances of the 10-dimensional quadratics, windows of 20 steps; θ has {THETA_BYTES:,} bytes\n"
        f"s(m) = {a * 1e3:.2f} ms + {b * 1e3:.4f} ms m; a hop takes {hop['devices'] * 1e6:.0f} µs between devices of a"
        f" process, {hop['processes'] * 1e6:.0f} µs between processes on loopback"
    )
    show(
        "the same work in all",
        [
            {
                "over": what,
                "predicted, ms": f"{expected * 1e3:.2f}",
                "measured, ms": f"{found * 1e3:.2f}",
                "meta-steps/s": f"{1 / found:.1f}",
            }
            for what, expected, found in rows
        ],
    )
    one, two = runs[1]["meta_step"][str(total)], pair["meta_step"][str(total)]
    console.print(
        f"throughput of two processes on two cores: {one / two:.2f} of one process on both cores (to reach: 0.9),"
        f" {alone[str(total)] / two:.2f} of one process on one core (ideal: 2)"
    )
    predictions = [
        {"devices": n} | {name: a + b * total + hops(n, kind) * hop for name, (kind, hop) in NETWORKS.items()}
        for n in PREDICTED
    ]
    show(
        f"predicted, {total} instances a device",
        [
            {"devices": str(row["devices"])}
            | {name: f"{row[name] * 1e3:.2f} ms, {(a + b * total) / row[name]:.0%}" for name in NETWORKS}
            for row in predictions
        ],
    )
    measured = [dict(zip(("what", "predicted", "measured"), row, strict=True)) for row in rows]
    record = {"instances": total, "a": a, "b": b, "hop": hop, "predictions": predictions, "rows": measured}
    write_record(options.json, record)


if __name__ == "__main__":
    main()
