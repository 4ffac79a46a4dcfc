"""Trees as matrices, selections of rows, and names of leaves."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bygrad._core import trees

pytestmark = pytest.mark.core

SHAPES = st.lists(st.integers(0, 3), max_size=3).map(tuple)
LEAVES = st.lists(st.tuples(SHAPES, st.sampled_from([np.float16, np.float32])), min_size=1, max_size=4)


def batch(rows: int, leaves: list[tuple[tuple[int, ...], type]], seed: int) -> dict[str, jax.Array]:
    """A batch of trees, leaves `[rows, *shape]`."""
    draw = np.random.default_rng(seed).standard_normal
    return {f"{i}": jnp.asarray(draw((rows, *shape)), dtype) for i, (shape, dtype) in enumerate(leaves)}


@hypothesis.settings(max_examples=15)
@hypothesis.given(st.integers(1, 3), LEAVES, st.integers(0, 99))
def test_a_batch_of_trees_becomes_a_matrix_and_comes_back(rows, leaves, seed):
    tree = batch(rows, leaves, seed)
    matrix = trees.to_matrix(tree)
    for row in range(rows):
        coordinates = np.concatenate([np.ravel(leaf[row]) for leaf in tree.values()])
        np.testing.assert_array_equal(matrix[row], coordinates)
    back = trees.from_matrix(matrix, tree)
    assert back.keys() == tree.keys()
    for name, leaf in tree.items():
        assert (back[name].shape, back[name].dtype) == (leaf.shape, leaf.dtype)
        np.testing.assert_array_equal(back[name], leaf)


@hypothesis.settings(max_examples=8)
@hypothesis.given(LEAVES, st.lists(st.booleans(), min_size=1, max_size=4))
def test_rows_are_selected_whole(leaves, mask):
    yes, no = batch(len(mask), leaves, 0), batch(len(mask), leaves, 1)
    chosen = trees.select_rows(jnp.asarray(mask), yes, no)
    for name, leaf in chosen.items():
        for row, flag in enumerate(mask):
            np.testing.assert_array_equal(leaf[row], (yes if flag else no)[name][row])


def test_coordinates_are_taken_of_each_instance_by_itself():
    chosen = np.array([[3, 0], [1, 1]])
    leaves = {"grads": np.arange(24.0).reshape(3, 2, 4), "state": np.arange(48.0).reshape(2, 3, 2, 4)}
    taken = trees.take_coordinates(jax.tree.map(jnp.asarray, leaves), jnp.asarray(chosen))
    for name, leaf in leaves.items():
        for instance, coordinates in enumerate(chosen):
            np.testing.assert_array_equal(taken[name][..., instance, :], leaf[..., instance, coordinates])


def test_a_sum_keeps_the_dtypes_of_the_left():
    left = {"half": jnp.ones(2, jnp.float16), "single": jnp.ones((), jnp.float32)}
    total = trees.add(left, {"half": jnp.full(2, 0.5, jnp.float32), "single": jnp.asarray(2, jnp.float16)})
    assert {name: leaf.dtype for name, leaf in total.items()} == {"half": jnp.float16, "single": jnp.float32}
    np.testing.assert_array_equal(total["half"], [1.5, 1.5])
    np.testing.assert_array_equal(total["single"], 3)


def test_the_norm_is_that_of_all_entries_together():
    tree = batch(3, [((), np.float32), ((2, 3), np.float32), ((0,), np.float32)], 0)
    entries = np.concatenate([np.ravel(leaf) for leaf in tree.values()])
    np.testing.assert_allclose(trees.global_norm(tree), np.linalg.norm(entries), rtol=1e-6)
    assert trees.global_norm({}) == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_entry_that_is_not_finite_is_noticed(bad):
    tree = batch(2, [((), np.float32), ((3,), np.float32)], 0)
    assert trees.all_finite(tree)
    assert not trees.all_finite(tree | {"1": tree["1"].at[1, 2].set(bad)})
    assert trees.all_finite({})


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.bfloat16])
@pytest.mark.parametrize("shape", [(40, 50), (3, 5, 7, 20), (2_000, 1)])
def test_large_entries_are_finite_and_one_among_many_that_is_not_is_noticed(shape, dtype):
    with jax.enable_x64(dtype == jnp.float64):
        leaf = jnp.full(shape, jnp.finfo(dtype).max, dtype).at[..., ::2].multiply(-1)
        assert jax.jit(trees.all_finite)(leaf)
        assert jax.vmap(trees.all_finite)(jnp.stack([leaf, leaf])).all()
        for bad in (jnp.nan, jnp.inf, -jnp.inf):
            spoilt = leaf.at[(-1,) * leaf.ndim].set(bad)
            assert not jax.jit(trees.all_finite)(spoilt)


@pytest.mark.parametrize("flag", [False, True])
def test_what_is_seldom_changed_is_as_it_was_or_changed_once(flag):
    def change(tree):
        return jax.tree.map(lambda leaf: 2 * leaf + 1, tree)

    tree = {"a": jnp.arange(3.0), "b": jnp.arange(2)}
    found = jax.jit(lambda flag, tree: trees.seldom(flag, change, tree))(jnp.asarray(flag), tree)
    for name, leaf in (change(tree) if flag else tree).items():
        np.testing.assert_array_equal(found[name], leaf)
    both = jax.vmap(lambda flag, leaf: trees.seldom(flag, change, leaf))(jnp.array([True, False]), jnp.ones((2, 3)))
    np.testing.assert_array_equal(both, [[3.0] * 3, [1.0] * 3])


def test_leaves_have_the_names_of_their_paths():
    tree = {"layers": [{"weight": jnp.zeros(1)}, {"weight": jnp.ones(2)}], "bias": jnp.ones(())}
    named = trees.named_leaves(tree)
    assert list(named) == ["bias", "layers/0/weight", "layers/1/weight"]
    assert named["layers/1/weight"] is tree["layers"][1]["weight"]
    doubled = trees.replace_leaves(tree, lambda name, leaf: named[name] * 2)
    assert jax.tree.structure(doubled) == jax.tree.structure(tree)
    np.testing.assert_array_equal(doubled["layers"][1]["weight"], [2, 2])


def test_two_leaves_of_one_name_are_not_taken_for_each_other():
    with pytest.raises(ValueError, match=r"both called 'x/y'.*Rename"):
        trees.named_leaves({"x/y": jnp.ones(2), "x": {"y": jnp.ones(2)}})


@pytest.mark.parametrize("lost", [jnp.nan, jnp.inf, -jnp.inf])
def test_the_largest_of_any_number_of_entries_is_not_finite_where_one_is_not(lost):
    values = np.random.default_rng(0).normal(size=(512, 64)).astype(np.float32)  # XLA's own maximum forgets NaN here
    rows, columns = np.arange(0, 512, 7), np.arange(0, 512, 7) % 64
    expected = np.abs(values).max(axis=1)
    expected[rows] = np.abs(lost)
    values[rows, columns] = lost
    np.testing.assert_array_equal(jax.jit(jax.vmap(trees.largest))(values), expected)
    assert not np.isfinite(jax.jit(trees.largest)(values))
    assert trees.largest(jnp.zeros(0)) == 0
    assert not jax.jit(trees.near)(values, jnp.zeros_like(values)) and trees.near(jnp.zeros(3), jnp.zeros(3))
