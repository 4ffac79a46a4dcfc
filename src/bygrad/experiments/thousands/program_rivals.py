"""Solvers of quadratic programs, each as its documentation advises for many programs that share their matrices."""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, PyTree

from ...problems import MeanVariance, QuadraticProgram
from ...solvers import Flat
from .rival import Build, looped, ready_by


class HardProgram(NamedTuple):
    """A quadratic program in which all rows must hold: P, A, which rows are equations, and q, l, u of instances."""

    quadratic: Float[np.ndarray, "n n"]
    constraints: Float[np.ndarray, "m n"]
    equations: np.ndarray
    vectors: Callable[[PyTree], tuple[np.ndarray, ...]]


def hard_program(flat: Flat, slack: bool = True) -> HardProgram:
    """Return a family's program; each soft row gets a slack variable, after the params, that has its price.

    `slack=False`: soft rows must hold. That is quicker to solve, and as good wherever they can hold.
    """
    family = flat.family
    assert isinstance(family, QuadraticProgram)
    quadratic, constraints = (np.asarray(it, float) for it in family.matrices)
    equations, price = np.asarray(family.equations), np.asarray(family.ceiling, float)
    compute = ready_by(lambda one: family.vectors(one))  # a bound method would be hashed
    soft = np.isfinite(price) & slack
    count, params = int(soft.sum()), len(quadratic)

    def vectors(instances: PyTree) -> tuple[np.ndarray, ...]:
        q, low, high = (np.asarray(it, float) for it in compute(instances))
        never, free, zero = (np.full((len(q), count), it) for it in (np.inf, -np.inf, 0.0))
        return (
            np.concatenate([q, np.tile(price[soft], (len(q), 1))], axis=1),
            np.concatenate([_part(low, ~soft), _part(low, soft), free, zero], axis=1),
            np.concatenate([_part(high, ~soft), never, _part(high, soft), never], axis=1),
        )

    unit, none = np.eye(count), np.zeros((len(constraints) - count, count))
    hard, limits = constraints[~soft], constraints[soft]
    rows = [[hard, none], [limits, unit], [limits, -unit], [np.zeros((count, params)), unit]]
    whole = np.zeros((params + count, params + count))
    whole[:params, :params] = quadratic
    return HardProgram(whole, np.block(rows), np.concatenate([equations[~soft], np.zeros(3 * count, bool)]), vectors)


def _part(values: np.ndarray, which: np.ndarray) -> np.ndarray:
    """Take some columns, such that every row lies in one piece."""
    return np.compress(which, values, axis=1)


def osqp(flat: Flat, factor: float = 1.0) -> Build:
    """Set OSQP up once, then update the vectors and solve; it starts where the last program ended, as by default.

    Its tolerances are on residuals, so that the cost may be off by more: `factor` tightens them.
    """
    module: Any = importlib.import_module("osqp")
    sparse: Any = importlib.import_module("scipy.sparse")
    quadratic, constraints, _, vectors = hard_program(flat)
    solvers: dict[float, Any] = {}

    def one_by_one(one: Any, tol: float) -> tuple[np.ndarray, float]:
        q, low, high = one
        if tol not in solvers:
            matrices = sparse.csc_matrix(np.triu(quadratic)), sparse.csc_matrix(constraints)
            solvers[tol] = _begin_osqp(module, matrices[0], q, matrices[1], low, high, factor * tol)
        else:
            solvers[tol].update(q=q, l=low, u=high)
        x, iterations = _solve_osqp(solvers[tol], len(q))
        return x[: flat.size], iterations

    return looped(one_by_one, vectors)


def _begin_osqp(module: Any, quadratic: Any, q: Any, constraints: Any, low: Any, high: Any, close: float) -> Any:
    solver = module.OSQP()
    settings = {"verbose": False, "eps_abs": close, "eps_rel": close, "max_iter": 20_000}
    solver.setup(quadratic, q, constraints, low, high, **settings)
    return solver


def _solve_osqp(solver: Any, size: int) -> tuple[np.ndarray, float]:
    found = solver.solve(raise_error=False)
    x = np.full(size, np.nan) if found.x is None else np.array(found.x, float)
    return x, float(found.info.iter)


