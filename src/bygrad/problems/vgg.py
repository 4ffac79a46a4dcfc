"""The first nine convolutions of VGG16, as a measure of what an image shows."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .data.embedded import read_arrays

BLOCKS = (("1_1", "1_2"), ("2_1", "2_2"), ("3_1", "3_2", "3_3"), ("4_1",))
"""The convolutions; between two blocks, sides are halved."""

STRIDE = 2 ** (len(BLOCKS) - 1)
"""Pixels of a side must be a multiple of it."""

_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class VGG16(eqx.Module):
    """Features of images: activations of the network of Simonyan and Zisserman (2015), trained on ImageNet.

    Through `4_1`, 1.67 GFLOP for 64 x 64 pixels, and as much again for a gradient with respect to the image.
    """

    weights: dict[str, Float[Array, "3 3 i o"]]
    biases: dict[str, Float[Array, " o"]]

    @classmethod
    def load(cls) -> "VGG16":
        """Return the network with the weights that come with the package (torchvision's, kept as float16).

        Arithmetic is in float32: CPUs have none in float16.
        """
        arrays = read_arrays("vgg16_to_conv4_1_f16.npz")
        layers = [layer for block in BLOCKS for layer in block]

        def read(kind: str) -> dict[str, Array]:
            return {layer: jnp.asarray(arrays[f"conv{layer}/{kind}"].astype(np.float32)) for layer in layers}

        return cls(read("w"), read("b"))

    def __call__(self, image: Float[Array, "h w 3"]) -> dict[str, Float[Array, "_ _ _"]]:
        """Return the activation after each convolution, `[h', w', channels]`, of an image with pixels in 0..255."""
        check_sides("The image is", *image.shape[:2])
        x = (image / 255 - jnp.asarray(_MEAN)) / jnp.asarray(_DEVIATION)
        features = {}
        for number, block in enumerate(BLOCKS):
            if number:
                # Not `reduce_window`, whose gradient takes longer on CPUs than a convolution.
                x = jnp.max(x.reshape(x.shape[0] // 2, 2, x.shape[1] // 2, 2, -1), axis=(1, 3))
            for layer in block:
                x = _convolve(x, self.weights[layer])
                x = features[layer] = jax.nn.relu(x + self.biases[layer])
        return features


def check_sides(what: str, height: int, width: int) -> None:
    """Raise `ValueError` for sides that cannot be halved as often as the network does. `what`: "The image is", say."""
    if height % STRIDE or width % STRIDE:
        raise ValueError(
            f"{what} {width} x {height} pixels, but the network halves its input until a side is an {STRIDE}th of it."
            f" Crop or resize both sides to multiples of {STRIDE}."
        )


def _convolve(image: Float[Array, "h w i"], kernel: Float[Array, "k k i o"]) -> Float[Array, "h w o"]:
    """Convolve one image with a kernel of odd side, with zeros around it, as a product with many channels.

    Not `jax.lax.conv`: inside a loop, XLA for CPUs computes its gradients slowly. Measured, with respect to the image,
    through all layers here: 35 ms for 32 x 32 pixels, and 14 ms so.
    """
    height, width, _ = image.shape
    side, outputs = kernel.shape[0], kernel.shape[-1]
    margin = side // 2
    padded = jnp.pad(image, ((margin, margin), (margin, margin), (0, 0)))
    patches = [padded[a : a + height, b : b + width] for a in range(side) for b in range(side)]
    return jnp.concatenate(patches, axis=-1) @ kernel.reshape(-1, outputs)
