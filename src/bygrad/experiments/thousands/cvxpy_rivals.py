"""CVXPY, as its documentation advises for many programs of one form: parameters for what differs between them."""

import importlib
from typing import Any

import numpy as np
from jaxtyping import PyTree

from ...problems import MeanVariance
from ...solvers import Flat
from .program_rivals import hard_program, in_units
from .rival import Build, looped


def cvxpy_program(flat: Flat) -> Build:
    """Write a quadratic program down once, with its vectors as parameters; soft rows have slack variables."""
    cp: Any = importlib.import_module("cvxpy")
    sparse: Any = importlib.import_module("scipy.sparse")
    quadratic, constraints, equations, vectors = hard_program(flat)
    matrix, x, q = sparse.csr_matrix(constraints), cp.Variable(len(quadratic)), cp.Parameter(len(quadratic))
    cost = 0.5 * cp.quad_form(x, cp.psd_wrap(sparse.csc_matrix(quadratic))) + q @ x
    written: list[Any] = []

    def write(above: np.ndarray, below: np.ndarray) -> None:
        limits = [cp.Parameter(int(rows.sum())) for rows in (equations, above, below)]
        rows = matrix[equations] @ x == limits[0], matrix[above] @ x <= limits[1], matrix[below] @ x >= limits[2]
        here = [row for row, limit in zip(rows, limits, strict=True) if limit.size]
        written.extend((cp.Problem(cp.Minimize(cost), here), limits))

    def ready(instances: PyTree) -> tuple[np.ndarray, ...]:
        linear, low, high = vectors(instances)
        above, below = ~equations & np.isfinite(high[0]), ~equations & np.isfinite(low[0])  # in all instances the same
        if not written:
            write(above, below)
        return linear, high[:, equations], high[:, above], low[:, below]

    def one_by_one(one: Any, tol: float) -> tuple[np.ndarray, float]:
        q.value, *values = one
        problem, limits = written
        for limit, value in zip(limits, values, strict=True):
            limit.value = value
        found, iterations = _solve(cp, problem, x, tol)
        return found[: flat.size], iterations

    return looped(one_by_one, ready)


def cvxpy_portfolio(flat: Flat) -> Build:
    """Write a portfolio down once, with a root of the covariance as its parameter, which keeps it quick to compile."""
    cp: Any = importlib.import_module("cvxpy")
    family, n = flat.family, flat.size
    assert isinstance(family, MeanVariance)
    x, root = cp.Variable(n), cp.Parameter((n, n))
    problem = cp.Problem(cp.Minimize(cp.sum_squares(root @ x)), [cp.sum(x) == 1, x >= 0, x <= float(family.cap)])

    def ready(covariances: np.ndarray) -> np.ndarray:
        values, vectors = np.linalg.eigh(in_units(covariances))
        return np.sqrt(np.maximum(values, 0.0))[:, :, None] * vectors.transpose(0, 2, 1)

    def one_by_one(one: Any, tol: float) -> tuple[np.ndarray, float]:
        root.value = one
        return _solve(cp, problem, x, 0.1 * tol)  # of costs well below 1

    return looped(one_by_one, ready)


def _solve(cp: Any, problem: Any, x: Any, tol: float) -> tuple[np.ndarray, float]:
    problem.solve(solver=cp.CLARABEL, tol_gap_abs=tol, tol_gap_rel=tol, tol_feas=tol)
    found = np.full(x.size, np.nan) if x.value is None else np.array(x.value, float)  # None: found to be infeasible
    return found, float(problem.solver_stats.num_iters)
