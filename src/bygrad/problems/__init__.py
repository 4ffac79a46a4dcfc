"""What is optimized: problem families, one file each."""

from .base import ProblemFamily, check_family, describe_family
from .catalogue import FAMILIES, find_family
from .data import ImageData, load_images
from .held_out import HeldOut
from .mixture import Mixture
from .mlp import MLPClassifier
from .quadratic import Quadratic

__all__ = [
    "FAMILIES",
    "HeldOut",
    "ImageData",
    "MLPClassifier",
    "Mixture",
    "ProblemFamily",
    "Quadratic",
    "check_family",
    "describe_family",
    "find_family",
    "load_images",
]
