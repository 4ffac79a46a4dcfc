"""Painting a picture of the user's own in the style of another, with a trained optimizer."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from .._core.draws import key_of
from .._core.files import refuse_unwritable
from .._core.memory import bytes_available, in_words
from .._core.programs import Program
from .._core.types import Params, PRNGKeyArray, Scalar, State
from ..optimizers import Optimizer, declare
from ..problems import ProblemFamily, StyleTransfer
from ..problems.data.files import kind_of, read_picture, write_picture
from ..problems.vgg import STRIDE

BYTES_A_PIXEL = 6200
"""Memory of a step with an LSTM, most of it for the features: the same for every size."""


class Painting(eqx.Module):
    """A picture under way, and the best so far."""

    image: Params
    state: State
    best: Params
    best_loss: Scalar


def stylize(
    content: str | os.PathLike[str],
    style: str | os.PathLike[str],
    out: str | os.PathLike[str],
    optimizer: Optimizer,
    *,
    size: int = 128,
    steps: int = 128,
    seed: int = 0,
    tick: Callable[[int, float], None] | None = None,
) -> float:
    """Paint the picture `content` in the style of the picture `style`; write it to `out` and return its loss.

    The image kept is that of the lowest loss on the way, so an optimizer that runs away does no harm.

    **Arguments:** `size`: pixels of the longer side of both. `steps`: updates. `out`: ends in .png or .jpg.
    `tick`: is told the number of updates made and the loss before the last one.

    **Raises:** `FileNotFoundError` and `ValueError` for pictures that cannot be read, `ValueError` for a result in the
    place of one of them, `OSError` for one that could not be written, and `MemoryError` for a size that does not fit,
    before anything is computed;
    `FloatingPointError` if no image had a finite loss.
    """
    kind_of(out)
    refuse_unwritable(Path(out))
    if steps < 1:
        raise ValueError(f"steps is {steps}: the picture would stay noise. Give 1 or more.")
    photograph, painting = (read_picture(it, size, STRIDE, check=_refuse_to_be_killed) for it in (content, style))
    if os.path.exists(out) and any(os.path.samefile(out, os.path.expanduser(it)) for it in (content, style)):
        raise ValueError(
            f"{os.fspath(out)} is one of the two pictures, and would be lost. Choose another name for the result."
        )
    image, loss = paint(photograph, painting, optimizer, steps=steps, seed=seed, tick=tick)
    write_picture(out, image)
    return loss


def paint(
    photograph: UInt8[np.ndarray, "h w 3"],
    painting: UInt8[np.ndarray, "_ _ 3"],
    optimizer: Optimizer,
    *,
    steps: int,
    seed: int = 0,
    tick: Callable[[int, float], None] | None = None,
) -> tuple[UInt8[np.ndarray, "h w 3"], float]:
    """Return the image of the lowest loss after 0 to `steps` updates, as bytes, with that loss."""
    for height, width, _ in (photograph.shape, painting.shape):
        _refuse_to_be_killed(width, height)
    family, optimizer = StyleTransfer.of(photograph[None], painting), declare(optimizer, steps)
    content = eqx.filter_jit(family.content)(family.photographs[0])
    start = family.init(content, key_of(seed))
    now = Painting(start, optimizer.init(start), start, jnp.asarray(jnp.inf))
    for step in range(1, steps + 1):
        key = jax.random.fold_in(key_of(seed), step)
        now, loss = _step(now, optimizer, family, content, key)
        if tick is not None:
            tick(step, float(loss))
    now, _ = _step(now, optimizer, family, content, key_of(seed))  # looks at the last image
    if not np.isfinite(now.best_loss):
        raise FloatingPointError(
            "No image had a finite loss, so there is nothing to show. This optimizer was not made for style transfer:"
            " try --artifact paper/style."
        )
    return to_bytes(now.best), float(now.best_loss)


def _refuse_to_be_killed(width: int, height: int) -> None:
    if (needs := BYTES_A_PIXEL * height * width) > (free := bytes_available()):
        raise MemoryError(
            f"{width} x {height} pixels need {in_words(needs)} of memory, but {in_words(free)} are free, so that"
            " painting would be killed. Choose a smaller size."
        )


@Program
def _step(
    now: Painting, optimizer: Optimizer, family: ProblemFamily, content: Params, key: PRNGKeyArray
) -> tuple[Painting, Scalar]:
    value, grads = jax.value_and_grad(family.loss)(now.image, content, None)
    updates, state = optimizer.update(grads, now.state, now.image, value=value, key=key)
    better = value < now.best_loss
    best = jnp.where(better, now.image, now.best)
    return Painting(now.image + updates, state, best, jnp.where(better, value, now.best_loss)), value


def to_bytes(image: Any) -> UInt8[np.ndarray, "..."]:
    """Round pixels in 0..255 to bytes; what lies outside is cut, and what is not finite is black."""
    return np.round(np.clip(np.nan_to_num(np.asarray(image, np.float32), nan=0.0), 0, 255)).astype(np.uint8)
