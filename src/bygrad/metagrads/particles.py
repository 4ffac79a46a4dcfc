r"""What estimators with a random direction for every instance have in common.

An instance is a particle: it has a direction $\epsilon \sim N(0, I)$ in the space of $\theta$, drawn from the key of
its run. An antithetic pair runs one instance twice, with $\theta + \sigma \epsilon$ and $\theta - \sigma \epsilon$; the
two share everything random: instance, start, minibatches, and the time when they are renewed. That coupling is where
most of the precision comes from.
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree, Shaped

from .._core import trees
from .._core.draws import normals
from ..optimizers import Optimizer
from ..unroll import Inner, Windows, lift_by_vmap, run
from .base import Estimate

DIRECTION_BRANCH = 2**31 + 0xE5
"""Branch of the key of a run that its directions are drawn from. Lower numbers are those of its steps."""

LARGEST = 3.0
"""Differences beyond so many times the median are clipped, in the robust form."""


class Pairs(eqx.Module):
    """Pairs under way: params and optimizer states of `inner` have leaves `[2, instances, ...]`, plus and minus; what
    the two share, `[instances, ...]`. `past`: sum of the directions of earlier windows, for those who need it."""

    inner: Inner
    past: PyTree


def check_sigma(sigma: float) -> None:
    """Refuse a distance of zero, or none, between the members of a pair."""
    if not isinstance(sigma, int | float | np.number) or not 0 < sigma < math.inf:
        raise ValueError(f"sigma is {sigma!r}, but pairs must differ to tell anything: give a positive number.")


def axes(state: Pairs) -> Pairs:
    """Return the axis of the instances of every leaf."""
    first = jax.tree.map(lambda leaf: 0, state)
    return Pairs(_with_state(first.inner, jax.tree.map(lambda leaf: 1, _members(state.inner))), first.past)


def begin(optimizer: Optimizer, windows: Windows, key: PRNGKeyArray, *, past: bool = False) -> Pairs:
    """Begin the inner problems, both members of a pair alike."""
    inner = windows.begin(optimizer, key, lift_by_vmap)
    count = windows.instances
    zeros = jax.tree.map(lambda leaf: jnp.zeros((count, *leaf.shape), leaf.dtype), _theta(optimizer))
    return Pairs(twice(inner), zeros if past else None)


def renew(optimizer: Optimizer, windows: Windows, state: Pairs) -> Pairs:
    """Replace the pairs that have reached the horizon by fresh ones."""
    done = windows.done(state.inner)

    def renewed(inner: Inner) -> Inner:
        return windows.renew(optimizer, inner, lift_by_vmap)

    inner_axes = _signs(state.inner)
    inner = jax.vmap(renewed, in_axes=(inner_axes,), out_axes=inner_axes)(state.inner)
    past = jax.tree.map(lambda leaf: jnp.where(trees.along_rows(done, leaf), 0, leaf), state.past)
    return Pairs(inner, past)


def directions(
    optimizer: Optimizer, keys: Shaped[PRNGKeyArray, " instances"], steps: Int[Array, " instances"] | None = None
) -> PyTree:
    """Draw a direction for every run, from its key; with `steps`, another one for every window."""
    leaves, structure = jax.tree.flatten(_theta(optimizer))

    def one(key: PRNGKeyArray, step: Any) -> list[Array]:
        key = jax.random.fold_in(key, DIRECTION_BRANCH)
        key = key if step is None else jax.random.fold_in(key, step)
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(len(leaves)))
        drawn = normals(keys, [leaf.shape for leaf in leaves])
        return [normal.astype(leaf.dtype) for normal, leaf in zip(drawn, leaves, strict=True)]

    return jax.tree.unflatten(structure, jax.vmap(one, in_axes=(0, None if steps is None else 0))(keys, steps))


def shifted(optimizer: Optimizer, direction: PyTree, size: Any) -> Optimizer:
    r"""Return the optimizer at $\theta$ + `size` · `direction`."""
    return eqx.apply_updates(optimizer, jax.tree.map(lambda leaf: (size * leaf).astype(leaf.dtype), direction))


def scaled(factors: Float[Array, " instances"], leaf: Float[Array, "instances ..."]) -> Float[Array, "instances ..."]:
    """Return a part of every particle's direction times a factor of its own, in the dtype of the meta-parameters."""
    return trees.along_rows(factors, leaf).astype(leaf.dtype) * leaf


