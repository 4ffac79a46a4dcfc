"""What `bygrad train` does beyond one function call: train an optimizer in a folder, and keep it."""

import dataclasses
import math
import os
import platform
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jaxtyping import PyTree

from .._core import trees
from .._core.draws import key_of
from .._core.programs import Program
from .._core.threads import in_thread
from ..deploy.jax import export, load
from ..evaluation import strict_json
from ..optimizers import Optimizer, declare
from ..problems import ProblemFamily, describe_family
from ..training import (
    Log,
    MetaTrained,
    Recipe,
    RolledBack,
    Stepped,
    Validated,
    describe,
    from_lead,
    is_begun,
    meet,
    meta_train,
)
from ..training.folder import LOG
from ..unroll import Inner, apart, begin, rollout
from .display import Display
from .folder import refuse_used

METATRAINING = "metatraining"
"""In the folder of a training, where its log and its checkpoint are."""

MEASURES = {"area": "area", "final": "final loss"}

PIECE = 100
"""Steps at most whose gradients are looked at together."""

ENTRIES = 10_000_000
"""Gradient entries at most that are looked at in all, and held at a time, but for those of a single step."""

RUNS = 4
"""On how many instances."""

AnyOptimizer = TypeVar("AnyOptimizer", bound=Optimizer)


def train(
    optimizer: AnyOptimizer,
    family: ProblemFamily,
    recipe: Recipe,
    folder: Path,
    display: Display,
    *,
    name: str,
    resume: bool = False,
    levels: Mapping[str, float] | None = None,
) -> MetaTrained[AnyOptimizer]:
    """Meta-train in `folder`, showing progress, and keep the result there as `optimizer.safetensors`.

    In a job of several processes, process 0 keeps it, and the others wait until it has.

    **Arguments:** `name`: what the artifact calls itself. `levels`: of tuned baselines, in the measure that the recipe
    selects by, to compare progress with.
    """
    display.levels, display.measure = levels or {}, recipe.select
    trained = meta_train(optimizer, family, recipe, folder=folder / METATRAINING, resume=resume, watch=display.event)
    if jax.process_index() == 0:
        _keep(trained, family, recipe, folder, name, display)
    meet("kept")
    return trained


def train_or_read(
    optimizer: Optimizer,
    family: ProblemFamily,
    recipe: Recipe,
    folder: Path,
    display: Display,
    *,
    name: str,
    levels: Mapping[str, float] | None = None,
) -> MetaTrained[Any]:
    """`train`, but for what an earlier run has done in the folder: what is finished is read, what is begun goes on."""
    resume = is_begun(folder / METATRAINING)
    return finished(folder) or train(
        optimizer, family, recipe, folder, display, name=name, resume=resume, levels=levels
    )


def may_resume(folder: Path, display: Display) -> bool:
    """Whether `train` left something to go on from; where nothing was begun, say so.

    **Raises:** `FileExistsError`: the folder holds something else.
    """
    kept = folder / METATRAINING
    if from_lead(lambda: str(is_begun(kept) or (kept / LOG).exists()).encode()) == b"True":
        return True
    refuse_used(folder, resumable=False)
    display.say(f"nothing was begun in {folder}: meta-training starts")
    return False


def train_seeds(
    start: Callable[[int], AnyOptimizer],
    family: ProblemFamily,
    recipe: Recipe,
    seeds: Iterable[int],
    folder: Path,
    display: Display,
    *,
    name: str,
) -> Iterator[tuple[int, MetaTrained[Any]]]:
    """Train from every seed, in a folder of its own, or read what an interrupted run has trained there.

    **Arguments:** `start`: returns the untrained optimizer of a seed.
    """
    for seed in seeds:
        part = folder / f"seed-{seed}"
        display.say(f"{name}, seed {seed}")
        seeded = dataclasses.replace(recipe, seed=seed)
        yield seed, train_or_read(start(seed), family, seeded, part, display, name=f"{name}-{seed}")


def finished(folder: Path) -> MetaTrained[Optimizer] | None:
    """Read what `train` has kept in a folder, if it came to its end: for that, the checkpoint is not needed."""
    artifact, log = folder / "optimizer.safetensors", Log(None)
    if (text := folder / METATRAINING / LOG).exists() and artifact.exists():
        log.recall(text.read_text(), sys.maxsize, math.inf)
    if not (best := [event for event in log.of(Validated) if event.best]):
        return None
    return MetaTrained(load(artifact), dataclasses.replace(best[-1], seconds=log.events[-1].seconds), log)


def _keep(
    trained: MetaTrained[Any], family: ProblemFamily, recipe: Recipe, folder: Path, name: str, display: Display
) -> None:
    export(
        trained.optimizer,
        folder / "optimizer.safetensors",
        name=name,
        training=trained_on(trained.optimizer, family, recipe, display.phase),
        # Infinite where no validation was finite, and the optimizer is the one that came in.
        validation=strict_json({key: getattr(trained.best, key) for key in ("step", "area", "final")}),
    )


