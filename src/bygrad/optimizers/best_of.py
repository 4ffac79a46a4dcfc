"""The better of two runs: for deterministic problems, and for those who can pay for the certainty."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from .._core import trees
from .._core.types import Params, State
from .base import Optimizer, Scheduled, check_parts, declare, one_loss, whole_steps
from .hand_designed import Adam

_WORST = 1e30
"""What a loss that is not finite counts as."""


class Run(eqx.Module):
    """One of the two runs: where it evaluates next, its optimizer's state, and how many losses it has seen."""

    params: Params
    state: State
    evaluations: Int[Array, ""]


class BestOfState(eqx.Module):
    """State of `BestOf`: both runs, whose turn it is, the best point seen so far with its loss, and the horizon that
    was declared for this run."""

    learned: Run
    fallback: Run
    learneds_turn: Bool[Array, ""]
    steps: Int[Array, ""]
    best: Params
    best_value: Float[Array, ""]
    best_is_learned: Bool[Array, ""]
    horizon: Int[Array, ""]


class BestOf(Optimizer, Scheduled):
    r"""Runs `learned` and `fallback` from the start, each on its own, and keeps the best point that either has seen.

    A call gives one evaluation to one of the runs: of the first $t$ calls the learned optimizer gets
    $\lfloor \text{share} \cdot t \rfloor$. The params jump between the runs; with `horizon`, the update of the last
    call leads to the best point.

    For deterministic losses, and whatever `learned` is, the best loss after $t$ calls is at most the best of the
    fallback alone after $t - \lfloor \text{share} \cdot t \rfloor$ calls, and at most that of `learned` alone after
    $\lfloor \text{share} \cdot t \rfloor$, up to the rounding of the jumps: never worse than the fallback, for
    $1 / (1 - \text{share})$ times its evaluations. Losses of different minibatches cannot be compared like that: use
    `Guard` for them.

    **Arguments:** `fallback`: `Adam(1e-3)` unless you know better. `share`: of the evaluations that the learned
    optimizer gets. `horizon`: calls of a run, the last one included, as `declare` says later; each of the two is told
    its part of them. `None`: nobody has said, and `best` gives the result.

    >>> from bygrad.optimizers import SGD
    >>> both = BestOf(SGD(10.0), SGD(0.1), horizon=20)  # one of the two diverges
    >>> params = jnp.ones(2)
    >>> state = both.init(params)
    >>> for _ in range(20):
    ...     value, grads = jax.value_and_grad(lambda p: jnp.sum(p**2))(params)
    ...     updates, state = both.update(grads, state, params, value=value)
    ...     params = params + updates
    >>> bool(jnp.allclose(params, 0.8**9, rtol=1e-3))
    True
    """

    learned: Optimizer
    fallback: Optimizer
    share: float = eqx.field(static=True)
    horizon: Int[Array, ""]  # 0 if nobody declared it

    def __init__(
        self,
        learned: Optimizer,
        fallback: Optimizer | None = None,
        *,
        share: float = 0.5,
        horizon: int | None = None,
    ):
        if not 0 < share < 1:
            raise ValueError(f"share={share}: one of the two would never run. Give a share between 0 and 1.")
        self.learned, self.fallback = learned, Adam(jnp.asarray(1e-3)) if fallback is None else fallback
        check_parts("BestOf", self.learned, self.fallback)
        self.share, self.horizon = share, jnp.zeros((), jnp.int32)
        if horizon is not None:
            self.learned, self.fallback, self.horizon = self._declared(horizon)

    def declare(self, horizon: int | Int[Array, ""]) -> "BestOf":
        return eqx.tree_at(lambda it: (it.learned, it.fallback, it.horizon), self, self._declared(horizon))

    def _declared(self, horizon: int | Int[Array, ""]) -> tuple[Optimizer, Optimizer, Int[Array, ""]]:
        """Return both optimizers, each for as many steps as it gets calls, and the horizon."""
        calls = whole_steps(horizon)
        ours, theirs = self._learneds(calls), calls - self._learneds(calls)
        return declare(self.learned, jnp.maximum(ours, 1)), declare(self.fallback, jnp.maximum(theirs, 1)), calls

    def _learneds(self, calls: Int[Array, ""]) -> Int[Array, ""]:
        """Return how many of the first calls are the learned optimizer's."""
        return jnp.floor(self.share * calls + 1e-4).astype(jnp.int32)

    def init(self, params: Params) -> BestOfState:
        count, wide = jnp.zeros((), jnp.int32), trees.widened(params)
        no = jnp.zeros((), bool)
        state = BestOfState(
            learned=Run(wide, self.learned.init(params), count),
            fallback=Run(wide, self.fallback.init(params), count),
            learneds_turn=no,
            steps=count,
            best=wide,
            best_value=jnp.asarray(_WORST, float),  # float64 where there is one: losses may differ by less than 1e-7
            best_is_learned=no,
            horizon=self.horizon,
        )
        return trees.copied(state)

    def update(
        self,
        grads: Params,
        state: BestOfState,
        params: Params | None = None,
        *,
        value: Float[Array, ""] | float | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Params, BestOfState]:
        if value is None or params is None:
            raise ValueError(
                "BestOf.update needs params and value: without losses there is no better one of two runs. Give both"
                " (`value=loss`), or use Guard, which can do without."
            )
        turn, wide, value = state.learneds_turn, trees.widened(params), one_loss(value)
        loss = jnp.where(jnp.isfinite(value), jnp.minimum(value.astype(state.best_value.dtype), _WORST), _WORST)
        better = loss < state.best_value
        best, best_value = trees.where(better, (wide, loss), (state.best, state.best_value))

        seen = grads, params, value
        home = state.fallback.params

        # Only the one whose turn it is takes a step: that of the other would be thrown away.
        learned, fallback = (
            trees.seldom(its, functools.partial(self._advance, optimizer, home, seen, key), run)
            for its, optimizer, run in ((turn, self.learned, state.learned), (~turn, self.fallback, state.fallback))
        )
        steps = state.steps + 1
        # The next call is number steps + 1: it is the learned optimizer's if its part then grows to the next whole.
        next_turn = self._learneds(steps + 1) > self._learneds(steps)
        goal = trees.where(next_turn, learned.params, fallback.params)
        goal = trees.where((state.horizon > 0) & (steps >= state.horizon), best, goal)
        updates = jax.tree.map(lambda to, at, grad: (to - at).astype(grad.dtype), goal, wide, grads)
        updates = trees.where(trees.all_finite(updates), updates, jax.tree.map(jnp.zeros_like, grads))
        return updates, BestOfState(
            learned=learned,
            fallback=fallback,
            learneds_turn=next_turn,
            steps=steps,
            best=best,
            best_value=best_value,
            best_is_learned=jnp.where(better, turn, state.best_is_learned),
            horizon=state.horizon,
        )

    def best(self, state: BestOfState) -> Params:
        """Return the best point seen, in float32 or wider."""
        return state.best

    def _advance(
        self, optimizer: Optimizer, home: Params, seen: tuple[Params, Params, Array], key: PRNGKeyArray | None, run: Run
    ) -> Run:
        """Take a run's step from where it was evaluated. A run that stops being finite, or strays so far that the way
        from there to `home` would be rounded off, stays where it is."""
        grads, params, value = seen
        updates, state = optimizer.update(grads, run.state, params, value=value, key=key)
        after = trees.add(run.params, updates)
        sound = trees.all_finite((after, eqx.filter(state, eqx.is_inexact_array)))
        sound &= trees.near(jax.tree.map(lambda here, there: here + (there - here), after, home), home)
        return trees.where(sound, Run(after, state, run.evaluations + 1), run)
