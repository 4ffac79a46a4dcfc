"""The learned controller over Adam's arithmetic in PyTorch: the arithmetic of `bygrad.optimizers.Controller`."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .base import Rule, Scheduled, TensorState, check_shapes, compute_dtype, grouped

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
        numbers = {"scales": TIME_SCALES, "parts": HORIZON_PARTS}
        self._tensors |= {name: torch.tensor(number, dtype=torch.float64) for name, number in numbers.items()}
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
            theta, (b1, b2), (c1, c2), sizes, owners, half_axes, extra, grids = self._constants_for(
                device, dtype, wide, depth
            )
            ours, points = [states[index] for index in indices], [params[index] for index in indices]
            count = torch.stack([state["step"] for state in ours]).to(dtype)
            bias1, bias2 = -torch.expm1((count + 1)[:, None] * torch.nn.functional.logsigmoid(theta["decays"])).T

            # The features come from a sample, in one vector for all tensors, before the moments change.
            def samples(leaves: Sequence[Tensor], dtype: torch.dtype = dtype) -> Tensor:
                return torch.cat([sample(leaf).to(dtype) for leaf in leaves])

            means, squares = [state["mean"] for state in ours], [state["square"] for state in ours]
            g, m, v, p = samples(wide), samples(means), samples(squares), samples(points)
            inverse1, inverse2 = ((1 / bias)[owners] for bias in (bias1, bias2))
            m, v = (b1 * m + c1 * g) * inverse1, b2 * v + c2 * g * g
            inverse_root = 1 / (torch.sqrt(v * inverse2 + _UNDER_ROOT) + _EPSILON)
            n, q = m * inverse_root, g * inverse_root
            rows = torch.stack([n * n, q * q, n * q, g * g, p * p, m * m]).split(sizes, dim=1)
            products = torch.stack([row.sum(1) / max(1, size) for row, size in zip(rows, sizes, strict=True)])
            peak = torch.stack([state["peak"] for state in ours])
            features, peak = _features(products, peak, half_axes)
            if grids is not None:
                reaches = grids.log_reaches(n, products[:, 0])
                features = torch.cat([features, reaches[:, None] / 4], dim=1)
                extra = extra + POWER_SCALE * theta["powers"][2] * reaches
            horizon = torch.stack([state["horizon"] for state in ours]).to(dtype)
            outputs = _outputs(theta, features, _time_features(theta, count, horizon), extra)

            size = -self._learning_rate * torch.exp(outputs[:, 2])
            along_mean, along_grad = size * (1 + outputs[:, 0]) / bias1, size * outputs[:, 1]
            inverse2 = 1 / bias2
            for k, (index, grad, state) in enumerate(zip(indices, wide, ours, strict=True)):
                mean = state["mean"].lerp_(grad, c1)
                square = state["square"].mul_(b2).addcmul_(grad, grad, value=c2)
                root = (square * inverse2[k]).add_(_UNDER_ROOT).sqrt_().add_(_EPSILON)
                updates[index] = (mean * along_mean[k]).addcmul_(grad, along_grad[k]).div_(root)
                state["peak"].copy_(peak[k])
                state["step"].add_(1)
        return updates

    def _constants_for(
        self, device: torch.device, dtype: torch.dtype, grads: Sequence[Tensor], depth: float
    ) -> "_Constants":
        """What no step changes, once for all: to send it to an accelerator in every step would wait for that."""
        shapes = tuple(grad.shape for grad in grads)
        if (key := (device, dtype, shapes, depth)) not in self._constants:
            decays = torch.sigmoid(self._tensors["decays"].to(dtype))
            grids = [grid_of(grad) for grad in grads]
            sizes = [down * across for down, across in grids]
            owners = np.repeat(np.arange(len(sizes)), sizes)
            if len(self._constants) == 16:  # params take turns in having gradients
                self._constants.clear()
            self._constants[key] = _Constants(
                {name: tensor.to(device, dtype) for name, tensor in self._tensors.items()},
                decays.tolist(),
                (1 - decays).tolist(),
                sizes,
                torch.from_numpy(owners).to(device),
                torch.tensor([len(shape) / 2 for shape in shapes], dtype=dtype).to(device),
                (POWER_SCALE * log_sizes(grads, depth).to(dtype) @ self._tensors["powers"][:2].to(dtype)).to(device),
                _Grids(grids, shapes, dtype, device) if self._reach else None,
            )
        return self._constants[key]


class _Constants(NamedTuple):
    r"""$\theta$ on a device; how much of the moments is kept, and how much comes; for tensors of some shapes, the sizes
    of their samples, the tensor of each sample, half the number of axes, what size and depth add to exponents, and the
    grids that samples are, for those who see the reach."""

    theta: dict[str, Tensor]
    kept: list[float]
    taken: list[float]
    sizes: list[int]
    owners: Tensor
    half_axes: Tensor
    extra: Tensor
    grids: "_Grids | None"


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
        places = np.concatenate([start + place for start, place in zip(starts, [*down, *across], strict=False)])
        owners = np.repeat(np.arange(len(sides)), [columns for _, columns in sides])
        rows = np.array([rows for rows, _ in sides], float)
        count = np.array([rows for rows, _ in whole] + [columns for _, columns in whole], float)

        def number(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array).to(device, dtype)

        self._places, self._owners = torch.from_numpy(places).to(device), torch.from_numpy(owners).to(device)
        self._rows, self._count, self._all_pairs = number(rows), number(count), number(count * (count - 1))
        self._pairs = number(np.maximum(1, rows * (rows - 1)))
        self._columns = number(np.maximum(1, np.array([columns for _, columns in sides], float)))
        self._reaching = number(np.array([len(shape) > 1 for shape in shapes], float))

    def log_reaches(self, n: Tensor, square: Tensor) -> Tensor:
        """Return the logarithm of every reach over `REACH`, of $n$ at all samples and its mean square by tensor."""
        square = torch.cat([square, square])
        sums = n.new_zeros(len(self._owners)).index_add_(0, self._places, torch.cat([n, n]))
        squares = n.new_zeros(len(square)).index_add_(0, self._owners, sums * sums) / self._columns
        pairs = ((squares - self._rows * square) / self._pairs).clamp(min=0)
        furthest = (self._count * square + self._all_pairs * pairs).view(2, -1).amax(0)
        return self._reaching * (torch.log1p(furthest) / 2 - math.log(REACH))


def as_matrix(shape: Sequence[int]) -> tuple[int, int]:
    """Return rows and columns of a tensor as a matrix, as in JAX."""
    first, last = (shape[0], shape[-1]) if len(shape) > 1 else (math.prod(shape), 1)
    size = math.prod(shape)
    return (first, size // max(1, first)) if first > last else (size // max(1, last), last)


def strides(rows: int, columns: int) -> tuple[int, int]:
    """Return how far apart the rows and the columns lie that a sample sees, as in JAX."""
    most = max(1, min(columns, max(FEWEST, SAMPLE // max(1, rows))))
    return max(1, -(-rows // (SAMPLE // most))), max(1, -(-columns // most))


def grid_of(leaf: Tensor) -> tuple[int, int]:
    """Return rows and columns of a sample."""
    matrix = as_matrix(leaf.shape)
    rows, columns = (len(range(0, size, stride)) for size, stride in zip(matrix, strides(*matrix), strict=True))
    return rows, columns


def sample(leaf: Tensor) -> Tensor:
    """Return at most `SAMPLE` entries, the same ones as in JAX."""
    matrix = as_matrix(leaf.shape)
    down, across = strides(*matrix)
    return leaf.reshape(matrix)[::down, ::across].reshape(-1)


def _time_features(theta: Mapping[str, Tensor], count: Tensor, horizon: Tensor) -> Tensor:
    time = torch.minimum(count, horizon)[:, None]
    of_run = 8 * (time / horizon.clamp(min=1)[:, None] - theta["parts"])
    return torch.tanh(torch.cat([time / theta["scales"] - 1, of_run], dim=1))


def _features(products: Tensor, peak: Tensor, half_axes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the features `[tensors, 7]` and the new peaks."""
    nn, qq, nq, gg, pp, mm = products.T
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
    return torch.tensor([(depth, size) for size in sizes])


def _outputs(theta: Mapping[str, Tensor], features: Tensor, times: Tensor, extra: Tensor) -> Tensor:
    hidden = torch.tanh(features @ theta["inputs"].T + times @ theta["times"].T + theta["bias"])
    outputs = hidden @ theta["head"].T + times @ theta["head_times"].T + theta["head_bias"]
    outputs[:, 2].add_(extra).clamp_(-_LARGEST_EXPONENT, _LARGEST_EXPONENT)
    return outputs
