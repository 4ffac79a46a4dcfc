"""What users run today, each as its documentation advises, and the compiled peer: solvers of others, as rows."""

import dataclasses
import functools
import importlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ..._core import trees
from ..._core.draws import key_of
from ...problems import (
    BallAndStick,
    DampedOscillation,
    LeastSquares,
    LennardJones,
    MeanVariance,
    OralDose,
    ProblemFamily,
    QuadraticProgram,
    SparseCoding,
)
from ...solvers import Flat
from . import ours
from .cvxpy_rivals import cvxpy_portfolio, cvxpy_program
from .numpy_models import Cost, Model, cluster_energy, oscillation_model, voxel_model
from .program_rivals import clarabel, clarabel_portfolio, daqp, daqp_portfolio, highs, osqp, osqp_portfolio, piqp
from .rival import Build, Outcome, Ready, Rival, in_double, looped, ready_by


class Fit(NamedTuple):
    """An instance, where to start, the limits of its params, and whether there are none; or rows of them."""

    instance: Any
    start: np.ndarray
    low: np.ndarray
    high: np.ndarray
    free: Any


def begin(flat: Flat) -> Ready:
    """Return what finds starts, within the limits."""

    def start(one: Any) -> tuple[Array, Array, Array]:
        x = flat.vector(flat.family.init(one, key_of(0)))
        low, high = flat.bounds(x, one)
        return jnp.clip(x, low, high), low, high

    compute = ready_by(start)

    def ready(instances: PyTree) -> Fit:
        x, low, high = (np.asarray(it, float) for it in compute(instances))
        return Fit(instances, x, low, high, np.isinf(low).all(axis=1) & np.isinf(high).all(axis=1))

    return ready


def _close(tol: float) -> float:
    """Return the tolerance of a fit, for the cost to be within another of the least: that of `classical_method`."""
    return 0.1 * tol


def jax_model(flat: Flat) -> Model:
    """Return a family's residuals and their slopes, compiled by JAX."""
    family = flat.family
    assert isinstance(family, LeastSquares)
    values = jax.jit(lambda x, one: family.residuals(flat.params(x), one))
    slopes = jax.jit(lambda x, one: jax.jacfwd(lambda x: family.residuals(flat.params(x), one))(x).T)
    return Model(lambda x, one: np.asarray(values(x, one)), lambda x, one: np.asarray(slopes(x, one)))


def scipy_least_squares(flat: Flat) -> Build:
    """Fit one by one by `scipy.optimize.least_squares`, with residuals and Jacobian compiled by JAX.

    As its documentation advises, by MINPACK (`lm`) where there are no limits, and by a trust region where there are.
    """
    optimize: Any = importlib.import_module("scipy.optimize")
    model = jax_model(flat)

    def one_by_one(fit: Fit, tol: float) -> tuple[np.ndarray, float]:
        close = _close(tol)
        found = optimize.least_squares(
            model.residuals,
            fit.start,
            jac=lambda x, one: model.slopes(x, one).T,
            bounds=(fit.low, fit.high),
            x_scale="jac",
            method="lm" if fit.free else "trf",
            ftol=close,
            xtol=close,
            gtol=1e-8,
            args=(fit.instance,),
        )
        return found.x, float(found.nfev)

    return looped(one_by_one, begin(flat))


def scipy_leastsq(flat: Flat, model: Model, factor: float = 100.0) -> Build:
    """Fit one by one by `scipy.optimize.leastsq`, which is MINPACK with the least work around it, and has no limits.

    `factor`: bounds the first step; 100 is its default.
    """
    optimize: Any = importlib.import_module("scipy.optimize")

    def one_by_one(fit: Fit, tol: float) -> tuple[np.ndarray, float]:
        x, _, found, *_ = optimize.leastsq(
            model.residuals,
            fit.start,
            (fit.instance,),
            model.slopes,
            full_output=True,
            col_deriv=True,
            ftol=_close(tol),
            xtol=_close(tol),
            factor=factor,
        )
        return x, float(found["nfev"])

    return looped(one_by_one, begin(flat))


def _leastsq_voxels(flat: Flat) -> Build:
    family = flat.family
    assert isinstance(family, BallAndStick)
    return scipy_leastsq(flat, voxel_model(family))


def _leastsq_oscillations(flat: Flat) -> Build:
    family = flat.family
    assert isinstance(family, DampedOscillation)
    return scipy_leastsq(flat, oscillation_model(family))


SHORT = 0.1
"""Bound on the first step of fits of oral doses: without limits, the default leaves where fits lead back from."""


def _leastsq_doses(flat: Flat) -> Build:
    # Compiled by JAX: in NumPy the steps of the equation are calls one after the other, and take twice as long.
    return scipy_leastsq(flat, jax_model(flat), SHORT)


def _stripped(flat: Flat) -> Flat:
    """Return oral doses that start where pharmacologists do: from a curve that is stripped of its absorption."""
    assert isinstance(flat.family, OralDose)
    return dataclasses.replace(flat, family=dataclasses.replace(flat.family, start="stripping"))


def _scipy_from_stripping(flat: Flat) -> Build:
    return scipy_least_squares(_stripped(flat))


def _batched_from_stripping(flat: Flat) -> Build:
    return Build(functools.partial(ours.batched, _stripped(flat)))


