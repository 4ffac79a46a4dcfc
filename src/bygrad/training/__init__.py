"""Meta-training: the loop, its checkpoints and what it tells those who watch."""

from .checkpoint import CheckpointError
from .events import Event, Log, RolledBack, Stepped, Validated, Warned, Watcher
from .loop import MetaTrained, Recipe, describe, meta_train

__all__ = [
    "CheckpointError",
    "Event",
    "Log",
    "MetaTrained",
    "Recipe",
    "RolledBack",
    "Stepped",
    "Validated",
    "Warned",
    "Watcher",
    "describe",
    "meta_train",
]
