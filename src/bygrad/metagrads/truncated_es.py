"""Evolution strategies over windows that know nothing of each other (Metz et al., 2019)."""

from jaxtyping import PyTree

from ..optimizers import Optimizer
from ..unroll import Inner
from . import particles
from .evolution import Evolution


class TruncatedES(Evolution):
    """A pair draws a new direction for every window, and both members begin it where the plus member ended the last.

    The least variance, and the bias of every truncation: what an update does to losses after its window is not seen, so
    short windows make optimizers greedy.
    """

    def directions(self, optimizer: Optimizer, inner: Inner) -> PyTree:
        return particles.directions(optimizer, inner.key, inner.step)

    def settle(self, inner: Inner) -> Inner:
        return particles.twice(particles.member(inner))
