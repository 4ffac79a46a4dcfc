"""What is optimized: problem families, one file each."""

from .base import ProblemFamily, check_family, describe_family
from .catalogue import FAMILIES, find_family
from .convnet import ConvClassifier, with_labels
from .data import ImageData, load_images
from .mlp import MLPClassifier
from .oracle import Oracle
from .quadratic import Quadratic
from .style import StyleTransfer
from .vgg import VGG16

__all__ = [
    "FAMILIES",
    "VGG16",
    "ConvClassifier",
    "ImageData",
    "MLPClassifier",
    "Oracle",
    "ProblemFamily",
    "Quadratic",
    "StyleTransfer",
    "check_family",
    "describe_family",
    "find_family",
    "load_images",
    "with_labels",
]
