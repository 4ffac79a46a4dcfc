"""What users run on convex programs today: each a function of the instances that returns solutions and multipliers.

Solvers are set up once and then updated and warm-started, as their manuals advise for a sequence of programs. Each
function takes a family and a tolerance and returns `run`, which solves instances one by one, in order. What is not
installed is left out.
"""

import importlib
import warnings
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from bygrad.problems import MeanVariance, QuadraticProgram, SparseCoding
from bygrad.solvers import reduce_program

Found: TypeAlias = tuple[np.ndarray, np.ndarray]
Run: TypeAlias = Callable[[np.ndarray], Found]


def module(name: str) -> Any:
    """Return a module, or None where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def vectors(family: QuadraticProgram, data: np.ndarray) -> list[tuple[np.ndarray, ...]]:
    """Return q, l and u of every instance; made before the clock runs."""
    with jax.enable_x64(True):
        made = jax.jit(jax.vmap(lambda family, one: family.vectors(one), (None, 0)))(family, jnp.asarray(data, float))
        columns = [np.asarray(it, float) for it in made]
    return list(zip(*columns, strict=True))


def dense(family: QuadraticProgram) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return P, A and which rows are equations, in float64."""
    quadratic, constraints = (np.asarray(it, float) for it in family.matrices)
    return quadratic, constraints, np.asarray(family.equations)


def osqp(family: QuadraticProgram, tol: float) -> Callable[[list[Any]], Found]:
    """OSQP with sparse matrices: set up once, limits updated, warm-started."""
    solver, sparse = module("osqp"), module("scipy.sparse")
    quadratic, constraints, equations = dense(family)
    problem: Any = None

    def run(programs: list[Any]) -> Found:
        nonlocal problem
        found, duals = [], []
        for linear, low, high in programs:
            if problem is None:
                problem = solver.OSQP()
                settings = {"eps_abs": tol, "eps_rel": tol, "verbose": False, "max_iter": 20_000}
                matrices = sparse.csc_matrix(quadratic), linear, sparse.csc_matrix(constraints)
                problem.setup(*matrices, low, high, **settings)
            problem.update(q=linear, l=low, u=high)
            result = problem.solve()
            found.append(result.x)
            duals.append(result.y[~equations])
        return np.array(found), np.array(duals)

    return run


def osqp_condensed(family: QuadraticProgram, tol: float) -> Callable[[list[Any]], Found]:
    """OSQP on the program without its equations, as experts in control write it: few variables, dense rows."""
    solver, sparse = module("osqp"), module("scipy.sparse")
    quadratic, constraints, equations = dense(family)
    with jax.enable_x64(True):
        to = reduce_program(quadratic, constraints, equations, np.full(len(constraints), np.inf), float)
        basis, inverse = np.asarray(to.basis), np.asarray(to.solve)
    inner, rows = sparse.csc_matrix(basis.T @ quadratic @ basis), constraints[~equations]
    matrix, problem = sparse.csc_matrix(rows @ basis), None

    def run(programs: list[Any]) -> Found:
        nonlocal problem
        found, duals = [], []
        for linear, low, high in programs:
            origin = inverse @ low[equations]
            slope, shift = basis.T @ (linear + quadratic @ origin), rows @ origin
            limits = low[~equations] - shift, high[~equations] - shift
            if problem is None:
                problem = solver.OSQP()
                settings = {"eps_abs": tol, "eps_rel": tol, "verbose": False, "max_iter": 20_000}
                problem.setup(inner, slope, matrix, *limits, **settings)
            problem.update(q=slope, l=limits[0], u=limits[1])
            result = problem.solve()
            found.append(basis @ result.x + origin)
            duals.append(result.y)
        return np.array(found), np.array(duals)

    return run


