"""Accelerated proximal gradient with restart for thousands of composite problems at once."""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float

from .._core import trees
from .._core.types import Instance, Scalar
from ..problems import Composite, ProblemFamily
from ..problems.base import blame
from .base import Flat, Method, OncePerFamily, Progress, check_part, status_of
from .schedule import LearnedSchedule
from .solution import Status

DECREASE = 1e-4
"""$c$: how much a trial must lower the cost, for its length. It is small, as momentum must be free to go far."""


class Memory(NamedTuple):
    """The gradient; the trial; the momentum's t; whether the trial was a safe step.

    `highest`: the cost at the start, above which no trial is taken. `lower`: the highest bound that is proven so far
    below the minimum. `flattest`: the least curvature on the way of late, 0 where none was seen.
    """

    gradient: Float[Array, " p"]
    trial: Float[Array, " p"]
    t: Scalar
    safe: Scalar
    highest: Scalar
    lower: Scalar
    flattest: Scalar


class ProximalGradient(Method):
    r"""FISTA with restart, a schedule of learned numbers before it, and one guard for both.

    $y = x + \beta (x - x_-)$, then the trial is $\operatorname{prox}_{s \theta h}(y - s \nabla g(y))$ with the step
    $s$. Classically, $s = 1/L$, $\theta = 1$ and Nesterov's $\beta$. For the first steps `schedule` may hold others.

    **Guard (sufficient decrease).** A trial $x_+$ is taken if $f(x_+) \le f(x) - c L \lVert x_+ - x \rVert^2$ with
    $c = 10^{-4}$ (up to rounding); during a schedule, if it does not raise the cost above that at the start. Otherwise
    $x$ stays, momentum is forgotten, and the next trial is the plain proximal gradient step with $1/L$ from $x$. No
    evaluation is spent on the test itself: cost and gradient at the trial are needed anyway.

    **Guarantee (any schedule, any step size above 0).** The cost is never above that at the start, and never rises
    after the schedule, beyond rounding. *Assume* that $g$ has an $L$-Lipschitz gradient, $h$ is convex, and $f$ is
    bounded below. *Then* after the schedule's end the gradient mapping $G$ goes to zero, and if $f$ is convex with
    bounded level sets, the cost converges to the minimum; with $s \le 1/L$ at FISTA's rate between restarts. *Sketch:*
    over the trials taken, the sum of $\lVert x_+ - x \rVert^2$ is at most $(f(x_0) - \inf f) / cL$, so that $x_+ - x$
    goes to zero, with it $y - x$, and so $G(y) = (y - x_+) / s$. A step with $1/L$ from $x$ lowers the cost by $L
    \lVert x_+ - x \rVert^2 / 2$ at least and is taken: a rejected trial costs one evaluation, and a schedule can waste
    its own length in steps, no more.

    It begins at the nearest point where $h$ is finite, so that every trial is one. An instance whose gradient
    changes by more than $L$ allows, so that even a step with $1/L$ raises its cost, ends with `Status.TOO_CURVED`; one
    whose cost such a step raises though $L$ is right, with `Status.WRONG_PROX`.

    The certificate, where the family has a duality gap (`Composite.gap`), is how far the cost lies above the highest
    bound that the gap of any trial so far has proven, relative to the cost: an instance below `tol` is *proven* to be
    within a factor of the minimum. Otherwise it is an estimate of the excess of the cost, or of the distance to the
    minimum (`unsettled`).

    **Arguments:** `schedule`: learned numbers for the first steps, or None. `step_size`: $s L$ after it; above 1 it is
    held by the guard alone, and many families take fewer steps (`learn` tries up to 1.9). `tol`, `max_steps`: as for
    every method. `affine`: the gradient of $g$ is extrapolated to $y$ instead of evaluated, which is exact where $g$ is
    quadratic and all params have the same momentum; where a schedule gives each its own, the guard alone holds it.
    `bound`: $L$, set by `prepare`.

    **Source:** Beck and Teboulle (2009), equation 4.1; O'Donoghue and Candès (2015), section 3.2, for the restart.
    """

    smallest: ClassVar[int] = 16
    solves: ClassVar = Composite

    schedule: LearnedSchedule | None = None
    affine: bool = eqx.field(static=True, default=True)
    step_size: float | Array = 1.0
    tol: float | Array = 1e-4
    max_steps: int | Array = 2000
    bound: Scalar | None = None

    def __check_init__(self) -> None:
        if self.schedule is not None:
            check_part("schedule", self.schedule, LearnedSchedule)

    def prepare(self, flat: Flat, dtype: Any) -> "ProximalGradient":
        return dataclasses.replace(self, bound=curvature(flat.family, dtype))

    def start(self, flat: Flat, instance: Instance, x: Float[Array, " p"]) -> Progress:
        x, zero = flat.allowed(x, instance), jnp.zeros((), x.dtype)
        return Progress.begin(x, Memory(jnp.zeros_like(x), x, zero + 1, zero, zero + jnp.inf, zero - jnp.inf, zero))

    def step(self, flat: Flat, instance: Instance, at: Progress) -> Progress:
        family = flat.family
        assert isinstance(family, Composite)
        assert self.bound is not None
        memory, bound = at.memory, self.bound
        value, gradient = jax.value_and_grad(family.smooth)(memory.trial, instance)
        cost = value + family.penalty(memory.trial, instance)
        finite = jnp.isfinite(cost) & jnp.isfinite(trees.largest(gradient))
        first = at.nit == 0
        # Near the minimum costs differ by rounding alone, and the certificate can still improve.
        slack = 4 * jnp.finfo(at.x.dtype).eps * jnp.abs(jnp.where(first, 0.0, at.cost))
        free = jnp.bool_(False) if self.schedule is None else at.nit <= len(self.schedule.rows)
        enough = DECREASE * bound * jnp.sum(jnp.square(memory.trial - at.x))
        taken = finite & (first | (cost <= jnp.where(free, memory.highest, at.cost - enough) + slack))

        keep = lambda new, old: jnp.where(taken, new, old)  # noqa: E731
        x, best, slope = keep(memory.trial, at.x), keep(cost, at.cost), keep(gradient, memory.gradient)
        before = jnp.where(first, x, jnp.where(taken, at.x, x))
        slope_before = jnp.where(first, slope, jnp.where(taken, memory.gradient, slope))
        t = jnp.where(taken, memory.t, 1.0)
        t_next = 0.5 * (1 + jnp.sqrt(1 + 4 * t * t))
        size, shrink, beta = self._numbers(at.nit, (t - 1) / t_next, taken, x)

        y = x + beta * (x - before)
        affine = slope + beta * (slope - slope_before)
        slope_y = affine if self.affine else jax.grad(family.smooth)(y, instance)
        trial = family.prox(y - size / bound * slope_y, size * shrink / bound, instance)
        trial = jnp.where(jnp.isfinite(trees.largest(trial)), trial, x)  # a mixture might not be allowed

        # At the trial, not at x: what the gap needs is then known from the gradient.
        lower, flattest, gap = memory.lower, memory.flattest, family.gap(memory.trial, gradient, instance)
        if gap is None:
            change = jnp.where(first, 0.0, gradient - memory.gradient)
            flattest = flattest_of(flattest, memory.trial - at.x, change, memory.trial)
            plain = family.prox(memory.trial - gradient / bound, 1 / bound, instance)
            left = unsettled(memory.trial, plain, gradient / bound, cost, bound, flattest)
            certificate = jnp.where(taken, left, at.certificate)
        else:
            # A bound below the minimum holds for every point. Those of single points go up and down.
            proven = cost - gap
            lower = jnp.maximum(lower, jnp.where(finite & jnp.isfinite(proven), proven, -jnp.inf))
            certificate = jnp.maximum(best - lower, 0.0) / jnp.maximum(jnp.abs(best), jnp.finfo(x.dtype).tiny)
            certificate = jnp.where(jnp.isfinite(best), certificate, jnp.inf)
        # Twice in a row rejected, the second time a safe step: what is left is rounding.
        stuck = ~taken & (memory.safe > 0)
        # Or L is too small: a step of 1/L raises the cost only where the gradient changes by 2 L on the way.
        moved, turned = jnp.linalg.norm(memory.trial - at.x), jnp.linalg.norm(gradient - memory.gradient)
        rounding = 1e3 * jnp.finfo(x.dtype).eps * jnp.linalg.norm(at.x)
        curved = stuck & (~finite | ((moved > rounding) & (turned > 1.1 * bound * moved)))
        # Or it is no minimizer of h and the distance, of which a step of 1/L lowers the cost, whatever h is.
        raised = cost - at.cost > jnp.sqrt(jnp.finfo(at.x.dtype).eps) * jnp.abs(at.cost)
        status = status_of(
            (first & ~finite, Status.NOT_FINITE),
            (certificate <= self.tol, Status.CERTIFIED),
            (curved, Status.TOO_CURVED),
            (stuck & raised & (moved > rounding), Status.WRONG_PROX),
            (stuck, Status.STUCK),
        )
        safe = jnp.where(taken, 0.0, 1.0).astype(x.dtype)
        highest = jnp.where(first, best, memory.highest)
        after = Memory(slope, trial, t_next, safe, highest, lower, flattest)
        count = 1 if self.affine else 2
        return Progress(x, best, certificate, status, at.nit + 1, at.nfev + count, after)

    def _numbers(self, nit: Array, beta: Array, taken: Array, x: Array) -> tuple[Array, Array, Array]:
        """Return step, threshold factor and momentum of the next trial."""
        size, one = jnp.asarray(self.step_size, x.dtype), jnp.ones((), x.dtype)
        if self.schedule is not None:
            size, one, beta = self.schedule(nit, size, one, beta)
        return jnp.where(taken, size, 1.0), jnp.where(taken, one, 1.0), jnp.where(taken, beta, 0.0)


