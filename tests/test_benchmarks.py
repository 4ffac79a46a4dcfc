"""Every benchmark runs from end to end at a tiny size, and its record says what it takes to repeat it."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bygrad.optimizers import SGD
from bygrad.problems import MLPClassifier
from bygrad.unroll import loss_curves

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(path.stem for path in BENCHMARKS.glob("[!_]*.py"))
BRIEF = ("execution",)  # the others compile meta-steps, several of them


@pytest.mark.parametrize(
    "name", [name if name in BRIEF else pytest.param(name, marks=pytest.mark.slow) for name in SCRIPTS]
)
def test_a_benchmark_runs_and_leaves_a_record(name, tmp_path):
    if name == "solvers":
        pytest.importorskip("optimistix")  # without that, it compares nothing
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


@pytest.mark.parametrize("steps", [4, 13])
def test_a_guarded_run_has_as_many_steps_as_it_is_said_to_have(steps, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    guard, keys = importlib.import_module("guard"), jax.random.split(jax.random.key(0), 2)
    # Of a single image, the loss of a minibatch is that of the whole data set.
    image, label = jnp.full((1, 4), 200, jnp.uint8), jnp.zeros(1, jnp.int32)
    family = MLPClassifier(image, label, classes=2, hidden=2, batch=4, scale=1.0)
    found, _ = guard.losses_at_end(SGD(0.3), family, keys, steps)
    np.testing.assert_allclose(found, loss_curves(SGD(0.3), family, keys, steps)[:, -1], rtol=1e-5)
