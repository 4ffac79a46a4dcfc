"""Meta-gradients per second: replay against plain autodiff of the same LSTM and a PyTorch loop, in one process.

    python benchmarks/metatraining.py [--repeats 5] [--quick] [--json FILE]

Each row is one meta-step's gradient: a window of 20 inner steps. "plain autodiff" is what one writes first: the LSTM
with coordinates as rows, `vmap` over the instances, `jax.grad` through the scan of inner steps (gradients cut, as in
the paper). "PyTorch loop" is what public reproductions do (`_pytorch.py`; `pip install torch`), with as many
threads as it takes by itself, and with one, since threads that wait use CPU-seconds too. All rows compute the same
meta-gradient (checked here), but the subsampled ones, whose estimates have the same mean. Times are the least of some
repeats; CPU-seconds are over all threads. The limit is the arithmetic of the LSTM, forward and backward, at the rate of
a large matrix product measured in the same process.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from _common import Times, console, matmul_rate, measure, parser, show, write_record

from bygrad.metagrads import Replay
from bygrad.optimizers import LSTM, LogSign, Scaled
from bygrad.problems import MLPClassifier, ProblemFamily, Quadratic, load_images
from bygrad.unroll import Inner, Windows, step_keys

TRUNCATION = 20
PLAIN, EXACT = "plain autodiff", "replay"
SUBSAMPLED = {"replay of a quarter": 0.25, "replay of a tenth": 0.1}
"""Parts of the coordinates from which as many meta-steps teach as much (`subsampling.py`)."""


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

        _, losses = jax.lax.scan(body, (flat, [(z, z) for z in zeros]), start + jnp.arange(windows.truncation))
        return jnp.mean(losses)

    def meta_loss(optimizer: LSTM) -> Any:
        batched = jax.vmap(instance_loss, in_axes=(None, 0, 0, 0, 0))
        return jnp.mean(batched(optimizer, inner.params, inner.instance, inner.key, inner.step))

    return eqx.filter_grad(meta_loss)(optimizer)


def replayed(coordinates: float) -> Callable[..., Any]:
    """The meta-gradient by replay of a part of the coordinates."""
    return lambda optimizer, windows, inner: Replay(coordinates).estimate(optimizer, windows, inner)[0].gradient


METHODS = {
    PLAIN: plain_autodiff,
    EXACT: replayed(1.0),
    **{name: replayed(part) for name, part in SUBSAMPLED.items()},
}


def run_pytorch(optimizer: LSTM, windows: Windows, inner: Inner, repeats: int) -> dict[str, tuple[Times, Any]]:
    """Times and result of the PyTorch loop, with PyTorch's own number of threads and with one; none without PyTorch."""
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        console.print("No row for PyTorch, which is not installed: pip install torch")
        return {}
    from _pytorch import meta_gradient

    compute = meta_gradient(optimizer, windows.family, inner, windows.truncation)
    threads, runs = torch.get_num_threads(), {}
    for name, count in {"PyTorch loop": threads, "PyTorch loop, one thread": 1}.items():
        torch.set_num_threads(count)
        result = compute()  # like the first run of the others, not timed
        runs[name] = (Times.least(compute, repeats), result)
    torch.set_num_threads(threads)
    return runs


def check_equal(name: str, left: Any, right: Any) -> None:
    """Refuse to compare the speed of two different results."""
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        difference = np.linalg.norm(np.asarray(a) - np.asarray(b)) / max(np.linalg.norm(np.asarray(a)), 1e-30)
        if not difference < 1e-3:
            raise SystemExit(
                f"The meta-gradient by {name} differs by {difference:.2g} from the one by {PLAIN}, so that comparing"
                " their speed would be meaningless. One of the two is wrong: find out which."
            )


def flops_per_coordinate_step(optimizer: LSTM) -> int:
    """Multiplications and additions of the matrix products, forward and backward: three times forward."""
    return 3 * 2 * sum(layer.weight.size for layer in optimizer.layers)


def compare(problem: str, family: ProblemFamily, instances: int, optimizer: LSTM, options: Any, rate: float) -> Any:
    """Measure every method on a problem, print, and return the rows of the record."""
    windows = Windows(family, 5 * TRUNCATION, TRUNCATION, instances)
    inner = Replay().init(optimizer, windows, jax.random.key(1))
    coordinates = sum(leaf.size for leaf in jax.tree.leaves(inner.params))
    compiled = {name: measure(f, (optimizer, windows, inner), options.repeats) for name, f in METHODS.items()}
    runs = {name: (run.running, run.result) for name, run in compiled.items()}
    runs |= run_pytorch(optimizer, windows, inner, options.repeats)
    for name in runs.keys() - SUBSAMPLED.keys():
        check_equal(name, runs[PLAIN][1], runs[name][1])

    work = coordinates * TRUNCATION
    records, cells = [], []
    for name, (times, _) in runs.items():
        # A subsampled estimate does less than the full arithmetic: its share of the limit would mean nothing.
        share = None if name in SUBSAMPLED else work * flops_per_coordinate_step(optimizer) / times.cpu / rate
        compile_seconds = compiled[name].tracing.wall + compiled[name].compiling.wall if name in compiled else None
        record = {
            "problem": problem,
            "method": name,
            "cpu_seconds": times.cpu,
            "wall_seconds": times.wall,
            "inner_steps_per_second": instances * TRUNCATION / times.wall,
            "coordinate_steps_per_second": work / times.wall,
            "coordinate_steps_per_cpu_second": work / times.cpu,
            "ratio_to_plain_autodiff": runs[PLAIN][0].cpu / times.cpu,
            "share_of_limit": share,
            "compile_seconds": compile_seconds,
        }
        records.append(record)
        cells.append(
            {
                "method": name,
                "CPU-ms": f"{1e3 * times.cpu:,.1f}",
                "inner steps/s": f"{record['inner_steps_per_second']:,.0f}",
                "M coord-steps/s": f"{record['coordinate_steps_per_second'] / 1e6:.2f}",
                "M per CPU-s": f"{record['coordinate_steps_per_cpu_second'] / 1e6:.2f}",
                "ratio": f"{record['ratio_to_plain_autodiff']:.1f}",
                "of limit": "-" if share is None else f"{share:.0%}",
                "compile s": "-" if compile_seconds is None else f"{compile_seconds:.1f}",
            }
        )
    show(f"{problem}: {coordinates} coordinates, windows of {TRUNCATION} steps", cells)
    return records


def main() -> None:
    """Measure and print."""
    command = parser(__doc__)
    command.add_argument("--repeats", type=int, default=5)
    options = command.parse_args()
    instances, hidden, size = (4, 1, 256) if options.quick else (128, 20, 2048)
    options.repeats = 1 if options.quick else options.repeats

    rate = matmul_rate(options.repeats, size)
    network = MLPClassifier.from_data(load_images(), hidden=hidden)
    scaled, logarithmic = (LSTM(jax.random.key(0), preprocess=kind) for kind in (Scaled(), LogSign()))
    rows = compare(f"quadratics x {instances}", Quadratic(), instances, scaled, options, rate)
    rows += compare("MNIST MLP", network, 1, logarithmic, options, rate)
    write_record(options.json, {"matmul_flops_per_cpu_second": rate, "rows": rows})


if __name__ == "__main__":
    main()
