"""A small artifact: every byte of its file can be tried."""

import numpy as np
import pytest

from bygrad.artifacts import Artifact, Manifest, describe, to_bytes


@pytest.fixture(scope="session")
def artifact() -> Artifact:
    tensors = {"w": np.arange(6, dtype=np.float32).reshape(2, 3) - 2.5, "rate": np.array(0.1, np.float64)}
    return Artifact(
        Manifest(
            name="test/small",
            optimizer="LSTM",
            config={"hidden": 3, "scales": (1.0, 0.5)},
            features=1,
            tensors=describe(tensors),
            training={"family": "Quadratic", "horizon": 100, "seed": 0},
            versions={"bygrad": "0.1.0"},
        ),
        tensors,
    )


@pytest.fixture(scope="session")
def data(artifact: Artifact) -> bytes:
    return to_bytes(artifact)
