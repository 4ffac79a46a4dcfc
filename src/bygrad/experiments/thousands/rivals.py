"""What users run today, each as its documentation advises, and the compiled peer: solvers of others, as rows."""

import dataclasses
import functools
import importlib
import importlib.util
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ...problems import Composite, LeastSquares, MeanVariance, ProblemFamily, QuadraticProgram, SparseCoding
from ...solvers import Flat
from ...solvers.solve import precision


class Outcome(NamedTuple):
    """Answers to a batch: params, when each was there (on the clock of `time.perf_counter`), evaluations, fallbacks."""

    x: Float[np.ndarray, "rows p"]
    finished: Float[np.ndarray, " rows"]
    evaluations: Float[np.ndarray, " rows"]
    fallback: np.ndarray


Run = Callable[[PyTree], Outcome]
"""Solves a batch of instances, rows of arrays."""

Build = Callable[[float], Run]
"""Maps a tolerance to what solves to it; what compiles, compiles once for all tolerances."""


@dataclasses.dataclass(frozen=True)
class Rival:
    """A solver of others.

    **Arguments:** `needs`: modules, and what to install where one is missing. `serves`: whether it suits a family.
    `build`: from the flat family to solvers by tolerance. `loops`: it solves one instance after the
    other on one core; a process on every other core would serve as well, so that is what it is credited with.
    """

    name: str
    group: str
    needs: dict[str, str]
    serves: Callable[[ProblemFamily], bool]
    build: Callable[[Flat], Build]
    loops: bool = True

    @property
    def missing(self) -> str | None:
        """Say what to install, if anything."""
        absent = [package for module, package in self.needs.items() if importlib.util.find_spec(module) is None]
        return f"not installed: pip install {' '.join(absent)}" if absent else None


def looped(solve_one: Callable[[Any, float], tuple[np.ndarray, float]]) -> Build:
    """Return what solves instances one by one, from what maps instance and tolerance to params and evaluations."""

    def run(instances: PyTree, tol: float) -> Outcome:
        x, finished, evaluations = [], [], []
        for one in each(instances):
            found, count = solve_one(one, tol)
            x.append(found)
            evaluations.append(count)
            finished.append(time.perf_counter())
        return Outcome(np.stack(x), np.array(finished), np.array(evaluations, float), np.zeros(len(x), bool))

    return lambda tol: _in_double(lambda instances: run(instances, tol))


def each(instances: PyTree) -> Iterator[Any]:
    """Yield the rows of a batch."""
    for row in range(len(jax.tree.leaves(instances)[0])):
        yield jax.tree.map(lambda leaf: leaf[row], instances)  # noqa: B023


def _init(flat: Flat) -> Callable[[Any], np.ndarray]:
    compiled = jax.jit(lambda one: flat.vector(flat.family.init(one, jax.random.key(0))))
    return lambda one: np.asarray(compiled(one), float)


def _limits(flat: Flat, x: np.ndarray, one: Any) -> tuple[np.ndarray, np.ndarray]:
    low, high = flat.bounds(jnp.asarray(x), one)
    return np.asarray(low), np.asarray(high)


def scipy_least_squares(flat: Flat) -> Build:
    """Fit one by one by `scipy.optimize.least_squares`, with residuals and Jacobian compiled by JAX."""
    optimize: Any = importlib.import_module("scipy.optimize")
    family = flat.family
    assert isinstance(family, LeastSquares)
    values = jax.jit(lambda x, one: family.residuals(flat.params(x), one))
    slopes = jax.jit(jax.jacfwd(lambda x, one: family.residuals(flat.params(x), one)))
    init = _init(flat)

    def one_by_one(one: Any, tol: float) -> tuple[np.ndarray, float]:
        start = init(one)
        low, high = _limits(flat, start, one)
        close = min(0.1 * tol, 1e-4)
        found = optimize.least_squares(
            lambda x: np.asarray(values(x, one)),
            np.clip(start, low, high),
            jac=lambda x: np.asarray(slopes(x, one)),
            bounds=(low, high),
            x_scale="jac",
            ftol=close,
            xtol=close,
            gtol=1e-8,
        )
        return found.x, float(found.nfev)

    return looped(one_by_one)


