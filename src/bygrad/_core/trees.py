"""Tree mathematics: norms, selections and batches of trees laid out as one matrix."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Inexact, Int, Num, PyTree, Shaped

Module = TypeVar("Module")
Tree = TypeVar("Tree")


def add(left: PyTree, right: PyTree) -> PyTree:
    """Add two trees of one structure; the result keeps the dtypes of `left`."""
    return jax.tree.map(lambda a, b: a + b.astype(a.dtype), left, right)


def where(condition: Bool[Array, ""], yes: PyTree, no: PyTree) -> PyTree:
    """Take all of `yes` if the condition holds, all of `no` otherwise."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def seldom(flag: Bool[Array, ""], change: Callable[[Tree], Tree], tree: Tree) -> Tree:
    """Return `change(tree)` if the flag holds, else the tree, which then stays where it lies in memory.

    XLA reads all that it selects from, and copies what passes a branch; what a loop of no rounds carries, it leaves
    alone. No derivative goes backwards through that.
    """
    if not isinstance(flag, Tracer):  # a loop outside of a compiled function would be compiled anew with every call
        return change(tree) if bool(flag) else tree

    if jax.sharding.get_abstract_mesh().manual_axes:
        # Inside `shard_map` the flag may differ between devices, as the type of what a loop carries would have to say.
        return where(flag, change(tree), tree)

    def once(carried: tuple[Any, Tree]) -> tuple[Any, Tree]:
        return jnp.zeros((), bool), change(carried[1])

    return jax.lax.while_loop(lambda carried: carried[0], once, (flag, tree))[1]


def copied(tree: PyTree) -> PyTree:
    """Copy every array, so that no two leaves share their memory: a shared one could not be donated."""
    return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), tree)


