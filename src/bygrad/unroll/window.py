"""Where meta-training stands on its inner problems: windows of a horizon, instances renewed and staggered."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray, Shaped

from ..optimizers import Optimizer
from ..problems import ProblemFamily
from .lift import lift
from .rollout import Inner, begin


class Windows(eqx.Module):
    """Inner problems cut into windows: a meta-step advances every instance by one window.

    Instances are staggered: instance `i` starts as if it were `i` windows old, so that one meta-step sees early and
    late training together. An instance that has reached its horizon is replaced by a fresh one at the border of a
    window; nothing is reset inside.

    **Arguments:** `family`: the problems. `horizon`: steps of a run. `truncation`: steps of a window, a divisor of the
    horizon. `instances`: how many run side by side.
    """

    family: ProblemFamily
    horizon: int = eqx.field(static=True)
    truncation: int = eqx.field(static=True)
    instances: int = eqx.field(static=True)

    def __check_init__(self) -> None:
        if self.horizon < 1 or self.truncation < 1 or self.instances < 1:
            raise ValueError(
                f"horizon={self.horizon}, truncation={self.truncation}, instances={self.instances}: all must be at"
                " least 1, or a meta-step has nothing to learn from."
            )
        if self.horizon % self.truncation:
            raise ValueError(
                f"The horizon of {self.horizon} steps is not a multiple of the truncation of {self.truncation}, so a"
                " run would end inside a window. Choose a truncation that divides the horizon."
            )

    def begin(self, optimizer: Optimizer, key: PRNGKeyArray) -> Inner:
        """Draw the first batch of instances, staggered."""
        inner = begin(optimizer, self.family, jax.random.split(key, self.instances))
        ages = jnp.arange(self.instances, dtype=jnp.int32) % (self.horizon // self.truncation)
        return eqx.tree_at(lambda it: it.step, inner, ages * self.truncation)

    def renew(self, optimizer: Optimizer, inner: Inner) -> Inner:
        """Replace the instances that have reached the horizon by fresh ones, each drawn from its predecessor's key."""
        done = inner.step >= self.horizon
        keys: Shaped[PRNGKeyArray, " instances"] = jax.vmap(jax.random.fold_in)(inner.key, inner.step)
        fresh = begin(optimizer, self.family, keys)

        def choose(new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(done.reshape((-1,) + (1,) * (old.ndim - 1)), new, old)

        state = lift(optimizer).select(done, fresh.optimizer_state, inner.optimizer_state)
        chosen = jax.tree.map(choose, eqx.tree_at(lambda it: it.optimizer_state, fresh, None), _without_state(inner))
        return eqx.tree_at(lambda it: it.optimizer_state, chosen, state, is_leaf=lambda leaf: leaf is None)


def _without_state(inner: Inner) -> Inner:
    return eqx.tree_at(lambda it: it.optimizer_state, inner, None)
