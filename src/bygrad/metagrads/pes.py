"""Persistent evolution strategies (Vicol et al., 2021)."""

from typing import ClassVar

from jaxtyping import PyTree

from ..optimizers import Optimizer
from ..unroll import Inner
from . import particles
from .evolution import Evolution


class PES(Evolution):
    r"""A pair draws a new direction for every window, and all that it has drawn in this run are added up.

    Unbiased for the meta-loss of the whole horizon, smoothed, at a $\theta$ that stays (equation 8); its variance
    grows with the number of windows of a run.
    """

    @property
    def biased(self) -> bool:
        return self.transforms

    keeps_past: ClassVar[bool] = True

    def directions(self, optimizer: Optimizer, inner: Inner) -> PyTree:
        return particles.directions(optimizer, inner.key, inner.step)
