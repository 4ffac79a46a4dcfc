"""What an artifact says about itself: which optimizer, trained how, on what, with which tensors."""

import dataclasses
import hashlib
import re
from dataclasses import dataclass, field
from typing import Any

from .canonical_json import dump, listing, parse_object, plain, shorten
from .errors import ArtifactError
from .tensors import TensorSpec, check_dtype, check_names, check_shape
from .trajectory import Trajectory

SCHEMA = 2
"""The version of the manifest's fields that this bygrad writes, and the newest that it reads. The first had no
`trajectory`; artifacts of it load, and stay as they are."""

SOLVER = "LearnedSolver"
"""Stands in place of an optimizer's class in the files of `bygrad learn`."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)*")
_DAMAGED = "Copy the file again, or write it with bygrad.artifacts.save"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What an artifact says about itself.

    **Arguments:**

    - `name`: path-like, as in `"paper/mnist"`: letters, digits, `_`, `-` and `.`; no segment starts with a dot.
    - `optimizer`: name of the optimizer's class, as in `"LSTM"`.
    - `config`: static configuration of that class; JSON.
    - `features`: version (0 or more) of what the optimizer is fed. Two versions with the same tensors are two
      different optimizers, which is why the number is here and not left to the shapes.
    - `tensors`: dtype, shape and SHA-256 of every tensor; make it with `describe`.
    - `training`: where the meta-parameters come from: family and its config, horizon, truncation, meta-steps, number
      of parameters, quantiles of gradient scales, seed; JSON.
    - `validation`: what it reached on problems it was not trained on; JSON.
    - `versions`: package name to version at training time.
    - `licence`: SPDX identifier of the meta-parameters' licence.
    - `trajectory`: what the optimizer did on a few inputs, to be replayed elsewhere (`Trajectory.to_fields`); empty for
      an artifact without one.
    - `schema`: version of these fields; leave it.

    The JSON fields are copied, and tuples in them become lists, so that what is loaded equals what was saved.

    **Raises:** `ArtifactError` naming the field, for a wrong type or a value that JSON cannot hold.

        >>> manifest = Manifest(name="mine/first", optimizer="LSTM", config={"hidden": 20}, features=1, tensors={})
        >>> Manifest.from_json(manifest.to_json()) == manifest
        True
    """

    name: str
    optimizer: str
    config: dict[str, Any]
    features: int
    tensors: dict[str, TensorSpec]
    training: dict[str, Any] = field(default_factory=dict)
    validation: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    licence: str = "Apache-2.0"
    trajectory: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        _check_types(vars(self))
        check_schema({"schema": self.schema})
        if self.schema < 1:
            raise _bad_value("schema", self.schema, "the first was 1", "Leave it out")
        if self.features < 0:
            raise _bad_value("features", self.features, "versions count from 0", "Use the optimizer's feature version")
        if _NAME.fullmatch(self.name) is None:
            remedy = "Use letters, digits, '_', '-' and '.' with '/' between, as in 'paper/mnist'"
            raise _bad_value("name", self.name, "names become paths, and this is no safe one", remedy)
        if not all(part.isidentifier() for part in self.optimizer.split(".")):
            raise _bad_value("optimizer", self.optimizer, "no class has such a name", "Use the name of the class")
        if not self.licence:
            raise _bad_value("licence", self.licence, "others need to know what they may do", "Give an SPDX identifier")
        if self.schema < 2 and self.trajectory:
            raise _bad_value("schema", self.schema, "it has no trajectory, and there is one", "Leave it out")
        for name in ("config", "training", "validation", "versions", "trajectory"):
            object.__setattr__(self, name, plain(getattr(self, name), name))
        if self.trajectory:
            Trajectory.from_fields(self.trajectory)
        check_names(self.tensors)
        object.__setattr__(self, "tensors", dict(self.tensors))

    def to_json(self) -> str:
        """Return the manifest as JSON in its one spelling: keys sorted, ASCII, no spaces."""
        checked = dataclasses.replace(self)  # the dicts inside may have been changed since they were checked
        fields = dataclasses.asdict(checked)
        return dump({name: fields[name] for name in _kinds(self.schema)}, sort_keys=True)

    @property
    def digest(self) -> str:
        """SHA-256 of what decides the steps: class, configuration, features and tensors, whatever they are called."""
        what = {name: getattr(self, name) for name in ("optimizer", "config", "features")}
        tensors = {name: dataclasses.asdict(spec) for name, spec in self.tensors.items()}
        return hashlib.sha256(dump({**what, "tensors": tensors}, sort_keys=True).encode("ascii")).hexdigest()

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Return the manifest in `text`. **Raises:** `ArtifactError` as `from_fields` does, and for what is no JSON."""
        return cls.from_fields(parse_object(text, "the manifest"))

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> "Manifest":
        """Return the manifest with these parsed JSON `fields`.

        **Raises:** `ArtifactError` naming the key, for one that is unknown, missing or of a wrong type; nothing is
        guessed and nothing ignored. A newer schema is told first, since it explains the rest.
        """
        check_schema(fields)
        _check_keys("the manifest", fields, set(_kinds(fields.get("schema"))))
        _check_type("tensors", fields["tensors"], dict)
        tensors = {name: _spec(name, value) for name, value in fields["tensors"].items()}
        known = {"trajectory": {}, **fields, "tensors": tensors}
        _check_types(known)
        return cls(**known)


_KINDS: dict[str, type] = {
    "schema": int,
    "name": str,
    "optimizer": str,
    "config": dict,
    "features": int,
    "tensors": dict,
    "training": dict,
    "validation": dict,
    "versions": dict,
    "licence": str,
    "trajectory": dict,
}


def _kinds(schema: object) -> dict[str, type]:
    """The fields of a schema."""
    first = type(schema) is int and schema == 1
    return {name: kind for name, kind in _KINDS.items() if not (first and name == "trajectory")}


def own_name(label: str) -> str:
    """Return a name under `mine/` for what a label describes; what no name can hold becomes a hyphen.

    >>> own_name("Bowl"), own_name("_Decay"), own_name("my problem"), own_name("問題")
    ('mine/bowl', 'mine/decay', 'mine/my-problem', 'mine/family')
    """
    return "mine/" + (re.sub(r"[^a-z0-9_.-]+", "-", label.lower()).lstrip("_.-") or "family")


def check_schema(fields: dict[str, Any]) -> None:
    """Raise an `ArtifactError` where the fields were written by a bygrad newer than this one."""
    schema = fields.get("schema")
    if type(schema) is int and schema > SCHEMA:
        raise ArtifactError(
            f"written by a newer bygrad (schema {shorten(schema)}; this one reads up to {SCHEMA})",
            "What it says could be misread, so it is not read at all",
            "Upgrade bygrad",
        )


def _check_types(fields: dict[str, Any]) -> None:
    for name, kind in _KINDS.items():
        _check_type(name, fields[name], kind)
    for name, version in fields["versions"].items():
        _check_type(f"version of {shorten(name)}", version, str)
    for name, spec in fields["tensors"].items():
        _check_type(f"tensor {shorten(name)}", spec, TensorSpec)


def _spec(name: str, value: Any) -> TensorSpec:
    _check_type(f"tensor {shorten(name)}", value, dict)
    _check_keys(f"the manifest's tensor {shorten(name)}", value, {"dtype", "shape", "sha256"})
    _check_type(f"sha256 of tensor {shorten(name)}", value["sha256"], str)
    try:
        check_dtype(value["dtype"])
        return TensorSpec(value["dtype"], check_shape(value["shape"]), value["sha256"])
    except ArtifactError as error:
        raise error.at(f"the manifest's tensor {shorten(name)}") from None


def _check_keys(what: str, fields: dict[str, Any], known: set[str]) -> None:
    unknown, missing = fields.keys() - known, known - fields.keys()
    if unknown or missing:
        raise ArtifactError(
            f"{what} has missing keys: {listing(missing)}; unknown keys: {listing(unknown)}",
            "A manifest is read whole or not at all, so that nothing it says is lost",
            _DAMAGED,
        )


def _check_type(name: str, value: object, kind: type) -> None:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ArtifactError(
            f"the manifest's {name} is {shorten(value)} of type {type(value).__name__}, not {kind.__name__}",
            "The manifest would mean something else than it says",
            f"Give a value of type {kind.__name__}",
        )


def _bad_value(name: str, value: object, why: str, remedy: str) -> ArtifactError:
    return ArtifactError(f"the manifest's {name} is {shorten(value)}", f"It is refused because {why}", remedy)
