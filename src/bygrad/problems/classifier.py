"""What networks that are trained on labelled data have in common."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, Literal, TypeVar, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Integer, PRNGKeyArray, UInt8

from .data import ImageData
from .data.split import Split, part_of
from .held_out import DataFamily
from .structured import Modelled

AnyClassifier = TypeVar("AnyClassifier", bound="ImageClassifier")

Activation = Literal["sigmoid", "relu", "tanh", "gelu", "elu", "silu"]
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "sigmoid": jax.nn.sigmoid,
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "gelu": jax.nn.gelu,
    "elu": jax.nn.elu,
    "silu": jax.nn.silu,
}


class Classifier(DataFamily, Modelled):
    """Cross-entropy of what a network says of labelled data, the last `held_out` of which are not trained on."""

    @abc.abstractmethod
    def drawn(self, key: PRNGKeyArray | None, start: int, end: int) -> tuple[Array, Integer[Array, "*n"]]:
        """Return a minibatch that `key` draws from entries `start` to `end`, or all of them, and its labels."""

    @abc.abstractmethod
    def logits(self, params: Any, inputs: Array) -> Float[Array, "*n classes"]:
        """Return what the network says of every one of `inputs`."""

    def loss_on(self, params: Any, key: PRNGKeyArray | None, start: int, end: int) -> Float[Array, ""]:
        inputs, labels = self.drawn(key, start, end)
        return cross_entropy(self.logits(params, inputs), labels)

    def outputs(self, params: Any, instance: tuple[()], key: PRNGKeyArray | None) -> Float[Array, "*n classes"]:
        inputs, _ = self.drawn(key, 0, self.entries[0])
        return self.logits(params, inputs)

    def output_loss(self, outputs: Any, instance: tuple[()], key: PRNGKeyArray | None) -> Float[Array, ""]:
        _, labels = self.drawn(key, 0, self.entries[0])
        return cross_entropy(outputs, labels)


class ImageClassifier(Classifier):
    """Cross-entropy of a network over labelled images."""

    images: eqx.AbstractVar[UInt8[Array, "n ..."]]
    labels: eqx.AbstractVar[Integer[Array, " n"]]
    classes: eqx.AbstractVar[int]
    activation: eqx.AbstractVar[Activation]
    batch: eqx.AbstractVar[int]
    held_out: eqx.AbstractVar[int]

    def __check_init__(self) -> None:
        if self.activation not in get_args(Activation):
            raise ValueError(
                f"Unknown activation {self.activation!r}: choose one of {', '.join(get_args(Activation))}."
            )
        if self.images.dtype != np.uint8 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"There are images {self.images.dtype}{list(self.images.shape)} and labels {list(self.labels.shape)}:"
                " pixels are divided by 255, so they must be bytes, and an image without a label would have another's."
                " Give images as uint8, np.round(255 * x) if x goes from 0 to 1, and the number of its class for each."
            )
        known = isinstance(self.labels, np.ndarray | jax.Array) and not isinstance(self.labels, Tracer)
        if known and self.labels.size:
            least, most = int(self.labels.min()), int(self.labels.max())
            if least < 0 or most >= self.classes:
                raise ValueError(
                    f"Labels go from {least} to {most}, but the network has {self.classes} classes, 0 to"
                    f" {self.classes - 1}: it would be taught another class, or nothing. Give classes={most + 1}, or"
                    " labels from 0."
                )

    @classmethod
    def from_data(cls: type[AnyClassifier], data: ImageData, split: Split = "train", **options: Any) -> AnyClassifier:
        """Build the family over one split of a data set; `options`: its other fields.

        The paper trains the optimizer on networks that see the training split, and tests it on networks that are
        *trained* on the test split: `split` chooses.
        """
        images, labels = part_of(split, train=(data.x_train, data.y_train), test=(data.x_test, data.y_test))
        arrays = {"images": jnp.asarray(cls.arranged(images)), "labels": jnp.asarray(labels)}
        return cls(**arrays, classes=data.classes, **options)

    @staticmethod
    @abc.abstractmethod
    def arranged(images: np.ndarray) -> np.ndarray:
        """Return the images `[n, height, width]` or `[n, height, width, channels]` as the network takes them."""

    @property
    def entries(self) -> tuple[int, int]:
        return len(self.images) - self.held_out, len(self.images)

    def with_entries(self: AnyClassifier, which: np.ndarray, held_out: int) -> AnyClassifier:
        parts = {"images": self.images[which], "labels": self.labels[which], "held_out": held_out}
        return dataclasses.replace(self, **parts)  # pyright: ignore[reportArgumentType]

    def drawn(
        self, key: PRNGKeyArray | None, start: int, end: int
    ) -> tuple[UInt8[Array, "batch ..."], Integer[Array, " batch"]]:
        chosen = slice(start, end) if key is None else jax.random.randint(key, (self.batch,), start, end)
        return self.images[chosen], self.labels[chosen]


def cross_entropy(logits: Float[Array, "*n classes"], labels: Integer[Array, "*n"]) -> Float[Array, ""]:
    """Return the mean of minus the logarithm of what the softmax of `logits` gives to the labels."""
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], axis=-1))
