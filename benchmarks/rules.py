"""What the per-parameter rules cost beside Adam: time and memory of one update, for each of the params.

    python benchmarks/rules.py [--params 1e6] [--repeats 10] [--quick] [--json FILE]

Each row is one compiled `update` of a network's params, gradients given: what a training step adds to the gradient.
Gradients and state are donated, as in a training loop. Times are the least of several repeats; CPU-seconds are over all
threads. State is what stays between steps; temporary is what the compiled program holds beside its arguments and
results while it runs: less than the features of the params, which would be 112 bytes a param and more.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from _common import Times, lower, parser, show, write_record
from execution import bytes_of, network

from bygrad.optimizers import STAR, Celo2, MLPRule, RNNprop, parameter_count

ADAM = "optax.adam"


def contenders() -> dict[str, Any]:
    """What is compared: anything with `init` and `update`."""
    key = jax.random.key(0)
    return {
        ADAM: optax.adam(1e-3),
        "MLPRule, 4-4": MLPRule(key),
        "STAR, 4-4": STAR(key),
        "Celo2, 8-8": Celo2(key),
        "RNNprop, 20-20": RNNprop(key),
    }


def measure_update(optimizer: Any, count: float, repeats: int) -> dict[str, Any]:
    """Compile and time one update of about `count` params."""
    params = network(count)
    size = sum(leaf.size for leaf in params)
    keys = jax.random.split(jax.random.key(1), len(params))
    grads = [0.1 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, params, strict=True)]
    state = optimizer.init(params)

    def update(kept: Any, grads: Any, state: Any) -> tuple[Any, Any]:
        optimizer, params = kept
        return optimizer.update(grads, state, params)

    compiling, compiled = Times.of(
        lambda: lower(update, (optimizer, params), grads, state, donate="all-except-first").compile()
    )

    def step() -> None:
        # Updates are as good as gradients to time the next step with, and nothing else is left of what was donated.
        nonlocal grads, state
        grads, state = jax.block_until_ready(compiled((optimizer, params), grads, state))

    state_bytes = bytes_of(state) / size
    step()
    times = Times.least(step, repeats)
    finite = all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in grads)
    assert finite, "the updates are not finite, so their times mean nothing"
    return {
        "params": size,
        "meta_parameters": parameter_count(optimizer),
        "state_bytes_per_param": state_bytes,
        "temporary_bytes_per_param": compiled.compiled.memory_analysis().temp_size_in_bytes / size,
        "compile_seconds": compiling.wall,
        "cpu_seconds": times.cpu,
        "wall_seconds": times.wall,
    }


def main() -> None:
    """Measure and print."""
    command = parser(__doc__)
    command.add_argument("--params", type=float, nargs="+", default=[1e6], metavar="N")
    command.add_argument("--repeats", type=int, default=10)
    options = command.parse_args()
    counts, repeats = ([1e4], 1) if options.quick else (options.params, options.repeats)

    rows = []
    for count in counts:
        cells = []
        for name, optimizer in contenders().items():
            row = {"optimizer": name, **measure_update(optimizer, count, repeats)}
            rows.append(row)
            adam = next(one for one in rows if one["params"] == row["params"])
            row["ratio_to_adam"] = row["cpu_seconds"] / adam["cpu_seconds"]
            cells.append(
                {
                    "optimizer": name,
                    "meta-parameters": f"{row['meta_parameters']:,}",
                    "CPU-ms": f"{1e3 * row['cpu_seconds']:,.1f}",
                    "wall ms": f"{1e3 * row['wall_seconds']:,.1f}",
                    "x Adam": f"{row['ratio_to_adam']:,.1f}",
                    "state B/param": f"{row['state_bytes_per_param']:.1f}",
                    "temporary B/param": f"{row['temporary_bytes_per_param']:.1f}",
                    "compile s": f"{row['compile_seconds']:.1f}",
                }
            )
        show(f"one update of {rows[-1]['params']:,} params", cells)
    write_record(options.json, {"rows": rows})


if __name__ == "__main__":
    main()
