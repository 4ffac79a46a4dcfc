"""Second-order baselines: L-BFGS, BFGS and Gauss–Newton, which need more of a problem than a gradient at a time."""

import abc
import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, PRNGKeyArray, Shaped

from .._core import trees
from .._core.draws import key_of
from .._core.types import Instance, Params, Scalar
from ..problems import ProblemFamily, descended
from ..problems.base import differentiable_loss
from ..unroll import apart, draw, step_keys


def no_objective(family: ProblemFamily) -> str | None:
    """Return why the family gives no objective without noise: what its loss raises where it is traced with `key=None`.
    None where it gives one."""

    def objective(key: PRNGKeyArray) -> Scalar:
        instance, params, _ = draw(family, key[None])
        return family.loss(trees.rows(params, 0), trees.rows(instance, 0), None)

    try:
        jax.eval_shape(objective, key_of(0))
    except Exception as error:  # whatever a user's loss raises when it gets no key means that it has none to give
        return ": ".join([type(error).__name__, *str(error).strip().split("\n")[:1]])
    return None


class SecondOrder(eqx.Module):
    """A method that sees the problem itself, on a sample of it, with params and losses in one dtype.

    Fields of all: `batches`: how many minibatches its model of the problem is made from; None is the objective without
    noise (all data).
    """

    batches: eqx.AbstractVar[int | None]

    @abc.abstractmethod
    def init(self, params: Params, value: Scalar) -> Any:
        """Return the state before the first step; `value`: the loss there."""

    @abc.abstractmethod
    def step(
        self, family: Any, params: Params, state: Any, instance: Instance, run_key: PRNGKeyArray, step: Int[Array, ""]
    ) -> tuple[Params, Any]:
        """Return the params and the state after a step."""


class LBFGS(SecondOrder):
    """optax's L-BFGS with its zoom line search: several evaluations a step.

    Its pairs of steps and gradients must be of one function: the sample is drawn once.

    **Arguments:** `batches`: see above. `memory`: pairs kept. `scaled`: whether the first inverse Hessian is scaled by
    the last pair; not where all pairs are kept, in BFGS.
    """

    batches: int | None = eqx.field(static=True, default=None)
    memory: int = eqx.field(static=True, default=10)
    scaled: bool = eqx.field(static=True, default=True)

    @property
    def _solver(self) -> optax.GradientTransformationExtraArgs:
        return optax.lbfgs(memory_size=self.memory, scale_init_precond=self.scaled)

    def init(self, params: Params, value: Scalar) -> Any:
        return self._solver.init(params)

    def step(
        self, family: Any, params: Params, state: Any, instance: Instance, run_key: PRNGKeyArray, step: Int[Array, ""]
    ) -> tuple[Params, Any]:
        def objective(params: Params) -> Scalar:
            if self.batches is None:
                return family.loss(params, instance, None)
            keys = jax.random.split(run_key, self.batches)
            return jnp.mean(jax.vmap(lambda key: family.loss(params, instance, key))(keys))

        value, grads = optax.value_and_grad_from_state(objective)(params, state=state)
        updates, state = self._solver.update(grads, state, params, value=value, grad=grads, value_fn=objective)
        return optax.apply_updates(params, updates), state


