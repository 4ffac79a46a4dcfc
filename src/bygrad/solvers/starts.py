"""Where a batch starts: the family's own starts, the user's, and further ones for several tries; and draws of it."""

from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Key, PyTree

from .._core import trees
from .._core.draws import key_of
from .._core.programs import Program
from .._core.threads import Threads
from ..problems import Bounded, ProblemFamily
from .base import Flat, parts_in_words
from .engine import cores_for
from .solution import side_by_side

STARTS_BRANCH = 0x57A7


def starting_points(
    flat: Flat,
    instances: PyTree[np.ndarray],
    rows: int | None,
    given: np.ndarray | None,
    *,
    starts: int,
    seed: int,
    batch: int,
    dtype: Any,
) -> np.ndarray:
    """Return `[rows * starts, p]`, the starts of one instance together: the first one is the one `given`, or, where
    none is or it is not finite, the family's. Where multipliers follow the params of what is given, they are zero for
    the others."""
    rows = len(given) if rows is None and given is not None else rows
    if rows is None:
        raise ValueError("The instances hold no arrays, so their number is not known. Give x0, one row for each.")
    sound = np.zeros(rows, bool) if given is None else np.all(np.isfinite(given), axis=1)
    columns = []
    for start in range(starts):
        if start == 0 and given is not None and sound.all():
            columns.append(given)
            continue
        program = _inits if start == 0 else _restarts
        columns.append(in_blocks(program, flat, (instances, _keys(seed, rows, start)), rows, batch, dtype))
    if given is not None:
        columns = [np.pad(column, ((0, 0), (0, given.shape[1] - column.shape[1]))) for column in columns]
        columns[0] = np.where(sound[:, None], given, columns[0])
    return np.stack(columns, axis=1).reshape(rows * starts, columns[0].shape[1])


def _keys(seed: int, rows: int, start: int) -> np.ndarray:
    """Return the data of a key for every row, for one of its starts: no key hangs on how many rows or starts there are.
    Powers of two are drawn, so that few numbers of rows compile."""
    # Apart from the keys that instances are drawn from: where a restart is drawn as an instance is, it would be one.
    key = jax.random.fold_in(jax.random.fold_in(key_of(seed), STARTS_BRANCH), start)
    return np.asarray(jax.random.key_data(jax.random.split(key, 1 << max(rows - 1, 0).bit_length())))[:rows]


def guesses(
    flat: Flat, x0: PyTree[Any] | None, dual0: Any, rows: int | None, multipliers: int, dtype: Any
) -> np.ndarray | None:
    """Return `x0` as vectors, `[rows, p]`, or None.

    For a method that starts with `multipliers`, these follow: `dual0`, zero where that is None or not finite.

    **Raises:** `ValueError` for shapes that do not fit, and for `dual0` without `x0`.
    """
    if x0 is None:
        if dual0 is not None:
            raise ValueError("dual0 are the multipliers of a solution, and x0 is None. Give that solution as x0 too.")
        return None
    x = _given(flat, x0, rows, dtype)
    dual = np.zeros((len(x), 0), dtype) if dual0 is None else _real("dual0", dual0, dtype)
    if dual.ndim == 1:
        dual = np.broadcast_to(dual, (len(x), dual.size))
    if dual.shape not in ((len(x), 0), (len(x), multipliers)):
        raise ValueError(
            f"dual0 has shape {list(dual.shape)}, but {len(x)} starts have {[len(x), multipliers]} multipliers here, so"
            " they cannot be told apart. Give the `dual` of a solution by ADMM of the same family, one row a start, or"
            " leave dual0 out."
        )
    if dual.shape[1] < multipliers:
        dual = np.zeros((len(x), multipliers), dtype)
    return np.concatenate([x, np.where(np.isfinite(dual).all(axis=1, keepdims=True), dual, 0.0)], axis=1)


def _real(what: str, leaf: Any, dtype: Any) -> np.ndarray:
    array = np.asarray(leaf)
    if array.dtype.kind in "cOSU":
        found = f"of dtype {array.dtype}" if isinstance(leaf, np.ndarray | jax.Array) else f"a {type(leaf).__name__}"
        raise TypeError(
            f"{what} is {found}, but it must hold real numbers. Of a solution give its `{what.removesuffix('0')}`."
        )
    return array.astype(dtype, copy=False)


def _given(flat: Flat, x0: PyTree[Any], rows: int | None, dtype: Any) -> np.ndarray:
    if jax.tree.structure(x0) != flat.structure:
        wanted = jax.tree.unflatten(flat.structure, range(len(flat.shapes)))
        raise ValueError(
            f"x0 is {parts_in_words(trees.named_leaves(x0))}, but params are"
            f" {parts_in_words(trees.named_leaves(wanted))}, so its parts cannot be told apart. Build it as the"
            " family's `init` builds params (a list is many arrays: numpy.asarray makes it one)."
        )
    leaves = [_real("x0", leaf, dtype) for leaf in jax.tree.leaves(x0)]
    if [leaf.shape for leaf in leaves] == list(flat.shapes) and rows is not None:
        leaves = [np.broadcast_to(leaf, (rows, *leaf.shape)) for leaf in leaves]
    if any(leaf.shape[1:] != shape for leaf, shape in zip(leaves, flat.shapes, strict=True)) or (
        rows is not None and any(len(leaf) != rows for leaf in leaves)
    ):
        found = trees.in_words(list(leaf.shape) for leaf in leaves)
        wanted = trees.in_words([rows or "rows", *shape] for shape in flat.shapes)
        raise ValueError(
            f"x0 has shapes {found}, but the params of {rows} instances have {wanted}, so they cannot be told apart."
            " Give one row for each instance, or the params of a single one for all."
        )
    return side_by_side(leaves)


def in_blocks(
    program: Any, flat: Flat, inputs: PyTree[np.ndarray], rows: int, batch: int, dtype: Any, *further: Any
) -> np.ndarray:
    """Run a program that returns rows on blocks of one size, so that it compiles once; `[rows, ...]`."""
    if rows == 0:
        return np.zeros((0, flat.size), dtype)

    def block(at: int) -> np.ndarray:
        # Of a whole block no copy is made.
        pick = slice(at, at + batch) if at + batch <= rows else np.minimum(np.arange(at, at + batch), rows - 1)
        return np.asarray(program(flat, *trees.rows(inputs, pick), *further), dtype)[: rows - at]

    starts, cores = range(0, rows, batch), cores_for(rows, batch)
    if cores == 1:
        return np.concatenate([block(at) for at in starts])
    with Threads(cores) as pool:
        return np.concatenate(list(pool.map(block, starts)))


@Program
def _inits(flat: Flat, instances: PyTree[Array], keys: Array) -> Array:
    init = lambda one, key: flat.vector(flat.family.init(one, jax.random.wrap_key_data(key)))  # noqa: E731
    return jax.vmap(init)(instances, keys)


@Program
def _restarts(flat: Flat, instances: PyTree[Array], keys: Array) -> Array:
    family = flat.family
    draw = family.restart if isinstance(family, Bounded) else family.init
    return jax.vmap(lambda one, key: flat.vector(draw(one, jax.random.wrap_key_data(key))))(instances, keys)


@Program
def draws(family: ProblemFamily, keys: Key[Array, " rows"]) -> PyTree[Array]:
    """Draw instances of a family, one a row, from as many keys."""
    return jax.vmap(family.sample)(keys)
