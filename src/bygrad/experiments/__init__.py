"""The paper's experiments and ours, as declarations, and what carries them out."""

from .declaration import Budget, Experiment, Level, Setting
from .display import Display
from .mnist import MNIST
from .paper import paper_curves
from .quadratic import QUADRATIC, QUADRATIC_GAUSSIAN
from .reproduce import reproduce
from .specialize import Specialized, specialize
from .work import evaluate, train

EXPERIMENTS: dict[str, Experiment] = {it.name: it for it in (QUADRATIC, QUADRATIC_GAUSSIAN, MNIST)}
"""The experiments, by name."""

__all__ = [
    "EXPERIMENTS",
    "Budget",
    "Display",
    "Experiment",
    "Level",
    "Setting",
    "Specialized",
    "evaluate",
    "paper_curves",
    "reproduce",
    "specialize",
    "train",
]
