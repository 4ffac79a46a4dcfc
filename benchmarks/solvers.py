"""Throughput on families of least-squares problems at stated success: a SciPy loop, vmap of Optimistix, and bygrad.

What users run today (SciPy's `least_squares` in a loop: MINPACK where there are no bounds, as its documentation
advises; for voxels and oscillations also `leastsq`, which is MINPACK with the least work around it, on a model and its
Jacobian in NumPy, and for oral doses with a short first step instead of limits), the compiled peer
(`jax.vmap` of `optimistix.least_squares` with Levenberg-Marquardt, at the tolerances of its documentation), and
`bygrad.solve`, which is the same method in a refilled working set. All start where the family starts, in float64, and
solve the same instances: simulated ones, and the 600 voxels of a real scan. Solved means: the cost is within 1e-3 of
the best that any of them, or bygrad with five starts, has found. Seconds are CPU-seconds, as SciPy has one thread; the
first call of each, which compiles, is not counted and stated apart.

Needs scipy and optimistix: pip install scipy optimistix.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _common import console, parser, show, write_record

from bygrad.experiments.thousands.judge import assess
from bygrad.experiments.thousands.rivals import RIVALS
from bygrad.problems import BallAndStick, DampedOscillation, LeastSquares, OralDose
from bygrad.solvers import Flat, LevenbergMarquardt, solve

try:
    import optimistix as optx  # pyright: ignore[reportMissingImports]
    from scipy import optimize  # pyright: ignore[reportMissingImports]
except ImportError as error:
    console.print(f"{error}: nothing is compared without SciPy and Optimistix. pip install scipy optimistix")
    sys.exit(0)

TOL = 1e-3
FAMILIES: dict[str, LeastSquares] = {
    "voxels of a scan": BallAndStick.embedded(),
    "oral dose (ODE)": OralDose(),
    "oscillation": DampedOscillation(),
    "oscillation, expert's start": DampedOscillation(start="spectrum"),
}


def timed(run: Callable[[], np.ndarray]) -> tuple[np.ndarray, float, float]:
    """Return what a second run found, its CPU-seconds, and the seconds that the first took longer."""
    clock, began = time.process_time, time.process_time()
    run()
    first, began = clock() - began, clock()
    cost = run()
    seconds = clock() - began
    return cost, seconds, max(first - seconds, 0.0)


def scipy_loop(family: LeastSquares) -> Callable[[np.ndarray], np.ndarray]:
    """Return what solves one by one, with start, limits, residuals and their Jacobian compiled once."""
    model = lambda x, instance: family.residuals(x, instance)  # noqa: E731 (a bound method would be hashed)
    residuals, jacobian = jax.jit(model), jax.jit(jax.jacfwd(model))
    begin = jax.jit(lambda instance: family.init(instance, jax.random.key(0)))
    limits_of = jax.jit(lambda instance: family.bounds(instance))

    def one(instance: np.ndarray) -> float:
        limits = limits_of(instance)
        bounds = [np.asarray(it) for it in limits or (-np.inf, np.inf)]
        slope: Any = lambda x: np.asarray(jacobian(x, instance))  # noqa: E731
        return optimize.least_squares(
            lambda x: np.asarray(residuals(x, instance)),
            np.clip(np.asarray(begin(instance)), *bounds),
            jac=slope,
            bounds=bounds,
            x_scale="jac",
            method="trf" if limits else "lm",
        ).cost

    return lambda data: np.array([one(instance) for instance in data])


def minpack_loops(family: LeastSquares, data: np.ndarray) -> dict[str, tuple[np.ndarray, float, float]]:
    """Measure what calls MINPACK itself, as the study of families does; starts are ready before, costs come after."""
    flat = Flat.of(family, data[0])
    measured = {}
    for rival in RIVALS:
        if rival.name.startswith("SciPy leastsq") and rival.suits(family):
            build = rival.build(flat)
            run, ready = build.at(TOL), build.ready(data)
            x, seconds, compiling = timed(lambda run=run, ready=ready: run(ready).x)
            measured[rival.name] = assess(flat, data, x).cost, seconds, compiling
    return measured


def vmap_optimistix(family: LeastSquares) -> Callable[[np.ndarray], np.ndarray]:
    """Return a compiled batch solver."""

    def one(instance: Any) -> Any:
        found = optx.least_squares(
            lambda x, instance: family.residuals(x, instance),
            optx.LevenbergMarquardt(rtol=1e-6, atol=1e-6),
            family.init(instance, jax.random.key(0)),
            args=instance,
            max_steps=128,
            throw=False,
        )
        return 0.5 * jnp.sum(family.residuals(found.value, instance) ** 2)

    batch = jax.jit(jax.vmap(one))
    return lambda data: np.asarray(batch(data))


def instances(family: LeastSquares, count: int) -> np.ndarray:
    """Return real instances where there are any, otherwise `count` simulated ones."""
    if isinstance(family, BallAndStick):
        return family.scan().reshape(-1, family.bvals.size)[:count].astype(float)
    return np.asarray(jax.vmap(family.sample)(jax.random.split(jax.random.key(1), count)), float)


def compare(family: LeastSquares, count: int, few: int) -> dict[str, dict[str, float]]:
    """Measure all solvers on `count` instances (SciPy on `few` of them)."""
    data = instances(family, count)
    method = LevenbergMarquardt(tol=0.1 * TOL)
    many = solve(family, data, starts=5, method=method).cost
    measured: dict[str, tuple[np.ndarray, float, float]] = {}
    with jax.enable_x64(True):
        loop, peer = scipy_loop(family), vmap_optimistix(family)
        measured["SciPy loop"] = timed(lambda: loop(data[:few]))
        measured["vmap of Optimistix"] = timed(lambda: peer(data))
    measured |= minpack_loops(family, data[:few])
    measured["bygrad"] = timed(lambda: solve(family, data, method=method).cost)
    measured["bygrad, tol 1e-8"] = timed(lambda: solve(family, data).cost)
    measured["bygrad, 3 starts"] = timed(lambda: solve(family, data, starts=3, method=method).cost)
    best = many.copy()
    for cost, _, _ in measured.values():
        best[: len(cost)] = np.fmin(best[: len(cost)], cost)
    return {
        name: {
            "instances": len(cost),
            "success": float(np.mean(cost <= best[: len(cost)] * (1 + TOL))),
            "per_cpu_second": len(cost) / seconds,
            "compile_seconds": compiling,
        }
        for name, (cost, seconds, compiling) in measured.items()
    }


def main() -> None:
    made = parser(__doc__)
    options = made.parse_args()
    count, few = (64, 8) if options.quick else (2048, 128)
    rows: list[dict[str, Any]] = []
    for title, family in FAMILIES.items():
        measured = compare(family, count, few)
        rows += [{"family": title, "solver": name, **row} for name, row in measured.items()]
        write_record(options.json, {"rows": rows})
        rival = measured["vmap of Optimistix"]["per_cpu_second"]
        show(
            title,
            [
                {
                    "solver": name,
                    "success": f"{row['success']:.1%}",
                    "fits per CPU-second": f"{row['per_cpu_second']:.0f}",
                    "against Optimistix": f"{row['per_cpu_second'] / rival:.1f}",
                    "compiling, s": f"{row['compile_seconds']:.1f}",
                }
                for name, row in measured.items()
            ],
        )
    console.print("solved: within 1e-3 of the best known cost")


if __name__ == "__main__":
    main()
