"""Tensors that could not be stored, or should not be, are refused by name before anything is written."""

from typing import Any

import numpy as np
import pytest

from bygrad.artifacts import Artifact, ArtifactError, describe, to_compute_with
from bygrad.artifacts.tensors import own


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_values_that_are_not_finite_are_refused(artifact: Artifact, value: float, dtype: type) -> None:
    tensors = {"rate": np.array(0.1), "w": np.array([[1, 2, 3], [4, value, 6]], dtype)}
    with pytest.raises(ArtifactError, match=r"'w' has 1 of 6 values .* at index \(1, 1\)\. .*earlier meta-step"):
        describe(tensors)
    with pytest.raises(ArtifactError, match="'w' has 1 of 6 values that are not finite"):
        Artifact(artifact.manifest, tensors)


def test_rules_compute_in_float32_at_least_and_with_what_it_holds() -> None:
    found = to_compute_with({"h": np.ones(2, np.float16), "w": np.ones(2), "n": np.ones(2, np.int32)})
    assert {name: it.dtype.name for name, it in found.items()} == {"h": "float32", "w": "float64", "n": "int32"}
    with pytest.raises(ArtifactError, match=r"'w' has 1 of 2 values that are not finite, .* inf at index \(1,\)"):
        to_compute_with({"w": np.array([1.0, 1e39])})


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"w": [1.0]}, "tensor 'w' is of type list. An artifact holds NumPy arrays only. Convert it with np.asarray."),
        ({"w": np.ones(2, bool)}, "tensor 'w' has dtype bool.* holds float16, float32, float64, int32, int64 only"),
        ({"w": np.ones(2, complex)}, "tensor 'w' has dtype complex128.*Convert it with .astype"),
        ({"w": np.array(["x"], object)}, "tensor 'w' has dtype object.*Convert it with .astype"),
        ({"": np.ones(2)}, "the tensor name '' is not a non-empty Unicode string.*Name each tensor by its place"),
        ({"__metadata__": np.ones(2)}, "the tensor name '__metadata__' is not"),
        ({"\ud800": np.ones(2)}, "the tensor name .* is not a non-empty Unicode string"),
        ({3: np.ones(2)}, "the tensor name 3 is not"),
    ],
)
def test_tensors_that_cannot_be_stored_are_refused(tensors: dict[Any, Any], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        own(tensors)
