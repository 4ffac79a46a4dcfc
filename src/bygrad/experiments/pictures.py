"""What optimizers paint: the params at some steps of a run, as pictures for a report."""

import base64
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Shaped, UInt8

from .._core.types import PRNGKeyArray
from ..optimizers import Optimizer, declare
from ..problems import ProblemFamily, StyleTransfer
from ..problems.data.pictures import PAINTINGS, load_painting
from ..unroll import begin, draw, rollout
from ..workflows.stylize import to_bytes

Illustrate: TypeAlias = Callable[[ProblemFamily, Mapping[str, Optimizer], PRNGKeyArray], dict[str, Any]]
"""Maps a family, optimizers by label and a key to the `pictures` of a report's results."""

STEPS = (0, 16, 32, 64, 128)
PHOTOGRAPHS = 2


def paintings(family: ProblemFamily, optimizers: Mapping[str, Optimizer], key: PRNGKeyArray) -> dict[str, Any]:
    """Return the `pictures` of a report: for two photographs, what every optimizer makes of the same noise."""
    if not isinstance(family, StyleTransfer):
        raise TypeError(f"{type(family).__name__} has no pictures to show. Give a StyleTransfer family.")
    keys = jax.random.split(key, PHOTOGRAPHS)
    contents, _, _ = draw(family, keys)
    photographs = np.asarray(contents["photograph"])
    style = [load_painting(family.style, photographs.shape[1])] if family.style in PAINTINGS else []
    return {
        "caption": f"Photographs that were never trained on, in the style of {family.style}: the image after so many"
        " updates. All optimizers start from the same noise; baselines at the rate tuned for the final loss.",
        "columns": ["photograph", *["style"] * len(style), *map(str, STEPS)],
        "rows": painted(family, optimizers, [[it, *style] for it in photographs], keys),
    }


def painted(
    family: ProblemFamily,
    optimizers: Mapping[str, Optimizer],
    given: Sequence[Sequence[UInt8[np.ndarray, "h w 3"]]],
    keys: Shaped[PRNGKeyArray, " runs"],
) -> list[dict[str, Any]]:
    """Return the rows of a report's pictures for a family whose params are an image: for each run, one an optimizer.

    `given`: for each run, the pictures that come before those of the optimizers.
    """
    images = {label: _images(optimizer, family, keys) for label, optimizer in optimizers.items()}
    return [
        {"label": label, "images": [encode(image) for image in (*pictures, *images[label][:, i])]}
        for i, pictures in enumerate(given)
        for label in optimizers
    ]


@eqx.filter_jit
def _run(optimizer: Optimizer, family: ProblemFamily, keys: Shaped[PRNGKeyArray, " runs"]) -> tuple[Any, Any]:
    """Return the params before each of the updates, `[steps, runs, ...]`, and after the last one, `[runs, ...]`."""
    optimizer = declare(optimizer, STEPS[-1])
    end, trajectory = rollout(optimizer, family, begin(optimizer, family, keys), STEPS[-1])
    return jax.tree.leaves(trajectory.params)[0], end.params


def _images(
    optimizer: Optimizer, family: ProblemFamily, keys: Shaped[PRNGKeyArray, " runs"]
) -> UInt8[np.ndarray, "steps runs h w 3"]:
    """Return the image after each of `STEPS` updates."""
    before, end = _run(optimizer, family, keys)
    chosen = np.asarray(before[np.array(STEPS[:-1])])
    return to_bytes(np.concatenate([chosen.reshape(-1, *end.shape), np.asarray(end)[None]]))


def encode(image: UInt8[np.ndarray, "h w 3"]) -> dict[str, Any]:
    """Write bytes `[h, w, 3]` as JSON values."""
    return {"shape": list(image.shape), "data": base64.b64encode(np.ascontiguousarray(image).tobytes()).decode()}
