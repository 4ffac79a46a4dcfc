"""What optimizes: one class for learned and hand-designed optimizers, one file for each rule."""

from .base import Coordinatewise, Optimizer, autodiff_pullback, parameter_count
from .hand_designed import SGD, Adam, AdamW, FromOptax, Nesterov, RMSprop
from .lstm import LSTM
from .preprocess import LogSign, Preprocessor, Scaled

LEARNED: dict[str, type[Optimizer]] = {"LSTM": LSTM}
"""The optimizers that can be meta-trained from nothing, by class name."""

HAND_DESIGNED: dict[str, type[FromOptax]] = {
    "SGD": SGD,
    "Nesterov": Nesterov,
    "RMSprop": RMSprop,
    "Adam": Adam,
    "AdamW": AdamW,
}
"""The baselines, by class name; each has a `learning_rate` to tune."""

__all__ = [
    "HAND_DESIGNED",
    "LEARNED",
    "LSTM",
    "SGD",
    "Adam",
    "AdamW",
    "Coordinatewise",
    "FromOptax",
    "LogSign",
    "Nesterov",
    "Optimizer",
    "Preprocessor",
    "RMSprop",
    "Scaled",
    "autodiff_pullback",
    "parameter_count",
]
