"""Every benchmark runs from end to end at a tiny size, and its record says what it takes to repeat it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(path.stem for path in BENCHMARKS.glob("[!_]*.py"))
BRIEF = ("execution",)  # the others compile meta-steps, several of them


@pytest.mark.parametrize(
    "name", [name if name in BRIEF else pytest.param(name, marks=pytest.mark.slow) for name in SCRIPTS]
)
def test_a_benchmark_runs_and_leaves_a_record(name, tmp_path):
    record_path = tmp_path / "record.json"
    # What comes out means nothing at this size, and unoptimized programs compile sooner.
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    command = [sys.executable, BENCHMARKS / f"{name}.py", "--quick", "--json", record_path]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    record = json.loads(record_path.read_text())
    assert record["command"].startswith(f"python benchmarks/{name}.py --quick")
    assert record["machine"]["cores"] >= 1
    assert {"python", "bygrad", "jax"} <= record["versions"].keys()
    assert record["rows"]
    for row in record["rows"]:
        times = [value for key, value in row.items() if key.endswith(("cpu_seconds", "wall_seconds"))]
        assert all(seconds > 0 for seconds in times)
