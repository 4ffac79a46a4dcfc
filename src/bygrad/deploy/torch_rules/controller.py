"""The learned controller over Adam's arithmetic in PyTorch: the arithmetic of `bygrad.optimizers.Controller`.

Operations on lists of tensors, which PyTorch's own optimizers are made of too, are few calls whatever the number of
tensors, and few programs on an accelerator.
"""

# pyright: reportPrivateImportUsage=false

import itertools
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..._core.definitions import (
    EPSILON,
    HORIZON_PARTS,
    LARGEST_EXPONENT,
    POWER_SCALE,
    SMALLEST_PARAMS,
    SMALLEST_RATIO,
    TIME_SCALES,
    UNDER_ROOT,
)
from .base import Piece, Rate, Rule, Scheduled, TensorState, blocks, check_shapes, compute_dtype, grouped
from .samples import Grids, Samples

BLOCK = 524_288
"""Coordinates that move together on a CPU, in memory that is there for all steps: to have it handed out by the system
in each of them takes longer than the arithmetic. Accelerators move all in one go, in memory that they keep for that."""


class Controller(Rule, Scheduled):
    """Adam, with step size, momentum and mixing set at every step and for every tensor by a small network.

    The state of a tensor is Adam's `mean` and `square`, the `peak` of its gradient, the number of its `step`s, and the
    `horizon` that was declared for it. All of it lies where the params do: a step waits for no device.
    """

    feature_version: ClassVar[int] = 3
    settings: ClassVar[frozenset[str]] = frozenset({"hidden", "learning_rate", "reach", "weight_decay"})

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
        } | ({"weight_decay": ()} if config.get("weight_decay") else {})
        check_shapes(tensors, shapes)
        self._horizon = int(tensors["horizon"])
        self._decays, self._powers = (torch.from_numpy(tensors[name].copy()) for name in ("decays", "powers"))
        # Files that are older know none.
        self._weight_decay = max(0.0, float(tensors["weight_decay"])) if config.get("weight_decay") else None
        self._power_of_reach = POWER_SCALE * float(self._powers[-1])
        weights, heads = (
            np.concatenate([tensors[name] for name in names], axis=1).T
            for names in (("inputs", "times"), ("head", "head_times"))
        )
        self._layers = [
            (torch.tensor(bias, device="cpu"), torch.tensor(product, device="cpu"))
            for bias, product in ((tensors["bias"], weights), (tensors["head_bias"], heads))
        ]
        self._constants: dict[Any, _Constants] = {}
        self.depth: int | None = None
        """Of a network whose other tensors this rule does not see; None: counted from what is trained."""
        self._counted: int | None = None
        """What was counted (`attend`); None: to be counted from the gradients of a step."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_constants": {}}  # they lie on devices that a reader may not have

    def declare(self, horizon: int) -> None:
        self._horizon = horizon

    @property
    def horizon(self) -> int:
        return self._horizon

    def start(self, param: Tensor) -> TensorState:
        dtype = compute_dtype(param)
        return {
            "mean": _zeros_like(param),  # which lies in memory as the param does, channels last, say
            "square": _zeros_like(param),
            "peak": torch.zeros((), dtype=dtype, device=param.device),
            "step": torch.zeros((), dtype=torch.int32, device=param.device),
            "horizon": torch.full((), self._horizon, dtype=torch.int32, device=param.device),
        }

    def attend(self, params: Sequence[Tensor], depth: int) -> None:
        self._counted = depth

    def step(
        self,
        grads: Sequence[Tensor],
        states: Sequence[TensorState],
        params: Sequence[Tensor],
        value: Tensor | None = None,
    ) -> list[Tensor]:
        updates = [_zeros_like(grad) for grad in grads]
        self._step(grads, states, params, [1.0] * len(grads), updates)
        return updates

    def move(
        self,
        grads: Sequence[Tensor],
        states: Sequence[TensorState],
        params: Sequence[Tensor],
        rates: Sequence[Rate],
        value: Tensor | None = None,
    ) -> None:
        self._step(grads, states, params, rates, params)

    def _step(
        self,
        grads: Sequence[Tensor],
        states: Sequence[TensorState],
        params: Sequence[Tensor],
        rates: Sequence[Rate],
        targets: Sequence[Tensor],
    ) -> None:
        """Take a step, and add the updates, times their rates, to `targets`."""
        depth = math.log((self.depth or self._counted or depth_of(grads)) / 2)
        for (device, dtype), indices in grouped(grads).items():
            wide = [grads[index].to(dtype) for index in indices]
            ours, points = [states[index] for index in indices], [params[index] for index in indices]
            steps, horizons = [state["step"] for state in ours], [state["horizon"] for state in ours]
            means, squares = [state["mean"] for state in ours], [state["square"] for state in ours]
            known = self._constants_for(device, dtype, means, depth)
            peaks = [state["peak"] for state in ours]
            count, horizon = torch.stack([*steps, *horizons]).to(dtype).view(2, -1)
            unbias1, unbias2 = -1 / torch.expm1((count + 1) * known.log_kept)

            # The features come from a sample, before the moments change.
            samples = known.samples
            samples.see(wide, points, means, squares)
            samples.move(known.kept, known.taken, unbias1[:, None], unbias2[:, None], EPSILON)
            features, square_n, peak = _features(samples.products(), torch.stack(peaks), known)
            exponents = known.exponents
            if known.grids is not None:
                reaches = known.grids.log_reaches(samples.n, square_n)
                features.append(reaches / 4)
                exponents = torch.add(exponents, reaches, alpha=self._power_of_reach)
            times = known.times.features(count, horizon)
            outputs = _outputs(known.layers, torch.cat([torch.stack(features, 1), times], 1), times)
            torch._foreach_copy_(peaks, list(peak.unbind()))
            torch._foreach_add_(steps, 1)

            along_mean, along_grad, exponent = outputs.unbind(1)
            # The bias of the root goes into what is divided by it: one number in place of one for every coordinate.
            unbias = torch.rsqrt(unbias2)
            size = torch.exp((exponent + exponents).clamp_(-LARGEST_EXPONENT, LARGEST_EXPONENT)) * unbias
            size *= -self._learning_rate * _together([rates[index] for index in indices], size)
            factors = size * (1 + along_mean) * unbias1, size * along_grad, EPSILON * unbias
            decay = None
            if self._weight_decay is not None:
                decay = [point.to(dtype) for point in points], size / unbias * self._weight_decay
            _move(wide, means, squares, [targets[index] for index in indices], known, *factors, decay)

    def _constants_for(
        self, device: torch.device, dtype: torch.dtype, means: Sequence[Tensor], depth: float
    ) -> "_Constants":
        """What no step changes, once for all: to send it to an accelerator in every step would wait for that."""
        shapes, strides = tuple(mean.shape for mean in means), tuple(mean.stride() for mean in means)
        if (key := (device, dtype, shapes, strides, depth)) not in self._constants:
            if len(self._constants) == 16:  # params take turns in having gradients
                self._constants.clear()

            def here(tensor: Tensor) -> Tensor:
                return tensor.to(device, dtype)

            kept, samples = torch.sigmoid(self._decays.to(dtype)), Samples(shapes, dtype, device)
            floors = UNDER_ROOT, SMALLEST_PARAMS, UNDER_ROOT, SMALLEST_RATIO, SMALLEST_RATIO
            width = BLOCK if device.type == "cpu" else sys.maxsize
            cuts = blocks([math.prod(shape) for shape in shapes], width)
            self._constants[key] = _Constants(
                layers=[(here(bias), here(weights)) for bias, weights in self._layers],
                kept=kept.tolist(),
                taken=(1 - kept).tolist(),
                log_kept=here(torch.nn.functional.logsigmoid(self._decays.to(dtype))[:, None]),
                floors=here(torch.tensor(floors, dtype=dtype, device="cpu")),
                half_axes=here(torch.tensor([len(shape) / 2 for shape in shapes], dtype=dtype, device="cpu")),
                exponents=here(POWER_SCALE * log_sizes(means, depth).to(dtype) @ self._powers[:2].to(dtype)),
                times=_Times(dtype, device),
                samples=samples,
                grids=Grids(samples.grids, shapes, dtype, device) if self._reach else None,
                width=width,
                blocks=cuts,
                workspaces=_workspaces(cuts, shapes, strides, dtype) if device.type == "cpu" else [None] * len(cuts),
            )
        return self._constants[key]


class _Constants(NamedTuple):
    """What no step changes, for tensors of some shapes on a device."""

    layers: list[tuple[Tensor, Tensor]]
    """Bias and weights of the network's layers."""
    kept: list[float]
    """How much a step keeps of the two moments, and how much of them comes (`taken`)."""
    taken: list[float]
    log_kept: Tensor
    floors: Tensor
    """Under the roots of the mean squares of gradient, param, mean, n and q."""
    half_axes: Tensor
    """Half the number of axes of each tensor."""
    exponents: Tensor
    """What its size and the depth add to its exponent."""
    times: "_Times"
    samples: Samples
    grids: Grids | None
    """For those who see the reach."""
    width: int
    """Of a block of coordinates that move together."""
    blocks: list[list[Piece]]
    workspaces: list[list[list[Tensor]] | None]
    """Memory for two quantities of each block; accelerators keep it ready by themselves."""


