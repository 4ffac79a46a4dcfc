"""What is optimized: problem families, one file each."""

from .base import ProblemFamily, check_family, describe_family
from .catalogue import FAMILIES, find_family
from .data import ImageData, load_images
from .mlp import MLPClassifier
from .oracle import Oracle
from .quadratic import Quadratic

__all__ = [
    "FAMILIES",
    "ImageData",
    "MLPClassifier",
    "Oracle",
    "ProblemFamily",
    "Quadratic",
    "check_family",
    "describe_family",
    "find_family",
    "load_images",
]
