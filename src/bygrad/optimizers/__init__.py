"""What optimizes: one class for learned and hand-designed optimizers, one file for each rule."""

from .base import Coordinatewise, Learned, Optimizer, Scheduled, autodiff_pullback, declare, parameter_count
from .best_of import BestOf, BestOfState
from .controller import Controller
from .envelope import Envelope
from .global_lstm import GlobalLSTM
from .guard import Guard, GuardState
from .hand_designed import SGD, Adam, AdamW, FromOptax, Nesterov, RMSprop
from .lstm import LSTM
from .memory import MEMORIES, Matrix, Memory, MemoryLSTM, Window
from .partition import Partition
from .portable import Portable, from_portable, to_portable
from .preprocess import PREPROCESSORS, LogSign, Preprocessor, Scaled

LEARNED: dict[str, type[Learned]] = {
    "LSTM": LSTM,
    "GlobalLSTM": GlobalLSTM,
    "MemoryLSTM": MemoryLSTM,
    "Partition": Partition,
    "Controller": Controller,
}
"""The learned optimizers, by class name."""

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
    "MEMORIES",
    "PREPROCESSORS",
    "SGD",
    "Adam",
    "AdamW",
    "BestOf",
    "BestOfState",
    "Controller",
    "Coordinatewise",
    "Envelope",
    "FromOptax",
    "GlobalLSTM",
    "Guard",
    "GuardState",
    "Learned",
    "LogSign",
    "Matrix",
    "Memory",
    "MemoryLSTM",
    "Nesterov",
    "Optimizer",
    "Partition",
    "Portable",
    "Preprocessor",
    "RMSprop",
    "Scaled",
    "Scheduled",
    "Window",
    "autodiff_pullback",
    "declare",
    "from_portable",
    "parameter_count",
    "to_portable",
]
