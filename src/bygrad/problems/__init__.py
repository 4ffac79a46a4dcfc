"""What is optimized: problem families, one file each."""

from .base import ProblemFamily, check_family, describe_family
from .catalogue import FAMILIES, find_family
from .control import QuadrotorControl
from .data import ImageData, load_images
from .mlp import MLPClassifier
from .oscillation import DampedOscillation
from .pharmacokinetics import OralDose
from .quadratic import Quadratic
from .sparse_coding import SparseCoding
from .structured import Bounded, Composite, LeastSquares, QuadraticProgram

__all__ = [
    "FAMILIES",
    "Bounded",
    "Composite",
    "DampedOscillation",
    "ImageData",
    "LeastSquares",
    "MLPClassifier",
    "OralDose",
    "ProblemFamily",
    "Quadratic",
    "QuadraticProgram",
    "QuadrotorControl",
    "SparseCoding",
    "check_family",
    "describe_family",
    "find_family",
    "load_images",
]