def scipy_minimize(flat: Flat) -> Build:
    """Minimize one by one by SciPy's L-BFGS-B, with value and gradient compiled by JAX."""
    optimize: Any = importlib.import_module("scipy.optimize")
    compiled = jax.jit(jax.value_and_grad(flat.loss))
    init = _init(flat)

    def both(x: np.ndarray, one: Any) -> tuple[float, np.ndarray]:
        value, slope = compiled(x, one)
        return float(value), np.asarray(slope, float)

    def one_by_one(one: Any, tol: float) -> tuple[np.ndarray, float]:
        start = init(one)
        low, high = _limits(flat, start, one)
        bounds = None if np.all(np.isinf(low)) and np.all(np.isinf(high)) else list(zip(low, high, strict=True))
        options = {"ftol": 1e-3 * tol, "gtol": 1e-3 * tol, "maxiter": 15_000, "maxfun": 15_000}
        found = optimize.minimize(
            both, np.clip(start, low, high), (one,), jac=True, method="L-BFGS-B", bounds=bounds, options=options
        )
        return found.x, float(found.nfev)

    return looped(one_by_one)


def optimistix_least_squares(flat: Flat) -> Build:
    """Compile `vmap` of Optimistix's Levenberg–Marquardt; it runs until the slowest instance of a batch stops."""
    optimistix: Any = importlib.import_module("optimistix")
    family = flat.family
    assert isinstance(family, LeastSquares)

    def one(instance: Any, tol: Array) -> tuple[Array, Array]:
        start = flat.vector(family.init(instance, jax.random.key(0)))
        solver = optimistix.LevenbergMarquardt(rtol=tol, atol=tol)
        fun = lambda x, instance: family.residuals(flat.params(x), instance)  # noqa: E731
        found = optimistix.least_squares(fun, solver, start, args=instance, max_steps=256, throw=False)
        return found.value, found.stats["num_steps"]

    return _vmapped(one)


def optimistix_minimise(flat: Flat) -> Build:
    """Compile `vmap` of Optimistix's BFGS."""
    optimistix: Any = importlib.import_module("optimistix")

    def one(instance: Any, tol: Array) -> tuple[Array, Array]:
        start = flat.vector(flat.family.init(instance, jax.random.key(0)))
        solver = optimistix.BFGS(rtol=tol, atol=tol)
        found = optimistix.minimise(flat.loss, solver, start, args=instance, max_steps=1024, throw=False)
        return found.value, found.stats["num_steps"]

    return _vmapped(one)


def _vmapped(one: Callable[[Any, Array], tuple[Array, Array]], batch: int = 1024) -> Build:
    compiled = jax.jit(jax.vmap(one, in_axes=(0, None)))

    def run(instances: PyTree, tol: float) -> Outcome:
        rows = len(jax.tree.leaves(instances)[0])
        parts, finished = [], np.empty(rows)
        for at in range(0, rows, batch):
            # The last batch is filled up, as another shape would compile again.
            pick = np.minimum(np.arange(at, at + min(batch, rows)), rows - 1)
            x, steps = compiled(jax.tree.map(lambda leaf: leaf[pick], instances), min(0.1 * tol, 1e-4))  # noqa: B023
            parts.append((np.asarray(x)[: rows - at], np.asarray(steps, float)[: rows - at]))
            finished[at : at + batch] = time.perf_counter()
        x, steps = (np.concatenate(it) for it in zip(*parts, strict=True))
        return Outcome(x, finished, steps, np.zeros(rows, bool))

    return lambda tol: _in_double(lambda instances: run(instances, tol))


def _in_double(run: Run) -> Run:
    """Run in float64, whatever `jax_enable_x64` says."""

    def inside(instances: PyTree) -> Outcome:
        with precision(np.float64):
            return run(instances)

    return inside


