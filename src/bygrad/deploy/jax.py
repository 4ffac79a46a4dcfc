"""Artifacts as optimizers in JAX."""

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

from ..artifacts import Artifact, ArtifactError, Manifest, describe, find
from ..artifacts import load as load_artifact
from ..artifacts import save as save_artifact
from ..optimizers import LEARNED, Optimizer, Portable, from_portable, to_portable


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
    """Return the trained optimizer of an artifact that was read. **Raises:** `ArtifactError` if it cannot be rebuilt."""
    manifest = artifact.manifest
    try:
        return from_portable(
            Portable(manifest.optimizer, manifest.config, manifest.features, dict(artifact.tensors)), LEARNED
        )
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
    """Write a learned optimizer as an artifact and return it.

    **Arguments:** `name`: what the artifact calls itself, as in `mine/mnist`. `training`: what it was trained on and
    how. `validation`: what it reached on held-out instances. Both are JSON values.
    """
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
    save_artifact(Path(path), artifact)
    return artifact


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide results."""
    packages = ("bygrad", "jax", "jaxlib", "equinox", "optax", "numpy")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in packages}}
