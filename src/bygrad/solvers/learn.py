"""`learn`: find the cheapest solver that wins on a family, and say so when learning does not pay."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PyTree

from .._core import trees
from .._core.draws import SEEDS, check_seed, key_of
from .._core.programs import Program
from .._core.times import parse_seconds
from .._core.types import Tick
from ..problems import Composite, LeastSquares, ProblemFamily, QuadraticProgram
from ..problems.base import blame, check_is_family
from .admm import ADMM
from .base import Flat, Method, certified
from .candidates import REFERENCE, BestKnown, is_solved, keep_best, work_clock
from .damping import GainRatio, TrustRegion
from .drift import Usual
from .fit import LearnedSolver, proposals
from .lbfgs import LBFGS
from .learn_doubt import doubting
from .learn_programs import learned_programs
from .learn_start import with_enough_proposals
from .learned import LearnedDamping, LearnedStart, Whitening, vector_of
from .levenberg_marquardt import LevenbergMarquardt
from .proximal import ProximalGradient
from .solution import Solution, Status
from .solve import as_rows, check_tolerance, count_rows, flat_of_rows, precision, refuse_wide, told_if_alike
from .starts import draws, in_blocks, starting_points
from .training import Examples, single, train_damping, train_start

TUNING = 20
"""Instances that hyperparameters are tuned on: few, so that a classical solver is tuned in seconds."""

STARTS = (1, 2, 3, 5)
"""Numbers of starts that the classical solver is tried with."""

FEW = (1, 3)
"""Numbers of proposals that a learned start is tried with."""

MOST = 50_000
"""Instances that are learned from at most, drawn from what is given: a file may be larger than the memory."""

FEWEST = 50
"""Held-out instances that a comparison and a certificate need at least."""

HELDOUT = 1150
"""Held-out instances: with fewer than 1,124, twelve candidates, of which seven have five to fall back on, leave no
bound on the steps that 99 in 100 take."""

DOUBTED = 4096
"""Instances at most that are solved from all starts, to learn which solutions are to be doubted."""

ENOUGH = 15.0
"""Seconds that must be left for a damping to be learned: its program alone takes about ten to compile."""

PROPOSALS = 8
"""Starts that a network proposes at first: each costs an evaluation without derivatives, so that of some families fewer
are kept."""


def learn(
    family: ProblemFamily,
    *,
    budget: str | float | int = "60s",
    tol: float = 1e-3,
    instances: PyTree[Any] | None = None,
    heldout: int = HELDOUT,
    seed: int = 0,
    dtype: Any = np.float64,
    watch: Tick | None = None,
) -> LearnedSolver:
    r"""Learn a solver for a family: tuned, with a learned start, with learned damping, whatever is cheapest and wins.

    1. The classical solver is tuned on 20 instances, and tried with 1, 2, 3 and 5 starts, where these differ.
    2. A network from the instance to several starts is learned from solved instances, and keeps those that pay.
    3. Networks that doubt solutions are learned, so that a further start is spent only where it finds less: one for the
       family's own starts, one for a learned start with such ones after it. A limit of the cost is tried as well.
       Another network says where to look after a solution that is doubted.
    4. A network for the damping of Levenberg–Marquardt is learned through its unrolled steps (least squares only, and
       where 15 s are left for it).

    Composite problems get a learned schedule instead, quadratic programs a learned warm start: there one start is
    enough, and the certificate says what is solved.

    All are then timed on held-out instances that nothing was tuned or trained on. Kept is the fastest of those whose
    success is within 0.01 of the best classical one. If that is a classical one, learning does not pay, and the
    report says so.

    What is learned takes the place of a part of the solver, and is trained through the solver's own steps (in
    `solvers/training.py`) until the time is up. The estimators of `bygrad.metagrads` are for optimizers, whose steps
    are many and whose problems are dear; here a few dozen steps of a small problem are differentiated exactly.

    **Arguments:**

    - `budget`: seconds for all of it, as a number or as in "90s", "5min", "1h". Compilation counts. What the comparison
      will take is estimated after tuning, from a pass of the classical solver, and kept back. Learned candidates may
      take longer than that, and a budget of less than tuning and compilation take (10 s, say) is exceeded.
    - `tol`: what counts as solved: a cost within a factor $1 + \mathrm{tol}$ of the best that any candidate or a
      multistart (with ten starts, where these differ) has found, or all entries of x within one of those that have it
      (without noise, the best cost is zero); for composite problems and quadratic programs, a certificate of `tol`.
    - `instances`: past data to learn from, rows as in `bygrad.solve`; a part is held out, and of more than `MOST` rows
      as many are drawn. Default: draws of the family's `sample`.
    - `heldout`: instances that the comparison and the certificate rest on; fewer, down to 50, where comparing on all of
      them would take more than half of the time that tuning leaves. The report says how many.
    - `seed`: of everything random. `dtype`: precision of the solver that is learned; float32 is faster and
      enough for proximal gradients and ADMM down to a `tol` of about 1e-4. `watch`: told what is done, and how far it
      is.

    **Returns:** `LearnedSolver`; `solve` it, `report` on it.

    **Raises:** `ValueError` for a budget or a tolerance that is none, too few instances, or instances without a finite
    cost.
    """
    seconds, began, work = parse_seconds(budget), time.perf_counter(), work_clock()
    check_is_family(family)
    check_tolerance(tol)
    check_seed(seed)
    train, held = _instances(family, instances, heldout, seed)
    scale, slope = _at_starts(family, train, seed, np.dtype(dtype))
    grid = _grid(family, tol, min(1.0, slope or 1.0))
    base = LearnedSolver(family, grid[0], grid[0], None, 1, 1, dtype=np.dtype(dtype).name)

    base = _tuned(base, grid, train, tol, scale, seed)
    starts = _starts_of(family, train, seed, np.dtype(dtype))
    solvers = {f"tuned, {n} start{'s' * (n > 1)}": _with_starts(base, n) for n in starts}
    held, reserved = _reserved(
        base, train, held, _passes(family, starts), seconds - (time.perf_counter() - began), seed
    )
    tuned = time.perf_counter()
    sample = family.sample if instances is None else None
    left = lambda: seconds - reserved - (time.perf_counter() - began)  # noqa: E731
    with jax.enable_x64(False):  # networks and their training are in float32, whatever JAX computes in by default
        if certified(family):
            solvers |= learned_programs(base, train, left, seed, watch, sample)
        else:
            solvers |= _learned(_with_starts(base, min(3, max(starts))), train, tol, left, seed, watch, sample)
    learning = {"tuning": tuned - began, "training": time.perf_counter() - tuned}
    return keep_best(base, solvers, held, tol, seed, learning, work_clock() - work, scale, Usual.of(train))


def _instances(family: ProblemFamily, given: Any, heldout: int, seed: int) -> tuple[Any, Any]:
    """Return instances to learn from and instances to judge by."""
    if given is None:
        keys = jax.random.split(key_of(seed), 4096 + heldout)
        try:
            with blame(f"{type(family).__name__}.sample"):
                given = jax.tree.map(np.asarray, draws(family, keys))
        except ValueError as error:
            raise ValueError(f"{error} Or give past instances to learn from: instances (--instances).") from error
    rng = np.random.default_rng(seed)
    if not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(given)):
        given = jax.tree.map(np.asarray, given)  # a file that is mapped stays on the disk
        if (rows := count_rows(given)) is not None and rows > (most := MOST + heldout):
            given = trees.rows(given, np.sort(rng.choice(rows, most, replace=False)))
    arrays, rows = as_rows(given, np.float64)
    for leaf in jax.tree.leaves(arrays):
        refuse_wide(leaf, "Networks learn in float32: give them")
    if rows is None:
        raise ValueError("The instances of this family hold no arrays, so there is nothing to learn about them.")
    if heldout < FEWEST:
        raise ValueError(
            f"heldout is {heldout}, which is too few for a comparison or a certificate. Give 50 or more; 1,150 is good."
        )
    heldout = min(heldout, rows // 2)
    if heldout < FEWEST:
        raise ValueError(
            f"There are {rows} instances, which is too few to learn from some and to judge by others. Give 100 or more;"
            " 2,300 is a good number."
        )
    order = rng.permutation(rows)
    return trees.rows(arrays, order[heldout:]), trees.rows(arrays, order[:heldout])


def _at_starts(family: ProblemFamily, train: Any, seed: int, dtype: np.dtype[Any]) -> tuple[float, float]:
    """Return the sizes of costs and of gradients (their largest entry) at the starts for tuning: medians."""
    if certified(family):
        return 1.0, 1.0  # their certificates have a scale of their own
    with precision(dtype, family):
        flat, some, _, own = _first_starts(family, train, 1, seed, dtype)
        costs, slopes = _costs_and_slopes(flat, jnp.asarray(own), jax.tree.map(jnp.asarray, some))
        sizes = np.abs(np.asarray(costs)), np.max(np.abs(np.asarray(slopes)), axis=1, initial=0.0)
    finite = np.isfinite(sizes[0]) & np.isfinite(sizes[1])
    if not finite.any():
        return 1.0, 1.0  # which `_tuned` refuses
    return float(np.median(sizes[0][finite])), float(np.median(sizes[1][finite]))


def _grid(family: ProblemFamily, tol: float, slope: float = 1.0) -> list[Method]:
    """Return the settings of the classical solver that are tried, the default first.

    `slope`: size of the gradients at the starts, if that is below 1: a tolerance for them must be smaller still.
    """
    if isinstance(family, LeastSquares):
        rules = [TrustRegion(initial) for initial in (0.1, 1.0, 10.0, 0.01)]
        rules += [GainRatio(initial, shrink) for shrink in (1 / 3, 0.1) for initial in (1e-2, 1.0)]
        # A looser tolerance saves less than a step, and of the few tuning instances none may tell what it loses.
        return [LevenbergMarquardt(damping=rule, tol=0.1 * tol) for rule in rules]
    if isinstance(family, Composite):
        return [ProximalGradient(step_size=size, tol=tol) for size in (1.0, 1.3, 1.6, 1.9)]
    if isinstance(family, QuadraticProgram):
        return [ADMM(rho=rho, adapt=adapt, tol=tol) for adapt in (5.0, 2.0) for rho in (1.0, 0.1, 10.0, 100.0)]
    return [LBFGS(tol=close * slope, gain=close) for close in (1e-3 * tol, 1e-2 * tol)]


def classical_method(family: ProblemFamily, tol: float) -> Method:
    """Return the classical method for a family, with the settings for a tolerance that tuning starts from."""
    check_is_family(family)
    return _grid(family, tol)[0]


def _first_starts(
    family: ProblemFamily, train: Any, starts: int, seed: int, dtype: np.dtype[Any]
) -> tuple[Flat, Any, int, np.ndarray]:
    """Return the tuning instances, how many they are, and their starts."""
    some, rows = as_rows(trees.rows(train, slice(TUNING)), dtype)
    assert rows is not None
    flat, _ = flat_of_rows(family, some, rows)
    return flat, some, rows, starting_points(flat, some, rows, None, starts=starts, seed=seed, batch=rows, dtype=dtype)


def _starts_of(family: ProblemFamily, train: Any, seed: int, dtype: np.dtype[Any]) -> tuple[int, ...]:
    """Return how many starts the classical solver is tried with: one where a further one cannot find more."""
    if certified(family):
        return (1,)
    with precision(dtype, family):
        *_, own = _first_starts(family, train, 2, seed, dtype)
    return (1,) if told_if_alike(family, own, 2) else STARTS


def _tuned(
    base: LearnedSolver, grid: Sequence[Method], train: Any, tol: float, scale: float, seed: int
) -> LearnedSolver:
    """Choose the settings with the fewest evaluations among those that solve no fewer of the tuning instances.

    **Raises:** `ValueError` where nothing is finite at the start of any.
    """
    some = trees.rows(train, slice(TUNING))
    tried = [_with_method(base, method) for method in grid]
    found = [solver.solve(some, seed=seed, batch=64) for solver in tried]
    if all(np.all(it.status == Status.NOT_FINITE) for it in found):
        raise ValueError(
            f"The cost of {type(base.family).__name__} or its gradient is not finite at the start of any of"
            f" {trees.length(some)} instances, so there is nothing to tune or to learn from. Check the instances for"
            " NaN, and `init`; bygrad.problems.check_family says more."
        )
    best = BestKnown.of(found, scale)
    solved = [int(np.sum(is_solved(base.family, it, best, tol))) for it in found]
    enough = [i for i, count in enumerate(solved) if count == max(solved)]
    return tried[min(enough, key=lambda i: found[i].nfev.sum())]


def _passes(family: ProblemFamily, starts: Sequence[int]) -> int:
    """Return how often the comparison solves the held-out instances, from one start each: `keep_best` measures every
    candidate twice, and the reference once."""
    if certified(family):
        return 2 * 2
    several = len(starts) > 1
    started = sum(FEW) + 2 * several  # what is doubted has about two starts of each instance
    learned = started * (2 if isinstance(family, LeastSquares) else 1) + 2 * 2 * several
    return 2 * (sum(starts) + learned) + REFERENCE * several


def _reserved(base: LearnedSolver, train: Any, held: Any, passes: int, left: float, seed: int) -> tuple[Any, float]:
    """Return the held-out instances that there is time to compare on, and the seconds to keep back for that.

    It is estimated from two working sets of other instances, solved twice: first with compilation, as new candidates
    will be. At most half of what is `left` is kept back; what does not fit is left out, down to `FEWEST` instances.
    """
    rows = trees.length(held)
    count = min(rows, 2 * base.method.batch)  # what compiles is the queue's program, which larger batches need
    some, times = trees.rows(train, slice(count)), []
    for _ in range(2):
        began = time.perf_counter()
        base.solve(some, seed=seed)
        times.append(time.perf_counter() - began)
    compiling, each = max(times[0] - times[1], 0.0), passes * times[1] / count
    fit = int(min(rows, max(FEWEST, (0.5 * (left - sum(times)) - compiling) / each)))
    return trees.rows(held, slice(fit)), compiling + fit * each


def _learned(
    base: LearnedSolver,
    train: Any,
    tol: float,
    left: Callable[[], float],
    seed: int,
    watch: Tick | None,
    sample: Any,
) -> dict[str, LearnedSolver]:
    """Solve instances by the classical solver `base`, and learn where to start, what to doubt, and how to damp."""
    seconds, several = left(), base.starts > 1
    examples, each = _solved(base, train, left, seed, watch)
    flat = Flat.of(base.family, trees.rows(train, 0))
    settings: Any = {"starts": 1, "seed": seed, "batch": 1024, "dtype": np.float32}
    own = starting_points(flat, jax.tree.map(np.asarray, examples.instances), len(examples.cost), None, **settings)
    negligible = _negligible(examples, flat, own)
    least_squares = isinstance(base.family, LeastSquares)
    if least_squares:  # exact fits have no logarithm
        examples = examples._replace(cost=jnp.maximum(examples.cost, negligible))
    whitening = Whitening.of(jax.vmap(vector_of)(examples.instances), examples.params)
    start_key, damping_key = jax.random.split(key_of(seed))
    share = 0.55 if least_squares else 0.75 if several else 0.9
    start = LearnedStart.untrained(whitening, PROPOSALS, start_key)
    start = train_start(
        start, flat, examples, max(share * left(), 1.0), seed, watch, sample=sample, negligible=negligible
    )
    # Each is solved from classical starts, after a learned one, and where a restart says.
    some = int(np.clip(0.08 * seconds / (each * 2 * (max(STARTS) + 1)), FEWEST, DOUBTED))
    apart = trees.rows(train, slice(-some, None))  # the last that a start is learned from, if at all
    judged = tol, 1e-6 * negligible  # 1e-12 of what costs are at the starts, as in `BestKnown`
    start = with_enough_proposals(base, start, apart, *judged, seed)
    started = {f"learned start, best {n}": _with_starts(base, n, start) for n in FEW if n <= start.proposals}
    if several:
        most = _with_starts(base, max(STARTS))
        each_network = lambda: max(min(0.1 * seconds, 0.2 * left()), 1.0)  # noqa: E731
        started |= doubting(most, start, apart, *judged, each_network, seed, watch)
    if not isinstance(base.method, LevenbergMarquardt) or left() < ENOUGH:
        return started
    damping = LearnedDamping.untrained(whitening, base.method.damping, damping_key)
    propose = lambda flat, instances, own: proposals(start, 1, flat, instances, own)  # noqa: E731
    first = in_blocks(propose, flat, (jax.tree.map(np.asarray, examples.instances), own), len(own), 1024, np.float32)
    damping = train_damping(
        damping, base.method, flat, examples, jnp.asarray(first[:, 0]), tol, max(0.8 * left(), 1.0), seed, watch
    )
    method = LevenbergMarquardt(damping=damping, tol=base.method.tol, max_steps=base.method.max_steps)
    damped = {name: it for name, it in started.items() if name.startswith("learned start")}
    return started | {f"{name}, and damping": _with_method(it, method) for name, it in damped.items()}


def _solved(
    base: LearnedSolver, train: Any, left: Callable[[], float], seed: int, watch: Tick | None
) -> tuple[Examples, float]:
    """Solve instances for a quarter of the time that is left; return them, and the seconds that a start takes once
    all is compiled."""
    parts, rows, seconds, each = [], trees.length(train), left(), np.inf
    for at in range(TUNING, rows, 512):
        if parts and left() < 0.75 * seconds:
            break
        part, began = trees.rows(train, slice(at, at + 512)), time.perf_counter()
        parts.append((part, base.solve(part, seed=(seed + at) % SEEDS)))
        each = min(each, (time.perf_counter() - began) / (trees.length(part) * base.starts))
        if watch is not None:
            watch("solving examples", min(at + 512, rows), rows)
    return _examples(parts), each


def _examples(parts: list[tuple[Any, Solution]]) -> Examples:
    """Put solved instances together; those without a finite cost teach nothing."""
    instances = jax.tree.map(lambda *leaves: np.concatenate(leaves), *[part for part, _ in parts])
    params = np.concatenate([it.rows for _, it in parts])
    cost = np.concatenate([it.cost for _, it in parts])
    good = np.isfinite(cost) & np.isfinite(params).all(axis=1)
    if not good.any():
        raise ValueError(
            f"None of {len(good)} instances has a finite cost after it was solved, so there is nothing to learn from."
            " Check the instances for NaN and for costs without a lower limit."
        )
    return Examples(jax.tree.map(lambda leaf: single(leaf[good]), instances), single(params[good]), single(cost[good]))


def _negligible(examples: Examples, flat: Flat, starts: np.ndarray) -> float:
    """Return a millionth of what costs are at the classical starts, above zero or the lowest that is known."""
    first = _costs(flat, jnp.asarray(starts, jnp.float32), examples.instances)
    zero = 0.0 if isinstance(flat.family, LeastSquares) else jnp.min(examples.cost)
    excess = jnp.where(jnp.isfinite(first), first - zero, jnp.nan)
    return float(1e-6 * jnp.nan_to_num(jnp.nanmedian(excess)) + jnp.finfo(jnp.float32).tiny)


def _with_method(solver: LearnedSolver, method: Method) -> LearnedSolver:
    classical = solver.classical if solver.start is not None else method
    return dataclasses.replace(solver, method=method, classical=classical)


def _with_starts(solver: LearnedSolver, starts: int, start: LearnedStart | None = None) -> LearnedSolver:
    return dataclasses.replace(solver, start=start, starts=starts)


@Program
def _costs(flat: Flat, x: Float[Array, "rows p"], instances: PyTree) -> Array:
    return jax.vmap(flat.loss)(x, instances)


@Program
def _costs_and_slopes(flat: Flat, x: Float[Array, "rows p"], instances: PyTree) -> tuple[Array, Array]:
    return jax.vmap(jax.value_and_grad(flat.loss))(x, instances)
