"""When a guard lets the learned rule move, in PyTorch: the decisions of `bygrad.optimizers.trials`."""

import math
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from ..._core.definitions import (
    FIRST_PART,
    HOPELESS,
    HUGE,
    PATIENCE,
    REFERENCE,
    RISE,
    RUN,
    SHORTEST,
    STALE_PART,
    STALE_WINDOWS,
    TRIAL,
    UNTOLD,
)
from ..._core.results import Result


@dataclass(frozen=True)
class Level:
    """A mean of losses with its standard error."""

    mean: float = 0.0
    error: float = 0.0

    def clearly_below(self, other: "Level", margin: float) -> bool:
        return self.mean + margin * (self.error + other.error) < other.mean

    def or_error(self, error: float) -> "Level":
        return self if self.error > 0 else Level(self.mean, error)


@dataclass
class Losses:
    """Losses one after the other: how many, their sum, the last one, and the sum of the jumps between them."""

    count: int = 0
    total: float = 0.0
    last: float = 0.0
    jumps: float = 0.0

    def add(self, value: float) -> None:
        self.jumps += abs(value - self.last) if self.count else 0.0
        self.count, self.total, self.last = self.count + 1, self.total + value, value

    def level(self) -> Level:
        if not self.count:
            return Level(HUGE)
        deviation = 0.5 * math.pi**0.5 * self.jumps / max(self.count - 1, 1)
        return Level(self.total / self.count, deviation / self.count**0.5)

    def noise(self) -> float:
        """Return the error of a single one."""
        return self.level().error * self.count**0.5


@dataclass
class Watch:
    """Where the trials stand; what lies beside it is the point to return to."""

    phase: int = RUN
    trusted: bool = False
    length: int = 0
    seen: int = 0
    losses: Losses = field(default_factory=Losses)
    highest: float = 0.0
    above: int = 0
    begin: Level = Level(HUGE)
    reference: Level = Level(HUGE)
    best: Level = Level(HUGE)
    led: int = 0
    fell: int = 0
    hold: float = 0.0
    defeats: int = 0
    discarded: int = 0
    trials: int = 0
    won: int = 0
    rollbacks: int = 0
    stalls: int = 0
    reason: int = int(Result.UNDECIDED)


class Verdict(NamedTuple):
    """Who moves the params, or whether they go `back` to the point; and whose next point is kept in its place."""

    moves: Literal["learned", "fallback", "back"]
    keeps: Literal["learned", "fallback"] | None = None


