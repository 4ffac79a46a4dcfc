"""Convex programs by the thousand: throughput and latency at equal success, against the solvers that users run today.

- Model predictive control of a quadrotor (the example of OSQP's manual), to residuals of 1e-3 and 1e-4.
- Economic dispatch with limits of lines, every quarter-hour of a year, to a certified gap of 1 % and 0.1 %.
- Sparse coding of patches of photographs, to a duality gap of 1e-2 and 1e-3.
- Rolling mean-variance portfolios: simulated, and of S&P 500 stocks where skfolio, which ships their prices, is
  installed.

Solutions are judged by the same NumPy code in float64, whoever found them; success stands beside every speed. Seconds
are CPU-seconds of the whole process, as most incumbents have one thread. The first call of each, which compiles or sets
up, is not counted and stated apart. Latency is the median wall time of single instances. What was learned for a family
is learned first, within --budget; the seconds are in the record. Run it pinned to one core (taskset -c 0) so that
nobody is helped by threads.

Needs scipy; compares with those of osqp, clarabel, scikit-learn, daqp, piqp and highspy that are installed.
"""

import csv
import gzip
import importlib.resources
import sys
import time
from collections.abc import Callable
from typing import Any

import _incumbents
import jax
import jax.numpy as jnp
import numpy as np
from _common import console, parser, show, write_record

from bygrad.problems import EconomicDispatch, MeanVariance, QuadraticProgram, QuadrotorControl, SparseCoding
from bygrad.solvers import ADMM, LearnedSolver, Method, ProximalGradient, learn, solve

if _incumbents.module("scipy.sparse") is None:
    console.print("SciPy is missing: nothing is compared without it. pip install 'bygrad[solvers]'")
    sys.exit(0)

Solve = Callable[[Any], _incumbents.Found]
Judge = Callable[[Any, np.ndarray, np.ndarray], np.ndarray]
SINGLE = 16
"""Instances that the latency is the median of."""


def entry(family: str, solver: str, tol: float, run: Solve, instances: Any, judge: Judge) -> dict[str, Any]:
    """Measure one solver: what it solves, its CPU-seconds for an instance, and the wall time of a single one."""
    began = time.process_time()
    run(instances)
    first, began = time.process_time() - began, time.process_time()
    x, dual = run(instances)
    seconds = time.process_time() - began
    walls = []
    run(instances[:1])
    for one in range(min(SINGLE, len(instances))):
        start = time.perf_counter()
        run(instances[one : one + 1])
        walls.append(time.perf_counter() - start)
    solved = judge(instances, x, dual)
    return {
        "family": family,
        "solver": solver,
        "tol": tol,
        "instances": len(instances),
        "success": float(np.mean(solved)),
        "per_cpu_second": len(instances) / seconds,
        "solving_cpu_seconds": seconds,
        "first_call_cpu_seconds": first,
        "latency_wall_seconds": float(np.median(walls)),
    }


def ours(
    solver: Any, method: Method | None, dtype: Any, batch: int, data: Callable[[Any], Any] = lambda it: it
) -> Solve:
    """Return bygrad as a function of instances: a family with a method, or a learned solver."""

    def run(instances: Any) -> _incumbents.Found:
        given = data(instances)
        if isinstance(solver, LearnedSolver):
            found = solver.solve(given, batch=batch)
        else:
            found = solve(solver, given, method=method, dtype=dtype, batch=batch)
        return np.asarray(found.x, float), np.asarray(found.dual, float)

    return run


def taught(family: Any, tol: float, budget: str, learned: dict[str, Any], name: str) -> LearnedSolver:
    """Learn a solver in float32, and keep what its card says."""
    solver = learn(family, budget=budget, tol=tol, dtype=np.float32)
    assert solver.card is not None
    learned[name] = {"tol": tol, "kept": solver.card.kept, "seconds": solver.card.seconds}
    learned[name] |= {"candidates": solver.card.candidates, "failure_bound": solver.card.failure_bound}
    console.print(f"{name}: {solver.card.kept} is kept, learned in {solver.card.seconds['training']:.0f} s")
    return solver


class Programs:
    """Instances of a `QuadraticProgram` with their vectors, which incumbents are given before the clock runs."""

    def __init__(self, data: np.ndarray, vectors: list[Any]) -> None:
        self.data, self.vectors = data, vectors

    @classmethod
    def of(cls, family: QuadraticProgram, data: np.ndarray) -> "Programs":
        return cls(data, _incumbents.vectors(family, data))

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, rows: slice) -> "Programs":
        return Programs(self.data[rows], self.vectors[rows])


