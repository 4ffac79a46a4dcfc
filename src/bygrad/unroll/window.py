"""Where meta-training stands on its inner problems: windows of a horizon, instances renewed and staggered."""

import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PRNGKeyArray, Shaped

from .._core import trees
from ..optimizers import Optimizer
from ..problems import ProblemFamily
from .lift import Lifted, lift
from .rollout import Inner, draw

HORIZON_BRANCH, RENEWAL_BRANCH = 2**31 + 0x4071, 2**31 + 0x4072
"""Branches of the key of a run that its horizon is drawn from, and its successor. Lower numbers are its steps'."""


class Windows(eqx.Module):
    """Inner problems cut into windows: a meta-step advances every instance by one window.

    Instances are staggered: their ages are spread evenly over the horizon at the start, so that one meta-step sees
    early and late training together, and all of them alike. An instance that has reached its horizon is replaced by a
    fresh one at the border of a window; nothing is reset inside.

    **Arguments:** `family`: the problems. `horizon`: steps of a run. `truncation`: steps of a window, a divisor of the
    horizon. `instances`: how many run side by side. `shortest`: where it is given, every run has a horizon of its own,
    a multiple of the truncation, log-uniform from `shortest` to `horizon`. `axis`: of the mesh of devices that share
    the instances, inside a program that runs on each of them.
    """

    family: ProblemFamily
    horizon: int = eqx.field(static=True)
    truncation: int = eqx.field(static=True)
    instances: int = eqx.field(static=True)
    shortest: int | None = eqx.field(static=True, default=None)
    axis: str | None = eqx.field(static=True, default=None)

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

        if self.shortest is not None and not self.truncation <= self.shortest <= self.horizon:
            raise ValueError(
                f"The shortest horizon is {self.shortest}, but it must lie between the truncation of {self.truncation}"
                f" and the longest horizon of {self.horizon} steps."
            )

    def begin(self, optimizer: Optimizer, key: PRNGKeyArray, how: Callable[[Optimizer], Lifted] = lift) -> Inner:
        """Draw the first batch of instances, staggered: all are fresh, but count as of different ages, so that their
        first runs end one after the other. `how`: the optimizer is applied to them."""
        inner = self._fresh(optimizer, jax.random.split(key, self.instances), how)
        windows = self.horizons(inner.key) // self.truncation
        ages = jnp.arange(self.instances, dtype=jnp.int32) * windows // self.instances
        return eqx.tree_at(lambda it: it.step, inner, ages * self.truncation)

    def renew(self, optimizer: Optimizer, inner: Inner, how: Callable[[Optimizer], Lifted] = lift) -> Inner:
        """Replace the instances that have reached the horizon by fresh ones, each drawn from its predecessor's key.

        Where one has, as many are drawn as there are instances, and all but those that are needed thrown away; where
        none has, nothing is, unless several devices share the instances.
        """
        done = self.done(inner)

        def renewed(inner: Inner) -> Inner:
            # Not the key of that step alone: the predecessor's last loss was drawn from it.
            ended = jax.vmap(jax.random.fold_in)(inner.key, inner.step)
            keys: Shaped[PRNGKeyArray, " instances"] = jax.vmap(jax.random.fold_in, (0, None))(ended, RENEWAL_BRANCH)
            fresh = self._fresh(optimizer, keys, how)
            state = how(optimizer).select(done, fresh.optimizer_state, inner.optimizer_state)
            chosen = trees.select_rows(done, _without_state(fresh), _without_state(inner))
            return trees.replaced(chosen, optimizer_state=state)

        return trees.seldom(jnp.any(done), renewed, inner)

    def done(self, inner: Inner) -> Bool[Array, " instances"]:
        """Whether each instance has reached its horizon."""
        return inner.step >= self.horizons(inner.key)

    def horizons(self, keys: Shaped[PRNGKeyArray, " instances"]) -> Int[Array, " instances"]:
        """Return the horizon of every run, from its key."""
        if (shortest := self.shortest) is None:
            return jnp.full(keys.shape, self.horizon, jnp.int32)

        def draw_one(key: PRNGKeyArray) -> Int[Array, ""]:
            low, high = (math.log(steps / self.truncation) for steps in (shortest, self.horizon))
            part = jax.random.uniform(jax.random.fold_in(key, HORIZON_BRANCH))
            windows = jnp.round(jnp.exp(low + (high - low) * part)).astype(jnp.int32)
            return self.truncation * jnp.maximum(windows, -(-shortest // self.truncation))

        return jax.vmap(draw_one)(keys)

    def everywhere(self, array: Shaped[Array, "here ..."]) -> Shaped[Array, "all ..."]:
        """Return the parts of an array, an entry for each instance, together from all devices."""
        return array if self.axis is None else jax.lax.all_gather(array, self.axis, tiled=True)

    def total(self, array: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
        """Return the sum over all devices of what each has."""
        return array if self.axis is None else jax.lax.psum(array, self.axis)

    def _fresh(
        self, optimizer: Optimizer, keys: Shaped[PRNGKeyArray, " instances"], how: Callable[[Optimizer], Lifted]
    ) -> Inner:
        instance, params, run_keys = draw(self.family, keys)
        state = how(optimizer).init(params, self.horizons(run_keys))
        return Inner(params, state, instance, run_keys, jnp.zeros(keys.shape[0], jnp.int32))


def _without_state(inner: Inner) -> Inner:
    return trees.replaced(inner, optimizer_state=None)
