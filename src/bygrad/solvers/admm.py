"""ADMM for thousands of quadratic programs with the same matrices: one factorization for all."""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from .._core import trees
from .._core.types import Instance, Scalar
from ..problems import ProblemFamily, QuadraticProgram
from .base import Flat, Method, OncePerFamily, Progress, check_part, status_of
from .reduction import ROUNDING, Reduced, reduce_program
from .solution import Status
from .warm import LearnedWarmStart

LOWEST, HIGHEST = 1e-6, 1e6
"""Limits of the penalty, relative to what balances an instance."""

RARELY, CLOSER = 16, 2.0
"""Every so many steps the penalty changes for a smaller factor between residuals. At every step it would swing, and
more of them be needed; never, an instance whose residuals hang just below the larger factor takes thousands."""

CONTRADICTING = 1e-4
"""Equations that are further apart than this have no solution, whatever the tolerance."""


class Memory(NamedTuple):
    """OSQP's z and y, of scaled rows; the penalty; and what an instance brings into every iteration.

    `linear`, `low`, `high`: the linear term and the limits of the reduced problem. `origin`: a point that solves the
    equations; `constant`: the objective there; `missed`: what no iteration can mend: how far the equations contradict
    each other, and the slope in directions that nothing sees. `limit_size`, `slope_size`: what residuals are relative
    to where their terms are smaller: 1, or less where limits, or objective, come in small units (`_units`);
    `row_size`: the same for every row by itself; `metric_size`: for slopes in the metric of the reduction. `lowest`,
    `highest`: limits of the penalty. `bound`: the highest that was proven of the minimum, where the family has bounds.
    """

    z: Float[Array, " m"]
    y: Float[Array, " m"]
    rho: Scalar
    linear: Float[Array, " k"]
    low: Float[Array, " m"]
    high: Float[Array, " m"]
    origin: Float[Array, " n"]
    constant: Scalar
    missed: Scalar
    limit_size: Scalar
    row_size: Float[Array, " m"]
    slope_size: Scalar
    metric_size: Scalar
    lowest: Scalar
    highest: Scalar
    bound: Scalar


