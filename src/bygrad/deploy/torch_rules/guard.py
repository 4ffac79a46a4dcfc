"""The guard in PyTorch: a learned rule that moves the params only while it shows that it is better than a fallback."""

# pyright: reportPrivateImportUsage=false

import math
from collections.abc import Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, distributed

from ..._core.remarks import remark
from ..._core.results import Result
from ..._core.sizes import beyond, check_trials
from .base import Rate, Rule, Scheduled, TensorState, compute_dtype, multiplied
from .envelope import Envelope
from .trials import REFERENCE, RUN, TRIAL, Level, Losses, Trials, Watch

_LEARNED, _FALLBACK, _POINT, _THERE = "learned/", "fallback/", "point", "there/"
"""In the state of a tensor: what each rule remembers, where to return to, and what the fallback remembers there."""


@dataclass
class Counts:
    """What `bygrad.optimizers.GuardState` counts."""

    steps: int = 0
    learned_steps: int = 0
    bad_inputs: int = 0
    replaced: int = 0
    outside: int = 0
    border: int = int(Result.UNDECIDED)
    strange: float = 0.0


class Guard(Rule, Scheduled):
    r"""Lets a learned rule move the params while it shows that it is better than a fallback.

    It decides and guarantees what `bygrad.Guard` does, which explains it. A return to an earlier point is exact here,
    so it takes one step. Decisions are Python's: on an accelerator, every step waits for the loss and for the checks.
    It belongs to one optimizer.

    **Arguments:** `learned`, `fallback`: two rules, say what `LearnedOptimizer` gives to its `guard`, and `Adam(3e-4)`.
    `together`: whether the processes of `torch.distributed`, where there are several, train one model with the same
    gradients, as in DDP. Then their losses are averaged, so that all of them decide alike, and all must give one. The
    others as for `bygrad.Guard`.
    """

    feature_version: ClassVar[int] = 1

    def __init__(
        self,
        learned: Rule,
        fallback: Rule,
        *,
        window: int = 10,
        share: float = 0.1,
        margin: float = 2.0,
        growth: float | None = None,
        envelope: Envelope | None = None,
        trusted: bool = False,
        together: bool = True,
    ) -> None:
        growth = check_trials(window, share, margin, growth)
        for part in (learned, fallback):
            if not isinstance(part, Rule):
                raise TypeError(
                    f"A guard was given {part!r}, which is no rule of this package. Give the bare rule that your"
                    " function gets, and bygrad.deploy.torch.Adam(1e-3), say: instances, none of torch.optim."
                )
        if not isinstance(envelope, Envelope | None):
            raise TypeError(
                f"The envelope is {envelope!r}, which could not look at tensors of PyTorch. Give one of"
                " bygrad.deploy.torch.Envelope; bygrad.Envelope is JAX's."
            )
        self.learned, self.fallback, self.envelope, self._together = learned, fallback, envelope, together
        until = envelope.horizon if envelope is not None and envelope.action == "fall back" else None
        self._trials = Trials(window, share, margin, growth, until=until, trusted=trusted)
        self.watch, self.counts = self._trials.begin(), Counts()
        self._size: int | None = None  # all params that are trained

    @property
    def judges(self) -> bool:
        """Whether it wants to see losses."""
        return self._trials.share > 0

    def declare(self, horizon: int) -> None:
        for rule in (self.learned, self.fallback):
            if isinstance(rule, Scheduled):
                rule.declare(horizon)
        self._trials = self._trials._replace(horizon=horizon)
        self.watch = self._trials.begin()
        if (until := self._trials.until) is not None and horizon > until:
            remark(beyond(horizon, until, 0 if self._trials.trusted else self._trials.length(0)))

    @property
    def horizon(self) -> int | None:
        """That of the learned rule: trials without one are still judged."""
        return self.learned.horizon if isinstance(self.learned, Scheduled) else None

    def start(self, param: Tensor) -> TensorState:
        fallback = self.fallback.start(param)
        state = _named(_LEARNED, self.learned.start(param)) | _named(_FALLBACK, fallback)
        return state | _point(_widened(param).clone(), fallback) if self.judges else state

    def attend(self, params: Sequence[Tensor], depth: int) -> None:
        self._size = sum(param.numel() for param in params)
        for rule in (self.learned, self.fallback):
            rule.attend(params, depth)

    def step(
        self,
        grads: Sequence[Tensor | None],
        states: Sequence[TensorState],
        params: Sequence[Tensor],
        value: Tensor | None = None,
        rates: Sequence[Rate] | None = None,
    ) -> list[Tensor]:
        """Take a step. `rates` multiply what each rule does to each tensor. A return to an earlier point is written to
        the params themselves, those without a gradient included, which rest otherwise; the updates are zero then."""
        counts, watch = self.counts, self.watch
        rates = [1.0] * len(grads) if rates is None else rates
        finite = _finite([grad for grad in grads if grad is not None])
        shown = grads if finite else [grad if grad is None else torch.zeros_like(grad) for grad in grads]
        wide = [_widened(param) for param in params]

        # A step writes over the state: it is taken on a copy, which replaces the old one if it is sound.
        fallback = [{name: entry.clone() for name, entry in _part(_FALLBACK, state).items()} for state in states]
        theirs = _steps(self.fallback, shown, fallback, params, value, rates)
        if not (finite and _sound(theirs, fallback, params)):
            theirs = [torch.zeros_like(point) for point in wide]
            fallback = [_part(_FALLBACK, state) for state in states]

        border = self._border([grad for grad in shown if grad is not None], params)
        inside = border == Result.UNDECIDED
        allowed = inside or self.envelope is None or self.envelope.action != "fall back"
        left = not allowed and border in (Result.OUTSIDE_SIZE, Result.OUTSIDE_HORIZON)  # for good

        intact, ours = True, theirs
        # What the fallback does in its part of a trial is no part of the learned rule's path.
        if watch.phase != REFERENCE and not left:
            learned = [_part(_LEARNED, state) for state in states]
            moved = _steps(self.learned, shown, learned, params, value, rates)
            intact = _sound(moved, learned, params)
            if not intact:
                # Afresh, but in the run that it is in.
                starts = [self.learned.start(param) for param in params]
                learned = [{**it, **_horizon(memory)} for it, memory in zip(starts, learned, strict=True)]
            for state, memory in zip(states, learned, strict=True):
                state |= _named(_LEARNED, memory)
            ours = moved if intact and finite else theirs

        moves, updates = allowed, ours if allowed else theirs
        if self.judges:
            loss = None if value is None else self._judged(value, params)
            good = finite and (loss is None or math.isfinite(loss))
            verdict = self._trials.decide(watch, counts.steps, loss, good, allowed and intact)
            moves, updates, here = verdict.moves == "learned", ours if verdict.moves == "learned" else theirs, fallback
            points = [state[_POINT] for state in states]
            if verdict.moves == "back":
                here = [_part(_THERE, state) for state in states]
            if verdict.keeps is not None:
                steps = ours if verdict.keeps == "learned" else theirs
                kept = [point + update for point, update in zip(wide, steps, strict=True)]
                if _finite(kept):  # params may have been ruined from outside
                    for state, point, memory in zip(states, kept, fallback, strict=True):
                        state |= _point(point, memory)
            if verdict.moves == "back":
                # From far away a sum would not get there: the difference of the points is rounded.
                for param, point in zip(params, points, strict=True):
                    param.copy_(point)
                updates = [torch.zeros_like(point) for point in points]
            fallback = here
        for state, memory in zip(states, fallback, strict=True):
            state |= _named(_FALLBACK, memory)

        counts.steps += 1
        counts.learned_steps += moves and intact and finite
        counts.bad_inputs += not finite
        counts.replaced += not intact
        counts.outside += not inside
        counts.border = counts.border if inside else int(border)
        return updates

    def move(
        self,
        grads: Sequence[Tensor | None],
        states: Sequence[TensorState],
        params: Sequence[Tensor],
        rates: Sequence[Rate],
        value: Tensor | None = None,
    ) -> None:
        if updates := self.step(grads, states, params, value, rates):
            torch._foreach_add_(list(params), updates)

    def is_lost(self, value: Tensor | None, params: Sequence[Tensor]) -> bool:
        """Whether a loss was told that is not finite."""
        return value is not None and not math.isfinite(self._judged(value, params))

    def settle(self, states: Sequence[TensorState], params: Sequence[Tensor]) -> None:
        """Put the params where they should be kept if the run ends here: where a trial is under way, to where the
        fallback would go on from. That trial is then over, without a winner: who led before it leads on."""
        watch = self.watch
        if watch.phase != TRIAL:
            return
        for state, param in zip(states, params, strict=True):
            param.copy_(state[_POINT])
            state |= _named(_FALLBACK, _part(_THERE, state))
        watch.discarded += watch.seen
        watch.phase, watch.seen, watch.above, watch.losses = RUN, 0, 0, Losses()

    def report(self) -> dict[str, Any]:
        """Return the counters by name, and the reason of the last decision and of the envelope in words."""
        told = _numbers(self.counts)
        border = Result(told.pop("border"))
        del told["strange"]
        if self.judges:
            told |= {name: getattr(self.watch, name) for name in ("discarded", "trials", "won", "rollbacks", "stalls")}
            told["reason"] = Result(self.watch.reason).sentence
        return told | ({"envelope": border.of_border} if self.envelope is not None else {})

    def memory(self) -> dict[str, Any]:
        """Return what it remembers of the run beside the tensors, as numbers, and `settings`: what it was made of."""
        numbers = {"counts": _numbers(self.counts), "watch": _numbers(self.watch), "horizon": self._trials.horizon}
        return numbers | {"settings": self.settings}

    @property
    def settings(self) -> dict[str, Any]:
        """What must be the same for a run to go on."""
        kind = type(self.fallback)
        fallback = kind.__name__ if kind.__repr__ is object.__repr__ else repr(self.fallback)
        trials = {name: value for name, value in self._trials._asdict().items() if name != "horizon"}
        return trials | {"envelope": repr(self.envelope), "fallback": fallback}

    def remember(self, memory: dict[str, Any]) -> None:
        """Undo `memory`."""
        watch = dict(memory["watch"])
        watch |= {name: Level(**watch[name]) for name in ("begin", "reference", "best")}
        watch["losses"] = Losses(**watch["losses"])
        self.counts, self.watch = Counts(**memory["counts"]), Watch(**watch)
        self._trials = self._trials._replace(horizon=memory["horizon"])

    def _judged(self, value: Tensor, params: Sequence[Tensor]) -> float:
        return float(_averaged(value, params) if self._together else value)

    def _border(self, grads: Sequence[Tensor], params: Sequence[Tensor]) -> Result:
        if self.envelope is None:
            return Result.UNDECIDED
        size = sum(param.numel() for param in params) if self._size is None else self._size
        counts = self.counts
        border, counts.strange = self.envelope.watch(grads, size, counts.steps, counts.strange, counts.outside > 0)
        return border


