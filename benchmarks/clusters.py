"""Gradient evaluations per hit of the global minimum of a Lennard-Jones cluster, from random starts.

    python benchmarks/clusters.py [--atoms 13] [--starts 2000] [--steps 400] [--budget 300] [--quick] [--json FILE]

A run hits if it comes within 0.1 of the lowest energy known: no other minimum of these sizes is that near. L-BFGS
(`bygrad.solve`) stops by itself. First-order rules take a fixed number of steps, each one evaluation: the number, and
the rate of a hand-designed rule, are those with the fewest evaluations per hit on starts of their own. Learned rules
are meta-trained on this family for `--budget` seconds each, and also taken as shipped, from quadratics.

FIRE is Bitzek et al. (2006) with the constants of ASE, and its limit of 0.2 on a step.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _common import console, parser, show, write_record
from jaxtyping import Array

import bygrad
from bygrad.optimizers import LSTM, Adam, Optimizer, RNNprop
from bygrad.problems import LennardJones
from bygrad.problems.lennard_jones import GLOBAL_MINIMA
from bygrad.solvers import LBFGS
from bygrad.training import Recipe, meta_train
from bygrad.unroll import draw, loss_curves

NEAR = 0.1
RATES = {"Adam": (0.003, 0.01, 0.03, 0.1, 0.3), "FIRE": (0.003, 0.01, 0.03, 0.1)}


class FIRE(Optimizer):
    """Molecular dynamics that turns towards the force and stops when it runs uphill."""

    dt: float | Array = 0.1

    def init(self, params: Any) -> Any:
        return jnp.zeros_like(params), jnp.asarray(self.dt, jnp.float32), jnp.float32(0.1), jnp.float32(0)

    def update(self, grads: Any, state: Any, params: Any = None, *, value: Any = None, key: Any = None) -> Any:
        velocity, dt, mixing, count = state
        speed, size = jnp.linalg.norm(velocity), jnp.maximum(jnp.linalg.norm(grads), 1e-12)
        downhill = -jnp.sum(grads * velocity) > 0
        velocity = jnp.where(downhill, (1 - mixing) * velocity - mixing * speed * grads / size, 0.0)
        count = jnp.where(downhill, count + 1, 0.0)
        longer = count > 5
        dt = jnp.where(downhill, jnp.where(longer, jnp.minimum(1.1 * dt, 10 * self.dt), dt), 0.5 * dt)
        mixing = jnp.where(downhill, jnp.where(longer, 0.99 * mixing, mixing), 0.1)
        velocity -= dt * grads
        step = dt * velocity
        step *= jnp.minimum(1.0, 0.2 / jnp.maximum(jnp.linalg.norm(step), 1e-12))
        return step, (velocity, dt, mixing, count)


def energies(rule: Optimizer, family: LennardJones, keys: Array, steps: int) -> np.ndarray:
    """Return the lowest energy so far, `[starts, steps + 1]`."""
    curves = jax.jit(lambda rule: loss_curves(rule, family, keys, steps))(rule)
    return np.fmin.accumulate(np.nan_to_num(np.asarray(curves), nan=np.inf), axis=1)


def per_hit(lowest: np.ndarray, level: float) -> np.ndarray:
    """Return the evaluations per hit of runs that all stop after so many steps, `[steps + 1]`."""
    hits = np.sum(lowest <= level, axis=0)
    return len(lowest) * (1 + np.arange(lowest.shape[1])) / np.maximum(hits, 1e-9)


def judge(rule: Optimizer, family: LennardJones, tuning: Array, fresh: Array, steps: int) -> dict[str, Any]:
    """Choose the number of steps on the starts for tuning, and count on fresh ones."""
    level = GLOBAL_MINIMA[family.atoms] + NEAR
    best = int(np.argmin(per_hit(energies(rule, family, tuning, steps), level)))
    lowest = energies(rule, family, fresh, max(best, 1))
    return counted(int(np.sum(lowest[:, -1] <= level)), len(lowest), lowest.size)


def counted(hits: int, starts: int, evaluations: int) -> dict[str, Any]:
    """Return a row of the record; `per_hit` is None where nothing was hit."""
    rate = evaluations / hits if hits else None
    return {"starts": starts, "hits": hits, "evaluations": evaluations, "per_hit": rate}


def quasi_newton(family: LennardJones, fresh: Array) -> dict[str, Any]:
    """Count the evaluations of L-BFGS until it stops."""
    starts, _, _ = draw(family, fresh)
    found = bygrad.solve(family, np.asarray(starts, float), method=LBFGS(tol=1e-2, gain=1e-7))
    hits = int(np.sum(found.cost <= GLOBAL_MINIMA[family.atoms] + NEAR))
    return counted(hits, len(found), int(found.nfev.sum()))


def main() -> None:
    made = parser(__doc__)
    for name, default, what in (
        ("atoms", 13, "of the cluster"),
        ("starts", 2000, "held-out starts; a fourth as many more for tuning"),
        ("steps", 400, "of a first-order rule, at most"),
        ("budget", 300, "seconds of meta-training for each learned rule"),
    ):
        made.add_argument(f"--{name}", type=int, default=default, help=f"{what} (default: {default})")
    options = made.parse_args()
    if options.quick:
        options.atoms, options.starts, options.steps, options.budget = 4, 8, 8, 1
    family = LennardJones(options.atoms)
    fresh = jax.random.split(jax.random.key(1), options.starts)
    tuning = jax.random.split(jax.random.key(2), max(options.starts // 4, 4))
    rows: list[dict[str, Any]] = []

    def keep(name: str, row: dict[str, Any], **more: Any) -> None:
        rows.append({"rule": name, **row, **more})
        write_record(options.json, {"atoms": options.atoms, "steps": options.steps, "rows": rows})
        console.print(f"{name}: {row['hits']} hits of {row['starts']}, {row['evaluations']} evaluations")

    keep("L-BFGS (bygrad.solve)", quasi_newton(family, fresh))
    for name, make in {"FIRE": FIRE, "Adam": Adam}.items():
        rates = RATES[name][:2] if options.quick else RATES[name]
        level = GLOBAL_MINIMA[family.atoms] + NEAR
        tried = [energies(make(jnp.float32(rate)), family, tuning, options.steps) for rate in rates]
        rate = rates[int(np.argmin([per_hit(lowest, level).min() for lowest in tried]))]
        keep(f"{name}, tuned", judge(make(jnp.float32(rate)), family, tuning, fresh, options.steps), rate=rate)
    shipped = bygrad.load("paper/quadratic")
    keep("LSTM, as shipped (paper/quadratic)", judge(shipped, family, tuning, fresh, options.steps))
    horizon = min(options.steps, 200)
    recipe = Recipe(
        horizon=horizon,
        truncation=min(20, horizon // 2),
        instances=2 if options.quick else 64,
        meta_steps=2 if options.quick else 100_000,
        validation_runs=2 if options.quick else 256,
        seconds=options.budget,
    )
    for name, rule in {"LSTM": LSTM(jax.random.key(0)), "RNNprop": RNNprop(jax.random.key(0))}.items():
        trained = meta_train(rule, family, recipe).optimizer
        row = judge(trained, family, tuning, fresh, options.steps)
        keep(f"{name}, meta-trained here", row, meta_training_wall_seconds=options.budget)

    show(
        f"{options.atoms} atoms",
        [
            {
                "rule": row["rule"],
                "hits": f"{row['hits'] / row['starts']:.1%}",
                "evaluations per hit": "never" if row["per_hit"] is None else f"{row['per_hit']:.0f}",
                "against L-BFGS": f"{(row['per_hit'] or math.inf) / (rows[0]['per_hit'] or math.inf):.1f}",
            }
            for row in rows
        ],
    )


if __name__ == "__main__":
    main()