def trained_on(
    optimizer: Optimizer, family: ProblemFamily, recipe: Recipe, watch: Callable[[str, int, int], None] | None = None
) -> dict[str, Any]:
    """Return what an artifact says of its training, for `export`; an `Envelope` reads from it where a guard hands over.

    **Arguments:** `optimizer`: the trained one. `family`, `recipe`: those that `meta_train` was given. `watch`: is
    called with what is done, how many steps of how many.

    **Returns:** The family and the recipe in words, the number of params (the least and the most, where members of a
    mixture differ), and the sizes of the gradients that the optimizer meets, for which it runs on four instances, of
    every member, over the recipe's horizon.

    **Example:**

        >>> import jax, bygrad
        >>> optimizer, family = bygrad.LSTM(jax.random.key(0), (4,)), bygrad.Quadratic()
        >>> training = trained_on(optimizer, family, bygrad.Recipe(horizon=20))
        >>> bygrad.Envelope.from_training(training).horizon
        20
    """
    counts = {_parameter_count(part) for part, _ in family.parts()}
    return strict_json(
        {
            "family": describe_family(family),
            "parameter_count": counts.pop() if len(counts) == 1 else [min(counts), max(counts)],
            "gradient_scale": gradient_scale(optimizer, family, recipe, watch),
            "recipe": describe(recipe),
        }
    )


def _parameter_count(family: ProblemFamily) -> int:
    example = jax.eval_shape(lambda key: family.init(family.sample(key), key), key_of(0))
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(example))


def gradient_scale(
    optimizer: Optimizer,
    family: ProblemFamily,
    recipe: Recipe,
    watch: Callable[[str, int, int], None] | None = None,
) -> dict[str, float]:
    """Quantiles of the sizes of the nonzero gradient entries that a trained optimizer meets over its horizon; of a
    mixture, the lowest and the highest on any of its members, and the middle of the medians."""
    keys = jax.random.split(key_of(recipe.seed + 1), RUNS)
    optimizer = declare(optimizer, recipe.horizon)
    starts = range(0, RUNS, most := recipe.validation_runs)  # for so many at a time there was room
    parts = [(member, [its[at : at + most] for at in starts]) for member, _, its in apart(family, keys)]
    done, of = 0, len(parts) * len(starts) * recipe.horizon

    def told(steps: int) -> None:
        nonlocal done
        if watch is not None:
            watch("measuring gradients", done, of)
        done += steps

    found = [
        np.concatenate([_gradient_sizes(optimizer, member, some, recipe, told) for some in its])
        for member, its in parts
    ]
    if not (found := [it for it in found if it.size]):
        return {}
    of_members = {q: [float(np.quantile(it, q)) for it in found] for q in (0.01, 0.1, 0.5, 0.9, 0.99)}
    return {
        f"{q:g}": min(it) if q < 0.5 else max(it) if q > 0.5 else float(np.median(it)) for q, it in of_members.items()
    }


def _gradient_sizes(
    optimizer: Optimizer, family: ProblemFamily, keys: Any, recipe: Recipe, told: Callable[[int], None]
) -> np.ndarray:
    """Run in pieces, and of large ones look at some entries, so that a long run does not fill the memory; `told` is
    called with the steps of each before it."""
    # Copied, as what starts at its instance shares its memory, and memory can be given up once only.
    rng, inner, sizes = np.random.default_rng(recipe.seed), trees.copied(begin(optimizer, family, keys)), []
    of_a_step = sum(leaf.size for leaf in jax.tree.leaves(inner.params))
    piece = max(1, min(PIECE, ENTRIES // of_a_step))
    for done in range(0, recipe.horizon, piece):
        steps = min(piece, recipe.horizon - done)
        told(steps)
        inner, seen = in_thread(_grads, (optimizer, family), inner, steps)
        entries = np.concatenate([np.abs(np.ravel(leaf)) for leaf in jax.tree.leaves(seen)])
        most = ENTRIES * steps // recipe.horizon
        sizes.append(entries if len(entries) <= most else rng.choice(entries, most))
    sizes = np.concatenate(sizes)
    return sizes[(sizes > 0) & np.isfinite(sizes)]


def _seen_grads(fixed: tuple[Optimizer, ProblemFamily], inner: Inner, steps: int) -> tuple[Inner, PyTree]:
    inner, seen = rollout(*fixed, inner, steps)
    return inner, seen.grads


_grads = Program(_seen_grads, donate="all-except-first")  # a state may be twenty times its params


def meta_training_results(
    trained: MetaTrained[Any], recipe: Recipe, levels: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """Write the course of a meta-training as the `meta_training` of a report's results."""
    steps, validations = trained.log.of(Stepped), trained.log.of(Validated)
    return {
        "steps": [event.step for event in steps],
        "meta_loss": [event.meta_loss for event in steps],
        "validation_steps": [event.step for event in validations],
        "validation": [getattr(event, recipe.select) for event in validations],
        "validation_label": f"{MEASURES[recipe.select]} on held-out instances",
        "baselines": dict(levels or {}),
        "rollbacks": [{"step": event.step, "reason": event.reason} for event in trained.log.of(RolledBack)],
    }


def slug(text: str) -> str:
    """Return a name for a file: lower case, with hyphens for all but letters and digits."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def machine() -> str:
    """Describe the machine that measured: device, cores, system."""
    device = jax.devices()[0]
    devices = f"{jax.device_count()} device{'s' * (jax.device_count() > 1)}"
    return f"{device.device_kind} ({devices}), {os.cpu_count()} cores, {platform.machine()}"
