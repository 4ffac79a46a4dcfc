"""Safe-L2O: any learned proposal for a convex composite problem, held by an averaged operator."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._core.types import Instance, Scalar
from ..problems import Composite
from .base import Flat, Method, Progress, status_of
from .proximal import curvature
from .solution import Status

Propose = Callable[[Float[Array, " p"], Int[Array, ""]], Float[Array, " p"]]
"""Maps x and the number of steps so far to a proposal: an `equinox.Module`, say, whose arrays were learned."""


class Memory(NamedTuple):
    """The safe candidate T(u), and the level that a proposal's residual is held against."""

    safe: Float[Array, " p"]
    level: Scalar


class Safeguarded(Method):
    r"""Take a proposal $y$ if $\lVert S(y) \rVert \le (1 - \delta) \mu$, and otherwise the operator's $T(u)$.

    $T$ is the proximal gradient step with $1/L$, $S(x) = x - T(x)$. After an accepted proposal
    $\mu \gets \theta \lVert S(y) \rVert + (1 - \theta) \mu$ (an exponential moving average). One evaluation of $T$ a
    step: that at the point taken is the next safe candidate.

    **Guarantee (any proposal):** $\lVert S(u_k) \rVert \to 0$. *Assume* that the problem is convex with a minimum, and
    $g$ has an $L$-Lipschitz gradient: then $T$ is averaged. *Sketch:* if proposals are taken infinitely often, each
    multiplies $\mu$ by at most $1 - \theta \delta$, so $\mu \to 0$, and safe steps between them never raise
    $\lVert S \rVert$, because $T$ is nonexpansive. Otherwise, from some step on, this is the Krasnosel'skii–Mann
    iteration, which converges to a fixed point. A bounded sequence's cluster points are fixed points of $T$: minima.

    A step is counted twice in `nfev` when its proposal is rejected: $T$ is then evaluated at the safe candidate, too.

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

    def prepare(self, flat: Flat, dtype: Any) -> "Safeguarded":
        return dataclasses.replace(self, bound=curvature(flat.family, dtype))

    def start(self, flat: Flat, instance: Instance, x: Float[Array, " p"]) -> Progress:
        return Progress.begin(x, Memory(x, jnp.full((), jnp.inf, x.dtype)))

    def step(self, flat: Flat, instance: Instance, at: Progress) -> Progress:
        family = flat.family
        assert isinstance(family, Composite)
        assert self.bound is not None
        memory, bound = at.memory, self.bound
        first = at.nit == 0

        def look(x: Array) -> tuple[Array, Array, Scalar]:
            gradient = jax.grad(family.smooth)(x, instance)
            safe = family.prox(x - gradient / bound, 1 / bound, instance)
            return safe, gradient, jnp.linalg.norm(x - safe)

        proposal = jnp.where(first, at.x, self.propose(at.x, at.nit))
        safe, gradient, size = look(proposal)
        level = memory.level
        taken = jnp.isfinite(size) & jnp.all(jnp.isfinite(gradient)) & (first | (size <= (1 - self.delta) * level))
        safe_else, gradient_else, _ = look(memory.safe)
        pick = lambda yes, no: jnp.where(taken, yes, no)  # noqa: E731
        x, safe, gradient = pick(proposal, memory.safe), pick(safe, safe_else), pick(gradient, gradient_else)
        blend = jnp.where(first, size, self.theta * size + (1 - self.theta) * jnp.where(first, 0.0, level))
        level = pick(blend, level)

        cost = flat.loss(x, instance)
        gap = family.gap(x, gradient, instance)
        if gap is None:
            certificate = jnp.max(bound * jnp.abs(x - safe), initial=0.0)
        else:
            certificate = gap / jnp.maximum(jnp.abs(cost), jnp.finfo(x.dtype).tiny)
        finite = jnp.isfinite(cost)
        certificate = jnp.where(finite, certificate, jnp.inf)
        status = status_of((~finite, Status.NOT_FINITE), (certificate <= self.tol, Status.CERTIFIED))
        nfev = at.nfev + jnp.where(taken, 1, 2)
        return Progress(x, cost, certificate, status, at.nit + 1, nfev, Memory(safe, level))
