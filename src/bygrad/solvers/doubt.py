"""Whether another start would end lower: decides how many starts an instance is worth."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from .._core import trees
from .._core.programs import Program
from .._core.types import Instance, Scalar, Tick
from ..problems import ProblemFamily
from .base import Flat, Method
from .engine import Rows, run
from .learned import LearnedRestart, Whitening, cut, network
from .solve import best_start, take
from .starts import in_blocks

WIDTH = 64
"""Hidden units of each of the two layers: a solution is doubted once."""


class Doubt(eqx.Module):
    r"""Says how much a solution is to be doubted; above `limit`, another start is tried.

    A certificate tells a minimum from other points, and not a low minimum from a high one.

    **Guarantee:** whatever it says, no cost is above that of the first start, and no instance costs more than all of
    its starts: the lowest of those that were tried is kept.
    """

    limit: eqx.AbstractVar[Float[Array, ""]]

    @abc.abstractmethod
    def __call__(self, instance: Instance, x: Float[Array, " p"], cost: Scalar) -> Scalar:
        """Return a number in float32 that is larger the more the solution is doubted."""


class CostLimit(Doubt):
    """Doubts what costs more than a limit: enough where minima cost about as much, the noise in data say."""

    limit: Float[Array, ""]

    def __call__(self, instance: Instance, x: Float[Array, " p"], cost: Scalar) -> Scalar:
        return cost.astype(jnp.float32)


class LearnedDoubt(Doubt):
    """A network that sees the instance, the solution and its cost, and returns the logit of the probability that a
    further start ends lower.

    **Arguments:** `costs`: middle and spread of costs, and of their logarithms, `[2, 2]`. `limit`: a logit.
    """

    network: eqx.nn.MLP
    whitening: Whitening
    costs: Float[Array, "2 2"]
    limit: Float[Array, ""]

    @classmethod
    def untrained(cls, whitening: Whitening, costs: Float[Array, " rows"], key: PRNGKeyArray) -> "LearnedDoubt":
        """Return a network that is ready to be trained, for costs like those given."""
        seen = jax.vmap(_two_ways)(costs)
        middle = jnp.median(seen, axis=0)
        spread = 1.4826 * jnp.median(jnp.abs(seen - middle), axis=0)
        return cls.blank(whitening, jnp.stack([middle, jnp.where(spread > 1e-6, spread, 1.0)]), key)

    @classmethod
    def blank(cls, whitening: Whitening, costs: Float[Array, "2 2"], key: PRNGKeyArray) -> "LearnedDoubt":
        """Return an untrained network of the sizes that the whitening says, which doubts half of all."""
        inputs = whitening.instance_mean.size + whitening.params_mean.size + 2
        untrained = network(inputs, "scalar", WIDTH, jax.nn.gelu, key)
        return cls(network=untrained, whitening=whitening, costs=costs, limit=jnp.zeros(()))

    def __call__(self, instance: Instance, x: Float[Array, " p"], cost: Scalar) -> Scalar:
        middle, spread = jax.lax.stop_gradient(self.costs)
        seen = cut((_two_ways(cost) - middle) / spread, 10.0)
        return self.network(jnp.concatenate([self.whitening.instance(instance), self.whitening.params(x), seen]))


def _two_ways(cost: Scalar) -> Float[Array, " 2"]:
    """Return a cost and its logarithm: squares differ by factors, energies by amounts."""
    cost = cost.astype(jnp.float32)
    return jnp.stack([cost, jnp.log(jnp.abs(cost) + jnp.finfo(jnp.float32).tiny)])


def until_believed(
    doubt: Doubt,
    method: Method,
    flat: Flat,
    instances: PyTree[np.ndarray],
    starts: Float[np.ndarray, "rows starts p"],
    *,
    restart: LearnedRestart | None = None,
    batch: int,
    watch: Tick | None = None,
) -> Rows:
    """Solve all instances from their first start, those that are doubted or not solved from the next, and so on.

    Where `restart` is given, the second start is where it says, and the others follow.
    """
    dtype, learned = starts.dtype, int(restart is not None)
    results = run(method, flat, instances, starts[:, 0], batch=batch, watch=watch)
    open_ = np.arange(len(starts))
    for number in range(1, starts.shape[1] + learned if len(starts) else 1):
        some = trees.rows(instances, open_)
        found = some, results["x"][open_], results["cost"][open_]
        again = in_blocks(_doubts, flat, found, len(open_), batch, dtype, doubt) > 0
        again |= results["status"][open_] <= 0
        open_ = open_[again]
        if not len(open_):
            break
        some = trees.rows(instances, open_)
        if number == 1 and restart is not None:
            begin = restarted(restart, flat, some, results["x"][open_], batch)
        else:
            begin = starts[open_, number - learned]
        second = run(method, flat, some, begin, batch=batch, watch=watch)
        results, _ = merged(flat.family, results, open_, second)
    return results


def restarted(
    restart: LearnedRestart, flat: Flat, instances: PyTree[np.ndarray], x: Float[np.ndarray, "rows p"], batch: int
) -> Float[np.ndarray, "rows p"]:
    """Return where to start again after solutions `x`."""
    return in_blocks(_restarted, flat, (instances, x), len(x), batch, x.dtype, restart)


def merged(
    family: ProblemFamily, results: Rows, where: np.ndarray, second: Rows, solved_first: bool = False
) -> tuple[Rows, Bool[np.ndarray, " some"]]:
    """Put second results of the rows `where` beside the first; the better ones stay, and what all cost adds up.

    **Returns:** the rows, and where the second are the better ones.
    """
    pairs = {name: np.stack([values[where], second[name]], axis=1) for name, values in results.items()}
    pairs = {name: values.reshape(2 * len(where), *values.shape[2:]) for name, values in pairs.items()}
    better = best_start(family, pairs, 2, solved_first)
    after = {name: values.copy() for name, values in results.items()}
    for name, values in take(pairs, 2, better).items():
        after[name][where] = values
    return after, better == 1


@Program
def _restarted(
    flat: Flat, instances: PyTree, x: Float[Array, "rows p"], restart: LearnedRestart
) -> Float[Array, "rows p"]:
    again = lambda one, x: flat.allowed(restart(one, x).astype(x.dtype), one)  # noqa: E731
    return jax.vmap(again)(instances, x)


@Program
def _doubts(
    flat: Flat, instances: PyTree, x: Float[Array, "rows p"], cost: Float[Array, " rows"], doubt: Doubt
) -> Float[Array, " rows"]:
    """Return how far each doubt is above the limit; what is no number is doubted."""
    above = jax.vmap(doubt)(instances, x, cost) - doubt.limit
    return jnp.where(jnp.isnan(above), jnp.inf, above)
