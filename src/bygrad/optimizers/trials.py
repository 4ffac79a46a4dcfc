"""When a guard lets the learned optimizer move: trials from one point, and a watch over the loss in between.

The trials follow the loss-guarded L2O of Prémont-Schwarz, Vítků & Feyereisl (ICML 2022, arXiv:2201.12426): run both
optimizers from one point and keep the better. There every step is guarded, at twice the cost; here trials are rare.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .._core import trees
from .._core.definitions import (
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
from .._core.results import Result
from .._core.types import Params, State

RETURNS = 8
"""Calls that a return may take. One is enough unless the params are so large that the difference is rounded off."""


class Level(eqx.Module):
    """A mean of losses with its standard error."""

    mean: Float[Array, ""]
    error: Float[Array, ""]

    def clearly_below(self, other: "Level", margin: float) -> Bool[Array, ""]:
        """Whether it is lower by more than `margin` standard errors of the difference."""
        return self.mean + margin * (self.error + other.error) < other.mean

    def or_error(self, error: Float[Array, ""]) -> "Level":
        """Return it with this error where it has none of its own: a single loss shows nothing of its noise."""
        return Level(self.mean, jnp.where(self.error > 0, self.error, error))


class Losses(eqx.Module):
    """Losses one after the other: how many, their sum, the last one, and the sum of the jumps between them."""

    count: Float[Array, ""]
    total: Float[Array, ""]
    last: Float[Array, ""]
    jumps: Float[Array, ""]

    @classmethod
    def none(cls) -> "Losses":
        return cls(*(jnp.zeros(()) for _ in range(4)))

    def add(self, value: Float[Array, ""], counts: Bool[Array, ""]) -> "Losses":
        """Add a loss, if it `counts`."""
        jump = jnp.where(self.count > 0, jnp.abs(value - self.last), 0)
        return trees.where(counts, Losses(self.count + 1, self.total + value, value, self.jumps + jump), self)

    def level(self) -> Level:
        r"""Return the mean and its error; huge, if there are none. The noise comes from the jumps, as
        $E|v_{i+1} - v_i| = 2 \sigma / \sqrt\pi$: so a trend is not taken for noise."""
        some = jnp.maximum(self.count, 1)
        deviation = 0.5 * jnp.pi**0.5 * self.jumps / jnp.maximum(self.count - 1, 1)
        return Level(jnp.where(self.count > 0, self.total / some, HUGE), deviation / jnp.sqrt(some))

    def noise(self) -> Float[Array, ""]:
        """Return the error of a single one."""
        return self.level().error * jnp.sqrt(self.count)


class Watch(eqx.Module):
    """Where the trials stand.

    `point`, `point_state`: where to return to. In the fallback's part of a trial it is the learned optimizer's first
    step, with the fallback's state there; afterwards the fallback's next step from the last good point, with its state.
    `trusted`: whether the learned optimizer moves between trials. `returning`: calls that a return may still take.
    `length`, `seen`, `losses`: the window. `highest`: finite loss of the fallback's part, or the first one of a run
    that the learned optimizer begins; `above`: losses of its part of a trial in a row that were higher. `begin`,
    `reference`, `best`: the level where the trial began, or that of the first window of such a run; the fallback's;
    the lowest since the learned optimizer moves. `led`, `fell`: calls since then, up to now and up to the lowest
    level. `hold`: no trial before this step. `discarded`: calls that the path taken does not contain. `horizon`: calls
    of the run; 0 if nobody declared them.
    """

    point: Params
    point_state: State
    phase: Int[Array, ""]
    trusted: Bool[Array, ""]
    returning: Int[Array, ""]
    length: Int[Array, ""]
    seen: Int[Array, ""]
    losses: Losses
    highest: Float[Array, ""]
    above: Int[Array, ""]
    begin: Level
    reference: Level
    best: Level
    led: Int[Array, ""]
    fell: Int[Array, ""]
    hold: Float[Array, ""]
    defeats: Int[Array, ""]
    discarded: Int[Array, ""]
    trials: Int[Array, ""]
    won: Int[Array, ""]
    rollbacks: Int[Array, ""]
    stalls: Int[Array, ""]
    reason: Int[Array, ""]
    horizon: Int[Array, ""]

    def moved(self, verdict: "Verdict", steps: "Steps") -> tuple["Watch", State, Params]:
        """Carry out a verdict: return the watch with the point that is kept, the fallback's state, and the updates.

        Most calls change no point: then nothing of it is touched.
        """
        point, there = self.point, self.point_state
        updates = trees.where(verdict.learned_moves, steps.learned, steps.fallback)

        def change(carried: tuple[Params, State, State, Params]) -> tuple[Params, State, State, Params]:
            point, there, state, updates = carried
            wide = trees.widened(steps.params)
            back = jax.tree.map(lambda to, at, like: (to - at).astype(like.dtype), point, wide, updates)
            back = trees.where(trees.all_finite(back), back, jax.tree.map(jnp.zeros_like, back))
            kept = trees.add(wide, trees.where(verdict.keeps_learned, steps.learned, steps.fallback))
            keeps = (verdict.keeps_learned | verdict.keeps_fallback) & trees.all_finite(kept)
            return (
                trees.where(keeps, kept, point),
                trees.where(keeps, state, there),
                trees.where(verdict.jumps, there, state),
                trees.where(verdict.jumps, back, updates),
            )

        changes = verdict.jumps | verdict.keeps_learned | verdict.keeps_fallback
        point, there, state, updates = trees.seldom(changes, change, (point, there, steps.fallback_state, updates))
        return eqx.tree_at(lambda it: (it.point, it.point_state), self, (point, there)), state, updates


class Steps(eqx.Module):
    """The steps that each optimizer would take from the params, and the fallback's state after its own."""

    params: Params
    learned: Params
    fallback: Params
    fallback_state: State


