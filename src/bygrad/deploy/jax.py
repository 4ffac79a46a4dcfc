"""Artifacts as optimizers in JAX."""

import dataclasses
import importlib.metadata
import itertools
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._core import trees
from .._core.draws import key_of
from ..artifacts import (
    SCHEMA,
    SOLVER,
    Artifact,
    ArtifactError,
    Manifest,
    Step,
    Trajectory,
    describe,
    draw_steps,
    find,
    to_compute_with,
)
from ..artifacts import load as load_artifact
from ..artifacts import save as save_artifact
from ..artifacts.trajectory import TOLERANCE
from ..optimizers import LEARNED, Controller, Learned, Optimizer, Partition, Portable, from_portable, to_portable


def load(name: str | os.PathLike[str]) -> Optimizer:
    """Return the trained optimizer of an artifact: one shipped with bygrad, by name, or a file.

    **Raises:** `ArtifactError` if there is no such artifact, if the file is not exactly what was written, or if this
    version of bygrad cannot rebuild the optimizer; the message says which.
    """
    path = find(name)
    artifact = load_artifact(path)
    try:
        return from_artifact(artifact)
    except ArtifactError as error:
        raise error.at(path) from error.__cause__


def from_artifact(artifact: Artifact) -> Optimizer:
    """Return the trained optimizer of an artifact. **Raises:** `ArtifactError` if it cannot be rebuilt."""
    manifest = artifact.manifest
    if manifest.optimizer == SOLVER:
        raise ArtifactError(
            f"{manifest.name} is a learned solver",
            "There is no optimizer in it",
            "Use it with `bygrad solve` and `bygrad report`, or bygrad.load_solver",
        )
    portable = Portable(manifest.optimizer, manifest.config, manifest.features, to_compute_with(artifact.tensors))
    try:
        return from_portable(portable, LEARNED)
    except ValueError as error:
        cause, _, rest = str(error).partition(". ")
        raise ArtifactError(cause, "The optimizer cannot be rebuilt from it", rest.rstrip(".")) from error


def export(
    optimizer: Optimizer,
    path: str | os.PathLike[str],
    *,
    name: str,
    training: dict[str, Any],
    validation: dict[str, Any],
) -> Artifact:
    """Write a learned optimizer as an artifact and return it, with a golden trajectory that `verify` replays. A file
    that is there already is overwritten.

    **Arguments:** `name`: what the artifact calls itself, as in `mine/mnist`. `training`: what it was trained on and
    how, `bygrad.trained_on(optimizer, family, recipe)`, say, from which a guard reads where to hand over; of anything
    else it knows no limits. `validation`: what it reached on held-out instances. Both are JSON values.

    **Raises:** `ValueError` for an optimizer that a file would not give back: a class in it is not bygrad's, whatever
    its name, or its updates are not finite. Nothing is written then.
    """
    refuse_solver(optimizer)
    portable = to_portable(optimizer)
    manifest = Manifest(
        name=name,
        optimizer=portable.name,
        config=portable.config,
        features=portable.features,
        tensors=describe(portable.tensors),
        training=training,
        validation=validation,
        versions=versions(),
    )
    artifact = Artifact(manifest, portable.tensors)
    try:
        kept = from_artifact(artifact)
        if jax.tree.structure(kept) != jax.tree.structure(_without_depth(optimizer)):
            raise ArtifactError(
                "another would be read in its place: a class in it is not bygrad's, or has settings that a file does"
                " not keep",
                "It would take other steps",
                "Build it from bygrad's own classes",
            )
    except ArtifactError as error:
        with_trajectory(artifact, optimizer)  # what is not finite has another remedy
        raise ValueError(
            f"This {portable.name} could be written, but never read again ({error.args[0]}): a file holds no code, so"
            " it can name bygrad's own classes alone. Nothing was written. Build the optimizer, its preprocessor and"
            " its parts from those, or keep the pytree yourself (equinox.tree_serialise_leaves)."
        ) from error
    # Of what the file gives back: it does not keep a controller's depth, say.
    artifact = with_trajectory(artifact, kept)
    save_artifact(Path(path), artifact)
    return artifact


