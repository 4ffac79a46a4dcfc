"""What is learned inside a solver: where to start, and how strongly Levenberg–Marquardt is damped."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from .._core import trees
from .._core.draws import key_of
from .._core.programs import Program
from .._core.types import Instance, Scalar
from .base import Flat
from .damping import Damping, Seen

START_WIDTH, RESTART_WIDTH, DAMPING_WIDTH = 96, 64, 32
"""Hidden units of each of the two layers: a start is computed once, a damping in every step."""


class Whitening(eqx.Module):
    """Turns an instance into a vector of numbers about 1 in size, and params as well; arrays, but not trained."""

    instance_mean: Float[Array, " d"]
    instance_scale: Float[Array, " d"]
    params_mean: Float[Array, " p"]
    params_scale: Float[Array, " p"]

    @classmethod
    def of(cls, instances: Float[Array, "rows d"], params: Float[Array, "rows p"]) -> "Whitening":
        """Measure means and spreads; the params' come from solutions and are robust against those that ran off.

        Numbers of instances that are not finite, limits that are none, do not count: mean 0 and spread 1 where all are.
        What is always the same, but for rounding, is in units of its own size.
        """
        return cls(*_measured(instances, params))

    def instance(self, instance: Instance) -> Float[Array, " d"]:
        """Return the instance in units of its spread, in float32, cut where it lies far outside."""
        fixed = jax.lax.stop_gradient(self)
        return cut((vector_of(instance) - fixed.instance_mean) / fixed.instance_scale, 10.0)

    def params(self, x: Float[Array, " p"]) -> Float[Array, " p"]:
        """Return params in units of their spread."""
        fixed = jax.lax.stop_gradient(self)
        return cut((x.astype(jnp.float32) - fixed.params_mean) / fixed.params_scale, 10.0)


class LearnedStart(eqx.Module):
    r"""A network from an instance to several starts, of which the one with the lowest cost is taken.

    **Guarantee:** the family's own start is among the candidates. So the cost at the start is never above that of the
    classical start, whatever the network says: candidates that are not finite are never taken. A solver that never
    raises the cost ends at or below the cost of the classical start. *Assume* that the cost at the classical start is
    finite. *Sketch:* the least of several costs is no larger than any of them, and all are moved to where they are
    allowed before they are compared, so that the solver begins with the very cost that was compared.
    """

    network: eqx.nn.MLP
    whitening: Whitening
    proposals: int = eqx.field(static=True)

    @classmethod
    def untrained(cls, whitening: Whitening, proposals: int, key: PRNGKeyArray) -> "LearnedStart":
        """Return a network that proposes the middle of the params, whatever the instance."""
        inputs, params = whitening.instance_mean.size, whitening.params_mean.size
        return cls(network(inputs, proposals * params, START_WIDTH, jax.nn.gelu, key), whitening, proposals)

    def only(self, which: Sequence[int]) -> "LearnedStart":
        """Return the network without its other proposals."""
        rows = np.ravel(np.arange(len(self.network.layers[-1].weight)).reshape(self.proposals, -1)[list(which)])
        blank = LearnedStart.untrained(self.whitening, len(which), key_of(0))
        *hidden, last = self.network.layers
        assert last.bias is not None
        kept = last.weight[rows], last.bias[rows]
        last = eqx.tree_at(lambda it: (it.weight, it.bias), blank.network.layers[-1], kept)
        network = eqx.tree_at(lambda it: it.layers, blank.network, (*hidden, last))
        return dataclasses.replace(blank, network=network)

    def propose(self, instance: Instance) -> Float[Array, "proposals p"]:
        """Return the network's starts, in float32."""
        fixed = jax.lax.stop_gradient(self.whitening)
        raw = _shielded(self.network(self.whitening.instance(instance))).reshape(self.proposals, -1)
        return fixed.params_mean + fixed.params_scale * raw

    def best(self, flat: Flat, instance: Instance, own: Float[Array, "*few p"], count: int) -> Float[Array, "count p"]:
        """Return the `count` best of the proposals and the family's `own` start, or several, the best one first."""
        own, single = jnp.atleast_2d(own), lambda it: it.astype(jnp.float32)
        proposed = jax.vmap(lambda x: flat.allowed(x.astype(own.dtype), instance))(self.propose(instance))
        if count < self.proposals:
            # Most are told apart in float32, at half of the cost; those that are left are compared exactly.
            real = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating)  # noqa: E731
            rough = jax.tree.map(lambda leaf: single(leaf) if real(leaf) else leaf, instance)
            order = _cheapest_first(jax.vmap(lambda x: flat.loss(single(x), rough))(proposed), proposed)
            proposed = proposed[order[:count]]
        candidates = jnp.concatenate([jax.vmap(lambda x: flat.allowed(x, instance))(own), proposed])
        costs = jax.vmap(lambda x: flat.loss(x, instance))(candidates)
        order = _cheapest_first(costs, candidates)
        # Where there are fewer finite candidates than asked for, the first is repeated.
        places = np.arange(count)
        order = order[np.where(places < len(order), places, 0)]
        return jnp.where(_real(costs, candidates)[order, None], candidates[order], candidates[order[0]])


