"""Artifacts as PyTorch optimizers. This module and what it imports never import JAX."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from ..artifacts import Artifact, Step, find
from ..artifacts import load as load_artifact
from .torch_rules import Rule, Scheduled, rule_of

_THETA = "theta"


class LearnedOptimizer(Optimizer):
    r"""A trained optimizer as a `torch.optim.Optimizer`: the steps that the same artifact takes in JAX.

    Works as torch's own: param groups, learning-rate schedulers, `step()` and `step(closure)`, params without gradients
    (left alone, with their state), hooks, `torch.amp.GradScaler`. State is float32 also for params in lower precision,
    and comes back so from a checkpoint; float64 params get float64. The state dict holds the digest of the
    meta-parameters $\theta$ in every param group, and another artifact refuses it: a resumed run cannot change its
    optimizer unseen. $\theta$ itself stays in the artifact.

    **Arguments:** `params`: as for every torch optimizer. `artifact`: the name of a shipped artifact, a file, or an
    artifact that was read. `lr`: multiplies every step; 1 is what was trained, so schedulers start from there.
    `horizon`: how many steps the run will have, for rules that go by it (`Controller`); without, as in the artifact.

    **Raises:** `ArtifactError` as `bygrad.artifacts.load` does, and by name for a rule that PyTorch does not have;
    `TypeError` for params that are not floating-point; `ValueError` for `lr` below 0, and a `horizon` without meaning.

        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = LearnedOptimizer(model.parameters(), "paper/mnist")
        >>> scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100)
        >>> for step in range(3):
        ...     loss = model(torch.ones(4, 3)).square().mean()
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     _ = optimizer.step()
        ...     scheduler.step()
    """

    def __init__(
        self,
        params: Iterable[Any],
        artifact: Artifact | str | os.PathLike[str],
        lr: float | Tensor = 1.0,
        horizon: int | None = None,
    ) -> None:
        self._artifact = artifact if isinstance(artifact, Artifact) else load_artifact(find(artifact))
        self._rule: Rule = rule_of(self._artifact)
        if not isinstance(lr, Tensor) and not lr >= 0:
            raise ValueError(
                f"lr is {lr}, but it multiplies the steps that the optimizer was trained to take: below 0 they would go"
                " uphill. Give 1, or less for smaller steps."
            )
        if horizon is not None:
            _declare(self._rule, self._artifact, horizon)
        # In every param group, because tools that take state dicts apart keep these whole.
        super().__init__(params, {"lr": lr, _THETA: self._artifact.manifest.digest})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        for param in self.param_groups[-1]["params"]:
            if not param.is_floating_point():
                self.param_groups.pop()
                raise TypeError(
                    f"A param of shape {list(param.shape)} has dtype {param.dtype}, and the rule was learned on real"
                    " numbers. "
                    + (
                        "Give torch.view_as_real(param), and optimize both parts."
                        if param.is_complex()
                        else "Leave it out."
                    )
                )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take one step and return what `closure` returns, which computes loss and gradients anew."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        moving = [(param, group["lr"]) for group in self.param_groups for param in group["params"]]
        moving = [(param, rate) for param, rate in moving if param.grad is not None]
        params, grads = [param for param, _ in moving], [param.grad for param, _ in moving]
        for grad in grads:
            if grad.layout != torch.strided:
                raise TypeError(
                    f"A gradient has the layout {grad.layout}, and the rule looks at every coordinate. Make the layer"
                    " give dense gradients: nn.Embedding(..., sparse=False)."
                )
        for param in params:
            if not self.state[param]:
                self.state[param] = self._rule.start(param)
        value = None if loss is None else torch.as_tensor(loss).detach()
        updates = self._rule.step(grads, [self.state[param] for param in params], params, value)
        for (param, rate), update in zip(moving, updates, strict=True):
            # Scaled and added in the dtype that it was computed in, and rounded once.
            param.add_(update if isinstance(rate, float) and rate == 1.0 else update.mul_(rate))
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` gave. **Raises:** `ValueError` for that of another artifact, or of another rule."""
        # torch casts the state to the dtype of the params, which loses what float32 state of bfloat16 params is for. So
        # it is taken from what torch reads, after the user's own hooks have seen it, and put in before they see more.
        read: dict[str, Any] = {}

        def before(_: Optimizer, given: dict[str, Any]) -> None:
            self._check_digest(given)
            read.update(given)

        def after(_: Optimizer) -> None:
            saved = [index for group in read["param_groups"] for index in group["params"]]
            ours = [param for group in self.param_groups for param in group["params"]]
            for index, param in zip(saved, ours, strict=True):
                for name, value in read["state"].get(index, {}).items():
                    if isinstance(value, Tensor):
                        self.state[param][name] = value.detach().to(param.device, copy=True)

        hooks = [
            self.register_load_state_dict_pre_hook(before),
            self.register_load_state_dict_post_hook(after, prepend=True),
        ]
        try:
            super().load_state_dict(state_dict)
        finally:
            for hook in hooks:
                hook.remove()

    def _check_digest(self, state_dict: dict[str, Any]) -> None:
        manifest = self._artifact.manifest
        for group in state_dict["param_groups"]:
            if (found := group.get(_THETA)) != manifest.digest:
                raise ValueError(
                    f"The state dict was saved with an optimizer of digest {found}, and {manifest.name} has"
                    f" {manifest.digest}: its state means nothing to other meta-parameters. Make the optimizer from the"
                    " artifact of that run, or start with a fresh state."
                )

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_artifact": self._artifact, "_rule": self._rule}


def _declare(rule: Rule, artifact: Artifact, horizon: int) -> None:
    if horizon < 1:
        raise ValueError(f"The horizon is {horizon}, but a run has at least one step. Give how many it will have.")
    if not isinstance(rule, Scheduled):
        raise ValueError(
            f"{artifact.manifest.name} is a {artifact.manifest.optimizer}, whose steps do not depend on how long a run"
            f" will be: horizon={horizon} would change nothing. Leave it out, and use a learning-rate scheduler."
        )
    rule.declare(horizon)


def replay(artifact: Artifact, steps: Sequence[Step]) -> list[dict[str, np.ndarray]]:
    """Return the updates of an artifact's rule on recorded inputs."""
    rule = rule_of(artifact)

    def tensors(arrays: Mapping[str, np.ndarray]) -> list[Tensor]:
        return [torch.from_numpy(array.copy()) for array in arrays.values()]

    states, updates = [rule.start(param) for param in tensors(steps[0].params)], []
    for step in steps:
        moved = rule.step(tensors(step.grads), states, tensors(step.params), torch.tensor(step.value))
        updates.append({name: update.numpy() for name, update in zip(step.grads, moved, strict=True)})
    return updates
