"""Draws of many arrays at once: the numbers are those of one draw each."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bygrad._core.draws import SEEDS, check_seed, normals

SHAPES = st.lists(st.lists(st.integers(0, 7), max_size=3).map(tuple), max_size=5)


@settings(max_examples=15)
@given(shapes=SHAPES, seed=st.integers(0, 2**31 - 1))
def test_every_array_has_the_numbers_of_its_own_key(shapes: list[tuple[int, ...]], seed: int):
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    drawn = normals(keys, shapes)
    assert [it.shape for it in drawn] == shapes
    for key, shape, found in zip(keys, shapes, drawn, strict=True):
        np.testing.assert_array_equal(found, jax.random.normal(key, shape))


@pytest.mark.core
def test_arrays_of_all_sizes_under_vmap():
    shapes = [(40, 30), (30,), (), (30, 40), (3,)]

    def draw(key):
        return normals(jax.random.split(key, len(shapes)), shapes)

    keys = jax.random.split(jax.random.key(1), 3)
    together = jax.jit(jax.vmap(draw))(keys)
    for row, key in enumerate(keys):
        for one, shape, own in zip(together, shapes, jax.random.split(key, len(shapes)), strict=True):
            # Compiled into another program, the same bits become normals that differ by rounding.
            np.testing.assert_allclose(one[row], jax.random.normal(own, shape), rtol=1e-6, atol=1e-7)


@pytest.mark.core
def test_seeds_that_draw_what_others_draw_are_refused():
    same, small = jax.random.key(SEEDS + 3), jax.random.key(3)
    np.testing.assert_array_equal(*(jax.random.key_data(key) for key in (same, small)))
    with pytest.raises(ValueError, match=r"the same would be drawn as from 3\. Give 0 or more, and less than 2\^32"):
        check_seed(SEEDS + 3)
    for seed, error in [(-1, ValueError), (1.5, TypeError), ("1", TypeError), (None, TypeError)]:
        with pytest.raises(error, match=rf"seed is {seed!r}"):
            check_seed(seed)
    for seed in (0, SEEDS - 1, np.int64(7), np.uint32(SEEDS - 1)):
        check_seed(seed)
        jax.random.key(seed)
