"""What the learned controller adds to a training step: against optax.adam, in one process.

    python benchmarks/controller.py [--repeats 25] [--quick] [--json FILE]

Each row is a whole training step of a ReLU perceptron on batches of 64: gradient, update, and adding it; fifty of them
in one program, so that calling it costs nothing. The two take turns, and times are the least of several repeats, in
CPU-seconds. State is what stays between steps.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from _common import Times, lower, parser, show, write_record

from bygrad.optimizers import Controller

INNER = 50
NETWORKS = ((64, 32, 10), (64, 128, 128, 128, 10), (64, 568, 568, 568, 568, 10))
BATCH = 64


def network(widths: tuple[int, ...]) -> list[dict[str, jax.Array]]:
    """Params of a perceptron."""
    keys = jax.random.split(jax.random.key(0), len(widths))
    return [
        {"weight": jax.random.normal(key, (rows, columns)) / rows**0.5, "bias": jnp.zeros(columns)}
        for key, rows, columns in zip(keys[1:], widths[:-1], widths[1:], strict=True)
    ]


def loss(params: list[dict[str, jax.Array]], x: jax.Array, y: jax.Array) -> jax.Array:
    """Cross-entropy of the perceptron."""
    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer["weight"] + layer["bias"])
    logits = x @ params[-1]["weight"] + params[-1]["bias"]
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1))


def training(optimizer: Any, state: Any, params: Any, x: jax.Array, y: jax.Array) -> tuple[Any, Any]:
    """Take `INNER` training steps."""

    def body(_: int, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, x, y), state, params)
        return optax.apply_updates(params, updates), state

    return jax.lax.fori_loop(0, INNER, body, (params, state))


def compare(widths: tuple[int, ...], repeats: int) -> list[dict[str, Any]]:
    """Measure both optimizers on one network, print, and return the rows of the record."""
    x_key, y_key = jax.random.split(jax.random.key(1))
    x, y = jax.random.normal(x_key, (BATCH, widths[0])), jax.random.randint(y_key, (BATCH,), 0, widths[-1])
    params = network(widths)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    programs, records = {}, []
    controller = Controller(jax.random.key(0), reach=True)  # as `general/controller` is
    for name, optimizer in {"optax.adam": optax.adam(3e-3), "Controller": controller}.items():
        arguments = (optimizer, optimizer.init(params), params, x, y)
        compiled = lower(training, *arguments).compile()
        held = sum(leaf.nbytes for leaf in jax.tree.leaves(eqx.filter(arguments[1], eqx.is_array)))
        programs[name] = (compiled, arguments)
        records.append({"optimizer": name, "params": size, "state_bytes_per_param": held / size})
        jax.block_until_ready(compiled(*arguments))
    times: dict[str, list[Times]] = {name: [] for name in programs}
    for _ in range(repeats):
        for name, (compiled, arguments) in programs.items():
            times[name].append(Times.of(lambda run=compiled, with_=arguments: jax.block_until_ready(run(*with_)))[0])
    for record in records:
        record["step_cpu_seconds"] = min(one.cpu for one in times[record["optimizer"]]) / INNER
        record["step_wall_seconds"] = min(one.wall for one in times[record["optimizer"]]) / INNER
        record["ratio_to_adam"] = record["step_cpu_seconds"] / records[0]["step_cpu_seconds"]
    cells = [
        {
            "optimizer": record["optimizer"],
            "CPU-us a step": f"{1e6 * record['step_cpu_seconds']:,.0f}",
            "x Adam": f"{record['ratio_to_adam']:.2f}",
            "state B/param": f"{record['state_bytes_per_param']:.2f}",
        }
        for record in records
    ]
    show(f"a training step of {size:,} params", cells)
    return records


def main() -> None:
    """Measure and print."""
    command = parser(__doc__)
    command.add_argument("--repeats", type=int, default=25)
    options = command.parse_args()
    networks, repeats = (NETWORKS[:1], 1) if options.quick else (NETWORKS, options.repeats)
    rows = [row for widths in networks for row in compare(widths, repeats)]
    write_record(options.json, {"batch": BATCH, "rows": rows})


if __name__ == "__main__":
    main()
