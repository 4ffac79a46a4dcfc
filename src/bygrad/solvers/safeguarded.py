"""Safe-L2O: any learned proposal for a convex composite problem, held by an averaged operator."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .._core import trees
from .._core.types import Instance, Scalar
from ..problems import Composite
from .base import Flat, Method, Progress, check_part, status_of
from .proximal import curvature, flattest_of, unsettled
from .solution import Status

Propose = Callable[[Float[Array, " p"], Int[Array, ""]], Float[Array, " p"]]
"""Maps x and the number of steps so far to a proposal: an `equinox.Module`, say, whose arrays were learned."""


class Memory(NamedTuple):
    """The safe candidate T(u); the level that a proposal's residual is held against; whether the last was rejected; the
    gradient at x; the least curvature on the way of late (`flattest_of`)."""

    safe: Float[Array, " p"]
    level: Scalar
    rejected: Bool[Array, ""]
    gradient: Float[Array, " p"]
    flattest: Scalar


class Safeguarded(Method):
    r"""Take a proposal $y$ if $\lVert S(y) \rVert \le (1 - \delta) \mu$, and otherwise the operator's $T(u)$.

    Proposals, and the start, are first moved to the nearest point where $h$ is finite.

    $T$ is the proximal gradient step with $1/L$, $S(x) = x - T(x)$. After an accepted proposal
    $\mu \gets \theta \lVert S(y) \rVert + (1 - \theta) \mu$ (an exponential moving average). One evaluation of $T$ a
    step: that at the point taken is the next safe candidate. Where a proposal is rejected, $x$ stays, and the next step
    takes the safe candidate instead of asking for another: a rejected proposal costs one step.

    **Guarantee (any proposal):** $\lVert S(u_k) \rVert \to 0$. *Assume* that the problem is convex with a minimum, and
    $g$ has an $L$-Lipschitz gradient: then $T$ is averaged. *Sketch:* if proposals are taken infinitely often, each
    multiplies $\mu$ by at most $1 - \theta \delta$, so $\mu \to 0$, and safe steps between them never raise
    $\lVert S \rVert$, because $T$ is nonexpansive. Otherwise, from some step on, this is the Krasnosel'skii–Mann
    iteration, which converges to a fixed point. A bounded sequence's cluster points are fixed points of $T$: minima.

    **Arguments:** `propose`: as above. `delta`, `theta`: in (0, 1). `tol`, `max_steps`: as for every method; the
    certificate is that of `ProximalGradient`.

    **Source:** Heaton, Chen, Wang and Yin, *Safeguarded learned convex optimization* (2023), algorithm 1.
    """

    solves: ClassVar = Composite

    propose: Propose
    delta: float | Array = 0.1
    theta: float | Array = 0.5
    tol: float | Array = 1e-4
    max_steps: int | Array = 5000
    bound: Scalar | None = None

    def __check_init__(self) -> None:
        check_part("propose", self.propose, Callable)
        for name in ("delta", "theta"):
            value = getattr(self, name)
            if isinstance(value, int | float) and not 0 < value < 1:
                raise ValueError(f"{name} is {value}, where nothing is guaranteed. Give a number between 0 and 1.")

    def prepare(self, flat: Flat, dtype: Any) -> "Safeguarded":
        return dataclasses.replace(self, bound=curvature(flat.family, dtype))

    def start(self, flat: Flat, instance: Instance, x: Float[Array, " p"]) -> Progress:
        x = flat.allowed(x, instance)
        level, zero = jnp.full((), jnp.inf, x.dtype), jnp.zeros_like(x)
        return Progress.begin(x, Memory(x, level, jnp.bool_(False), zero, jnp.zeros((), x.dtype)))

    def step(self, flat: Flat, instance: Instance, at: Progress) -> Progress:
        family = flat.family
        assert isinstance(family, Composite)
        assert self.bound is not None
        memory, bound = at.memory, self.bound
        first = at.nit == 0

        proposal = jnp.where(first, at.x, flat.allowed(self.propose(at.x, at.nit), instance))
        x = jnp.where(memory.rejected, memory.safe, proposal)
        gradient = jax.grad(family.smooth)(x, instance)
        safe = family.prox(x - gradient / bound, 1 / bound, instance)
        size = jnp.linalg.norm(x - safe)
        cost = flat.loss(x, instance)
        finite = jnp.isfinite(cost) & jnp.isfinite(size) & jnp.all(jnp.isfinite(gradient))
        forced = first | memory.rejected
        taken = forced | (finite & (size <= (1 - self.delta) * memory.level))
        blend = jnp.where(first, size, self.theta * size + (1 - self.theta) * jnp.where(first, 0.0, memory.level))
        level = jnp.where(memory.rejected, memory.level, blend)

        gap, flattest = family.gap(x, gradient, instance), memory.flattest
        if gap is None:
            flattest = flattest_of(flattest, x - at.x, jnp.where(first, 0.0, gradient - memory.gradient), x)
            certificate = unsettled(x, safe, gradient / bound, cost, bound, flattest)
        else:
            certificate = gap / jnp.maximum(jnp.abs(cost), jnp.finfo(x.dtype).tiny)
        certificate = jnp.where(finite, certificate, jnp.inf)
        status = status_of(
            (first & ~finite, Status.NOT_FINITE),
            (forced & ~finite, Status.TOO_CURVED),  # where L is right, T leads to no such point
            (taken & (certificate <= self.tol), Status.CERTIFIED),
        )
        new = x, cost, certificate, safe, level, gradient, flattest
        old = at.x, at.cost, at.certificate, memory.safe, memory.level, memory.gradient, memory.flattest
        x, cost, certificate, safe, level, gradient, flattest = trees.where(taken & (first | finite), new, old)
        memory = Memory(safe, level, ~taken, gradient, flattest)
        return Progress(x, cost, certificate, status, at.nit + 1, at.nfev + 1, memory)