class ADMM(Method):
    r"""Operator splitting for quadratic programs, with a penalty $\rho$ for each instance and no factorization for any.

    Equations are eliminated once for the family, so that every iterate satisfies them. In what is left, OSQP solves
    with $P + \rho A^\top A$, and factorizes again when $\rho$ changes. Here both terms are made diagonal at once
    (`Reduced`): the inverse is $T (\kappa + \rho \lambda)^{-1} T^\top$ for *every* $\rho$. So each instance adapts its
    own, and an iteration of a batch is two matrix products.

    The certificate is the largest of the primal and the dual residuals, each relative to its terms plus 1, or less than
    1 where the limits, or the objective, come in small units. The primal one is that of every row by itself, so that
    none hides behind another in larger units. The dual one is the length of the gradient along the equations: in the
    units of the params, and in the metric of the reduction, which has none. Equations that contradict each other, by
    more than rounding or `tol`, have no solution, and what is below counts as a residual. A family with
    `QuadraticProgram.certify` is held to its bounds instead: x is then the cheapest point so far that satisfies all
    constraints, `dual` what proves the highest bound so far, as iterates swing, and the certificate the duality gap
    between the two (`relative_gap`).

    **Guarantee:** ADMM with $\rho > 0$ fixed and relaxation in (0, 2) converges from any start for every convex
    program that has a solution (its operator is averaged). $\rho$ adapts during the first half of `max_steps` only,
    from then on the guarantee holds. A learned start and penalty (`warm`) may be arbitrary for the same reason: what is
    not finite is replaced by the classical start, the penalty is kept within limits, and the classical rules go on from
    there (a steady state).

    **Arguments:** `rho`: penalty at the start; 1 balances it with the curvature. `relaxation`: OSQP's 1.6. `inner`:
    iterations of a step, between two looks at the residuals. `adapt`: a factor between residuals beyond which $\rho$
    changes; in every sixteenth step 2 is enough, which those need that take longest. `tol`, `max_steps`: as for
    every method; steps are iterations. `warm`: a learned start. `reduced`: set by `prepare`.

    **Source:** Stellato et al., *OSQP* (2020), algorithm 1, equation 13, and section 3.4 for programs without solution.
    """

    # An iteration is matrix products: with 64 columns they are as fast as they get, and take time in proportion.
    batch: ClassVar[int] = 64
    smallest: ClassVar[int] = 4
    solves: ClassVar = QuadraticProgram

    rho: float | Array = 1.0
    relaxation: float | Array = 1.6
    adapt: float | Array = 5.0
    tol: float | Array = 1e-4
    max_steps: int | Array = 4000
    inner: int = eqx.field(static=True, default=10)
    warm: LearnedWarmStart | None = None
    reduced: Reduced | None = None

    def __check_init__(self) -> None:
        if self.warm is not None:
            check_part("warm", self.warm, LearnedWarmStart)

    def prepare(self, flat: Flat, dtype: Any) -> "ADMM":
        return dataclasses.replace(self, reduced=_reduced(flat.family, dtype))

    def multipliers(self, flat: Flat) -> int:
        assert isinstance(flat.family, QuadraticProgram)
        return int(np.sum(~np.asarray(flat.family.equations)))

    def first(self, flat: Flat, instance: Instance, x: Float[Array, " p"]) -> tuple[Array, Array, Scalar]:
        """Return params, multipliers and penalty to begin with, from params and perhaps multipliers in one vector.

        Of two guesses, given and learned, the one that fulfils the conditions of an optimum better is taken.
        """
        to = self.reduced
        assert to is not None
        x, given = x[: flat.size], x[flat.size :]
        dual, rho = given if given.size else jnp.zeros(len(to.limits), x.dtype), jnp.full((), self.rho, x.dtype)
        if self.warm is None:
            return x, dual, rho
        better, multipliers, factor = (it.astype(x.dtype) for it in self.warm(instance))
        use = jnp.all(jnp.isfinite(better)) & jnp.all(jnp.isfinite(multipliers)) & jnp.isfinite(factor)
        if given.size:
            use &= ~(self._away(flat, instance, x, dual) <= self._away(flat, instance, better, multipliers))
        rho = jnp.where(use, jnp.clip(rho * jnp.exp(factor), LOWEST, HIGHEST), rho)
        return jnp.where(use, better, x), jnp.where(use, multipliers, dual), rho

    def _away(self, flat: Flat, instance: Instance, x: Float[Array, " p"], dual: Float[Array, " m"]) -> Scalar:
        """Return how far a point and its multipliers are from an optimum: the length of the Lagrangian's gradient in
        the coordinates of the reduction, and of what a step of the multipliers would change in the scaled rows."""
        family, to = flat.family, self.reduced
        assert isinstance(family, QuadraticProgram) and to is not None
        quadratic, constraints, linear, low, high = family.written_out(instance, x.dtype)
        constraints = constraints[to.limits]
        low, high = (to.scale * it[to.limits] for it in (low, high))
        y = dual / to.scale
        drive = to.scale * (constraints @ x) + y
        y_next = jnp.clip(drive - jnp.clip(drive, low, high), -to.ceiling, to.ceiling)
        slope = to.basis.T @ (quadratic @ x + linear + constraints.T @ dual)
        return jnp.linalg.norm(slope) + jnp.linalg.norm(y_next - y)

    def start(self, flat: Flat, instance: Instance, x: Float[Array, " p"]) -> Progress:
        family, to = flat.family, self.reduced
        assert isinstance(family, QuadraticProgram) and to is not None
        quadratic, constraints, linear, low, high = family.written_out(instance, x.dtype)
        given, other = low[to.equations], high[to.equations]
        falls, size = jnp.abs(to.unseen.T @ linear), jnp.linalg.norm(linear)
        # Each direction is compared with its own terms, as the linear term may be large elsewhere.
        rounding = jnp.maximum(ROUNDING * (jnp.abs(to.unseen.T) @ jnp.abs(linear)), to.blurred * size)
        slope, downhill = jnp.linalg.norm(falls), jnp.any(falls > jnp.maximum(rounding, jnp.finfo(x.dtype).eps * size))
        limit_size, slope_size = _units(trees.largest(jnp.diag(quadratic)), size, low, high)
        own = jnp.maximum(*(jnp.where(jnp.isfinite(it), jnp.abs(it), 0.0)[to.limits] for it in (low, high)))
        # Equations that contradict each other, or are none: no point satisfies them. Each by its own terms, as those of
        # others may be large.
        misfit = jnp.maximum(jnp.abs(to.consistent @ given - given), jnp.abs(other - given))
        apart = trees.largest(misfit / (1 + jnp.abs(to.consistent) @ jnp.abs(given)))
        origin = to.solve @ given
        push = to.quadratic @ given
        shift = to.shift @ given
        low, high = (to.scale * it[to.limits] - shift for it in (low, high))
        x, dual, rho = self.first(flat, instance, x)
        rows, y = to.scale * (constraints[to.limits] @ x) - shift, dual / to.scale
        reduced = to.basis.T @ linear + to.pull @ given
        # A penalty of 1 balances limits with curvature; where there is little or none, this one does with the slope.
        pull, width = trees.largest(reduced), _widest(low, high)
        # Where the slope cancels along the equations, what rounding leaves of it is no unit of anything.
        terms = trees.largest(jnp.abs(to.basis.T) @ (jnp.abs(linear) + jnp.abs(push)))
        pull = jnp.where(pull > 100 * jnp.finfo(x.dtype).eps * terms, pull, 0.0)
        # The unit of a row: its limits; where they are zero or none, what is as much in the metric of the reduction.
        row_size = jnp.where(own > 0, own, jnp.where(width > 0, width, pull) / to.scale)
        row_size = jnp.where(row_size > 0, jnp.minimum(10 * row_size, limit_size), limit_size)
        known = (pull > 0) & (width > 0)
        straight = jnp.where(known, pull / jnp.where(known, width, 1.0), 1.0)
        # Soft rows whose price is paid stay outside of their limits.
        paid = jnp.abs(y) >= (1 - 1e-5) * to.ceiling
        memory = Memory(
            z=jnp.where(paid, rows, jnp.clip(rows, low, high)),
            y=y,
            rho=rho,
            linear=reduced,
            low=low,
            high=high,
            origin=origin,
            constant=0.5 * origin @ push + linear @ origin,
            missed=jnp.maximum(apart, slope / (slope_size + size)),
            limit_size=limit_size,
            row_size=row_size,
            slope_size=slope_size,
            # Where there is no slope, a step as long as the limits are apart.
            metric_size=jnp.where(pull > 0, 0.0, jnp.where(width > 0, width, 1.0)),
            lowest=LOWEST * jnp.minimum(straight, 1.0),
            highest=HIGHEST * jnp.maximum(straight, 1.0),
            bound=jnp.full((), -jnp.inf, x.dtype),
        )
        nowhere = (low > high) | (low == jnp.inf) | (high == -jnp.inf)
        wrong = jnp.any(nowhere) | (apart > self._exact(x))
        at, _ = self._best(flat, instance, Progress.begin(x, memory, dual), x, dual)
        return at._replace(status=status_of((wrong, Status.CONTRADICTION), (downhill, Status.UNBOUNDED)))

    def step(self, flat: Flat, instance: Instance, at: Progress) -> Progress:
        family, to, memory = flat.family, self.reduced, at.memory
        assert isinstance(family, QuadraticProgram) and to is not None
        rho, alpha = memory.rho, self.relaxation
        diagonal = 1 / (to.curvature + rho * to.weight)

        def iterate(_: Any, carry: tuple[Array, ...]) -> tuple[Array, ...]:
            z, y, inner_before, rows_before, *_ = carry
            inner = diagonal * (to.rows.T @ (rho * z - y) - memory.linear)
            rows = to.rows @ inner
            drive = alpha * rows + (1 - alpha) * z + y / rho
            y_next = jnp.clip(rho * (drive - jnp.clip(drive, memory.low, memory.high)), -to.ceiling, to.ceiling)
            return drive - y_next / rho, y_next, inner, rows, z, y, inner - inner_before, rows - rows_before

        # Of a step of one iteration, what it moved by is the point itself: along it the objective may fall as well.
        nowhere = jnp.zeros_like(memory.linear), jnp.zeros_like(memory.z)
        start = memory.z, memory.y, *nowhere, memory.z, memory.y, *nowhere
        z, y, inner, rows, z_before, y_before, moved, rows_moved = jax.lax.fori_loop(0, self.inner, iterate, start)

        # What the last iteration solved exactly tells the gradient, without another product with P.
        grown = y - y_before
        slack = grown - rho * (rows - z_before)
        pushed = to.rows.T @ jnp.stack([slack, y], axis=1)
        terms = jnp.stack([pushed[:, 0], pushed[:, 1], to.curvature * inner, memory.linear], axis=1)
        dual, *parts = jnp.linalg.norm(to.inverse.T @ terms, axis=0)
        dual = dual / (memory.slope_size + jnp.max(jnp.stack(parts)))
        # In the metric of the reduction, in which no variable has a unit.
        metric_dual, *parts = jnp.linalg.norm(terms, axis=0)
        metric_dual = metric_dual / (memory.metric_size + jnp.max(jnp.stack(parts)))
        unscaled = 1 / to.scale
        # A soft row may leave its limits: z then lies outside of them as well.
        missed, sizes = unscaled * jnp.abs(rows - z), unscaled * jnp.maximum(jnp.abs(rows), jnp.abs(z))
        primal = trees.largest(missed) / (memory.limit_size + trees.largest(sizes))
        row_primal = trees.largest(missed / (memory.row_size + sizes))
        x = to.basis @ inner + memory.origin
        cost = memory.constant + 0.5 * inner @ (to.curvature * inner) + memory.linear @ inner
        soft = ~jnp.isinf(to.ceiling)
        cost += jnp.abs(rows - jnp.clip(rows, memory.low, memory.high)) @ jnp.where(soft, to.ceiling, 0.0)
        certificate = jnp.max(jnp.stack([row_primal, dual, metric_dual, memory.missed]))
        best, gap = self._best(flat, instance, at, x, to.scale * y)
        if gap is None:
            best = at._replace(x=x, cost=cost, dual=to.scale * y)
        certificate = certificate if gap is None else gap
        finite = jnp.isfinite(primal) & jnp.isfinite(dual) & ~jnp.isnan(memory.missed)
        certificate = jnp.where(finite & ~jnp.isnan(certificate), certificate, jnp.inf)

        ratio = jnp.sqrt(jnp.maximum(primal, 1e-10) / jnp.maximum(dual, 1e-10))
        nit = at.nit + self.inner
        adapt = jnp.where(nit // self.inner % RARELY == 0, jnp.minimum(self.adapt, CLOSER), self.adapt)
        far = ((ratio > adapt) | (ratio < 1 / adapt)) & (2 * nit < self.max_steps)
        rho = jnp.where(far, jnp.clip(rho * ratio, memory.lowest, memory.highest), rho)
        impossible = (primal > self._exact(x)) & self._is_impossible(memory, grown)
        endless = (dual > self._exact(x)) & self._is_endless(memory, moved, rows_moved)
        status = status_of(
            (~finite, Status.NOT_FINITE),
            (certificate <= self.tol, Status.CERTIFIED),
            (impossible, Status.CONTRADICTION),
            (endless, Status.UNBOUNDED),
        )
        memory = best.memory._replace(z=z, y=y, rho=rho)
        return Progress(best.x, best.cost, certificate, status, nit, at.nfev + self.inner, memory, best.dual)

    def _best(
        self, flat: Flat, instance: Instance, at: Progress, x: Float[Array, " n"], dual: Float[Array, " m"]
    ) -> tuple[Progress, Scalar | None]:
        """Keep the cheaper point, of the one so far and what the family makes of `x`, and the higher bound; return the
        gap between them, None where the family has no bounds."""
        assert isinstance(flat.family, QuadraticProgram)
        if (found := flat.family.certify(x, dual, instance)) is None:
            return at, None
        point, cost, bound = (it.astype(x.dtype) for it in found)
        cheaper, higher = cost < at.cost, bound > at.memory.bound
        memory = at.memory._replace(bound=jnp.where(higher, bound, at.memory.bound))
        point, cost, dual = (
            jnp.where(better, new, old)
            for better, new, old in ((cheaper, point, at.x), (cheaper, cost, at.cost), (higher, dual, at.dual))
        )
        at = at._replace(x=point, cost=cost, dual=dual, memory=memory)
        return at, relative_gap(cost, memory.bound, self.terms(flat, instance, point, dual))

    def terms(self, flat: Flat, instance: Instance, x: Float[Array, " n"], dual: Float[Array, " m"]) -> Scalar:
        """Return the size of what a cost, and a bound of it by multipliers, are sums of."""
        family, to = flat.family, self.reduced
        assert isinstance(family, QuadraticProgram) and to is not None
        *_, linear, low, high = family.written_out(instance, x.dtype)
        limits = jnp.where(dual > 0, high[to.limits], low[to.limits])
        limits = jnp.where(jnp.isfinite(limits), jnp.abs(limits), 0.0)
        return jnp.abs(linear) @ jnp.abs(x) + limits @ jnp.abs(dual)

    def _exact(self, x: Float[Array, " n"]) -> Scalar:
        """Return by how much constraints may contradict each other, as a residual, and still count as fulfilled."""
        return jnp.clip(self.tol, 100 * jnp.finfo(x.dtype).eps, CONTRADICTING)

    def _is_impossible(self, memory: Memory, grown: Float[Array, " m"]) -> Bool[Array, ""]:
        r"""Say whether what multipliers grew by, $d$, proves that no point satisfies the hard rows (OSQP, 3.4).

        For a point with coordinates $c$ that does, $d^\top R c$ is at most the support $s$ of the limits along $d$. So
        where $s < 0$, no such $c$ is shorter than $\lvert s \rvert / \lVert R^\top d \rVert$. If any existed, the
        shortest would be as long as what the origin violates the limits by, times a condition of the rows (Hoffman):
        a program is called impossible only if that is above 1 / `tight`.
        """
        to = self.reduced
        assert to is not None
        hard, tight = jnp.isinf(to.ceiling), jnp.maximum(1e-6, 1e4 * jnp.finfo(grown.dtype).eps)
        grown = jnp.where(hard, grown, 0.0)  # soft rows may be left, so that they prove nothing
        support = jnp.sum(jnp.where(grown > 0, _times(memory.high, grown), _times(memory.low, grown)))
        violated = jnp.linalg.norm(jnp.where(hard, jnp.clip(0.0, memory.low, memory.high), 0.0))
        return (support < 0) & (jnp.linalg.norm(to.rows.T @ grown) * violated <= -tight * support)

    def _is_endless(self, memory: Memory, moved: Float[Array, " k"], rows_moved: Float[Array, " m"]) -> Bool[Array, ""]:
        r"""Say whether what the last iteration moved by is a direction $d$ along which the objective falls forever:
        without curvature, without a limit of a hard row, and by more than the prices of soft rows (OSQP, 3.4).

        What holds $d$ back may be rounding, up to `tight` times its slope relative to the linear term $q$. A program
        with a solution $w$ has multipliers $y$ with $q = -\kappa w - R^\top y$, so that the slope along *any* $d$ is at
        most what holds it back, times $\lVert w \rVert_1 + \lVert y \rVert_1$. So it is never called unbounded where
        that is below $\lVert q \rVert$ / `tight`.
        """
        to = self.reduced
        assert to is not None
        tight = jnp.maximum(1e-9, 100 * jnp.finfo(moved.dtype).eps)
        limited = jnp.where(rows_moved > 0, jnp.isfinite(memory.high), jnp.isfinite(memory.low))
        pressed = jnp.where(limited, jnp.abs(rows_moved), 0.0)
        hard = jnp.isinf(to.ceiling)
        slope = -memory.linear @ moved - jnp.sum(jnp.where(hard, 0.0, _times(to.ceiling, pressed)))
        held = jnp.maximum(trees.largest(to.curvature * moved), trees.largest(jnp.where(hard, pressed, 0.0)))
        return (slope > 0) & (held * jnp.linalg.norm(memory.linear) <= tight * slope)


@OncePerFamily
def _reduced(family: ProblemFamily, dtype: Any) -> Reduced:
    assert isinstance(family, QuadraticProgram)
    quadratic, constraints = (_floating(it) for it in family.matrices)
    equations, ceiling = np.asarray(family.equations), np.asarray(family.ceiling, float)
    return reduce_program(quadratic, constraints, equations, ceiling, dtype)


def _floating(matrix: Any) -> np.ndarray:
    """Keep float32: it tells how exact the matrix is."""
    matrix = np.asarray(matrix)
    return matrix if np.issubdtype(matrix.dtype, np.floating) else matrix.astype(float)


def relative_gap(cost: Scalar, lowest: Scalar, terms: Scalar | float = 0.0) -> Scalar:
    """Return the gap between a cost and a lower bound of the minimum, relative to the smaller of the two in size: where
    they have one sign, the cost exceeds the minimum by no larger a part of it. It is zero where both are rounding of
    the `terms` that they are sums of, since an optimum that costs nothing has no part that could be told. A bound above
    the cost by more than rounding is wrong, and proves nothing: the gap is infinite."""
    size, kind = jnp.minimum(jnp.abs(cost), jnp.abs(lowest)), jnp.finfo(cost.dtype)
    largest = jnp.maximum(jnp.abs(cost), jnp.abs(lowest))
    gap = jnp.maximum(cost - lowest, 0.0) / jnp.maximum(size, kind.tiny)
    gap = jnp.where(lowest - cost > 1e3 * kind.eps * jnp.maximum(largest, terms), jnp.inf, gap)
    return jnp.where(largest <= 10 * kind.eps * terms, 0.0, gap)


def _units(curvature: Scalar, slope: Scalar, low: Array, high: Array) -> tuple[Scalar, Scalar]:
    """Return ten times the sizes of limits and of slopes, but 1 where that is more or nothing tells. Where all limits
    are zero, the size of params is where curvature and slope are in balance."""
    limits = _widest(low, high)
    params = jnp.where(limits > 0, limits, jnp.where(curvature > 0, slope / curvature, 0.0))
    slopes = jnp.maximum(slope, curvature * params)
    limits, slopes = (jnp.where(size > 0, jnp.minimum(10 * size, 1.0), 1.0) for size in (params, slopes))
    return limits, slopes


def _widest(low: Array, high: Array) -> Scalar:
    """Return the size of the largest limit."""
    finite = lambda limit: trees.largest(jnp.where(jnp.isfinite(limit), limit, 0.0))  # noqa: E731
    return jnp.maximum(finite(low), finite(high))


def _times(limit: Array, grown: Array) -> Array:
    """Multiply; an infinite limit times nothing is nothing."""
    return jnp.where(grown == 0, 0.0, limit * jnp.where(grown == 0, 1.0, grown))