def quadratic_rows(
    name: str,
    family: QuadraticProgram,
    data: np.ndarray,
    few: int,
    rivals: dict[str, tuple[str, Any]],
    judge: Callable[[float], Judge],
    tols: tuple[float, ...],
    budget: str,
    learned: dict[str, Any],
) -> list[dict[str, Any]]:
    """Measure all solvers of a family of quadratic programs; incumbents on the first `few` instances, in order."""
    programs, rows = Programs.of(family, data), []
    for tol in tols:
        tuned = taught(family, tol, budget, learned, f"{name}, {tol:g}")
        classical = tuned.classical
        for title, run in {
            "bygrad, untuned, float64": ours(family, ADMM(tol=tol), np.float64, 256, lambda it: it.data),
            "bygrad, tuned": ours(family, classical, np.float32, 256, lambda it: it.data),
            "bygrad, learned": ours(tuned, None, None, 256, lambda it: it.data),
        }.items():
            rows.append(entry(name, title, tol, run, programs, judge(tol)))
        for title, (needs, make) in rivals.items():
            if _incumbents.module(needs) is not None:
                made = make(family, tol)
                run: Solve = lambda it, made=made: made(it.vectors)  # noqa: E731
                rows.append(entry(name, title, tol, run, programs[:few], judge(tol)))
    return rows


def control(options: Any, count: int, few: int, learned: dict[str, Any]) -> list[dict[str, Any]]:
    """Model predictive control: the violation and the excess of the cost are at most ten times the tolerance."""
    family = QuadrotorControl.build()
    states = np.asarray(jax.vmap(family.sample)(jax.random.split(jax.random.key(1), count)), float)
    best = solve(family, states, method=ADMM(tol=1e-8, max_steps=20_000))
    states, best = states[best.success], best.cost[best.success]  # the others have no feasible point
    quadratic, constraints, _ = _incumbents.dense(family)

    def judge(tol: float) -> Judge:
        def solved(programs: Programs, x: np.ndarray, dual: np.ndarray) -> np.ndarray:
            linear, low, high = (np.stack(column) for column in zip(*programs.vectors, strict=True))
            rows = x @ constraints.T
            worst = np.max(np.maximum(low - rows, rows - high), axis=1)
            cost = 0.5 * np.einsum("ri,ij,rj->r", x, quadratic, x) + np.sum(linear * x, axis=1)
            reference = best[: len(x)]
            return (worst <= 10 * tol) & (np.abs(cost - reference) <= 10 * tol * np.abs(reference))

        return solved

    rivals = {
        "OSQP": ("osqp", _incumbents.osqp),
        "OSQP, condensed": ("osqp", _incumbents.osqp_condensed),
        "Clarabel": ("clarabel", _incumbents.clarabel),
    }
    return quadratic_rows("control", family, states, few, rivals, judge, (1e-3, 1e-4), options.budget, learned)


def dispatch(options: Any, count: int, few: int, learned: dict[str, Any]) -> list[dict[str, Any]]:
    """Dispatch: the family's bounds, from each solver's own multipliers, are within the tolerance."""
    family = EconomicDispatch.embedded()
    year = family.year()[:count]

    def judge(tol: float) -> Judge:
        def solved(programs: Programs, x: np.ndarray, dual: np.ndarray) -> np.ndarray:
            with jax.enable_x64(True):
                certify = jax.jit(jax.vmap(lambda family, *it: family.certify(*it), (None, 0, 0, 0)))
                _, cost, lowest = (np.asarray(it) for it in certify(family, x, dual, jnp.asarray(programs.data, float)))
            return cost - lowest <= 1.001 * tol * cost  # ours were found in float32

        return solved

    rivals = {
        # Tolerances at which nearly all gaps are below 1 %: looser ones are faster and prove less.
        "OSQP": ("osqp", lambda family, tol: _incumbents.osqp(family, 1e-2 * tol)),
        "Clarabel": ("clarabel", _incumbents.clarabel),
        "HiGHS": ("highspy", _incumbents.highs),
        "PIQP": ("piqp", _incumbents.piqp),
        "DAQP, last active set": ("daqp", _incumbents.daqp),
    }
    return quadratic_rows("dispatch", family, year, few, rivals, judge, (1e-2, 1e-3), options.budget, learned)


