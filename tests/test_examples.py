"""Every example runs from end to end, with few steps, and is short."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from bygrad.problems import HeldOut, check_family, find_family

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("*.py"))
DRAWN = ("diffusion_map", "dispatch_week", "fit_curves", "quadrotor_flight", "rolling_portfolios", "sparse_picture")
NEEDS = {"torch_module": "torch", "scipy_problem": "scipy", **dict.fromkeys(DRAWN, "matplotlib")}
ONE = ("diffusion_map", "dispatch_week", "scipy_problem", "torch_module")
LONG = ("diffusion_map", "fit_curves", "growing_horizons", "guard", "torch_module")  # only where there is time
SIZES = dict.fromkeys(ONE, "1") | {"guard": "25", "rolling_portfolios": "500"}  # the others: 2

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


@pytest.mark.parametrize(
    "names",
    [
        pytest.param([it for it in SCRIPTS if it not in (*DRAWN, *LONG)], id="learned"),
        pytest.param([it for it in DRAWN if it not in LONG], id="solved"),
        pytest.param(LONG, id="long", marks=pytest.mark.slow),
    ],
)
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


def test_the_network_is_a_family_for_the_commands():
    """Its minibatches are drawn by the key, estimate the loss on all data, and its held-out data are others."""
    family = find_family(f"{EXAMPLES / 'network.py'}:Network")
    params = check_family(HeldOut(family), jax.random.key(0))
    draws = jax.jit(jax.vmap(lambda key: family.loss(params, (), key)))(jax.random.split(jax.random.key(1), 200))
    whole = family.loss(params, (), None)
    assert np.std(draws) > 0
    assert abs(np.mean(draws) - whole) < 4 * np.std(draws) / 200**0.5
    assert abs(family.held_out_loss(params, (), None) - whole) > 1e-4
