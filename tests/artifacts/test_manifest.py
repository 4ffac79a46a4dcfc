"""The manifest is read strictly: nothing guessed, nothing ignored, every refusal by name."""

import dataclasses
import json
import pickle  # noqa: TID251 - errors travel between processes that way
from typing import Any

import numpy as np
import pytest

from bygrad.artifacts import SCHEMA, Artifact, ArtifactError, Manifest, TensorSpec, own_name

FIELDS = [field.name for field in dataclasses.fields(Manifest)]


def fields(artifact: Artifact, **changes: Any) -> str:
    return json.dumps({**json.loads(artifact.manifest.to_json()), **changes})


def refused(text: str, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        Manifest.from_json(text)


def test_round_trip(artifact: Artifact) -> None:
    text = artifact.manifest.to_json()
    assert Manifest.from_json(text) == artifact.manifest
    assert Manifest.from_json(text).to_json() == text
    assert Manifest.from_json(json.dumps(json.loads(text), indent=2)) == artifact.manifest
    assert artifact.manifest.schema == SCHEMA == 2


def test_the_first_schema_has_no_trajectory_and_stays_as_it_is(artifact: Artifact) -> None:
    found = json.loads(artifact.manifest.to_json())
    del found["trajectory"]
    text = json.dumps({**found, "schema": 1}, separators=(",", ":"), sort_keys=True)
    old = Manifest.from_json(text)
    assert old.to_json() == text
    assert old.digest == artifact.manifest.digest
    refused(json.dumps({**found, "schema": 1, "trajectory": {}}), "unknown keys: 'trajectory'")
    refused(json.dumps(found), "missing keys: 'trajectory'")
    with pytest.raises(ArtifactError, match=r"schema is 1\. .*it has no trajectory, and there is one"):
        dataclasses.replace(old, trajectory={"steps": []})


def test_the_digest_is_of_what_decides_the_steps_and_of_nothing_else(artifact: Artifact) -> None:
    manifest = artifact.manifest
    same = dataclasses.replace(manifest, name="other", training={}, licence="MIT", versions={})
    assert same.digest == manifest.digest
    spec = TensorSpec("F32", (2,), "0" * 64)
    for changes in ({"optimizer": "GRU"}, {"config": {}}, {"features": 2}, {"tensors": {"w": spec}}):
        assert dataclasses.replace(manifest, **changes).digest != manifest.digest


def test_frozen_and_apart_from_what_it_was_made_of() -> None:
    config = {"sizes": [1, 2]}
    manifest = Manifest(name="test", optimizer="LSTM", config=config, features=1, tensors={})
    config["sizes"].append(3)
    assert manifest.config == {"sizes": [1, 2]}
    with pytest.raises(dataclasses.FrozenInstanceError):
        manifest.name = "other"  # pyright: ignore


@pytest.mark.parametrize("name", FIELDS)
def test_a_missing_key_is_named(artifact: Artifact, name: str) -> None:
    found = json.loads(artifact.manifest.to_json())
    del found[name]
    refused(json.dumps(found), f"missing keys: '{name}'; unknown keys: none. .*write it with bygrad.artifacts.save")


def test_an_unknown_key_is_named(artifact: Artifact) -> None:
    refused(fields(artifact, license="MIT"), "missing keys: none; unknown keys: 'license'")
    many = {f"key{index:02}": 0 for index in range(30)}
    refused(fields(artifact, **many), "'key09' and 20 more")


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("value", [None, True, 1.5, [1]])
def test_a_wrong_type_is_named(artifact: Artifact, name: str, value: object) -> None:
    refused(fields(artifact, **{name: value}), f"manifest's {name} is .* of type {type(value).__name__}, not .*Give a")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 3}, r"written by a newer bygrad \(schema 3; this one reads up to 2\)\. .*Upgrade"),
        ({"schema": 10**50}, "written by a newer bygrad"),
        ({"schema": 0}, "schema is 0. .*the first was 1"),
        ({"features": -1}, "features is -1"),
        ({"name": ""}, "name is ''"),
        ({"optimizer": "os.system('x')"}, "optimizer is .*Use the name of the class"),
        ({"licence": ""}, "licence is ''.*SPDX"),
        ({"versions": {"jax": 1}}, "version of 'jax' is 1 of type int, not str"),
        ({"tensors": {"w": []}}, r"tensor 'w' is \[\] of type list"),
        ({"tensors": {"w": {"dtype": "F32", "shape": [1]}}}, "tensor 'w' has missing keys: 'sha256'"),
        ({"tensors": {"w": {"dtype": "F32", "shape": [1], "sha256": "AB"}}}, "tensor 'w': the sha256 'AB' is not 64"),
        ({"tensors": {"w": {"dtype": "F8", "shape": [1], "sha256": "0" * 64}}}, "tensor 'w': the dtype 'F8' is none"),
        ({"tensors": {"w": {"dtype": "F32", "shape": [-1], "sha256": "0" * 64}}}, r"tensor 'w': the shape \[-1\]"),
        ({"tensors": {"": {"dtype": "F32", "shape": [1], "sha256": "0" * 64}}}, "the tensor name '' is not"),
    ],
)
def test_a_value_that_cannot_be_is_named(artifact: Artifact, changes: dict[str, Any], message: str) -> None:
    refused(fields(artifact, **changes), message)


