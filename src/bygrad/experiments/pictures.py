"""What optimizers paint: the params at some steps of a run, as pictures for a report."""

import base64
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import equinox as eqx
import jax
import numpy as np

from .._core.types import PRNGKeyArray
from ..optimizers import Optimizer
from ..problems import ProblemFamily, StyleTransfer
from ..unroll import begin, rollout

Illustrate: TypeAlias = Callable[[ProblemFamily, Mapping[str, Optimizer], PRNGKeyArray], dict[str, Any]]
"""Maps a family, optimizers by label and a key to the `pictures` of a report's results."""

STEPS = (16, 32, 64, 128)
PHOTOGRAPHS = 2


def paintings(family: ProblemFamily, optimizers: Mapping[str, Optimizer], key: PRNGKeyArray) -> dict[str, Any]:
    """Return the `pictures` of a report: for two photographs, what every optimizer makes of the same noise."""
    if not isinstance(family, StyleTransfer):
        raise TypeError(f"{type(family).__name__} has no pictures to show. Give a StyleTransfer family.")
    keys = jax.random.split(key, PHOTOGRAPHS)
    painted = {label: _images(optimizer, family, keys) for label, optimizer in optimizers.items()}
    photographs = np.asarray(begin(next(iter(optimizers.values())), family, keys).instance["photograph"])
    rows = [
        {"label": label, "images": [encode(photographs[i]), *(encode(image) for image in images[:, i])]}
        for i in range(PHOTOGRAPHS)
        for label, images in painted.items()
    ]
    return {
        "caption": f"Photographs that were never trained on, in the style of {family.style}: the image after so many"
        " updates. All optimizers start from the same noise; baselines at the rate tuned for the final loss.",
        "columns": ["photograph", "0", *map(str, STEPS)],
        "rows": rows,
    }


@eqx.filter_jit
def _run(optimizer: Optimizer, family: ProblemFamily, keys: PRNGKeyArray) -> list[Any]:
    inner, images = begin(optimizer, family, keys), []
    for steps in np.diff((0, *STEPS)):
        images.append(inner.params)
        inner, _ = rollout(optimizer, family, inner, int(steps))
    return [*images, inner.params]


def _images(optimizer: Optimizer, family: ProblemFamily, keys: PRNGKeyArray) -> np.ndarray:
    """Return the image after 0 and after each of `STEPS` updates, bytes `[steps, photographs, h, w, 3]`."""
    return np.stack([to_bytes(params) for params in _run(optimizer, family, keys)])


def to_bytes(image: Any) -> np.ndarray:
    """Round pixels in 0..255 to bytes; what lies outside is cut, and what is not finite is black."""
    return np.round(np.clip(np.nan_to_num(np.asarray(image, np.float32), nan=0.0), 0, 255)).astype(np.uint8)


def encode(image: np.ndarray) -> dict[str, Any]:
    """Write bytes `[h, w, 3]` as JSON values."""
    return {"shape": list(image.shape), "data": base64.b64encode(np.ascontiguousarray(image).tobytes()).decode()}
