"""Training a small convolutional network on images, section 3.3 of Andrychowicz et al. (2016)."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, PRNGKeyArray, UInt8

from .._core.draws import normals
from .._core.sizes import all_count, all_sizes
from .classifier import ACTIVATIONS, Activation, ImageClassifier
from .convolution import Images, convolve, from_blocks, in_blocks
from .data import ImageData

EPSILON = 1e-3
"""Added to the variance in batch norm. Weights start so small that it is of the size of the first variances."""

Layers = dict[str, dict[str, Array]]


class ConvClassifier(ImageClassifier):
    r"""Cross-entropy of a convolutional network with batch norm, on minibatches drawn with replacement.

    Each block is convolution, batch norm, activation, 2 x 2 max-pooling; then come a hidden layer with batch norm and
    activation, and a linear one. Batch norm uses the statistics of the minibatch and learns a shift $\beta$ alone, as
    in the paper's published code:

    $$\operatorname{BN}(x) = \frac{x - \operatorname{mean} x}{\sqrt{\operatorname{var} x + 10^{-3}}} + \beta$$

    Instances differ in the initial params and in the minibatches. The defaults are the paper's network: three blocks of
    16 channels and 5 x 5 kernels, 32 hidden units, about 22,700 params for images of 32 x 32 x 3 and ten classes. All
    weights, biases and shifts start from $N(0, \text{scale}^2)$.

    **Arguments:** `images` `[n, h, w, c]`: bytes, divided by 255 when used. `labels` `[n]` in `0..classes-1`.
    `channels`: of each block. `kernel`: its side, odd. `hidden`: units of the hidden layer. `batch`: images a step.
    `held_out`: how many of the last images are kept for `held_out_loss` and not trained on.
    """

    images: UInt8[Array, "n h w c"]
    labels: Integer[Array, " n"]
    classes: int = eqx.field(static=True, default=10)
    channels: tuple[int, ...] = eqx.field(static=True, converter=tuple, default=(16, 16, 16))
    kernel: int = eqx.field(static=True, default=5)
    hidden: int = eqx.field(static=True, default=32)
    activation: Activation = eqx.field(static=True, default="relu")
    scale: float = eqx.field(static=True, default=0.01)
    batch: int = eqx.field(static=True, default=128)
    held_out: int = eqx.field(static=True, default=0)

    def __check_init__(self) -> None:
        sizes = all_count(*self.channels, self.hidden, self.kernel) and all_count(self.batch, least=2)
        if not (sizes and self.channels and self.kernel % 2 and all_sizes(self.scale)):
            raise ValueError(
                f"channels={self.channels}, kernel={self.kernel}, hidden={self.hidden}, batch={self.batch},"
                f" scale={self.scale}: there is no such network or minibatch. Give whole numbers, one block or more of"
                " one channel or more, an odd kernel, hidden >= 1, two images or more to normalize over, scale >= 0."
            )
        if self.images.ndim != 4:
            raise ValueError(
                f"There are images of shape {list(self.images.shape)}, but a convolution takes [n, h, w, c]. Give"
                " images[..., None] of grey ones, or build the family by ConvClassifier.from_data."
            )

    @staticmethod
    def arranged(images: np.ndarray) -> np.ndarray:
        return images.reshape(*images.shape[:3], -1)

    @property
    def shapes(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """The shape of every param: layers `conv0`, `conv1`, ..., `hidden` and `output`."""
        _, height, width, inputs = self.images.shape
        shapes: dict[str, dict[str, tuple[int, ...]]] = {}
        for i, outputs in enumerate(self.channels):
            weight = (self.kernel, self.kernel, inputs, outputs)
            shapes[f"conv{i}"] = {"weight": weight, "bias": (outputs,), "shift": (outputs,)}
            inputs, height, width = outputs, -(-height // 2), -(-width // 2)
        flat = height * width * inputs
        shapes["hidden"] = {"weight": (flat, self.hidden), "bias": (self.hidden,), "shift": (self.hidden,)}
        shapes["output"] = {"weight": (self.hidden, self.classes), "bias": (self.classes,)}
        return shapes

    def init(self, instance: tuple[()], key: PRNGKeyArray) -> Layers:
        shapes, structure = jax.tree.flatten(self.shapes, is_leaf=lambda it: isinstance(it, tuple))
        drawn = [self.scale * normal for normal in normals(jax.random.split(key, len(shapes)), shapes)]
        return jax.tree.unflatten(structure, drawn)

    def drawn(
        self, key: PRNGKeyArray | None, start: int, end: int
    ) -> tuple[UInt8[Array, "batch h w c"], Integer[Array, " batch"]]:
        if key is None:
            raise ValueError(
                "ConvClassifier has no objective without noise: its batch norm depends on the minibatch. Give a key."
            )
        return super().drawn(key, start, end)

    def logits(self, params: Layers, inputs: UInt8[Array, "n h w c"]) -> Float[Array, "n classes"]:
        activation = ACTIVATIONS[self.activation]
        x = in_blocks(inputs).astype(params["output"]["weight"].dtype) / 255
        for i in range(len(self.channels)):
            layer = params[f"conv{i}"]
            x = convolve(x, layer["weight"]) + _by_channel(layer["bias"])
            x = pool(activation(normalize(x, (0, 2, 3, 4)) + _by_channel(layer["shift"])))
        x = from_blocks(x).reshape(len(inputs), -1) @ params["hidden"]["weight"] + params["hidden"]["bias"]
        x = activation(normalize(x, (0,)) + params["hidden"]["shift"])
        return x @ params["output"]["weight"] + params["output"]["bias"]


def normalize(x: Float[Array, "..."], places: tuple[int, ...]) -> Float[Array, "..."]:
    """Give every channel mean zero and variance one over all places of the minibatch, which are axes of `x`."""
    centred = x - jnp.mean(x, axis=places, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=places, keepdims=True) + EPSILON)


@jax.custom_vjp
def pool(x: Images) -> Images:
    """Take the largest of each 2 x 2 square; the last row or column stands alone where there is an odd one.

    Not by `reduce_window`, whose gradient is slow on CPUs. Reverse mode has its own rule: what XLA makes of that of a
    maximum takes a quarter of a network's step. Entries that are equal share a gradient, as there. Forward mode works
    on gradients, not on this function itself.
    """
    return _largest(x)


def _largest(x: Images) -> Images:
    rows = jnp.maximum(*_rows_of_squares(x))
    return jnp.maximum(rows[..., 0, :], rows[..., 1, :])


def _keep(x: Images) -> tuple[Images, tuple[Images, Images]]:
    largest = _largest(x)
    return largest, (x, largest)


def _pull(kept: tuple[Images, Images], cots: Images) -> tuple[Images]:
    x, largest = kept
    _, _, height, width, _ = x.shape
    rows = _rows_of_squares(x)
    shared_by = sum((row[..., i, :] == largest).astype(x.dtype) for row in rows for i in range(2))
    share = (cots / shared_by)[..., None, :]
    parts = [jnp.where(row == largest[..., None, :], share, 0.0) for row in rows]
    whole = jnp.stack(parts, axis=3)
    return (whole.reshape(*x.shape[:2], 2 * whole.shape[2], -1, x.shape[-1])[:, :, :height, :width],)


pool.defvjp(_keep, _pull)


def _rows_of_squares(x: Images) -> list[Float[Array, "blocks channels rows columns 2 n"]]:
    """Return the upper and the lower row of each square."""
    blocks, channels, height, width, n = x.shape
    if height % 2 or width % 2:
        margins = ((0, 0), (0, 0), (0, height % 2), (0, width % 2), (0, 0))
        x = jnp.pad(x, margins, constant_values=-jnp.inf)
    squares = x.reshape(blocks, channels, -(-height // 2), 2, -(-width // 2), 2, n)
    return [squares[:, :, :, i] for i in range(2)]


def _by_channel(values: Float[Array, " channels"]) -> Float[Array, "channels 1 1 1"]:
    return values[:, None, None, None]


def with_labels(data: ImageData, labels: Sequence[int]) -> ImageData:
    """Keep the images of some classes only, renumbered from 0 in the order given.

    **Raises:** `ValueError` for labels that are not there, for one of them twice, and for fewer than two.
    """
    unknown = [label for label in labels if not 0 <= label < data.classes]
    if unknown or len(set(labels)) < max(2, len(labels)):
        raise ValueError(
            f"{data.name} has classes 0 to {data.classes - 1}, and {tuple(labels)} asks for others, for one of them"
            " twice, or for fewer than two: a class would have no images, or there would be nothing to tell apart."
            " Choose two or more of them, each once."
        )
    renumbered = np.full(data.classes, -1, np.int32)
    renumbered[list(labels)] = np.arange(len(labels))
    train, test = np.isin(data.y_train, labels), np.isin(data.y_test, labels)
    return ImageData(
        f"{data.name}, classes {', '.join(map(str, labels))}",
        data.x_train[train],
        renumbered[data.y_train[train]],
        data.x_test[test],
        renumbered[data.y_test[test]],
    )
