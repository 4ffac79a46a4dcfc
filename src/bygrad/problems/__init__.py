"""What is optimized: problem families, one file each."""

from .attention import CharacterModel
from .ball_and_stick import BallAndStick
from .base import ProblemFamily, check_family, describe_family
from .catalogue import FAMILIES, file_of_family, find_family
from .control import QuadrotorControl
from .convnet import ConvClassifier, with_labels
from .data import ImageData, load_images
from .dispatch import EconomicDispatch
from .held_out import HeldOut, descended, halved, hold_out, is_held_out
from .lennard_jones import LennardJones
from .mixture import Mixture
from .mlp import MLPClassifier
from .oracle import Oracle
from .oscillation import DampedOscillation
from .pharmacokinetics import OralDose
from .portfolio import MeanVariance
from .quadratic import Quadratic
from .random_scale import RandomScale
from .random_start import RandomStart
from .sparse_coding import SparseCoding
from .structured import Bounded, Composite, LeastSquares, Modelled, QuadraticProgram
from .style import StyleTransfer
from .vgg import VGG16

__all__ = [
    "FAMILIES",
    "VGG16",
    "BallAndStick",
    "Bounded",
    "CharacterModel",
    "Composite",
    "ConvClassifier",
    "DampedOscillation",
    "EconomicDispatch",
    "HeldOut",
    "ImageData",
    "LeastSquares",
    "LennardJones",
    "MLPClassifier",
    "MeanVariance",
    "Mixture",
    "Modelled",
    "Oracle",
    "OralDose",
    "ProblemFamily",
    "Quadratic",
    "QuadraticProgram",
    "QuadrotorControl",
    "RandomScale",
    "RandomStart",
    "SparseCoding",
    "StyleTransfer",
    "check_family",
    "descended",
    "describe_family",
    "file_of_family",
    "find_family",
    "halved",
    "hold_out",
    "is_held_out",
    "load_images",
    "with_labels",
]
