"""The learned controller over Adam's arithmetic in PyTorch: the arithmetic of `bygrad.optimizers.Controller`.

Operations on lists of tensors, which PyTorch's own optimizers are made of too, are few calls whatever the number of
tensors, and few programs on an accelerator.
"""

# pyright: reportPrivateImportUsage=false

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .base import Piece, Rule, Scheduled, TensorState, blocks, check_shapes, compute_dtype, grouped

# As in JAX, where they are explained.
SAMPLE = 512
FEWEST = 16
TIME_SCALES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1_000.0, 3_000.0, 10_000.0)
HORIZON_PARTS = tuple(part / 8 for part in range(9))
_EPSILON = 1e-8
_UNDER_ROOT = 1e-30
_SMALLEST_RATIO = 1e-12
_SMALLEST_PARAMS = 1e-8
_LARGEST_EXPONENT = 10.0
REACH = 32.0
POWER_SCALE = 4.0

BLOCK = 524_288
"""Coordinates that move together on a CPU: what happens between stays in its caches, and needs no memory that the
system would have to hand out, which takes as long as the arithmetic. Accelerators move all in one go."""


class Controller(Rule, Scheduled):
    """Adam, with step size, momentum and mixing set at every step and for every tensor by a small network.

    The state of a tensor is Adam's `mean` and `square`, the `peak` of its gradient, the number of its `step`s, and the
    `horizon` that was declared for it. All of it lies where the params do: a step waits for no device.
    """

    feature_version: ClassVar[int] = 3

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
        self._reach = bool(config["reach"])
        hidden, times, features = int(config["hidden"]), len(TIME_SCALES) + len(HORIZON_PARTS), 7 + self._reach
        self._learning_rate = float(config["learning_rate"])
        shapes = {
            "inputs": (hidden, features),
            "times": (hidden, times),
            "bias": (hidden,),
            "head": (3, hidden),
            "head_times": (3, times),
            "head_bias": (3,),
            "powers": (2 + self._reach,),
            "decays": (2,),
            "horizon": (),
        }
        check_shapes(tensors, shapes)
        self._horizon = int(tensors["horizon"])
        self._tensors = {name: torch.from_numpy(array.copy()) for name, array in tensors.items()}
        for name, numbers in (("scales", TIME_SCALES), ("parts", HORIZON_PARTS)):
            self._tensors[name] = torch.tensor(numbers, dtype=torch.float64, device="cpu")  # not the default device
        self._constants: dict[Any, _Constants] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_constants": {}}  # they lie on devices that a reader may not have

    def declare(self, horizon: int) -> None:
        self._horizon = horizon

    @property
    def horizon(self) -> int:
        return self._horizon

    def start(self, param: Tensor) -> TensorState:
        dtype = compute_dtype(param)
        scalar = torch.zeros((), dtype=dtype, device=param.device)
        return {
            "mean": torch.zeros(param.shape, dtype=dtype, device=param.device),
            "square": torch.zeros(param.shape, dtype=dtype, device=param.device),
            "peak": scalar,
            "step": torch.zeros((), dtype=torch.int32, device=param.device),
            "horizon": torch.full((), self._horizon, dtype=torch.int32, device=param.device),
        }

    def step(
        self,
        grads: Sequence[Tensor],
        states: Sequence[TensorState],
        params: Sequence[Tensor],
        value: Tensor | None = None,
    ) -> list[Tensor]:
        updates: list[Tensor] = [torch.empty(0)] * len(grads)
        depth = log_depth(grads)
        for (device, dtype), indices in grouped(grads).items():
            wide = [grads[index].to(dtype) for index in indices]
            known = self._constants_for(device, dtype, wide, depth)
            theta, (b1, b2), (c1, c2) = known.theta, known.kept, known.taken
            ours, points = [states[index] for index in indices], [params[index] for index in indices]
            steps, peaks = [state["step"] for state in ours], [state["peak"] for state in ours]
            means, squares = [state["mean"] for state in ours], [state["square"] for state in ours]
            count = torch.stack(steps).to(dtype)
            inverse1, inverse2 = -1 / torch.expm1((count + 1) * known.log_kept)

            # The features come from a sample, a row for every tensor, before the moments change.
            g, m, v, p = known.samples.of(wide, means, squares, points)
            m, v = (b1 * m + c1 * g) * inverse1[:, None], b2 * v + c2 * g * g
            inverse_root = 1 / (torch.sqrt(v * inverse2[:, None] + _UNDER_ROOT) + _EPSILON)
            n, q = m * inverse_root, g * inverse_root
            products = torch.stack([n * n, q * q, n * q, g * g, p * p, m * m]).sum(-1) / known.samples.sizes
            features, peak = _features(products, torch.stack(peaks), known.half_axes)
            extra = known.extra
            if known.grids is not None:
                reaches = known.grids.log_reaches(n, products[0])
                features = torch.cat([features, reaches[:, None] / 4], dim=1)
                extra = extra + POWER_SCALE * theta["powers"][2] * reaches
            horizon = torch.stack([state["horizon"] for state in ours]).to(dtype)
            outputs = _outputs(theta, features, _time_features(theta, count, horizon), extra)
            torch._foreach_copy_(peaks, list(peak.unbind()))
            torch._foreach_add_(steps, 1)

            size = -self._learning_rate * torch.exp(outputs[:, 2])
            factors = size * (1 + outputs[:, 0]) * inverse1, size * outputs[:, 1], inverse2
            for index, update in zip(indices, _move(wide, means, squares, known, *factors), strict=True):
                updates[index] = update
        return updates

    def _constants_for(
        self, device: torch.device, dtype: torch.dtype, grads: Sequence[Tensor], depth: float
    ) -> "_Constants":
        """What no step changes, once for all: to send it to an accelerator in every step would wait for that."""
        shapes = tuple(grad.shape for grad in grads)
        if (key := (device, dtype, shapes, depth)) not in self._constants:
            if len(self._constants) == 16:  # params take turns in having gradients
                self._constants.clear()
            theta = {name: tensor.to(dtype) for name, tensor in self._tensors.items()}
            kept = torch.sigmoid(theta["decays"])
            extra = POWER_SCALE * log_sizes(grads, depth).to(dtype) @ theta["powers"][:2]
            samples = _Samples(shapes, dtype, device)
            self._constants[key] = _Constants(
                {name: tensor.to(device) for name, tensor in theta.items()},
                kept.tolist(),
                (1 - kept).tolist(),
                torch.nn.functional.logsigmoid(theta["decays"])[:, None].to(device),
                torch.tensor([len(shape) / 2 for shape in shapes], dtype=dtype).to(device),
                extra.to(device),
                samples,
                _Grids(samples.grids, shapes, dtype, device) if self._reach else None,
            )
        return self._constants[key]


