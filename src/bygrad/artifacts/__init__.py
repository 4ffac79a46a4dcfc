"""Trained optimizers as files: one self-verifying safetensors file each, and those shipped with bygrad.

    from bygrad.artifacts import find, load
    artifact = load(find("paper/mnist"))
    artifact.manifest.optimizer, artifact.tensors

An artifact holds named NumPy arrays and a manifest that says which optimizer they belong to, how they were trained
and what they reached. Loading gives exactly what was saved or an `ArtifactError`: every single changed, missing or
added byte is refused, and so is whatever could run code. This room needs NumPy only and never imports JAX.
"""

from .errors import ArtifactError
from .file import Artifact, from_bytes, load, save, to_bytes
from .manifest import SCHEMA, SOLVER, Manifest, own_name
from .shipped import find, shipped_names
from .tensors import TensorSpec, describe, to_compute_with
from .trajectory import Step, Trajectory, draw_steps

__all__ = [
    "SCHEMA",
    "SOLVER",
    "Artifact",
    "ArtifactError",
    "Manifest",
    "Step",
    "TensorSpec",
    "Trajectory",
    "describe",
    "draw_steps",
    "find",
    "from_bytes",
    "load",
    "own_name",
    "save",
    "shipped_names",
    "to_bytes",
    "to_compute_with",
]