def widened(tree: PyTree) -> PyTree:
    """Convert low precision to float32, which then neither vanishes nor overflows as easily."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)), tree)


def global_norm(tree: PyTree) -> Float[Array, ""]:
    """Euclidean norm over all leaves; zero for a tree without leaves."""
    squares = [jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree)]
    return jnp.sqrt(sum(squares, start=jnp.zeros(())))


def all_finite(tree: PyTree) -> Bool[Array, ""]:
    """Whether every entry of every leaf is finite."""
    flags = [jnp.all(jnp.isfinite(_condensed(leaf))) for leaf in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack(flags)) if flags else jnp.asarray(True)


def finite_rows(tree: PyTree[Shaped[Array, "rows ..."]]) -> Bool[Array, " rows"]:
    """Whether every entry of a row (first axis of every leaf) is finite, for each of them; of one leaf at least."""
    flags = [jnp.all(jnp.isfinite(leaf.reshape(leaf.shape[0], -1)), axis=1) for leaf in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack(flags), axis=0)


def _condensed(leaf: Array) -> Array:
    """Return fewer entries, which are finite if and only if all of the leaf are."""
    if leaf.ndim < 2 or leaf.size < 1024 or leaf.dtype not in (jnp.float32, jnp.float64):
        return leaf
    # A product with zeros: XLA for CPUs looks at one entry after the other, and multiplies several at a time. It must
    # not know that they are zeros.
    rows = leaf.reshape(leaf.shape[0], -1)
    zeros = jax.lax.optimization_barrier(jnp.zeros(rows.shape[1], leaf.dtype))
    return jnp.matmul(rows, zeros, precision=jax.lax.Precision.HIGHEST)


def largest(values: Inexact[Array, "..."]) -> Float[Array, ""]:
    """Return the size of the largest entry, 0 of none; it is not finite where one is not.

    Compiled for CPUs, a maximum of some thousand entries forgets the NaN among them, and a sum does not (openxla/xla,
    issue 21461).
    """
    total = jnp.abs(jnp.sum(values))
    return jnp.where(jnp.isnan(total), total, jnp.max(jnp.abs(values), initial=0))


def near(tree: PyTree, wanted: PyTree) -> Bool[Array, ""]:
    """Whether every leaf is as wanted, up to the rounding of a few sums in the dtype of `tree`."""

    def near(leaf: Array, wanted: Array) -> Array:
        return largest(leaf - wanted) <= 0.1 * jnp.finfo(leaf.dtype).eps ** 0.5 * largest(wanted)

    return jnp.all(jnp.stack([jnp.asarray(True), *jax.tree.leaves(jax.tree.map(near, tree, wanted))]))


def rows(tree: PyTree, which: Any) -> PyTree:
    """Take rows (the first axis) of every leaf: the one of a number, or those of a slice, of indices or of a mask."""
    return jax.tree.map(lambda leaf: leaf[which], tree)


def length(tree: PyTree) -> int:
    """Return how many rows the leaves have, each as many."""
    return len(jax.tree.leaves(tree)[0])


def along_rows(values: Shaped[Array, " rows"], leaf: Shaped[Array, "rows ..."]) -> Shaped[Array, "rows ..."]:
    """Give one value a row as many axes of size 1 as it takes to meet a leaf."""
    return values.reshape((-1,) + (1,) * (leaf.ndim - 1))


def select_rows(mask: Bool[Array, " rows"], yes: PyTree, no: PyTree) -> PyTree:
    """Take the rows (first axis of every leaf) where `mask` holds from `yes`, the others from `no`."""
    return jax.tree.map(lambda a, b: jnp.where(along_rows(mask, a), a, b), yes, no)


def take_coordinates(tree: PyTree[Shaped[Array, "... b n"]], chosen: Int[Array, "b m"]) -> PyTree:
    """Take some entries of the last axis of every leaf, others for each of the instances on the axis before it."""

    def take(leaf: Shaped[Array, "... b n"]) -> Shaped[Array, "... b m"]:
        return jnp.take_along_axis(leaf, jnp.broadcast_to(chosen, (*leaf.shape[:-2], *chosen.shape)), axis=-1)

    return jax.tree.map(take, tree)


def to_matrix(tree: PyTree[Shaped[Array, "rows ..."]]) -> Num[Array, "rows columns"]:
    """Lay a batch of trees, leaves `[rows, ...]`, out as one matrix `[rows, columns]`: a tree a row."""
    leaves = jax.tree.leaves(tree)
    return jnp.concatenate([leaf.reshape(leaf.shape[0], -1) for leaf in leaves], axis=1)


def from_matrix(matrix: Num[Array, "rows columns"], like: PyTree[Shaped[Array, "rows ..."]]) -> PyTree:
    """Invert `to_matrix`: shapes and dtypes come from `like`."""
    leaves, structure = jax.tree.flatten(like)
    parts, start = [], 0
    for leaf in leaves:
        width = leaf[0].size
        parts.append(matrix[:, start : start + width].reshape(leaf.shape).astype(leaf.dtype))
        start += width
    return jax.tree.unflatten(structure, parts)


def to_vector(tree: PyTree[Shaped[Array, "..."]], dtype: Any) -> Num[Array, " entries"]:
    """Lay the entries of all leaves out as one vector."""
    return jnp.concatenate([jnp.ravel(leaf).astype(dtype) for leaf in jax.tree.leaves(tree)])


def from_vector(vector: Num[Array, " entries"], like: PyTree[Shaped[Array, "..."]]) -> PyTree:
    """Invert `to_vector`: shapes and dtypes come from `like`."""
    return rows(from_matrix(vector[None], jax.tree.map(lambda leaf: leaf[None], like)), 0)


def real_leaves(tree: PyTree) -> list[Any]:
    """Return the arrays of a tree; of a complex one, its real and its imaginary part."""
    return jax.tree.leaves(jax.tree.map(lambda it: (it.real, it.imag) if jnp.iscomplexobj(it) else it, tree))


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """Map the path of every leaf, such as `layers/0/weight`, to the leaf.

    **Raises:** `ValueError` if two leaves have the same: keys that contain a `/` can look like two keys.
    """
    named: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = path_name(path)
        if name in named:
            raise ValueError(
                f"Two leaves of a tree are both called {name!r}, since one has a key with a slash, so that one would be"
                " taken for the other. Rename one of the keys."
            )
        named[name] = leaf
    return named


def replaced(module: Module, **parts: Any) -> Module:
    """Return an Equinox module with other parts, given by name and not checked: they may be axes, say, in place of
    arrays. `eqx.tree_at` finds parts by identity, so that it cannot tell those that are `None`."""
    new = object.__new__(type(module))
    for field in dataclasses.fields(module):  # pyright: ignore[reportArgumentType]
        object.__setattr__(new, field.name, parts.get(field.name, getattr(module, field.name)))
    return new


def in_words(leaves: Iterable[Any], most: int = 8) -> str:
    """List what stands for the leaves of a tree, shapes or names: the first few, and how many there are besides.

    >>> in_words([[2], [3], [4]], most=2)
    '[2], [3] and 1 more'
    """
    words = [str(leaf) for leaf in leaves]
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")


def replace_leaves(tree: PyTree, leaf_of: Callable[[str, Any], Any]) -> PyTree:
    """Rebuild `tree` with every leaf replaced by `leaf_of(path, leaf)`."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: leaf_of(path_name(path), leaf), tree)


def path_name(path: Sequence[object]) -> str:
    """Write a key path of JAX as names joined by `/`."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")
