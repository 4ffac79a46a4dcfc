"""Every example runs from end to end, with few steps, and is short."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
NEEDS = {"torch_module": "torch", "scipy_problem": "scipy", "diffusion_map": "matplotlib"}
SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("*.py"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_runs(name):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    # Few steps mean nothing, and unoptimized programs compile sooner.
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    command = [sys.executable, EXAMPLES / f"{name}.py", "100" if name == "guard" else "2"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "nan" not in done.stdout and len(done.stdout.splitlines()) >= 2


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_is_short(name):
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) < 80