class GaussNewton(SecondOrder):
    r"""Gauss–Newton without matrices: $p \gets p - (J^\top H J + \lambda I)^{-1} J^\top \nabla \ell$.

    $J$ is the Jacobian of the outputs of a `Modelled` family, $H$ the Hessian of the loss in these; the system is
    solved by `products` steps of conjugate gradients, on a fresh sample for every step. A step that raises the loss of
    its sample is not taken. Damping goes by Levenberg and Marquardt: times 3/2 where the loss falls by less than a
    quarter of what the quadratic model says, times 2/3 where by more than three quarters.

    **Arguments:** `damping`: $\lambda$ at the start, relative to the size of the loss there: a loss times a constant
    changes nothing. `batches`: see above. `products`: conjugate-gradient steps.

    **Source:** Martens, *Deep learning via Hessian-free optimization* (2010), sections 3 and 4.1 to 4.4, without its
    preconditioner and its warm start of the conjugate gradients.
    """

    damping: Float[Array, ""]
    batches: int | None = eqx.field(static=True, default=1)
    products: int = eqx.field(static=True, default=10)

    def init(self, params: Params, value: Scalar) -> Scalar:
        return jnp.maximum(self.damping * jnp.abs(value), jnp.finfo(value.dtype).tiny)

    def step(
        self,
        family: Any,
        params: Params,
        state: Scalar,
        instance: Instance,
        run_key: PRNGKeyArray,
        step: Int[Array, ""],
    ) -> tuple[Params, Scalar]:
        at, shaped = ravel_pytree(params)
        keys = None if self.batches is None else jax.random.split(step_keys(run_key, step)[0], self.batches)

        def outputs(params: Float[Array, " p"]) -> Params:
            model = lambda key: family.outputs(shaped(params), instance, key)  # noqa: E731
            return model(None) if keys is None else jax.vmap(model)(keys)

        def loss(outputs: Params) -> Scalar:
            if keys is None:
                return family.output_loss(outputs, instance, None)
            return jnp.mean(jax.vmap(lambda its, key: family.output_loss(its, instance, key))(outputs, keys))

        here, pull = jax.vjp(outputs, at)
        # Backwards twice is forwards: fast convolutions have no derivative in forward mode.
        _, push_through = jax.vjp(lambda cotangent: pull(cotangent)[0], jax.tree.map(jnp.zeros_like, here))
        value, cotangent = jax.value_and_grad(loss)(here)
        (slope,) = pull(cotangent)

        def product(direction: Float[Array, " p"]) -> Float[Array, " p"]:
            (pushed,) = push_through(direction)
            (curved,) = pull(jax.jvp(jax.grad(loss), (here,), (pushed,))[1])
            return curved

        direction = _conjugate_gradients(lambda it: product(it) + state * it, -slope, self.products)
        predicted = -(slope @ direction + 0.5 * direction @ product(direction))
        fallen = value - loss(outputs(at + direction))
        ratio = fallen / predicted
        factor = jnp.where(ratio > 0.75, 2 / 3, jnp.where(ratio >= 0.25, 1.0, 3 / 2))  # a NaN damps more
        return shaped(jnp.where(fallen >= 0, at + direction, at)), state * factor