class _Times:
    """What the network sees of the time, of every tensor: linear in the time, and in its part of the horizon."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        slopes = np.zeros((2, len(TIME_SCALES) + len(HORIZON_PARTS)))
        slopes[0, : len(TIME_SCALES)], slopes[1, len(TIME_SCALES) :] = 1 / np.array(TIME_SCALES), 8.0
        shifts = np.array([-1.0] * len(TIME_SCALES) + [-8 * part for part in HORIZON_PARTS])
        self._slopes, self._shifts = (torch.from_numpy(it).to(device, dtype) for it in (slopes, shifts))

    def features(self, count: Tensor, horizon: Tensor) -> Tensor:
        time = torch.minimum(count, horizon)
        both = torch.stack([time, time / horizon.clamp(min=1)], dim=1)
        return torch.addmm(self._shifts, both, self._slopes).tanh_()


def _together(rates: Sequence[Rate], like: Tensor) -> Rate:
    """Return the rates of tensors of the params, numbers or tensors themselves: one for all, or one for each."""
    alike = itertools.groupby(rates, key=lambda rate: (id(rate),) if isinstance(rate, Tensor) else rate)
    runs = [list(run) for _, run in alike]
    if len(runs) == 1 and not isinstance(rates[0], Tensor):
        return rates[0]
    # A number is filled in where the params are: to send it to an accelerator would wait for that.
    parts = [
        rate.to(like.device, like.dtype).reshape(1).expand(count)
        if isinstance(rate, Tensor)
        else torch.full((count,), rate, dtype=like.dtype, device=like.device)
        for rate, count in ((run[0], len(run)) for run in runs)
    ]
    return torch.cat(parts)


def _move(
    grads: Sequence[Tensor],
    means: Sequence[Tensor],
    squares: Sequence[Tensor],
    targets: Sequence[Tensor],
    known: _Constants,
    along_mean: Tensor,
    along_grad: Tensor,
    epsilon: Tensor,
    decay: tuple[Sequence[Tensor], Tensor] | None,
) -> None:
    """Let the moments follow, and add the updates to `targets`: their factors are one for each tensor. `decay`: what is
    added besides in proportion to it, the params, and its factors."""
    (_, b2), (c1, c2) = known.kept, known.taken
    each_along_mean, each_along_grad, each_epsilon = _numbers(along_mean), along_grad.unbind(), _numbers(epsilon)
    points, along_points = ([], ()) if decay is None else (decay[0], decay[1].unbind())
    grads, lined_up, points = (_lined_up(leaves, means, known.width) for leaves in (grads, targets, points))
    for pieces, workspace in zip(known.blocks, known.workspaces, strict=True):
        owners = [piece.tensor for piece in pieces]
        grad, mean, square, target = (_cut(leaves, pieces) for leaves in (grads, means, squares, lined_up))
        torch._foreach_lerp_(mean, grad, c1)
        torch._foreach_mul_(square, b2)
        torch._foreach_addcmul_(square, grad, grad, c2)
        update, root = workspace or [[torch.empty_like(part) for part in mean] for _ in range(2)]
        torch._foreach_copy_(root, square)
        torch._foreach_sqrt_(root)
        torch._foreach_add_(root, [each_epsilon[owner] for owner in owners])
        torch._foreach_copy_(update, mean)
        torch._foreach_mul_(update, [each_along_mean[owner] for owner in owners])
        torch._foreach_addcmul_(update, grad, [each_along_grad[owner] for owner in owners])
        torch._foreach_div_(update, root)
        if points:
            torch._foreach_addcmul_(update, _cut(points, pieces), [along_points[owner] for owner in owners])
        torch._foreach_add_(target, update)
    for target, moved in zip(targets, lined_up, strict=True):
        if moved is not target:
            target.copy_(moved)


def _numbers(factors: Tensor) -> Any:
    """Return a factor for each tensor: on a CPU as numbers, with which operations are quicker. To read them from an
    accelerator would wait for it."""
    return factors.tolist() if factors.device.type == "cpu" else factors.unbind()


def _workspaces(
    cuts: Sequence[Sequence[Piece]],
    shapes: Sequence[Sequence[int]],
    strides: Sequence[Sequence[int]],
    dtype: torch.dtype,
) -> list[list[list[Tensor]] | None]:
    """Return memory for two quantities of every block, arranged as its pieces are: the same for all."""
    sizes = [[stop - start for _, start, stop in pieces] for pieces in cuts]
    memory = torch.empty(2, max(map(sum, sizes), default=0), dtype=dtype, device="cpu")
    return [
        [
            [
                part.as_strided(shapes[piece.tensor], strides[piece.tensor])
                if len(part) == math.prod(shapes[piece.tensor])
                else part
                for piece, part in zip(pieces, row[: sum(of_pieces)].split(of_pieces), strict=True)
            ]
            for row in memory
        ]
        for pieces, of_pieces in zip(cuts, sizes, strict=True)
    ]


def _zeros_like(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf, dtype=compute_dtype(leaf), memory_format=torch.preserve_format)


def _lined_up(leaves: Sequence[Tensor], means: Sequence[Tensor], width: int) -> list[Tensor]:
    """Return tensors that can be cut, where their size is above `width`: arranged in memory as their moments are, which
    have no gaps. Others move as they are."""

    def line_up(leaf: Tensor, mean: Tensor) -> Tensor:
        alike = leaf.numel() <= width or leaf.stride() == mean.stride()
        return leaf if alike else torch.empty_like(mean, dtype=leaf.dtype).copy_(leaf)

    return [*map(line_up, leaves, means)]


def _cut(leaves: Sequence[Tensor], pieces: Sequence[Piece]) -> list[Tensor]:
    """Return pieces of tensors, in the order in which these lie in memory."""
    whole = [(leaves[index], start, stop) for index, start, stop in pieces]
    return [
        leaf if stop - start == leaf.numel() else leaf.as_strided((stop - start,), (1,), leaf.storage_offset() + start)
        for leaf, start, stop in whole
    ]


def _features(products: Tensor, peak: Tensor, known: _Constants) -> tuple[list[Tensor], Tensor, Tensor]:
    """Return the features of every tensor, the mean square of n, and the new peaks."""
    squares = products.diagonal(dim1=1, dim2=2)
    rms_g, rms_p, rms_m, rms_n, rms_q = torch.sqrt(squares + known.floors).unbind(1)
    peak = torch.maximum(peak, rms_g)
    features = [
        rms_n,
        rms_q,
        products[:, 3, 4] / (rms_n * rms_q),
        torch.log(rms_g / peak) / 4,
        torch.log10(rms_p) / 2,
        torch.log(rms_m / rms_g),
        known.half_axes,
    ]
    return features, squares[:, 3], peak


def depth_of(leaves: Iterable[Tensor]) -> int:
    """Return the number of tensors with two axes or more, at least 1."""
    return max(1, sum(leaf.ndim >= 2 for leaf in leaves))


def log_sizes(leaves: Sequence[Tensor], depth: float) -> Tensor:
    """Return `depth` and the logarithm of its size over 1024 for every tensor; 0 with less than two axes."""
    sizes = [math.log(max(1, leaf.numel()) / 1024) if leaf.ndim >= 2 else 0.0 for leaf in leaves]
    # As in JAX, whatever the default dtype is.
    return torch.tensor([(depth, size) for size in sizes], dtype=torch.float32, device="cpu")


def _outputs(layers: Sequence[tuple[Tensor, Tensor]], features: Tensor, times: Tensor) -> Tensor:
    """Return the outputs `[tensors, 3]` of the network; the times go into both of its layers."""
    (bias, weights), (head_bias, head) = layers
    hidden = torch.addmm(bias, features, weights).tanh_()
    return torch.addmm(head_bias, torch.cat([hidden, times], 1), head)
