"""Which parts of the controller does its success need? Each is left out in turn, and the rest is meta-trained alike.

    python benchmarks/ablation.py [--seconds 60] [--seeds 2] [--runs 64] [--across] [--quick] [--json FILE]

Controllers are meta-trained on small ReLU networks on digits, by what `bygrad specialize` chooses for the time given,
and used on fresh runs of these and, without more training, of the same networks with tanh and GELU. The numbers are
ratios to Adam with the learning rate that is best on the networks learned on, which is what every controller starts
from; the decay b2 is 0.99 for all.

With --across, controllers learn as `general/controller` does, from its mixture of networks, but for 400 meta-steps, and
are used on networks that are not in it. What they see of the tensors, of size and depth, and of the reach is left out
in turn; then a rule with a network for every param learns in their place, with its published settings, from steps of
the same size. The numbers are mean losses over runs; "before learning" is the Adam that controllers begin as.
"""

import dataclasses
import statistics
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from _common import console, parser, show, write_record
from jaxtyping import Array, Int, PRNGKeyArray

from bygrad.evaluation import area, final, run_curves, strict_json, tune_baselines
from bygrad.experiments.general import RECIPE, held_out, mixture
from bygrad.experiments.general import start as untrained
from bygrad.experiments.transfer_rows import ROWS, images_of
from bygrad.optimizers import HAND_DESIGNED, Controller, MLPRule, Optimizer, declare
from bygrad.optimizers.base import Scheduled
from bygrad.optimizers.controller import TENSOR_FEATURES
from bygrad.problems import ProblemFamily, find_family
from bygrad.training import meta_train
from bygrad.workflows.plan import choose_recipe, protocol_of

HORIZON = 400
RATE = 3e-3
"""Size of the steps that learning across families begins with: the controller's own."""

FAMILIES = {"ReLU": "digits", "tanh": "digits-tanh", "GELU": "digits-gelu"}

Change = Callable[[Controller], Controller]


def _zero(*names: str) -> Change:
    """Hold some of the weights at zero."""

    def change(controller: Controller) -> Controller:
        parts = lambda it: [getattr(it, name) for name in names]  # noqa: E731
        return eqx.tree_at(parts, controller, [jnp.zeros_like(part) for part in parts(controller)])

    return change


def _outputs(*kept: int) -> Change:
    """Hold all outputs but some at zero: 0 is more momentum, 1 the gradient beside it, 2 the step size."""

    def change(controller: Controller) -> Controller:
        rows = jnp.zeros(3).at[jnp.array(kept)].set(1.0)
        parts = lambda it: [it.head, it.head_times, it.head_bias]  # noqa: E731
        heads = [rows[:, None] * controller.head, rows[:, None] * controller.head_times, rows * controller.head_bias]
        return eqx.tree_at(parts, controller, heads)

    return change


def _fixed_decays(controller: Controller) -> Controller:
    untrained = Controller(jax.random.key(0))
    return eqx.tree_at(lambda it: it.decays, controller, untrained.decays)


VARIANTS: dict[str, Change] = {
    "all of it": lambda controller: controller,
    "without what it sees of a tensor: a schedule": _zero("inputs"),
    "without the time": _zero("times", "head_times"),
    "without the hidden layer": _zero("head"),
    "step size alone": _outputs(2),
    "without the step size": _outputs(0, 1),
    "decays not learned": _fixed_decays,
}


class Ablated(Optimizer, Scheduled):
    """A controller without one of its parts, whatever its meta-parameters say."""

    controller: Controller
    variant: str = eqx.field(static=True)

    def init(self, params: Any) -> Any:
        return self.controller.init(params)

    def update(
        self, grads: Any, state: Any, params: Any = None, *, value: Any = None, key: PRNGKeyArray | None = None
    ) -> Any:
        return VARIANTS[self.variant](self.controller).update(grads, state, params, value=value, key=key)

    def declare(self, horizon: int | Int[Array, ""]) -> "Ablated":
        return Ablated(self.controller.declare(horizon), self.variant)


class Blinded(Optimizer, Scheduled):
    """A controller that does not see the tensors, or how large and deep they are, or how far steps reach. Integers are
    not learned, and compile nothing anew."""

    controller: Controller
    sees: Int[Array, "3"]

    def init(self, params: Any) -> Any:
        return self.controller.init(params)

    def update(
        self, grads: Any, state: Any, params: Any = None, *, value: Any = None, key: PRNGKeyArray | None = None
    ) -> Any:
        parts = lambda it: [it.inputs, it.powers]  # noqa: E731
        tensor, sizes, reach = self.sees
        inputs = jnp.append(jnp.full(TENSOR_FEATURES, tensor), reach)  # the reach is the last of them
        seen = [self.controller.inputs * inputs, self.controller.powers * jnp.stack([sizes, sizes, reach])]
        controller = eqx.tree_at(parts, self.controller, seen)
        return controller.update(grads, state, params, value=value, key=key)

    def declare(self, horizon: int | Int[Array, ""]) -> "Blinded":
        return Blinded(self.controller.declare(horizon), self.sees)


def _seeing(tensor: int, sizes: int, reach: int) -> Callable[[int], Optimizer]:
    return lambda seed: Blinded(untrained(seed), jnp.array((tensor, sizes, reach)))


