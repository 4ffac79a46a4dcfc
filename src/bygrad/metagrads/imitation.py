"""Imitation of a hand-designed optimizer beside learning from what is achieved: Chen et al. (2020), section 3.2."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from .._core import trees
from .._core.types import Params, State
from ..optimizers import Optimizer, declare
from ..unroll import Inner, Lifted, Trajectory, Windows, lift, replay, rollout
from . import particles
from .base import Estimate, Estimator


class Imitated(eqx.Module):
    """State of `Imitate`: that of the estimator, the teacher's runs, the pupil's state along them, and the windows."""

    achieved: Any
    shown: Inner
    pupil: State
    windows: Int[Array, ""]


class _Teacher(Optimizer):
    """An optimizer that sees the params of an instance as they are, however else it likes to be applied to batches.

    Not `Scheduled`: where runs have horizons of their own, its schedule is that of the longest, as its pupil's is.
    """

    optimizer: Optimizer

    def init(self, params: Params) -> State:
        return self.optimizer.init(params)

    def update(
        self,
        grads: Params,
        state: State,
        params: Params | None = None,
        *,
        value: Float[Array, ""] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Params, State]:
        return self.optimizer.update(grads, state, params, value=value, key=key)


def check_teacher(teacher: Optimizer) -> None:
    """Refuse what cannot be imitated."""
    if not isinstance(teacher, Optimizer):
        raise TypeError(
            f"The teacher is {teacher!r}, which is no optimizer of this package. Give an instance of one, such as"
            " bygrad.Adam(1e-3)."
        )


def as_teacher(optimizer: Optimizer, horizon: int) -> Optimizer:
    """Return an optimizer for runs of a horizon, whose path any pupil can be shown."""
    return _Teacher(declare(optimizer, horizon))


class Imitate(Estimator):
    r"""Adds to every few windows' meta-gradient the gradient of an imitation loss.

    A teacher runs on instances of its own; the pupil sees the gradients that the teacher meets, and is drawn to its
    updates $u^*$, on the teacher's path, not on its own:

    $$\ell = \frac{\tfrac{1}{2} \operatorname{mean} (u - u^*)^2}{\operatorname{mean} (u^*)^2}$$

    Divided by the teacher's own size, so that the loss is 1/2 for a pupil that stands still, and its gradient is of a
    size that does not depend on the learning rate. The teacher knows what to do late in a run, where a young pupil
    never comes. Where a run of the teacher is not finite, it is left out, and a fresh one begins. The meta-loss that is
    reported is the estimator's.

    **Arguments:** `estimator`: of the meta-gradient. `teacher`: what to imitate, any optimizer; it does not learn, and
    one with a schedule has that of the longest runs. `weight`: of the imitation's gradient. `every`: windows from one
    imitation to the next; 4 adds about a quarter to the cost.

    **Source:** Chen, Zhang, Jingyang, Chang, Liu, Amini and Wang, *Training Stronger Baselines for Learning to
    Optimize* (NeurIPS 2020); there the two losses take turns at random.
    """

    estimator: Estimator
    teacher: Optimizer
    weight: float = eqx.field(static=True, default=0.1)
    every: int = eqx.field(static=True, default=4)

    def __check_init__(self) -> None:
        check_teacher(self.teacher)
        if not isinstance(self.every, int) or self.every < 1 or not self.weight > 0:
            raise ValueError(
                f"every={self.every}, weight={self.weight}: nothing would be imitated. Give a weight above 0 and a"
                " whole number of at least 1 for every, or use the estimator without imitation."
            )

    @property
    def differentiates(self) -> bool:
        return self.estimator.differentiates

    def init(self, optimizer: Optimizer, windows: Windows, key: PRNGKeyArray) -> Imitated:
        own, shown = jax.random.split(key)
        inner = windows.begin(as_teacher(self.teacher, windows.horizon), shown)
        pupil = lift(optimizer).init(inner.params)
        return Imitated(self.estimator.init(optimizer, windows, own), inner, pupil, jnp.zeros((), jnp.int32))

    def axes(self, optimizer: Optimizer, state: Imitated) -> PyTree:
        achieved, shown = self.estimator.axes(optimizer, state.achieved), jax.tree.map(lambda leaf: 0, state.shown)
        pupil = lift(optimizer).axes(state.pupil)
        return trees.replaced(state, achieved=achieved, shown=shown, pupil=pupil, windows=None)

    def estimate(self, optimizer: Optimizer, windows: Windows, state: Imitated) -> tuple[Estimate, Imitated]:
        estimate, achieved = self.estimator.estimate(optimizer, windows, state.achieved)

        def imitate(shown: Inner, pupil: State) -> tuple[PyTree, Inner, State]:
            return self._imitate(optimizer, windows, shown, pupil)

        def wait(shown: Inner, pupil: State) -> tuple[PyTree, Inner, State]:
            return jax.tree.map(jnp.zeros_like, estimate.gradient), shown, pupil

        turn = state.windows % self.every == 0
        drawn, shown, pupil = jax.lax.cond(turn, imitate, wait, state.shown, state.pupil)
        gradient = jax.tree.map(lambda own, other: own + self.weight * other, estimate.gradient, drawn)
        after = Imitated(achieved, shown, pupil, state.windows + 1)
        square = estimate.square
        if square is not None:  # the noise of the particles, about another mean
            own, both = (jnp.square(trees.global_norm(it)) for it in (estimate.gradient, gradient))
            square = square - own + both
        return dataclasses.replace(estimate, gradient=gradient, square=square), after

    def _imitate(
        self, optimizer: Optimizer, windows: Windows, shown: Inner, pupil: State
    ) -> tuple[PyTree, Inner, State]:
        """Let the teacher run for a window; return the gradient of the imitation loss, the runs, the pupil's state."""
        lifted, teacher = lift(optimizer), as_teacher(self.teacher, windows.horizon)
        done = windows.done(shown)
        shown = windows.renew(teacher, shown)
        start = lifted.select(done, lifted.init(shown.params), pupil)
        end, seen = rollout(teacher, windows.family, shown, windows.truncation)
        trajectory, taught, live = arrange(lifted, start, end, seen)
        pupil, updates = follow(lifted, trajectory)
        size = jnp.mean(windows.everywhere(jnp.mean(mean_squares(taught), axis=0)))
        count = sum(leaf.size for leaf in jax.tree.leaves(taught))
        scale = jnp.where(size > 0, 1 / jnp.where(size > 0, size, 1), 0) / count

        def cotangent(ours: Array, theirs: Array) -> Array:
            return scale * jnp.where(trees.along_rows(live, ours[0]), ours - theirs, 0)

        weights = jax.tree.map(cotangent, updates, taught)
        return replay(optimizer, trajectory, weights), particles.give_up(windows, end, live), pupil


