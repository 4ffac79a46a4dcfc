"""Every example runs from end to end, with few steps, and is short."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("*.py"))
DRAWN = ("diffusion_map", "dispatch_week", "fit_curves", "quadrotor_flight", "rolling_portfolios", "sparse_picture")
NEEDS = {"torch_module": "torch", "scipy_problem": "scipy", **dict.fromkeys(DRAWN, "matplotlib")}
SIZES = {"diffusion_map": "1", "dispatch_week": "1", "guard": "25", "rolling_portfolios": "500"}  # the others: 2

RUN = """
import contextlib, io, json, runpy, sys
said = {}
for path, size in json.loads(sys.argv[1]):
    sys.argv = [path, size]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        runpy.run_path(path, run_name="__main__")
    said[path] = out.getvalue()
print(json.dumps(said))
"""


@pytest.mark.parametrize("names", [[it for it in SCRIPTS if it not in DRAWN], DRAWN], ids=["learned", "solved"])
def test_examples_run(names):
    """Many in one process, whose start takes longer than most of them."""
    names = [name for name in names if name not in NEEDS or importlib.util.find_spec(NEEDS[name])]
    # Few steps mean nothing, and unoptimized programs compile sooner.
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    scripts = [(str(EXAMPLES / f"{name}.py"), SIZES.get(name, "2")) for name in names]
    command = [sys.executable, "-c", RUN, json.dumps(scripts)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert list(said) == [path for path, _ in scripts]
    for path, text in said.items():
        assert "nan" not in text and len(text.splitlines()) >= 2, (path, text)


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_is_short(name):
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) < 80
