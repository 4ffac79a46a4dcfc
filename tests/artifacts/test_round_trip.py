"""What is saved comes back, and comes back the same; other programs can read it; a failed save harms nothing."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from bygrad.artifacts import Artifact, ArtifactError, Manifest, describe, from_bytes, load, save, to_bytes
from bygrad.artifacts.layout import MAX_HEADER

pytestmark = pytest.mark.core

DTYPES = [np.float16, np.float32, np.float64, np.int32, np.int64]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def make(tensors: dict[str, np.ndarray], **fields: object) -> Artifact:
    settings = {"name": "test", "optimizer": "LSTM", "config": {}, "features": 1, "tensors": describe(tensors)}
    return Artifact(Manifest(**{**settings, **fields}), tensors)


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
    finite = hnp.from_dtype(dtype, allow_nan=False, allow_infinity=False)
    return draw(hnp.arrays(dtype, shape, elements=finite))


@hypothesis.settings(max_examples=60)
@hypothesis.given(
    st.dictionaries(st.text(min_size=1, max_size=8), arrays(), max_size=4),
    st.dictionaries(st.text(max_size=5), JSON, max_size=3),
)
def test_everything_comes_back(tensors: dict[str, np.ndarray], training: dict[str, object]) -> None:
    artifact = make(tensors, training=training)
    data = to_bytes(artifact)
    result = from_bytes(data)
    assert result == artifact
    assert result.manifest.training == training
    assert to_bytes(result) == data
    theirs = safetensors.numpy.load(data)
    assert result.tensors.keys() == tensors.keys() == theirs.keys()
    for name, array in tensors.items():
        for copy in (result.tensors[name], theirs[name]):
            assert (copy.dtype, copy.shape, copy.tobytes()) == (array.dtype, array.shape, array.tobytes())


def test_save_load_save_gives_identical_files(artifact: Artifact, tmp_path: Path) -> None:
    first, second = tmp_path / "new" / "first.safetensors", tmp_path / "second.safetensors"
    save(first, artifact)
    save(second, load(first))
    assert first.read_bytes() == second.read_bytes() == to_bytes(artifact)
    assert load(str(first)) == artifact


def test_the_order_of_tensors_and_fields_leaves_no_trace() -> None:
    one, two = np.ones(2, np.float32), np.zeros(3, np.float32)
    forward = make({"a": one, "b": two}, config={"x": 1, "y": {"p": 1, "q": 2}})
    backward = make({"b": two, "a": one}, config={"y": {"q": 2, "p": 1}, "x": 1})
    assert to_bytes(forward) == to_bytes(backward)


def test_layout_in_memory_leaves_no_trace() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    plain = to_bytes(make({"w": array}))
    assert to_bytes(make({"w": np.asfortranarray(array)})) == plain
    assert to_bytes(make({"w": array.astype(">f4")})) == plain
    assert to_bytes(make({"w": np.repeat(array, 2, axis=1)[:, ::2]})) == plain


def test_the_file_is_what_the_description_says(artifact: Artifact, data: bytes) -> None:
    """An independent reading of the format, without the code that wrote it."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert length % 8 == 0
    assert list(header) == ["__metadata__", "rate", "w"]
    assert header["rate"] == {"dtype": "F64", "shape": [], "data_offsets": [0, 8]}
    assert header["w"] == {"dtype": "F32", "shape": [2, 3], "data_offsets": [8, 32]}
    assert len(data) == 8 + length + 32
    digest = header["__metadata__"]["sha256"]
    assert hashlib.sha256(data.replace(digest.encode(), b"0" * 64)).hexdigest() == digest
    manifest = json.loads(header["__metadata__"]["bygrad"])
    assert manifest["tensors"]["w"]["sha256"] == hashlib.sha256(artifact.tensors["w"].tobytes()).hexdigest()
    assert manifest["schema"] == 2
    assert manifest["config"] == {"hidden": 3, "scales": [1.0, 0.5]}
    assert manifest["licence"] == "Apache-2.0"


def test_safetensors_reads_the_metadata(artifact: Artifact, tmp_path: Path) -> None:
    save(tmp_path / "a.safetensors", artifact)
    with safetensors.safe_open(tmp_path / "a.safetensors", framework="numpy") as file:
        assert Manifest.from_json(file.metadata()["bygrad"]) == artifact.manifest
        np.testing.assert_array_equal(file.get_tensor("w"), artifact.tensors["w"])


def test_artifacts_own_their_tensors() -> None:
    array = np.zeros(3, np.float32)
    artifact = make({"w": array})
    array[0] = 1
    assert artifact.tensors["w"][0] == 0
    for held in (artifact, from_bytes(to_bytes(artifact))):
        with pytest.raises(ValueError, match="read-only"):
            held.tensors["w"][0] = 1


def test_a_change_behind_the_back_is_not_saved() -> None:
    artifact = make({"w": np.zeros(3, np.float32)}, training={"loss": 1.0})
    artifact.tensors["w"] = np.ones(3, np.float32)
    with pytest.raises(ArtifactError, match=r"tensor 'w' has sha256 .* and the manifest says"):
        to_bytes(artifact)
    artifact = make({}, training={"loss": 1.0})
    artifact.manifest.training["loss"] = float("nan")
    with pytest.raises(ArtifactError, match=r"training\.loss is nan.*Leave it out, or store None"):
        to_bytes(artifact)


def test_a_header_that_could_not_be_read_back_is_not_written() -> None:
    with pytest.raises(ArtifactError, match=r"at most 1,048,576 are read back\. .*Keep curves and logs out"):
        to_bytes(make({}, training={"curve": "x" * MAX_HEADER}))


def test_a_failed_save_leaves_the_previous_file(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.safetensors"
    save(path, artifact)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="No space left"):
            save(path, make({"w": np.ones(2, np.float32)}))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    assert load(path) == artifact


def test_a_refused_save_leaves_the_previous_file(artifact: Artifact, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save(path, artifact)
    broken = make({"w": np.ones(2, np.float32)})
    broken.tensors["w"] = np.float32([np.nan, 1])
    with pytest.raises(ArtifactError, match="'w' has 1 of 2 values that are not finite"):
        save(path, broken)
    assert load(path) == artifact


def test_needs_no_jax(tmp_path: Path, artifact: Artifact) -> None:
    save(tmp_path / "a.safetensors", artifact)
    code = (
        "import sys, bygrad.artifacts as a\n"
        "a.load(sys.argv[1]); a.shipped_names()\n"
        "assert not {'jax', 'equinox', 'torch'} & sys.modules.keys()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
