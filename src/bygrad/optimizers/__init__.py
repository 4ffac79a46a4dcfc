"""What optimizes: one class for learned and hand-designed optimizers, one file for each rule."""

from collections.abc import Callable, Mapping

from .base import Coordinatewise, Learned, Optimizer, Scheduled, declare, parameter_count
from .best_of import BestOf, BestOfState
from .celo2 import Celo2
from .controller import Controller, depth_of
from .dials import DIALS, dials_of, turned
from .envelope import Envelope
from .global_lstm import GlobalLSTM
from .guard import Guard, GuardState
from .hand_designed import SGD, Adam, AdamW, AdamWCosine, Cosine, FromOptax, Nesterov, RMSprop, Trapezoid
from .lstm import LSTM
from .memory import MEMORIES, Matrix, Memory, MemoryLSTM, Window
from .mlp_rule import MLPRule
from .modern import Lion, Muon, ScheduleFree, evaluation_point, judged_elsewhere
from .partition import Partition
from .portable import Portable, from_portable, to_portable
from .preprocess import PREPROCESSORS, LogSign, Preprocessor, Scaled
from .rnnprop import RNNprop
from .star import STAR

Baselines = Mapping[str, Callable[[], FromOptax]]
"""Hand-designed optimizers by name, each as what builds it, with everything but its learning rate: its class, say."""

LEARNED: dict[str, type[Learned]] = {
    "LSTM": LSTM,
    "GlobalLSTM": GlobalLSTM,
    "MemoryLSTM": MemoryLSTM,
    "Partition": Partition,
    "Controller": Controller,
    "RNNprop": RNNprop,
    "MLPRule": MLPRule,
    "STAR": STAR,
    "Celo2": Celo2,
}
"""The learned optimizers, by class name."""

HAND_DESIGNED: dict[str, type[FromOptax]] = {
    "SGD": SGD,
    "Nesterov": Nesterov,
    "RMSprop": RMSprop,
    "Adam": Adam,
    "AdamW": AdamW,
    "AdamWCosine": AdamWCosine,
}
"""Hand-designed optimizers, by class name; each has a `learning_rate` to tune."""

PAPER_BASELINES = {name: HAND_DESIGNED[name] for name in ("SGD", "Nesterov", "RMSprop", "Adam", "AdamW")}
"""What a comparison tunes unless it is told otherwise: the paper's four, and Adam with weight decay."""

TRANSFER_BASELINES: dict[str, type[FromOptax]] = {
    "Adam": Adam,
    "AdamWCosine": AdamWCosine,
    "Nesterov": Nesterov,
    "RMSprop": RMSprop,
    "Lion": Lion,
    "Muon": Muon,
    "ScheduleFree": ScheduleFree,
}
"""What the transfer benchmark compares with: its own table, as the paper's comparisons are with `PAPER_BASELINES`."""

BASELINES = HAND_DESIGNED | TRANSFER_BASELINES
"""Every hand-designed optimizer there is, by class name: for whoever meets a name in a table or a file."""

__all__ = [
    "BASELINES",
    "DIALS",
    "HAND_DESIGNED",
    "LEARNED",
    "LSTM",
    "MEMORIES",
    "PAPER_BASELINES",
    "PREPROCESSORS",
    "SGD",
    "STAR",
    "TRANSFER_BASELINES",
    "Adam",
    "AdamW",
    "AdamWCosine",
    "Baselines",
    "BestOf",
    "BestOfState",
    "Celo2",
    "Controller",
    "Coordinatewise",
    "Cosine",
    "Envelope",
    "FromOptax",
    "GlobalLSTM",
    "Guard",
    "GuardState",
    "Learned",
    "Lion",
    "LogSign",
    "MLPRule",
    "Matrix",
    "Memory",
    "MemoryLSTM",
    "Muon",
    "Nesterov",
    "Optimizer",
    "Partition",
    "Portable",
    "Preprocessor",
    "RMSprop",
    "RNNprop",
    "Scaled",
    "ScheduleFree",
    "Scheduled",
    "Trapezoid",
    "Window",
    "declare",
    "depth_of",
    "dials_of",
    "evaluation_point",
    "from_portable",
    "judged_elsewhere",
    "parameter_count",
    "to_portable",
    "turned",
]
