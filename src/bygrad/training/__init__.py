"""Meta-training: the loop, its checkpoints and what it tells those who watch."""

from .._core.hosts import LostProcessError
from .checkpoint import CheckpointError
from .curriculum import Curriculum, Graduated, Round, learn_by_curriculum
from .devices import from_lead, meet
from .events import Event, Log, Planned, RolledBack, Stepped, Validated, Warned, Watcher
from .folder import best_of, is_begun
from .loop import MetaTrained, meta_train, validation_keys
from .recipe import Recipe, describe
from .search import PatternSearch

__all__ = [
    "CheckpointError",
    "Curriculum",
    "Event",
    "Graduated",
    "Log",
    "LostProcessError",
    "MetaTrained",
    "PatternSearch",
    "Planned",
    "Recipe",
    "RolledBack",
    "Round",
    "Stepped",
    "Validated",
    "Warned",
    "Watcher",
    "best_of",
    "describe",
    "from_lead",
    "is_begun",
    "learn_by_curriculum",
    "meet",
    "meta_train",
    "validation_keys",
]
