"""Small networks on images of 8 x 8 pixels: what controllers learn on, and what they are tested on."""

from typing import Any, Literal

from ..problems import ConvClassifier, MLPClassifier
from ..problems.data import ImageData

Split = Literal["train", "test"]

PIXELS = 8


def perceptron(images: ImageData, split: Split = "train", **options: Any) -> MLPClassifier:
    """A 64-32-10 ReLU perceptron in minibatches of 64, changed by options of `MLPClassifier`; images of any size are
    averaged."""
    base: dict[str, Any] = {"hidden": 32, "activation": "relu", "scale": 0.15, "batch": 64}
    return MLPClassifier.from_data(images.shrunk(PIXELS), split, **(base | options))


def convolutional(images: ImageData, split: Split = "train", **options: Any) -> ConvClassifier:
    """A convolutional network with two blocks of 8 channels and kernels of 3 x 3, changed by options of
    `ConvClassifier`."""
    base: dict[str, Any] = {"channels": (8, 8), "kernel": 3, "hidden": 16, "scale": 0.1, "batch": 64}
    return ConvClassifier.from_data(images.shrunk(PIXELS), split, **(base | options))
