"""Adam in PyTorch, as the fallback of a guard: the arithmetic of `bygrad.optimizers.Adam`."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ..._core.definitions import EPSILON, UNDER_ROOT
from .base import Rule, TensorState, compute_dtype


class Adam(Rule):
    r"""Adam (Kingma & Ba, 2015), bias-corrected, $\epsilon = 10^{-8}$; state in float32, or float64 for such params.

    **Arguments:** `learning_rate`: with the default of `bygrad.optimizers.Adam`, not PyTorch's. `b1`, `b2`: how much of
    the two moments is kept.
    """

    feature_version: ClassVar[int] = 1

    def __init__(self, learning_rate: float = 1e-2, b1: float = 0.9, b2: float = 0.999) -> None:
        if not (learning_rate >= 0 and 0 <= b1 < 1 and 0 <= b2 < 1):
            raise ValueError(
                f"learning_rate={learning_rate}, b1={b1}, b2={b2} are no Adam: it would not go downhill, or never"
                " forget. Give a rate of at least 0, and decays from 0 to less than 1."
            )
        self._rate, self._b1, self._b2 = float(learning_rate), float(b1), float(b2)

    def __repr__(self) -> str:
        return f"Adam({self._rate}, b1={self._b1}, b2={self._b2})"

    def start(self, param: Tensor) -> TensorState:
        dtype = compute_dtype(param)
        return {
            "mean": torch.zeros(param.shape, dtype=dtype, device=param.device),
            "square": torch.zeros(param.shape, dtype=dtype, device=param.device),
            "step": torch.zeros((), dtype=torch.int32, device=param.device),
        }

    def step(
        self,
        grads: Sequence[Tensor],
        states: Sequence[TensorState],
        params: Sequence[Tensor],
        value: Tensor | None = None,
    ) -> list[Tensor]:
        updates = []
        for grad, state in zip(grads, states, strict=True):
            grad = grad.to(compute_dtype(grad))
            step = state["step"].add_(1).to(grad.dtype)
            mean = state["mean"].mul_(self._b1).add_(grad, alpha=1 - self._b1)
            square = state["square"].mul_(self._b2).addcmul_(grad, grad, value=1 - self._b2)
            root = (square / (1 - self._b2**step)).add_(UNDER_ROOT).sqrt_().add_(EPSILON)
            updates.append((mean * (-self._rate / (1 - self._b1**step))).div_(root))
        return updates
