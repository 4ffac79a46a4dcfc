"""Meta-train on a PyTorch module, which JAX cannot trace, and use the result as a `torch.optim.Optimizer`.

python examples/torch_module.py [META_STEPS]
"""

import sys
import tempfile
from pathlib import Path

import jax
import torch
from torch import nn

import bygrad
from bygrad.deploy.torch import LearnedOptimizer


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))


def batch(seed):
    """Points in a square, and whether they lie in a circle: a fresh minibatch for every seed."""
    points = 2 * torch.rand(64, 2, generator=torch.Generator().manual_seed(seed)) - 1
    return points, (points.norm(dim=1, keepdim=True) < 0.8).float()


model = network(0)


def value_and_grad(params, seed):
    """All that meta-training asks for: the loss and its gradient, for arrays with the names of the module's params."""
    tensors = {name: torch.tensor(array, requires_grad=True) for name, array in params.items()}
    inputs, labels = batch(seed)
    logits = torch.func.functional_call(model, tensors, (inputs,))
    loss = nn.functional.binary_cross_entropy_with_logits(logits, labels)
    loss.backward()
    return loss.item(), {name: tensor.grad.numpy() for name, tensor in tensors.items()}


def start(seed):
    return {name: param.detach().numpy() for name, param in network(seed).named_parameters()}


meta_steps = int(sys.argv[1]) if len(sys.argv) > 1 else 300
recipe = bygrad.Recipe(horizon=60, instances=4, meta_steps=meta_steps, validate_every=max(1, meta_steps // 5))
family = bygrad.Oracle(value_and_grad, start)
trained = bygrad.meta_train(bygrad.LSTM(jax.random.key(0)), family, recipe)
print(f"area under the loss on held-out networks: {trained.best.area:.2f}, after {trained.best.step} meta-steps")

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "circle.safetensors"
    training = bygrad.trained_on(trained.optimizer, family, recipe)  # so that a guard would know its limits
    bygrad.export(
        trained.optimizer, path, name="mine/circle", training=training, validation={"area": trained.best.area}
    )
    fresh = network(1000)
    optimizer = LearnedOptimizer(fresh.parameters(), path)

for seed in range(60):
    inputs, labels = batch(seed)
    loss = nn.functional.binary_cross_entropy_with_logits(fresh(inputs), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"loss of a fresh network after 60 steps in PyTorch: {loss.item():.3f}")