class _Constants(NamedTuple):
    r"""$\theta$ on a device; how much of the moments is kept, how much comes, and the logarithm of what is kept; for
    tensors of some shapes, half the number of axes, what size and depth add to exponents, where their samples go, and
    what grids those are, for those who see the reach."""

    theta: dict[str, Tensor]
    kept: list[float]
    taken: list[float]
    log_kept: Tensor
    half_axes: Tensor
    extra: Tensor
    samples: "_Samples"
    grids: "_Grids | None"


class _Samples:
    """The entries that are looked at, of several quantities: a matrix for each, with a row for the sample of every
    tensor, and zeros where one is smaller than others."""

    def __init__(self, shapes: Sequence[Sequence[int]], dtype: torch.dtype, device: torch.device) -> None:
        matrices = [as_matrix(shape) for shape in shapes]
        steps = [strides(*matrix) for matrix in matrices]
        self.grids = [
            (len(range(0, rows, down)), len(range(0, columns, across)))
            for (rows, columns), (down, across) in zip(matrices, steps, strict=True)
        ]
        self._strides = [(down * columns, across) for (_, columns), (down, across) in zip(matrices, steps, strict=True)]
        sizes = [down * across for down, across in self.grids]
        self.sizes = torch.tensor([max(1, size) for size in sizes], dtype=dtype).to(device)
        self._matrices = torch.zeros(4, len(sizes), max(sizes), dtype=dtype, device=device)
        self._places = [
            [row[:size].view(grid) for row, size, grid in zip(matrix, sizes, self.grids, strict=True)]
            for matrix in self._matrices
        ]

    def of(self, *quantities: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return matrices `[tensors, size of the largest sample]`, which are good until the next call."""
        for places, leaves in zip(self._places, quantities, strict=True):
            seen = [
                leaf.contiguous().as_strided(grid, apart)
                for leaf, grid, apart in zip(leaves, self.grids, self._strides, strict=True)
            ]
            torch._foreach_copy_(places, seen)
        return self._matrices.unbind()


class _Grids:
    """The samples of all tensors as matrices: their columns, and then their rows, which are columns seen from the side.

    **Arguments:** `seen`: rows and columns of the sample of each tensor. `shapes`: of the tensors.
    """

    def __init__(
        self,
        seen: Sequence[tuple[int, int]],
        shapes: Sequence[Sequence[int]],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        whole = [as_matrix(shape) for shape in shapes]
        sides = [*seen, *((columns, rows) for rows, columns in seen)]
        starts = np.cumsum([0, *(columns for _, columns in sides)])
        down = [np.tile(np.arange(columns), rows) for rows, columns in seen]
        across = [np.repeat(np.arange(rows), columns) for rows, columns in seen]
        places = np.zeros((2, len(seen), max(map(math.prod, seen))), int)  # zeros beyond a sample add nothing
        for k, start, place in zip(range(len(sides)), starts, [*down, *across], strict=False):
            places.reshape(len(sides), -1)[k, : len(place)] = start + place
        owners = np.repeat(np.arange(len(sides)), [columns for _, columns in sides])
        rows = np.array([rows for rows, _ in sides], float)
        count = np.array([rows for rows, _ in whole] + [columns for _, columns in whole], float)

        def number(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array).to(device, dtype)

        self._places, self._owners = torch.from_numpy(places.ravel()).to(device), torch.from_numpy(owners).to(device)
        self._rows, self._count, self._all_pairs = number(rows), number(count), number(count * (count - 1))
        self._pairs = number(np.maximum(1, rows * (rows - 1)))
        self._columns = number(np.maximum(1, np.array([columns for _, columns in sides], float)))
        self._reaching = number(np.array([len(shape) > 1 for shape in shapes], float))

    def log_reaches(self, n: Tensor, square: Tensor) -> Tensor:
        """Return the logarithm of every reach over `REACH`, of $n$ at all samples and its mean square by tensor."""
        square, entries = torch.cat([square, square]), n.reshape(-1)
        sums = n.new_zeros(len(self._owners)).index_add_(0, self._places, torch.cat([entries, entries]))
        squares = n.new_zeros(len(square)).index_add_(0, self._owners, sums * sums) / self._columns
        pairs = ((squares - self._rows * square) / self._pairs).clamp(min=0)
        furthest = (self._count * square + self._all_pairs * pairs).view(2, -1).amax(0)
        return self._reaching * (torch.log1p(furthest) / 2 - math.log(REACH))


def _move(
    grads: Sequence[Tensor],
    means: Sequence[Tensor],
    squares: Sequence[Tensor],
    known: _Constants,
    along_mean: Tensor,
    along_grad: Tensor,
    unbias: Tensor,
) -> list[Tensor]:
    """Let the moments follow, and return the updates: their factors are one for each tensor."""
    (_, b2), (c1, c2) = known.kept, known.taken
    each_along_mean, each_along_grad, each_unbias = (it.unbind() for it in (along_mean, along_grad, unbias))
    block = BLOCK if grads[0].device.type == "cpu" else sys.maxsize
    grads = [grad.contiguous() if grad.numel() > block else grad for grad in grads]
    updates = [torch.empty(grad.shape, dtype=grad.dtype, device=grad.device) for grad in grads]
    for pieces in blocks([grad.numel() for grad in grads], block):
        owners = [piece.tensor for piece in pieces]
        grad, mean, square, update = (_cut(leaves, pieces) for leaves in (grads, means, squares, updates))
        torch._foreach_lerp_(mean, grad, c1)
        torch._foreach_mul_(square, b2)
        torch._foreach_addcmul_(square, grad, grad, c2)
        root = torch._foreach_mul(square, [each_unbias[owner] for owner in owners])
        torch._foreach_add_(root, _UNDER_ROOT)
        torch._foreach_sqrt_(root)
        torch._foreach_add_(root, _EPSILON)
        for owner, part, to in zip(owners, mean, update, strict=True):
            torch.mul(part, each_along_mean[owner], out=to)
        torch._foreach_addcmul_(update, grad, [each_along_grad[owner] for owner in owners])
        torch._foreach_div_(update, root)
    return updates


def _cut(leaves: Sequence[Tensor], pieces: Sequence[Piece]) -> list[Tensor]:
    whole = [(leaves[index], start, stop) for index, start, stop in pieces]
    return [leaf if stop - start == leaf.numel() else leaf.view(-1)[start:stop] for leaf, start, stop in whole]


def as_matrix(shape: Sequence[int]) -> tuple[int, int]:
    """Return rows and columns of a tensor as a matrix, as in JAX."""
    first, last = (shape[0], shape[-1]) if len(shape) > 1 else (math.prod(shape), 1)
    size = math.prod(shape)
    return (first, size // max(1, first)) if first > last else (size // max(1, last), last)


def strides(rows: int, columns: int) -> tuple[int, int]:
    """Return how far apart the rows and the columns lie that a sample sees, as in JAX."""
    most = max(1, min(columns, max(FEWEST, SAMPLE // max(1, rows))))
    return max(1, -(-rows // (SAMPLE // most))), max(1, -(-columns // most))


def _time_features(theta: Mapping[str, Tensor], count: Tensor, horizon: Tensor) -> Tensor:
    time = torch.minimum(count, horizon)[:, None]
    of_run = 8 * (time / horizon.clamp(min=1)[:, None] - theta["parts"])
    return torch.tanh(torch.cat([time / theta["scales"] - 1, of_run], dim=1))


def _features(products: Tensor, peak: Tensor, half_axes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the features `[tensors, 7]` and the new peaks."""
    nn, qq, nq, gg, pp, mm = products
    rms_n, rms_q = torch.sqrt(nn + _SMALLEST_RATIO), torch.sqrt(qq + _SMALLEST_RATIO)
    rms_g = torch.sqrt(gg + _UNDER_ROOT)
    peak = torch.maximum(peak, rms_g)
    features = [
        rms_n,
        rms_q,
        nq / (rms_n * rms_q),
        torch.log(rms_g / peak) / 4,
        torch.log10(pp + _SMALLEST_PARAMS) / 4,
        torch.log((mm + _UNDER_ROOT) / (gg + _UNDER_ROOT)) / 2,
        half_axes,
    ]
    return torch.stack(features, dim=1), peak


def log_depth(leaves: Sequence[Tensor]) -> float:
    """Return the logarithm of the number of tensors with two axes or more, over 2."""
    return math.log(max(1, sum(leaf.ndim >= 2 for leaf in leaves)) / 2)


def log_sizes(leaves: Sequence[Tensor], depth: float) -> Tensor:
    """Return `depth` and the logarithm of its size over 1024 for every tensor; 0 with less than two axes."""
    sizes = [math.log(max(1, leaf.numel()) / 1024) if leaf.ndim >= 2 else 0.0 for leaf in leaves]
    # As in JAX, whatever the default dtype is.
    return torch.tensor([(depth, size) for size in sizes], dtype=torch.float32, device="cpu")


def _outputs(theta: Mapping[str, Tensor], features: Tensor, times: Tensor, extra: Tensor) -> Tensor:
    hidden = torch.tanh(features @ theta["inputs"].T + times @ theta["times"].T + theta["bias"])
    outputs = hidden @ theta["head"].T + times @ theta["head_times"].T + theta["head_bias"]
    outputs[:, 2].add_(extra).clamp_(-_LARGEST_EXPONENT, _LARGEST_EXPONENT)
    return outputs