class LearnedRestart(eqx.Module):
    """A network from an instance and a solution that is not the lowest to where a lower one may be: families whose
    minima come in pairs, or lie a period apart, tell where the others are."""

    network: eqx.nn.MLP
    whitening: Whitening

    @classmethod
    def untrained(cls, whitening: Whitening, key: PRNGKeyArray) -> "LearnedRestart":
        """Return a network that is ready to be trained."""
        inputs, params = whitening.instance_mean.size, whitening.params_mean.size
        return cls(network(inputs + params, params, RESTART_WIDTH, jax.nn.gelu, key), whitening)

    def __call__(self, instance: Instance, x: Float[Array, " p"]) -> Float[Array, " p"]:
        """Return the params to start from again, in float32."""
        fixed = jax.lax.stop_gradient(self.whitening)
        seen = jnp.concatenate([self.whitening.instance(instance), self.whitening.params(x)])
        return fixed.params_mean + fixed.params_scale * _shielded(self.network(seen))


class LearnedDamping(Damping):
    r"""A network that corrects the damping of each param, and the length of the step, in the first steps.

    It sees the instance, the params, the cosines between residuals and Jacobian, the correlations of the Jacobian's
    columns, and how the last step went. $\lambda_j = \lambda e^{4 \tanh o_j}$ with the classical $\lambda$, and the
    factor on the step is $e^{0.6 \tanh o}$. An untrained network is the classical rule exactly. After `steps` steps the
    classical rule goes on alone (a steady state), so that the end converges as it always does.

    Its guarantee is that of `LevenbergMarquardt`: it holds for any rule.
    """

    network: eqx.nn.MLP
    whitening: Whitening
    base: Damping
    steps: int = eqx.field(static=True, default=8)

    @classmethod
    def untrained(cls, whitening: Whitening, base: Damping, key: PRNGKeyArray, steps: int = 8) -> "LearnedDamping":
        """Return the classical rule, ready to be trained."""
        params = whitening.params_mean.size
        inputs = whitening.instance_mean.size + 2 * params + params * (params - 1) // 2 + 6
        untrained = network(inputs, params + 1, DAMPING_WIDTH, jax.nn.gelu, key)
        last = untrained.layers[-1]
        zero = eqx.tree_at(lambda it: (it.weight, it.bias), last, (jnp.zeros_like(last.weight), jnp.zeros(params + 1)))
        return cls(eqx.tree_at(lambda it: it.layers[-1], untrained, zero), whitening, base, steps)

    def start(self, instance: Instance, x: Float[Array, " p"]) -> Any:
        return self.whitening.instance(instance), self.base.start(instance, x)

    def next(self, seen: Seen, state: Any) -> tuple[Array, Scalar, Any]:
        features, base_state = state
        damping, factor, base_state = self.base.next(seen, base_state)
        raw = jnp.tanh(_shielded(self.network(self._inputs(seen, features, damping[0]))))
        early = seen.nit < self.steps
        damping = jnp.where(early, damping * jnp.exp(4.0 * raw[:-1]).astype(damping.dtype), damping)
        factor = jnp.where(early, jnp.exp(0.6 * raw[-1]).astype(damping.dtype), factor)
        return damping, factor, (features, base_state)

    def _inputs(self, seen: Seen, features: Array, damping: Array) -> Float[Array, " inputs"]:
        length = jnp.diagonal(seen.gram)
        real = length > 0
        inverse = jnp.where(real, jax.lax.rsqrt(jnp.where(real, length, 1.0)), 0.0)
        known = jnp.isfinite(seen.cost) & (seen.cost > 0)
        cost = jnp.where(known, seen.cost, 1.0)
        cosines = seen.slope * inverse * jax.lax.rsqrt(2 * cost)
        correlations = (seen.gram * inverse[:, None] * inverse[None, :])[jnp.triu_indices(len(inverse), 1)]
        course = jnp.stack(
            [
                seen.nit / 8.0,
                seen.taken.astype(cost.dtype),
                jnp.clip(seen.ratio, -1, 2),
                jnp.log(damping) / 5,
                jnp.log(cost) / 5,
                jnp.clip(seen.gained / cost, 0, 10) / 3,
            ]
        )
        parts = (features, self.whitening.params(seen.x), cosines, correlations, course)
        inputs = jnp.concatenate([part.astype(jnp.float32) for part in parts])
        return cut(jax.lax.stop_gradient(inputs), 10.0)


