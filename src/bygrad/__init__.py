"""Optimizers learned by gradient descent.

Learn one for the problems you solve again and again, use it wherever Adam is used, and know when to trust it.

Names load when they are first used (PEP 562): importing the package is cheap and imports no JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .deploy.jax import export as export
    from .deploy.jax import load as load
    from .deploy.solver import load_solver as load_solver
    from .deploy.solver import save_solver as save_solver
    from .evaluation import Protocol as Protocol
    from .evaluation import compare as compare
    from .evaluation import tune_baselines as tune_baselines
    from .metagrads import NRES as NRES
    from .metagrads import Backprop as Backprop
    from .metagrads import Replay as Replay
    from .optimizers import LSTM as LSTM
    from .optimizers import Adam as Adam
    from .optimizers import Controller as Controller
    from .optimizers import Envelope as Envelope
    from .optimizers import Guard as Guard
    from .optimizers import Optimizer as Optimizer
    from .problems import LeastSquares as LeastSquares
    from .problems import MLPClassifier as MLPClassifier
    from .problems import Oracle as Oracle
    from .problems import ProblemFamily as ProblemFamily
    from .problems import Quadratic as Quadratic
    from .solvers import learn as learn
    from .solvers import solve as solve
    from .training import Recipe as Recipe
    from .training import meta_train as meta_train
    from .workflows import specialize as specialize
    from .workflows import trained_on as trained_on

_HOMES = {
    "export": "deploy.jax",
    "load": "deploy.jax",
    "load_solver": "deploy.solver",
    "save_solver": "deploy.solver",
    "Protocol": "evaluation",
    "compare": "evaluation",
    "tune_baselines": "evaluation",
    "specialize": "workflows",
    "trained_on": "workflows",
    "Backprop": "metagrads",
    "NRES": "metagrads",
    "Replay": "metagrads",
    "Adam": "optimizers",
    "Envelope": "optimizers",
    "Guard": "optimizers",
    "Controller": "optimizers",
    "LSTM": "optimizers",
    "Optimizer": "optimizers",
    "MLPClassifier": "problems",
    "Oracle": "problems",
    "ProblemFamily": "problems",
    "LeastSquares": "problems",
    "Quadratic": "problems",
    "learn": "solvers",
    "solve": "solvers",
    "Recipe": "training",
    "meta_train": "training",
}
_ROOMS = (
    "artifacts",
    "deploy",
    "evaluation",
    "experiments",
    "metagrads",
    "optimizers",
    "problems",
    "solvers",
    "training",
    "unroll",
    "workflows",
)

__version__ = "0.1.0"
__all__ = [*_HOMES, "__version__"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    if name in _ROOMS:
        return importlib.import_module(f".{name}", __name__)
    # Only now, since it imports JAX: what a room has, a user may have expected here. No room starts JAX by being
    # imported, which would be too early for who has still to tell it of hosts and devices.
    if not name.startswith("_"):
        for room in _ROOMS:
            if name in getattr(importlib.import_module(f".{room}", __name__), "__all__", ()):
                raise AttributeError(f"module {__name__!r} has no attribute {name!r}: it is in {__name__}.{room}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES, *_ROOMS])
