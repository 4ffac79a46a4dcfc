"""What a rule is in PyTorch."""

# pyright: reportPrivateImportUsage=false

import abc
import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

BLOCK = 4096
"""Coordinates that take a step at a time: what happens inside stays in cache. Measured: 2048 to 8192 are alike. How the
state of coordinatewise rules is laid out depends on it: another number could not read the state dicts of today."""

TensorState = dict[str, Tensor]
"""What a rule remembers of one tensor of the params."""


Rate = float | Tensor
"""What the steps of a tensor of the params are multiplied by: a learning rate, as torch's own optimizers take it."""


class Rule(abc.ABC):
    r"""An optimizer's arithmetic with its meta-parameters $\theta$, as read from an artifact.

    **Arguments:** `config`: the static configuration. `tensors`: $\theta$, by name.
    """

    feature_version: ClassVar[int]
    settings: ClassVar[frozenset[str]]
    """What a configuration may have."""

    @abc.abstractmethod
    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None: ...

    @abc.abstractmethod
    def start(self, param: Tensor) -> TensorState:
        """Return the state of one tensor before its first step."""

    def attend(self, params: Sequence[Tensor], depth: int) -> None:  # noqa: B027
        """Be told before a step what is trained as a whole: a step may be that of a part, which has gradients now.

        **Arguments:** `params`: all that is trained. `depth`: the most of them that had two axes or more, so far.
        """

    @abc.abstractmethod
    def step(
        self,
        grads: Sequence[Tensor],
        states: Sequence[TensorState],
        params: Sequence[Tensor],
        value: Tensor | None = None,
    ) -> list[Tensor]:
        """Return the updates, fresh tensors in the dtype that the rule computes in, and change the states in place."""

    def move(
        self,
        grads: Sequence[Tensor],
        states: Sequence[TensorState],
        params: Sequence[Tensor],
        rates: Sequence[Rate],
        value: Tensor | None = None,
    ) -> None:
        """Take a step: add to each of `params` its rate times its update, in the dtype that the rule computes in, and
        round once."""
        updates = [*map(multiplied, self.step(grads, states, params, value), rates)]
        if updates:
            torch._foreach_add_(list(params), updates)


class Scheduled(abc.ABC):
    """What a rule needs that goes by how far a run has come."""

    @abc.abstractmethod
    def declare(self, horizon: int) -> None:
        """Say how many steps the runs will have that start from now on."""

    @property
    @abc.abstractmethod
    def horizon(self) -> int | None:
        """How many steps a run has that starts now; `None` where it makes no difference."""


