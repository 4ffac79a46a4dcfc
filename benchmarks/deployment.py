"""What it costs to use a trained optimizer: the optax wrapper over the bare rule, and PyTorch against JAX.

Levels: the wrapper costs at most 3 %; a step of the LSTM in PyTorch takes at most 1.5 times that of JAX. Those that are
compared take turns, so that other work on the machine slows both; the least times of each count.
"""

import statistics
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from _common import Times, lower, parser, show, write_record
from execution import network

import bygrad
from bygrad.deploy import optax as deployed
from bygrad.deploy.torch import LearnedOptimizer
from bygrad.optimizers import Controller, Optimizer

WRAPPER_LEVEL, TORCH_LEVEL = 1.03, 1.5


def gradients(count: float) -> list[Any]:
    """Gradients of a network of about `count` params."""
    params = network(count)
    keys = jax.random.split(jax.random.key(1), len(params))
    return [0.1 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, params, strict=True)]


def bare(optimizer: Optimizer, grads: list[Any]) -> Callable[[], None]:
    """Return a step of the rule itself, with a donated state."""
    state = optimizer.init(grads)
    compiled = lower(
        lambda optimizer, grads, state: optimizer.update(grads, state, grads),
        optimizer,
        grads,
        _own(state),
        donate="all-except-first",
    ).compile()
    held = [jax.tree.map(jnp.copy, grads), _own(state)]

    def step() -> None:
        held[:] = jax.block_until_ready(compiled(optimizer, *held))

    return step


def wrapped(optimizer: Optimizer, grads: list[Any]) -> Callable[[], None]:
    """Return a step of the optax transformation, with a donated state that holds the meta-parameters too."""
    transformation = deployed(optimizer)
    state = transformation.init(grads)
    jitted = jax.jit(lambda grads, state: transformation.update(grads, state, grads), donate_argnums=(0, 1))
    compiled = jitted.lower(grads, state).compile()
    held: list[Any] = [jax.tree.map(jnp.copy, grads), state]

    def step() -> None:
        held[:] = jax.block_until_ready(compiled(*held))

    return step


def in_torch(optimizer: Optimizer, grads: list[Any], folder: str) -> Callable[[], None]:
    """Return a step of the PyTorch optimizer."""
    artifact = bygrad.export(optimizer, f"{folder}/it.safetensors", name="benchmark", training={}, validation={})
    params = [torch.nn.Parameter(torch.zeros(leaf.shape)) for leaf in grads]
    for param, grad in zip(params, grads, strict=True):
        param.grad = torch.from_numpy(np.array(grad))
    return LearnedOptimizer(params, artifact, horizon=1_000 if isinstance(optimizer, Controller) else None).step


def _own(state: Any) -> Any:
    return jax.tree.map(jnp.copy, state)


def in_turns(steps: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[Times]]:
    """Time each of `steps` `repeats` times, in turns; the first turn is not timed."""
    times: dict[str, list[Times]] = {name: [] for name in steps}
    for turn in range(1 + repeats):
        for name, step in steps.items():
            took, _ = Times.of(step)
            if turn:
                times[name].append(took)
    return times


def compare(name: str, optimizer: Optimizer, grads: list[Any], repeats: int, folder: str) -> list[dict[str, Any]]:
    """Measure the three ways to take a step; return the rows of the record."""
    ways = {"bare rule": bare(optimizer, grads), "optax": wrapped(optimizer, grads)}
    ways["PyTorch"] = in_torch(optimizer, grads, folder)
    times = in_turns(ways, repeats)
    rows = []
    for way, taken in times.items():
        # Turn by turn, so that a disturbance that lasts for a turn or two has no say.
        ratios = [one.cpu / other.cpu for one, other in zip(taken, times["bare rule"], strict=True)]
        row = {
            "optimizer": name,
            "way": way,
            "params": sum(leaf.size for leaf in grads),
            "cpu_seconds": min(one.cpu for one in taken),
            "wall_seconds": min(one.wall for one in taken),
            "cpu_ratio": statistics.median(ratios),
        }
        row["wall_ratio"] = row["wall_seconds"] / min(one.wall for one in times["bare rule"])
        row["level"] = {"optax": WRAPPER_LEVEL, "PyTorch": TORCH_LEVEL}.get(way)
        rows.append(row)
    return rows


def main() -> None:
    """Measure and print."""
    command = parser(__doc__)
    command.add_argument("--params", type=float, default=1e6, metavar="N")
    command.add_argument("--repeats", type=int, default=15)
    command.add_argument("--threads", type=int, default=None, help="of PyTorch; its own choice by default")
    options = command.parse_args()
    count, repeats = (1e4, 1) if options.quick else (options.params, options.repeats)
    if options.threads is not None:
        torch.set_num_threads(options.threads)

    grads = gradients(count)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, optimizer in {
            "LSTM": bygrad.load("paper/mnist"),
            "Controller": Controller(jax.random.key(0), reach=True),
        }.items():
            rows += compare(name, optimizer, grads, repeats, folder)
    cells = [
        {
            "step": f"{row['optimizer']}, {row['way']}",
            "CPU-ms": f"{1e3 * row['cpu_seconds']:,.2f}",
            "wall ms": f"{1e3 * row['wall_seconds']:,.2f}",
            "CPU, x bare": f"{row['cpu_ratio']:.3f}",
            "wall, x bare": f"{row['wall_ratio']:.3f}",
            "level": "-" if row["level"] is None else f"{row['level']:g}",
        }
        for row in rows
    ]
    show(f"a step of {rows[0]['params']:,} params", cells)
    write_record(options.json, {"torch_threads": torch.get_num_threads(), "rows": rows})


if __name__ == "__main__":
    main()
