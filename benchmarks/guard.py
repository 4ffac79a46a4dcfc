"""What the guard is worth and what it costs: learned optimizers inside and outside of their family, alone and guarded.

    python benchmarks/guard.py [--steps 100 1000 10000] [--runs 4] [--trusted] [--quick] [--json FILE]

Every cell is a network, a learned optimizer and a number of steps, which the guard is told. The fallback is Adam, its
learning rate tuned for the network and the steps on separate seeds. Losses are those of the whole data set at the end
of a run, at the params that `settled` gives: the mean of the runs, and its ratio to the fallback's (level: 1.05). Then
what the guard costs: the share of the evaluations that were discarded, and the time of one update of a network's
params, guarded and bare. With `--trusted` doubt speaks for the learned optimizer: what is that worth where it is
better, and what does it cost where it is not?

With `--json` the record is written after every cell, and one that is there is gone on with: what it holds is not
measured again. Delete it after a change of the code.
"""

import functools
import json
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from _common import Times, lower, parser, show, write_record
from jaxtyping import Array

import bygrad
import bygrad.artifacts
from bygrad.optimizers import SGD, Adam, Envelope, Guard, Optimizer, declare
from bygrad.problems import CharacterModel, MLPClassifier, ProblemFamily, load_images
from bygrad.unroll import begin, rollout

LEVEL = 1.05
RATES = [10**exponent for exponent in (-3.5, -3.0, -2.5, -2.0, -1.5, -1.0)]


class Still(Optimizer):
    """Never moves."""

    def init(self, params: Any) -> tuple[()]:
        return ()

    def update(self, grads: Any, state: Any, params: Any = None, *, value: Any = None, key: Any = None) -> Any:
        return jax.tree.map(jnp.zeros_like, grads), state