def run_pairs(
    optimizer: Optimizer, windows: Windows, inner: Inner, direction: PyTree, sigma: float
) -> tuple[Inner, Float[Array, "2 instances"]]:
    """Run every pair through a window; return where its members end and their mean losses after each update."""

    def particle(sign: Array, direction: PyTree, inner: Inner) -> tuple[Inner, Array]:
        end, losses = run(shifted(optimizer, direction, sign * sigma), windows.family, inner, windows.truncation)
        return end, jnp.mean(losses[1:])

    inner_axes = _signs(inner)
    each = jax.vmap(particle, in_axes=(None, 0, 0))
    run_both = jax.vmap(each, in_axes=(0, None, inner_axes), out_axes=(inner_axes, 0))
    return run_both(jnp.array([1.0, -1.0]), direction, inner)


def give_up(windows: Windows, inner: Inner, live: Bool[Array, " instances"]) -> Inner:
    """Let the instances that are lost end here: the next window begins with fresh ones in their place."""
    end = jnp.maximum(inner.step, windows.horizons(inner.key))
    return eqx.tree_at(lambda it: it.step, inner, jnp.where(live, inner.step, end))


def robust(
    windows: Windows,
    differences: Float[Array, " instances"],
    live: Bool[Array, " instances"],
    heard: Bool[Array, " instances"],
) -> tuple[Float[Array, " instances"], Float[Array, ""]]:
    """Divide by the median of the absolute values over the live particles of all devices, and clip; return the share
    of those that are heard that were clipped as well."""
    sizes = windows.everywhere(jnp.where(live, jnp.abs(differences), jnp.nan))
    median = jnp.nanmedian(sizes)
    return cut(windows, differences / jnp.where(median > 0, median, 1), heard, LARGEST)


def cut(
    windows: Windows, differences: Float[Array, " instances"], live: Bool[Array, " instances"], largest: float
) -> tuple[Float[Array, " instances"], Float[Array, ""]]:
    """Clip differences at `largest`, and return the share of the live particles that were clipped as well."""
    clipped = jnp.abs(differences) > largest
    return jnp.clip(differences, -largest, largest), _mean(windows, clipped.astype(differences.dtype), live)


def combine(
    windows: Windows,
    gradients: PyTree,
    losses: Float[Array, " instances"],
    live: Bool[Array, " instances"],
    clipped: Float[Array, ""] | float = 0.0,
) -> Estimate:
    """Average the gradients `[instances, ...]` of the particles that are not lost.

    If all are, the estimate is not a number: there is none, and whoever asked for it must know.
    """
    gradient = jax.tree.map(lambda leaf: _mean(windows, leaf, live), gradients)
    squares = sum(
        (jnp.sum(jnp.square(leaf).reshape(leaf.shape[0], -1), axis=1) for leaf in jax.tree.leaves(gradients)),
        start=jnp.zeros(live.shape),
    )
    return Estimate(
        loss=_mean(windows, losses, live),
        gradient=gradient,
        losses=losses,
        square=_mean(windows, squares, live),
        clipped=jnp.asarray(clipped, losses.dtype),
        lost=1 - jnp.mean(live.astype(losses.dtype)),
    )


def _mean(windows: Windows, array: Float[Array, "instances ..."], live: Bool[Array, " instances"]) -> Array:
    """Average over the live instances: the mean over the devices of what this returns is that over all of them."""
    part = jnp.mean(windows.everywhere(live).astype(array.dtype))
    return jnp.mean(jnp.where(trees.along_rows(live, array), array, 0), axis=0) / part


def _theta(optimizer: Optimizer) -> PyTree:
    return eqx.filter(optimizer, eqx.is_inexact_array)


def member(inner: Inner) -> Inner:
    """Return the plus member of every pair, as a batch of inner problems."""
    return _with_state(inner, trees.rows(_members(inner), 0))


def twice(inner: Inner) -> Inner:
    """Return pairs whose members stand at the same place."""
    return _with_state(inner, jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), _members(inner)))


def _members(inner: Inner) -> tuple[Any, Any]:
    """What each member of a pair has of its own."""
    return inner.params, inner.optimizer_state


def _with_state(inner: Inner, members: tuple[Any, Any]) -> Inner:
    params, state = members
    return trees.replaced(inner, params=params, optimizer_state=state)


def _signs(inner: Inner) -> Inner:
    """Return the axis of plus and minus of every leaf; `None` for what they share."""
    return _with_state(jax.tree.map(lambda leaf: None, inner), jax.tree.map(lambda leaf: 0, _members(inner)))
