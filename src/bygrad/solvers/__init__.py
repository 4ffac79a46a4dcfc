"""Batch-first solvers for families of problems: classical, and learned inside the classical ones."""

from .admm import ADMM
from .base import Flat, Method, Progress
from .card import Card
from .certificate import failure_bound, percentile_bound
from .damping import Damping, GainRatio, Seen, TrustRegion
from .doubt import CostLimit, Doubt, LearnedDoubt
from .drift import Usual
from .engine import run
from .fit import LearnedSolver
from .implicit import implicit, jacobian
from .lbfgs import LBFGS
from .learn import classical_method, learn
from .learned import LearnedDamping, LearnedRestart, LearnedStart, Whitening
from .levenberg_marquardt import LevenbergMarquardt
from .proximal import ProximalGradient
from .reduction import Reduced, reduce_program
from .safeguarded import Safeguarded
from .schedule import LearnedSchedule
from .solution import STATUS, Solution, Status, Tally
from .solve import solve
from .warm import LearnedWarmStart

__all__ = [
    "ADMM",
    "LBFGS",
    "STATUS",
    "Card",
    "CostLimit",
    "Damping",
    "Doubt",
    "Flat",
    "GainRatio",
    "LearnedDamping",
    "LearnedDoubt",
    "LearnedRestart",
    "LearnedSchedule",
    "LearnedSolver",
    "LearnedStart",
    "LearnedWarmStart",
    "LevenbergMarquardt",
    "Method",
    "Progress",
    "ProximalGradient",
    "Reduced",
    "Safeguarded",
    "Seen",
    "Solution",
    "Status",
    "Tally",
    "TrustRegion",
    "Usual",
    "Whitening",
    "classical_method",
    "failure_bound",
    "implicit",
    "jacobian",
    "learn",
    "percentile_bound",
    "reduce_program",
    "run",
    "solve",
]