class Drunk(Optimizer):
    """Moves at random."""

    size: Array

    def init(self, params: Any) -> tuple[()]:
        return ()

    def update(self, grads: Any, state: Any, params: Any = None, *, value: Any = None, key: Any = None) -> Any:
        assert key is not None
        leaves, structure = jax.tree.flatten(grads)
        keys = jax.random.split(key, len(leaves))
        moves = [self.size * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
        return jax.tree.unflatten(structure, moves), state


DEPLOYED = "paper/mnist, deployed"
"""As `bygrad.deploy` guards it: only inside what its artifact says that it was trained on."""


def learned_optimizers(quick: bool) -> dict[str, Optimizer]:
    """What is guarded: the shipped LSTM, and rules that do harm."""
    rules: dict[str, Optimizer] = {
        "paper/mnist": bygrad.load("paper/mnist"),
        DEPLOYED: bygrad.load("paper/mnist"),
        "climbs": SGD(jnp.asarray(-0.1)),
        "random": Drunk(jnp.asarray(0.01)),
        "stands still": Still(),
        "1e30": SGD(jnp.asarray(1e30)),
        "NaN": SGD(jnp.asarray(jnp.nan)),
    }
    return {name: rules[name] for name in ("climbs", "NaN")} if quick else rules


def networks(quick: bool) -> dict[str, ProblemFamily]:
    """The LSTM's own family and three outside of it: networks on images of a quarter of the width and height, and a
    transformer."""
    data = load_images("mnist")
    images = data.x_train.reshape(-1, 28, 28)[: 200 if quick else None, ::4, ::4].reshape(-1, 49)
    labels = data.y_train[: len(images)]
    text = CharacterModel.embedded()

    def network(**options: Any) -> MLPClassifier:
        return MLPClassifier(jnp.asarray(images), jnp.asarray(labels, jnp.int32), **options)

    families: dict[str, ProblemFamily] = {
        "sigmoid (its own)": network(),
        "ReLU": network(activation="relu"),
        "ReLU, 2 layers": network(activation="relu", layers=2, scale=0.1),
        "transformer": CharacterModel(text.text, text.characters, width=16, window=8, batch=8),
    }
    return {name: families[name] for name in ("ReLU", "transformer")} if quick else families


@eqx.filter_jit
def losses_at_end(optimizer: Optimizer, family: ProblemFamily, keys: Array, steps: int) -> tuple[Array, Any]:
    """Return the loss of the whole data set after a run, for every key, and the optimizer's state."""
    optimizer = declare(optimizer, steps)

    def short(carry: Any, _: None) -> tuple[Any, None]:
        return rollout(optimizer, family, carry, steps // 10)[0], None

    end, _ = jax.lax.scan(short, begin(optimizer, family, keys), None, length=10)  # records a tenth at a time
    end, _ = rollout(optimizer, family, end, steps % 10)
    params = end.params
    if isinstance(optimizer, Guard):
        params = jax.vmap(optimizer.settled)(params, end.optimizer_state)
    return jax.vmap(lambda params: family.loss(params, (), None))(params), end.optimizer_state


def tuned(family: ProblemFamily, steps: int, runs: int) -> Adam:
    """Return Adam with the rate of the lowest mean loss on seeds of its own."""
    keys = jax.random.split(jax.random.key(1), runs)

    def score(rate: float) -> float:
        loss = float(jnp.mean(losses_at_end(Adam(jnp.asarray(rate)), family, keys, steps)[0]))
        return loss if loss == loss else float("inf")

    return Adam(jnp.asarray(min(RATES, key=score)))


def reference(name: str, family: ProblemFamily, steps: int, runs: int) -> dict[str, Any]:
    """Tune and run the fallback."""
    fallback, keys = tuned(family, steps, runs), jax.random.split(jax.random.key(2), runs)
    return {
        "network": name,
        "steps": steps,
        "runs": runs,
        "learning_rate": float(fallback.learning_rate),
        "loss": float(jnp.mean(losses_at_end(fallback, family, keys, steps)[0])),
    }


def cell(
    learned_name: str, learned: Optimizer, family: ProblemFamily, fallback: dict[str, Any], trusted: bool
) -> dict[str, Any]:
    """Run a learned optimizer alone and guarded, on the seeds of the fallback."""
    steps, runs = fallback["steps"], fallback["runs"]
    keys = jax.random.split(jax.random.key(2), runs)
    alone = float(jnp.mean(losses_at_end(learned, family, keys, steps)[0]))
    trained_on = bygrad.artifacts.load(bygrad.artifacts.find("paper/mnist")).manifest.training
    envelope = Envelope.from_training(trained_on) if learned_name == DEPLOYED else None
    guard = Guard(learned, Adam(jnp.asarray(fallback["learning_rate"])), envelope=envelope, trusted=trusted)
    guarded, state = losses_at_end(guard, family, keys, steps)
    report = guard.report(state)
    return {
        "network": fallback["network"],
        "learned": learned_name,
        "steps": steps,
        "runs": runs,
        "fallback_learning_rate": fallback["learning_rate"],
        "fallback": fallback["loss"],
        "alone": alone if alone == alone and alone < 1e30 else None,
        "guarded": float(jnp.mean(guarded)),
        "ratio": float(jnp.mean(guarded)) / fallback["loss"],
        "level": None if trusted else LEVEL,
        "discarded_share": sum(report["discarded"]) / runs / steps,
        "learned_share": sum(report["learned_steps"]) / runs / steps,
        **{name: sum(report[name]) / runs for name in ("trials", "won", "rollbacks", "stalls")},
    }


def table(records: list[dict[str, Any]]) -> None:
    """Print a cell of one network a row."""
    rows = [
        {
            "learned": it["learned"],
            "fallback": f"{it['fallback']:.4g}",
            "alone": "diverges" if it["alone"] is None else f"{it['alone']:.4g}",
            "guarded": f"{it['guarded']:.4g}",
            "ratio": f"{it['ratio']:.2f}",
            "discarded": f"{it['discarded_share']:.1%}",
            "moved by learned": f"{it['learned_share']:.0%}",
            "won": f"{it['won']:g} of {it['trials']:g}",
        }
        for it in records
    ]
    first = records[0]
    show(f"{first['network']}, {first['steps']:,} steps: loss at the end, mean of the runs", rows)


def own_family(runs: int, trusted: bool) -> dict[str, Any]:
    """How often the guard takes the shipped LSTM's family for a strange one: the paper's network, at its horizon."""
    data = load_images("mnist")
    family, horizon = MLPClassifier.from_data(data, "test"), 100
    fallback, keys = tuned(family, horizon, runs), jax.random.split(jax.random.key(3), runs)
    guard = Guard(bygrad.load("paper/mnist"), fallback, trusted=trusted)
    guarded, state = losses_at_end(guard, family, keys, horizon)
    report = guard.report(state)
    trials, won = sum(report["trials"]), sum(report["won"])
    alone = losses_at_end(guard.learned, family, keys, horizon)[0]
    found = {
        "runs": runs,
        "trials": trials,
        "lost_trials": trials - won,
        "rollbacks": sum(report["rollbacks"]),
        "guarded": float(jnp.mean(guarded)),
        "alone": float(jnp.mean(alone)),
        "fallback": float(jnp.mean(losses_at_end(fallback, family, keys, horizon)[0])),
    }
    show("the LSTM on its own family, 100 steps", [{key: f"{value:.4g}" for key, value in found.items()}])
    return found


def update_times(count: int, repeats: int) -> list[dict[str, Any]]:
    """Time one update of `count` params, in a matrix: bare optimizers and guarded ones, which lead in all that is
    timed."""
    judged = functools.partial(Guard, trusted=True)
    contenders: dict[str, Optimizer] = {
        "Adam": Adam(),
        "Guard(SGD, Adam), no losses": Guard(SGD(), Adam(), share=0.0),
        "Guard(SGD, Adam)": judged(SGD(), Adam()),
        "Controller": bygrad.load("general/controller"),
        "Guard(Controller, Adam)": judged(bygrad.load("general/controller"), Adam()),
        "LSTM": bygrad.load("paper/mnist"),
        "Guard(LSTM, Adam)": judged(bygrad.load("paper/mnist"), Adam()),
    }
    params = jnp.zeros((max(1, count // 1000), 1000))
    grads = 0.1 * jax.random.normal(jax.random.key(0), params.shape)
    records = []
    for name, optimizer in contenders.items():

        def update(kept: Any, state: Any) -> Any:
            optimizer, grads, params = kept
            return optimizer.update(grads, state, params, value=jnp.sum(params))

        state = optimizer.init(params)
        kept = (optimizer, grads, params)
        compiled = lower(update, kept, state, donate="all-except-first").compile()

        def step(compiled: Any = compiled, kept: Any = kept) -> None:
            nonlocal state
            _, state = jax.block_until_ready(compiled(kept, state))

        step()
        records.append({"optimizer": name, "params": params.size, "cpu_seconds": Times.least(step, repeats).cpu})
    rows = [{"optimizer": it["optimizer"], "CPU-ms": f"{1e3 * it['cpu_seconds']:.2f}"} for it in records]
    show(f"one update of {count:,} params", rows)
    return records


def main() -> None:
    """Measure and print."""
    command = parser(__doc__)
    command.add_argument("--steps", type=int, nargs="+", default=[100, 1000, 10000], metavar="N")
    command.add_argument("--runs", type=int, default=4)
    command.add_argument("--trusted", action="store_true", help="doubt speaks for the learned optimizer")
    options = command.parse_args()
    counts, runs = ([100], 1) if options.quick else (options.steps, options.runs)

    path: Path | None = options.json
    record: dict[str, Any] = json.loads(path.read_text()) if path is not None and path.exists() else {}
    parts = ("rows", "own_family", "fallbacks", "cells")
    record = {name: record[name] for name in parts if name in record}

    def keep(**new: Any) -> None:
        record.update(new)
        write_record(path, record)

    if "rows" not in record:
        keep(rows=update_times(1000 if options.quick else 1_000_000, 1 if options.quick else 30))
    if "own_family" not in record:
        keep(own_family=own_family(runs if options.quick else 2 * runs, options.trusted))
    fallbacks, cells = record.get("fallbacks", []), record.get("cells", [])
    for steps in counts:
        for name, network in networks(options.quick).items():
            here = {"network": name, "steps": steps, "runs": runs}
            fallback = next((it for it in fallbacks if here.items() <= it.items()), None)
            if fallback is None:
                fallback = reference(name, network, steps, runs)
                fallbacks.append(fallback)
            for learned_name, learned in learned_optimizers(options.quick).items():
                this = here | {"learned": learned_name}
                if not any(this.items() <= it.items() for it in cells):
                    cells.append(cell(learned_name, learned, network, fallback, options.trusted))
                    keep(fallbacks=fallbacks, cells=cells)
            table([it for it in cells if here.items() <= it.items()])


if __name__ == "__main__":
    main()
