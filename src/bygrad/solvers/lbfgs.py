"""L-BFGS with bounds for thousands of smooth problems at once."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._core import trees
from .._core.types import Instance, Scalar
from .base import Flat, Method, Progress, status_of
from .solution import Status

PAIRS = 8
"""Steps remembered."""

ARMIJO = 1e-4
SHORTEST = 1e-10
"""A step factor below which a direction is given up."""

FLATTEST = 1e-10
"""The smallest cosine between a move and the change of the gradient on it that tells a curvature."""

STEEP = 0.9
"""A move at whose end the cost still falls along it, by this share of the slope at its start, was too short (Wolfe)."""

LONGER = 4.0
"""The factor on a step that was too short and told no curvature."""


class Memory(NamedTuple):
    """What is remembered: the last moves and how the gradient changed on them, newest last; and the trial."""

    gradient: Float[Array, " p"]
    direction: Float[Array, " p"]
    factor: Scalar
    moves: Float[Array, "m p"]
    changes: Float[Array, "m p"]


class LBFGS(Method):
    r"""Limited-memory BFGS with projection onto bounds, one evaluation of value and gradient a step.

    A trial $\operatorname{clip}(x + t d)$ that does not lower the cost enough (Armijo) is not taken, and the next one
    is on the same direction with $t$ from quadratic interpolation. So the line search is not a loop inside the step,
    and instances that search do not hold up others. A direction that fails altogether is replaced by steepest descent.
    Along one on which the cost falls and does not curve upwards, the next step is longer.

    The certificate is that of L-BFGS-B: $\lVert x - \operatorname{clip}(x - \nabla f) \rVert_\infty$. Success means
    that it is below `tol`, or that a step gained less than `gain`, relative to the cost, though it was long enough for
    the slope along it to change (Wolfe's condition). So `tol` is in the units of the gradient: where costs are tiny,
    say in joules, give a smaller one.

    **Guarantee:** the cost never rises. *Assume* that the gradient is Lipschitz on the level set of the start. *Then*
    the certificate gets arbitrarily small, unless `gain` ends the run. *Sketch:* pairs with too little curvature are
    skipped, so the metric's eigenvalues are bounded; backtracking then ends after finitely many trials, each step
    lowers the cost by a multiple of the squared projected gradient, and the sum of these is bounded.

    **Arguments:** `tol`, `gain`: as above; `gain` is that of L-BFGS-B. `max_steps`: evaluations for an instance.

    **Source:** Nocedal and Wright, *Numerical Optimization*, algorithm 7.4; Byrd et al. (1995) for the certificate.
    """

    tol: float | Array = 1e-5
    gain: float | Array = 2.2e-9
    max_steps: int | Array = 500

    def start(self, flat: Flat, instance: Instance, x: Float[Array, " p"]) -> Progress:
        low, high = flat.bounds(x, instance)
        x, pairs = jnp.clip(x, low, high), jnp.zeros((PAIRS, x.size), x.dtype)
        zeros = jnp.zeros_like(x)
        return Progress.begin(x, Memory(zeros, zeros, jnp.zeros((), x.dtype), pairs, pairs))

    def step(self, flat: Flat, instance: Instance, at: Progress) -> Progress:
        memory: Memory = at.memory
        low, high = flat.bounds(at.x, instance)
        first = at.nit == 0
        trial = jnp.clip(at.x + memory.factor * memory.direction, low, high)
        cost, gradient = jax.value_and_grad(flat.loss)(trial, instance)
        finite = jnp.isfinite(cost) & jnp.all(jnp.isfinite(gradient))
        cost, gradient = jnp.where(finite, cost, jnp.inf), jnp.where(finite, gradient, 0.0)

        moved = trial - at.x
        slope = memory.gradient @ moved
        taken = finite & (first | ((cost <= at.cost + ARMIJO * slope) & (slope < 0)))
        change = gradient - memory.gradient
        sizes = jnp.linalg.norm(moved) * jnp.linalg.norm(change)
        useful = taken & ~first & (moved @ change > FLATTEST * sizes)
        short = taken & ~first & (gradient @ moved < STEEP * slope)
        onward = short & ~useful
        moves, changes = (
            jnp.where(useful, jnp.roll(old, -1, axis=0).at[-1].set(new), old)
            for old, new in ((memory.moves, moved), (memory.changes, change))
        )
        given_up = ~taken & (memory.factor < SHORTEST)
        stuck = given_up & ~jnp.any(moves)
        moves, changes = (jnp.where(given_up, 0.0, pairs) for pairs in (moves, changes))

        x, best = jnp.where(taken, trial, at.x), jnp.where(taken, cost, at.cost)
        gradient = jnp.where(taken, gradient, memory.gradient)
        held = ((x <= low) & (gradient > 0)) | ((x >= high) & (gradient < 0))
        # Of the pairs too, what the free params see: of curvature along those that are held, they would learn nothing.
        direction, known = _direction(*(jnp.where(held, 0.0, it) for it in (gradient, moves, changes)))
        downhill = direction @ gradient < 0
        direction = jnp.where(downhill, direction, jnp.where(held, 0.0, -gradient))
        fresh = (taken & ~onward) | given_up
        # Without pairs the gradient has no scale of its own: the first step has length 1 at most.
        scaled = known & downhill
        direction = jnp.where(scaled, direction, direction / jnp.maximum(jnp.linalg.norm(direction), 1.0))
        curve = cost - at.cost - slope
        fit = jnp.where(curve > 0, -0.5 * slope / jnp.where(curve > 0, curve, 1.0), 0.1)
        shorter = memory.factor * jnp.clip(jnp.nan_to_num(fit, nan=0.1), 0.1, 0.5)
        factor = jnp.where(fresh, 1.0, jnp.where(onward, LONGER * memory.factor, shorter))
        direction = jnp.where(fresh, direction, memory.direction)

        # As written above, it would round the gradient to what is left of it beside a large x.
        certificate = trees.largest(jnp.clip(gradient, x - high, x - low))
        certificate = jnp.where(jnp.isfinite(best), certificate, jnp.inf)
        gained = at.cost - cost
        # Along a gradient without a scale, or on a short step, to gain little says nothing of the minimum.
        small = taken & ~short & jnp.any(memory.moves)
        small &= gained <= self.gain * jnp.maximum(jnp.abs(cost), jnp.abs(at.cost))
        status = status_of(
            (first & ~finite, Status.NOT_FINITE),
            (certificate <= self.tol, Status.CERTIFIED),
            (small, Status.SMALL_GAIN),
            (stuck, Status.STUCK),
        )
        after = Memory(gradient, direction, factor, moves, changes)
        return Progress(x, best, certificate, status, at.nit + 1, at.nfev + 1, after)


def _direction(gradient: Array, moves: Array, changes: Array) -> tuple[Array, Bool[Array, ""]]:
    """Return minus the inverse Hessian of the pairs times the gradient (two-loop recursion), and whether any pair tells
    a curvature; empty pairs are zero."""
    products = jnp.sum(moves * changes, axis=1)
    sizes = jnp.linalg.norm(moves, axis=1) * jnp.linalg.norm(changes, axis=1)
    real: Bool[Array, " m"] = products > FLATTEST * sizes
    inverse = jnp.where(real, 1 / jnp.where(real, products, 1.0), 0.0)

    def forward(gradient: Array, pair: tuple[Array, ...]) -> tuple[Array, Array]:
        move, change, scale = pair
        weight = scale * (move @ gradient)
        return gradient - weight * change, weight

    def backward(step: Array, pair: tuple[Array, ...]) -> tuple[Array, None]:
        move, change, scale, weight = pair
        return step + (weight - scale * (change @ step)) * move, None

    gradient, weights = jax.lax.scan(forward, gradient, (moves, changes, inverse), reverse=True)
    known, newest = jnp.any(real), len(real) - 1 - jnp.argmax(real[::-1])
    scale = products[newest] / jnp.where(known, changes[newest] @ changes[newest], 1.0)
    scaled = gradient * jnp.where(known, scale, 1.0)
    return -jax.lax.scan(backward, scaled, (moves, changes, inverse, weights))[0], known
