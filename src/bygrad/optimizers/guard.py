"""A guard: a learned optimizer that moves the params only while it shows that it is better than a fallback."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from .._core import trees
from .._core.remarks import remark
from .._core.results import Result
from .._core.sizes import HANDED_OVER, beyond, check_trials
from .._core.types import Params, State
from .base import Optimizer, Scheduled, check_parts, declare, one_loss, whole_steps
from .envelope import Envelope
from .hand_designed import Adam
from .trials import REFERENCE, RUN, TRIAL, UNTOLD, Seen, Steps, Trials, Watch


class GuardState(eqx.Module):
    """State of a `Guard`; what is counted are calls of `update`.

    `steps`: all. `learned_steps`: those in which the learned optimizer moved the params. `bad_inputs`: those with
    gradients that were not finite. `replaced`: those in which the learned optimizer's output or state was not finite.
    `outside`: those outside the envelope; `border`: the code of the last one. `strange`: running share of gradient
    entries outside. `fits`: whether the number of params is inside.
    """

    learned: State
    fallback: State
    watch: Watch | None
    steps: Int[Array, ""]
    learned_steps: Int[Array, ""]
    bad_inputs: Int[Array, ""]
    replaced: Int[Array, ""]
    outside: Int[Array, ""]
    border: Int[Array, ""]
    strange: Float[Array, ""]
    fits: Bool[Array, ""]


class Guard(Optimizer, Scheduled):
    r"""Lets `learned` move the params while it shows that it is better than `fallback`.

    **Always:** updates and states are finite, whatever gradients, params, values and `learned` are. A call with
    gradients that are not finite moves nothing, or, where losses are given and `learned` leads, is its defeat: the
    params return to the last good point. Where an output or state of `learned` is not finite, the fallback's step is
    taken and `learned` starts afresh; where the fallback's is not, the update is zero.

    **With losses** (`value=` and `params`)**:** at the start, and then rarely, there is a *trial*. From one point the
    fallback takes $K$ steps; then, from the same point, the learned optimizer does. It goes on if the mean of its last
    $K/2$ losses is lower by more than `margin` standard errors, both than the fallback's and than where the trial
    began; else, and as soon as 4 losses in a row lie above all of the fallback's, the params return to where the
    fallback was. While it goes on, its losses are compared window by window with the lowest so far. If they rise by
    more than 3 standard errors, or are not finite, the params return to the last good point and the fallback takes
    over. If there is no new lowest window for half of the time (and two windows), it goes on from there. After each
    defeat the next trial waits three times as long, until two trials in a row are won. The fallback is fed every
    gradient of the path taken: its state is warm.

    **With a horizon** (`declare`)**:** trials are shortened so that all of them together cost no more than the share of
    it, and none starts so late that it could not pay. Where less than 4 calls would be left for each, there are none.
    In long runs the first one is longer, a tenth of what may be discarded: a few steps say little about where they end.

    **Trusted:** where a comparison on problems like this one has shown that `learned` is better, doubt may speak for
    it. It moves from the first step on, and the first trial waits until its cost is within the share: until call 80, by
    default. Until its first defeat it goes on if the fallback's loss is *not* lower by more than `margin` standard
    errors, and its own is by as much below that of its first window; and no new lowest window is a defeat only after
    $K / \text{share}$ calls. From then on, and until two trials in a row are won, it is judged as above.

    **Calls without a loss:** until the first loss, `learned` moves the params, and nothing is promised but what is
    always so. Later the verdict in force stands: whoever moved goes on. Such a call counts, so that a trial takes no
    longer; but it is won only if at least two losses of the last $K/2$ were given, and where none of the fallback's
    were, the fallback goes on without a trial. Between trials, a window waits for a loss, and under `learned` for two.
    Without params, a trial waits, and the fallback moves.

    What this guarantees, whatever `learned` is:

    - *Cost:* of the first $t$ calls at most $\text{share} \cdot t + 3 K$ are discarded, $K$ the longest window so far,
      with its waiting for losses; with a horizon, $\text{share}$ of that at most, but for that waiting and the calls
      that a return from very far away takes (and a window of four where it is trusted in a run that is too short for
      trials).
    - *Damage:* a loss that rises, or is not finite, lasts for one window. One that stands still lasts as long as
      it has fallen before, or two windows (trusted, $K / \text{share}$ calls) if that is longer.
    - *No worse than the fallback with as many steps:* while `learned` wins no trial, the path taken is the fallback's
      own, up to rounding: after $t$ calls it has taken the $t$ steps less those discarded. Trusted, also less those
      that `learned` took until it was found out. That a falling loss is a little above the fallback's may never be.
    - A trial is won by the lower loss: for certain if the losses are deterministic; else within `margin` standard
      errors, if minibatches are independent. What is better for $K$ steps need not be better in the long run: that is
      not promised. For deterministic problems `BestOf` promises it, at a higher cost.

    A run that ends inside a trial ends where the trial is: `settled` gives the params to keep. No derivative goes
    backwards through a guard: learn the optimizer first.

    Updates must reach the params as they are. What scales them afterwards (a schedule, say) spoils the returns: put it
    inside, around each of the two.

    **Arguments:** `fallback`: `Adam(1e-3)` unless you know better. `window`: $K$, in calls; windows grow with the run,
    to `growth` times the calls so far (0.02, or half of the share if that is less), so that late and slow progress can
    be told from noise. `share`: of the calls that may be discarded; 0 judges no losses and needs no params. `margin`:
    in standard errors. `envelope`: what `learned` was trained on. `trusted`: see there. Memory: the params and the
    fallback's state once more.

    >>> from bygrad.optimizers import SGD
    >>> guard = Guard(SGD(-0.1), Adam(0.1))  # a "learned" optimizer that climbs
    >>> params = jnp.ones(2)
    >>> state, update = guard.init(params), eqx.filter_jit(guard.update)
    >>> for _ in range(40):
    ...     value, grads = jax.value_and_grad(lambda p: jnp.sum(p**2))(params)
    ...     updates, state = update(grads, state, params, value=value)
    ...     params = params + updates
    >>> report = guard.report(state)
    >>> report["trials"], report["won"], report["discarded"]
    (1, 0, 4)
    >>> report["reason"]
    'From one point the learned optimizer did not clearly beat the fallback: that moves the params.'
    """

    learned: Optimizer
    fallback: Optimizer
    trials: Trials
    envelope: Envelope | None

    def __init__(
        self,
        learned: Optimizer,
        fallback: Optimizer | None = None,
        *,
        window: int = 10,
        share: float = 0.1,
        margin: float = 2.0,
        growth: float | None = None,
        envelope: Envelope | None = None,
        trusted: bool = False,
    ):
        growth = check_trials(window, share, margin, growth)
        self.learned, self.fallback = learned, Adam(jnp.asarray(1e-3)) if fallback is None else fallback
        check_parts("A guard", self.learned, self.fallback)
        until = envelope.horizon if envelope is not None and envelope.action == "fall back" else None
        self.trials = Trials(
            window, float(share), float(margin), float(growth), jnp.zeros((), jnp.int32), until, trusted
        )
        self.envelope = envelope

    def declare(self, horizon: int | Int[Array, ""]) -> "Guard":
        parts = declare(self.learned, horizon), declare(self.fallback, horizon), whole_steps(horizon)
        until = self.trials.until
        if isinstance(horizon, int | np.integer) and until is not None and horizon > until:
            remark(beyond(horizon, until, 0 if self.trials.trusted else self.trials.first(horizon)))
        return eqx.tree_at(lambda it: (it.learned, it.fallback, it.trials.horizon), self, parts)

    def init(self, params: Params) -> GuardState:
        fits = self.envelope is None or self.envelope.check(params)
        if self.envelope is not None and self.envelope.action == "fall back" and not fits:
            remark(HANDED_OVER.format(Result.OUTSIDE_SIZE.sentence))
        fallback, count = self.fallback.init(params), jnp.zeros((), jnp.int32)
        state = GuardState(
            learned=self.learned.init(params),
            fallback=fallback,
            watch=self.trials.init(params, fallback) if self.trials.share > 0 else None,
            steps=count,
            learned_steps=count,
            bad_inputs=count,
            replaced=count,
            outside=count,
            border=count,
            strange=jnp.zeros(()),
            fits=jnp.asarray(fits),
        )
        return trees.copied(state)

    def update(
        self,
        grads: Params,
        state: GuardState,
        params: Params | None = None,
        *,
        value: Float[Array, ""] | float | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Params, GuardState]:
        if value is not None and params is None and state.watch is not None:
            raise ValueError(
                "Guard.update was given a value but no params, so it cannot return from a trial that fails. Give it"
                " the params as well, or build it with share=0."
            )
        if value is None and state.watch is not None:
            remark(_NO_LOSS)  # once for each trace
        value = None if value is None else one_loss(value)
        nothing = jax.tree.map(jnp.zeros_like, grads)
        finite = trees.all_finite(grads)
        # In place of a bad gradient the learned optimizer sees zeros. To keep its old state instead would be to hold
        # the largest of all states twice.
        shown = trees.where(finite, grads, nothing)

        theirs, fallback = self.fallback.update(shown, state.fallback, params, value=value, key=key)
        sound = finite & _sound(theirs, fallback, params)
        theirs, fallback = trees.where(sound, (theirs, fallback), (nothing, state.fallback))

        def step(before: tuple[Params, State, Bool[Array, ""]]) -> tuple[Params, State, Bool[Array, ""]]:
            ours, learned = self.learned.update(shown, before[1], params, value=value, key=key)
            intact = _sound(ours, learned, params)

            def afresh(_: State) -> State:
                # From the params, for those that remember where they were, but not from what is bad among them.
                here = nothing if params is None else jax.tree.map(lambda p: jnp.where(jnp.isfinite(p), p, 0), params)
                return self.learned.init(here)

            return ours, trees.seldom(~intact, afresh, learned), intact

        # What the fallback does in its part of a trial is no part of the learned optimizer's path. Not to take the
        # step, rather than to take it back, leaves a large state in place.
        rests = (nothing, state.learned, jnp.ones((), bool))
        border, strange = self._border(shown, state)
        inside, allowed, active = border == Result.UNDECIDED, jnp.asarray(True), None
        if self.envelope is not None and self.envelope.action == "fall back":
            allowed = inside
            active = (border != Result.OUTSIDE_SIZE) & (border != Result.OUTSIDE_HORIZON)  # which are left for good
        if state.watch is not None:
            active = (state.watch.phase != REFERENCE) & (True if active is None else active)
        ours, learned, intact = step(rests) if active is None else trees.seldom(active, step, rests)
        ours = trees.where(finite, trees.where(intact, ours, theirs), nothing)

        moves, watch, updates = allowed, state.watch, trees.where(allowed, ours, theirs)
        if state.watch is not None and params is None:
            # Where nothing could be taken back, nothing is tried.
            it = state.watch
            moves = allowed & ((it.phase == UNTOLD) | ((it.phase == RUN) & it.trusted))
            updates = trees.where(moves, ours, theirs)
        elif state.watch is not None and params is not None:
            told, loss = jnp.asarray(value is not None), jnp.zeros(()) if value is None else value
            good = finite & jnp.isfinite(loss)
            seen = Seen(state.steps, params, loss, told, good, allowed & intact)  # one replaced is not worth a trial
            verdict, watch = self.trials.decide(state.watch, seen)
            watch, fallback, updates = watch.moved(verdict, Steps(params, ours, theirs, fallback))
            moves = verdict.learned_moves
        if self.envelope is not None:
            updates = self.envelope.act(updates, border, ~inside & (state.outside == 0))
        return updates, GuardState(
            learned=learned,
            fallback=fallback,
            watch=watch,
            steps=state.steps + 1,
            learned_steps=state.learned_steps + (moves & intact & finite),
            bad_inputs=state.bad_inputs + ~finite,
            replaced=state.replaced + ~intact,
            outside=state.outside + ~inside,
            border=jnp.where(inside, state.border, border),
            strange=strange,
            fits=state.fits,
        )

    def _border(self, grads: Params, state: GuardState) -> tuple[Int[Array, ""], Float[Array, ""]]:
        """Return the code of the border that is crossed, `UNDECIDED` inside all, and the share of strange gradients."""
        if self.envelope is None:
            return jnp.asarray(int(Result.UNDECIDED), jnp.int32), state.strange
        code, strange = self.envelope.watch(grads, state.steps, state.strange)
        return jnp.where(state.fits, code, jnp.int32(Result.OUTSIDE_SIZE)), strange

    def settled(self, params: Params, state: GuardState) -> Params:
        """Return the params to keep when the run ends: those given, or, where a trial is under way, those from which
        the fallback would go on."""
        if state.watch is None:
            return params
        away = (state.watch.phase == TRIAL) | (state.watch.returning > 0)
        point = jax.tree.map(lambda to, like: to.astype(like.dtype), state.watch.point, params)
        return trees.where(away, point, params)

    def report(self, state: GuardState) -> dict[str, Any]:
        """Return the counters by name, and the reason of the last decision and of the envelope in words."""
        counted = ("steps", "learned_steps", "bad_inputs", "replaced", "outside")
        told: dict[str, Any] = {name: _plain(getattr(state, name)) for name in counted}
        if (watch := state.watch) is not None:
            told |= {
                name: _plain(getattr(watch, name)) for name in ("discarded", "trials", "won", "rollbacks", "stalls")
            }
            told["reason"] = _in_words(watch.reason, lambda result: result.sentence)
        if self.envelope is not None:
            told["envelope"] = _in_words(state.border, lambda result: result.of_border)
        return told


_NO_LOSS = (
    "The guard was given no loss, so it cannot compare: until the first one, the learned optimizer moves the params,"
    " and all that is left is that updates are finite; after it, whoever moved them goes on. Call update(grads,"
    " state, params, value=loss), inside of transformations that pass the value on."
)


def _sound(updates: Params, state: State, params: Params | None) -> Bool[Array, ""]:
    """Whether updates, the state, and params after the updates are finite."""
    after = () if params is None else trees.add(params, updates)
    return trees.all_finite((updates, eqx.filter(state, eqx.is_inexact_array), after))


def _plain(number: Array) -> Any:
    """A number, or a list of them for a batch of states."""
    return np.asarray(number).tolist()


def _in_words(code: Array, say: Callable[[Result], str]) -> Any:
    words = [say(Result(one)) for one in np.ravel(np.asarray(code))]
    return words[0] if jnp.ndim(code) == 0 else words
