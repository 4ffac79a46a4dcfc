"""Estimators of the meta-gradient, one file each."""

from .backprop import Backprop
from .base import Estimate, Estimator
from .replay import Replay, choose_coordinates

__all__ = ["Backprop", "Estimate", "Estimator", "Replay", "choose_coordinates"]
