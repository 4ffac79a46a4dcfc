"""The rules of learned optimizers in PyTorch, one file for each: what `bygrad.optimizers` computes, without JAX."""

from ..._core.sizes import IN_TORCH
from ...artifacts import Artifact, ArtifactError, to_compute_with
from .adam import Adam
from .base import Rule, Scheduled
from .controller import Controller
from .envelope import Envelope
from .guard import Guard
from .lstm import LSTM

RULES: dict[str, type[Rule]] = dict(zip(IN_TORCH, (LSTM, Controller), strict=True))
"""The rules that PyTorch has, by the class name of the optimizer in JAX."""


def rule_of(artifact: Artifact) -> Rule:
    """Return the rule of an artifact. **Raises:** `ArtifactError` by name for one that PyTorch does not have."""
    manifest = artifact.manifest
    if manifest.optimizer not in RULES:
        raise ArtifactError(
            f"{manifest.name} is a {manifest.optimizer}, which this bygrad cannot run in PyTorch",
            f"There is no rule of that name among {', '.join(RULES)}",
            "Use it in JAX, with bygrad.deploy.optax",
        )
    rule = RULES[manifest.optimizer]
    if manifest.features != rule.feature_version:
        raise ArtifactError(
            f"{manifest.name} was trained with version {manifest.features} of {manifest.optimizer}'s features, and this"
            f" bygrad computes version {rule.feature_version} in PyTorch",
            "Its meta-parameters would mean something else",
            "Use the bygrad that it was written with, or train it again",
        )
    tensors = to_compute_with(artifact.tensors)
    try:
        if unknown := sorted(set(manifest.config) - rule.settings):
            raise ValueError(f"it has no {', '.join(unknown)}")
        return rule(manifest.config, tensors)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"the configuration and tensors of {manifest.name} are not those of {manifest.optimizer}"
            f" ({type(error).__name__}: {error})",
            "The optimizer cannot be rebuilt from it",
            "Copy the file again, or use the bygrad that it was written with",
        ) from error


__all__ = ["RULES", "Adam", "Controller", "Envelope", "Guard", "Rule", "Scheduled", "rule_of"]
