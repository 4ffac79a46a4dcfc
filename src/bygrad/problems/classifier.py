"""What networks that are trained on labelled images have in common."""

import abc
from collections.abc import Callable
from typing import Any, Literal, TypeVar, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, UInt8

from .data import ImageData
from .held_out import DataFamily

AnyClassifier = TypeVar("AnyClassifier", bound="ImageClassifier")

Activation = Literal["sigmoid", "relu", "tanh", "gelu", "elu"]
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "sigmoid": jax.nn.sigmoid,
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "gelu": jax.nn.gelu,
    "elu": jax.nn.elu,
}


class ImageClassifier(DataFamily):
    """Cross-entropy of a network over labelled images, the last `held_out` of which are not trained on."""

    images: eqx.AbstractVar[UInt8[Array, "n ..."]]
    labels: eqx.AbstractVar[Integer[Array, " n"]]
    classes: eqx.AbstractVar[int]
    activation: eqx.AbstractVar[Activation]
    held_out: eqx.AbstractVar[int]

    def __check_init__(self) -> None:
        if self.activation not in get_args(Activation):
            raise ValueError(
                f"Unknown activation {self.activation!r}: choose one of {', '.join(get_args(Activation))}."
            )

    @classmethod
    def from_data(
        cls: type[AnyClassifier], data: ImageData, split: Literal["train", "test"] = "train", **options: Any
    ) -> AnyClassifier:
        """Build the family over one split of a data set; `options`: its other fields.

        The paper trains the optimizer on networks that see the training split, and tests it on networks that are
        *trained* on the test split: `split` chooses.
        """
        images, labels = (data.x_train, data.y_train) if split == "train" else (data.x_test, data.y_test)
        arrays = {"images": jnp.asarray(cls.arranged(images)), "labels": jnp.asarray(labels)}
        return cls(**arrays, classes=data.classes, **options)

    @staticmethod
    @abc.abstractmethod
    def arranged(images: np.ndarray) -> np.ndarray:
        """Return the images `[n, height, width]` or `[n, height, width, channels]` as the network takes them."""

    @property
    def entries(self) -> tuple[int, int]:
        return len(self.images) - self.held_out, len(self.images)


def cross_entropy(logits: Float[Array, "n classes"], labels: Integer[Array, " n"]) -> Float[Array, ""]:
    """Return the mean of minus the logarithm of what the softmax of `logits` gives to the labels."""
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1))
