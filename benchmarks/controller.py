"""What the learned controller adds to a training step: against optax.adam and against PyTorch's Adam, in one process.

    python benchmarks/controller.py [--repeats 25] [--quick] [--json FILE]

Each row is a whole training step of a ReLU perceptron on batches of 64: gradient, update, and adding it; in JAX fifty
of them in one program, so that calling it costs nothing, and in PyTorch, where it is installed, fifty as users write
them. Those that are compared take turns, and times are the least of several repeats, in CPU-seconds and by the clock.
State is what stays between steps.
"""

import importlib.util
import itertools
import tempfile
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from _common import Times, lower, parser, show, write_record

import bygrad
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


def in_jax(widths: tuple[int, ...]) -> dict[str, tuple[Callable[[], Any], float]]:
    """Return what takes `INNER` steps with each optimizer, and the bytes of its state for each param."""
    x_key, y_key = jax.random.split(jax.random.key(1))
    x, y = jax.random.normal(x_key, (BATCH, widths[0])), jax.random.randint(y_key, (BATCH,), 0, widths[-1])
    params = network(widths)
    size = size_of(widths)
    programs = {}
    for name, optimizer in {"optax.adam": optax.adam(3e-3), "Controller": controller()}.items():
        arguments = (optimizer, optimizer.init(params), params, x, y)
        compiled = lower(training, *arguments).compile()
        held = sum(leaf.nbytes for leaf in jax.tree.leaves(eqx.filter(arguments[1], eqx.is_array)))
        programs[name] = (lambda run=compiled, with_=arguments: jax.block_until_ready(run(*with_)), held / size)
    return programs


def in_torch(widths: tuple[int, ...]) -> dict[str, tuple[Callable[[], Any], float]]:
    """Do the same in PyTorch, each optimizer with a network of its own."""
    import torch

    from bygrad.deploy.torch import LearnedOptimizer

    torch.manual_seed(0)
    x, y = torch.randn(BATCH, widths[0]), torch.randint(widths[-1], (BATCH,))
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/it.safetensors"
        artifact = bygrad.export(controller(), file, name="benchmark", training={}, validation={})
    optimizers: dict[str, Callable[[Any], Any]] = {
        "torch.optim.Adam": lambda params: torch.optim.Adam(params, 3e-3),
        "torch.optim.Adam, fused": lambda params: torch.optim.Adam(params, 3e-3, fused=True),
        "Controller in PyTorch": lambda params: LearnedOptimizer(params, artifact, horizon=1_000_000),
    }
    programs = {}
    for name, make in optimizers.items():
        layers = [torch.nn.Linear(*pair) for pair in itertools.pairwise(widths)]
        model = torch.nn.Sequential(*[part for layer in layers for part in (layer, torch.nn.ReLU())][:-1])
        optimizer = make(model.parameters())

        def train(model: Any = model, optimizer: Any = optimizer) -> None:
            for _ in range(INNER):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(model(x), y).backward()
                optimizer.step()

        train()
        held = sum(it.nbytes for state in optimizer.state.values() for it in state.values())
        programs[name] = (train, held / size_of(widths))
    return programs


def controller() -> Controller:
    """A controller as `general/controller` is."""
    return Controller(jax.random.key(0), reach=True)


def size_of(widths: tuple[int, ...]) -> int:
    """Number of params."""
    return sum(leaf.size for leaf in jax.tree.leaves(network(widths)))


def compare(
    widths: tuple[int, ...], programs: dict[str, tuple[Callable[[], Any], float]], repeats: int
) -> list[dict[str, Any]]:
    """Measure optimizers on one network, the first of which is Adam; print, and return the rows of the record."""
    size = size_of(widths)
    times: dict[str, list[Times]] = {name: [] for name in programs}
    for turn in range(1 + repeats):
        for name, (train, _) in programs.items():
            took, _ = Times.of(train)
            if turn:
                times[name].append(took)
    records: list[dict[str, Any]] = [
        {"optimizer": name, "params": size, "state_bytes_per_param": held} for name, (_, held) in programs.items()
    ]
    for record in records:
        record["step_cpu_seconds"] = min(one.cpu for one in times[record["optimizer"]]) / INNER
        record["step_wall_seconds"] = min(one.wall for one in times[record["optimizer"]]) / INNER
        for kind, ratio in (("cpu", "ratio_to_adam"), ("wall", "wall_ratio_to_adam")):
            record[ratio] = record[f"step_{kind}_seconds"] / records[0][f"step_{kind}_seconds"]
    cells = [
        {
            "optimizer": record["optimizer"],
            "CPU-us a step": f"{1e6 * record['step_cpu_seconds']:,.0f}",
            "x Adam": f"{record['ratio_to_adam']:.2f}",
            "by the clock": f"{record['wall_ratio_to_adam']:.2f}",
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
    ways = [in_jax, in_torch] if importlib.util.find_spec("torch") else [in_jax]
    rows = [row for widths in networks for way in ways for row in compare(widths, way(widths), repeats)]
    write_record(options.json, {"batch": BATCH, "rows": rows})


if __name__ == "__main__":
    main()
