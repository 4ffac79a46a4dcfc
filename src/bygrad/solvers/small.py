"""Algebra of matrices so small that a call for each instance of a batch would take longer than the arithmetic in it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

SMALL = 8
"""Up to so many params everything is written out."""


def products_of(columns: Float[Array, "n k"]) -> Float[Array, "k k"]:
    """Return the products of all pairs of columns.

    Of few columns by one sum of them all, in a single pass: a product of matrices for each instance, as small as these,
    takes longer.
    """
    size = columns.shape[1]
    if size > SMALL + 1:
        return columns.T @ columns
    pairs = [(i, j) for i in range(size) for j in range(i + 1)]
    each = tuple(columns[:, i] * columns[:, j] for i, j in pairs)
    zeros = (jnp.zeros((), columns.dtype),) * len(pairs)
    sums = jax.lax.reduce(each, zeros, lambda some, more: tuple(a + b for a, b in zip(some, more, strict=True)), (0,))
    where = np.zeros((size, size), int)
    where[tuple(np.transpose(pairs))] = np.arange(len(pairs))
    return jnp.stack(sums)[np.maximum(where, where.T)]


def solve_spd(matrix: Float[Array, "p p"], target: Float[Array, " p"]) -> Float[Array, " p"]:
    """Solve a small symmetric positive definite system; NaN where it is not positive definite.

    Up to `SMALL` unknowns the factorization is written out: under `vmap` its operations then run over the whole batch,
    where a call of LAPACK for each instance would cost more than the arithmetic in it.
    """
    size = matrix.shape[0]
    if size > SMALL:
        return jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(matrix), True), target)
    lower: list[list[Any]] = [[None] * size for _ in range(size)]
    inverse: list[Any] = []
    for j in range(size):
        rest = matrix[j, j] - sum((lower[j][k] ** 2 for k in range(j)), start=jnp.zeros((), matrix.dtype))
        inverse.append(jax.lax.rsqrt(rest))
        for i in range(j + 1, size):
            dot = sum((lower[i][k] * lower[j][k] for k in range(j)), start=jnp.zeros((), matrix.dtype))
            lower[i][j] = (matrix[i, j] - dot) * inverse[j]
    half: list[Any] = []
    for i in range(size):
        half.append((target[i] - sum(lower[i][k] * half[k] for k in range(i))) * inverse[i])
    solution: list[Any] = [None] * size
    for i in reversed(range(size)):
        solution[i] = (half[i] - sum(lower[k][i] * solution[k] for k in range(i + 1, size))) * inverse[i]
    return jnp.stack(solution)