@contextlib.contextmanager
def exact(devices: Collection[str]) -> Iterator[None]:
    """Compute as the rule was learned, whatever a user's autocast and matmul precision say for the model meanwhile."""
    with contextlib.ExitStack() as stack:
        for device in devices:
            if torch.amp.is_autocast_available(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if hasattr(torch.backends, "fp32_precision"):  # since PyTorch 2.9
            backends: Any = torch.backends  # whose attributes not all stubs know
            products = {"cpu": (backends.mkldnn.matmul, backends.mkldnn), "cuda": (backends.cuda.matmul, backends)}
            for backend, above in [products[device] for device in devices if device in products]:
                if (theirs := backend.fp32_precision) not in ("ieee", "none"):  # of which the last is that of none set
                    given = "none" if theirs == above.fp32_precision else theirs  # it may come from above
                    stack.callback(setattr, backend, "fp32_precision", given)
                    backend.fp32_precision = "ieee"
        elif (theirs := torch.get_float32_matmul_precision()) != "highest":
            stack.callback(torch.set_float32_matmul_precision, theirs)
            torch.set_float32_matmul_precision("highest")
        yield


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype that rules compute in and keep their state in: float32, and float64 for params that are."""
    return torch.promote_types(tensor.dtype, torch.float32)


def multiplied(update: Tensor, rate: Rate) -> Tensor:
    """Multiply an update by a rate, in place."""
    if isinstance(rate, Tensor):
        return update.mul_(rate.reshape(()))
    return update if rate == 1.0 else update.mul_(rate)


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
    r"""A rule that treats every coordinate alike and alone.

    Coordinates take their steps in blocks: large tensors are cut, small ones joined, so that Python's work does not
    grow with the number of tensors, nor the working set with their size. The state of a tensor lies in memory block by
    block, each a matrix `[rows, c]`, row by row: so a whole block takes its step where it lies. The shape of the state,
    `[rows, *shape]`, says of which tensor it is, and nothing else.
    """

    @property
    @abc.abstractmethod
    def inputs(self) -> int:
        """The first rows of a block, which the rule computes from the gradients anew: no part of what it remembers."""

    @property
    @abc.abstractmethod
    def rows(self) -> int:
        """All rows of a block, `inputs` and what the rule remembers."""

    @property
    @abc.abstractmethod
    def scratch(self) -> int:
        """Rows that the rule writes and forgets: to allocate them for every block would take as long as a product."""

    @property
    @abc.abstractmethod
    def state_dtype(self) -> torch.dtype | None:
        """What the state is kept in; `None` for the dtype that is computed in."""

    @abc.abstractmethod
    def step_block(self, grads: Tensor, work: Tensor, scratch: Tensor, out: Tensor) -> None:
        """Write the updates `[c]` for `grads` `[c]` to `out`, and change `work` `[rows, c]` in place."""

    def start(self, param: Tensor) -> TensorState:
        dtype = self.state_dtype or compute_dtype(param)
        return {"state": torch.zeros(self.rows, *param.shape, dtype=dtype, device=param.device)}

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
            flat_states = [states[index]["state"].view(-1) for index in indices]
            cuts = blocks([grad.numel() for grad in flat_grads], BLOCK)
            width = max((sum(stop - start for _, start, stop in pieces) for pieces in cuts), default=0)
            scratch = torch.empty(self.scratch * width, dtype=dtype, device=device)
            for pieces in cuts:
                block = [flat_grads[tensor][start:stop] for tensor, start, stop in pieces]
                held = [
                    flat_states[tensor][self.rows * start : self.rows * stop].view(self.rows, stop - start)
                    for tensor, start, stop in pieces
                ]
                joined = (block[0] if len(block) == 1 else torch.cat(block)).to(dtype)
                work = (held[0] if len(held) == 1 else torch.cat(held, dim=1)).to(dtype)
                outs = [flat_updates[tensor][start:stop] for tensor, start, stop in pieces]
                out = outs[0] if len(outs) == 1 else torch.empty_like(joined)
                size = joined.numel()
                self.step_block(joined, work, scratch[: self.scratch * size].view(self.scratch, size), out)
                if work is not held[0]:
                    widths = [part.numel() for part in outs]
                    for part, new in zip(held, work.split(widths, dim=1), strict=True):
                        part.copy_(new)
                    for part, new in zip(outs, out.split(widths), strict=True):
                        part.copy_(new)
        return updates


def blocks(sizes: Sequence[int], width: int) -> list[list[Piece]]:
    """Cut runs of these sizes at every multiple of `width`, and join what is left into blocks of at most `width`.

    >>> [[tuple(piece) for piece in block] for block in blocks([3, 0, 1, 6], 4)]
    [[(3, 0, 4)], [(0, 0, 3), (2, 0, 1)], [(3, 4, 6)]]
    """
    whole: list[list[Piece]] = []
    joined: list[list[Piece]] = []
    room = 0
    for tensor, size in enumerate(sizes):
        rest = size - size % width
        whole += [[Piece(tensor, start, start + width)] for start in range(0, rest, width)]
        if rest < size:
            if size - rest > room:
                joined.append([])
                room = width
            joined[-1].append(Piece(tensor, rest, size))
            room -= size - rest
    return whole + joined
