"""Estimators of the meta-gradient, one file each."""

from .backprop import Backprop
from .base import Estimate, Estimator, signal_to_noise
from .blend import Blend
from .cloning import Clone
from .evolution import Evolution
from .forward import Forward
from .full_es import FullES
from .imitation import Imitate
from .members import Members
from .nres import NRES
from .pes import PES
from .replay import Replay, choose_coordinates
from .truncated_es import TruncatedES

ESTIMATORS: dict[str, type[Estimator]] = {
    "Replay": Replay,
    "Backprop": Backprop,
    "FullES": FullES,
    "TruncatedES": TruncatedES,
    "PES": PES,
    "NRES": NRES,
    "Forward": Forward,
    "Blend": Blend,
}
"""The estimators, by class name."""

__all__ = [
    "ESTIMATORS",
    "NRES",
    "PES",
    "Backprop",
    "Blend",
    "Clone",
    "Estimate",
    "Estimator",
    "Evolution",
    "Forward",
    "FullES",
    "Imitate",
    "Members",
    "Replay",
    "TruncatedES",
    "choose_coordinates",
    "signal_to_noise",
]
