"""What is given to a `LearnedOptimizer`: what is made of it, and what is refused or remarked on."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._core.sizes import horizons
from ..artifacts import Artifact
from .torch_rules import Controller, Envelope, Guard, Rule, Scheduled

Kind = tuple[torch.Size, torch.dtype, torch.device]


def kind_of(param: Tensor) -> Kind:
    """What a state goes by: models are cut, moved and cast under way."""
    return param.shape, param.dtype, param.device


SKIPS = 20
"""Steps that are left out one after the other because gradients overflow, at most: from 65536, where a `GradScaler`
begins, 16 halvings lead to a scale of 1. After that it is not the scale."""

OTHER_HORIZON = (
    "The horizon of a param group was changed under way: params that have taken a step keep that of their first one,"
    " and it is in their state. Make the optimizer for the run's whole length, or put layers that join into a group of"
    " their own."
)

NO_LOSS = (
    "The guard was given no loss, so it cannot compare: until the first one, the learned optimizer moves the params,"
    " and all that is left is that updates are finite; after it, whoever moved them goes on. Call step(closure), or"
    " step(value=loss)."
)


OF_OTHER_RULES = {"weight_decay", "momentum", "dampening", "nesterov", "betas", "eps", "amsgrad", "maximize", "alpha"}
OF_OTHER_RULES |= {"centered", "lr_decay", "etas", "step_sizes", "lambd", "momentum_decay"}
"""Settings of torch's optimizers that would change a step, did the rule have them; other keys are labels of users,
schedulers, and optimizers around this one: `rho` is a number of SAM's more often than of Adadelta's."""

SMALL, FIRST = 0.02, 100
"""Of a rate that is taken for Adam's, and how many steps a scheduler may keep it so small, in a warm-up."""

SMALL_RATE = (
    "lr {}: it multiplies the steps that the optimizer was trained to take, so that they become as small. It is not a"
    " learning rate as Adam's: leave it out, or give 1, for the steps as they were trained, in schedulers too."
)

PAST = (
    "The run has passed its horizon of {:,} steps: the rule's own steps stay as small as at the end of a run, and a"
    " guard tries nothing more. A horizon counts calls of step(), not epochs or micro-batches: give horizon= as many as"
    " the run will have, from its start."
)


def one_number(loss: Any) -> Tensor:
    """Return a loss as a tensor without axes; `TypeError` for what a guard cannot compare."""
    if isinstance(loss, int | float | np.number | np.ndarray):
        loss = torch.from_numpy(np.array(loss, float))  # whatever the default dtype and device are
    if not (isinstance(loss, Tensor) and loss.numel() == 1):
        found = f"of shape {list(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise TypeError(
            f"The loss is {found}, and a guard compares numbers. Give the one that was differentiated, the mean, say:"
            " step(value=loss), or a closure that returns it."
        )
    return loss.detach().reshape(())


def with_guard(rule: Rule, artifact: Artifact, guard: Rule | Callable[[Rule], Rule] | None) -> Rule:
    """Return the rule with its guard, if there is to be one; `TypeError` for what is none."""
    if guard is None:
        return rule
    if isinstance(guard, Rule):
        return Guard(rule, guard, envelope=Envelope.from_training(artifact.manifest.training))
    guarded = guard(rule) if inspect.isroutine(guard) or isinstance(guard, functools.partial) else None
    if not isinstance(guarded, Rule):
        raise TypeError(
            f"guard is {guard!r}: there is nothing to fall back to. Give bygrad.deploy.torch.Adam(1e-3), say, or a"
            " function from the bare rule to a guarded one."
        )
    return guarded


def check_horizon(saved: int | None, ours: int | None) -> None:
    """Refuse the state of a run of another length, with a `ValueError`, where both lengths are known."""
    if None not in (saved, ours) and saved != ours:
        raise ValueError(
            f"The state dict was saved in a run of {saved} steps, and this optimizer was made for {ours}: the rule goes"
            f" by the length that its run began with. Give horizon={saved}, or start with a fresh state."
        )


def horizon_of(state: Mapping[str, Any]) -> Any:
    """The horizon in the state of a tensor, if there is one."""
    return next(iter(horizons(state)), None)


def declare(rule: Rule, artifact: Artifact, horizon: int) -> None:
    """Tell a rule how long the run will be; `ValueError` where that makes no difference."""
    if not isinstance(rule, Scheduled):
        raise ValueError(
            f"{artifact.manifest.name} has the rule {artifact.manifest.optimizer}, whose steps do not depend on how"
            f" long a run will be: horizon={horizon} would change nothing. Leave it out, and use a learning-rate"
            " scheduler."
        )
    rule.declare(horizon)


def deepen(rule: Rule, artifact: Artifact, depth: int) -> None:
    """Tell a rule how deep the whole network is; `ValueError` where that makes no difference."""
    if not isinstance(rule, Controller):
        raise ValueError(
            f"{artifact.manifest.name} has the rule {artifact.manifest.optimizer}, whose steps do not depend on the"
            f" depth of the network: depth={depth} would change nothing. Leave it out."
        )
    rule.depth = depth
