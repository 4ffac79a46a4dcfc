"""Draws of many arrays by few operations: each operation that draws takes a third of a second to compile, or more."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from .sizes import is_whole

SMALL = 10
"""Arrays with fewer entries than the largest one by this factor are drawn apart, so that little is drawn in vain."""


SEEDS = 2**32
"""How many seeds there are: of a larger number JAX takes the lowest 32 bits, unless it computes in float64."""


def check_seed(seed: Any) -> None:
    """**Raises:** `TypeError` for what is no whole number. `ValueError` for a seed below zero, which JAX takes, and
    NumPy, which draws at the end, does not; and for one so large that another one draws the same."""
    if not is_whole(seed):
        raise TypeError(f"seed is {seed!r}, from which nothing random can be drawn. Give a whole number: 0, say.")
    if not 0 <= seed < SEEDS:
        why = "not everything random can be drawn" if seed < 0 else f"the same would be drawn as from {seed % SEEDS}"
        raise ValueError(f"seed is {seed}, from which {why}. Give 0 or more, and less than 2^32.")


KIND = "threefry2x32"
"""The kind of keys that draw under `vmap` what each of them draws by itself. Of RBG keys, which JAX can be told to make
by default, as many programs on TPUs do, the whole batch is drawn from the first."""


def key_of(seed: Any) -> PRNGKeyArray:
    """Return the key of a seed, of the one `KIND` whatever JAX makes by default."""
    return jax.random.key(seed, impl=KIND)


def own_keys(keys: Shaped[PRNGKeyArray, "..."]) -> Shaped[PRNGKeyArray, "..."]:
    """Return keys of the one `KIND`: those that are given, or others made from all of their bits."""
    if str(jax.random.key_impl(keys)) == KIND:
        return keys

    def convert(words: Array) -> PRNGKeyArray:
        key = jax.random.wrap_key_data(words[:2], impl=KIND)
        for word in words[2:]:
            key = jax.random.fold_in(key, word)
        return key

    words = jax.random.key_data(keys)
    return jax.vmap(convert)(words.reshape(-1, words.shape[-1])).reshape(keys.shape)


def normals(keys: Shaped[PRNGKeyArray, " arrays"], shapes: Sequence[tuple[int, ...]]) -> list[Float[Array, "..."]]:
    """Draw standard normals of every shape, each from its own key; with JAX's own kind of keys, the numbers that
    `jax.random.normal` gives one by one.

    Of a longer draw from the same key, the beginning is the same. So what is of like size is drawn in one length.
    """
    sizes = [math.prod(shape) for shape in shapes]
    largest = max(sizes, default=0)
    drawn: dict[int, Array] = {}
    for large in (True, False):
        group = [i for i, size in enumerate(sizes) if (SMALL * size > largest) == large]
        if group:
            longest = max(sizes[i] for i in group)
            rows = jax.vmap(lambda key: jax.random.normal(key, (longest,)))(keys[jnp.array(group)])  # noqa: B023
            drawn |= dict(zip(group, rows, strict=True))
    return [drawn[i][:size].reshape(shape) for i, (size, shape) in enumerate(zip(sizes, shapes, strict=True))]
