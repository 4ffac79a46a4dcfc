"""Levenberg–Marquardt for thousands of least-squares problems at once."""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._core.types import Instance, Scalar
from ..problems import LeastSquares
from .base import Flat, Method, Progress, check_part, status_of
from .damping import HIGHEST, LOWEST, Damping, Seen, TrustRegion
from .small import products_of, solve_spd
from .solution import Status

ACCEPT = 1e-4
"""The share of the predicted decrease that a step must reach."""

STEEPEST = 1e8
"""Times the square of a slope here that the square of one long past may count: more would hold a param fast."""

STRONG = 1.0
"""Steps that a damping above this made small say nothing about the minimum."""


class Model(NamedTuple):
    r"""The quadratic model at x, and the trial that it proposes.

    `gram` is $J^\top J$, `slope` $J^\top r$, `scale` the largest diagonal of the Gram matrix so far, but at most
    `STEEPEST` times the one here (MINPACK's: steps do not depend on the units of the params). `predicted`: the decrease
    that the trial promises; `strongest`: the largest damping behind it, relative to the Gram matrix at x. `small`:
    whether it is a small step, though damping is weak; `each`: whether every param's own part of it is.
    """

    trial: Float[Array, " p"]
    gram: Float[Array, "p p"]
    slope: Float[Array, " p"]
    scale: Float[Array, " p"]
    predicted: Scalar
    strongest: Scalar
    small: Bool[Array, ""]
    each: Bool[Array, ""]
    damping: Any