class Seen(eqx.Module):
    """What a call shows: the step, the params and the loss there, and whether that was `told` at all, whether all is
    `good` (the gradient is finite, and a loss that was told) and `allowed` (by the envelope)."""

    step: Int[Array, ""]
    params: Params
    value: Float[Array, ""]
    told: Bool[Array, ""]
    good: Bool[Array, ""]
    allowed: Bool[Array, ""]


class Verdict(eqx.Module):
    """Whether the learned optimizer moves; whether, instead of either, the params jump to the point of the watch, and
    the fallback's state with them; and whether the learned optimizer's next point, or the fallback's, is kept in its
    place."""

    learned_moves: Bool[Array, ""]
    jumps: Bool[Array, ""]
    keeps_learned: Bool[Array, ""]
    keeps_fallback: Bool[Array, ""]


class Trials(eqx.Module):
    """Decides who moves; see `Guard` for the arguments and for what it guarantees. `until`: the step from which the
    learned optimizer may not move, where an envelope says so: no trial begins that would not be over by then.
    `trusted`: whether doubt speaks for the learned optimizer, until its first defeat."""

    window: int = eqx.field(static=True)
    share: float = eqx.field(static=True)
    margin: float = eqx.field(static=True)
    growth: float = eqx.field(static=True)
    horizon: Int[Array, ""]
    until: int | None = eqx.field(static=True, default=None)
    trusted: bool = eqx.field(static=True, default=False)

    def init(self, params: Params, fallback_state: State) -> Watch:
        count, none = jnp.zeros((), jnp.int32), Losses.none().level()
        # In a long run a trial is long, but one that is no good is not to do harm for as long.
        first = jnp.clip(self._length(self.horizon, count), SHORTEST, self.window) if self.trusted else count
        return Watch(
            point=trees.widened(params),
            point_state=fallback_state,
            phase=jnp.full_like(count, UNTOLD),
            trusted=jnp.asarray(self.trusted),
            returning=count,
            length=first,
            seen=count,
            losses=Losses.none(),
            highest=jnp.zeros(()),
            above=count,
            begin=none,
            reference=none,
            best=none,
            led=count,
            fell=count,
            hold=jnp.zeros(()),
            defeats=count,
            discarded=count,
            trials=count,
            won=count,
            rollbacks=count,
            stalls=count,
            reason=count,
            horizon=self.horizon,
        )

    def decide(self, it: Watch, now: Seen) -> tuple[Verdict, Watch]:
        """Take one call into account; the point stays what it was until `Watch.moved`.

        One without a loss counts, so that no part of a trial is longer than it was to be; but what is decided by a loss
        waits for one, and until the first of all nothing is watched.
        """
        begins = (it.phase == UNTOLD) & now.told
        now_in = jnp.where(begins, RUN, it.phase)
        running, in_reference, in_trial, untold = (now_in == phase for phase in (RUN, REFERENCE, TRIAL, UNTOLD))
        leads = in_trial | (running & it.trusted)
        shown = now.told & now.good
        away = it.returning > 0
        arriving = trees.seldom(away, lambda _: ~trees.near(now.params, it.point), away)
        # In float64 where there is one: losses may differ by less than float32 can tell.
        seen, value = it.seen + 1, now.value.astype(it.highest.dtype)
        value = jnp.clip(jnp.nan_to_num(value, nan=HUGE), -HUGE, HUGE)
        losses = it.losses.add(value, shown & (2 * seen > it.length))
        level, ended, several = losses.level(), seen >= it.length, losses.count >= 2
        begin, reference = (one.or_error(losses.noise()) for one in (it.begin, it.reference))

        # What this call ends, and how.
        favoured = (it.defeats == 0) & self.trusted
        # Nothing could be held against a part without a loss: no trial then, and the fallback's path goes on.
        empty = in_reference & ended & (losses.count == 0) & ~now.told
        swap = in_reference & ended & ~empty
        failed = leads & ~now.good
        above = jnp.where(now.told, jnp.where(value > it.highest, it.above + 1, 0), it.above) * in_trial
        # One low loss may lie before those: it does not make up for them.
        judged = in_trial & ended & now.good & now.allowed & (above < HOPELESS)
        better = level.clearly_below(reference, self.margin)
        no_worse = favoured & ~reference.clearly_below(level, self.margin)
        won = judged & several & (better | no_worse) & level.clearly_below(begin, self.margin)
        lost = in_trial & (~now.allowed | (above >= HOPELESS)) | judged & ~won
        checked = running & it.trusted & ended & shown & several
        # The first window of a run has none before it, but it has its first loss, which is as noisy as the others.
        opening = running & it.trusted & (it.begin.mean >= HUGE)
        first = Level(it.highest, losses.noise())
        rose = checked & trees.where(opening, first, it.best).clearly_below(level, RISE)
        anew = won & ~favoured  # a lead that goes on is one
        lower = anew | (won | checked) & (level.mean < it.best.mean)
        led = jnp.where(anew, 0, it.led + (running & it.trusted))
        fell = jnp.where(lower, led, it.fell)
        length, due = self._next(it, now)
        patience = jnp.where(favoured, length / self.share, STALE_WINDOWS * it.length)
        stalled = checked & ~rose & (led - fell >= jnp.maximum(patience, STALE_PART * led))
        back = failed | lost | rose
        kept = won | checked & ~rose & ~stalled
        waited = running & ~it.trusted & ended & now.told & ~arriving

        start = running & (kept | waited) & now.good & now.allowed & due
        # What was not watched is not to be taken back either.
        jumps, good_point = swap | back | arriving, swap | kept | empty | (begins & now.good)
        highest = jnp.where(in_reference & shown, jnp.maximum(it.highest, value), it.highest)
        verdict = Verdict(
            learned_moves=(leads | untold) & now.allowed & ~jumps & ~start & ~stalled,
            jumps=jumps,
            keeps_learned=start,
            keeps_fallback=good_point & ~start,
        )
        fresh = start | swap | empty | won | back | checked | waited | arriving | untold
        discarded = jnp.where(won, it.length, jnp.where(back, seen, arriving))
        defeat = back | stalled
        pause = it.length / self.share * PATIENCE ** it.defeats.astype(jnp.float32)
        outcome = jnp.where(better, Result.LEARNED_WON, Result.LEARNED_KEPT)
        reason = jnp.where(won, outcome, jnp.where(stalled, Result.STALLED, it.reason))
        reason = jnp.where(lost, Result.LEARNED_LOST, jnp.where(rose, Result.LOSS_ROSE, reason))
        return verdict, Watch(
            point=it.point,
            point_state=it.point_state,
            phase=jnp.select([start, swap, won | back | empty], [REFERENCE, TRIAL, RUN], now_in).astype(jnp.int32),
            trusted=won | (it.trusted & ~defeat & (now.allowed | untold)),
            returning=jnp.where(back, RETURNS, jnp.where(arriving, it.returning - 1, 0)).astype(jnp.int32),
            length=jnp.where(start, length, it.length),
            seen=jnp.where(fresh, 0, seen),
            losses=trees.where(fresh, Losses.none(), losses),
            highest=jnp.where(start | opening & (led == 1), value, highest),
            above=above.astype(jnp.int32),
            begin=trees.where(start & ~favoured | opening & checked, level, it.begin),
            reference=trees.where(swap, level, it.reference),
            best=trees.where(lower, level, it.best),
            led=led.astype(jnp.int32),
            fell=fell.astype(jnp.int32),
            hold=jnp.where(defeat, now.step + pause, it.hold),
            # A trial that is won after a defeat is no reason for trust: the one after it is.
            defeats=jnp.where(won & it.trusted, 0, jnp.minimum(it.defeats + defeat, 12)),
            discarded=it.discarded + discarded,
            trials=it.trials + start,
            won=it.won + won,
            rollbacks=it.rollbacks + (back & running),
            stalls=it.stalls + stalled,
            reason=jnp.where(failed, Result.NOT_FINITE, reason).astype(jnp.int32),
            horizon=it.horizon,
        )

    def first(self, horizon: int) -> int:
        """Return how long the first trial is in a run of `horizon` calls: none is shorter."""
        total = self.share * horizon
        return min(max(self.window, int(FIRST_PART * total)), int(total / 2))

    def _next(self, it: Watch, now: Seen) -> tuple[Int[Array, ""], Bool[Array, ""]]:
        """Return how long a trial would be that starts now, and whether it is due.

        One that is lost costs its length, and one that is won and then taken back twice of it. Where the horizon is
        known, all of them together cost no more than the share of it, none is so short that it says nothing about a run
        of that length, and none starts so late that it could not pay.
        """
        known, total, length = it.horizon > 0, self.share * it.horizon, self._length(it.horizon, now.step)
        affordable = it.discarded + length <= self.share * (now.step + 2 * length)
        if not self.trusted:  # at the start it has nothing to show for it yet
            affordable |= it.trials == 0
        pays = (it.discarded + 2 * length <= total) & (now.step + 4 * length <= it.horizon) & (length >= SHORTEST)
        over = True if self.until is None else now.step + 2 * length <= self.until
        return length, (now.step >= it.hold) & affordable & (~known | pays) & over

    def _length(self, horizon: Int[Array, ""], step: Int[Array, ""]) -> Int[Array, ""]:
        """Return how long a trial is that begins at a step."""
        total = self.share * horizon
        length = jnp.maximum(self.growth * step, FIRST_PART * total).astype(jnp.int32)
        length = jnp.maximum(self.window, length)
        return jnp.where(horizon > 0, jnp.minimum(length, (total / 2).astype(jnp.int32)), length)
