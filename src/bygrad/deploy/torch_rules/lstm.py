"""The coordinatewise LSTM in PyTorch: the arithmetic of `bygrad.optimizers.LSTM`."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..._core.definitions import FORGET_BIAS
from .base import Coordinatewise, check_shapes


class Weights(NamedTuple):
    """The weights of each layer on the rows of a block that it reads, and the head's weights and bias."""

    layers: list[Tensor]
    head: Tensor
    bias: Tensor


class LSTM(Coordinatewise):
    r"""An LSTM for every coordinate, all with the same weights.

    The rows of a block are the preprocessed gradient, a row of ones, which the biases multiply, and then
    the outputs of all layers, halved, and then their cells, doubled. So a layer's inputs are neighbours, and it is one
    matrix product. The halves and doubles are there because torch's tanh takes six times as long as its sigmoid
    $\sigma$:

    $$2c \leftarrow \sigma_f \cdot 2c + 4 \sigma_i (\sigma(2 z_g) - \tfrac12), \qquad
    \tfrac12 h \leftarrow \sigma_o \sigma(2c) - \tfrac12 \sigma_o$$

    with $\tanh z = 2 \sigma(2z) - 1$. Powers of two change no rounding; the weights make up for them.
    """

    feature_version: ClassVar[int] = 1
    settings: ClassVar[frozenset[str]] = frozenset({"layers", "preprocess", "output_scale", "state_dtype"})

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
        self._units = [int(units) for units in config["layers"]]
        options = dict(config["preprocess"])
        self._features, preprocess = _PREPROCESSORS[options.pop("name")]
        self._preprocess = functools.partial(preprocess, **options)
        self._state_dtype = _STATE_DTYPES[config.get("state_dtype")]
        self._scale = float(config["output_scale"])
        self._tensors = dict(tensors)
        self._weights: dict[tuple[torch.device, torch.dtype], Weights] = {}
        shapes: dict[str, tuple[int, ...]] = {"head": (self._units[-1],), "head_bias": ()}
        for k, (inputs, units) in enumerate(zip([self._features, *self._units[:-1]], self._units, strict=True)):
            shapes |= {f"layers/{k}/weight": (4 * units, inputs + units), f"layers/{k}/bias": (4 * units,)}
        check_shapes(tensors, shapes)

    @property
    def inputs(self) -> int:
        return self._features + 1

    @property
    def scratch(self) -> int:
        return 5 * max(self._units)

    @property
    def rows(self) -> int:
        return self.inputs + 2 * sum(self._units)

    @property
    def state_dtype(self) -> torch.dtype | None:
        return self._state_dtype

    def step_block(self, grads: Tensor, work: Tensor, scratch: Tensor, out: Tensor) -> None:
        weights = self._weights_for(grads.device, grads.dtype)
        self._preprocess(grads, work[: self._features])
        work[self._features].fill_(1.0)
        first, below, cell = 0, self.inputs, self.inputs + sum(self._units)
        for weight, units in zip(weights.layers, self._units, strict=True):
            h, c = work[below : below + units], work[cell : cell + units]
            gates, squashed = scratch[: 4 * units], scratch[4 * units : 5 * units]
            i, g, f, o = torch.mm(weight, work[first : below + units], out=gates).sigmoid_().split(units)
            c.mul_(f).addcmul_(i, g.sub_(0.5), value=4.0)
            torch.sub(torch.sigmoid(c, out=squashed).mul_(o), o, alpha=0.5, out=h)
            first, below, cell = self._features, below + units, cell + units
        torch.mv(work[below - self._units[-1] : below].t(), weights.head, out=out).add_(weights.bias)

    def _weights_for(self, device: torch.device, dtype: torch.dtype) -> Weights:
        if (device, dtype) not in self._weights:

            def tensor(array: np.ndarray) -> Tensor:
                return torch.from_numpy(array).to(device, dtype)

            theta = {name: array.astype(np.float64) for name, array in self._tensors.items()}
            layers, below = [], 0
            for k, units in enumerate(self._units):
                weight, bias = theta[f"layers/{k}/weight"], theta[f"layers/{k}/bias"]
                bias[2 * units : 3 * units] += FORGET_BIAS
                bias = bias[:, None]
                if k == 0:
                    columns = [weight[:, : self._features], bias, 2 * weight[:, self._features :]]
                else:  # the row of ones, what is not this layer's, the layer below, this layer
                    columns = [bias, np.zeros((4 * units, below - self._units[k - 1])), 2 * weight]
                # The second gate is a tanh.
                layers.append(tensor(np.repeat([1.0, 2.0, 1.0, 1.0], units)[:, None] * np.concatenate(columns, axis=1)))
                below += units
            head, bias = 2 * self._scale * theta["head"], self._scale * theta["head_bias"][None]
            self._weights[device, dtype] = Weights(layers, tensor(head), tensor(bias))
        return self._weights[device, dtype]


# Functions of the module, because an optimizer can be pickled.
def _log_sign(grads: Tensor, rows: Tensor, p: float = 10.0) -> None:
    torch.abs(grads, out=rows[0]).clamp_(min=math.exp(-p)).log_().div_(p)
    torch.mul(grads, math.exp(p), out=rows[1]).clamp_(-1.0, 1.0)


def _scaled(grads: Tensor, rows: Tensor, scale: float = 1.0) -> None:
    torch.mul(grads, scale, out=rows[0])


_PREPROCESSORS: dict[str, tuple[int, Callable[..., None]]] = {"LogSign": (2, _log_sign), "Scaled": (1, _scaled)}
"""Features, and what writes them for gradients `[c]` to rows `[features, c]`."""

_STATE_DTYPES = {None: None, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}