class LevenbergMarquardt(Method):
    r"""Levenberg–Marquardt with a gain ratio and bounds: $(J^\top J + \lambda D) \, s = -J^\top r$.

    A step costs one evaluation of the residuals with their Jacobian, whether it is taken or not: under `vmap` a saved
    evaluation is computed anyway. Bounds: params that press against one are left out of the step, and the trial is
    projected.

    The certificate is what an undamped step would still gain by the model, relative to the cost: half the squared
    Newton decrement, $\frac12 g^\top (J^\top J)^{-1} g \, / \, f$, over the params that no bound holds. It does not
    depend on units or on how params are combined, and near a minimum it *is* the relative excess of the cost. Success
    means that it is below `tol`, or, where damping did not make it so, that the last step promised and gained less
    than a tenth of `tol`, or was below `tol`, relative to x, for every param by itself (beside a large one, steps of
    all others are small), or else left a certificate below the root of `tol`, or residuals that are rounding. What ends
    otherwise may be as good: a param that runs off to infinity, where the cost hardly falls any more, has no minimum to
    certify. What is certified is a point where $J^\top r$ vanishes, most often a minimum. A start may be one that is no
    minimum, and is certified at once: do not start there. Nothing is certified where squares of residuals are too small
    for the precision (in float32, of data below 1e-11, residuals below 1e-16): `status` is then `UNDERFLOW`.

    **Guarantee (any damping rule, also a learned one that fails):** a trial is taken only if it lowers the cost by at
    least `ACCEPT` times what the model predicts. So the cost never rises, and $x$ is the best point seen. A rule's
    damping is multiplied by 4 for every rejection after the fourth in a row, and kept within limits. *Assume* that J is
    Lipschitz and bounded on the level set of the start. *Then* every cluster point of the iterates is stationary.
    *Sketch:* the predicted decrease is at least $\frac12 \lVert g \rVert_{(A + \lambda D)^{-1}}^2$, and it differs from
    the actual one by $O(\lVert s \rVert^2)$ with $\lVert s \rVert = O(\lVert g \rVert / \lambda)$. So after finitely
    many rejections the ratio exceeds `ACCEPT`, with a damping bounded on the level set. The sum of the decreases is
    bounded by the first cost, hence $g \to 0$ along the accepted steps. A rule changes how fast it gets there and in
    which basin, not what counts as solved.

    **Arguments:** `tol`: as above; 1e-8 is SciPy's for the cost. `max_steps`: evaluations for an
    instance. `damping`: the rule.

    **Source:** Marquardt (1963); Moré, *The Levenberg–Marquardt algorithm: implementation and theory* (1978).
    """

    refill: ClassVar[int] = 8  # nothing is computed at a start
    any_order: ClassVar[bool] = True  # a step computes all products of the Jacobian's columns
    solves: ClassVar = LeastSquares

    damping: Damping = TrustRegion()
    tol: float | Array = 1e-8
    max_steps: int | Array = 100

    def __check_init__(self) -> None:
        check_part("damping", self.damping, Damping)

    def start(self, flat: Flat, instance: Instance, x: Float[Array, " p"]) -> Progress:
        low, high = flat.bounds(x, instance)
        x = jnp.clip(x, low, high)
        zeros = jnp.zeros_like(x)
        rejected = jnp.zeros((), x.dtype)
        model = Model(
            x,
            jnp.zeros((x.size, x.size), x.dtype),
            zeros,
            zeros,
            rejected,
            rejected,
            jnp.bool_(False),
            jnp.bool_(False),
            (self.damping.start(instance, x), rejected),
        )
        return Progress.begin(x, model)

    def step(self, flat: Flat, instance: Instance, at: Progress) -> Progress:
        model: Model = at.memory
        cost, gram, slope, finite = _evaluate(flat, instance, model.trial)
        first = at.nit == 0
        gained = jnp.where(first, 0.0, at.cost - cost)
        ratio = gained / jnp.where(model.predicted > 0, model.predicted, 1.0)
        taken = finite & (first | ((ratio >= ACCEPT) & (model.predicted > 0)))

        keep = lambda new, old: jnp.where(taken, new, old)  # noqa: E731
        x, best = keep(model.trial, at.x), keep(cost, at.cost)
        gram, slope = keep(gram, model.gram), keep(slope, model.slope)
        own = jnp.diagonal(gram)
        scale = jnp.maximum(jnp.where(taken, jnp.minimum(model.scale, STEEPEST * own), model.scale), own)
        low, high = flat.bounds(x, instance)
        free = ~(((x <= low) & (slope > 0)) | ((x >= high) & (slope < 0)))
        ratio = jnp.where(finite, ratio, -1.0)
        seen = Seen(first, taken, ratio, best, gained, at.nit, x, gram, slope, scale, free)
        trial, predicted, damping, strongest, given = self._propose(seen, low, high, model.damping)

        certificate = _certificate(gram, slope, best, free)
        weight = jnp.sqrt(scale)
        size = jnp.linalg.norm(weight * x)
        small_step = taken & (jnp.linalg.norm(weight * (trial - x)) <= self.tol * size)
        each = jnp.all(jnp.abs(trial - x) <= self.tol * jnp.abs(x))
        kind = jnp.finfo(x.dtype)
        # Of what residuals are sums of here: the scale may be of steeper points.
        exact = 100 * kind.eps * jnp.linalg.norm(jnp.sqrt(own) * x)
        rounding = jnp.sqrt(2 * best) <= exact
        # Of squares so small some are cut to zero. They tell what is below rounding, and exact zeros have no slope; of
        # a J that is lost as well, nothing is known.
        least = kind.tiny / kind.eps
        lost = taken & (best < least) & (exact < (2 * least) ** 0.5)
        lost &= jnp.any(slope != 0) | jnp.all(own < least)
        certificate = jnp.where(lost, jnp.inf, certificate)
        close = model.each | (certificate <= jnp.sqrt(self.tol)) | rounding
        small_gain = ~first & finite & (ratio <= 2) & (jnp.abs(gained) <= 0.1 * self.tol * best)
        small_gain &= model.predicted <= 0.1 * self.tol * at.cost
        # Where damping made a step small, perhaps the scale is of steeper points, long past: it begins anew.
        held = (small_step & (strongest > STRONG)) | (small_gain & (model.strongest > STRONG))
        scale = jnp.where(held, own, scale)
        status = status_of(
            (first & ~finite, Status.NOT_FINITE),
            (lost, Status.UNDERFLOW),
            (certificate <= self.tol, Status.CERTIFIED),
            (small_gain & ~held, Status.SMALL_GAIN),
            (model.small & close, Status.SMALL_STEP),  # it has been taken, or it was too small to lower the cost
            (given > HIGHEST, Status.STUCK),
        )
        memory = Model(trial, gram, slope, scale, predicted, strongest, small_step & ~held, each, damping)
        return Progress(x, best, certificate, status, at.nit + 1, at.nfev + 1, memory)

    def _propose(self, seen: Seen, low: Array, high: Array, state: Any) -> tuple[Array, Scalar, Any, Scalar, Scalar]:
        (rule_state, rejected), scale, free = state, seen.scale, seen.free
        damping, factor, rule_state = self.damping.next(seen, rule_state)
        rejected = jnp.where(seen.taken, 0.0, rejected + 1)
        # A rule that answers nonsense is held like one that answers well: growing damping, finite factors. The
        # classical rule grows by itself, so the guard only begins where that would have had ample effect.
        guard = 4.0 ** jnp.maximum(rejected - 4, 0)
        damping = jnp.clip(jnp.nan_to_num(damping, nan=1.0), LOWEST, HIGHEST) * guard
        factor = jnp.clip(jnp.nan_to_num(factor, nan=1.0), 0.1, 2.0)
        factor = jnp.where(rejected > 4, 1.0, factor)

        system = jnp.where(free[:, None] & free[None, :], seen.gram, 0.0)
        diagonal = jnp.where(free, damping * jnp.where(scale > 0, scale, 1.0), 1.0)
        step = solve_spd(system + jnp.diag(diagonal), jnp.where(free, -seen.slope, 0.0))
        factorized = jnp.all(jnp.isfinite(step))
        trial = jnp.where(factorized, jnp.clip(seen.x + factor * step, low, high), seen.x)
        moved = trial - seen.x
        predicted = -(moved @ seen.slope + 0.5 * moved @ seen.gram @ moved)
        # The scale is of the steepest point so far: damping that is weak beside it may be strong beside what is here.
        now = jnp.maximum(jnp.diagonal(seen.gram), jnp.finfo(scale.dtype).tiny)
        strongest = jnp.max(jnp.where(free & (scale > 0), damping * jnp.maximum(scale / now, 1.0), damping))
        # Where the damping is too weak for this precision there is no step, which says nothing about the minimum
        # either. It predicts nothing, so it is rejected, and the damping grows.
        strongest = jnp.maximum(strongest, jnp.where(factorized, 0.0, 2 * STRONG))
        return trial, predicted, (rule_state, rejected), strongest, jnp.max(damping)


