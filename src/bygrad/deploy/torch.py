"""Artifacts as PyTorch optimizers. This module and what it imports never import JAX."""

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from .._core.remarks import remark
from .._core.sizes import NO_HORIZON, horizons, whole_number
from ..artifacts import Artifact, Step, find
from ..artifacts import load as load_artifact
from .torch_arguments import (
    FIRST,
    NO_LOSS,
    OF_OTHER_RULES,
    OTHER_HORIZON,
    PAST,
    SKIPS,
    SMALL,
    SMALL_RATE,
    Kind,
    check_horizon,
    declare,
    deepen,
    horizon_of,
    kind_of,
    one_number,
    with_guard,
)
from .torch_rules import RULES, Adam, Controller, Envelope, Guard, Rule, Scheduled, rule_of
from .torch_rules.base import TensorState, exact
from .torch_rules.controller import depth_of

_THETA, _GUARD, _STEPS, _DEPTH, _DEEPEST = "theta", "guard", "steps", "depth", "deepest"

__all__ = ["Adam", "Envelope", "Guard", "LearnedOptimizer", "Rule", "replay"]


class LearnedOptimizer(Optimizer):
    r"""A trained optimizer as a `torch.optim.Optimizer`: the steps that the same artifact takes in JAX.

    Works as torch's own: param groups, learning-rate schedulers, `step()` and `step(closure)`, params without gradients
    (left alone, with their state), hooks, `torch.amp.GradScaler`. State is float32 also for params in lower precision,
    and comes back so from a checkpoint; float64 params get float64. The state dict holds the digest of the
    meta-parameters $\theta$ in every param group, and another artifact refuses it: a resumed run cannot change its
    optimizer unseen. $\theta$ itself stays in the artifact.

    **Arguments:** `params`: as for every torch optimizer. `artifact`: the name of a shipped artifact, a file, or an
    artifact that was read. `lr`: multiplies every step; 1 is what was trained, so schedulers start from there.
    `horizon`: how many steps the run will have, for rules that go by it (`Controller`), whose steps end there, and for
    the guard; without, as in the artifact, which warns. It counts calls of `step`, not epochs or micro-batches, and
    rules that go by it let their steps fall by themselves: a scheduler that does so too would do it twice. A param
    group may have its own `horizon`: params count from their first gradient, so those that join later have fewer.
    `guard`: what to fall back to, say `Adam(3e-4)` of this module:
    then the optimizer moves the params only while it shows that it is better, inside what its artifact says that it was
    trained on (`Guard`, `Envelope`). Or a function from the bare rule to the guarded one, to choose how. A guard needs
    the loss of every step, from `step(closure)` or `step(value=loss)`; `lr` multiplies the fallback's steps as well.
    Call `settle()` when the run ends. The losses of processes that train one model together are averaged.
    `depth`: of the whole network, `depth_of(model.parameters())`, for rules that go by it (`Controller`) where an
    optimizer sees a part of the params, each process's in `ZeroRedundancyOptimizer`, say; without, it is counted from
    those that are given and trained, whether they have a gradient in a step or not.

    **Raises:** `ArtifactError` as `bygrad.artifacts.load` does, and by name for a rule that PyTorch does not have:
    there are `LSTM` and `Controller`; `TypeError` for complex params, and for a `guard` that is none; `ValueError` for
    `lr` below 0, a `horizon` or a `depth` without meaning, settings of a param group that the rule does not have,
    `weight_decay`, say, and in `ZeroRedundancyOptimizer` for a guard, and for a `Controller` without `depth`.

        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = LearnedOptimizer(model.parameters(), "general/controller", horizon=100)
        >>> scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=5)  # a warm-up
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
        guard: Rule | Callable[[Rule], Rule] | None = None,
        depth: int | None = None,
    ) -> None:
        if not isinstance(artifact, Artifact | str | os.PathLike):
            raise TypeError(
                f"LearnedOptimizer was given {artifact!r}, which names no artifact. Give the name of one or its file"
                " after the params, 'general/controller', say; a factor on its steps is lr."
            )
        self._artifact = artifact if isinstance(artifact, Artifact) else load_artifact(find(artifact))
        rule = rule_of(self._artifact)
        if depth is not None:
            depth = whole_number(depth, "depth", "tensors with two axes or more of the whole network")
            deepen(rule, self._artifact, depth)
        self._rule: Rule = with_guard(rule, self._artifact, guard)
        horizon = None if horizon is None else whole_number(horizon)
        if horizon is not None:
            declare(self._rule, self._artifact, horizon)
        self._largest_lr = 0.0  # so far
        self._told_of_losses = False
        # States that it began or has checked, and for what tensors: any other is foreign.
        self._known: dict[Tensor, tuple[TensorState, Kind]] = {}
        self._skipped = 0  # steps one after the other whose gradients overflowed
        self._horizons: list[int | None] = []  # that the groups were made for, whatever is loaded into them
        self._counted_for: list[int | None] = []  # those of the last step
        # In every param group, because tools that take state dicts apart keep these whole.
        known = {_THETA: self._artifact.manifest.digest, _STEPS: 0, _DEEPEST: 0} | self._memory()
        super().__init__(params, {"lr": lr, "horizon": horizon, _DEPTH: depth} | known)
        if isinstance(self._rule, Guard) and horizon is None and None not in self._horizons:
            self._rule.declare(max(it for it in self._horizons if it))  # its trials have to know as well
            self._remember()
        if (own := self._own_horizon) is not None and None in self._horizons:
            remark(NO_HORIZON.format(self._artifact.manifest.name, own))

    @staticmethod
    def depth_of(params: Iterable[Tensor] | Iterable[tuple[str, Tensor]]) -> int:
        """Return what a `Controller` counts as the depth of a network with these params, `model.parameters()` or
        `model.named_parameters()`: how many that are trained have two axes or more, at least 1."""
        tensors = (param[1] if isinstance(param, tuple) else param for param in params)
        return depth_of(param for param in tensors if param.requires_grad)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if not isinstance(param_group, dict):
            raise TypeError(
                f"A param group is a {type(param_group).__name__}, which says nothing of what its tensors are for. Give"
                ' a dict: {"params": layer.parameters()}, with an lr or a horizon if they have their own.'
            )
        if "artifact" in param_group:  # only ZeroRedundancyOptimizer writes all arguments into its groups
            self._check_divided()
        if (depth := param_group.get(_DEPTH, self.defaults[_DEPTH])) != self.defaults[_DEPTH]:
            raise ValueError(
                f"A param group sets depth={depth!r}, but depth is that of the whole network, for all groups: it would"
                " be ignored. Give it to the optimizer, or call a label otherwise."
            )
        if (horizon := param_group.get("horizon")) not in (None, self.defaults["horizon"]):
            param_group["horizon"] = whole_number(horizon)
            if self._own_horizon is None:
                self._refuse("horizon")
        self._check_settings(param_group)
        rate = param_group.get("lr", self.defaults["lr"])
        if not isinstance(rate, int | float | np.number | Tensor) or not 0 <= float(rate) < math.inf:
            raise ValueError(
                f"lr is {rate!r}, but it is a number that multiplies the steps that the optimizer was trained to take:"
                " below 0 they would go uphill, and infinite ones lead nowhere. Give 1, or less for smaller steps."
            )
        if not isinstance(rate, Tensor) and 0 < rate < SMALL:
            remark(SMALL_RATE.format(f"is {rate}"))
            self._largest_lr = math.inf  # told
        super().add_param_group(param_group)
        for param in self.param_groups[-1]["params"]:
            if hasattr(param, "device_mesh"):  # a DTensor, whose class takes long to import
                self.param_groups.pop()
                raise TypeError(
                    f"A param of shape {list(param.shape)} is a {type(param).__name__}, divided over processes, and the"
                    " rule looks at whole tensors: each process would take other steps. Train with"
                    " DistributedDataParallel in place of fully_shard, or with ZeroRedundancyOptimizer and depth=,"
                    " which divides the optimizer's state."
                )
            if param.is_complex():  # whole numbers, of quantized models, have no gradients
                self.param_groups.pop()
                raise TypeError(
                    f"A param of shape {list(param.shape)} has dtype {param.dtype}, and the rule was learned on real"
                    " numbers. Give torch.view_as_real(param), and optimize both parts."
                )
        self._horizons.append(self.param_groups[-1]["horizon"])

    def _check_settings(self, group: Mapping[str, Any]) -> None:
        for name in sorted(group.keys() & OF_OTHER_RULES):
            if group[name]:  # tools that make the groups write a weight_decay of 0 into them, which is what they get
                self._refuse(name)

    def _refuse(self, setting: str) -> None:
        raise ValueError(
            f"A param group sets {setting}, which {self._artifact.manifest.name} does not have: it would be ignored."
            " Leave it out. Decay of weights goes into the loss"
            + ("." if isinstance(self._rule, Guard) else ", or is taken off after step().")
        )

    def _check_divided(self) -> None:
        """Refuse what needs all params where `ZeroRedundancyOptimizer` gives every process a part of them."""
        if isinstance(self._rule, Guard):
            raise ValueError(
                "A guard in ZeroRedundancyOptimizer sees a part of the params in each process, which would decide apart"
                " and take other steps. Leave out guard=, or use LearnedOptimizer with DistributedDataParallel alone."
            )
        if isinstance(self._rule, Controller) and self._rule.depth is None:
            raise ValueError(
                f"{self._artifact.manifest.name} goes by the depth of the network, and in ZeroRedundancyOptimizer each"
                " process sees a part of it: steps would be too large. Give"
                " depth=LearnedOptimizer.depth_of(model.parameters())."
            )

    @torch.no_grad()
    def step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, closure: Callable[[], Any] | None = None, *, value: float | Tensor | None = None
    ) -> Any:
        """Take one step and return what `closure` returns, which computes loss and gradients anew.

        `value`: the loss where the gradients were taken, for those who give no closure.
        """
        loss = None
        if closure is not None:
            if not callable(closure):
                raise TypeError(
                    f"step() was given a {type(closure).__name__}, but its first argument is a closure, which computes"
                    " the loss and the gradients. Give a loss that was computed before by its name: step(value=loss)."
                )
            with torch.enable_grad():
                loss = closure()
        self._take_step(value if loss is None else loss)  # pyright: ignore[reportAttributeAccessIssue]
        return loss

    # A training step that is compiled leaves this out: decisions are Python's, and loops over blocks would be unrolled.
    @torch.compiler.disable
    def _take_step(self, value: Any) -> None:
        # A closure may return anything: what learned rules see are gradients alone.
        loss = None if value is None or type(self._rule) in RULES.values() else one_number(value)
        if isinstance(self._rule, Guard) and self._overflows(self._rule, loss):
            return
        with exact({param.device.type for group in self.param_groups for param in group["params"]}):
            self._move(loss)

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether `torch.amp.GradScaler` calls `step` also where gradients are not finite, and leaves their scale to
        it. A guard has to see those: where a trial has led astray no scale helps, and nothing but it returns."""
        return isinstance(self._rule, Guard) and self._rule.judges

    def _overflows(self, guard: Guard, loss: Tensor | None) -> bool:
        """Take the scale of a `GradScaler`, where there is one, off the gradients. Return whether it is only that which
        is too large, so that the step is to be left out and will be taken with a smaller one."""
        found, scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
        params = [param for group in self.param_groups for param in group["params"]]
        grads = [grad for param in params if (grad := param.grad) is not None]
        if found is None or not grads:
            return False
        if not float(found):
            self._skipped = 0
            if scale is not None:
                for grad in grads:
                    grad.div_(scale.to(grad.device))
            return False
        self._skipped += 1
        if self._skipped <= SKIPS and not guard.is_lost(loss, params):
            return True
        self._skipped = 0
        return False

    def _move(self, value: Tensor | None) -> None:
        moving = [(param, group) for group in self.param_groups for param in group["params"]]
        trained = [param for param, _ in moving if param.requires_grad or param.grad is not None]
        # The largest so far: where layers are frozen, the others' steps become no larger.
        deepest = max(self.param_groups[0].get(_DEEPEST, 0), depth_of(trained))
        for group in self.param_groups:
            group[_DEEPEST] = deepest
        self._rule.attend(trained, deepest)
        guarded = isinstance(self._rule, Guard)
        # A param that has none now may have moved in a trial that ends now.
        moving = [
            (param, group) for param, group in moving if param.grad is not None or (guarded and self.state.get(param))
        ]
        params, grads = [param for param, _ in moving], [param.grad for param, _ in moving]
        for grad in grads:
            if grad is not None and grad.layout != torch.strided:
                raise TypeError(
                    f"A gradient has the layout {grad.layout}, and the rule looks at every coordinate. Make the layer"
                    " give dense gradients, nn.Embedding(..., sparse=False), and choose a Controller: an LSTM also"
                    " moves the rows whose gradient is zero."
                )
        if others := [it for it in params if self.state[it] and not self._is_known(it)]:
            self._check({"state": self.state, "param_groups": self.param_groups})
            self._take(others)
        for param, group in moving:
            if not self.state[param]:
                self.state[param] = self._rule.start(param)
                self._known[param] = self.state[param], kind_of(param)
                if (horizon := group.get("horizon")) is not None:
                    for entry in horizons(self.state[param]):
                        entry.fill_(horizon)
        self._count()
        states, rates = [self.state[param] for param in params], [group["lr"] for _, group in moving]
        asks = isinstance(self._rule, Guard) and self._rule.judges and value is None
        # Tools that take state dicts apart begin the states by a step at rates of 0, without a loss.
        if asks and not self._told_of_losses and any(rates):
            self._told_of_losses = True
            remark(NO_LOSS)
        self._rule.move(grads, states, params, rates, value)
        self._remember()

    def _count(self) -> None:
        """Count the step, and say what would go unseen: what a scheduler sets of another optimizer, and, once, rates of
        one, and a horizon that is past. In Python alone: the steps that tensors count lie on devices."""
        horizons = [group.get("horizon") for group in self.param_groups]
        if any(now != before for now, before in zip(horizons, self._counted_for, strict=False)):
            remark(OTHER_HORIZON)
        self._counted_for = horizons
        steps = self.param_groups[0].get(_STEPS, 0) + 1
        for group in self.param_groups:
            group[_STEPS] = steps
        if steps <= FIRST:
            for group in self.param_groups:
                self._check_settings(group)
            rates = [group["lr"] for group in self.param_groups]
            self._largest_lr = max(self._largest_lr, *(math.inf if isinstance(it, Tensor) else it for it in rates))
            if steps == FIRST and 0 < self._largest_lr < SMALL:
                told = f"was at most {self._largest_lr:g} in the first {FIRST} steps"
                remark(SMALL_RATE.format(told))
        end = max(group.get("horizon") or self._own_horizon or 0 for group in self.param_groups)
        if end and steps == end + 1:
            remark(PAST.format(end))

    @property
    def _own_horizon(self) -> int | None:
        """The horizon of tensors that start now, unless their group has another; `None` if the rule has none."""
        return self._rule.horizon if isinstance(self._rule, Scheduled) else None

    @torch.no_grad()
    def settle(self) -> None:
        """Put the params where they should be kept if the run ends here: with a guard, and in a trial, to where the
        fallback would go on from. Training can go on afterwards."""
        if isinstance(self._rule, Guard):
            params = [param for group in self.param_groups for param in group["params"] if self.state.get(param)]
            self._rule.settle([self.state[param] for param in params], params)
            self._remember()

    def __repr__(self) -> str:
        """As torch's own, but of a guard what it falls back to, and not all that it remembers."""
        short = {_GUARD: self._rule.settings["fallback"]} if isinstance(self._rule, Guard) else {}
        hidden = {"params", _DEEPEST}
        groups = [
            {name: it for name, it in (group | short).items() if name not in hidden} for group in self.param_groups
        ]
        shown = (
            f"\nParameter Group {number}\n" + "".join(f"    {name}: {group[name]}\n" for name in sorted(group))
            for number, group in enumerate(groups)
        )
        return f"{type(self).__name__} ({''.join(shown)})"

    def report(self) -> dict[str, Any]:
        """Return what the guard counted, and its reasons in words; nothing without a guard."""
        return self._rule.report() if isinstance(self._rule, Guard) else {}

    def _memory(self) -> dict[str, Any]:
        """What a guard remembers, for every param group, because tools that take state dicts apart keep these whole."""
        return {_GUARD: self._rule.memory()} if isinstance(self._rule, Guard) else {}

    def _remember(self) -> None:
        memory = self._memory()
        for group in self.param_groups:
            group.update(memory)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` gave. **Raises:** `ValueError` for that of another artifact, rule or model."""
        # torch casts the state to the dtype of the params, which loses what float32 state of bfloat16 params is for. So
        # it is taken from what torch reads, after the user's own hooks have seen it, and put in before they see more.
        read: dict[str, Any] = {}

        def before(_: Optimizer, given: dict[str, Any]) -> None:
            self._check(given)
            read.update(given)

        def after(_: Optimizer) -> None:
            saved = [index for group in read["param_groups"] for index in group["params"]]
            ours = [param for group in self.param_groups for param in group["params"]]
            for index, param in zip(saved, ours, strict=True):
                if entries := read["state"].get(index):
                    self.state[param] = entries
            self._take([param for param in ours if self.state.get(param)])
            if isinstance(self._rule, Guard):
                self._rule.remember(read["param_groups"][0][_GUARD])
            self._counted_for = []

        hooks = [
            self.register_load_state_dict_pre_hook(before),
            self.register_load_state_dict_post_hook(after, prepend=True),
        ]
        try:
            super().load_state_dict(state_dict)
        finally:
            for hook in hooks:
                hook.remove()

    def _take(self, params: Sequence[Tensor]) -> None:
        """Copy states that came from outside, by `load_state_dict` or, as `ZeroRedundancyOptimizer` does it, past that,
        to the dtype and the device that the rule begins with."""
        for group in self.param_groups:
            group[_DEPTH] = self.defaults[_DEPTH]
        for param in params:
            entries, fresh = self.state[param], self._checked(self.state[param], param)
            taken = {  # in memory as the rule lays it out
                name: torch.empty_like(entry).copy_(entries[name].detach().reshape(entry.shape))
                for name, entry in fresh.items()
            }
            self.state[param] = entries | taken
            self._known[param] = self.state[param], kind_of(param)

    def _check(self, state_dict: dict[str, Any]) -> None:
        manifest, guarded = self._artifact.manifest, isinstance(self._rule, Guard)
        for group in state_dict["param_groups"]:
            if (found := group.get(_THETA)) != manifest.digest:
                raise ValueError(
                    f"The state dict was saved with an optimizer of digest {found}, and {manifest.name} has"
                    f" {manifest.digest}: its state means nothing to other meta-parameters. Make the optimizer from the"
                    " artifact of that run, or start with a fresh state."
                )
            if (_GUARD in group) != guarded:
                raise ValueError(
                    f"The state dict was saved with{'' if _GUARD in group else 'out'} a guard, and this optimizer was"
                    f" made with{'' if guarded else 'out'} one: the two remember different things. Give `guard` as in"
                    " that run, or start with a fresh state."
                )
            if (saved := group.get(_DEPTH)) not in (None, ours := self.defaults[_DEPTH]):
                raise ValueError(
                    f"The state dict was saved in a run of depth {saved}, and this optimizer"
                    f" {'counts it itself' if ours is None else f'was made for {ours}'}: its steps would have another"
                    f" size. Give depth={saved}, or start with a fresh state."
                )
            if isinstance(self._rule, Guard):
                self._check_guard(group[_GUARD].get("settings", {}), self._rule.settings)
                # The groups' own are those of a rule that goes by them, and a guard does in any case.
                check_horizon(group[_GUARD].get("horizon") or None, self.defaults["horizon"])
        alike = zip(state_dict["param_groups"], self.param_groups, self._horizons, strict=False)  # torch counts them
        for group, ours, horizon in alike:
            states = [state_dict["state"].get(index, {}) for index in group["params"]]
            begun = [*map(horizon_of, states), group.get("horizon")]  # whatever the group was set to afterwards
            check_horizon(next((int(it) for it in begun if it is not None), None), horizon)
            for entries, param in zip(states, ours["params"], strict=False):
                if entries:
                    self._checked(entries, param)

    def _checked(self, entries: Mapping[str, Any], param: Tensor) -> TensorState:
        """Return the state that the rule begins with for `param`. **Raises:** `ValueError` unless `entries` are such
        a state."""
        fresh = self._rule.start(param)
        for name, entry in fresh.items():
            found = entries[name].shape if isinstance(entries.get(name), Tensor) else None
            # As the state of a coordinatewise rule was kept before it had the shape of its param.
            flat = name.split("/")[-1] == "state" and found == (entry.numel(),)
            if found != entry.shape and not flat:
                held = f"no {name}" if found is None else f"{name} of shape {list(found)}"
                raise ValueError(
                    f"The state holds {held} for a param of shape {list(param.shape)}, whose state has"
                    f" {list(entry.shape)}: it is that of another model, or the param has another shape since then, and"
                    " it means nothing to these coordinates. Load the state of this model, with its params in the same"
                    " order, or start with a fresh state (of one param: `del optimizer.state[param]`)."
                )
        return fresh

    def _check_guard(self, saved: dict[str, Any], mine: dict[str, Any]) -> None:
        different = [name for name in mine if saved.get(name, mine[name]) != mine[name]]
        if different:
            told = ", ".join(f"{name} was {saved[name]}, is {mine[name]}" for name in different)
            raise ValueError(
                f"The state dict was saved with another guard ({told}), so the run would go on as another one. Make the"
                " guard as in that run, or start with a fresh state."
            )

    def __getstate__(self) -> dict[str, Any]:
        kept = ("_artifact", "_rule", "_largest_lr", "_told_of_losses", "_horizons", "_counted_for", "_skipped")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in kept}, "_known": {}}

    def _is_known(self, param: Tensor) -> bool:
        held, kind = self._known.get(param, (None, None))
        return held is self.state[param] and kind == kind_of(param)


def replay(artifact: Artifact, steps: Sequence[Step]) -> list[dict[str, np.ndarray]]:
    """Return the updates of an artifact's rule on recorded inputs."""
    rule = rule_of(artifact)

    def tensors(arrays: Mapping[str, np.ndarray]) -> list[Tensor]:
        return [torch.from_numpy(array.copy()) for array in arrays.values()]

    states, updates = [rule.start(param) for param in tensors(steps[0].params)], []
    for step in steps:
        with exact(["cpu"]):
            moved = rule.step(tensors(step.grads), states, tensors(step.params), torch.tensor(step.value))
        updates.append({name: update.numpy() for name, update in zip(step.grads, moved, strict=True)})
    return updates
