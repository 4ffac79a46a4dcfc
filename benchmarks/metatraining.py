"""Meta-gradients per second: replay against plain autodiff of the same LSTM, side by side in one process.

    python benchmarks/metatraining.py [--repeats 5] [--json FILE]

Each row is one meta-step's gradient: a window of 20 inner steps. "plain autodiff" is what one writes first: the LSTM
with coordinates as rows, `vmap` over the instances, `jax.grad` through the scan of inner steps (gradients cut, as in
the paper). All rows compute the same meta-gradient (checked here), but the last, whose estimate has the same mean.
Times are the least of several repeats; CPU seconds are over all threads. The limit is the arithmetic of the LSTM,
forward and backward, at the rate of a large matrix product measured in the same process.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from bygrad.metagrads import Replay
from bygrad.optimizers import LSTM, LogSign, Scaled
from bygrad.problems import MLPClassifier, ProblemFamily, Quadratic, load_images
from bygrad.unroll import Inner, Windows, step_keys

TRUNCATION = 20


def plain_autodiff(optimizer: LSTM, windows: Windows, inner: Inner) -> Any:
    """The meta-gradient as one writes it first: coordinates as rows, one instance under `vmap`, autodiff of all."""

    def cell(layer: Any, x: Any, h: Any, c: Any) -> Any:
        i, g, f, o = jnp.split(jnp.concatenate([x, h], 1) @ layer.weight.T + layer.bias, 4, axis=1)
        c = jax.nn.sigmoid(f + 1) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return jax.nn.sigmoid(o) * jnp.tanh(c), c

    def instance_loss(optimizer: LSTM, params: Any, instance: Any, key: Any, start: Any) -> Any:
        flat, unravel = jax.flatten_util.ravel_pytree(params)
        zeros = [jnp.zeros((flat.size, layer.units)) for layer in optimizer.layers]

        def loss(flat: Any, step: Any) -> Any:
            return windows.family.loss(unravel(flat), instance, step_keys(key, step)[0])

        def body(carry: Any, step: Any) -> Any:
            flat, states = carry
            grads = jax.lax.stop_gradient(jax.grad(loss)(flat, step))
            x = optimizer.preprocess(grads).T
            new = []
            for layer, (h, c) in zip(optimizer.layers, states, strict=True):
                h, c = cell(layer, x, h, c)
                new.append((h, c))
                x = h
            flat = flat + optimizer.output_scale * (x @ optimizer.head + optimizer.head_bias)
            return (flat, new), loss(flat, step + 1)

        _, losses = jax.lax.scan(body, (flat, [(z, z) for z in zeros]), start + jnp.arange(TRUNCATION))
        return jnp.mean(losses)

    def meta_loss(optimizer: LSTM) -> Any:
        batched = jax.vmap(instance_loss, in_axes=(None, 0, 0, 0, 0))
        return jnp.mean(batched(optimizer, inner.params, inner.instance, inner.key, inner.step))

    return eqx.filter_grad(meta_loss)(optimizer)


def replayed(coordinates: float) -> Any:
    """The meta-gradient by replay of a part of the coordinates."""
    return lambda optimizer, windows, inner: Replay(coordinates).estimate(optimizer, windows, inner)[0].gradient


def measure(compute: Any, arguments: tuple[Any, ...], repeats: int) -> dict[str, Any]:
    """Compile and run `compute`; return compile time, least wall-clock and CPU seconds, and the result."""
    started = time.perf_counter()
    compiled = eqx.filter_jit(compute).lower(*arguments).compile()
    compile_seconds = time.perf_counter() - started
    result = jax.block_until_ready(compiled(*arguments))
    walls, cpus = [], []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        jax.block_until_ready(compiled(*arguments))
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return {"compile": compile_seconds, "wall": min(walls), "cpu": min(cpus), "result": result}


def matmul_rate(repeats: int) -> float:
    """Flops per CPU-second of a large float32 matrix product."""
    size = 2048
    run = measure(lambda a: a @ a, (jnp.ones((size, size)),), repeats)
    return 2 * size**3 / run["cpu"]


def flops_per_coordinate_step(optimizer: LSTM) -> int:
    """Multiplications and additions of the matrix products, forward and backward: three times forward."""
    return 3 * 2 * sum(layer.weight.size for layer in optimizer.layers)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    problems: dict[str, tuple[ProblemFamily, int, LSTM]] = {
        "quadratics x 128": (Quadratic(), 128, LSTM(jax.random.key(0), preprocess=Scaled())),
        "MNIST MLP": (MLPClassifier.from_data(load_images()), 1, LSTM(jax.random.key(0), preprocess=LogSign())),
    }
    rate = matmul_rate(options.repeats)
    console, records = Console(), []
    console.print(f"matrix product: {rate / 1e9:.0f} Gflop per CPU-second")
    for problem, (family, instances, optimizer) in problems.items():
        windows = Windows(family, 100, TRUNCATION, instances)
        inner = Replay().init(optimizer, windows, jax.random.key(1))
        coordinates = sum(leaf.size for leaf in jax.tree.leaves(inner.params))
        table = Table(title=f"{problem}: {coordinates} coordinates, windows of {TRUNCATION} steps")
        headings = ("method", "inner steps/s", "M coordinate-steps/s", "M per CPU-s", "ratio", "of limit", "compile s")
        for heading in headings:
            table.add_column(heading, justify="left" if heading == "method" else "right")
        methods = {"plain autodiff": plain_autodiff, "replay": replayed(1.0), "replay of a quarter": replayed(0.25)}
        runs = {name: measure(f, (optimizer, windows, inner), options.repeats) for name, f in methods.items()}
        check_equal(runs["plain autodiff"]["result"], runs["replay"]["result"])
        for name, run in runs.items():
            work = coordinates * TRUNCATION
            record = {
                "problem": problem,
                "method": name,
                "inner_steps_per_second": instances * TRUNCATION / run["wall"],
                "coordinate_steps_per_second": work / run["wall"],
                "coordinate_steps_per_cpu_second": work / run["cpu"],
                "ratio_to_plain_autodiff": runs["plain autodiff"]["cpu"] / run["cpu"],
                # A subsampled estimate does less than the full arithmetic: its share of the limit would mean nothing.
                "share_of_limit": work * flops_per_coordinate_step(optimizer) / run["cpu"] / rate
                if "quarter" not in name
                else None,
                "compile_seconds": run["compile"],
            }
            records.append(record)
            share = record["share_of_limit"]
            table.add_row(
                name,
                f"{record['inner_steps_per_second']:,.0f}",
                f"{record['coordinate_steps_per_second'] / 1e6:.2f}",
                f"{record['coordinate_steps_per_cpu_second'] / 1e6:.2f}",
                f"{record['ratio_to_plain_autodiff']:.1f}",
                "-" if share is None else f"{share:.0%}",
                f"{run['compile']:.1f}",
            )
        console.print(table)
    if options.json:
        options.json.write_text(json.dumps({"matmul_flops_per_cpu_second": rate, "rows": records}, indent=1))


def check_equal(left: Any, right: Any) -> None:
    """Refuse to compare the speed of two different results."""
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        difference = np.linalg.norm(np.asarray(a - b)) / max(np.linalg.norm(np.asarray(a)), 1e-30)
        if difference > 1e-3:
            raise SystemExit(f"The two meta-gradients differ by {difference:.2g}: the comparison would be meaningless.")


if __name__ == "__main__":
    main()