def clarabel(flat: Flat) -> Build:
    """Set Clarabel's interior point method up once, then update the vectors and solve, each from the start."""
    module: Any = importlib.import_module("clarabel")
    sparse: Any = importlib.import_module("scipy.sparse")
    quadratic, constraints, equations, vectors = hard_program(flat)
    rows: list[np.ndarray] = []
    solvers: dict[float, Any] = {}

    def ready(instances: PyTree) -> tuple[np.ndarray, np.ndarray]:
        q, low, high = vectors(instances)
        above, below = ~equations & np.isfinite(high[0]), ~equations & np.isfinite(low[0])  # in all instances the same
        rows[:] = constraints[equations], constraints[above], -constraints[below]
        return q, np.concatenate([_part(high, equations), _part(high, above), -_part(low, below)], axis=1)

    def one_by_one(one: Any, tol: float) -> tuple[np.ndarray, float]:
        q, b = one
        if tol not in solvers:
            cones = [module.ZeroConeT(len(rows[0])), module.NonnegativeConeT(len(rows[1]) + len(rows[2]))]
            settings = module.DefaultSettings()
            settings.verbose = settings.presolve_enable = False
            settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = tol
            matrices = sparse.csc_matrix(np.triu(quadratic)), sparse.csc_matrix(np.concatenate(rows))
            solvers[tol] = module.DefaultSolver(matrices[0], q, matrices[1], b, cones, settings)
        else:
            solvers[tol].update(q=q, b=b)
        found = solvers[tol].solve()
        return np.array(found.x, float)[: flat.size], float(found.iterations)

    return looped(one_by_one, ready)


class Split(NamedTuple):
    """A hard program as solvers of small ones want it: limits of variables apart from general rows.

    `rows`: which rows of the program are general inequalities. `limits` maps l or u of instances to those of the
    variables, of these rows, and of the equations; the second argument stands for no limit.
    """

    program: HardProgram
    rows: np.ndarray
    limits: Callable[[np.ndarray, float], tuple[np.ndarray, np.ndarray, np.ndarray]]


