"""What an artifact was trained on, in PyTorch: the checks of `bygrad.optimizers.Envelope`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..._core.definitions import REMEMBER
from ..._core.remarks import remark
from ..._core.results import Result
from ..._core.sizes import HANDED_OVER, Action, check_envelope, is_near, trained_sizes


@dataclass(frozen=True)
class Envelope:
    """The sizes of problems, gradients and runs that an optimizer was trained on; `bygrad.Envelope` explains them."""

    parameter_count: int | tuple[int, int] | None = None
    gradient_scale: tuple[float, float] | None = None
    horizon: int | None = None
    action: Action = "fall back"
    factor: float = 10.0
    tolerance: float = 0.5

    def __post_init__(self) -> None:
        check_envelope(self.action, self.factor)

    @classmethod
    def from_training(
        cls, training: dict[str, Any], action: Action = "fall back", *, factor: float = 10.0, tolerance: float = 0.5
    ) -> "Envelope":
        """Read it from `manifest.training` of an artifact; what is not there, or is of another kind, is not watched."""
        return cls(*trained_sizes(training), action, factor, tolerance)

    def watch(
        self, grads: Sequence[Tensor], size: int, step: int, strange: float, crossed: bool
    ) -> tuple[Result, float]:
        """Return the border that is crossed, `UNDECIDED` inside all, and the running share of strange gradients.

        Warns, unless one was `crossed` before, or raises `ValueError`, as asked for. `size`: the number of params.
        """
        border = Result.UNDECIDED
        if self.gradient_scale is not None:
            low, high = self.gradient_scale
            sizes = [grad.to(torch.float32).abs() for grad in grads]
            counts = [torch.stack([(it > 0).sum(), ((it > 0) & ((it < low) | (it > high))).sum()]) for it in sizes]
            nonzero, outside = torch.stack([count.cpu() for count in counts]).sum(0).tolist() if counts else (0, 0)
            strange = REMEMBER * strange + (1 - REMEMBER) * outside / max(nonzero, 1)
            border = Result.OUTSIDE_SCALE if strange > self.tolerance else border
        if self.horizon is not None and step >= self.horizon:
            border = Result.OUTSIDE_HORIZON
        if (trained := self.parameter_count) is not None and not is_near(size, trained, self.factor):
            border = Result.OUTSIDE_SIZE
        if border != Result.UNDECIDED and self.action == "refuse":
            raise ValueError(
                f"The optimizer is used outside what it was trained on: {border.sentence} It was told to refuse that."
                " Use an Envelope with action='fall back', or train it on problems like this one."
            )
        if border != Result.UNDECIDED and not crossed:
            told = "{} What it does there is not known." if self.action == "warn" else HANDED_OVER
            remark(told.format(border.sentence))
        return border, strange
