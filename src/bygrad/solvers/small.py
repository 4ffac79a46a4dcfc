"""Algebra of matrices so small that a call for each instance of a batch would take longer than the arithmetic in it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

SMALL = 8
"""Up to so many params everything is written out."""


def products_of(rows: Float[Array, "k n"]) -> Float[Array, "k k"]:
    """Return the products of all pairs of rows, which are computed only once.

    Of few rows by one sum of them all, in a single pass: a product of matrices for each instance, as small as these,
    takes longer.
    """
    size = len(rows)
    if size > SMALL + 1:
        rows = jax.lax.optimization_barrier(rows)
        return rows @ rows.T
    # XLA would compute what the rows come from again for each product.
    each_row = jax.lax.optimization_barrier(tuple(rows))
    pairs = [(i, j) for i in range(size) for j in range(i + 1)]
    each = tuple(each_row[i] * each_row[j] for i, j in pairs)
    zeros = (jnp.zeros((), rows.dtype),) * len(pairs)
    sums = jax.lax.reduce(each, zeros, lambda some, more: tuple(a + b for a, b in zip(some, more, strict=True)), (0,))
    where = np.zeros((size, size), int)
    where[tuple(np.transpose(pairs))] = np.arange(len(pairs))
    return jnp.stack(sums)[np.maximum(where, where.T)]


class Factor(NamedTuple):
    """The factor L of a small symmetric positive definite matrix; NaN where the matrix is not positive definite.

    Up to `SMALL` unknowns it is written out: under `vmap` its operations then run over the whole batch, where a call of
    LAPACK for each instance would cost more than the arithmetic in it.
    """

    lower: Any
    """`[p, p]`, or the entries below the diagonal, where it is written out."""
    inverse: tuple[Any, ...]
    """One over each entry of the diagonal, where it is written out."""

    @classmethod
    def of(cls, matrix: Float[Array, "p p"]) -> "Factor":
        size = matrix.shape[0]
        if size > SMALL:
            return cls(jnp.linalg.cholesky(matrix), ())
        lower: list[list[Any]] = [[] for _ in range(size)]
        inverse: list[Any] = []
        for j in range(size):
            inverse.append(jax.lax.rsqrt(matrix[j, j] - sum(it**2 for it in lower[j])))
            for i in range(j + 1, size):
                dot = sum(lower[i][k] * lower[j][k] for k in range(j))
                lower[i].append((matrix[i, j] - dot) * inverse[j])
        return cls(lower, tuple(inverse))

    def forward(self, target: Float[Array, " p"]) -> Float[Array, " p"]:
        """Return the solution of L h = target: its square is that of the matrix' inverse between two targets."""
        if not self.inverse:
            return jax.scipy.linalg.solve_triangular(self.lower, target, lower=True)
        half: list[Any] = []
        for i, scale in enumerate(self.inverse):
            half.append((target[i] - sum(self.lower[i][k] * half[k] for k in range(i))) * scale)
        return jnp.stack(half)

    def backward(self, half: Float[Array, " p"]) -> Float[Array, " p"]:
        """Return the solution of L' x = half."""
        if not self.inverse:
            return jax.scipy.linalg.solve_triangular(self.lower, half, lower=True, trans=1)
        size = len(self.inverse)
        found: list[Any] = [None] * size
        for i in reversed(range(size)):
            found[i] = (half[i] - sum(self.lower[k][i] * found[k] for k in range(i + 1, size))) * self.inverse[i]
        return jnp.stack(found)


def solve_spd(matrix: Float[Array, "p p"], target: Float[Array, " p"]) -> Float[Array, " p"]:
    """Solve a small symmetric positive definite system; NaN where it is not positive definite."""
    factor = Factor.of(matrix)
    return factor.backward(factor.forward(target))
