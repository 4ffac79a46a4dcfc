"""The learned controller over Adam's arithmetic in PyTorch: the arithmetic of `bygrad.optimizers.Controller`."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from .base import Rule, Scheduled, TensorState, check_shapes, compute_dtype, grouped

# As in JAX, where they are explained.
SAMPLE = 512
TIME_SCALES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1_000.0, 3_000.0, 10_000.0)
HORIZON_PARTS = tuple(part / 8 for part in range(9))
_EPSILON = 1e-8
_UNDER_ROOT = 1e-30
_SMALLEST_RATIO = 1e-12
_SMALLEST_PARAMS = 1e-8
_LARGEST_EXPONENT = 10.0


class Controller(Rule, Scheduled):
    """Adam, with step size, momentum and mixing set at every step and for every tensor by a small network.

    The state of a tensor is Adam's `mean` and `square`, the `peak` of its gradient, the number of its `step`s, and the
    `horizon` that was declared for it. All of it lies where the params do: a step waits for no device.
    """

    feature_version: ClassVar[int] = 1

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
        hidden, times, features = int(config["hidden"]), len(TIME_SCALES) + len(HORIZON_PARTS), 7
        self._learning_rate = float(config["learning_rate"])
        shapes = {
            "inputs": (hidden, features),
            "times": (hidden, times),
            "bias": (hidden,),
            "head": (3, hidden),
            "head_times": (3, times),
            "head_bias": (3,),
            "decays": (2,),
            "horizon": (),
        }
        check_shapes(tensors, shapes)
        self._horizon = int(tensors["horizon"])
        self._tensors = {name: torch.from_numpy(array.copy()) for name, array in tensors.items()}

    def declare(self, horizon: int) -> None:
        self._horizon = horizon

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
        for (device, dtype), indices in grouped(grads).items():
            theta = {name: tensor.to(device, dtype) for name, tensor in self._tensors.items()}
            wide = [grads[index].to(dtype) for index in indices]
            ours, points = [states[index] for index in indices], [params[index] for index in indices]
            count = torch.stack([state["step"] for state in ours]).to(dtype)
            decays = torch.sigmoid(theta["decays"])
            (b1, b2), (c1, c2) = decays.tolist(), (1 - decays).tolist()
            bias1, bias2 = -torch.expm1((count + 1)[:, None] * torch.nn.functional.logsigmoid(theta["decays"])).T

            # The features come from a sample, in one vector for all tensors, before the moments change.
            def samples(leaves: Sequence[Tensor], dtype: torch.dtype = dtype) -> Tensor:
                return torch.cat([sample(leaf).to(dtype) for leaf in leaves])

            means, squares = [state["mean"] for state in ours], [state["square"] for state in ours]
            g, m, v, p = samples(wide), samples(means), samples(squares), samples(points)
            sizes = [sample(leaf).numel() for leaf in wide]
            lengths = torch.tensor(sizes, device=device)
            inverse1, inverse2 = (torch.repeat_interleave(1 / bias, lengths) for bias in (bias1, bias2))
            m, v = (b1 * m + c1 * g) * inverse1, b2 * v + c2 * g * g
            inverse_root = 1 / (torch.sqrt(v * inverse2 + _UNDER_ROOT) + _EPSILON)
            n, q = m * inverse_root, g * inverse_root
            rows = torch.stack([n * n, q * q, n * q, g * g, p * p, m * m]).split(sizes, dim=1)
            products = torch.stack([row.sum(1) / max(1, size) for row, size in zip(rows, sizes, strict=True)])
            peak = torch.stack([state["peak"] for state in ours])
            features, peak = _features(products, peak, torch.tensor([leaf.ndim for leaf in wide], device=device) / 2)
            horizon = torch.stack([state["horizon"] for state in ours]).to(dtype)
            outputs = _outputs(theta, features, _time_features(count, horizon))

            size = -self._learning_rate * torch.exp(outputs[:, 2])
            along_mean, along_grad = size * (1 + outputs[:, 0]) / bias1, size * outputs[:, 1]
            inverse2 = 1 / bias2
            for k, (index, grad, state) in enumerate(zip(indices, wide, ours, strict=True)):
                mean = state["mean"].mul_(b1).add_(grad, alpha=c1)
                square = state["square"].mul_(b2).addcmul_(grad, grad, value=c2)
                root = (square * inverse2[k]).add_(_UNDER_ROOT).sqrt_().add_(_EPSILON)
                updates[index] = (mean * along_mean[k]).addcmul_(grad, along_grad[k]).div_(root)
                state["peak"].copy_(peak[k])
                state["step"].add_(1)
        return updates


def sample(leaf: Tensor) -> Tensor:
    """Return at most `SAMPLE` entries, the same ones as in JAX."""
    stride = max(1, -(-leaf.numel() // SAMPLE))
    while leaf.ndim and leaf.numel() and math.gcd(stride, leaf.shape[-1]) > 1:
        stride += 1
    return leaf.reshape(-1)[::stride]


def _time_features(count: Tensor, horizon: Tensor) -> Tensor:
    time = torch.minimum(count, horizon)[:, None]
    scales, parts = (count.new_tensor(numbers) for numbers in (TIME_SCALES, HORIZON_PARTS))
    return torch.tanh(torch.cat([time / scales - 1, 8 * (time / horizon.clamp(min=1)[:, None] - parts)], dim=1))


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
        half_axes.to(peak.dtype),
    ]
    return torch.stack(features, dim=1), peak


def _outputs(theta: Mapping[str, Tensor], features: Tensor, times: Tensor) -> Tensor:
    hidden = torch.tanh(features @ theta["inputs"].T + times @ theta["times"].T + theta["bias"])
    outputs = hidden @ theta["head"].T + times @ theta["head_times"].T + theta["head_bias"]
    outputs[:, 2].clamp_(-_LARGEST_EXPONENT, _LARGEST_EXPONENT)
    return outputs