def coordinate_descent(flat: Flat) -> Build:
    """Code patches by scikit-learn's coordinate descent on the Gram matrix, as its `sparse_encode` does.

    Each patch is divided by its own penalty, so that one model serves all. It is not `sparse_encode` itself because
    that works to a tolerance of 1e-8 alone.
    """
    linear_model: Any = importlib.import_module("sklearn.linear_model")
    family = flat.family
    assert isinstance(family, SparseCoding)
    dictionary = np.asarray(family.dictionary, float, order="F")
    gram, pixels = dictionary.T @ dictionary, len(dictionary)

    def run(instances: np.ndarray, tol: float) -> Outcome:
        weight = family.strength * np.max(np.abs(instances @ dictionary), axis=1)
        x = np.empty((len(instances), dictionary.shape[1]))
        finished, steps = np.empty(len(instances)), np.empty(len(instances))
        for at in range(0, len(instances), 64):
            some = slice(at, at + 64)
            # Its tolerance is relative to |y|², of which the cost is about a tenth.
            model = linear_model.Lasso(
                alpha=1 / pixels, fit_intercept=False, precompute=gram, tol=0.1 * tol, max_iter=10_000
            )
            targets = np.asfortranarray((instances[some] / weight[some, None]).T)
            model.fit(dictionary, targets, check_input=False)
            x[some] = model.coef_.reshape(-1, dictionary.shape[1]) * weight[some, None]
            steps[some] = model.n_iter_
            finished[some] = time.perf_counter()
        return Outcome(x, finished, steps, np.zeros(len(instances), bool))

    return lambda tol: lambda instances: run(instances, tol)


def osqp(flat: Flat, factor: float = 1.0) -> Build:
    """Set OSQP up once, then update the vectors and solve; it starts where the last program ended, as by default.

    Its tolerances are on residuals, so that the cost may be off by more: `factor` tightens them.
    """
    module: Any = importlib.import_module("osqp")
    sparse: Any = importlib.import_module("scipy.sparse")
    quadratic, constraints, _, vectors = hard_program(flat)
    solvers: dict[float, Any] = {}

    def one_by_one(one: Any, tol: float) -> tuple[np.ndarray, float]:
        q, low, high = vectors(one)
        if tol not in solvers:
            solvers[tol] = module.OSQP()
            matrices = sparse.csc_matrix(np.triu(quadratic)), sparse.csc_matrix(constraints)
            close = factor * tol
            settings = {"verbose": False, "eps_abs": close, "eps_rel": close, "max_iter": 20_000}
            solvers[tol].setup(matrices[0], q, matrices[1], low, high, **settings)
        else:
            solvers[tol].update(q=q, l=low, u=high)
        found = solvers[tol].solve(raise_error=False)
        x = np.full(len(q), np.nan) if found.x is None else np.array(found.x, float)
        return x[: flat.size], float(found.info.iter)

    return looped(one_by_one)


def clarabel(flat: Flat) -> Build:
    """Set Clarabel's interior point method up once, then update the vectors and solve, each from the start."""
    module: Any = importlib.import_module("clarabel")
    sparse: Any = importlib.import_module("scipy.sparse")
    quadratic, constraints, equations, vectors = hard_program(flat)
    solvers: dict[float, Any] = {}

    def one_by_one(one: Any, tol: float) -> tuple[np.ndarray, float]:
        q, low, high = vectors(one)
        above, below = ~equations & np.isfinite(high), ~equations & np.isfinite(low)  # in every instance the same
        b = np.concatenate([high[equations], high[above], -low[below]])
        if tol not in solvers:
            rows = [constraints[equations], constraints[above], -constraints[below]]
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

    return looped(one_by_one)


class HardProgram(NamedTuple):
    """A quadratic program in which all rows must hold: P, A, which rows are equations, and q, l, u by instance."""

    quadratic: Float[np.ndarray, "n n"]
    constraints: Float[np.ndarray, "m n"]
    equations: np.ndarray
    vectors: Callable[[Any], tuple[np.ndarray, ...]]


