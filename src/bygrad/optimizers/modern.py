"""Hand-designed optimizers of after Adam. Every rule is optax's."""

from typing import Any, ClassVar

import jax
import optax
from jaxtyping import Array, Float

from .._core.definitions import UNDER_ROOT
from .._core.types import Params, State
from .base import Optimizer
from .hand_designed import FromOptax, _hyperparameter


class Lion(FromOptax):
    r"""Lion (Chen et al., 2023): $u = -\eta \operatorname{sgn}(\beta_1 m + (1 - \beta_1) g)$, with
    $m \leftarrow \beta_2 m + (1 - \beta_2) g$ after that.

    All steps have the size of the learning rate, so it wants a rate some ten times smaller than Adam's.
    """

    learning_rate: Float[Array, "..."] = _hyperparameter(1e-3)
    b1: Float[Array, "..."] = _hyperparameter(0.9)
    b2: Float[Array, "..."] = _hyperparameter(0.99)

    def transformation(self) -> optax.GradientTransformation:
        return optax.lion(self.learning_rate, b1=self.b1, b2=self.b2, weight_decay=0.0)


class Muon(FromOptax):
    r"""Muon (Jordan et al., 2024): momentum whose matrices are orthogonalized by five Newton-Schulz iterations.

    Arrays of rank other than 2, and empty ones, are left to Adam with Nesterov's momentum, at the same learning rate. A
    coordinate's step depends on its whole matrix.
    """

    per_coordinate: ClassVar[bool] = False

    learning_rate: Float[Array, "..."] = _hyperparameter(2e-2)
    momentum: Float[Array, "..."] = _hyperparameter(0.95)

    def transformation(self) -> optax.GradientTransformation:
        return optax.contrib.muon(
            self.learning_rate,
            beta=self.momentum,
            adam_eps_root=UNDER_ROOT,
            muon_weight_dimension_numbers=_orthogonalized,
        )


def _orthogonalized(params: Params) -> Params:
    """Which arrays are matrices; optax's own rule divides by the side of an empty one."""
    numbers = optax.contrib.MuonDimensionNumbers()
    return jax.tree.map(lambda leaf: numbers if leaf.ndim == 2 and leaf.size else None, params)


class ScheduleFree(FromOptax):
    r"""Schedule-free AdamW (Defazio et al., 2024), without weight decay: averaging in place of a schedule.

    The params are $y = \beta_1 x + (1 - \beta_1) z$, where gradients are taken; $z$ takes RMSprop's steps, and $x$ is
    their average. What the method promises holds at $x$, where it is judged: `evaluation_point` returns it.
    """

    proportional: ClassVar[bool] = False  # a part of every update is the average's

    learning_rate: Float[Array, "..."] = _hyperparameter(1e-2)
    b1: Float[Array, "..."] = _hyperparameter(0.9)
    b2: Float[Array, "..."] = _hyperparameter(0.999)

    def transformation(self) -> optax.GradientTransformation:
        base = optax.adamw(self.learning_rate, b1=0.0, b2=self.b2, eps_root=UNDER_ROOT, weight_decay=0.0)
        return optax.contrib.schedule_free(base, self.learning_rate, b1=self.b1)  # pyright: ignore[reportArgumentType]


def judged_elsewhere(optimizer: Optimizer) -> bool:
    """Whether an optimizer is judged at other params than those where gradients are taken."""
    return isinstance(optimizer, ScheduleFree)


def evaluation_point(optimizer: Optimizer, state: State, params: Params) -> Params:
    """Return where an optimizer is to be judged: at its average, where it keeps one, or at the params."""
    if not judged_elsewhere(optimizer):
        return params
    point: Any = optax.contrib.schedule_free_eval_params(state, params)
    return jax.tree.map(lambda x, leaf: x.astype(leaf.dtype), point, params)