def clarabel(family: QuadraticProgram, tol: float) -> Callable[[list[Any]], Found]:
    """Clarabel, an interior-point method: it has no warm start."""
    solver, sparse = module("clarabel"), module("scipy.sparse")
    quadratic, constraints, equations = dense(family)
    rows, count = constraints[~equations], int(np.sum(~equations))
    matrices = sparse.csc_matrix(quadratic), sparse.csc_matrix(np.vstack([constraints[equations], rows, -rows]))
    settings = solver.DefaultSettings()
    settings.verbose, settings.tol_gap_abs, settings.tol_gap_rel, settings.tol_feas = False, tol, tol, tol
    cones = [solver.ZeroConeT(int(equations.sum())), solver.NonnegativeConeT(2 * count)]

    def run(programs: list[Any]) -> Found:
        found, duals = [], []
        for linear, low, high in programs:
            right = np.concatenate([low[equations], high[~equations], -low[~equations]])
            result = solver.DefaultSolver(matrices[0], linear, matrices[1], right, cones, settings).solve()
            found.append(result.x)
            pair = np.array(result.z)[int(equations.sum()) :]
            duals.append(pair[:count] - pair[count:])
        return np.array(found), np.array(duals)

    return run


def daqp(family: QuadraticProgram, tol: float) -> Callable[[list[Any]], Found]:
    """DAQP, a dual active-set method for small dense programs, started from the last active set; it is exact.

    A little curvature (1e-4) makes the objective strictly convex, as the method needs.
    """
    solver = module("daqp")
    quadratic, constraints, equations = dense(family)
    size, count = len(quadratic), int(np.sum(~equations))
    # Simple bounds come first; in `EconomicDispatch` they are the first rows behind the equation.
    rows = np.ascontiguousarray(np.vstack([constraints[~equations][size:], constraints[equations]]))
    sense = np.zeros(count + int(equations.sum()), np.int32)
    sense[count:] = 5
    model = solver.Model()
    begun = False

    def run(programs: list[Any]) -> Found:
        nonlocal begun
        found, duals = [], []
        for linear, low, high in programs:
            high, low = (np.concatenate([it[~equations], it[equations]]) for it in (high, low))
            if not begun:
                model.setup(quadratic + 1e-4 * np.eye(size), linear.copy(), rows, high, low, sense)
                begun = True
            model.update(bupper=high, blower=low)
            x, _, _, information = model.solve()
            found.append(np.array(x))
            duals.append(np.array(information["lam"])[:count])
        return np.array(found), np.array(duals)

    return run


def piqp(family: QuadraticProgram, tol: float) -> Callable[[list[Any]], Found]:
    """PIQP, an interior-point method for small dense programs, set up once."""
    solver = module("piqp")
    quadratic, constraints, equations = dense(family)
    size, begun = len(quadratic), False
    problem = solver.DenseSolver()
    problem.settings.eps_abs = problem.settings.eps_rel = tol
    rows = np.asfortranarray(constraints[~equations][size:])

    def run(programs: list[Any]) -> Found:
        nonlocal begun
        found, duals = [], []
        for linear, low, high in programs:
            given, low, high = low[equations], low[~equations], high[~equations]
            if not begun:
                equal = np.asfortranarray(constraints[equations])
                first = np.asfortranarray(quadratic), linear, equal, given, rows, low[size:], high[size:]
                problem.setup(*first, low[:size], high[:size])
                begun = True
            problem.update(b=given, h_l=low[size:], h_u=high[size:])
            problem.solve()
            result = problem.result
            found.append(np.array(result.x))
            duals.append(np.concatenate([np.zeros(size), np.array(result.z_u) - np.array(result.z_l)]))
        return np.array(found), np.array(duals)

    return run


