"""Evolution strategies over whole runs."""

from jaxtyping import PRNGKeyArray, PyTree

from ..optimizers import Optimizer
from ..unroll import Inner, Windows
from . import particles
from .evolution import Evolution
from .particles import Pairs


class FullES(Evolution):
    """A window is a whole run: unbiased for the smoothed meta-loss, and slow, as every meta-step takes a horizon.

    Salimans et al. (2017), algorithm 1, with antithetic pairs. The truncation must be the horizon.
    """

    @property
    def biased(self) -> bool:
        return self.transforms

    def init(self, optimizer: Optimizer, windows: Windows, key: PRNGKeyArray) -> Pairs:
        if windows.truncation != windows.horizon or windows.shortest is not None:
            horizon = windows.horizon if windows.shortest is None else f"{windows.shortest} to {windows.horizon}"
            raise ValueError(
                f"FullES looks at whole runs, but the truncation is {windows.truncation} and the horizon {horizon}."
                " Give one horizon and the truncation that is as long, or use NRES, which is unbiased with windows."
            )
        return super().init(optimizer, windows, key)

    def directions(self, optimizer: Optimizer, inner: Inner) -> PyTree:
        return particles.directions(optimizer, inner.key)