def arrange(
    lifted: Lifted, start: State, end: Inner, seen: Trajectory
) -> tuple[Trajectory, PyTree, Bool[Array, " instances"]]:
    """Return a teacher's run as its pupil sees it, from the pupil's state `start`; the updates that were taken; and
    which instances' runs are finite. Of the others, nothing but zeros is seen: there is nothing to imitate."""
    path = jax.tree.map(lambda leaf, last: jnp.concatenate([leaf, last[None]]), seen.params, end.params)
    taught = jax.vmap(lifted.see)(jax.tree.map(lambda leaf: leaf[1:] - leaf[:-1], path))
    grads, params = jax.vmap(lifted.see)(seen.grads), jax.vmap(lifted.see)(seen.params)
    steps, ends = (grads, params, seen.value, taught), (lifted.see(seen.end_grads), seen.end_value)
    live = jnp.all(jax.vmap(trees.finite_rows)(steps), axis=0) & trees.finite_rows(ends)

    def known(tree: PyTree) -> PyTree:
        return trees.select_rows(live, tree, jax.tree.map(jnp.zeros_like, tree))

    (grads, params, value, taught), (end_grads, end_value) = jax.vmap(known)(steps), known(ends)
    return Trajectory(start, grads, params, value, seen.key, end_grads, end_value), taught, live


def follow(lifted: Lifted, trajectory: Trajectory) -> tuple[State, PyTree]:
    """Return a pupil's state at the end of a run that it only watches, and the updates that it would have taken."""

    def step(state: State, inputs: tuple[Any, ...]) -> tuple[State, PyTree]:
        updates, state = lifted.update(inputs[0], state, *inputs[1:])
        return state, updates

    inputs = trajectory.grads, trajectory.params, trajectory.value, trajectory.key
    return jax.lax.scan(step, trajectory.start, inputs)


def count_of(tree: PyTree) -> int:
    """Return how many numbers an instance has at a step; leaves are `[steps, instances, ...]`."""
    return sum(leaf[0, 0].size for leaf in jax.tree.leaves(tree))


def mean_squares(tree: PyTree) -> Float[Array, "steps instances"]:
    """Return the mean square of every step of every instance; 0 for a tree without entries."""
    tree = trees.widened(tree)  # in float16, squares of updates below 1e-4 are zero
    leaves = [jnp.square(leaf).reshape(*leaf.shape[:2], -1) for leaf in jax.tree.leaves(tree)]
    return sum((jnp.sum(leaf, axis=-1) for leaf in leaves), start=jnp.zeros(())) / max(1, count_of(tree))