def _without_depth(optimizer: Optimizer) -> Optimizer:
    """Return the optimizer as a file keeps it: the depth is the network's."""
    is_controller = lambda it: isinstance(it, Controller)  # noqa: E731
    bare = lambda it: trees.replaced(it, depth=None) if is_controller(it) else it  # noqa: E731
    return jax.tree.map(bare, optimizer, is_leaf=is_controller)


def identify(optimizer: Optimizer) -> dict[str, Any]:
    """Say which optimizer this is: its class, and of a learned one the configuration and the digest of its artifact."""
    if not isinstance(optimizer, Learned):
        return {"name": type(optimizer).__name__}
    name, config, features, tensors = to_portable(optimizer)
    manifest = Manifest(name="any", optimizer=name, config=config, features=features, tensors=describe(tensors))
    return {"name": name, "config": manifest.config, "digest": manifest.digest}


def refuse_solver(given: Any) -> None:
    """**Raises:** `TypeError` for a learned solver, which is kept in another way than an optimizer."""
    from ..solvers import LearnedSolver  # here: nothing else of this module needs the solvers

    if isinstance(given, LearnedSolver):
        raise TypeError(
            "This is a learned solver, and `export` writes learned optimizers, whose files hold other arrays. Keep it"
            " with bygrad.save_solver, and read it with bygrad.load_solver."
        )


def with_trajectory(artifact: Artifact, optimizer: Optimizer) -> Artifact:
    """Return the artifact with the golden trajectory of `optimizer`, which is the one in it."""
    steps = _steps_for(optimizer)
    updates = replay(optimizer, steps)
    if not all(np.isfinite(array).all() for step in updates for array in step.values()):
        raise ValueError(
            f"The updates of this {type(optimizer).__name__} are not finite, though gradients are, so that all params"
            " would be lost, and `verify` could replay nothing. Nothing was written. Look for arrays in it that are not"
            " finite, and export what was there before: `meta_train` returns the optimizer that validated best."
        )
    golden = Trajectory(steps, updates, TOLERANCE)
    return Artifact(
        dataclasses.replace(artifact.manifest, schema=SCHEMA, trajectory=golden.to_fields()), artifact.tensors
    )


def _steps_for(optimizer: Optimizer) -> list[Step]:
    """Draw inputs; for a partition under paths that it fits, and of every part, so that a replay hears of all."""
    steps = draw_steps()
    if not isinstance(optimizer, Partition):
        return steps
    owners = {name: optimizer.owner(name) for name in steps[0].params}
    places = {name: name for name, owner in owners.items() if owner is not None}
    others = [path for part, path in optimizer.a_path_of_each().items() if part not in owners.values()]
    places |= zip(others, itertools.cycle(owners), strict=False)
    moved = lambda arrays: {path: arrays[name] for path, name in places.items()}  # noqa: E731
    return [Step(step.value, moved(step.grads), moved(step.params)) for step in steps] if places else steps


def replay(optimizer: Optimizer, steps: Sequence[Step]) -> list[dict[str, np.ndarray]]:
    """Return the updates of an optimizer on recorded inputs. Products are exact float32, also on accelerators."""
    with jax.default_matmul_precision("highest"):
        state, updates = optimizer.init(jax.tree.map(jnp.asarray, steps[0].params)), []
        for step in steps:
            inputs = jax.tree.map(jnp.asarray, (step.grads, step.params, np.float32(step.value)))
            update, state = _take_step(optimizer, state, *inputs)
            updates.append({name: np.asarray(array, np.float32) for name, array in update.items()})
    return updates


@eqx.filter_jit
def _take_step(optimizer: Optimizer, state: Any, grads: Any, params: Any, value: Any) -> tuple[Any, Any]:
    return optimizer.update(grads, state, params, value=value, key=key_of(0))


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide results."""
    others = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "equinox", "optax", "numpy")}
    # Not from metadata, which a source tree that is not installed has none of.
    own = sys.modules[__name__.partition(".")[0]].__version__
    return {"python": platform.python_version(), "bygrad": own, **others}
