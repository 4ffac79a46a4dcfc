"""`solve`: a batch of instances of one family, by the classical method that fits its structure."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import PyTree

from .._core import trees
from .._core.draws import check_seed
from .._core.sizes import LARGEST, whole_number
from .._core.types import Tick
from ..problems import Bounded, Composite, LeastSquares, Oracle, ProblemFamily, QuadraticProgram
from ..problems.base import check_is_family
from .admm import ADMM
from .base import Flat, Method, check_part, instance_like, parts_in_words
from .engine import Rows, run
from .lbfgs import LBFGS
from .levenberg_marquardt import LevenbergMarquardt
from .proximal import ProximalGradient
from .solution import Solution, Tally
from .starts import guesses, starting_points

ROOM = 2**26
"""Numbers of derivatives, of all rows that are worked on at once: half a gigabyte."""


def solve(
    family: ProblemFamily,
    instances: PyTree[Any],
    *,
    method: Method | None = None,
    tol: float | None = None,
    max_steps: int | None = None,
    x0: PyTree[Any] | None = None,
    dual0: Any = None,
    starts: int | np.integer = 1,
    seed: int = 0,
    batch: int | None = None,
    dtype: Any = np.float64,
    watch: Tick | None = None,
) -> Solution:
    r"""Minimize $f_i$ for every instance of a batch, and never fail as a whole.

    An instance that is NaN, that diverges or that needs many steps costs its own row only.

    **Arguments:**

    - `family`: what is solved: `LeastSquares` by Levenberg–Marquardt, `Composite` by accelerated proximal gradients,
      `QuadraticProgram` by ADMM, any other by L-BFGS.
    - `instances`: a pytree of arrays, one instance a row (NumPy or JAX; memory-mapped files as well).
    - `method`: another solver, or this one with other settings.
    - `tol`: tolerance of the default method; what it means, the method says. For L-BFGS, success then means that the
      certificate is below `tol`, and nothing else (`gain` ends no run).
    - `max_steps`: steps of the default method after which an instance is given up, with `status` 0.
    - `x0`: params to start from, one row an instance, or one for all (a warm start), moved to the nearest that bounds,
      or the penalty of a `Composite`, allow. Default, also for rows that are not finite: the family's `init`.
    - `dual0`: the multipliers that belong to `x0`, which are half of a warm start of ADMM: the `dual` of the `Solution`
      that `x0` is from. Default: zero.
    - `starts`: starts for each instance, the lowest result counts. All but the first are drawn by `Bounded.restart`,
      which must use its key: by default it is `init`, and where that is the same for every key, so are all starts.
    - `seed`: of these draws. `batch`: rows that are worked on at once; by default few enough to stay in cache
      (`Method.batch`), so give more on an accelerator.
    - `dtype`: precision of the computation. Normal equations need float64, whatever `jax_enable_x64` says.
    - `watch`: told `("solving", finished, rows)` every third of a second or so; of several starts, each is a row here.

    **Returns:** `Solution`.

    **Raises:** `ValueError` for instances or starts whose numbers of rows differ, or whose rows are no instances of the
    family (rows of other lengths than `sample` draws are solved where the family's functions take them, and told in
    `Solution.warnings`); `TypeError` for a method that does not solve such a family, a family that no method can
    solve, or a call inside of `jax.jit`, `grad` or `vmap`: `implicit` has the derivatives.

    >>> import jax, numpy as np
    >>> from bygrad.problems import DampedOscillation
    >>> family = DampedOscillation(start="spectrum")
    >>> data = jax.vmap(family.sample)(jax.random.split(jax.random.key(0), 3))
    >>> found = solve(family, data)
    >>> found.success.tolist(), found.x.shape
    ([True, True, True], (3, 5))
    """
    starts = whole_number(starts, "number of starts", "tries for each instance")
    check_is_family(family)
    check_seed(seed)
    for name, setting in {"tol": tol, "max_steps": max_steps}.items():
        if setting is not None and method is not None:
            raise ValueError(
                f"{name} is {setting:g}, but the method that is given has a {name} of its own, so it is not known which"
                " counts. Give it to the method."
            )
    method = fitting_method(family, method) if method is not None else default_method(family, tol, max_steps)
    refuse_traced(family, x0, dual0, method)
    with precision(dtype, family):
        instances, rows = as_rows(instances, dtype)
        flat, warnings = flat_of_rows(family, instances, rows)
        method = with_arrays(method, dtype).prepare(flat, dtype)
        batch = rows_at_once(method, batch, flat, instances)
        given = guesses(flat, x0, dual0, rows, method.multipliers(flat), dtype)
        first = starting_points(flat, instances, rows, given, starts=starts, seed=seed, batch=batch, dtype=dtype)
        each = first.reshape(len(first) // starts, starts, first.shape[1])
        results = from_every_start(method, flat, instances, each, batch=batch, watch=watch)
        warnings += told_if_alike(family, first[:, : flat.size], starts, given is not None)
        return as_solution(flat, best_of(flat.family, results, starts), warnings=warnings)


def fitting_method(family: ProblemFamily, method: Any) -> Method:
    """Return the method. **Raises:** `TypeError` for one that does not solve such a family."""
    check_part("method", method, Method)
    if not isinstance(family, method.solves):
        raise TypeError(
            f"{type(method).__name__} solves {method.solves.__name__} families, and {type(family).__name__} is none."
            f" Leave the method out, or use {type(default_method(family)).__name__}, which fits it."
        )
    return method


def default_method(family: ProblemFamily, tol: float | None = None, max_steps: int | None = None) -> Method:
    """Return the method for a family's structure, with settings that serve most problems, and with those given."""
    if max_steps is not None and max_steps < 1:
        raise ValueError(f"max_steps is {max_steps}, so no instance would be solved. Give 1 or more.")
    check_tolerance(tol)
    if isinstance(family, LeastSquares):
        method = LevenbergMarquardt()
    elif isinstance(family, Composite):
        method = ProximalGradient()
    elif isinstance(family, QuadraticProgram):
        method = ADMM()
    else:  # to ask for a certificate is not answered by a cost that hardly falls any more
        method = LBFGS() if tol is None else LBFGS(gain=-1.0)
    given = {name: it for name, it in {"tol": tol, "max_steps": max_steps}.items() if it is not None}
    return dataclasses.replace(method, **given)