def highs(family: QuadraticProgram, tol: float) -> Callable[[list[Any]], Found]:
    """HiGHS, by its own interface: the model is passed once, and limits of rows are changed."""
    solver, sparse = module("highspy"), module("scipy.sparse")
    quadratic, constraints, equations = dense(family)
    size, count = len(quadratic), int(np.sum(~equations))
    matrix = sparse.csc_matrix(np.vstack([constraints[~equations][size:], constraints[equations]]))
    index = np.arange(matrix.shape[0], dtype=np.int32)
    problem = solver.Highs()
    problem.setOptionValue("output_flag", False)

    def begin(linear: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
        model, diagonal = solver.HighsModel(), np.diag(quadratic)
        lp = model.lp_
        lp.num_col_, lp.num_row_, lp.col_cost_ = size, len(index), linear
        lp.col_lower_, lp.col_upper_, lp.row_lower_, lp.row_upper_ = low[:size], high[:size], low[size:], high[size:]
        lp.a_matrix_.format_ = solver.MatrixFormat.kColwise
        lp.a_matrix_.start_, lp.a_matrix_.index_, lp.a_matrix_.value_ = matrix.indptr, matrix.indices, matrix.data
        hessian = model.hessian_
        hessian.dim_, hessian.format_ = size, solver.HessianFormat.kTriangular
        hessian.start_ = np.concatenate([[0], np.cumsum(diagonal > 0)]).astype(np.int32)
        hessian.index_, hessian.value_ = np.flatnonzero(diagonal).astype(np.int32), diagonal[diagonal > 0]
        problem.passModel(model)

    begun = False

    def run(programs: list[Any]) -> Found:
        nonlocal begun
        found, duals = [], []
        for linear, low, high in programs:
            low, high = (np.concatenate([it[~equations], it[equations]]) for it in (low, high))
            if not begun:
                begin(linear, low, high)
                begun = True
            problem.changeRowsBounds(len(index), index, low[size:], high[size:])
            problem.run()
            result = problem.getSolution()
            found.append(np.array(result.col_value))
            lines = -np.array(result.row_dual)[: count - size]
            duals.append(np.concatenate([np.zeros(size), lines]))
        return np.array(found), np.array(duals)

    return run


def coordinate_descent(family: SparseCoding, sweeps: int) -> Run:
    """scikit-learn's `sparse_encode` with `lasso_cd` and the Gram matrix, stopped after `sweeps` sweeps."""
    encode = module("sklearn.decomposition").sparse_encode
    dictionary = np.asarray(family.dictionary, float)
    rows, gram = np.ascontiguousarray(dictionary.T), dictionary.T @ dictionary

    def run(data: np.ndarray) -> Found:
        weights = family.strength * np.max(np.abs(data @ dictionary), axis=1, keepdims=True)
        # One strength for all: the code of a scaled patch is the scaled code.
        with warnings.catch_warnings(action="ignore"):  # it tells that it stopped early
            codes = encode(data / weights, rows, gram=gram, algorithm="lasso_cd", alpha=1.0, max_iter=sweeps, n_jobs=1)
        return codes * weights, np.zeros((len(data), 0))

    return run


def portfolios(name: str, family: MeanVariance, tol: float) -> Run:
    """OSQP (set up once, matrix updated, warm-started) or Clarabel, window by window."""
    solver, sparse = module(name), module("scipy.sparse")
    size = family.returns.shape[1]
    upper = np.triu_indices(size)
    rows = np.vstack([np.ones((1, size)), np.eye(size)])
    order = np.lexsort(upper)  # OSQP and Clarabel want columns of the upper triangle
    inside, columns = upper[0][order], np.concatenate([[0], np.cumsum(np.arange(1, size + 1))])

    def triangle(matrix: np.ndarray) -> Any:
        return sparse.csc_matrix((matrix[upper][order], inside, columns), shape=(size, size))

    problem: Any = None

    def run(data: np.ndarray) -> Found:
        nonlocal problem
        found = []
        for matrix in data:
            if name == "osqp":
                if problem is None:
                    problem = solver.OSQP()
                    low, high = np.eye(1, size + 1)[0], np.concatenate([[1.0], np.full(size, family.cap)])
                    problem.setup(
                        triangle(matrix), np.zeros(size), sparse.csc_matrix(rows), low, high,
                        eps_abs=tol, eps_rel=tol, verbose=False, max_iter=20_000,
                    )  # fmt: skip
                problem.update(Px=matrix[upper][order])
                found.append(problem.solve().x)
                continue
            settings = solver.DefaultSettings()
            settings.verbose, settings.tol_gap_abs, settings.tol_gap_rel, settings.tol_feas = False, tol, tol, tol
            stacked = sparse.csc_matrix(np.vstack([rows, -np.eye(size)]))
            right = np.concatenate([[1.0], np.full(size, family.cap), np.zeros(size)])
            cones = [solver.ZeroConeT(1), solver.NonnegativeConeT(2 * size)]
            made = solver.DefaultSolver(triangle(matrix), np.zeros(size), stacked, right, cones, settings)
            found.append(made.solve().x)
        return np.array(found), np.zeros((len(data), 0))

    return run