def flattest_of(known: Scalar, moved: Float[Array, " p"], turned: Float[Array, " p"], x: Float[Array, " p"]) -> Scalar:
    r"""Return the least curvature on the way of late, after a move to `x` over which the gradient turned by `turned`.

    `known`: what it was before, 0 if nothing. A tenth of it is forgotten with every step: at the end, moves go where
    the problem is flattest of all directions that still count. Moves that may be rounding tell nothing.
    """
    size = trees.largest(moved)
    scaled = moved / jnp.where(size > 0, size, 1.0)
    seen = jnp.maximum(scaled @ turned, 0.0) / jnp.where(size > 0, size * (scaled @ scaled), 1.0)
    least = jnp.where(known > 0, jnp.minimum(seen, 1.1 * known), seen)
    return jnp.where(size > 1e3 * jnp.finfo(x.dtype).eps * trees.largest(x), least, known)


def unsettled(
    x: Float[Array, " p"],
    after: Float[Array, " p"],
    pull: Float[Array, " p"],
    cost: Scalar,
    bound: Scalar,
    flattest: Scalar,
) -> Scalar:
    r"""Return an estimate of what is left at `x`, where a proximal gradient step of $1/L$ leads to `after`.

    With $G = L (x - x_+)$, the cost exceeds the minimum by no more than $\lVert G \rVert$ times the distance from it,
    where both parts are convex. The distance is estimated: by $\lVert G \rVert / \mu$, with the least curvature $\mu$
    seen on the way, and no less than by the length of $x$ and $x_+$. Returned is the lower of two numbers: the excess
    of the cost, relative to the cost; and, since that goes to zero where data are fitted exactly, $\lVert G \rVert /
    \mu$ relative to x, but no less than the root of what the step changes. No unit of the params or of the cost counts.

    **Arguments:** `pull`: the gradient over $L$. `bound`: $L$. `flattest`: $\mu$, 0 if unknown.
    """
    tiny = jnp.finfo(x.dtype).tiny
    # Where rounding leaves nothing of the step, what it would have been.
    moved = jnp.where((x == after) & (x - pull == x), pull, x - after)
    size = jnp.maximum(jnp.maximum(trees.largest(x), trees.largest(after)), trees.largest(pull - moved))
    step, long = jnp.linalg.norm(moved), jnp.linalg.norm(x) + jnp.linalg.norm(after)
    away = jnp.where(flattest > 0, step * (bound / jnp.maximum(flattest, tiny)), jnp.inf)
    excess = bound * step * jnp.maximum(away, long) / jnp.maximum(jnp.abs(cost), tiny)
    change = jnp.sqrt(trees.largest(moved) / jnp.maximum(size, tiny))
    left = jnp.minimum(excess, jnp.maximum(change, away / jnp.maximum(long, tiny)))
    return jnp.where(jnp.isfinite(step), jnp.where(step > 0, left, 0.0), jnp.inf)


@OncePerFamily
def curvature(family: ProblemFamily, dtype: Any) -> Scalar:
    """Return the Lipschitz constant of the smooth part's gradient.

    **Raises:** `ValueError` for what is none: a step of 1/L would go nowhere, or uphill to what looks like a minimum.
    """
    assert isinstance(family, Composite)
    with blame(f"{type(family).__name__}.curvature"):
        bound = jnp.asarray(family.curvature(), dtype)
    if bound.shape or (not isinstance(bound, Tracer) and not 0 < bound < jnp.inf):
        said = f"an array of shape {list(bound.shape)}" if bound.shape else f"{bound:g}"
        raise ValueError(
            f"{type(family).__name__}.curvature returned {said}, but it must be one positive number L, for steps of"
            " 1/L. Return a Lipschitz constant of the gradient of `smooth`, for all instances; where that is linear,"
            " any positive number is one."
        )
    return bound
