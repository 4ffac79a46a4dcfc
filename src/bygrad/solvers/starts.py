"""Where a batch starts: the family's own starts, the user's, and further ones for several tries; and draws of it."""

from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Key, PyTree

from .._core.programs import Program
from ..problems import Bounded, ProblemFamily
from .base import Flat


def starting_points(
    flat: Flat,
    instances: PyTree[np.ndarray],
    rows: int | None,
    x0: PyTree[Any] | None,
    *,
    starts: int,
    seed: int,
    batch: int,
    dtype: Any,
) -> np.ndarray:
    """Return `[rows * starts, p]`, the starts of one instance together: the first one is `x0`, or the family's."""
    given = None if x0 is None else _given(flat, x0, rows, dtype)
    rows = len(given) if rows is None and given is not None else rows
    if rows is None:
        raise ValueError("The instances hold no arrays, so their number is not known. Give x0, one row for each.")
    keys = _keys(seed, rows, starts + 1)
    columns = []
    for start in range(starts):
        if start == 0 and given is not None:
            columns.append(given)
            continue
        program = _inits if start == 0 else _restarts
        columns.append(in_blocks(program, flat, (instances, keys[:, start]), rows, batch, dtype))
    return np.stack(columns, axis=1).reshape(rows * starts, flat.size)


def _keys(seed: int, rows: int, each: int) -> np.ndarray:
    """Return the data of `each` keys for every row. Powers of two are drawn, so that few numbers of rows compile."""
    count = rows * each
    drawn = jax.random.key_data(jax.random.split(jax.random.key(seed), 1 << max(count - 1, 0).bit_length()))
    return np.asarray(drawn)[:count].reshape(rows, each, drawn.shape[-1])  # a key does not hang on how many there are


def _given(flat: Flat, x0: PyTree[Any], rows: int | None, dtype: Any) -> np.ndarray:
    if jax.tree.structure(x0) != flat.structure:
        raise ValueError(
            f"x0 is built as {jax.tree.structure(x0)}, but params are {flat.structure}, so its arrays cannot be told"
            " apart. Build it as the family's `init` builds params."
        )
    leaves = [np.asarray(leaf, dtype) for leaf in jax.tree.leaves(x0)]
    if [leaf.shape for leaf in leaves] == list(flat.shapes) and rows is not None:
        leaves = [np.broadcast_to(leaf, (rows, *leaf.shape)) for leaf in leaves]
    if any(leaf.shape[1:] != shape for leaf, shape in zip(leaves, flat.shapes, strict=True)) or (
        rows is not None and any(len(leaf) != rows for leaf in leaves)
    ):
        found = ", ".join(str(list(leaf.shape)) for leaf in leaves)
        wanted = ", ".join(str([rows or "rows", *shape]) for shape in flat.shapes)
        raise ValueError(
            f"x0 has shapes {found}, but the params of {rows} instances have {wanted}, so they cannot be told apart."
            " Give one row for each instance, or the params of a single one for all."
        )
    return np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)


def in_blocks(
    program: Any, flat: Flat, inputs: PyTree[np.ndarray], rows: int, batch: int, dtype: Any, *further: Any
) -> np.ndarray:
    """Run a program that returns rows on blocks of one size, so that it compiles once; `[rows, ...]`."""
    if rows == 0:
        return np.zeros((0, flat.size), dtype)
    blocks = []
    for at in range(0, rows, batch):
        pick = np.minimum(np.arange(at, at + batch), rows - 1)
        block = program(flat, *jax.tree.map(lambda leaf: jax.numpy.asarray(leaf[pick]), inputs), *further)  # noqa: B023
        blocks.append(np.asarray(block, dtype)[: rows - at])
    return np.concatenate(blocks)


def _inits_(flat: Flat, instances: PyTree[Array], keys: Array) -> Array:
    init = lambda one, key: flat.vector(flat.family.init(one, jax.random.wrap_key_data(key)))  # noqa: E731
    return jax.vmap(init)(instances, keys)


def _restarts_(flat: Flat, instances: PyTree[Array], keys: Array) -> Array:
    family = flat.family
    draw = family.restart if isinstance(family, Bounded) else family.init
    return jax.vmap(lambda one, key: flat.vector(draw(one, jax.random.wrap_key_data(key))))(instances, keys)


def _draws_(family: ProblemFamily, keys: Key[Array, " rows"]) -> PyTree[Array]:
    return jax.vmap(family.sample)(keys)


draws = Program(_draws_)
"""Instances of a family, one a row, from as many keys."""

_inits = Program(_inits_)
_restarts = Program(_restarts_)
