"""What the commands do, with progress and in a folder to resume: train, evaluate, specialize, learn, solve, paint."""

from .display import Display
from .folder import Kept, claim, leaving_nothing, refuse_used
from .solving import learn_to_file, solve_file
from .specialize import Specialized, specialize
from .stylize import paint, stylize
from .work import evaluate, may_resume, train, train_or_read, train_seeds, trained_on, tune

__all__ = [
    "Display",
    "Kept",
    "Specialized",
    "claim",
    "evaluate",
    "learn_to_file",
    "leaving_nothing",
    "may_resume",
    "paint",
    "refuse_used",
    "solve_file",
    "specialize",
    "stylize",
    "train",
    "train_or_read",
    "train_seeds",
    "trained_on",
    "tune",
]
