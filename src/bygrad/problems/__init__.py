"""What is optimized: problem families, one file each."""

from .base import ProblemFamily, check_family
from .data import ImageData, load_images
from .mlp import MLPClassifier
from .quadratic import Quadratic

__all__ = ["ImageData", "MLPClassifier", "ProblemFamily", "Quadratic", "check_family", "load_images"]
