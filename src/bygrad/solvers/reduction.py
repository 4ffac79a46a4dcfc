"""Quadratic programs without their equations, in coordinates in which every penalty is diagonal."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

RANK = 1e-10
"""Singular values and curvatures below this share of the largest are zero; of matrices in float32, below 100 times the
rounding of that."""

ROUNDING = 1e-5
"""Entries and eigenvalues below this share of the largest may be the rounding of matrices in float32."""

FLAT = 1e-3
"""Curvature, relative to the mean, that stands in for none where rows are scaled."""

NOTHING = 1e-12
"""Shares of curvature, or of rows, in a direction of the reduced problem below which there are none."""

UNEVEN = 1e-3
"""Variables that matter less than this share of others are taken to be in another unit."""


class Reduced(NamedTuple):
    r"""$\min \frac12 p^\top P p + q^\top p$ subject to $E p = e$, $l \le A p \le u$, as a problem in $c$ without $E$.

    $p = T c + E^+ e$, where the columns of $T$ span the null space of $E$. They are chosen so that $T^\top P T$ is
    $\operatorname{diag} \kappa$ and $R^\top R$ is $\operatorname{diag} \lambda$ with the scaled rows $R = D A T$, both
    at once. So $T^\top (P + \rho A^\top D^2 A) T$ is diagonal for every $\rho$.

    The rows' scale $D$ gives $D A (T^\top P T)^{-1} A^\top D$ a unit diagonal: $\rho = 1$ then balances the curvature
    of the objective and the penalty along each row (Giselsson and Boyd, *Linear convergence and metric selection*,
    2017, section 6). Directions that neither the objective nor a row sees are left out. Limits of rows that the
    equations settle ask nothing of $c$: their $R$ is zero, not what rounding leaves of it.

    Leaves: `basis` $T$; `rows` $R$; `curvature` $\kappa$; `weight` $\lambda$; `inverse`, with which `inverse.T @ r` is
    the gradient in orthonormal coordinates of the null space, with variables in even units (`_units`); `scale` $D$;
    `ceiling`: the largest multipliers of the scaled rows; `solve` $E^+$; `pull`: $T^\top P E^+$; `shift`: $D A E^+$;
    `quadratic`: $P E^+$; `consistent`: $E E^+$, the identity where the equations can hold for every $e$; `unseen`: the
    directions that were left out, and `blurred`: the share of a linear term that rounding moves into them; `equations`
    and `limits`: which rows of the program are which.
    """

    basis: Float[Array, "n k"]
    rows: Float[Array, "m k"]
    curvature: Float[Array, " k"]
    weight: Float[Array, " k"]
    inverse: Float[Array, "k j"]
    scale: Float[Array, " m"]
    ceiling: Float[Array, " m"]
    solve: Float[Array, "n e"]
    pull: Float[Array, "k e"]
    shift: Float[Array, "m e"]
    quadratic: Float[Array, "n e"]
    consistent: Float[Array, "e e"]
    unseen: Float[Array, "n d"]
    blurred: Float[Array, ""]
    equations: Int[Array, " e"]
    limits: Int[Array, " m"]


def reduce_program(
    quadratic: Float[np.ndarray, "n n"],
    constraints: Float[np.ndarray, "rows n"],
    equations: np.ndarray,
    ceiling: Float[np.ndarray, " rows"],
    dtype: Any,
) -> Reduced:
    """Eliminate the equations and make what is left diagonal, in float64; O(n³), once for a family.

    **Arguments:** `dtype`: of the result. Matrices in float32 are taken to be as exact as that.

    **Raises:** `ValueError` where matrices are not finite, $P$ is not symmetric, the program is not convex, or prices
    are none.
    """
    _check_numbers(quadratic, constraints, equations, ceiling)
    eps = max(float(np.finfo(it.dtype).eps) for it in (quadratic, constraints))
    rank = max(RANK, 100 * eps)
    quadratic, constraints = quadratic.astype(float), constraints.astype(float)
    _check_convex(quadratic)
    which, limits = np.flatnonzero(equations), np.flatnonzero(~equations)
    units = _units(quadratic, constraints, rank)
    even, given, rows = units[:, None] * quadratic * units, constraints[which] * units, constraints[limits] * units
    solve, free = _null_space(given, rank)
    inner, seen = free.T @ even @ free, rows @ free
    # What the equations leave nothing of but rounding is zero.
    if np.abs(inner).max(initial=0.0) <= rank * np.abs(even).max(initial=0.0):
        inner = np.zeros_like(inner)
    settled = np.linalg.norm(seen, axis=1) <= rank * np.linalg.norm(rows, axis=1)
    seen = np.where(settled[:, None], 0.0, seen)

    level = np.trace(inner) / max(len(inner), 1) or 1.0
    flat = inner + FLAT * level * np.eye(len(inner))
    lengths = np.sqrt(np.sum(seen * np.linalg.solve(flat, seen.T).T, axis=1))
    scale = 1 / np.where(lengths > 0, lengths, 1.0)
    seen = scale[:, None] * seen

    whole = inner + seen.T @ seen
    values, vectors = np.linalg.eigh(whole)
    real = values > rank * max(values.max(initial=0.0), np.finfo(float).tiny)
    # Rounding turns what was left out towards what was not by as much as it is of the smallest value of that.
    turns = 10 * eps * values.max(initial=0.0) / values[real].min(initial=np.inf) * units.max() / units.min()
    root = vectors[:, real] / np.sqrt(values[real])
    weight, turn = np.linalg.eigh(root.T @ (seen.T @ seen) @ root)
    # A penalty may be so low, or so high, that rounding instead of zero would be a curvature, or a row.
    weight = np.where(weight > 1 - NOTHING, 1.0, np.where(weight < NOTHING, 0.0, weight))
    weight = weight if inner.any() else np.ones_like(weight)
    turned = root @ turn
    basis, solve = units[:, None] * (free @ turned), units[:, None] * solve
    given, rows = constraints[which], constraints[limits]
    found: dict[str, np.ndarray] = dict(
        basis=basis,
        rows=seen @ turned,
        curvature=1 - weight,
        weight=weight,
        inverse=turned.T @ whole,
        scale=scale,
        ceiling=ceiling[limits] / scale,
        solve=solve,
        pull=basis.T @ quadratic @ solve,
        shift=scale[:, None] * (rows @ solve),
        quadratic=quadratic @ solve,
        consistent=given @ solve,
        unseen=np.linalg.qr(units[:, None] * (free @ vectors[:, ~real]))[0],
        blurred=np.asarray(turns),
        equations=which,
        limits=limits,
    )
    return Reduced(**{name: jnp.asarray(it, dtype if it.dtype == float else jnp.int32) for name, it in found.items()})


def _units(quadratic: np.ndarray, constraints: np.ndarray, rank: float) -> np.ndarray:
    """Return a factor for every variable, 1 but for those that matter little: in curvature, and in all rows that they
    share with others. Of such a variable, what its unit makes small would be taken for nothing, below `rank`."""
    curvature, size = np.sqrt(np.maximum(np.diag(quadratic), 0.0)), np.abs(constraints)
    shared = size[np.count_nonzero(size, axis=1) > 1]
    shares = shared / shared.max(axis=1, keepdims=True)
    matters = np.maximum(curvature / max(curvature.max(initial=0.0), np.finfo(float).tiny), shares.max(0, initial=0.0))
    # Curvature is in the square of the unit. With a margin, as the rows count beside it.
    return 1 / np.where((matters > 0) & (matters < max(UNEVEN, 3 * np.sqrt(rank))), matters, 1.0)


def _check_numbers(quadratic: np.ndarray, constraints: np.ndarray, equations: np.ndarray, ceiling: np.ndarray) -> None:
    for name, matrix in {"P": quadratic, "A": constraints}.items():
        if not np.isfinite(matrix).all():
            raise ValueError(
                f"{name} of the quadratic program is not finite, and all instances share it, so none could be solved."
                " Mend `matrices`; a limit that is none belongs into `vectors`, as an infinite one."
            )
    if not (ceiling >= 0).all():
        raise ValueError(
            f"A price of the quadratic program is {ceiling[~(ceiling >= 0)][0]:g}, so that to violate the limits of its"
            " row would not cost anything. Give prices of 0 or more (`ceiling`), and infinite ones to rows that must"
            " hold."
        )
    if (priced := equations & np.isfinite(ceiling)).any():
        raise ValueError(
            f"Row {np.flatnonzero(priced)[0]} of the quadratic program is an equation and has a price, but equations"
            " are eliminated: it would hold at any price. Make the price infinite (`ceiling`), or do not call the row"
            " an equation (`equations`): equal limits are enough."
        )


def _check_convex(quadratic: np.ndarray) -> None:
    largest = np.abs(quadratic).max(initial=0.0)
    skew = np.abs(quadratic - quadratic.T).max(initial=0.0)
    if not skew <= ROUNDING * largest:
        raise ValueError(
            f"P of the quadratic program is not symmetric: entries differ from their mirror images by up to {skew:.3g}."
            " One half of it would be taken for the whole, and another program solved. Give (P + P.T) / 2, and for an"
            " upper triangle U, as OSQP takes it, U + U.T - diag(diag(U))."
        )
    lowest = np.linalg.eigvalsh(quadratic).min(initial=0.0)
    if lowest < -ROUNDING * largest:
        raise ValueError(
            f"P of the quadratic program has the eigenvalue {lowest:.3g}, so the program is not convex: it may have"
            " several minima or none, and ADMM would return some point. Make P positive semidefinite, or solve it as a"
            " `Bounded` family, by L-BFGS."
        )


def _null_space(given: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the pseudoinverse and an orthonormal basis of the null space."""
    count, size = given.shape
    if count == 0:
        return np.zeros((size, 0)), np.eye(size)
    left, values, right = np.linalg.svd(given)
    rank = int(np.sum(values > share * values.max()))
    return (right[:rank].T / values[:rank]) @ left[:, :rank].T, right[rank:].T
