"""Second-order baselines: L-BFGS and BFGS on the objective without noise."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from .._core.types import Instance, Params, Scalar
from ..problems import ProblemFamily
from ..unroll import draw, step_keys


def has_objective(family: ProblemFamily) -> bool:
    """Whether the family gives its objective without noise: whether its loss can be traced with `key=None`."""

    def objective(key: PRNGKeyArray) -> Scalar:
        instance, params, _ = draw(family, key[None])
        first = lambda tree: jax.tree.map(lambda leaf: leaf[0], tree)  # noqa: E731
        return family.loss(first(params), first(instance), None)

    try:
        jax.eval_shape(objective, jax.random.key(0))
    except Exception:  # whatever a user's loss raises when it gets no key means that it has no objective to give
        return False
    return True


def lbfgs_curves(
    family: ProblemFamily, keys: Shaped[PRNGKeyArray, " runs"], horizon: int, memory: int = 10
) -> Float[Array, "runs horizon_plus_1"]:
    """Run optax's L-BFGS with its zoom line search; column `t` is the loss after `t` updates.

    Directions and line searches use the objective without noise (all data), several evaluations a step. What is
    recorded is the loss that the other optimizers meet: the same instances, starts and minibatches.
    """
    return _curves(optax.lbfgs(memory_size=memory), family, keys, horizon)


def bfgs_curves(
    family: ProblemFamily, keys: Shaped[PRNGKeyArray, " runs"], horizon: int
) -> Float[Array, "runs horizon_plus_1"]:
    """Run BFGS as `lbfgs_curves` runs L-BFGS: from the identity, with every pair that the run has seen."""
    return _curves(optax.lbfgs(memory_size=horizon, scale_init_precond=False), family, keys, horizon)


def _curves(
    solver: optax.GradientTransformationExtraArgs,
    family: ProblemFamily,
    keys: Shaped[PRNGKeyArray, " runs"],
    horizon: int,
) -> Float[Array, "runs horizon_plus_1"]:
    def run(instance: Instance, params: Params, run_key: PRNGKeyArray) -> Float[Array, " horizon_plus_1"]:
        def objective(params: Params) -> Scalar:
            return family.loss(params, instance, None)

        def record(params: Params, step: Any) -> Scalar:
            return family.loss(params, instance, step_keys(run_key, step)[0])

        def body(carry: tuple[Params, Any], step: Array) -> tuple[tuple[Params, Any], Scalar]:
            params, state = carry
            value, grads = optax.value_and_grad_from_state(objective)(params, state=state)
            updates, state = solver.update(grads, state, params, value=value, grad=grads, value_fn=objective)
            return (optax.apply_updates(params, updates), state), record(params, step)

        (params, _), values = jax.lax.scan(body, (params, solver.init(params)), jnp.arange(horizon))
        return jnp.append(values, record(params, jnp.asarray(horizon)))

    return jax.vmap(run)(*draw(family, keys))
