"""The meta-gradient by replay, exact or from a random part of the coordinates."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree, Shaped

from .._core import trees
from ..optimizers import Coordinatewise, Optimizer, Partition
from ..unroll import (
    Inner,
    Trajectory,
    Windows,
    cotangents,
    instance_axes,
    replay,
    replay_coordinates,
    replay_in_segments,
    replay_parts,
    rollout,
    without_lost,
)
from . import particles
from .base import Estimate, Estimator, mean_of_live

COORDINATES_BRANCH = 2**31 + 0xC0
"""Branch of the key of a step that coordinates are drawn from. Lower numbers are what the key is split into."""


class Replay(Estimator):
    r"""Rolls a window out, then replays the optimizer alone on what it saw (`bygrad.unroll.replay`).

    Equal to `Backprop(second_derivatives=False)`, without a graph through the problem: neither its activations nor
    second derivatives are needed, only values and gradients. An instance whose losses or gradients are not finite is
    left out, and a fresh one takes its place.

    For a coordinatewise optimizer, alone or as part of a partition, `coordinates < 1` replays a random part of each
    instance's coordinates. Coordinate $i$ is taken with probability proportional to a mixture of the size of its
    cotangents and of a constant, and weighted by the inverse, so that the estimate stays unbiased; coordinates without
    cotangent are never taken.

    **Arguments:** `coordinates`: the part to replay, in (0, 1]. `segment`: steps to keep in memory at a time, a divisor
    of the truncation: the window is then rolled out twice, and replayed segment by segment, exactly
    (`bygrad.unroll.replay_in_segments`). For long windows that do not fit in memory: for an LSTM of above 100 steps,
    best near 5 times their square root (`bygrad.unroll.best_segment`); shorter ones need more memory in segments. 0
    keeps the whole window. `last`: how many losses at the end of a window are its meta-loss; 0 stands for all. With a
    truncation of the whole horizon, for who cares about where a run ends and not about how it gets there.
    """

    coordinates: float = eqx.field(static=True, default=1.0)
    segment: int = eqx.field(static=True, default=0)
    last: int = eqx.field(static=True, default=0)

    def __check_init__(self) -> None:
        if not 0 < self.coordinates <= 1:
            raise ValueError(
                f"coordinates is {self.coordinates}, but it is the part of the coordinates to replay: give a number"
                " above 0 and at most 1 (1 for the exact meta-gradient)."
            )
        for name in ("segment", "last"):
            if not isinstance(value := getattr(self, name), int):
                raise TypeError(f"{name} is {value!r}, but counts steps of a window. Give a whole number.")
        if self.last < 0 or (self.segment and self.last):
            raise ValueError(
                f"segment={self.segment}, last={self.last}: the meta-loss cannot be the mean of so many losses, or of"
                " some of them where a window is kept in segments. Give 0 for all, or a number above 0 with segment=0."
            )
        if self.segment < 0 or (self.segment and self.coordinates < 1):
            raise ValueError(
                f"segment={self.segment}, coordinates={self.coordinates}: a window in segments is replayed exactly, as"
                " the coordinates to take are known only when all of it has been seen. Give a segment of 0 or more, and"
                " coordinates=1 with one above 0."
            )

    def init(self, optimizer: Optimizer, windows: Windows, key: PRNGKeyArray) -> Inner:
        return windows.begin(optimizer, key)

    def axes(self, optimizer: Optimizer, state: Inner) -> Inner:
        return instance_axes(optimizer, state)

    def estimate(self, optimizer: Optimizer, windows: Windows, state: Inner) -> tuple[Estimate, Inner]:
        state = windows.renew(optimizer, state)
        if self.segment:
            return self._in_segments(optimizer, windows, state)
        end, trajectory = rollout(optimizer, windows.family, state, windows.truncation)
        if self.last > windows.truncation:
            raise ValueError(
                f"last={self.last}, but a window has {windows.truncation} steps, all of which would count. Give a"
                " truncation of at least as many, or fewer (0: all)."
            )
        count = self.last or windows.truncation
        after = jnp.concatenate([trajectory.value[1:], trajectory.end_value[None]])
        losses = jnp.mean(after[windows.truncation - count :], axis=0)
        weights = jax.tree.map(lambda cot: cot / losses.size / count, cotangents(trajectory, count))
        # The sum of all of an instance's gradients is finite only if each of them is.
        sums = jax.tree.map(lambda grads, weight: grads[0] + weight[0], trajectory.grads, weights)
        live = jnp.isfinite(losses) & trees.finite_rows(sums)
        trajectory, weights = without_lost(optimizer, trajectory, weights, live)
        # From the keys of the step that comes next, which are its loss's and its optimizer's in the lower branches.
        ahead = jax.vmap(jax.random.fold_in)(end.key, end.step)
        keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(ahead, COORDINATES_BRANCH)
        gradient = self._replay(optimizer, trajectory, weights, keys=keys)
        return mean_of_live(windows, gradient, losses, live), particles.give_up(windows, end, live)

    def _in_segments(self, optimizer: Optimizer, windows: Windows, state: Inner) -> tuple[Estimate, Inner]:
        if windows.truncation % self.segment:
            raise ValueError(
                f"The truncation of {windows.truncation} steps is not a multiple of the segment of {self.segment}, so a"
                " window would end inside one. Choose a segment that divides the truncation."
            )
        end, losses, gradient = replay_in_segments(optimizer, windows.family, state, windows.truncation, self.segment)
        gradient = jax.tree.map(lambda leaf: leaf / losses.size / windows.truncation, gradient)
        live = jnp.isfinite(losses)
        return mean_of_live(windows, gradient, losses, live), particles.give_up(windows, end, live)

    def _replay(
        self,
        optimizer: Optimizer,
        trajectory: Trajectory,
        weights: PyTree,
        *,
        keys: Shaped[PRNGKeyArray, " instances"],
    ) -> PyTree:
        if self.coordinates < 1 and isinstance(optimizer, Partition):
            return replay_parts(optimizer, trajectory, weights, lambda *one: self._replay(*one, keys=keys))
        if self.coordinates < 1 and isinstance(optimizer, Coordinatewise) and weights.size:
            return self._replay_some(optimizer, trajectory, weights, keys)
        return replay(optimizer, trajectory, weights)

    def _replay_some(
        self,
        optimizer: Coordinatewise,
        trajectory: Trajectory,
        weights: Float[Array, "k b n"],
        keys: Shaped[PRNGKeyArray, " instances"],
    ) -> PyTree:
        count = max(1, round(self.coordinates * weights.shape[2]))
        size = jnp.sqrt(jnp.sum(jnp.square(weights), axis=0))
        chosen, importance = jax.vmap(lambda size, key: choose_coordinates(size, count, key))(size, keys)

        def gather(array: Shaped[Array, "... b n"]) -> Shaped[Array, "... bm"]:
            return trees.take_coordinates(array, chosen).reshape(*array.shape[:-2], -1)

        cots = gather(weights) * importance.reshape(-1)
        return replay_coordinates(optimizer, gather(trajectory.grads), jax.tree.map(gather, trajectory.start), cots)


UNIFORM = 0.3
"""Of the probability by which coordinates are drawn, the part that is the same for all."""

UNITS = 2.0**31
"""Into how many parts a sum over coordinates is divided: half of the whole numbers of 32 bits, as lengths are rounded
up."""


def choose_coordinates(
    size: Float[Array, " n"], count: int, key: PRNGKeyArray
) -> tuple[Int[Array, " count"], Float[Array, " count"]]:
    r"""Draw `count` coordinates, with weights that make sums over them unbiased: $E \sum_j w_j x_{i_j} = \sum_i x_i$
    over the coordinates of nonzero `size`.

    Probabilities are $1 - $ `UNIFORM` times the share of the size, plus `UNIFORM` spread evenly over nonzero sizes: the
    constant part bounds the weights, since a large gradient of the optimizer can go with a small cotangent.
    Systematic sampling: equally spaced points with one random shift, whose number in an interval varies by less than
    one. Weights are zero if all sizes are, and NaN if their sum is not finite, so that the estimate shows it.
    """
    size = size.astype(jnp.promote_types(size.dtype, jnp.float32))
    alive = size > 0
    total, living = jnp.sum(size), jnp.sum(alive)
    share = (1 - UNIFORM) * size / jnp.where(total > 0, total, 1) + UNIFORM * alive / jnp.maximum(living, 1)
    # Intervals are whole numbers, and weights go by what these are: a running sum of floats is rounded by as much as a
    # coordinate's share where there are millions of them, whereas these are added without any rounding. The shift has
    # 23 bits, so that a probability is still off by 4e-7 of itself, divided by the part that is taken, at most.
    length = jnp.ceil(UNITS * share).astype(jnp.uint32)
    ends = jnp.cumsum(length, dtype=jnp.uint32)
    step = (ends[-1] + jnp.uint32(count - 1)) // jnp.uint32(count)
    shift = (jax.random.uniform(key, dtype=size.dtype) * step).astype(jnp.uint32)
    points = shift + jnp.arange(count, dtype=jnp.uint32) * step
    # Where the step is rounded up, the last points may lie behind the last interval: they belong to no coordinate.
    chosen = jnp.minimum(jnp.searchsorted(ends, points, side="right"), size.shape[0] - 1)
    weight = jnp.where(points < ends[-1], step / jnp.maximum(length[chosen], 1), 0).astype(size.dtype)
    return chosen.astype(jnp.int32), jnp.where(jnp.isfinite(total), weight, jnp.nan)
