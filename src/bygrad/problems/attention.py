"""Predicting the next character with a small transformer: networks that are neither perceptrons nor convolutional."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8

from .._core.draws import normals
from .._core.sizes import all_count, all_sizes
from .classifier import Classifier
from .data.embedded import embedded
from .data.split import Split, part_of

TEST_PART = 10
"""One part in so many, the end of the text, is kept for the test split."""

Weights = dict[str, Array]


class CharacterModel(Classifier):
    r"""Cross-entropy of a causal transformer with one block, on windows of a text drawn with replacement.

    $$x \leftarrow x + \operatorname{attention}(\operatorname{norm} x), \qquad
    x \leftarrow x + W_2 \operatorname{gelu}(W_1 \operatorname{norm} x)$$

    on embeddings of characters and of places; the logits come from a linear layer on the normalized $x$. Layer norm has
    a learned gain. Weights start from $N(0, \text{scale}^2 / \text{inputs})$, embeddings from
    $N(0, (0.1\,\text{scale})^2)$. Instances differ in the initial params and in the windows.

    **Arguments:** `text` `[n]`: characters as numbers in `0..characters-1`. `characters`: how many there are. `width`:
    of $x$, a multiple of `heads`. `window`: characters that a prediction can look back on. `batch`: windows a step.
    `held_out`: how many of the last characters are kept for `held_out_loss` and not trained on.
    """

    text: UInt8[Array, " n"]
    characters: int = eqx.field(static=True)
    width: int = eqx.field(static=True, default=32)
    heads: int = eqx.field(static=True, default=2)
    window: int = eqx.field(static=True, default=16)
    scale: float = eqx.field(static=True, default=1.0)
    batch: int = eqx.field(static=True, default=16)
    held_out: int = eqx.field(static=True, default=0)

    def __check_init__(self) -> None:
        sizes = all_count(self.width, self.heads, self.window, self.batch)
        if not sizes or self.width % self.heads or not all_sizes(self.scale):
            raise ValueError(
                f"width={self.width}, heads={self.heads}, window={self.window}, batch={self.batch}, scale={self.scale}:"
                " there is no such transformer or minibatch. Give positive whole numbers, a width that the heads"
                " divide, and scale >= 0."
            )
        if not isinstance(self.text, Tracer) and np.max(np.asarray(self.text), initial=0) >= self.characters:
            raise ValueError(
                f"The text holds the number {np.max(np.asarray(self.text))}, but its characters are 0 to"
                f" {self.characters - 1}: the loss would be no number. Number them from 0, or say how many there are."
            )
        trained, size = self.entries
        if min(trained, self.held_out or size) <= self.window:
            raise ValueError(
                f"The text has {size} characters, {self.held_out} of them held out, but a window of {self.window}"
                " needs at least one more to predict, in each part. Give a longer text, or a smaller window."
            )

    @classmethod
    def embedded(cls, split: Split = "train", *, batch: int = 16) -> "CharacterModel":
        """Build the family over the text that comes with the package, 11,000 characters of the Apache License."""
        with embedded("apache_2.txt") as file:
            codes = np.frombuffer(file.read_bytes(), np.uint8)
        alphabet, text = np.unique(codes, return_inverse=True)
        border = len(text) - len(text) // TEST_PART
        part = part_of(split, train=text[:border], test=text[border:])
        return cls(jnp.asarray(part, jnp.uint8), characters=len(alphabet), batch=batch)

    @property
    def entries(self) -> tuple[int, int]:
        return len(self.text) - self.held_out, len(self.text)

    def with_entries(self, which: np.ndarray, held_out: int) -> "CharacterModel":
        return dataclasses.replace(self, text=self.text[which], held_out=held_out)

    def init(self, instance: tuple[()], key: PRNGKeyArray) -> Weights:
        width = self.width
        shapes = {
            "attend": (width, 3 * width),
            "join": (width, width),
            "up": (width, 4 * width),
            "down": (4 * width, width),
            "output": (width, self.characters),
        }
        scales = [shape[0] ** -0.5 for shape in shapes.values()] + [0.1, 0.1]
        shapes |= {"characters": (self.characters, width), "places": (self.window, width)}
        drawn = normals(jax.random.split(key, len(shapes)), list(shapes.values()))
        weights = {name: self.scale * scale * normal for name, scale, normal in zip(shapes, scales, drawn, strict=True)}
        return weights | {f"gain{i}": jnp.ones(width) for i in range(3)}

    def drawn(
        self, key: PRNGKeyArray | None, start: int, end: int
    ) -> tuple[Int[Array, "batch window"], Int[Array, "batch window"]]:
        last = end - self.window
        # Without a key: windows side by side, which cover the text once.
        starts = (
            jnp.arange(start, last, self.window) if key is None else jax.random.randint(key, (self.batch,), start, last)
        )
        codes = self.text[starts[:, None] + jnp.arange(self.window + 1)].astype(jnp.int32)
        return codes[:, :-1], codes[:, 1:]

    def logits(self, params: Weights, inputs: Int[Array, "batch window"]) -> Float[Array, "batch window characters"]:
        x = params["characters"][inputs] + params["places"]
        split = lambda part: part.reshape(*part.shape[:2], self.heads, -1)  # noqa: E731
        asked, known, told = map(split, jnp.split(_norm(x, params["gain0"]) @ params["attend"], 3, axis=2))
        fit = jnp.einsum("bihd,bjhd->bhij", asked, known) / asked.shape[-1] ** 0.5
        places = jnp.arange(self.window)
        fit = jnp.where(places[:, None] >= places, fit, -jnp.inf)
        seen = jnp.einsum("bhij,bjhd->bihd", jax.nn.softmax(fit), told)
        x = x + seen.reshape(x.shape) @ params["join"]
        x = x + jax.nn.gelu(_norm(x, params["gain1"]) @ params["up"]) @ params["down"]
        return _norm(x, params["gain2"]) @ params["output"]


def _norm(x: Float[Array, "*b width"], gain: Float[Array, " width"]) -> Float[Array, "*b width"]:
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    return gain * centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + 1e-5)
