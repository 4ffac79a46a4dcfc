"""What users run today, each as its documentation advises, and the compiled peer: solvers of others, as rows."""

import dataclasses
import functools
import importlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, PyTree

from ..._core import trees
from ...problems import (
    BallAndStick,
    LeastSquares,
    MeanVariance,
    OralDose,
    ProblemFamily,
    QuadraticProgram,
    SparseCoding,
)
from ...solvers import Flat
from . import ours
from .cvxpy_rivals import cvxpy_portfolio, cvxpy_program
from .program_rivals import clarabel, clarabel_portfolio, daqp, daqp_portfolio, highs, osqp, osqp_portfolio, piqp
from .rival import Build, Outcome, Rival, in_double, looped


def _init(flat: Flat) -> Callable[[Any], np.ndarray]:
    compiled = jax.jit(lambda one: flat.vector(flat.family.init(one, jax.random.key(0))))
    return lambda one: np.asarray(compiled(one), float)


def _limits(flat: Flat) -> Callable[[np.ndarray, Any], tuple[np.ndarray, np.ndarray, bool]]:
    """Return what maps start and instance to the limits of params, and to whether there are none."""
    compiled = jax.jit(lambda x, one: flat.bounds(x, one))  # a bound method would be hashed

    def limits(x: np.ndarray, one: Any) -> tuple[np.ndarray, np.ndarray, bool]:
        low, high = (np.asarray(it) for it in compiled(x, one))
        return low, high, bool(np.isinf(low).all() and np.isinf(high).all())

    return limits


def scipy_least_squares(flat: Flat) -> Build:
    """Fit one by one by `scipy.optimize.least_squares`, with residuals and Jacobian compiled by JAX.

    As its documentation advises, by MINPACK (`lm`) where there are no limits, and by a trust region where there are.
    """
    optimize: Any = importlib.import_module("scipy.optimize")
    family = flat.family
    assert isinstance(family, LeastSquares)
    values = jax.jit(lambda x, one: family.residuals(flat.params(x), one))
    slopes = jax.jit(jax.jacfwd(lambda x, one: family.residuals(flat.params(x), one)))
    init, limits = _init(flat), _limits(flat)

    def one_by_one(one: Any, tol: float) -> tuple[np.ndarray, float]:
        start = init(one)
        low, high, free = limits(start, one)
        close = min(0.1 * tol, 1e-4)
        found = optimize.least_squares(
            lambda x: np.asarray(values(x, one)),
            np.clip(start, low, high),
            jac=lambda x: np.asarray(slopes(x, one)),
            bounds=(low, high),
            x_scale="jac",
            method="lm" if free else "trf",
            ftol=close,
            xtol=close,
            gtol=1e-8,
        )
        return found.x, float(found.nfev)

    return looped(one_by_one)


def voxel_residuals(family: BallAndStick) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Return the residuals of a voxel in NumPy, as a function of params and signals."""
    bvals, bvecs = np.asarray(family.bvals, float), np.asarray(family.bvecs, float)

    def residuals(p: np.ndarray, signals: np.ndarray) -> np.ndarray:
        n = np.array([np.sin(p[3]) * np.cos(p[4]), np.sin(p[3]) * np.sin(p[4]), np.cos(p[3])])
        decay, fraction = bvals * np.exp(p[1]), np.sin(p[2]) ** 2
        model = fraction * np.exp(-decay * (bvecs @ n) ** 2) + (1 - fraction) * np.exp(-decay)
        return (np.exp(p[0]) * model - signals) / family.noise

    return residuals


def minpack_voxels(flat: Flat) -> Build:
    """Fit voxels one by one by MINPACK itself on a model in NumPy: for residuals this cheap, the least work around."""
    optimize: Any = importlib.import_module("scipy.optimize")
    assert isinstance(flat.family, BallAndStick)
    residuals, init = voxel_residuals(flat.family), _init(flat)

    def one_by_one(one: Any, tol: float) -> tuple[np.ndarray, float]:
        close = min(0.1 * tol, 1e-4)
        x, _, found, *_ = optimize.leastsq(residuals, init(one), (one,), full_output=True, ftol=close, xtol=close)
        return x, float(found["nfev"])

    return looped(one_by_one)


def _stripped(flat: Flat) -> Flat:
    """Return oral doses that start where pharmacologists do: from a curve that is stripped of its absorption."""
    assert isinstance(flat.family, OralDose)
    return dataclasses.replace(flat, family=dataclasses.replace(flat.family, start="stripping"))


def _scipy_from_stripping(flat: Flat) -> Build:
    return scipy_least_squares(_stripped(flat))


def _batched_from_stripping(flat: Flat) -> Build:
    return functools.partial(ours.batched, _stripped(flat))


def scipy_minimize(flat: Flat) -> Build:
    """Minimize one by one by SciPy's L-BFGS-B, with value and gradient compiled by JAX."""
    optimize: Any = importlib.import_module("scipy.optimize")
    compiled = jax.jit(jax.value_and_grad(flat.loss))
    init, limits = _init(flat), _limits(flat)

    def both(x: np.ndarray, one: Any) -> tuple[float, np.ndarray]:
        value, slope = compiled(x, one)
        return float(value), np.asarray(slope, float)

    def one_by_one(one: Any, tol: float) -> tuple[np.ndarray, float]:
        start = init(one)
        low, high, free = limits(start, one)
        bounds = None if free else list(zip(low, high, strict=True))
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
        rows = trees.length(instances)
        parts, finished = [], np.empty(rows)
        for at in range(0, rows, batch):
            # The last batch is filled up, as another shape would compile again.
            pick = np.minimum(np.arange(at, at + min(batch, rows)), rows - 1)
            x, steps = compiled(trees.rows(instances, pick), min(0.1 * tol, 1e-4))
            parts.append((np.asarray(x)[: rows - at], np.asarray(steps, float)[: rows - at]))
            finished[at : at + batch] = time.perf_counter()
        x, steps = (np.concatenate(it) for it in zip(*parts, strict=True))
        return Outcome(x, finished, steps, np.zeros(rows, bool))

    return lambda tol: in_double(lambda instances: run(instances, tol))


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