def _conjugate_gradients(
    product: Callable[[Float[Array, " p"]], Float[Array, " p"]], right: Float[Array, " p"], steps: int
) -> Float[Array, " p"]:
    """Solve `product(x) == right`, from zero, in so many steps.

    Not by `jax.scipy.sparse.linalg.cg`: its `custom_linear_solve` gives NaN under `vmap` for products that are closed
    over a linearization.
    """

    def body(_: Any, carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        x, residual, direction, square = carry
        curved = product(direction)
        length = jnp.where(square > 0, square / jnp.vdot(direction, curved), 0.0)  # 0 / 0 where it is solved
        residual = residual - length * curved
        smaller = jnp.vdot(residual, residual)
        grown = jnp.where(square > 0, smaller / square, 0.0)
        return x + length * direction, residual, residual + grown * direction, smaller

    return jax.lax.fori_loop(0, steps, body, (jnp.zeros_like(right), right, right, jnp.vdot(right, right)))[0]


class _Widened(eqx.Module):
    """A family with params and losses in one dtype, at least float32: line searches compare them with one another.

    **Arguments:** `family`: one whose losses are those that its gradients are of. `dtypes`: of its own params' leaves.
    `dtype`: the one.
    """

    family: Any
    dtypes: tuple[Any, ...] = eqx.field(static=True)
    dtype: Any = eqx.field(static=True)

    @classmethod
    def of(cls, family: ProblemFamily, params: Params, loss: Scalar) -> "_Widened":
        dtypes = tuple(leaf.dtype for leaf in jax.tree.leaves(params))
        return cls(descended(family), dtypes, jnp.result_type(jnp.float32, loss.dtype, *dtypes))

    def widen(self, tree: Params) -> Params:
        return jax.tree.map(lambda leaf: leaf.astype(self.dtype), tree)

    def narrow(self, params: Params) -> Params:
        leaves, structure = jax.tree.flatten(params)
        return structure.unflatten([leaf.astype(dtype) for leaf, dtype in zip(leaves, self.dtypes, strict=True)])

    def loss(self, params: Params, instance: Instance, key: PRNGKeyArray | None) -> Scalar:
        return self.widen(differentiable_loss(self.family)(self.narrow(params), instance, key))

    def outputs(self, params: Params, instance: Instance, key: PRNGKeyArray | None) -> Params:
        return self.family.outputs(self.narrow(params), instance, key)

    def output_loss(self, outputs: Params, instance: Instance, key: PRNGKeyArray | None) -> Scalar:
        return self.widen(self.family.output_loss(outputs, instance, key))


def second_order_curve(
    method: SecondOrder,
    family: ProblemFamily,
    instance: Instance,
    params: Params,
    run_key: PRNGKeyArray,
    steps: Int[Array, ""] | int,
    size: int,
    *,
    recorded: bool = True,
) -> tuple[Params, Float[Array, " size_plus_1"]]:
    """Return the params after `steps` steps, at most `size`, and the loss after each number of them, then NaN.

    What is recorded is the loss that the other optimizers meet: the same instance, start and minibatches.

    Not for `vmap`, under which a line search evaluates what it asks for and what it does not: two or three times as
    much (`jax.lax.map`).

    **Arguments:** `recorded`: off, only the losses at the start and at the end are there, and a step takes as long as
    the method's own.
    """

    def record(params: Params, step: Any) -> Scalar:
        return family.loss(params, instance, step_keys(run_key, jnp.asarray(step))[0])

    def body(step: Any, carry: tuple[Params, Any, Array]) -> tuple[Params, Any, Array]:
        params, state, curve = carry
        params, state = method.step(widened, params, state, instance, run_key, step)
        if recorded:
            curve = curve.at[step + 1].set(record(widened.narrow(params), step + 1))
        return params, state, curve

    start = record(params, 0)
    widened = _Widened.of(family, params, start)
    params, curve = widened.widen(params), jnp.full(size + 1, jnp.nan, start.dtype).at[0].set(start)
    params, _, curve = jax.lax.fori_loop(0, steps, body, (params, method.init(params, widened.widen(start)), curve))
    params = widened.narrow(params)
    return params, curve if recorded else curve.at[steps].set(record(params, steps))


def lbfgs_curves(
    family: ProblemFamily, keys: Shaped[PRNGKeyArray, " runs"], horizon: int
) -> Float[Array, "runs horizon_plus_1"]:
    """Run optax's L-BFGS with its zoom line search; column `t` is the loss after `t` updates.

    Directions and line searches use the objective without noise (all data), several evaluations a step. What is
    recorded is the loss that the other optimizers meet: the same instances, starts and minibatches.
    """
    return _curves(LBFGS(), family, keys, horizon)


def bfgs_curves(
    family: ProblemFamily, keys: Shaped[PRNGKeyArray, " runs"], horizon: int
) -> Float[Array, "runs horizon_plus_1"]:
    """Run BFGS as `lbfgs_curves` runs L-BFGS: from the identity, with every pair that the run has seen."""
    return _curves(LBFGS(memory=horizon, scaled=False), family, keys, horizon)


def _curves(
    method: SecondOrder, family: ProblemFamily, keys: Shaped[PRNGKeyArray, " runs"], horizon: int
) -> Float[Array, "runs horizon_plus_1"]:
    curves = []
    for part, weight, its in apart(family, keys):
        solve = functools.partial(second_order_curve, method, part, steps=horizon, size=horizon)
        curves.append(weight * jax.lax.map(lambda drawn, solve=solve: solve(*drawn), draw(part, its))[1])
    return sum(curves[1:], start=curves[0])
