"""What an artifact says about each tensor of meta-parameters, and the tensors it accepts."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .canonical_json import listing, shorten
from .errors import ArtifactError

# The names are safetensors' own. Little-endian whatever the machine: these are the bytes in the file.
DTYPES: dict[str, np.dtype[Any]] = {
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
}
_CODES = {dtype: code for code, dtype in DTYPES.items()}
_MAX_AXES = 64  # NumPy's own limit
_MAX_SIZE = 2**63 - 1
_UNREADABLE = "The tensor cannot be read"
_REWRITE = "Write the file with bygrad.artifacts.save"


@dataclass(frozen=True)
class TensorSpec:
    """What the manifest says about one tensor.

    **Arguments:** `dtype`: one of `F16`, `F32`, `F64`, `I32`, `I64`. `shape`: sizes of the axes, `()` for a scalar.
    `sha256`: 64 lower-case hexadecimal digits, the SHA-256 of the values' bytes (little-endian, row by row).

    **Raises:** `ArtifactError` for anything else.
    """

    dtype: str
    shape: tuple[int, ...]
    sha256: str

    def __post_init__(self) -> None:
        check_dtype(self.dtype)
        object.__setattr__(self, "shape", check_shape(self.shape))
        if not isinstance(self.sha256, str) or re.fullmatch(r"[0-9a-f]{64}", self.sha256) is None:
            raise ArtifactError(
                f"the sha256 {shorten(self.sha256)} is not 64 lower-case hexadecimal digits",
                "The tensor could not be verified",
                _REWRITE,
            )


def describe(tensors: Mapping[str, np.ndarray]) -> dict[str, TensorSpec]:
    """Return the `tensors` entry of a manifest for these arrays.

        >>> describe({"decay": np.float32([0.5, 1.5])})["decay"].shape
        (2,)

    **Raises:** `ArtifactError` as `own` does.
    """
    return {
        name: TensorSpec(dtype_name(array), array.shape, hashlib.sha256(stored(array)).hexdigest())
        for name, array in own(tensors).items()
    }


def own(tensors: Mapping[Any, Any]) -> dict[str, np.ndarray]:
    """Return read-only copies in native byte order, sorted by name, after checking that they can be stored.

    **Raises:** `ArtifactError` naming the tensor, for a name that safetensors cannot hold, a value that is no NumPy
    array, a dtype outside `DTYPES`, and values that are NaN or infinite.
    """
    result = {}
    check_names(tensors)
    for name in sorted(tensors):
        array = tensors[name]
        if not isinstance(array, np.ndarray):
            raise ArtifactError(
                f"tensor {shorten(name)} is of type {type(array).__name__}",
                "An artifact holds NumPy arrays only",
                "Convert it with np.asarray",
            )
        if array.dtype.newbyteorder("<") not in _CODES:
            raise ArtifactError(
                f"tensor {shorten(name)} has dtype {array.dtype}",
                f"An artifact holds {', '.join(str(dtype.newbyteorder('=')) for dtype in DTYPES.values())} only",
                "Convert it with .astype, bfloat16 to float32 (which is exact)",
            )
        # np.array and not np.ascontiguousarray, which would turn a scalar into a vector.
        copy = np.array(array, dtype=array.dtype.newbyteorder("="), order="C", copy=True)
        _check_finite(name, copy)
        copy.flags.writeable = False
        result[name] = copy
    return result


def to_compute_with(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return tensors as rules compute with them: those of half precision widened, in which what a rule adds to divisors
    and roots would be zero.

    **Raises:** `ArtifactError` naming the tensor, for values above what float32 holds, in which most rules compute.
    """
    wide = {name: it.astype(np.float32) if it.dtype == np.float16 else it for name, it in tensors.items()}
    for name, array in wide.items():
        with np.errstate(over="ignore"):
            _check_finite(name, array.astype(np.float32) if array.dtype == np.float64 else array)
    return wide


def dtype_name(array: np.ndarray) -> str:
    """Return the safetensors name of the dtype of an array that `own` has accepted."""
    return _CODES[array.dtype.newbyteorder("<")]


def stored(array: np.ndarray) -> bytes:
    """Return the bytes of `array` as they stand in the file."""
    return array.astype(array.dtype.newbyteorder("<"), order="C", copy=False).tobytes()


def check_dtype(dtype: object) -> np.dtype[Any]:
    """Return the NumPy dtype of a safetensors dtype name; `ArtifactError` for one that artifacts do not use."""
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ArtifactError(
            f"the dtype {shorten(dtype)} is none of {', '.join(DTYPES)}",
            _UNREADABLE,
            "Convert the values to float32 and save again with bygrad.artifacts.save",
        )
    return DTYPES[dtype]


def check_shape(shape: object) -> tuple[int, ...]:
    """Return `shape` as a tuple; `ArtifactError` where it is no list of at most 64 integers from 0 to 2^63 - 1."""
    # Without limits, the product of a million sizes would keep the machine busy for minutes.
    sizes = tuple(shape) if isinstance(shape, list | tuple) else None
    if sizes is not None and len(sizes) <= _MAX_AXES and all(type(n) is int and 0 <= n <= _MAX_SIZE for n in sizes):
        return sizes
    raise ArtifactError(
        f"the shape {shorten(shape)} is not a list of at most {_MAX_AXES} integers from 0 to 2^63 - 1",
        _UNREADABLE,
        _REWRITE,
    )


def compare(manifest: Mapping[str, TensorSpec], actual: Mapping[str, TensorSpec]) -> None:
    """Raise an `ArtifactError` naming the tensor unless `actual` is what the `manifest` says."""
    missing, extra = manifest.keys() - actual.keys(), actual.keys() - manifest.keys()
    if missing or extra:
        raise ArtifactError(
            f"the manifest and the tensors name different things: missing tensors: {listing(missing)}; "
            f"tensors that the manifest does not name: {listing(extra)}",
            "Meta-parameters are matched by name, so the optimizer cannot be restored",
            "Make the manifest's tensors with bygrad.artifacts.describe from the very tensors that are saved",
        )
    for name, spec in manifest.items():
        for what in ("dtype", "shape", "sha256"):
            said, found = getattr(spec, what), getattr(actual[name], what)
            if said != found:
                raise ArtifactError(
                    f"tensor {shorten(name)} has {what} {found} and the manifest says {said}",
                    "These are not the meta-parameters that were trained under this manifest",
                    "Make the manifest's tensors with bygrad.artifacts.describe, or copy the file again",
                )


def check_names(names: Iterable[object]) -> None:
    """Raise an `ArtifactError` for a name that no tensor can have in a safetensors file."""
    for name in names:
        if isinstance(name, str) and name not in ("", "__metadata__") and not re.search("[\ud800-\udfff]", name):
            continue
        raise ArtifactError(
            f"the tensor name {shorten(name)} is not a non-empty Unicode string other than '__metadata__'",
            "safetensors could not hold it, or would take it for something else",
            "Name each tensor by its place in the optimizer, as in 'layers.0.weight'",
        )


def _check_finite(name: str, array: np.ndarray) -> None:
    finite = np.isfinite(array)
    if finite.all():
        return
    first = tuple(int(index) for index in np.argwhere(~finite)[0])
    raise ArtifactError(
        f"tensor {shorten(name)} has {int((~finite).sum())} of {array.size} values that are not finite, the first "
        f"being {array[first]} at index {first}",
        "Every update of this optimizer could be NaN or infinite",
        "Save the meta-parameters of an earlier meta-step, or train again with a smaller meta learning rate",
    )
