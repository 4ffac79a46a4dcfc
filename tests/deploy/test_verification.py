"""An artifact is replayed where it is used, and what differs is refused with a number."""

import dataclasses
import importlib.util
from typing import Any

import jax
import numpy as np
import pytest

import bygrad
from bygrad.artifacts import Artifact, ArtifactError, Manifest, describe, find, load, save, shipped_names
from bygrad.cli import main
from bygrad.deploy import verify
from bygrad.deploy.jax import from_artifact
from bygrad.optimizers import LEARNED, LSTM

ABOUT = {"name": "test/one", "training": {}, "validation": {}}
HAS_TORCH = importlib.util.find_spec("torch") is not None


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    path = tmp_path_factory.mktemp("artifacts") / "one.safetensors"
    return bygrad.export(LSTM(jax.random.key(0), (3,)), path, **ABOUT)


def with_tensors(artifact: Artifact, tensors: dict[str, np.ndarray], **fields: Any) -> Artifact:
    return Artifact(dataclasses.replace(artifact.manifest, tensors=describe(tensors), **fields), tensors)


@pytest.mark.core
@pytest.mark.parametrize("name", shipped_names())
def test_shipped_artifacts_do_here_what_they_did(name):
    in_jax, *others = verify(name)
    assert in_jax.framework == "JAX"
    assert in_jax.deviation is not None and in_jax.deviation < 1e-4
    for replay in others:
        assert replay.deviation is not None or replay.remark
        assert replay.deviation is None or replay.deviation < 1e-4


@pytest.mark.parametrize("name", ["Controller"])  # the others are as those above
def test_what_is_exported_is_verified(name, tmp_path):
    bygrad.export(LEARNED[name](jax.random.key(1)), tmp_path / "it.safetensors", **ABOUT)
    in_jax, in_torch = verify(tmp_path / "it.safetensors")
    assert (in_jax.framework, in_torch.framework) == ("JAX", "PyTorch")
    assert in_jax.deviation == 0.0
    assert in_torch.deviation is None or in_torch.deviation < 1e-4


def test_other_meta_parameters_are_noticed(artifact):
    tensors = dict(artifact.tensors)
    tensors["layers/0/weight"] = tensors["layers/0/weight"] * np.float32(1.01)
    with pytest.raises(ArtifactError, match=r"test/one: its updates in JAX are off by .* and 0.0001 is allowed"):
        verify(with_tensors(artifact, tensors))


@pytest.mark.skipif(not HAS_TORCH, reason="PyTorch is not installed")
def test_another_arithmetic_in_torch_is_noticed(artifact, monkeypatch):
    from bygrad.deploy.torch_rules import lstm

    monkeypatch.setattr(lstm, "FORGET_BIAS", 0.9)
    with pytest.raises(ArtifactError, match=r"its updates in PyTorch are off by"):
        verify(artifact)


def test_an_artifact_of_before_there_were_trajectories_says_so(artifact, tmp_path, capsys):
    fields = {name: getattr(artifact.manifest, name) for name in type(artifact.manifest).__dataclass_fields__}
    old = Artifact(Manifest(**{**fields, "schema": 1, "trajectory": {}}), artifact.tensors)
    save(tmp_path / "old.safetensors", old)
    assert load(tmp_path / "old.safetensors").manifest.schema == 1
    assert from_artifact(load(tmp_path / "old.safetensors")).config == from_artifact(artifact).config
    assert all(it.deviation is None and "before there were any" in it.remark for it in verify(old))
    main(["verify", str(tmp_path / "old.safetensors")])
    assert "no golden trajectory" in capsys.readouterr().out


def test_a_rule_that_torch_does_not_have_is_a_remark(artifact, monkeypatch):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    from bygrad.deploy import verification

    monkeypatch.setattr(verification, "IN_TORCH", ("Other",))
    in_jax, in_torch = verify(artifact)
    assert in_jax.deviation == 0.0
    assert in_torch.deviation is None and "LSTM cannot be run in PyTorch, which has Other" in in_torch.remark


def test_what_a_framework_cannot_do_is_no_remark(artifact, monkeypatch):
    from bygrad.deploy import verification

    def fail(*arguments):
        raise NotImplementedError("no such kernel")

    monkeypatch.setattr(verification, "_in_jax", fail)
    with pytest.raises(NotImplementedError, match="no such kernel"):
        verify(artifact)


def test_the_command_says_what_came_out(tmp_path, capsys):
    main(["verify", "paper/quadratic"])
    shown = capsys.readouterr().out
    assert "JAX: off by" in shown and "nothing that was replayed differs" in shown
    path = tmp_path / "cut.safetensors"
    path.write_bytes(find("paper/quadratic").read_bytes()[:-4])
    with pytest.raises(SystemExit) as caught:
        main(["verify", str(path)])
    assert caught.value.code == 2
    assert "cut short" in " ".join(capsys.readouterr().err.split())