def coding(options: Any, count: int, few: int, learned: dict[str, Any]) -> list[dict[str, Any]]:
    """Sparse coding: the duality gap is within the tolerance; test patches come from other photographs."""
    family, test = SparseCoding.embedded("train"), SparseCoding.embedded("test", count)
    patches, dictionary = np.asarray(test.patches, float), np.asarray(test.dictionary, float)

    def judge(tol: float) -> Judge:
        def solved(data: np.ndarray, x: np.ndarray, dual: np.ndarray) -> np.ndarray:
            weight = test.strength * np.max(np.abs(data @ dictionary), axis=1)
            residual = data - x @ dictionary.T
            cost = 0.5 * np.sum(residual**2, axis=1) + weight * np.sum(np.abs(x), axis=1)
            point = residual * np.minimum(1, weight / np.max(np.abs(residual @ dictionary), axis=1))[:, None]
            lowest = np.sum(point * data, axis=1) - 0.5 * np.sum(point**2, axis=1)
            return cost - lowest <= 1.001 * tol * cost

        return solved

    rows = []
    for tol in (1e-2, 1e-3):
        solver = taught(family, tol, options.budget, learned, f"sparse coding, {tol:g}")
        rivals = {
            "bygrad, FISTA with restart": ours(test, ProximalGradient(tol=tol), np.float32, 1024),
            "bygrad, learned": ours(solver, None, None, 1024),
        }
        for title, run in rivals.items():
            rows.append(entry("sparse coding", title, tol, run, patches, judge(tol)))
        if _incumbents.module("sklearn.decomposition") is not None:
            for sweeps in (10, 30, 100, 1000):
                run = _incumbents.coordinate_descent(test, sweeps)
                title = f"scikit-learn, {sweeps} sweeps"
                rows.append(entry("sparse coding", title, tol, run, patches[:few], judge(tol)))
    return rows


def portfolio(options: Any, count: int, few: int, learned: dict[str, Any]) -> list[dict[str, Any]]:
    """Portfolios: feasible to 1e-3, and the cost is within the tolerance of the best."""
    families = {"portfolio, simulated": (MeanVariance.simulated(seed=0), MeanVariance.simulated(seed=1))}
    if _incumbents.module("skfolio") is not None:
        path = importlib.resources.files("skfolio.datasets.data") / "sp500_dataset.csv.gz"
        lines = list(csv.reader(gzip.decompress(path.read_bytes()).decode().splitlines()))[1:]
        prices = np.array([[float(it) for it in line[1:]] for line in lines])
        half = len(prices) // 2  # learned on the first half, judged on the second
        past, future = (MeanVariance.from_prices(part) for part in (prices[:half], prices[half:]))
        families["portfolio, S&P 500"] = past, future
    rows = []
    for name, (family, test) in families.items():
        windows = test.windows()[:count]
        best = solve(test, windows, method=ProximalGradient(tol=1e-9, max_steps=20_000)).cost

        def judge(tol: float, best: np.ndarray = best, cap: float = test.cap) -> Judge:
            def solved(data: np.ndarray, x: np.ndarray, dual: np.ndarray) -> np.ndarray:
                wrong = np.maximum(np.abs(x.sum(axis=1) - 1), np.max(np.maximum(-x, x - cap), axis=1))
                cost = 0.5 * np.einsum("ri,rij,rj->r", x, data, x)
                return (wrong <= 1e-3) & (cost <= best[: len(x)] * (1 + tol))

            return solved

        for tol in (1e-2, 1e-4):
            solver = taught(family, tol, options.budget, learned, f"{name}, {tol:g}")
            tuned = {
                "bygrad": ours(test, ProximalGradient(tol=tol), np.float64, 1024),
                "bygrad, learned": ours(solver, None, None, 1024),
            }
            for title, run in tuned.items():
                rows.append(entry(name, title, tol, run, windows, judge(tol)))
            for title in ("osqp", "clarabel"):
                if _incumbents.module(title) is not None:
                    run = _incumbents.portfolios(title, test, 0.1 * tol)
                    rows.append(entry(name, title, tol, run, windows[:few], judge(tol)))
    return rows


PARTS = {"control": control, "dispatch": dispatch, "coding": coding, "portfolio": portfolio}


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--budget", default="120s", help="for learning a solver, for every family and tolerance")
    made.add_argument("--only", choices=PARTS, nargs="*", default=list(PARTS), help="measure these families alone")
    options = made.parse_args()
    rows: list[dict[str, Any]] = []
    learned: dict[str, Any] = {}
    for name in options.only:
        count, few = (64, 8) if options.quick else (35_136 if name == "dispatch" else 8192, 1024)
        options.budget = "2s" if options.quick else options.budget
        found = PARTS[name](options, count, few, learned)
        show(
            name,
            [
                {
                    "solver": f"{row['solver']}",
                    "family": row["family"],
                    "tol": f"{row['tol']:g}",
                    "success": f"{row['success']:.1%}",
                    "per CPU-second": f"{row['per_cpu_second']:,.0f}",
                    "single, ms": f"{1e3 * row['latency_wall_seconds']:.2f}",
                    "first call, s": f"{row['first_call_cpu_seconds']:.1f}",
                }
                for row in found
            ],
        )
        rows += found
        write_record(options.json, {"rows": rows, "learned": learned})  # after every family: a long run may end early


if __name__ == "__main__":
    main()
