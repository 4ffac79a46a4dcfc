"""What a rule is in PyTorch."""

import abc
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

BLOCK = 4096
"""Coordinates that take a step at a time: what happens inside stays in cache. Measured: 2048 to 8192 are alike."""

TensorState = dict[str, Tensor]
"""What a rule remembers of one tensor of the params."""


class Rule(abc.ABC):
    r"""An optimizer's arithmetic with its meta-parameters $\theta$, as read from an artifact.

    **Arguments:** `config`: the static configuration. `tensors`: $\theta$, by name.
    """

    feature_version: ClassVar[int]

    @abc.abstractmethod
    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None: ...

    @abc.abstractmethod
    def start(self, param: Tensor) -> TensorState:
        """Return the state of one tensor before its first step."""

    @abc.abstractmethod
    def step(
        self,
        grads: Sequence[Tensor],
        states: Sequence[TensorState],
        params: Sequence[Tensor],
        value: Tensor | None = None,
    ) -> list[Tensor]:
        """Return the updates, fresh tensors in the dtype that the rule computes in, and change the states in place."""


class Scheduled(abc.ABC):
    """What a rule needs that goes by how far a run has come."""

    @abc.abstractmethod
    def declare(self, horizon: int) -> None:
        """Say how many steps the runs will have that start from now on."""


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype that rules compute in and keep their state in: float32, and float64 for params that are."""
    return torch.promote_types(tensor.dtype, torch.float32)


def check_shapes(tensors: Mapping[str, np.ndarray], wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Raise a `ValueError` by name for tensors that are missing, that nobody wants, or of another shape."""
    for name in sorted(wanted.keys() | tensors.keys()):
        found = tensors[name].shape if name in tensors else None
        if found != wanted.get(name):
            raise ValueError(f"tensor {name} has the shape {found}, not {wanted.get(name)}")


def grouped(tensors: Sequence[Tensor]) -> dict[tuple[torch.device, torch.dtype], list[int]]:
    """Return the indices of the tensors that are computed on one device and in one dtype."""
    alike: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for index, tensor in enumerate(tensors):
        alike.setdefault((tensor.device, compute_dtype(tensor)), []).append(index)
    return alike


class Piece(NamedTuple):
    """A run of coordinates, `start` to `stop`, of one tensor."""

    tensor: int
    start: int
    stop: int


class Coordinatewise(Rule):
    r"""A rule that treats every coordinate alike and alone: its state is an array `[rows, *shape]` for every tensor.

    Coordinates take their steps in blocks: large tensors are cut, small ones joined, so that Python's work does not
    grow with the number of tensors, nor the working set with their size. A block of the state is copied to a workspace
    and back: in the state itself the rows lie far apart, and matrix products read them slowly.
    """

    @property
    @abc.abstractmethod
    def inputs(self) -> int:
        """Rows of the workspace above those of the state, for what the rule computes from the gradients."""

    @abc.abstractmethod
    def step_block(self, grads: Tensor, work: Tensor) -> Tensor:
        """Return the updates `[c]` for `grads` `[c]` and change the state, `work[inputs:]`, in place."""

    def step(
        self,
        grads: Sequence[Tensor],
        states: Sequence[TensorState],
        params: Sequence[Tensor],
        value: Tensor | None = None,
    ) -> list[Tensor]:
        updates = [torch.empty(grad.shape, dtype=compute_dtype(grad), device=grad.device) for grad in grads]
        for (device, dtype), indices in grouped(grads).items():
            flat_grads = [grads[index].reshape(-1) for index in indices]
            flat_updates = [updates[index].view(-1) for index in indices]
            matrices = [
                (state := states[index]["state"]).view(state.shape[0], grads[index].numel()) for index in indices
            ]
            cuts = blocks([grad.numel() for grad in flat_grads], BLOCK)
            width = max((sum(stop - start for _, start, stop in pieces) for pieces in cuts), default=0)
            workspace = torch.empty((self.inputs + matrices[0].shape[0], width), dtype=dtype, device=device)
            for pieces in cuts:
                columns = [matrices[tensor][:, start:stop] for tensor, start, stop in pieces]
                block = [flat_grads[tensor][start:stop] for tensor, start, stop in pieces]
                joined = (block[0] if len(block) == 1 else torch.cat(block)).to(dtype)
                work = workspace[:, : joined.numel()]
                widths = [part.numel() for part in block]
                parts = work[self.inputs :].split(widths, dim=1)
                for part, column in zip(parts, columns, strict=True):
                    part.copy_(column)
                results = self.step_block(joined, work).split(widths)
                for part, column in zip(parts, columns, strict=True):
                    column.copy_(part)
                for (tensor, start, stop), result in zip(pieces, results, strict=True):
                    flat_updates[tensor][start:stop] = result
        return updates


def blocks(sizes: Sequence[int], width: int) -> list[list[Piece]]:
    """Cut and join runs of these sizes into blocks of at most `width`; the pieces of each keep their order.

    >>> [[tuple(piece) for piece in block] for block in blocks([3, 0, 1, 6], 4)]
    [[(0, 0, 3), (2, 0, 1)], [(3, 0, 4)], [(3, 4, 6)]]
    """
    result: list[list[Piece]] = []
    room = 0
    for tensor, size in enumerate(sizes):
        start = 0
        while start < size:
            if room == 0:
                result.append([])
                room = width
            stop = min(size, start + room)
            result[-1].append(Piece(tensor, start, stop))
            room -= stop - start
            start = stop
    return result