def check_tolerance(tol: float | None) -> None:
    """**Raises:** `ValueError` for a tolerance that nothing could be below."""
    if tol is not None and not tol > 0:
        raise ValueError(f"tol is {tol:g}, which no certificate is below, so no instance would be solved. Give more.")


def precision(dtype: Any, family: ProblemFamily | None = None) -> Any:
    """Return the context in which JAX computes in `dtype`, float32 or float64."""
    kind = np.dtype(dtype)
    if kind not in (np.float32, np.float64):
        raise ValueError(
            f"dtype is {kind.name}, in which no solver works. Choose float64 or float32; instances may have any dtype."
        )
    if isinstance(family, Oracle) and kind == np.float64 and not jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
        raise ValueError(
            "An Oracle is called outside of JAX, in whose threads float64 is off: it cannot be solved in float64 as it"
            " is. Give dtype=np.float32, or call jax.config.update('jax_enable_x64', True) before the Oracle is made."
        )
    return _computing(kind == np.float64)


@contextlib.contextmanager
def _computing(double: bool) -> Iterator[None]:
    # Of products in float32, accelerators keep 8 to 11 bits unless told otherwise: certificates would be of other data.
    with jax.enable_x64(double), jax.default_matmul_precision("highest"):
        yield


def rows_at_once(
    method: Method, batch: int | None, flat: Flat | None = None, instances: PyTree[np.ndarray] | None = None
) -> int:
    """Return how many rows are worked on at once: what was asked for, or what the method does best with, and of long
    rows as many as have room: derivatives are as many numbers for every param as an instance has."""
    if batch is not None:
        return whole_number(batch, "batch", "rows that are worked on at once")
    if flat is None or not isinstance(flat.family, LeastSquares):
        return method.batch
    numbers = sum(int(np.prod(leaf.shape[1:])) for leaf in jax.tree.leaves(instances))
    return min(method.batch, max(1, ROOM // (numbers * (flat.size + 1) + 1)))


def flat_of_rows(
    family: ProblemFamily, instances: PyTree[np.ndarray], rows: int | None
) -> tuple[Flat, tuple[str, ...]]:
    """Return the family as a solver sees it, and a warning where rows have other shapes than `sample` draws.

    **Raises:** `ValueError` where rows are not instances of the family.
    """
    one = instances
    if rows is not None:
        one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), instances)
    warnings = _compare(type(family).__name__, trees.named_leaves(one), instance_like(family))
    try:
        return Flat.of(family, one), warnings
    except ValueError as error:
        raise ValueError(f"{warnings[0]} {error}" if warnings else str(error)) from error


