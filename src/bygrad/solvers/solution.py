"""What a solver returns: arrays in SciPy's words, one row for each instance."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from .._core import trees
from .._core.results import Code

RUNNING = 100
"""Internal: not finished."""


class Status(Code):
    """How an instance ended. As in SciPy: positive is success, 0 is out of steps, negative is failure."""

    SMALL_STEP = 3, "The last step was below the tolerance, relative to x."
    SMALL_GAIN = 2, "What a step can still gain is below the tolerance, relative to the cost."
    CERTIFIED = 1, "The certificate is below the tolerance."
    OUT_OF_STEPS = 0, "The limit of steps is reached. Allow more steps (max_steps), or give a better start."
    NOT_FINITE = (
        -1,
        "The cost or its derivatives are not finite at the start. Check the instance for NaN, and the start.",
    )
    STUCK = (
        -2,
        "No step lowers the cost, and the certificate is above the tolerance. If only a little, loosen tol, or use"
        " float64; if far, params may have lost all influence here: start nearer, set bounds, or try more starts.",
    )
    CONTRADICTION = (
        -3,
        "No point satisfies the constraints: a direction proves it, or limits contradict each other or an equation."
        " Check the limits of this instance.",
    )
    UNBOUNDED = (
        -4,
        "The objective falls without end along a direction that no constraint and no curvature holds. Add limits, or"
        " check the linear term of this instance.",
    )
    TOO_CURVED = (
        -5,
        "The gradient of the smooth part changes by more than curvature() allows, so that steps of its length are too"
        " long. Return a larger one.",
    )
    WRONG_PROX = (
        -6,
        "A step that must lower the cost where prox is the proximal map of penalty raises it. Check prox() against"
        " penalty(): the point that minimizes step * penalty(p) + |p - params|^2 / 2.",
    )
    UNDERFLOW = (
        -7,
        "The squares of the residuals are too small for the precision, so that nothing is known of the cost. Give the"
        " data in a larger unit, or use float64; data that are all zero have a fit of zero, which x is near to.",
    )


STATUS: dict[int, str] = {int(code): code.sentence for code in Status}
"""What the codes of `status` say."""


@dataclasses.dataclass(frozen=True)
class Tally:
    """How many instances were looked at for a drift of their family, and how many of them are beyond each of the
    `signs` of a solver's card."""

    rows: int
    beyond: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Solution:
    r"""Solutions of a batch of instances; every array has one row for each instance.

    **Arguments:**

    - `x`: the params, a pytree like the family's with the batch as its first axis.
    - `cost`: the objective there (for least squares half the sum of squares, as in SciPy).
    - `certificate`: what the solver can show: 0 is exact. Which number it is, each method says.
    - `status`: a code of `Status`; `success` is `status > 0`, and `message` says it in words.
    - `nit`, `nfev`: steps taken, and evaluations of the objective (of the residuals with their Jacobian), those of all
      starts and of what learned solvers propose among them.
    - `dual`: multipliers of the inequality rows of a quadratic program, `[rows, m]`: positive where the upper limit
      binds. Empty for other families.
    - `finished`: when each was done, on the clock of `time.perf_counter`: nobody waits for the slowest.
    - `used_fallback`: whether the classical solver had to solve what a learned one had not.
    - `warnings`: what concerns the batch as a whole, as a drift of the family.
    - `tally`: what the drift alarm of a learned solver counted (`LearnedSolver.alarm` adds up several).
    """

    x: Any
    cost: np.ndarray
    certificate: np.ndarray
    status: np.ndarray
    nit: np.ndarray
    nfev: np.ndarray
    finished: np.ndarray
    used_fallback: np.ndarray
    dual: np.ndarray
    warnings: tuple[str, ...] = ()
    tally: Tally | None = None

    @property
    def success(self) -> np.ndarray:
        """Whether each instance is solved to the tolerance."""
        return self.status > 0

    @property
    def rows(self) -> np.ndarray:
        """The params of each instance as one row of numbers, `[rows, params]`, whatever the pytree."""
        return side_by_side([np.asarray(leaf, float) for leaf in jax.tree.leaves(self.x)])

    @property
    def message(self) -> np.ndarray:
        """Say in words how each instance ended."""
        return np.array([STATUS[int(code)] for code in self.status.ravel()], dtype=object).reshape(self.status.shape)

    def __len__(self) -> int:
        return len(self.status)

    def __repr__(self) -> str:
        codes, counts = np.unique(self.status[self.status <= 0], return_counts=True)
        rest = "".join(f", {count:,} with status {code}" for code, count in zip(codes, counts, strict=True))
        shapes = trees.in_words(list(np.shape(leaf)) for leaf in jax.tree.leaves(self.x))
        return f"Solution({len(self):,} rows: {int(np.sum(self.success)):,} solved{rest}; x {shapes})"


def side_by_side(leaves: Sequence[np.ndarray]) -> np.ndarray:
    """Return arrays `[rows, ...]` as one matrix `[rows, all]`; there may be no rows."""
    return np.concatenate([leaf.reshape(len(leaf), math.prod(leaf.shape[1:])) for leaf in leaves], axis=1)
