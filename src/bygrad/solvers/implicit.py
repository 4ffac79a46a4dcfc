"""Derivatives of a solution with respect to its instance, by the implicit function theorem."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from .._core.programs import Program
from .._core.types import Instance, Params
from ..problems import ProblemFamily
from .base import Flat, certified
from .solution import Solution
from .solve import as_rows, precision


def implicit(family: ProblemFamily, params: Params, instance: Instance) -> Params:
    r"""Return a solution as a differentiable function of its instance.

    At an interior minimum $\nabla_x f(x, \theta) = 0$, so $dx/d\theta = -H^{-1} \nabla_\theta \nabla_x f$ with the
    Hessian $H$, of second derivatives as well and not of Gauss and Newton's part alone. Params at a bound stay there.
    The solver is not differentiated: it may be any, and may run outside JAX.

    **Arguments:** `params`: the solution of one instance, from `solve`. `instance`: the instance, in the same
    precision. The family's loss must be twice differentiable there and the Hessian regular on the free params.

    **Returns:** the same values; `jax.grad`, `jax.jvp` and `jax.vmap` of it work, in both modes. `jacobian` returns the
    derivatives of a whole batch.

    **Raises:** `TypeError` for composite problems and quadratic programs, whose solutions lie on kinks and limits;
    `ValueError` for float64 arrays where JAX computes in float32: an ill-conditioned Hessian leaves few digits of that.

    >>> import jax, jax.numpy as jnp
    >>> from bygrad.problems import ProblemFamily
    >>> class Root(ProblemFamily):
    ...     def sample(self, key):
    ...         return jax.random.uniform(key, minval=1.0, maxval=4.0)
    ...     def init(self, instance, key):
    ...         return jnp.ones(1)
    ...     def loss(self, params, instance, key):
    ...         return jnp.sum((params**2 - instance) ** 2)
    >>> float(jax.grad(lambda square: implicit(Root(), jnp.array([2.0]), square)[0])(4.0))
    0.25
    """
    _check_smooth(family)
    double = any(getattr(leaf, "dtype", None) == np.float64 for leaf in jax.tree.leaves((params, instance)))
    if double and not jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
        raise ValueError(
            "params or instance are float64, as `solve` returns them, but JAX computes in float32 here, and derivatives"
            " of ill-conditioned problems would be wrong in the second digit. Compute inside `with"
            " jax.enable_x64(True):`, use bygrad.solvers.jacobian, or give float32 arrays if that is enough."
        )
    instance = jax.tree.map(jnp.asarray, instance)
    flat = Flat.of(family, instance)
    x = jax.lax.stop_gradient(flat.vector(params))
    low, high = (jax.lax.stop_gradient(it) for it in flat.bounds(x, instance))
    free = (x > low) & (x < high)
    gradient = jax.grad(flat.loss)(x, instance)
    fixed = jax.tree.map(jax.lax.stop_gradient, instance)
    hessian = jax.lax.stop_gradient(jax.hessian(flat.loss)(x, fixed))
    system = jnp.where(free[:, None] & free[None, :], hessian, jnp.diag(jnp.where(free, 0.0, 1.0)))
    step = jnp.linalg.solve(system, jnp.where(free, gradient, 0.0))
    # A Newton step from a fixed point has the theorem's derivative; its own value, which is rounding, is taken out.
    return flat.params(x - (step - jax.lax.stop_gradient(step)))


def jacobian(
    family: ProblemFamily, solution: Solution, instances: PyTree[Any], *, batch: int = 256
) -> PyTree[np.ndarray]:
    r"""Return the derivatives $dx_i/d\theta_i$ of a batch of solutions, in float64 as `solve` computes.

    **Arguments:** `solution`: what `solve` returned for `instances`; derivatives are as exact as it is. `batch`: rows
    that are worked on at once.

    **Returns:** built as the params are, and inside each leaf as an instance is: arrays `[rows, *param, *instance]`.
    Integers in an instance have no derivative: None. Rows that are not solved are NaN.

    **Raises:** `TypeError` as `implicit` does; `ValueError` where `instances` has another number of rows.

    >>> import jax, numpy as np
    >>> from bygrad.problems import DampedOscillation
    >>> from bygrad.solvers import solve
    >>> family = DampedOscillation(start="spectrum")
    >>> data = jax.vmap(family.sample)(jax.random.split(jax.random.key(0), 3))
    >>> jacobian(family, solve(family, data), data).shape  # of 5 params by 41 samples
    (3, 5, 41)
    """
    _check_smooth(family)
    with precision(np.float64, family):
        (arrays, given), rows = as_rows(instances, np.float64), len(solution)
        if given != rows:
            raise ValueError(
                f"There are {rows} solutions and {given} instances, so it is not known which belong together."
                " Give the instances that were solved."
            )
        x, blocks = jax.tree.map(lambda leaf: np.asarray(leaf, float), solution.x), []
        for at in range(0, max(rows, 1), batch):
            pick = np.arange(at, at + batch) % rows if rows else np.arange(0)  # blocks of one size compile once
            blocks.append(_jacobians(family, *jax.tree.map(lambda leaf: jnp.asarray(leaf[pick]), (x, arrays))))  # noqa: B023
        unsolved = ~solution.success
        return jax.tree.map(lambda *leaves: _joined(leaves, unsolved), *blocks)


def _jacobians_(family: ProblemFamily, x: Params, instances: PyTree[Array]) -> PyTree[Array]:
    def one(x: Params, instance: Instance) -> PyTree[Array]:
        real, rest = eqx.partition(instance, eqx.is_inexact_array)
        return jax.jacrev(lambda real: implicit(family, x, eqx.combine(real, rest)))(real)

    return jax.vmap(one)(x, instances)


_jacobians = Program(_jacobians_)


def _joined(blocks: tuple[Array, ...], unsolved: np.ndarray) -> np.ndarray:
    """Put blocks together, without what fills the last one up."""
    every = np.concatenate([np.asarray(block) for block in blocks])[: len(unsolved)]
    every[unsolved] = np.nan
    return every


def _check_smooth(family: ProblemFamily) -> None:
    if certified(family):
        raise TypeError(
            f"{type(family).__name__} is solved where its objective has kinks or limits hold, and the gradient is not"
            " zero there, so the derivatives would be wrong. Only least squares and smooth families, with bounds or"
            " without, can be differentiated so; for quadratic programs use cvxpylayers or qpax."
        )
