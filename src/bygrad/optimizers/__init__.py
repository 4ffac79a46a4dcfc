"""What optimizes: one class for learned and hand-designed optimizers, one file for each rule."""

from .base import Coordinatewise, Learned, Optimizer, Scheduled, autodiff_pullback, declare, parameter_count
from .controller import Controller
from .hand_designed import SGD, Adam, AdamW, AdamWCosine, FromOptax, Nesterov, RMSprop
from .lstm import LSTM
from .portable import Portable, from_portable, to_portable
from .preprocess import PREPROCESSORS, LogSign, Preprocessor, Scaled

LEARNED: dict[str, type[Learned]] = {"LSTM": LSTM, "Controller": Controller}
"""The learned optimizers, by class name."""

HAND_DESIGNED: dict[str, type[FromOptax]] = {
    "SGD": SGD,
    "Nesterov": Nesterov,
    "RMSprop": RMSprop,
    "Adam": Adam,
    "AdamW": AdamW,
    "AdamWCosine": AdamWCosine,
}
"""The baselines, by class name; each has a `learning_rate` to tune."""

__all__ = [
    "HAND_DESIGNED",
    "LEARNED",
    "LSTM",
    "PREPROCESSORS",
    "SGD",
    "Adam",
    "AdamW",
    "AdamWCosine",
    "Controller",
    "Coordinatewise",
    "FromOptax",
    "Learned",
    "LogSign",
    "Nesterov",
    "Optimizer",
    "Portable",
    "Preprocessor",
    "RMSprop",
    "Scaled",
    "Scheduled",
    "autodiff_pullback",
    "declare",
    "from_portable",
    "parameter_count",
    "to_portable",
]
