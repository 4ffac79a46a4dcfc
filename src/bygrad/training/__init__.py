"""Meta-training: the loop, its checkpoints and what it tells those who watch."""

from .._core.hosts import LostProcessError
from .checkpoint import CheckpointError
from .devices import meet
from .events import Event, Log, Planned, RolledBack, Stepped, Validated, Warned, Watcher
from .loop import MetaTrained, meta_train
from .recipe import Recipe, describe

__all__ = [
    "CheckpointError",
    "Event",
    "Log",
    "LostProcessError",
    "MetaTrained",
    "Planned",
    "Recipe",
    "RolledBack",
    "Stepped",
    "Validated",
    "Warned",
    "Watcher",
    "describe",
    "meet",
    "meta_train",
]
