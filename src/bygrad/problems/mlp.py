"""Training a multilayer perceptron on images, section 3.2 of Andrychowicz et al. (2016)."""

import itertools

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float, Integer, PRNGKeyArray, UInt8

from .._core.draws import normals
from .._core.sizes import all_count, all_sizes
from .classifier import ACTIVATIONS, Activation, ImageClassifier

Layers = list[dict[str, Array]]


class MLPClassifier(ImageClassifier):
    r"""Cross-entropy of a perceptron on minibatches drawn with replacement from a set of labelled images.

    Instances differ in the initial params and in the minibatches, not in the data. The defaults are the paper's base
    network, 784-20-10 with a sigmoid: 15,910 params. All weights *and* biases start from $N(0, \text{scale}^2)$ with
    0.01, as in the paper's published code: the plateau of hand-designed optimizers on this problem comes from it.

    **Arguments:** `images` `[n, pixels]`, bytes, divided by 255 when used. `labels` `[n]` in `0..classes-1`. `hidden`:
    units a layer. `layers`: number of hidden layers; 0 is logistic regression. `activation`, `scale`: see above.
    `batch`: images a step. `held_out`: how many of the last images are kept for `held_out_loss` and not trained on.

    **Raises:** `ValueError` for sizes that no network has, images that are not rows of bytes, labels without a class.
    """

    images: UInt8[Array, "n pixels"]
    labels: Integer[Array, " n"]
    classes: int = eqx.field(static=True, default=10)
    hidden: int = eqx.field(static=True, default=20)
    layers: int = eqx.field(static=True, default=1)
    activation: Activation = eqx.field(static=True, default="sigmoid")
    scale: float = eqx.field(static=True, default=0.01)
    batch: int = eqx.field(static=True, default=128)
    held_out: int = eqx.field(static=True, default=0)

    def __check_init__(self) -> None:
        if not (all_count(self.hidden, self.batch) and all_count(self.layers, least=0) and all_sizes(self.scale)):
            raise ValueError(
                f"hidden={self.hidden}, layers={self.layers}, batch={self.batch}, scale={self.scale}: there is no such"
                " network or minibatch. Give whole numbers, hidden >= 1, layers >= 0 and batch >= 1, and scale >= 0."
            )
        if self.images.ndim != 2:
            raise ValueError(
                f"There are images of shape {list(self.images.shape)}, but a perceptron takes each as a row of pixels."
                " Give images.reshape(len(images), -1), or build the family by MLPClassifier.from_data."
            )

    @staticmethod
    def arranged(images: np.ndarray) -> np.ndarray:
        return images.reshape(len(images), -1)

    def init(self, instance: tuple[()], key: PRNGKeyArray) -> Layers:
        widths = [self.images.shape[1], *[self.hidden] * self.layers, self.classes]
        shapes = [shape for inputs, outputs in itertools.pairwise(widths) for shape in ((inputs, outputs), (outputs,))]
        drawn = [self.scale * normal for normal in normals(jax.random.split(key, len(shapes)), shapes)]
        return [{"weight": weight, "bias": bias} for weight, bias in zip(drawn[::2], drawn[1::2], strict=True)]

    def logits(self, params: Layers, inputs: UInt8[Array, "n pixels"]) -> Float[Array, "n classes"]:
        activation = ACTIVATIONS[self.activation]
        x = inputs.astype(params[0]["weight"].dtype) / 255
        for layer in params[:-1]:
            x = activation(x @ layer["weight"] + layer["bias"])
        return x @ params[-1]["weight"] + params[-1]["bias"]