def split(flat: Flat) -> Split:
    """Return a family's program, its soft rows as hard ones, with its rows sorted by what they are."""
    program = hard_program(flat, slack=False)
    simple = ~program.equations & (np.count_nonzero(program.constraints, axis=1) == 1)
    simple &= np.max(program.constraints, axis=1) == 1
    at, size = np.argmax(program.constraints[simple], axis=1), len(program.quadratic)
    rows = ~program.equations & ~simple

    def limits(values: np.ndarray, absent: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        variables = np.full((len(values), size), absent)
        variables[:, at] = values[:, simple]
        return variables, _part(values, rows), _part(values, program.equations)

    return Split(program, rows, limits)


def daqp(flat: Flat) -> Build:
    """Set DAQP up once, a dual active-set method that starts from the last active set; it is exact.

    A curvature of 1e-4 is added, as the method needs a strictly convex objective.
    """
    module: Any = importlib.import_module("daqp")
    (quadratic, constraints, equations, vectors), rows, limits = split(flat)
    general = np.ascontiguousarray(np.concatenate([constraints[rows], constraints[equations]]))
    sense = np.zeros(len(quadratic) + len(general), np.int32)
    sense[len(sense) - int(equations.sum()) :] = 5  # an equation, active for good
    models: dict[float, Any] = {}

    def ready(instances: PyTree) -> tuple[np.ndarray, ...]:
        q, low, high = vectors(instances)
        return q, np.concatenate(limits(high, 1e30), axis=1), np.concatenate(limits(low, -1e30), axis=1)

    def one_by_one(one: Any, tol: float) -> tuple[np.ndarray, float]:
        q, above, below = one
        if tol not in models:
            models[tol] = module.Model()
            models[tol].setup(quadratic + 1e-4 * np.eye(len(q)), q, general, above, below, sense)
        models[tol].update(f=q, bupper=above, blower=below)
        x, _, _, information = models[tol].solve()
        return np.array(x, float), float(information["iterations"])

    return looped(one_by_one, ready)


def piqp(flat: Flat) -> Build:
    """Set PIQP up once, an interior-point method with a dense and a sparse form, then update the vectors and solve."""
    module: Any = importlib.import_module("piqp")
    sparse: Any = importlib.import_module("scipy.sparse")
    (quadratic, constraints, equations, vectors), rows, limits = split(flat)
    few = np.count_nonzero(constraints) < 0.1 * constraints.size
    solver, form = (module.SparseSolver, sparse.csc_matrix) if few else (module.DenseSolver, np.asfortranarray)
    matrices = [form(it) for it in (quadratic, constraints[equations], constraints[rows])]
    solvers: dict[float, Any] = {}

    def ready(instances: PyTree) -> tuple[np.ndarray, ...]:
        q, low, high = vectors(instances)
        (x_high, above, given), (x_low, below, _) = limits(high, np.inf), limits(low, -np.inf)
        return q, given, below, above, x_low, x_high

    def one_by_one(one: Any, tol: float) -> tuple[np.ndarray, float]:
        q, given, below, above, x_low, x_high = one
        if tol not in solvers:
            solvers[tol] = solver()
            solvers[tol].settings.eps_abs = solvers[tol].settings.eps_rel = tol
            solvers[tol].setup(matrices[0], q, matrices[1], given, matrices[2], below, above, x_low, x_high)
        else:
            solvers[tol].update(c=q, b=given, h_l=below, h_u=above, x_l=x_low, x_u=x_high)
        solvers[tol].solve()
        result = solvers[tol].result
        return np.array(result.x, float), float(result.info.iter)

    return looped(one_by_one, ready)


def highs(flat: Flat) -> Build:
    """Pass HiGHS the program once, by its own interface, then change costs and limits; it is exact."""
    module: Any = importlib.import_module("highspy")
    sparse: Any = importlib.import_module("scipy.sparse")
    (quadratic, constraints, equations, vectors), rows, limits = split(flat)
    matrix = sparse.csc_matrix(np.concatenate([constraints[rows], constraints[equations]]))
    hessian = sparse.csc_matrix(np.tril(quadratic))
    columns, lines = (np.arange(size, dtype=np.int32) for size in matrix.shape[::-1])
    solvers: dict[float, Any] = {}

    def begin() -> Any:
        solver, model = module.Highs(), module.HighsModel()
        solver.setOptionValue("output_flag", False)
        lp, size = model.lp_, len(columns)
        lp.num_col_, lp.num_row_, lp.col_cost_ = size, len(lines), np.zeros(size)
        lp.col_lower_, lp.col_upper_ = np.zeros(size), np.zeros(size)
        lp.row_lower_, lp.row_upper_ = np.zeros(len(lines)), np.zeros(len(lines))
        lp.a_matrix_.format_ = module.MatrixFormat.kColwise
        lp.a_matrix_.start_, lp.a_matrix_.index_, lp.a_matrix_.value_ = matrix.indptr, matrix.indices, matrix.data
        model.hessian_.dim_, model.hessian_.format_ = size, module.HessianFormat.kTriangular
        model.hessian_.start_, model.hessian_.index_ = hessian.indptr, hessian.indices
        model.hessian_.value_ = hessian.data
        solver.passModel(model)
        return solver

    def ready(instances: PyTree) -> tuple[np.ndarray, ...]:
        q, low, high = vectors(instances)
        (x_high, *above), (x_low, *below) = limits(high, np.inf), limits(low, -np.inf)
        return q, x_low, x_high, np.concatenate(below, axis=1), np.concatenate(above, axis=1)

    def one_by_one(one: Any, tol: float) -> tuple[np.ndarray, float]:
        q, x_low, x_high, below, above = one
        if tol not in solvers:
            solvers[tol] = begin()
        solver = solvers[tol]
        solver.changeColsCost(len(columns), columns, q)
        solver.changeColsBounds(len(columns), columns, x_low, x_high)
        solver.changeRowsBounds(len(lines), lines, below, above)
        solver.run()
        return np.array(solver.getSolution().col_value, float), float(solver.getInfo().qp_iteration_count)

    return looped(one_by_one, ready)


def in_units(covariances: Float[np.ndarray, "rows n n"]) -> Float[np.ndarray, "rows n n"]:
    """Return the covariance of each window in units of its mean variance."""
    return covariances / np.mean(np.diagonal(covariances, axis1=1, axis2=2), axis=1)[:, None, None]


def _columns(covariances: Float[np.ndarray, "rows n n"]) -> Float[np.ndarray, "rows e"]:
    """Return the upper triangle of each, column by column, as solvers of sparse programs have it."""
    lower = np.tril_indices(covariances.shape[1])  # of the transpose, so that it runs along columns
    return np.ascontiguousarray(in_units(covariances)[:, lower[1], lower[0]])


def clarabel_portfolio(flat: Flat) -> Build:
    """Set Clarabel up once, then update the covariance, in units of its mean variance, and solve, from the start."""
    module: Any = importlib.import_module("clarabel")
    sparse: Any = importlib.import_module("scipy.sparse")
    family, n = flat.family, flat.size
    assert isinstance(family, MeanVariance)
    rows = sparse.csc_matrix(np.concatenate([np.ones((1, n)), -np.eye(n), np.eye(n)]))
    b, cones = np.concatenate([[1.0], np.zeros(n), np.full(n, family.cap)]), [module.ZeroConeT(1)]
    cones.append(module.NonnegativeConeT(2 * n))
    pattern = sparse.csc_matrix(np.triu(np.ones((n, n))))
    solvers: dict[float, Any] = {}

    def one_by_one(one: Any, tol: float) -> tuple[np.ndarray, float]:
        if tol not in solvers:
            settings = module.DefaultSettings()
            settings.verbose = settings.presolve_enable = False
            settings.tol_gap_abs = settings.tol_gap_rel = 0.1 * tol  # of costs well below 1
            quadratic = sparse.csc_matrix((one, pattern.indices, pattern.indptr))
            solvers[tol] = module.DefaultSolver(quadratic, np.zeros(n), rows, b, cones, settings)
        else:
            solvers[tol].update(P=one)
        found = solvers[tol].solve()
        return np.array(found.x, float), float(found.iterations)

    return looped(one_by_one, _columns)


def osqp_portfolio(flat: Flat) -> Build:
    """Set OSQP up once, then update the covariance, in units of its mean variance, and solve; it starts where the last
    portfolio ended, as by default."""
    module: Any = importlib.import_module("osqp")
    sparse: Any = importlib.import_module("scipy.sparse")
    family, n = flat.family, flat.size
    assert isinstance(family, MeanVariance)
    rows = sparse.csc_matrix(np.concatenate([np.ones((1, n)), np.eye(n)]))
    low, high = np.append(1.0, np.zeros(n)), np.append(1.0, np.full(n, float(family.cap)))
    pattern = sparse.csc_matrix(np.triu(np.ones((n, n))))
    solvers: dict[float, Any] = {}

    def one_by_one(one: Any, tol: float) -> tuple[np.ndarray, float]:
        if tol not in solvers:
            quadratic = sparse.csc_matrix((one, pattern.indices, pattern.indptr))
            # Costs are well below 1, and tolerances are on residuals.
            solvers[tol] = _begin_osqp(module, quadratic, np.zeros(n), rows, low, high, 0.1 * tol)
        else:
            solvers[tol].update(Px=one)
        return _solve_osqp(solvers[tol], n)

    return looped(one_by_one, _columns)


def daqp_portfolio(flat: Flat) -> Build:
    """Choose portfolios one by one by DAQP, with the covariance of each window in units of its mean variance."""
    module: Any = importlib.import_module("daqp")
    family, n = flat.family, flat.size
    assert isinstance(family, MeanVariance)
    linear, row = np.zeros(n), np.ones((1, n))
    above, below = np.append(np.full(n, float(family.cap)), 1.0), np.append(np.zeros(n), 1.0)
    sense = np.append(np.zeros(n, np.int32), np.int32(5))  # the sum is an equation

    def one_by_one(one: Any, tol: float) -> tuple[np.ndarray, float]:
        x, _, _, information = module.solve(one, linear, row, above, below, sense)
        return np.array(x, float), float(information["iterations"])

    return looped(one_by_one, in_units)