def hard_program(flat: Flat) -> HardProgram:
    """Return a family's program; each soft row gets a slack variable, after the params, that has its price."""
    family = flat.family
    assert isinstance(family, QuadraticProgram)
    quadratic, constraints = (np.asarray(it, float) for it in family.matrices)
    equations, price = np.asarray(family.equations), np.asarray(family.ceiling, float)
    compiled = jax.jit(lambda one: family.vectors(one))
    soft = np.isfinite(price)
    count, params = int(soft.sum()), len(quadratic)

    def vectors(one: Any) -> tuple[np.ndarray, ...]:
        q, low, high = (np.asarray(it, float) for it in compiled(one))
        never, free, zero = np.full(count, np.inf), np.full(count, -np.inf), np.zeros(count)
        return (
            np.concatenate([q, price[soft]]),
            np.concatenate([low[~soft], low[soft], free, zero]),
            np.concatenate([high[~soft], never, high[soft], never]),
        )

    slack, none = np.eye(count), np.zeros((len(constraints) - count, count))
    hard, limits = constraints[~soft], constraints[soft]
    rows = [[hard, none], [limits, slack], [limits, -slack], [np.zeros((count, params)), slack]]
    whole = np.zeros((params + count, params + count))
    whole[:params, :params] = quadratic
    return HardProgram(whole, np.block(rows), np.concatenate([equations[~soft], np.zeros(3 * count, bool)]), vectors)


def clarabel_portfolio(flat: Flat) -> Build:
    """Choose portfolios one by one by Clarabel, with the covariance of each window."""
    module: Any = importlib.import_module("clarabel")
    sparse: Any = importlib.import_module("scipy.sparse")
    family, n = flat.family, flat.size
    assert isinstance(family, MeanVariance)
    rows = sparse.csc_matrix(np.concatenate([np.ones((1, n)), -np.eye(n), np.eye(n)]))
    b, cones = np.concatenate([[1.0], np.zeros(n), np.full(n, family.cap)]), [module.ZeroConeT(1)]
    cones.append(module.NonnegativeConeT(2 * n))

    def one_by_one(one: Any, tol: float) -> tuple[np.ndarray, float]:
        settings = module.DefaultSettings()
        settings.verbose = False
        settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = tol
        solver = module.DefaultSolver(sparse.csc_matrix(np.triu(one)), np.zeros(n), rows, b, cones, settings)
        found = solver.solve()
        return np.array(found.x, float), float(found.iterations)

    return looped(one_by_one)


def _smooth(family: ProblemFamily) -> bool:
    return not isinstance(family, LeastSquares | Composite | QuadraticProgram)


_SCIPY = {"scipy": "scipy"}
RIVALS: tuple[Rival, ...] = (
    Rival(
        "SciPy least_squares, loop",
        "users",
        _SCIPY,
        lambda family: isinstance(family, LeastSquares),
        scipy_least_squares,
    ),
    Rival("SciPy L-BFGS-B, loop", "users", _SCIPY, _smooth, scipy_minimize),
    Rival(
        "scikit-learn coordinate descent",
        "users",
        {"sklearn": "scikit-learn"},
        lambda family: isinstance(family, SparseCoding),
        coordinate_descent,
    ),
    Rival(
        "OSQP, loop",
        "users",
        {"osqp": "osqp", **_SCIPY},
        lambda family: isinstance(family, QuadraticProgram),
        osqp,
    ),
    Rival(
        "OSQP to a tenth of the tolerance, loop",
        "users",
        {"osqp": "osqp", **_SCIPY},
        lambda family: isinstance(family, QuadraticProgram),
        functools.partial(osqp, factor=0.1),
    ),
    Rival(
        "Clarabel, loop",
        "users",
        {"clarabel": "clarabel", **_SCIPY},
        lambda family: isinstance(family, QuadraticProgram),
        clarabel,
    ),
    Rival(
        "Clarabel, a program each",
        "users",
        {"clarabel": "clarabel", **_SCIPY},
        lambda family: isinstance(family, MeanVariance),
        clarabel_portfolio,
    ),
    Rival(
        "vmap of Optimistix LM",
        "peer",
        {"optimistix": "optimistix"},
        lambda family: isinstance(family, LeastSquares),
        optimistix_least_squares,
        loops=False,
    ),
    Rival("vmap of Optimistix BFGS", "peer", {"optimistix": "optimistix"}, _smooth, optimistix_minimise, loops=False),
)
"""Solvers of others, each for the families that it serves."""
