"""ADMM for thousands of quadratic programs with the same matrices: one factorization for all."""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._core.types import Instance, Scalar
from ..problems import QuadraticProgram
from .base import Flat, Method, Progress
from .solution import RUNNING

EQUATION = 1e3
"""How much heavier an equation weighs than an inequality, as in OSQP."""

SIGMA = 1e-6
LOWEST, HIGHEST = 1e-6, 1e6
"""Limits of the penalty."""


class Memory(NamedTuple):
    """OSQP's z and y, the rows of A x, and the penalty of this instance."""

    z: Float[Array, " m"]
    y: Float[Array, " m"]
    rows: Float[Array, " m"]
    rho: Scalar


class Factors(NamedTuple):
    r"""$V$ and $\lambda$ with $V^\top (P + \sigma I) V = I$ and $V^\top A^\top W A V = \operatorname{diag} \lambda$."""

    vectors: Float[Array, "n n"]
    values: Float[Array, " n"]
    weights: Float[Array, " m"]


class ADMM(Method):
    r"""Operator splitting for quadratic programs, with a penalty $\rho$ for each instance and no factorization for any.

    OSQP solves with $P + \sigma I + \rho A^\top W A$, and factorizes again when $\rho$ changes. Here both terms are
    made diagonal together, once for the family: the inverse is $V (1 + \rho \lambda)^{-1} V^\top$ for *every* $\rho$.
    So each instance adapts its own, and a batch is a few matrix products.

    The certificate is the larger of the primal and the dual residual, each relative to its terms plus 1.

    **Guarantee:** ADMM with $\rho > 0$ fixed and relaxation in (0, 2) converges from any start for every convex
    program that has a solution (its operator is averaged). $\rho$ adapts during the first half of `max_steps` only,
    from then on the guarantee holds. A learned penalty or start may be arbitrary for the same reason.

    **Arguments:** `rho`: penalty at the start. `relaxation`: OSQP's 1.6. `inner`: iterations of a step, between two
    looks at the residuals. `adapt`: a factor between residuals beyond which $\rho$ changes. `tol`: as above.
    `max_steps`: iterations.

    **Source:** Stellato et al., *OSQP* (2020), algorithm 1 and equation 13.
    """

    batch: ClassVar[int] = 1024  # a step is a matrix product

    rho: float | Array = 0.1
    relaxation: float | Array = 1.6
    adapt: float | Array = 5.0
    tol: float | Array = 1e-4
    max_steps: int | Array = 4000
    inner: int = eqx.field(static=True, default=10)
    factors: Factors | None = None

    def prepare(self, flat: Flat, dtype: Any) -> "ADMM":
        family = flat.family
        assert isinstance(family, QuadraticProgram)
        quadratic, constraints = (np.asarray(it, float) for it in family.matrices)
        weights = np.where(np.asarray(family.equations), EQUATION, 1.0)
        root = np.linalg.cholesky(quadratic + SIGMA * np.eye(len(quadratic)))
        inverse = np.linalg.inv(root)
        values, vectors = np.linalg.eigh(inverse @ (constraints.T * weights) @ constraints @ inverse.T)
        factors = Factors(*(jnp.asarray(it, dtype) for it in (inverse.T @ vectors, np.maximum(values, 0), weights)))
        return dataclasses.replace(self, factors=factors)

    def start(self, flat: Flat, instance: Instance, x: Float[Array, " p"]) -> Progress:
        family = flat.family
        assert isinstance(family, QuadraticProgram)
        _, constraints = family.matrices
        _, low, high = family.vectors(instance)
        rows = constraints.astype(x.dtype) @ x
        zeros = jnp.zeros_like(rows)
        memory = Memory(jnp.clip(rows, low, high), zeros, rows, jnp.full((), self.rho, x.dtype))
        return Progress.begin(x, memory)

    def step(self, flat: Flat, instance: Instance, at: Progress) -> Progress:
        family = flat.family
        assert isinstance(family, QuadraticProgram) and self.factors is not None
        quadratic, constraints = (it.astype(at.x.dtype) for it in family.matrices)
        linear, low, high = family.vectors(instance)
        vectors, values, weights = self.factors
        memory: Memory = at.memory
        heavy, alpha = memory.rho * weights, self.relaxation

        def iterate(_: Any, carry: tuple[Array, ...]) -> tuple[Array, ...]:
            x, z, y, rows, _ = carry
            right = SIGMA * x - linear + constraints.T @ (heavy * z - y)
            solved = vectors @ ((vectors.T @ right) / (1 + memory.rho * values))
            solved_rows = constraints @ solved
            relaxed = alpha * solved_rows + (1 - alpha) * z
            z_next = jnp.clip(relaxed + y / heavy, low, high)
            y_next = y + heavy * (relaxed - z_next)
            return alpha * solved + (1 - alpha) * x, z_next, y_next, alpha * solved_rows + (1 - alpha) * rows, y

        start = at.x, memory.z, memory.y, memory.rows, memory.y
        x, z, y, rows, y_before = jax.lax.fori_loop(0, self.inner, iterate, start)

        px, aty = quadratic @ x, constraints.T @ y
        primal = _largest(rows - z) / (1 + jnp.maximum(_largest(rows), _largest(z)))
        dual = _largest(px + linear + aty)
        dual = dual / (1 + jnp.maximum(jnp.maximum(_largest(px), _largest(aty)), _largest(linear)))
        certificate = jnp.maximum(primal, dual)
        finite = jnp.isfinite(certificate)
        certificate = jnp.where(finite, certificate, jnp.inf)

        ratio = jnp.sqrt(jnp.maximum(primal, 1e-10) / jnp.maximum(dual, 1e-10))
        nit = at.nit + self.inner
        far = ((ratio > self.adapt) | (ratio < 1 / self.adapt)) & (2 * nit < self.max_steps)
        rho = jnp.where(far, jnp.clip(memory.rho * ratio, LOWEST, HIGHEST), memory.rho)
        # A direction along which y grows forever and A^T does not see it proves that no point is feasible (OSQP, 3.4).
        grown = y - y_before
        size = _largest(grown)
        support = jnp.sum(jnp.where(grown > 0, _times(high, grown), _times(low, grown)))
        impossible = (size > 1e-6) & (_largest(constraints.T @ grown) <= 1e-6 * size) & (support < -1e-6 * size)
        status = jnp.select(
            [~finite, certificate <= self.tol, impossible],
            [jnp.int32(-1), jnp.int32(1), jnp.int32(-3)],
            jnp.int32(RUNNING),
        )
        cost = 0.5 * x @ px + linear @ x
        return Progress(x, cost, certificate, status, nit, at.nfev + self.inner, Memory(z, y, rows, rho))


def _largest(vector: Array) -> Scalar:
    return jnp.max(jnp.abs(vector), initial=0.0)


def _times(limit: Array, grown: Array) -> Array:
    """Multiply; an infinite limit times nothing is nothing."""
    return jnp.where(grown == 0, 0.0, limit * jnp.where(grown == 0, 1.0, grown))
