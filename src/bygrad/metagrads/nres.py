"""Noise-reuse evolution strategies (Li et al., 2023)."""

from jaxtyping import PyTree

from ..optimizers import Optimizer
from ..unroll import Inner
from . import particles
from .evolution import Evolution


class NRES(Evolution):
    r"""A pair keeps one direction for the whole of a run, over all its windows.

    Unbiased, like `PES`, for the meta-loss of the whole horizon, smoothed, at a $\theta$ that stays: what an early
    update does to late losses is in the difference of the two members. Directions do not add up, so its variance is the
    smallest of its kind (Li et al., theorem 5 and equation 6: persistent noise, with K = T).
    """

    @property
    def biased(self) -> bool:
        return self.transforms

    def directions(self, optimizer: Optimizer, inner: Inner) -> PyTree:
        return particles.directions(optimizer, inner.key)
