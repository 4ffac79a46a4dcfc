"""Whether an artifact takes the steps here that it took where it was written."""

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .._core.sizes import IN_TORCH
from ..artifacts import SOLVER, Artifact, ArtifactError, Trajectory, find, load
from ..artifacts.trajectory import Arrays


@dataclass(frozen=True)
class Replay:
    """The golden trajectory replayed in a `framework`: its `deviation` from the file, or why it was not replayed."""

    framework: str
    deviation: float | None
    remark: str = ""


def verify(artifact: Artifact | str | os.PathLike[str]) -> list[Replay]:
    """Read an artifact, which checks every byte of it, and replay its golden trajectory in JAX and in PyTorch.

    **Arguments:** `artifact`: a shipped artifact by name, a file, or an artifact that was read.

    **Returns:** What came out, for each framework: an artifact without a trajectory, a framework that is
    not installed, and a rule that PyTorch does not have are remarks.

    **Raises:** `ArtifactError` as `load` does, and where a replay is off by more than the tolerance that the file says.

        >>> [replay.framework for replay in verify("paper/quadratic")]
        ['JAX', 'PyTorch']
    """
    if not isinstance(artifact, Artifact):
        artifact = load(find(artifact))
    if not artifact.manifest.trajectory:
        remark = (
            "a learned solver, which checks its own answers: only its bytes are verified"
            if artifact.manifest.optimizer == SOLVER
            else "no golden trajectory in the file, written before there were any: only its bytes are verified"
        )
        return [Replay(framework, None, remark) for framework in ("JAX", "PyTorch")]
    golden = Trajectory.from_fields(artifact.manifest.trajectory)
    why = _missing_in_torch(artifact)
    return [
        _replay("JAX", _in_jax, artifact, golden),
        Replay("PyTorch", None, why) if why else _replay("PyTorch", _in_torch, artifact, golden),
    ]


def _replay(
    framework: str, run: Callable[[Artifact, Trajectory], list[Arrays]], artifact: Artifact, golden: Trajectory
) -> Replay:
    deviation = golden.deviation(run(artifact, golden))
    if deviation <= golden.tolerance:
        return Replay(framework, deviation)
    raise ArtifactError(
        f"{artifact.manifest.name}: its updates in {framework} are off by {deviation:.2g} of the largest, and"
        f" {golden.tolerance:.2g} is allowed",
        "It does not do here what it did when it was written",
        f"Use the versions that it was written with ({artifact.manifest.versions}), and report this",
    )


def _in_jax(artifact: Artifact, golden: Trajectory) -> list[dict[str, np.ndarray]]:
    from .jax import from_artifact, replay

    return replay(from_artifact(artifact), golden.steps)


def _missing_in_torch(artifact: Artifact) -> str:
    """Say why it cannot be replayed in PyTorch; nothing where it can."""
    if artifact.manifest.optimizer not in IN_TORCH:
        return f"{artifact.manifest.optimizer} cannot be run in PyTorch, which has {', '.join(IN_TORCH)}"
    return "" if importlib.util.find_spec("torch") else "PyTorch is not installed: pip install torch"


def _in_torch(artifact: Artifact, golden: Trajectory) -> list[dict[str, np.ndarray]]:
    from .torch import replay

    return replay(artifact, golden.steps)