def _evaluate(flat: Flat, instance: Instance, x: Array) -> tuple[Scalar, Array, Array, Array]:
    """Return the cost, Gram matrix, slope, and whether all of them are finite; what is not becomes zero."""
    family = flat.family
    assert isinstance(family, LeastSquares)

    def along(direction: Array) -> tuple[Array, Array]:
        residuals = lambda x: jnp.ravel(family.residuals(flat.params(x), instance))  # noqa: E731
        return jax.jvp(residuals, (x,), (direction,))

    values, slopes = jax.vmap(along, out_axes=(None, 0))(jnp.eye(x.size, dtype=x.dtype))
    products = products_of(jnp.concatenate([slopes, values[None]]))
    cost, gram, slope = 0.5 * products[-1, -1], products[:-1, :-1], products[:-1, -1]
    finite = jnp.isfinite(cost) & jnp.all(jnp.isfinite(gram)) & jnp.all(jnp.isfinite(slope))
    zero = lambda it: jnp.where(finite, it, 0.0)  # noqa: E731
    return jnp.where(finite, cost, jnp.inf), zero(gram), zero(slope), finite


def _certificate(gram: Array, slope: Array, cost: Scalar, free: Array) -> Scalar:
    """Return half the squared Newton decrement of the free params, relative to the cost."""
    system = jnp.where(free[:, None] & free[None, :], gram, 0.0)
    ridge = 16 * len(slope) * jnp.finfo(gram.dtype).eps  # a column of zeros, or one that others make up for
    own = jnp.diagonal(gram)
    diagonal = jnp.where(free & (own > 0), ridge * own, 1.0)
    slope = jnp.where(free, slope, 0.0)
    step = jax.lax.stop_gradient(solve_spd(system + jnp.diag(diagonal), slope))
    decrement = 0.5 * jnp.abs(slope @ step) / jnp.where(cost > 0, cost, 1.0)
    # What cannot be factorized in this precision is not certified.
    return jnp.where(jnp.isfinite(cost) & jnp.isfinite(decrement), decrement, jnp.inf)