_SCIPY = {"scipy": "scipy"}
_OSQP, _CLARABEL = {"osqp": "osqp", **_SCIPY}, {"clarabel": "clarabel", **_SCIPY}
_CVXPY, _OPTIMISTIX = {"cvxpy": "cvxpy", **_CLARABEL}, {"optimistix": "optimistix"}
RIVALS: tuple[Rival, ...] = (
    Rival("SciPy least_squares, loop", "users", _SCIPY, LeastSquares, scipy_least_squares),
    Rival("MINPACK on NumPy, loop", "users", _SCIPY, BallAndStick, minpack_voxels),
    Rival("SciPy least_squares from curve stripping, loop", "users", _SCIPY, OralDose, _scipy_from_stripping),
    Rival("batched, from curve stripping", "warm", {}, OralDose, _batched_from_stripping, loops=False),
    Rival("SciPy L-BFGS-B, loop", "users", _SCIPY, ProblemFamily, scipy_minimize),
    Rival("scikit-learn coordinate descent", "users", {"sklearn": "scikit-learn"}, SparseCoding, coordinate_descent),
    Rival("OSQP, loop", "users", _OSQP, QuadraticProgram, osqp),
    Rival(
        "OSQP to a tenth of the tolerance, loop", "users", _OSQP, QuadraticProgram, functools.partial(osqp, factor=0.1)
    ),
    Rival("OSQP, covariances updated, loop", "users", _OSQP, MeanVariance, osqp_portfolio),
    Rival("Clarabel, loop", "users", _CLARABEL, QuadraticProgram, clarabel),
    Rival("Clarabel, a program each", "users", _CLARABEL, MeanVariance, clarabel_portfolio),
    Rival("CVXPY with parameters and Clarabel, loop", "users", _CVXPY, QuadraticProgram, cvxpy_program),
    Rival("CVXPY with a parameter and Clarabel, loop", "users", _CVXPY, MeanVariance, cvxpy_portfolio),
    Rival("HiGHS, loop", "compiled", {"highspy": "highspy", **_SCIPY}, QuadraticProgram, highs),
    Rival("PIQP, loop", "compiled", {"piqp": "piqp"}, QuadraticProgram, piqp),
    Rival("DAQP, last active set, loop", "compiled", {"daqp": "daqp"}, QuadraticProgram, daqp),
    Rival("DAQP, a program each", "compiled", {"daqp": "daqp"}, MeanVariance, daqp_portfolio),
    Rival("vmap of Optimistix LM", "peer", _OPTIMISTIX, LeastSquares, optimistix_least_squares, loops=False),
    Rival("vmap of Optimistix BFGS", "peer", _OPTIMISTIX, ProblemFamily, optimistix_minimise, loops=False),
)
"""Solvers of others, and our core from a start that a field knows, each for the families that it serves.

DIPY is none for `BallAndStick`: as of 1.12 it simulates this model (`dipy.sims.voxel.sticks_and_ball`) but has no fit
of it, and its fits of other models answer other questions.
"""