ACROSS: dict[str, Callable[[int], Optimizer]] = {
    "controller": _seeing(1, 1, 1),
    "without what it sees of a tensor": _seeing(0, 1, 1),
    "without size and depth": _seeing(1, 0, 1),
    "without the reach": _seeing(1, 1, 0),
    "without all three: a schedule": _seeing(0, 0, 0),
    "MLPRule": lambda seed: MLPRule(jax.random.key(seed), step_size=RATE),
}
"""What learns from the mixture, by the seed."""


def across(options: Any) -> None:
    """Measure and print what controllers for networks in general need to see."""
    far = {row.name: row for row in ROWS if row.name in ("8 layers", "attention")}
    images = images_of(far.values(), "mnist")
    families = held_out() | {name: row.build(images[row.source], "train") for name, row in far.items()}
    steps = 2 if options.quick else 400
    recipe = dataclasses.replace(RECIPE, meta_steps=steps, validate_every=min(steps, RECIPE.validate_every))
    rows = []

    def keep(name: str, *tested: Optimizer) -> None:
        found = [{label: mean_loss(it, family, options.runs) for label, family in families.items()} for it in tested]
        means = {label: statistics.fmean(one[label] for one in found) for label in families}
        console.print(f"{name}: " + "  ".join(f"{label} {mean:.3f}" for label, mean in means.items()))
        rows.append({"variant": name, "means": means, "seeds": found})
        write_record(options.json, strict_json({"meta_steps": steps, "horizon": HORIZON, "rows": rows}))

    keep("before learning", Controller(jax.random.key(0), learning_rate=RATE))
    for name, begin in list(ACROSS.items())[: 1 if options.quick else None]:
        recipes = [dataclasses.replace(recipe, seed=seed) for seed in range(options.seeds)]
        keep(name, *(meta_train(begin(it.seed), mixture(), it).optimizer for it in recipes))
    cells = [{"variant": row["variant"]} | {name: f"{it:.3f}" for name, it in row["means"].items()} for row in rows]
    show(f"mean losses over {HORIZON} steps, {options.runs} runs, mean of {options.seeds} seeds", cells)


def mean_loss(optimizer: Optimizer, family: ProblemFamily, runs: int) -> float:
    """Return the mean loss over fresh runs of a family, not finite if a run is lost."""
    key = jax.random.key(0xAB1)
    curves, _ = run_curves(declare(optimizer, HORIZON), family, key, horizon=HORIZON, runs=runs, chunk=runs)
    return float(np.mean(area(curves))) / HORIZON


def losses(optimizer: Optimizer, runs: int) -> dict[str, dict[str, float]]:
    """Return mean and final loss on fresh runs of every family; not finite if a run is lost."""
    found = {}
    for label, name in FAMILIES.items():
        curves, _ = run_curves(optimizer, find_family(name), jax.random.key(0xAB1), horizon=HORIZON, runs=runs, chunk=8)
        found[label] = {"mean": float(np.mean(area(curves))) / HORIZON, "final": float(np.mean(final(curves, 20)))}
    return found


def learn(variant: str, rate: float, seconds: float, seed: int) -> Optimizer:
    """Meta-train a variant for the time given; compiled beforehand, and kept by validation."""
    start = declare(Ablated(Controller(jax.random.key(seed), learning_rate=rate), variant), HORIZON)
    family = find_family(FAMILIES["ReLU"])
    recipe = dataclasses.replace(choose_recipe(HORIZON, seconds, seed), validate_every=500)
    meta_train(start, family, dataclasses.replace(recipe, meta_steps=2, seconds=None))
    return meta_train(start, family, recipe).optimizer


def main() -> None:
    """Measure and print."""
    command = parser(__doc__)
    command.add_argument("--seconds", type=float, default=60.0)
    command.add_argument("--seeds", type=int, default=2)
    command.add_argument("--runs", type=int, default=64)
    command.add_argument("--across", action="store_true")
    options = command.parse_args()
    if options.quick:
        options.seconds, options.seeds, options.runs = 1.0, 1, 2
    if options.across:
        across(options)
        return

    protocol = protocol_of(HORIZON, options.runs, 0)
    tuned = tune_baselines(find_family(FAMILIES["ReLU"]), protocol, {"Adam": HAND_DESIGNED["Adam"]})["Adam"]
    rate = tuned.best_area
    adam = losses(declare(Controller(jax.random.key(0), learning_rate=rate), HORIZON), options.runs)
    rows = []
    for variant in list(VARIANTS)[: 1 if options.quick else None]:
        found = [losses(learn(variant, rate, options.seconds, seed), options.runs) for seed in range(options.seeds)]
        ratios = {
            f"{label}, {measure}": statistics.geometric_mean(
                one[label][measure] / adam[label][measure] for one in found
            )
            for label in FAMILIES
            for measure in ("mean", "final")
        }
        console.print(f"{variant}: " + "  ".join(f"{name} {ratio:.3f}" for name, ratio in ratios.items()))
        rows.append({"variant": variant, "ratios": ratios, "seeds": found})
        record = {"learning_rate": rate, "adam": adam, "seconds": options.seconds, "rows": rows}
        write_record(options.json, strict_json(record))
    cells = [{"variant": row["variant"]} | {name: f"{it:.2f}" for name, it in row["ratios"].items()} for row in rows]
    show(f"losses as shares of tuned Adam's, {options.runs} runs, geometric mean of {options.seeds} seeds", cells)


if __name__ == "__main__":
    main()
