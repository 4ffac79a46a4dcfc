"""Sparse coding: few atoms of one dictionary for every image patch."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from .._core.sizes import all_count, all_sizes
from .data.pictures import load_photographs
from .data.split import Split
from .structured import Composite


class SparseCoding(Composite):
    r"""The LASSO with a dictionary $D$ that all instances share:
    $\min_z \frac12 \lVert D z - y \rVert^2 + \lambda \lVert z \rVert_1$.

    An instance is a patch $y$ without its mean, divided by its norm; $\lambda$ is relative to
    $\lVert D^\top y \rVert_\infty$, at and above which nothing is used. `from_images` cuts patches
    from images; the dictionary is an overcomplete cosine transform, as in the literature on denoising.

    The duality gap proves how far a point is from the minimum, for free: with the residual $r = y - D z$, the dual
    point is $r \min(1, \lambda / \lVert D^\top r \rVert_\infty)$.

    **Arguments:** `dictionary`: `[pixels, atoms]` with columns of norm 1. `patches`: `[count, pixels]`, from which
    `sample` draws. `strength`: $\lambda$ relative to its largest useful value.
    """

    dictionary: Float[Array, "pixels atoms"]
    patches: Float[Array, "count pixels"]
    strength: float = eqx.field(static=True, default=0.2)

    def __check_init__(self) -> None:
        if not all_sizes(self.strength):
            raise ValueError(
                f"strength is {self.strength}, but it is the price of what is used, relative to that at which nothing"
                " is: give 0.2, say."
            )
        if self.dictionary.shape[:1] != self.patches.shape[1:]:
            raise ValueError(
                f"The dictionary has shape {list(self.dictionary.shape)} and the patches {list(self.patches.shape)}: a"
                " sum of its columns would not be a patch. Give [pixels, atoms] and [count, pixels]."
            )

    @classmethod
    def embedded(cls, split: Split = "train", count: int = 8192) -> "SparseCoding":
        """Cut patches from the embedded photographs, in shades of grey; no photograph is in both splits."""
        return cls.from_images(load_photographs(split).astype(float).mean(axis=3), count=count)

    @classmethod
    def from_images(
        cls,
        images: np.ndarray,
        *,
        side: int = 8,
        atoms: int = 16,
        count: int = 8192,
        strength: float = 0.2,
        seed: int = 0,
    ) -> "SparseCoding":
        """Cut `count` patches, `[side, side]`, from images `[n, height, width]`; the dictionary has `atoms`² atoms.

        **Raises:** `ValueError` for images of another shape, too small, flat, or with pixels that are no numbers.
        """
        if np.ndim(images) != 3 or not len(images):
            raise ValueError(
                f"There are images of shape {list(np.shape(images))}, but patches are cut from shades of grey,"
                " [n, height, width]. Give images.mean(axis=3) of coloured ones, image[None] of a single one."
            )
        if not np.isfinite(images).all():
            raise ValueError(
                "Some pixels are NaN or infinite, and so would be the patches with them. Fill the gaps, or leave the"
                " images out."
            )
        if not all_count(side, atoms, count):
            raise ValueError(
                f"side={side}, atoms={atoms}, count={count}: there is nothing to cut or code. Give 1 or more."
            )
        draw = np.random.default_rng(seed)
        height, width = images.shape[1:3]
        if min(height, width) < side:
            raise ValueError(
                f"Images of {height} x {width} pixels hold no patch of {side} x {side}: give larger ones, or less side."
            )
        which = draw.integers(len(images), size=4 * count)
        top, left = draw.integers(height - side + 1, size=4 * count), draw.integers(width - side + 1, size=4 * count)
        cut = np.stack(
            [images[i, a : a + side, b : b + side].ravel() for i, a, b in zip(which, top, left, strict=True)]
        ).astype(np.float32)
        cut -= cut.mean(axis=1, keepdims=True)
        norms = np.linalg.norm(cut, axis=1)
        keep = np.flatnonzero(norms > 1e-2 * norms.max())[:count]  # flat patches have nothing to code
        if not len(keep):
            raise ValueError("The images are flat, so no patch has anything to code. Give images with contrast.")
        return cls(jnp.asarray(cosines(side, atoms)), jnp.asarray(cut[keep] / norms[keep, None]), strength)

    def sample(self, key: PRNGKeyArray) -> Float[Array, " pixels"]:
        return self.patches[jax.random.randint(key, (), 0, len(self.patches))]

    def init(self, instance: Float[Array, " pixels"], key: PRNGKeyArray) -> Float[Array, " atoms"]:
        return jnp.zeros(self.dictionary.shape[1], instance.dtype)

    def weight(self, instance: Float[Array, " pixels"]) -> Float[Array, ""]:
        r"""Return $\lambda$ of an instance."""
        return self.strength * jnp.max(jnp.abs(self.dictionary.T @ instance))

    def smooth(self, params: Float[Array, " atoms"], instance: Float[Array, " pixels"]) -> Float[Array, ""]:
        return 0.5 * jnp.sum(jnp.square(self.dictionary @ params - instance))

    def penalty(self, params: Float[Array, " atoms"], instance: Float[Array, " pixels"]) -> Float[Array, ""]:
        return self.weight(instance) * jnp.sum(jnp.abs(params))

    def prox(
        self, params: Float[Array, " atoms"], step: Float[Array, "*atoms"], instance: Float[Array, " pixels"]
    ) -> Float[Array, " atoms"]:
        return jnp.sign(params) * jnp.maximum(jnp.abs(params) - step * self.weight(instance), 0.0)

    @property
    def separable(self) -> bool:
        return True

    def curvature(self) -> Float[Array, ""]:
        return jnp.linalg.norm(self.dictionary, ord=2) ** 2

    def gap(
        self, params: Float[Array, " atoms"], gradient: Float[Array, " atoms"], instance: Float[Array, " pixels"]
    ) -> Float[Array, ""]:
        residual = instance - self.dictionary @ params
        weight = self.weight(instance)
        largest = jnp.max(jnp.abs(gradient))
        dual = residual * jnp.minimum(1.0, weight / jnp.maximum(largest, jnp.finfo(params.dtype).tiny))
        primal = 0.5 * residual @ residual + weight * jnp.sum(jnp.abs(params))
        return jnp.maximum(primal - (dual @ instance - 0.5 * dual @ dual), 0.0)


def cosines(side: int, atoms: int) -> np.ndarray:
    """Return the overcomplete two-dimensional cosine dictionary, `[side², atoms²]`, columns of norm 1."""
    position = np.arange(side)[:, None]
    waves = np.cos(np.pi * position * np.arange(atoms) / atoms)
    waves[:, 1:] -= waves[:, 1:].mean(axis=0)
    waves /= np.linalg.norm(waves, axis=0)
    return np.kron(waves, waves).astype(np.float32)
