"""Derivatives of a solution with respect to its instance, by the implicit function theorem."""

import jax
import jax.numpy as jnp

from .._core.types import Instance, Params
from ..problems import ProblemFamily
from .base import Flat, certified


def implicit(family: ProblemFamily, params: Params, instance: Instance) -> Params:
    r"""Return a solution as a differentiable function of its instance.

    At an interior minimum $\nabla_x f(x, \theta) = 0$, so $dx/d\theta = -H^{-1} \nabla_\theta \nabla_x f$ with the
    Hessian $H$, of second derivatives as well and not of Gauss and Newton's part alone. Params at a bound stay there.
    The solver is not differentiated: it may be any, and may run outside JAX.

    **Arguments:** `params`: the solution of one instance, from `solve`. `instance`: the instance, in the same
    precision. The family's loss must be twice differentiable there and the Hessian regular on the free params.

    **Returns:** the same values; `jax.grad`, `jax.jvp` and `jax.vmap` of it work, in both modes.

    **Raises:** `TypeError` for composite problems and quadratic programs, whose solutions lie on kinks and limits.

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
    if certified(family):
        raise TypeError(
            f"{type(family).__name__} is solved where its objective has kinks or limits hold, and the gradient is not"
            " zero there, so the derivatives would be wrong. Only least squares and smooth families, with bounds or"
            " without, can be differentiated so; for quadratic programs use cvxpylayers or qpax."
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
