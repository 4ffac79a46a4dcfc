"""The paper's optimizer as PyTorch users write it: LSTM cells with coordinates as rows, and a Python loop.

Public reproductions share this form: `autograd.grad` for the gradients, which are detached; one backward pass through
the window. Most call the cells once for every tensor of the params; here it is once for all, which is faster.
"""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.flatten_util
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn  # pyright: ignore[reportMissingImports]

from bygrad._core.definitions import FORGET_BIAS
from bygrad.optimizers import LSTM, LogSign, Scaled
from bygrad.problems import MLPClassifier, ProblemFamily, Quadratic
from bygrad.unroll import Inner, step_keys

Loss = Callable[[Tensor, int], Tensor]
"""From params `[instances, n]` and the step within the window to the losses `[instances]`."""


class LSTMOptimizer(nn.Module):
    """Two `LSTMCell` and a linear output, with the weights of ours."""

    def __init__(self, ours: LSTM):
        super().__init__()
        self.preprocess, self.output_scale = ours.preprocess, ours.output_scale
        widths = [ours.preprocess.features, *(layer.units for layer in ours.layers)]
        self.cells: Any = nn.ModuleList(nn.LSTMCell(*pair) for pair in itertools.pairwise(widths))
        self.head: Any = nn.Linear(widths[-1], 1)
        with torch.no_grad():
            for cell, layer in zip(self.cells, ours.layers, strict=True):
                weight, bias = (_swap_gates(np.asarray(part)) for part in (layer.weight, layer.bias))
                cell.weight_ih.copy_(torch.from_numpy(weight[:, : cell.input_size]))
                cell.weight_hh.copy_(torch.from_numpy(weight[:, cell.input_size :]))
                cell.bias_ih.copy_(torch.from_numpy(bias))
                cell.bias_hh.zero_()
                cell.bias_hh[layer.units : 2 * layer.units] = FORGET_BIAS
            self.head.weight.copy_(torch.from_numpy(np.array(ours.head)))
            self.head.bias.fill_(float(ours.head_bias))

    def forward(self, grads: Tensor, states: list[Any]) -> tuple[Tensor, list[Any]]:
        x = self.inputs(grads)
        new = []
        for cell, state in zip(self.cells, states, strict=True):
            h, c = cell(x, state)
            new.append((h, c))
            x = h
        return self.output_scale * self.head(x)[:, 0], new

    def inputs(self, grads: Tensor) -> Tensor:
        """Gradients `[rows]` to inputs `[rows, features]`."""
        match self.preprocess:
            case Scaled(scale=scale):
                return scale * grads[:, None]
            case LogSign(p=p):
                log = torch.log(grads.abs().clamp(min=np.exp(-p))) / p
                return torch.stack([log, (grads * np.exp(p)).clamp(-1, 1)], dim=1)
            case other:
                raise TypeError(f"No PyTorch version of {other}.")

    def meta_gradient(self, loss: Loss, params: Tensor, steps: int) -> list[np.ndarray]:
        """Backpropagate through a window; the gradient has the order of the leaves of our LSTM."""
        self.zero_grad()
        params = params.clone().requires_grad_()
        states: list[Any] = [None] * len(self.cells)
        losses = []
        for step in range(steps):
            losses.append(loss(params, step))
            (grads,) = torch.autograd.grad(losses[-1].sum(), params, retain_graph=True)
            updates, states = self(grads.detach().reshape(-1), states)
            params = params + updates.reshape(params.shape)
        losses.append(loss(params, steps))
        torch.stack(losses[1:]).mean().backward()
        return self.gradient_in_our_order()

    def gradient_in_our_order(self) -> list[np.ndarray]:
        """Read the gradient as the leaves of our LSTM: weight and bias of each layer, then the head's."""
        leaves = []
        for cell in self.cells:
            leaves.append(_swap_gates(torch.cat([cell.weight_ih.grad, cell.weight_hh.grad], dim=1).numpy()))
            leaves.append(_swap_gates(cell.bias_ih.grad.numpy()))
        return [*leaves, self.head.weight.grad[0].numpy().copy(), self.head.bias.grad[0].numpy().copy()]


def meta_gradient(optimizer: LSTM, family: ProblemFamily, inner: Inner, steps: int) -> Callable[[], list[np.ndarray]]:
    """Return what computes the meta-gradient of a window in PyTorch, on the same problems with the same weights."""
    network = LSTMOptimizer(optimizer)
    flat = np.array(jax.vmap(lambda tree: jax.flatten_util.ravel_pytree(tree)[0])(inner.params))
    params, loss = torch.from_numpy(flat), _loss(family, inner, steps)
    return lambda: network.meta_gradient(loss, params, steps)


def _loss(family: ProblemFamily, inner: Inner, steps: int) -> Loss:
    match family:
        case Quadratic():
            return _quadratic(*(torch.from_numpy(np.array(leaf)) for leaf in inner.instance))
        case MLPClassifier(layers=1, activation="sigmoid"):
            return _perceptron(family, inner, steps)
        case other:
            raise TypeError(f"No PyTorch version of {other}.")


def _quadratic(matrix: Tensor, target: Tensor) -> Loss:
    return lambda params, step: ((matrix @ params[:, :, None])[:, :, 0] - target).square().sum(1)


def _perceptron(family: MLPClassifier, inner: Inner, steps: int) -> Loss:
    images, labels = (torch.from_numpy(np.array(part)) for part in (family.images, family.labels))
    labels = labels.long()

    def minibatch(step: int) -> Tensor:
        key, _ = step_keys(inner.key[0], inner.step[0] + step)
        return torch.from_numpy(np.array(jax.random.randint(key, (family.batch,), 0, len(images)))).long()

    minibatches = [minibatch(step) for step in range(steps + 1)]
    hidden, pixels, classes = family.hidden, images.shape[1], family.classes
    sizes = [hidden, pixels * hidden, classes, hidden * classes]  # JAX's order of leaves: bias before weight

    def loss(params: Tensor, step: int) -> Tensor:
        (flat,) = params  # one instance
        bias, weight, last_bias, last_weight = flat.split(sizes)
        x = images[minibatches[step]].float() / 255
        x = torch.sigmoid(x @ weight.view(pixels, hidden) + bias)
        logits = x @ last_weight.view(hidden, classes) + last_bias
        return nn.functional.cross_entropy(logits, labels[minibatches[step]])[None]

    return loss


def _swap_gates(array: np.ndarray) -> np.ndarray:
    """Turn our order of the gates, i, g, f, o, into torch's, i, f, g, o, or back."""
    i, second, third, o = np.split(array, 4)
    return np.concatenate([i, third, second, o])