def _compare(name: str, given: dict[str, Any], like: PyTree | None) -> tuple[str, ...]:
    """Compare an instance with one that `sample` draws, where it can."""
    if like is None:
        return ()
    wanted = trees.named_leaves(like)
    if given.keys() != wanted.keys():
        raise ValueError(
            f"The instances are {parts_in_words(given)}, but an instance of {name}, as its `sample` draws it, is"
            f" {parts_in_words(wanted)}, so its parts cannot be told apart. Build the instances as `sample` does, every"
            " array with one row for each instance."
        )
    pairs = [(given[path].shape, np.shape(wanted[path])) for path in given]
    found, drawn = (trees.in_words(list(pair[side]) for pair in pairs) for side in (0, 1))
    if any(len(ours) != len(theirs) for ours, theirs in pairs):
        raise ValueError(
            f"Rows of the instances have shapes {found}, but an instance of {name} has {drawn}, so each row would"
            " be taken for another instance than it is. The first axis of every array runs over instances: for a single"
            " one give instance[None]."
        )
    if any(size == 1 < more for ours, theirs in pairs for size, more in zip(ours, theirs, strict=True)):
        raise ValueError(
            f"Rows of the instances have shapes {found}, but an instance of {name} has {drawn}: a single number would"
            " be repeated for all that are missing, and fitted as if it were data. Give whole rows."
        )
    if any(ours != theirs for ours, theirs in pairs):
        return (
            f"Rows of the instances have shapes {found}, but {name}.sample draws {drawn}. They are taken as they are:"
            " check that this is meant.",
        )
    return ()


def told_if_alike(family: ProblemFamily, first: np.ndarray, starts: int, given: bool = False) -> tuple[str, ...]:
    """Return a warning where all starts of every instance, rows of `first` one below the other, are the same; where
    the first ones are `given`, all others."""
    if starts - given < 2:
        return ()
    each = first.reshape(-1, starts, first.shape[1])[:, int(given) :]
    alike = (each == each[:, :1]) | (np.isnan(each) & np.isnan(each[:, :1]))
    if not len(each) or not alike.all():
        return ()
    draw = "restart" if isinstance(family, Bounded) else "init"
    return (
        f"All {each.shape[1]} starts of every instance{' beside x0' * given} are the same, so one would have found as"
        f" much in less time. Let {type(family).__name__}.{draw} draw from its key, or give starts={1 + given}.",
    )


def with_arrays(method: Method, dtype: Any) -> Method:
    """Make a method's numbers arguments of the compiled programs: other settings then compile nothing."""

    def as_array(leaf: Any) -> Any:
        if isinstance(leaf, bool) or not isinstance(leaf, int | float):
            return leaf
        whole = isinstance(leaf, int) and abs(leaf) <= LARGEST  # of more steps than that, none is ever the last
        return jnp.asarray(leaf, jnp.int32 if whole else dtype)

    return jax.tree.map(as_array, method)


def as_rows(instances: PyTree[Any], dtype: Any) -> tuple[PyTree[np.ndarray], int | None]:
    """Return instances as NumPy arrays, floating-point ones in `dtype`, and how many there are (None: no arrays).

    **Raises:** `TypeError` inside of a transformation of JAX, which knows no numbers; `ValueError` for whole numbers
    that JAX would cut to 32 bits beside `dtype`.
    """
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(instances)):
        raise TypeError(
            "The instances are traced by JAX (jit, grad, vmap), but a solver looks at numbers to know who is finished."
            " Solve outside of what is traced, all instances in one call. For derivatives use bygrad.solvers.implicit,"
            " which may be traced, or jacobian."
        )

    def convert(leaf: Any) -> np.ndarray:
        if np.ma.is_masked(leaf):
            raise TypeError(
                "The instances are a masked array with masked entries, which a model would take for data. Give the mask"
                " as a part of the instance, as weights of 1 and 0 by which residuals multiply what they compare."
            )
        array = np.asarray(leaf)
        if np.dtype(dtype) == np.float32:
            refuse_wide(array, "Solve in float64 (dtype=np.float64), or give them")
        # JAX knows floats that NumPy does not (bfloat16), and no integers whose bytes are the other way round (FITS).
        floating = jnp.issubdtype(array.dtype, jnp.floating)
        return array.astype(dtype if floating else array.dtype.newbyteorder("="), copy=False)

    arrays = jax.tree.map(convert, instances)
    return arrays, count_rows(arrays)


def refuse_wide(array: np.ndarray, remedy: str) -> None:
    """**Raises:** `ValueError` for whole numbers that need more than 32 bits."""
    if array.dtype.kind not in "iu" or array.dtype.itemsize < 8 or not array.size:
        return
    kept, least, most = np.iinfo(f"{array.dtype.kind}4"), int(array.min()), int(array.max())
    if least < kept.min or most > kept.max:
        raise ValueError(
            f"The instances hold whole numbers up to {max(abs(least), most):,}, of which 32 bits, all that JAX has"
            f" beside float32, would keep another number. {remedy} as floating-point numbers."
        )