@pytest.mark.parametrize(
    "name", ["..", "../a", "a/../b", "/a", "a/", "a//b", "a\\b", "C:a", ".a", "a/.b", "a b", "a\n", "é"]
)
def test_a_name_that_is_no_safe_path_is_refused(artifact: Artifact, name: str) -> None:
    refused(fields(artifact, name=name), "names become paths.*as in 'paper/mnist'")


def test_numbers_that_json_does_not_have_are_refused(artifact: Artifact) -> None:
    refused(fields(artifact).replace('"seed": 0', '"seed": NaN'), "the manifest contains NaN")
    refused(fields(artifact).replace('"seed": 0', '"seed": 1e999'), r"training\.seed is inf.*Leave it out")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.float32(1), r"config\.x\[0\] is of type float32. .*a NumPy value with .item\(\)"),
        (np.ones(2), r"config\.x\[0\] is of type ndarray. .*an array with .tolist\(\)"),
        ({1: 2}, r"config\.x\[0\] has the key 1 of type int. .*Use a string"),
        ({"a b": float("inf")}, r"config\.x\[0\]\['a b'\] is inf"),
        ({1, 2}, r"config\.x\[0\] is of type set"),
    ],
)
def test_what_json_cannot_hold_is_refused_by_place(artifact: Artifact, value: object, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        dataclasses.replace(artifact.manifest, config={"x": [value]})


def test_a_config_that_contains_itself_is_refused(artifact: Artifact) -> None:
    config: dict[str, Any] = {}
    config["self"] = config
    with pytest.raises(ArtifactError, match=r"nested more than 64 levels deep.*contains itself"):
        dataclasses.replace(artifact.manifest, config=config)


def test_tensor_specs_hold_tuples() -> None:
    assert TensorSpec("F32", (2,), "0" * 64).shape == (2,)


def test_errors_travel_between_processes() -> None:
    error = ArtifactError("a", "b", "c").at("path")
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert str(copy) == str(error) == "path: a. b. c."
    assert isinstance(error, ValueError)


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("Bowl", "mine/bowl"),
        ("my_family.v2", "mine/my_family.v2"),
        ("my problem", "mine/my-problem"),
        ("_Decay", "mine/decay"),
        ("..", "mine/family"),
        ("Größe", "mine/gr-e"),
        ("問題", "mine/family"),
        ("", "mine/family"),
        ("a/../b\n", "mine/a-..-b-"),
    ],
)
def test_whatever_a_family_is_called_gives_a_name(label: str, name: str) -> None:
    assert own_name(label) == Manifest(name=name, optimizer="LSTM", config={}, features=1, tensors={}).name
