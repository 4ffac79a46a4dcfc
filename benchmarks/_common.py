"""What the benchmarks share: the command line, timing, the rate to hold results against, tables, and records."""

import argparse
import dataclasses
import datetime
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from bygrad._core.hosts import usable_cores
from bygrad.deploy.jax import versions

# Tables that go to a file or a pipe keep their columns.
console = Console(markup=False, width=None if sys.stdout.isatty() else 120)

Donate: TypeAlias = Literal["all", "all-except-first", "none"]


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds: by the clock, and of all threads of this process."""

    wall: float
    cpu: float

    @classmethod
    def of(cls, run: Callable[[], Any]) -> "tuple[Times, Any]":
        """Run once; return times and result."""
        wall, cpu = time.perf_counter(), time.process_time()
        result = run()
        return cls(time.perf_counter() - wall, time.process_time() - cpu), result

    @classmethod
    def least(cls, run: Callable[[], Any], repeats: int) -> "Times":
        """Return the least times of several runs, which other work on the machine disturbs least."""
        times = [cls.of(run)[0] for _ in range(repeats)]
        return cls(min(one.wall for one in times), min(one.cpu for one in times))


@dataclasses.dataclass(frozen=True)
class Measured:
    """Compiling a program, running it, and what came out."""

    tracing: Times
    compiling: Times
    running: Times
    result: Any


def lower(compute: Callable[..., Any], *arguments: Any, donate: Donate = "none") -> Any:
    """Trace `compute` and lower it to StableHLO; `.compile()` of the result compiles it."""
    jitted: Any = eqx.filter_jit(compute, donate=donate)  # has `lower`, but its annotation does not tell
    return jitted.lower(*arguments)


def measure(compute: Callable[..., Any], arguments: tuple[Any, ...], repeats: int) -> Measured:
    """Trace, compile and run `compute`; the first run is not timed."""
    tracing, lowered = Times.of(lambda: lower(compute, *arguments))
    compiling, compiled = Times.of(lowered.compile)
    result = jax.block_until_ready(compiled(*arguments))
    running = Times.least(lambda: jax.block_until_ready(compiled(*arguments)), repeats)
    return Measured(tracing, compiling, running, result)


def matmul_rate(repeats: int, size: int = 2048) -> float:
    """Measure the flops per CPU-second of a large float32 matrix product: what arithmetic can reach here at best."""
    run = measure(lambda a: a @ a, (jnp.ones((size, size)),), repeats)
    rate = 2 * size**3 / run.running.cpu
    console.print(f"matrix product: {rate / 1e9:.0f} Gflop per CPU-second")
    return rate


def parser(documentation: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options of every benchmark."""
    made = argparse.ArgumentParser(description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", type=Path, metavar="FILE", help="keep the record here")
    made.add_argument("--quick", action="store_true", help="only see that it runs: tiny sizes, meaningless numbers")
    return made


def show(title: str, rows: Sequence[dict[str, str]]) -> None:
    """Print rows of cells by heading; names stand left, numbers right."""
    table = Table(title=title, title_justify="left")
    for place, heading in enumerate(rows[0]):
        table.add_column(heading, justify="right" if place else "left")
    for row in rows:
        table.add_row(*row.values())
    console.print(table)


def write_record(path: Path | None, content: dict[str, Any]) -> None:
    """Write the results with all that it takes to judge and to repeat them; does nothing without a path."""
    if path is None:
        return
    record = {
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "versions": versions() | ({"torch": sys.modules["torch"].__version__} if "torch" in sys.modules else {}),
        **content,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")


def machine() -> dict[str, Any]:
    """Describe what measured. The load tells whether it had something else to do."""
    device = jax.devices()[0]
    return {
        "processor": _processor(),
        "device": f"{jax.device_count()} x {device.device_kind}",
        "cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "load_of_last_minute": None if sys.platform == "win32" else round(os.getloadavg()[0], 2),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()
