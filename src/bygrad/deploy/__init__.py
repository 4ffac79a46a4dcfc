"""Trained optimizers where they are used. Loads lazily: what is not asked for is not imported.

- `optax(artifact)`: an optax transformation (`transformation.py`).
- `torch.LearnedOptimizer(params, artifact)`: a PyTorch optimizer (`torch.py`), which never imports JAX.
- `load` and `export`: artifacts as optimizers in JAX (`jax.py`).
- `save_solver` and `load_solver`: learned solvers as files (`solver.py`).
- `verify`: replay the golden trajectory in an artifact wherever it runs (`verification.py`).
- `hub.push` and `hub.pull`: artifacts on the Hugging Face Hub (`hub.py`).

`jax`, `torch` and `hub` are modules of this room; `optax` is a function, so that there is no module of that name.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .jax import export as export
    from .jax import load as load
    from .solver import load_solver as load_solver
    from .solver import save_solver as save_solver
    from .transformation import optax as optax
    from .verification import verify as verify

_HOMES = {
    "export": "jax",
    "load": "jax",
    "load_solver": "solver",
    "optax": "transformation",
    "save_solver": "solver",
    "verify": "verification",
}
_MODULES = ("hub", "jax", "torch")

__all__ = [*_HOMES, *_MODULES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
