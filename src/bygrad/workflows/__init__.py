"""What the commands do, with progress and in a folder to resume: train, evaluate, specialize, learn, solve, paint."""

from .display import Display
from .evaluating import evaluate, evaluate_to_folder, tune
from .folder import Kept, claim, leaving_nothing, refuse_used
from .solving import learn_to_file, solve_file
from .specialize import Specialized, specialize
from .stylize import paint, stylize
from .work import may_resume, train, train_or_read, train_seeds, trained_on

__all__ = [
    "Display",
    "Kept",
    "Specialized",
    "claim",
    "evaluate",
    "evaluate_to_folder",
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