@Program
def _measured(instances: Float[Array, "rows d"], params: Float[Array, "rows p"]) -> tuple[Array, Array, Array, Array]:
    middle = jnp.median(params, axis=0)
    away = jnp.abs(params - middle)
    instances = jnp.where(jnp.isfinite(instances), instances, jnp.nan)
    # In units of the largest: 1e20 squared, a limit that is none or a density, is no float32.
    largest = jnp.maximum(jnp.nan_to_num(jnp.nanmax(jnp.abs(instances), axis=0)), jnp.finfo(jnp.float32).tiny)
    mean = jnp.nan_to_num(jnp.nanmean(instances / largest, axis=0)) * largest
    return (
        mean,
        unit_of(jnp.nanstd(instances / largest, axis=0) * largest, jnp.abs(mean)),
        middle,
        # Most solutions may be alike, and the others not; of these, some may have run off.
        unit_of(1.4826 * jnp.median(away, axis=0), jnp.maximum(jnp.abs(middle), jnp.quantile(away, 0.75, axis=0))),
    )


@Program
def network(
    inputs: int, outputs: int | Literal["scalar"], width: int, activation: Any, key: PRNGKeyArray
) -> eqx.nn.MLP:
    """Return a network of two hidden layers: by one program, as every shape of its arrays would need several."""
    return eqx.nn.MLP(inputs, outputs, width, 2, activation=activation, key=key)


def vector_of(instance: PyTree[Any]) -> Float[Array, " d"]:
    """Return an instance as one vector in float32."""
    return jnp.concatenate([jnp.ravel(leaf).astype(jnp.float32) for leaf in trees.real_leaves(instance)])


@jax.custom_vjp
def _shielded(raw: Array) -> Array:
    """Return what a network says, and keep gradients that are not finite out of it: one instance in whose simulation
    something overflows would otherwise spoil those of its whole batch."""
    return raw


_shielded.defvjp(lambda raw: (raw, None), lambda _, cotangent: (jnp.where(jnp.isfinite(cotangent), cotangent, 0.0),))


def unit_of(spread: Float[Array, " some"], size: Float[Array, " some"]) -> Float[Array, " some"]:
    """Return the spreads, or the sizes beside which they are rounding; 1 where both are zero."""
    return jnp.where(spread > 1e-6 * size, spread, jnp.where(size > 0, size, 1.0))


def cut(values: Array, limit: float) -> Array:
    """Return values between two limits; what is no number is zero."""
    return jnp.clip(jnp.nan_to_num(values, nan=0.0), -limit, limit)


def _real(costs: Float[Array, " some"], candidates: Float[Array, "some p"]) -> Bool[Array, " some"]:
    return jnp.isfinite(costs) & jnp.all(jnp.isfinite(candidates), axis=1)


def _cheapest_first(costs: Float[Array, " some"], candidates: Float[Array, "some p"]) -> Int[Array, " some"]:
    return jnp.argsort(jnp.where(_real(costs, candidates), costs, jnp.inf))