class Trials(NamedTuple):
    """Decides who moves; see `Guard` for the arguments, and `bygrad.optimizers.trials.Trials` for `until`."""

    window: int
    share: float
    margin: float
    growth: float
    horizon: int = 0
    until: int | None = None
    trusted: bool = False

    def begin(self) -> Watch:
        """Return what a run begins with."""
        first = min(max(SHORTEST, self.length(0)), self.window)  # as in JAX
        return Watch(UNTOLD, trusted=True, length=first) if self.trusted else Watch(UNTOLD)

    def decide(self, it: Watch, step: int, value: float | None, good: bool, allowed: bool) -> Verdict:
        """Take one call into account: change `it` and say what happens. `value`: the loss, if one was given. `good`:
        the gradient is finite, and such a loss as well."""
        if it.phase == UNTOLD:
            if value is None:
                return Verdict("learned" if allowed else "fallback")
            it.phase = RUN
            verdict = self.decide(it, step, value, good, allowed)
            # What was not watched is not to be taken back either.
            return verdict._replace(keeps=verdict.keeps or "fallback") if good else verdict
        it.seen += 1
        if value is not None:
            value = min(max(value, -HUGE), HUGE) if value == value else HUGE
            if good and 2 * it.seen > it.length:
                it.losses.add(value)
        if it.phase == REFERENCE:
            it.trusted &= allowed
            return self._reference(it, value, good)
        if it.phase == TRIAL:
            return self._trial(it, step, value, good, allowed)
        if it.trusted:
            return self._lead(it, step, value, good, allowed)
        if it.seen >= it.length:
            return self._pause(it, step, value, good and allowed)
        return Verdict("fallback")

    def _reference(self, it: Watch, value: float | None, good: bool) -> Verdict:
        if good and value is not None:
            it.highest = max(it.highest, value)
        if it.seen < it.length:
            return Verdict("fallback")
        if value is None and not it.losses.count:
            # Nothing could be held against a part without a loss: no trial then, and the fallback's path goes on.
            it.phase = RUN
            self._anew(it)
            return Verdict("fallback", "fallback")
        it.reference, it.phase = it.losses.level(), TRIAL
        self._anew(it)
        return Verdict("back", "fallback")

    def _trial(self, it: Watch, step: int, value: float | None, good: bool, allowed: bool) -> Verdict:
        if value is not None:
            it.above = it.above + 1 if value > it.highest else 0
        ended = it.seen >= it.length and good and allowed and it.above < HOPELESS
        level, several = it.losses.level(), it.losses.count >= 2
        begin, reference = (one.or_error(it.losses.noise()) for one in (it.begin, it.reference))
        better, favoured = level.clearly_below(reference, self.margin), self._favours(it)
        no_worse = favoured and not reference.clearly_below(level, self.margin)
        if ended and several and (better or no_worse) and level.clearly_below(begin, self.margin):
            it.defeats = 0 if it.trusted else it.defeats
            it.phase, it.trusted = RUN, True
            it.led = it.led if favoured else 0  # a lead that goes on is one
            if not favoured or level.mean < it.best.mean:
                it.best, it.fell = level, it.led
            it.won, it.discarded = it.won + 1, it.discarded + it.length
            it.reason = int(Result.LEARNED_WON if better else Result.LEARNED_KEPT)
            self._anew(it)
            return Verdict("learned", "fallback")
        if not good or not allowed or ended or it.above >= HOPELESS:
            return self._return(it, step, Result.LEARNED_LOST if good else Result.NOT_FINITE)
        return Verdict("learned")

    def _lead(self, it: Watch, step: int, value: float | None, good: bool, allowed: bool) -> Verdict:
        it.led += 1
        opening = it.begin.mean >= HUGE
        it.highest = value if opening and it.led == 1 and value is not None else it.highest
        if not good:
            it.rollbacks += 1
            return self._return(it, step, Result.NOT_FINITE)
        if it.seen < it.length or value is None or it.losses.count < 2:
            it.trusted = allowed
            return Verdict("learned" if allowed else "fallback")
        level = it.losses.level()
        before = it.best
        if opening:
            before, it.begin = Level(it.highest, it.losses.noise()), level
        if before.clearly_below(level, RISE):
            it.rollbacks += 1
            return self._return(it, step, Result.LOSS_ROSE)
        if level.mean < it.best.mean:
            it.best, it.fell = level, it.led
        patience = self.length(step) / self.share if self._favours(it) else STALE_WINDOWS * it.length
        if it.led - it.fell >= max(patience, STALE_PART * it.led):
            it.trusted, it.stalls, it.reason = False, it.stalls + 1, int(Result.STALLED)
            self._defeat(it, step)
            self._anew(it)
            return Verdict("fallback")
        it.trusted = allowed
        if allowed and self._starts(it, step, value):
            return Verdict("fallback", "learned")
        self._anew(it)
        return Verdict("learned" if allowed else "fallback", "fallback")

    def _favours(self, it: Watch) -> bool:
        """Whether the learned rule has the benefit of the doubt."""
        return self.trusted and it.defeats == 0

    def _pause(self, it: Watch, step: int, value: float | None, good: bool) -> Verdict:
        if value is None:
            return Verdict("fallback")
        if good and self._starts(it, step, value):
            return Verdict("fallback", "learned")
        self._anew(it)
        return Verdict("fallback")

    def _starts(self, it: Watch, step: int, value: float) -> bool:
        """Begin a trial, if one is due."""
        total, length, pays = self.share * self.horizon, self.length(step), True
        if self.horizon > 0:
            pays = it.discarded + 2 * length <= total and step + 4 * length <= self.horizon and length >= SHORTEST
        affordable = it.discarded + length <= self.share * (step + 2 * length)
        affordable |= it.trials == 0 and not self.trusted  # at the start it has nothing to show for it yet
        over = self.until is None or step + 2 * length <= self.until
        if not (step >= it.hold and affordable and pays and over):
            return False
        it.begin = it.begin if self._favours(it) else it.losses.level()
        it.highest, it.length, it.phase = value, length, REFERENCE
        it.trials += 1
        self._anew(it)
        return True

    def length(self, step: int) -> int:
        """Return how long a trial is that begins at a step."""
        total = self.share * self.horizon
        length = max(self.window, int(max(self.growth * step, FIRST_PART * total)))
        return min(length, int(total / 2)) if self.horizon > 0 else length

    def _return(self, it: Watch, step: int, reason: Result) -> Verdict:
        it.discarded += it.seen
        it.phase, it.trusted, it.reason = RUN, False, int(reason)
        self._defeat(it, step)
        self._anew(it)
        return Verdict("back")

    def _defeat(self, it: Watch, step: int) -> None:
        it.hold = step + it.length / self.share * PATIENCE**it.defeats
        it.defeats = min(it.defeats + 1, 12)

    def _anew(self, it: Watch) -> None:
        it.seen, it.above, it.losses = 0, 0, Losses()