def _averaged(value: Tensor, params: Sequence[Tensor]) -> Tensor:
    """The mean of the losses of all processes, where there are several."""
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return value
    # To where the params are, which the backend can reduce.
    total = value.to(params[0].device if params else value.device, compute_dtype(value), copy=True)
    distributed.all_reduce(total)
    return total / distributed.get_world_size()


def _numbers(record: Any) -> dict[str, Any]:
    """A dataclass of numbers as a dict: `dataclasses.asdict` copies each of them, which is too slow for every step."""
    return {name: _numbers(entry) if is_dataclass(entry) else entry for name, entry in vars(record).items()}


def _horizon(state: TensorState) -> TensorState:
    return {name: entry for name, entry in state.items() if name == "horizon"}


def _named(prefix: str, state: TensorState) -> TensorState:
    return {prefix + name: entry for name, entry in state.items()}


def _part(prefix: str, state: TensorState) -> TensorState:
    return {name.removeprefix(prefix): entry for name, entry in state.items() if name.startswith(prefix)}


def _point(point: Tensor, fallback: TensorState) -> TensorState:
    """The entries that say where to return to. A fallback's state is never written to again, so it is not copied."""
    return {_POINT: point} | _named(_THERE, fallback)


def _widened(param: Tensor) -> Tensor:
    return param.detach().to(compute_dtype(param))


