"""One measure of success for every solver of a family, and what follows from times: profiles, gains, break-even."""

import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ..._core import trees
from ..._core.programs import Program
from ..._core.types import Instance, Scalar
from ...problems import Composite, QuadraticProgram
from ...solvers import Flat
from ...solvers.solve import precision
from ...solvers.starts import in_blocks

Kind = Literal["gap", "program", "cost"]
MARGIN = 0.01
"""A difference in the success rate that two solvers still count as equal with."""


class Assessed(NamedTuple):
    """What is true of answers, computed alike for all solvers: the cost, and what else must be small (`error`)."""

    cost: Float[np.ndarray, " rows"]
    error: Float[np.ndarray, " rows"]


def kind_of(flat: Flat, instance: Instance) -> Kind:
    """Say how a family's answers are judged: by a proven gap, as a quadratic program, or by the best known cost."""
    family, x = flat.family, jnp.zeros(flat.size)
    if isinstance(family, QuadraticProgram):
        return "program" if jax.eval_shape(lambda one: family.repair(x, one), instance) is None else "cost"
    if not isinstance(family, Composite):
        return "cost"
    return "cost" if jax.eval_shape(lambda one: family.gap(x, x, one), instance) is None else "gap"


def assess(flat: Flat, instances: PyTree[np.ndarray], x: Float[np.ndarray, "rows p"]) -> Assessed:
    """Compute cost and error of answers in float64, with params moved to the nearest that are allowed first.

    The error is the duality gap of a `Composite` relative to its cost, or the largest violation of a constraint of a
    `QuadraticProgram`, relative to 1 plus the largest row; 0 for all others. A program that can repair answers
    (`repair`) repairs all of them, and only cost is left.
    """
    with precision(np.float64):
        both = in_blocks(_assess, flat, (instances, np.asarray(x, float)), len(x), 256, np.float64)
    return Assessed(both[:, 0], both[:, 1])


@Program
def _assess(flat: Flat, instances: PyTree, x: Array) -> Float[Array, "rows 2"]:
    return jax.vmap(lambda one, x: jnp.stack(_assess_one(flat, one, x)))(instances, x)


def _assess_one(flat: Flat, instance: Instance, x: Array) -> tuple[Scalar, Scalar | float]:
    family = flat.family
    x = flat.allowed(x, instance)
    error = jnp.zeros((), x.dtype)
    if not isinstance(family, QuadraticProgram):
        cost = flat.loss(x, instance)
    elif (repaired := family.repair(x, instance)) is not None:
        cost = family.loss(repaired, instance, None)
    else:
        cost, values = family.objective(x, instance), family.matrices[1].astype(x.dtype) @ x
        _, low, high = family.vectors(instance)
        error = trees.largest(values - jnp.clip(values, low, high)) / (1 + trees.largest(values))
    if isinstance(family, Composite):
        gap = family.gap(x, jax.grad(family.smooth)(x, instance), instance)
        error = error if gap is None else gap / jnp.maximum(jnp.abs(cost), jnp.finfo(x.dtype).tiny)
    return cost, error


def excess(kind: Kind, found: Assessed, best: Float[np.ndarray, " rows"]) -> Float[np.ndarray, " rows"]:
    r"""Return how far answers are from the minimum, relative; an instance is solved if that is at most the tolerance.

    - `"gap"`: what is proven of it, by the answer's own gap, or by `best`, here a lower bound $b$ of the minimum:
      $(f - b) / \lvert f \rvert$.
    - `"cost"`: $(f - f_{best}) / \lvert f_{best} \rvert$, never negative; where $f_{best}$ is 0, $f$ itself.
    - `"program"`: the larger of the violation and of $(f - f_{best}) / (1 + \lvert f_{best} \rvert)$. An answer that
      violates constraints may have a lower cost than the minimum: the violation judges it then.

    What is not finite is infinitely far.
    """
    cost, error = found
    if kind == "gap":
        above = np.maximum(cost - best, 0.0) / np.maximum(np.abs(cost), np.finfo(float).tiny)
        far = np.fmin(error, above)
    elif kind == "program":
        far = np.maximum(error, (cost - best) / (1 + np.abs(best)))
    else:
        far = np.maximum(cost - best, 0.0) / np.where(best == 0, 1.0, np.abs(best))
    return np.where(np.isfinite(far) & np.isfinite(cost), far, np.inf)


def time_to_solve(
    seconds: Float[np.ndarray, " rows"], solved: np.ndarray, share: float, batch: int | None = None
) -> float | None:
    """Return the seconds after which a share of a batch was solved; None if it never was.

    **Arguments:** `seconds`: when each answer was there. `batch`: instances of the batch that is asked for. A solver
    that was only given some of them is taken to need proportionally longer for all.
    """
    wanted = math.ceil(share * len(seconds) - 1e-9)
    times = np.sort(seconds[solved])
    if wanted > len(times):
        return None
    return float(times[wanted - 1] * ((batch or len(seconds)) / len(seconds))) if wanted else 0.0


def profile(
    seconds: Float[np.ndarray, " rows"], solved: np.ndarray, batch: int | None = None
) -> tuple[list[float], list[float]]:
    """Return the share of a batch that is solved as a step function of time: the times at which it rises, and to what.

    Times that are equal give one step; of many, about a hundred are kept.
    """
    times = np.sort(seconds[solved]) * ((batch or len(seconds)) / len(seconds))
    shares = np.arange(1, len(times) + 1) / len(seconds)
    last = np.append(times[1:] > times[:-1], True) if len(times) else np.zeros(0, bool)
    times, shares = times[last], shares[last]
    keep = np.unique(np.linspace(0, len(times) - 1, min(len(times), 100)).astype(int)) if len(times) else []
    return [float(it) for it in times[keep]], [float(it) for it in shares[keep]]


def break_even(spent: float, rival: float | None, ours: float | None) -> int | None:
    """Return the least number of instances whose time saved repays the seconds `spent`: $T / (t_r - t)$, rounded up.

    `rival`, `ours`: seconds for an instance. None, never, where nothing is saved or one of them is not known.
    """
    if rival is None or ours is None or not rival > ours or not math.isfinite(spent):
        return None
    return math.ceil(spent / (rival - ours))


def gain(after: float | None, before: float | None) -> float | None:
    """Return the ratio of two throughputs; None where one is not known."""
    return None if after is None or before is None or before <= 0 else after / before
