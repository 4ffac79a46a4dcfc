"""Every example runs from end to end, with few steps, and is short."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
DRAWN = ("diffusion_map", "dispatch_week", "fit_curves", "quadrotor_flight", "rolling_portfolios", "sparse_picture")
NEEDS = {"torch_module": "torch", "scipy_problem": "scipy", **dict.fromkeys(DRAWN, "matplotlib")}
SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("*.py"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_runs(name):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    # Few steps mean nothing, and unoptimized programs compile sooner.
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    size = {"guard": "25", "rolling_portfolios": "500"}.get(name, "2")
    command = [sys.executable, EXAMPLES / f"{name}.py", size]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "nan" not in done.stdout and len(done.stdout.splitlines()) >= 2


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_is_short(name):
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) < 80
