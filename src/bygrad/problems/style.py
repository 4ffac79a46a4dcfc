"""Artistic style transfer, section 3.4 of Andrychowicz et al. (2016), after Gatys, Ecker and Bethge (2015)."""

from typing import TypedDict

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from .._core.sizes import all_sizes
from .base import ProblemFamily
from .data.pictures import load_painting, load_photographs
from .data.split import Split
from .vgg import VGG16, check_sides

STYLE_LAYERS = ("1_1", "2_1", "3_1", "4_1")
CONTENT_LAYER = "3_3"


class Content(TypedDict):
    """An instance: a photograph, and its features at the content layer, which are computed once."""

    photograph: UInt8[Array, "h w 3"]
    features: Float[Array, "_ _ _"]


class StyleTransfer(ProblemFamily):
    r"""Paint a photograph in the style of a painting. The params are the image, `[h, w, 3]`, pixels in 0..255.

    Let $F^l$ be the features of the image at layer $l$ of VGG16, $P^l$ those of the photograph, and
    $G^l = \frac{1}{|x|} \sum_x F^l_x (F^l_x)^\top$ the Gram matrix over places $x$, $A^l$ that of the painting. For an
    image of $n$ pixels,

    $$f(p) = n \Big( \alpha \frac{\lVert F^{3\_3} - P^{3\_3} \rVert^2}{\lVert P^{3\_3} \rVert^2}
    + \frac{\beta}{4} \sum_{l} \frac{\lVert G^l - A^l \rVert^2}{\lVert A^l \rVert^2}
    + \gamma \operatorname{mean} \lVert \nabla p / 255 \rVert^2 \Big),
    \quad l \in \{1\_1, 2\_1, 3\_1, 4\_1\} .$$

    Content and style are relative, so that no layer outweighs another because its features are larger. The factor $n$
    makes the gradient at a pixel independent of the size of the image: an optimizer that is learned at one size meets
    the same gradients at another.

    Instances are photographs. An image starts from IID Gaussian noise around grey.

    **Arguments:** `network`: computes the features. `photographs` `[n, h, w, 3]`: bytes; sides are multiples of 8.
    `grams`: $A^l$, by layer (`StyleTransfer.of` computes them). `style`: what the painting is called. `content_weight`:
    $\alpha$. `style_weight`: $\beta$. `smoothness`: $\gamma$. The defaults keep a photograph recognizable and give it
    the painting's colours and strokes at 64 and at 128 pixels. `noise`: standard deviation of the start.
    """

    network: VGG16
    photographs: UInt8[Array, "n h w 3"]
    grams: dict[str, Float[Array, "c c"]]
    style: str = eqx.field(static=True)
    content_weight: float = eqx.field(static=True, default=0.3)
    style_weight: float = eqx.field(static=True, default=1.0)
    smoothness: float = eqx.field(static=True, default=5.0)
    noise: float = eqx.field(static=True, default=32.0)

    def __check_init__(self) -> None:
        _, height, width, _ = self.photographs.shape
        check_sides("The photographs are", height, width)
        if not all_sizes(self.content_weight, self.style_weight, self.smoothness, self.noise):
            raise ValueError(
                f"content_weight={self.content_weight}, style_weight={self.style_weight},"
                f" smoothness={self.smoothness}, noise={self.noise}: a loss with such a weight has no minimum, and"
                " starts no such deviation. Give finite numbers that are not negative."
            )

    @classmethod
    def of(
        cls,
        photographs: UInt8[np.ndarray, "n h w 3"],
        painting: UInt8[np.ndarray, "_ _ 3"],
        style: str = "a painting",
        network: VGG16 | None = None,
    ) -> "StyleTransfer":
        """Build the family from pictures as bytes; the painting may have another size than the photographs.

        `network`: the embedded VGG16 unless another is given.

        **Raises:** `ValueError` for a side, also of the painting, that is not a multiple of 8.
        """
        for name, picture in (("photographs", photographs), ("painting", painting)):
            if np.asarray(picture).dtype != np.uint8 or np.size(picture) == 0:
                raise ValueError(
                    f"The {name} are {np.asarray(picture).dtype} of shape {list(np.shape(picture))}, but pictures are"
                    " bytes, 0 to 255: numbers from 0 to 1 would be black. Give at least one, as uint8."
                )
        network = VGG16.load() if network is None else network
        features = eqx.filter_jit(network)(jnp.asarray(painting, jnp.float32))
        grams = {layer: gram(features[layer]) for layer in STYLE_LAYERS}
        return cls(network, jnp.asarray(photographs), grams, style)

    @classmethod
    def embedded(cls, split: Split, size: int = 64, style: str = "great_wave") -> "StyleTransfer":
        """Build the family from the photographs and a painting that come with the package, at 64 or 128 pixels."""
        return cls.of(load_photographs(split, size), load_painting(style, size), style)

    def sample(self, key: PRNGKeyArray) -> Content:
        return self.content(self.photographs[jax.random.randint(key, (), 0, self.photographs.shape[0])])

    def content(self, photograph: UInt8[Array, "h w 3"]) -> Content:
        """Return the instance of a photograph."""
        return {"photograph": photograph, "features": self.network(photograph.astype(jnp.float32))[CONTENT_LAYER]}

    def init(self, instance: Content, key: PRNGKeyArray) -> Float[Array, "h w 3"]:
        return 127.5 + self.noise * jax.random.normal(key, self.photographs.shape[1:])

    def loss(self, params: Float[Array, "h w 3"], instance: Content, key: PRNGKeyArray | None) -> Float[Array, ""]:
        features = self.network(params)
        content = _relative(features[CONTENT_LAYER], instance["features"])
        style = sum(_relative(gram(features[layer]), self.grams[layer]) for layer in STYLE_LAYERS) / len(STYLE_LAYERS)
        p = params / 255
        rough = jnp.mean(jnp.square(jnp.diff(p, axis=0))) + jnp.mean(jnp.square(jnp.diff(p, axis=1)))
        pixels = params.shape[0] * params.shape[1]
        return pixels * (self.content_weight * content + self.style_weight * style + self.smoothness * rough)


def gram(features: Float[Array, "h w c"]) -> Float[Array, "c c"]:
    """Return the second moments of features over places: which occur together, wherever that is."""
    places = features.reshape(-1, features.shape[-1])
    return places.T @ places / places.shape[0]


def _relative(value: Float[Array, "..."], target: Float[Array, "..."]) -> Float[Array, ""]:
    """Return the squared distance over the squared size of the target, which may be zero: a black picture."""
    size = jnp.sum(jnp.square(target))
    return jnp.sum(jnp.square(value - target)) / jnp.where(size > 0, size, 1.0)
