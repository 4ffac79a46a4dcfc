"""Imitation of runs that were recorded once, before anything is learned from what is achieved."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree, Shaped

from .._core import trees
from .._core.draws import own_keys
from ..optimizers import Coordinatewise, Optimizer, Partition
from ..unroll import Trajectory, Windows, begin, lift, replay, rollout
from .base import Estimate, Estimator, mean_of_live
from .imitation import arrange, as_teacher, check_teacher, count_of, follow, mean_squares

KEPT = 16
"""How many times the coordinates of a meta-step are kept on record, drawn once: all of a long run fill the memory."""

COORDINATES_BRANCH = 2**31 + 0xC1
"""Branch of the key of an instance that its coordinates are drawn from. Lower numbers are those of the problem: from
its own key, the coordinates drawn would be those that begin at the lowest params."""

LEAST = 0.02
"""Part of the run's mean square that is added to a step's own, so that steps of almost nothing do not weigh most."""


class Recorded(eqx.Module):
    """State of `Clone`: what the teacher saw and did, whole runs; by how much the mean square of the errors in each
    array counts at a step; keys to draw coordinates; and meta-steps done."""

    seen: Trajectory
    taught: PyTree
    weights: PyTree[Float[Array, "steps instances"]]
    keys: Shaped[PRNGKeyArray, " instances"]
    step: Int[Array, " instances"]


class Clone(Estimator):
    r"""The gradient of an imitation loss alone, on runs of a teacher that are recorded at the start and used again and
    again.

    The teacher runs over the whole horizon, once for each instance. In every meta-step the pupil sees, from its own
    start, the gradients that the teacher met, and is drawn to its updates $u^*$:

    $$\ell = \tfrac{1}{2} \operatorname{mean}_t \frac{\operatorname{mean} (u_t - u_t^*)^2}{s_t + 0.02 \bar s},
    \qquad s_t = \operatorname{mean} (u_t^*)^2$$

    so that the small steps late in a run count as well. About 1/2 is a pupil that stands still; this is the meta-loss
    that is reported. No problem is evaluated after the recording, so a meta-step costs what the optimizer costs: where
    a gradient is expensive, this finds a place to begin that learning from what is achieved would take long to find.
    Instances on which the teacher's run is not finite are left out.
    The pupil never sees where its own mistakes lead; go on from there with another estimator (`Recipe.before`).

    **Arguments:** `teacher`: what to imitate, any optimizer; it does not learn. Its horizon is declared, the longest of
    the windows'. `coordinates`: how many of each instance a meta-step takes, at random, where the pupil is
    coordinatewise, or of each part of a partition that is; others see all of them. The records are kept in memory,
    three numbers for each param, instance and step, and in checkpoints; where coordinates are drawn, of `KEPT` times as
    many params.

    **Source:** behavioural cloning (Pomerleau, 1989), with the optimizer as the policy.
    """

    teacher: Optimizer
    coordinates: int = eqx.field(static=True, default=128)

    def __check_init__(self) -> None:
        check_teacher(self.teacher)
        if not isinstance(self.coordinates, int) or self.coordinates < 1:
            raise ValueError(
                f"coordinates is {self.coordinates!r}, but counts the coordinates of an instance to look at in a"
                " meta-step. Give a whole number of at least 1, or nothing would be imitated."
            )

    @property
    def differentiates(self) -> bool:
        return False  # but for the imitation loss, in which those of the problem do not occur

    @property
    def when_all_are_lost(self) -> str:
        return "no run of the teacher is finite: it diverges on this family, so lower its learning rate"

    def init(self, optimizer: Optimizer, windows: Windows, key: PRNGKeyArray) -> Recorded:
        keys = own_keys(jax.random.split(key, windows.instances))
        teacher, lifted = as_teacher(self.teacher, windows.horizon), lift(optimizer)
        inner = begin(teacher, windows.family, keys)
        end, seen = rollout(teacher, windows.family, inner, windows.horizon)
        seen, taught, live = arrange(lifted, lifted.init(inner.params), end, seen)
        # By this a checkpoint tells as well which instances are left out.
        seen = eqx.tree_at(lambda it: it.end_value, seen, jnp.where(live, seen.end_value, jnp.nan))
        size = mean_squares(taught)
        size = size + LEAST * jnp.mean(size, axis=0)
        weight = jnp.where(size > 0, 1 / jnp.where(size > 0, size, 1), 0)
        # An array counts by its size, whatever part of it is drawn.
        count = count_of(taught)
        weights = jax.tree.map(lambda leaf: weight * (count_of(leaf) / count), taught)
        keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, COORDINATES_BRANCH)
        seen, taught = _draw(optimizer, seen, taught, keys, KEPT * self.coordinates)
        return Recorded(seen, taught, weights, keys, jnp.zeros(windows.instances, jnp.int32))

    def axes(self, optimizer: Optimizer, state: Recorded) -> PyTree:
        second = jax.tree.map(lambda leaf: 1, state)  # behind the steps
        first = lambda it: (it.seen.end_grads, it.seen.end_value, it.keys, it.step)  # noqa: E731
        axes = eqx.tree_at(first, second, jax.tree.map(lambda leaf: 0, first(state)))
        start = lift(optimizer).axes(state.seen.start)
        return trees.replaced(axes, seen=trees.replaced(axes.seen, start=start))

    def estimate(self, optimizer: Optimizer, windows: Windows, state: Recorded) -> tuple[Estimate, Recorded]:
        keys = jax.vmap(jax.random.fold_in)(state.keys, state.step)
        seen, taught = _draw(optimizer, state.seen, state.taught, keys, self.coordinates)
        _, updates = follow(lift(optimizer), seen)
        errors = jax.tree.map(jnp.subtract, updates, taught)
        pairs = zip(jax.tree.leaves(state.weights), jax.tree.leaves(errors), strict=True)
        each = (jnp.mean(0.5 * weight * mean_squares(error), axis=0) for weight, error in pairs)
        losses = sum(each, start=jnp.zeros(()))
        live = jnp.isfinite(state.seen.end_value)

        def cotangent(weight: Array, error: Array) -> Array:
            scale = weight / weight.size / max(1, count_of(error))
            return scale.reshape(*scale.shape, *(1,) * (error.ndim - 2)) * error

        cots = jax.tree.map(cotangent, state.weights, errors)
        after = eqx.tree_at(lambda it: it.step, state, state.step + 1)
        return mean_of_live(windows, replay(optimizer, seen, cots), jnp.where(live, losses, jnp.nan), live), after


def _draw(
    optimizer: Optimizer, seen: Trajectory, taught: PyTree, keys: Shaped[PRNGKeyArray, " instances"], count: int
) -> tuple[Trajectory, PyTree]:
    """Draw `count` coordinates of every instance, or as many as there are; all of what is not coordinatewise."""
    parts = lambda it: (it.start, it.grads, it.params, it.end_grads)  # noqa: E731
    if isinstance(optimizer, Partition):
        drawn, done = {}, {}
        for name, updates in taught.items():
            part = eqx.tree_at(parts, seen, [tree[name] for tree in parts(seen)])
            drawn[name], done[name] = _draw(optimizer.parts[name], part, updates, keys, count)
        several = [{name: parts(one)[i] for name, one in drawn.items()} for i in range(len(parts(seen)))]
        return eqx.tree_at(parts, seen, several), done
    if not isinstance(optimizer, Coordinatewise) or count >= taught.shape[-1]:
        return seen, taught
    chosen = jax.vmap(lambda key: jax.random.permutation(key, taught.shape[-1])[:count])(keys)
    seen_there, taught_there = trees.take_coordinates((parts(seen), taught), chosen)
    return eqx.tree_at(parts, seen, seen_there), taught_there
