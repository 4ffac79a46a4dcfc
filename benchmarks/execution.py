"""What a trained optimizer costs in use: time and memory of one update, for each of the params.

    python benchmarks/execution.py [--params 1e6 10e6] [--repeats 10] [--quick] [--json FILE]

Each row is one compiled `update` of an optax transformation (`bygrad.deploy.optax`, of the LSTM) on a network's params,
gradients given: what a training step adds to the gradient.
Gradients and state are donated, as in a training loop, so that updates and the new state take their memory. Times are
the least of several repeats; CPU-seconds are over all threads. The limit is the arithmetic of the LSTM at the rate of a
large float32 matrix product measured in the same process. State is what stays between steps; temporary is what the
compiled program holds beside its arguments and results while it runs.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from _common import Times, lower, matmul_rate, parser, show, write_record

from bygrad.deploy import optax as as_optax
from bygrad.optimizers import LSTM

ADAM = "optax.adam"


def contenders() -> dict[str, Any]:
    """What is compared: anything with `init` and `update`."""
    return {
        ADAM: optax.adam(1e-3),
        "LSTM, float32 state": LSTM(jax.random.key(0)),
        "LSTM, bfloat16 state": LSTM(jax.random.key(0), state_dtype="bfloat16"),
    }


def network(count: float) -> list[jax.Array]:
    """Params of a perceptron 784-n-n-10 with about `count` of them."""
    units = max(1, round(((784 + 10 + 2) ** 2 / 4 + count - 10) ** 0.5 - (784 + 10 + 2) / 2))
    shapes = [(784, units), (units,), (units, units), (units,), (units, 10), (10,)]
    return [jnp.zeros(shape) for shape in shapes]


def bytes_of(tree: Any) -> int:
    """Bytes of all arrays of a tree."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(eqx.filter(tree, eqx.is_array)))


def measure_update(optimizer: Any, count: float, repeats: int) -> dict[str, Any]:
    """Compile and time one update of about `count` params."""
    params = network(count)
    size = sum(leaf.size for leaf in params)
    keys = jax.random.split(jax.random.key(1), len(params))
    grads = [0.1 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, params, strict=True)]
    transformation = as_optax(optimizer) if isinstance(optimizer, LSTM) else optimizer
    state = transformation.init(params)
    del params

    compiling, compiled = Times.of(lambda: lower(transformation.update, grads, state, donate="all").compile())
    record = {
        "params": size,
        "state_bytes_per_param": bytes_of(state) / size,
        "temporary_bytes_per_param": compiled.compiled.memory_analysis().temp_size_in_bytes / size,
        "compile_seconds": compiling.wall,
    }

    def step() -> None:
        # Updates are as good as gradients to time the next step with, and nothing else is left of what was donated.
        nonlocal grads, state
        grads, state = jax.block_until_ready(compiled(grads, state))

    step()
    times = Times.least(step, repeats)
    return record | {"cpu_seconds": times.cpu, "wall_seconds": times.wall}


def flops_per_param(optimizer: Any) -> int | None:
    """Multiplications and additions of the LSTM's matrix products; None for others, whose limit is not arithmetic."""
    return 2 * sum(layer.weight.size for layer in optimizer.layers) if isinstance(optimizer, LSTM) else None


def compare(count: float, repeats: int, rate: float) -> list[dict[str, Any]]:
    """Measure every optimizer on about `count` params, print, and return the rows of the record."""
    records, cells = [], []
    for name, optimizer in contenders().items():
        record: dict[str, Any] = {"optimizer": name, **measure_update(optimizer, count, repeats)}
        flops = flops_per_param(optimizer)
        share = None if flops is None else flops * record["params"] / record["cpu_seconds"] / rate
        record["share_of_limit"] = share
        records.append(record)
        record["ratio_to_adam"] = record["cpu_seconds"] / records[0]["cpu_seconds"]
        cells.append(
            {
                "optimizer": name,
                "CPU-ms": f"{1e3 * record['cpu_seconds']:,.1f}",
                "wall ms": f"{1e3 * record['wall_seconds']:,.1f}",
                "x Adam": f"{record['ratio_to_adam']:,.0f}",
                "of limit": "-" if share is None else f"{share:.0%}",
                "state B/param": f"{record['state_bytes_per_param']:.0f}",
                "temporary B/param": f"{record['temporary_bytes_per_param']:.0f}",
                "compile s": f"{record['compile_seconds']:.1f}",
            }
        )
    show(f"one update of {records[0]['params']:,} params", cells)
    return records


def main() -> None:
    """Measure and print."""
    command = parser(__doc__)
    command.add_argument("--params", type=float, nargs="+", default=[1e6, 10e6], metavar="N")
    command.add_argument("--repeats", type=int, default=10)
    options = command.parse_args()
    counts, repeats, size = ([1e4], 1, 256) if options.quick else (options.params, options.repeats, 2048)

    rate = matmul_rate(repeats, size)
    rows = [row for count in counts for row in compare(count, repeats, rate)]
    write_record(options.json, {"matmul_flops_per_cpu_second": rate, "rows": rows})


if __name__ == "__main__":
    main()
