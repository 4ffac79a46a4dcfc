"""The golden trajectory: what a trained optimizer did on a few inputs when it was written, to be replayed elsewhere.

The inputs stand in the file beside the updates, so that a replay depends on no random-number generator. As JSON of the
manifest:

    {"tolerance": 0.0001, "shapes": {"vector": [5], ...}, "steps": [{"value": 1.0, "grads": {"vector": [...], ...},
     "params": {...}, "updates": {...}}, ...]}

with every array in one row and in float32.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .canonical_json import shorten
from .errors import ArtifactError

Arrays = dict[str, np.ndarray]

TOLERANCE = 1e-4
"""How far a replay may be off, over the largest update of its step. Measured between JAX and PyTorch: 4e-7 for the
shipped artifacts; a wrong sign, gate or feature shows at 1e-2 and more.
"""

MAX_TOLERANCE = 1e-2
"""What a file may allow: with more, a replay could be another rule's."""

MAX_STEPS, MAX_COORDINATES = 100, 10_000
"""What a trajectory may have at most, so that a replay is quick whatever a file says."""

_SHAPES = {"kernel": (2, 2, 3), "matrix": (4, 3), "scalar": (), "vector": (5,)}
_STEPS = 5


@dataclass(frozen=True)
class Step:
    """One step: the loss `value`, the `grads` and the `params`, float32 arrays by name."""

    value: float
    grads: Arrays
    params: Arrays


@dataclass(frozen=True)
class Trajectory:
    """Inputs of a few steps, what the optimizer did, and how far a replay may be off."""

    steps: list[Step]
    updates: list[Arrays]
    tolerance: float

    def to_fields(self) -> dict[str, Any]:
        """Return the trajectory as JSON values."""

        def rows(arrays: Mapping[str, np.ndarray]) -> dict[str, list[float]]:
            # The shortest decimals that give the same float32 back.
            return {name: [float(str(x)) for x in np.float32(array).reshape(-1)] for name, array in arrays.items()}

        return {
            "tolerance": self.tolerance,
            "shapes": {name: list(array.shape) for name, array in self.steps[0].grads.items()},
            "steps": [
                {"value": step.value, "grads": rows(step.grads), "params": rows(step.params), "updates": rows(updates)}
                for step, updates in zip(self.steps, self.updates, strict=True)
            ],
        }

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> "Trajectory":
        """Return the trajectory in JSON `fields`. **Raises:** `ArtifactError` for what `to_fields` does not give."""
        if set(fields) != {"tolerance", "shapes", "steps"}:
            raise _bad(f"has the keys {shorten(sorted(fields))}, not shapes, steps and tolerance")
        tolerance, shapes, steps = fields["tolerance"], fields["shapes"], fields["steps"]
        if not _is_number(tolerance) or not 0 < tolerance <= MAX_TOLERANCE:
            raise _bad(f"has the tolerance {shorten(tolerance)}, which is no number above 0, up to {MAX_TOLERANCE}")
        if not isinstance(shapes, dict) or not shapes or not all(map(_is_shape, shapes.values())):
            raise _bad(f"has the shapes {shorten(shapes)}, which are no shapes of arrays by name")
        if sum(math.prod(shape) for shape in shapes.values()) > MAX_COORDINATES:
            raise _bad(f"has more than {MAX_COORDINATES:,} coordinates: {shorten(shapes)}")
        if not isinstance(steps, list) or not 1 <= len(steps) <= MAX_STEPS:
            raise _bad(f"has no steps, or more than {MAX_STEPS}: {shorten(steps)}")
        read, updates = [], []
        for k, step in enumerate(steps):
            if not isinstance(step, dict) or set(step) != {"value", "grads", "params", "updates"}:
                raise _bad(f"has the step {k} {shorten(step)}, which has not exactly grads, params, updates and value")
            if not _is_number(step["value"]):
                raise _bad(f"has the value {shorten(step['value'])} at step {k}")
            grads, params, moved = (_arrays(step[name], shapes, name, k) for name in ("grads", "params", "updates"))
            read.append(Step(float(step["value"]), grads, params))
            updates.append(moved)
        return cls(read, updates, float(tolerance))

    def deviation(self, updates: Sequence[Mapping[str, np.ndarray]]) -> float:
        """Return how far `updates` are off, over the largest update of their step; infinite where one is not finite."""
        worst = 0.0
        for found, golden in zip(updates, self.updates, strict=True):
            size = max(float(np.max(np.abs(array))) for array in golden.values())
            differences = [found[name].astype(np.float64) - golden[name] for name in golden]
            if not all(np.all(np.isfinite(difference)) for difference in differences):
                return math.inf
            off = max(float(np.max(np.abs(difference))) for difference in differences)
            worst = max(worst, off / max(size, 1e-30))
        return worst


def draw_steps() -> list[Step]:
    """Draw inputs: gradients over many orders of magnitude, with some signs that change, and falling losses."""
    rng = np.random.default_rng(0)

    def draw(function: Any) -> Arrays:
        return {name: np.asarray(function(shape), np.float32) for name, shape in _SHAPES.items()}

    start, size = draw(rng.standard_normal), draw(lambda shape: 10.0 ** rng.uniform(-5, 0, shape))
    drift, mean = draw(rng.standard_normal), draw(rng.standard_normal)
    steps = []
    for step in range(_STEPS):
        noise = draw(rng.standard_normal)
        grads = {name: size[name] * (mean[name] + np.float32(0.5) * noise[name]) for name in _SHAPES}
        params = {name: start[name] + np.float32(0.01 * step) * drift[name] for name in _SHAPES}
        steps.append(Step(float(np.float32(2.0 / (1 + step) + 0.05 * rng.uniform())), grads, params))
    return steps


def _arrays(rows: Any, shapes: dict[str, list[int]], what: str, step: int) -> Arrays:
    if not isinstance(rows, dict) or rows.keys() != shapes.keys():
        raise _bad(f"has {what} {shorten(rows)} at step {step}, which are not of the arrays that its shapes name")
    result = {}
    for name, row in rows.items():
        if not isinstance(row, list) or len(row) != math.prod(shapes[name]) or not all(map(_is_number, row)):
            raise _bad(f"has {what} of {shorten(name)} at step {step} that are not {math.prod(shapes[name])} numbers")
        result[name] = np.array(row, np.float32).reshape(shapes[name])
    return result


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 3e38


def _is_shape(shape: object) -> bool:
    """Whether it is a shape of at most 8 axes; none is empty, since there would be nothing to compare."""
    return isinstance(shape, list) and len(shape) <= 8 and all(type(n) is int and 0 < n < 2**31 for n in shape)


def _bad(how: str) -> ArtifactError:
    return ArtifactError(
        f"the manifest's trajectory {how}",
        "It could not be replayed",
        "Copy the file again, or write it with bygrad.export",
    )
