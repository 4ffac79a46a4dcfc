"""Artifacts as objects, bytes and files. What loads is byte for byte what was saved, or it is refused."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .._core.files import write_atomically
from .canonical_json import parse_object
from .errors import ArtifactError
from .layout import MAX_HEADER, Entry, check_seal, join, locate, manifest_text, read_tensors, split
from .manifest import Manifest, check_schema
from .tensors import compare, describe, own


@dataclass(frozen=True)
class Artifact:
    r"""A trained optimizer as data: its meta-parameters $\theta$ and what they are.

    **Arguments:** `manifest`: what the artifact says about itself. `tensors`: name to NumPy array, exactly those that
    the manifest describes; they are copied, and the copies are read-only.

    Two artifacts are equal when their manifests are: those hold the SHA-256 of every tensor.

    **Raises:** `ArtifactError` naming the tensor, for values that are not finite, a dtype that cannot be stored, and
    tensors that are not what the manifest says.

        >>> theta = {"log_learning_rate": np.array(-6.9, np.float32)}
        >>> manifest = Manifest(name="mine/sgd", optimizer="SGD", config={}, features=1, tensors=describe(theta))
        >>> from_bytes(to_bytes(Artifact(manifest, theta))).manifest.name
        'mine/sgd'
    """

    manifest: Manifest
    tensors: dict[str, np.ndarray] = field(compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tensors", own(self.tensors))
        compare(self.manifest.tensors, describe(self.tensors))


def to_bytes(artifact: Artifact) -> bytes:
    """Return the file of `artifact`: the same bytes every time, on every machine.

    **Raises:** `ArtifactError` for anything that `from_bytes` would refuse: what is saved can be loaded.
    """
    data = join(artifact.manifest.to_json(), artifact.tensors)
    from_bytes(data)
    return data


def from_bytes(data: bytes) -> Artifact:
    """Return the artifact in `data`, verified; runs no code and trusts no length in it.

    **Raises:** `ArtifactError` unless `data` is byte for byte what `to_bytes` gives for the result. The structure is
    checked first, then the SHA-256 of the whole, then the manifest and each tensor against it.
    """
    fields, entries, body = _look_at(data, len(data))
    tensors = read_tensors(entries, body)
    check_seal(data)
    artifact = Artifact(Manifest.from_fields(fields), tensors)
    if join(artifact.manifest.to_json(), artifact.tensors) != data:
        raise ArtifactError(
            "the file has the right content but not the one spelling in which bygrad writes it",
            "Something else wrote it, and may have put more into it than meets the eye",
            "Write the file with bygrad.artifacts.save",
        )
    return artifact


def _look_at(data: bytes, length: int) -> tuple[dict[str, Any], list[Entry], memoryview]:
    """Return the manifest and where the tensors are in a file of `length` bytes that begins with `data`, and what
    follows its header there."""
    header, body = split(data)
    fields = parse_object(manifest_text(header), "the manifest")
    check_schema(fields)  # before the rest, which a newer bygrad may lay out differently
    return fields, locate(header, length - len(data) + len(body)), body


def save(path: str | os.PathLike[str], artifact: Artifact, *, new: bool = False) -> None:
    """Write `artifact` to `path`, whole or not at all; missing folders are made.

    The name should end in `.safetensors`: any program that reads safetensors can then show the tensors. `new`: there
    must be no previous file.

    **Raises:** `ArtifactError` as `to_bytes` does; `OSError` as the system gives it; `FileExistsError` where there is
    a previous file and `new` is on. Each leaves a previous file at `path` as it was.
    """
    write_atomically(path, to_bytes(artifact), new=new)


def load(path: str | os.PathLike[str]) -> Artifact:
    """Return the artifact in the file at `path`, verified as `from_bytes` does; `find` gives paths of shipped ones.

    **Raises:** `ArtifactError` with the path in front, also for a file that is missing or unreadable.
    """
    path = Path(path)
    try:
        if not path.is_file():  # a device or a pipe may have no end
            raise ArtifactError(
                "this is a folder or a device, not a file" if path.exists() else "there is no such file",
                "No optimizer was loaded",
                "Check the path; bygrad.artifacts.shipped_names() lists the optimizers that come with bygrad",
            )
        with path.open("rb") as file:
            data = file.read(8 + MAX_HEADER)
            _look_at(data, os.fstat(file.fileno()).st_size)  # a stranger is refused before its gigabytes are read
            data += file.read()
        return from_bytes(data)
    except OSError as error:
        cause = f"{path}: the file cannot be read ({error})"
        raise ArtifactError(cause, "No optimizer was loaded", "Check its permissions and the disk") from error
    except ArtifactError as error:
        raise error.at(path) from None