def _steps(
    rule: Rule,
    grads: Sequence[Tensor | None],
    states: Sequence[TensorState],
    params: Sequence[Tensor],
    value: Tensor | None,
    rates: Sequence[Rate],
) -> list[Tensor]:
    """Take the step of a rule for the tensors that have a gradient; the others rest."""
    moving = [index for index, grad in enumerate(grads) if grad is not None]
    given = [grad for grad in grads if grad is not None]
    moved = rule.step(given, [states[index] for index in moving], [params[index] for index in moving], value)
    updates = {index: multiplied(update, rates[index]) for index, update in zip(moving, moved, strict=True)}
    return [updates[index] if index in updates else torch.zeros_like(_widened(it)) for index, it in enumerate(params)]


def _finite(tensors: Sequence[Tensor]) -> bool:
    """Whether all entries are finite; waits for the device once, and once more where a sum is not."""
    some = [it for it in tensors if it.numel()]
    # A sum is finite only where all entries are, and takes half the time of looking for both ends of the values, in
    # which NaN is found as well. That tells what is not finite from what is too large to be added up.
    return _all_finite([it.sum() for it in some]) or _all_finite([end for it in some for end in torch.aminmax(it)])


def _all_finite(numbers: Sequence[Tensor]) -> bool:
    return not numbers or bool(torch.stack([it.to(numbers[0].device) for it in numbers]).isfinite().all())


def _sound(updates: Sequence[Tensor], states: Sequence[TensorState], params: Sequence[Tensor]) -> bool:
    """Whether states, and params after the updates, are finite: an update that is not leaves no param that is."""
    entries = [entry for state in states for entry in state.values() if entry.is_floating_point()]
    after = [param + update.to(param.dtype) for param, update in zip(params, updates, strict=True)]
    return _finite([*entries, *after])