def _leastsq_from_stripping(flat: Flat) -> Build:
    flat = _stripped(flat)
    return scipy_leastsq(flat, jax_model(flat), SHORT)


def jax_cost(flat: Flat) -> Cost:
    """Return a family's cost and gradient, compiled by JAX."""
    compiled = jax.jit(jax.value_and_grad(flat.loss))

    def both(x: np.ndarray, one: Any) -> tuple[float, np.ndarray]:
        value, slope = compiled(x, one)
        return float(value), np.asarray(slope, float)

    return both


def scipy_minimize(flat: Flat, both: Cost | None = None) -> Build:
    """Minimize one by one by SciPy's L-BFGS-B; `both` returns value and gradient, if not those compiled by JAX."""
    optimize: Any = importlib.import_module("scipy.optimize")
    both = both or jax_cost(flat)

    def one_by_one(fit: Fit, tol: float) -> tuple[np.ndarray, float]:
        bounds = None if fit.free else list(zip(fit.low, fit.high, strict=True))
        options = {"ftol": 1e-3 * tol, "gtol": 1e-3 * tol, "maxiter": 15_000, "maxfun": 15_000}
        found = optimize.minimize(
            both, fit.start, (fit.instance,), jac=True, method="L-BFGS-B", bounds=bounds, options=options
        )
        return found.x, float(found.nfev)

    return looped(one_by_one, begin(flat))


def _minimize_clusters(flat: Flat) -> Build:
    family = flat.family
    assert isinstance(family, LennardJones)
    return scipy_minimize(flat, cluster_energy(family))


def optimistix_least_squares(flat: Flat) -> Build:
    """Compile `vmap` of Optimistix's Levenberg–Marquardt; it runs until the slowest instance of a batch stops."""
    optimistix: Any = importlib.import_module("optimistix")
    family = flat.family
    assert isinstance(family, LeastSquares)

    def one(instance: Any, tol: Array) -> tuple[Array, Array]:
        start = flat.vector(family.init(instance, key_of(0)))
        solver = optimistix.LevenbergMarquardt(rtol=tol, atol=tol)
        fun = lambda x, instance: family.residuals(flat.params(x), instance)  # noqa: E731
        found = optimistix.least_squares(fun, solver, start, args=instance, max_steps=256, throw=False)
        return found.value, found.stats["num_steps"]

    return _vmapped(one)


def optimistix_minimise(flat: Flat) -> Build:
    """Compile `vmap` of Optimistix's BFGS."""
    optimistix: Any = importlib.import_module("optimistix")

    def one(instance: Any, tol: Array) -> tuple[Array, Array]:
        start = flat.vector(flat.family.init(instance, key_of(0)))
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
            x, steps = compiled(trees.rows(instances, pick), _close(tol))
            parts.append((np.asarray(x)[: rows - at], np.asarray(steps, float)[: rows - at]))
            finished[at : at + batch] = time.perf_counter()
        x, steps = (np.concatenate(it) for it in zip(*parts, strict=True))
        return Outcome(x, finished, steps, np.zeros(rows, bool))

    return Build(lambda tol: in_double(lambda instances: run(instances, tol)))


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

    return Build(lambda tol: lambda instances: run(instances, tol))


_SCIPY = {"scipy": "scipy"}
_OSQP, _CLARABEL = {"osqp": "osqp", **_SCIPY}, {"clarabel": "clarabel", **_SCIPY}
_CVXPY, _OPTIMISTIX = {"cvxpy": "cvxpy", **_CLARABEL}, {"optimistix": "optimistix"}
RIVALS: tuple[Rival, ...] = (
    Rival("SciPy least_squares, loop", "users", _SCIPY, LeastSquares, scipy_least_squares),
    Rival("SciPy leastsq, NumPy, loop", "users", _SCIPY, BallAndStick, _leastsq_voxels),
    Rival("SciPy leastsq, NumPy, loop", "users", _SCIPY, DampedOscillation, _leastsq_oscillations),
    Rival("SciPy leastsq, short first step, loop", "users", _SCIPY, OralDose, _leastsq_doses),
    Rival("SciPy leastsq from curve stripping, loop", "users", _SCIPY, OralDose, _leastsq_from_stripping),
    Rival("SciPy least_squares from curve stripping, loop", "users", _SCIPY, OralDose, _scipy_from_stripping),
    Rival("batched, from curve stripping", "warm", {}, OralDose, _batched_from_stripping, loops=False),
    Rival("SciPy L-BFGS-B, loop", "users", _SCIPY, ProblemFamily, scipy_minimize),
    Rival("SciPy L-BFGS-B, NumPy, loop", "users", _SCIPY, LennardJones, _minimize_clusters),
    Rival("scikit-learn coordinate descent", "users", {"sklearn": "scikit-learn"}, SparseCoding, coordinate_descent),
    Rival("OSQP, loop", "users", _OSQP, QuadraticProgram, osqp),
    Rival(
        "OSQP to a tenth of the tolerance, loop", "users", _OSQP, QuadraticProgram, functools.partial(osqp, factor=0.1)
    ),
    Rival("OSQP, covariances updated, loop", "users", _OSQP, MeanVariance, osqp_portfolio),
    Rival("Clarabel, loop", "users", _CLARABEL, QuadraticProgram, clarabel),
    Rival("Clarabel, covariances updated, loop", "users", _CLARABEL, MeanVariance, clarabel_portfolio),
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