def refuse_traced(*given: Any) -> None:
    """**Raises:** `TypeError` for a family, a start or a method that is traced by a transformation of JAX."""
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(given)):
        raise TypeError(
            "The family, the start or the method is traced by JAX (jit, grad, vmap), but a solver looks at numbers to"
            " know who is finished. Solve outside of what is traced. For derivatives with respect to what the family"
            " holds, make that a part of the instance: bygrad.solvers.implicit, which may be traced, and jacobian give"
            " them."
        )


def count_rows(arrays: PyTree[np.ndarray]) -> int | None:
    """Return how many instances there are (None: no arrays). **Raises:** `ValueError` where arrays differ in that."""
    counts = {leaf.shape[:1] for leaf in jax.tree.leaves(arrays)}
    if len(counts) > 1 or () in counts:
        shapes = trees.in_words(list(leaf.shape) for leaf in jax.tree.leaves(arrays))
        raise ValueError(
            f"The arrays of the instances have shapes {shapes}: their first axes differ, so rows cannot be told apart."
            " Give every array one row for each instance (a list is many arrays: numpy.asarray makes it one); what all"
            " share belongs into the family."
        )
    return counts.pop()[0] if counts else None


def as_solution(
    flat: Flat, rows: Rows, used_fallback: np.ndarray | None = None, warnings: Any = (), tally: Tally | None = None
) -> Solution:
    """Return the engine's rows in the family's own structure."""
    fallback = np.zeros(len(rows["status"]), bool) if used_fallback is None else used_fallback
    fields = {name: rows[name] for name in ("cost", "certificate", "status", "nit", "nfev", "finished")}
    dual = rows["dual"] if "dual" in rows else np.zeros((len(fallback), 0))
    told = tuple(warnings)
    return Solution(flat.params(rows["x"]), **fields, used_fallback=fallback, dual=dual, warnings=told, tally=tally)


def from_every_start(
    method: Method,
    flat: Flat,
    instances: PyTree[np.ndarray],
    starts: np.ndarray,
    *,
    batch: int,
    watch: Tick | None = None,
) -> Rows:
    """Solve every instance from each of its starts, `[rows, starts, p]`; those of one instance stay together."""
    several = starts.shape[1]  # of a single one no copy is made: a file may be larger than memory
    every = instances if several == 1 else jax.tree.map(lambda leaf: np.repeat(leaf, several, axis=0), instances)
    return run(method, flat, every, starts.reshape(-1, starts.shape[2]), batch=batch, watch=watch)


def best_of(family: ProblemFamily, rows: Rows, starts: int) -> Rows:
    """Keep for each instance the best of its starts; steps, evaluations and time are those of all its starts."""
    return rows if starts == 1 else take(rows, starts, best_start(family, rows, starts))


def best_start(family: ProblemFamily, rows: Rows, starts: int, solved_first: bool = False) -> np.ndarray:
    """Return for each instance which of its starts, as rows one below the other, ended best.

    The best has the lowest cost, and is solved if two have the same but for rounding, which would else decide; with
    `solved_first`, the other way round. Points of quadratic programs may violate constraints, so that their costs
    cannot be compared: there the best is solved, with the smallest certificate. Those of a family that proves its
    solutions (`certify`) satisfy them all.
    """
    cost, certificate, unsolved = (
        np.where(np.isnan(values), np.inf, values).reshape(-1, starts)
        for values in (rows["cost"], rows["certificate"], (rows["status"] <= 0).astype(float))
    )
    lowest = cost.min(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):  # infinite ones
        alike = (cost == lowest) | (cost - lowest <= 100 * np.finfo(cost.dtype).eps * np.abs(lowest))
    order = [np.where(alike, lowest, cost), unsolved, cost] if not solved_first else [unsolved, cost]
    if isinstance(family, QuadraticProgram) and type(family).certify is QuadraticProgram.certify:
        order = [unsolved, certificate]
    return np.lexsort(order[::-1], axis=1)[:, 0]  # the last key counts first


def take(rows: Rows, starts: int, chosen: np.ndarray) -> Rows:
    """Keep the chosen start of each instance; steps, evaluations and time are those of all its starts."""
    pick = chosen + starts * np.arange(len(chosen))
    total = {name: rows[name].reshape(-1, starts).sum(axis=1) for name in ("nit", "nfev")}
    total["finished"] = rows["finished"].reshape(-1, starts).max(axis=1)
    return {name: values[pick] for name, values in rows.items()} | total
