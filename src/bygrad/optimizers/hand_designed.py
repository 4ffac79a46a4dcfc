"""Hand-designed optimizers, as objects of the same kind as learned ones: their hyperparameters are array leaves.

Every rule is optax's. Constants that are not arguments are those of the paper's baselines (Torch 7's `optim`).
"""

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .._core.definitions import UNDER_ROOT
from .._core.trees import widened
from .._core.types import Params, State
from .base import Optimizer, Scheduled, whole_steps


def _hyperparameter(default: float) -> Any:
    return eqx.field(converter=lambda x: jnp.asarray(x, jnp.result_type(float)), default=default)


class FromOptax(Optimizer):
    """An optax transformation, rebuilt from this object's array leaves wherever it is used."""

    per_coordinate: ClassVar[bool] = True

    proportional: ClassVar[bool] = True
    """Whether updates are in proportion to the learning rate of the moment: then what scales them is its schedule."""

    @abc.abstractmethod
    def transformation(self) -> optax.GradientTransformation:
        """Return the transformation for the hyperparameters as they are, traced ones included."""

    def init(self, params: Params) -> State:
        return self.transformation().init(widened(params))

    def update(
        self,
        grads: Params,
        state: State,
        params: Params | None = None,
        *,
        value: Float[Array, ""] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Params, State]:
        wide = None if params is None else widened(params)
        updates, after = self.transformation().update(widened(grads), state, wide)
        # Hyperparameters in float64 would make all that they are multiplied with float64 as well.
        as_before = lambda new, old: new.astype(old.dtype)  # noqa: E731
        return jax.tree.map(as_before, updates, grads), jax.tree.map(as_before, after, state)


class SGD(FromOptax):
    """Gradient descent, $u = -\\eta g$."""

    learning_rate: Float[Array, "..."] = _hyperparameter(1e-1)

    def transformation(self) -> optax.GradientTransformation:
        return optax.sgd(self.learning_rate)


class Nesterov(FromOptax):
    r"""Nesterov's momentum: $m \leftarrow \mu m + g$, $u = -\eta (g + \mu m)$.

    In terms of the look-ahead point, where the gradient is taken and the loss reported, this is Sutskever's form and
    the one of the paper's baseline "NAG".
    """

    learning_rate: Float[Array, "..."] = _hyperparameter(1e-1)
    momentum: Float[Array, "..."] = _hyperparameter(0.9)

    def transformation(self) -> optax.GradientTransformation:
        return optax.sgd(self.learning_rate, momentum=self.momentum, nesterov=True)


class RMSprop(FromOptax):
    r"""$v \leftarrow \alpha v + (1 - \alpha) g^2$, $u = -\eta g / \sqrt{v + 10^{-16}}$.

    The constant stands under the root, not behind it, so that the derivative with respect to `decay` is finite where a
    coordinate has never had a gradient.
    """

    learning_rate: Float[Array, "..."] = _hyperparameter(1e-2)
    decay: Float[Array, "..."] = _hyperparameter(0.99)

    def transformation(self) -> optax.GradientTransformation:
        return optax.rmsprop(self.learning_rate, decay=self.decay, eps=1e-16)


class Adam(FromOptax):
    r"""Adam (Kingma & Ba, 2015), bias-corrected, $\epsilon = 10^{-8}$."""

    learning_rate: Float[Array, "..."] = _hyperparameter(1e-2)
    b1: Float[Array, "..."] = _hyperparameter(0.9)
    b2: Float[Array, "..."] = _hyperparameter(0.999)

    def transformation(self) -> optax.GradientTransformation:
        return optax.adam(self.learning_rate, b1=self.b1, b2=self.b2, eps=1e-8, eps_root=UNDER_ROOT)


class AdamW(FromOptax):
    """Adam with decoupled weight decay (Loshchilov & Hutter, 2019)."""

    learning_rate: Float[Array, "..."] = _hyperparameter(1e-2)
    b1: Float[Array, "..."] = _hyperparameter(0.9)
    b2: Float[Array, "..."] = _hyperparameter(0.999)
    weight_decay: Float[Array, "..."] = _hyperparameter(1e-2)

    def transformation(self) -> optax.GradientTransformation:
        return optax.adamw(
            self.learning_rate,
            b1=self.b1,
            b2=self.b2,
            eps=1e-8,
            eps_root=UNDER_ROOT,
            weight_decay=self.weight_decay,
        )


class AdamWCosine(FromOptax, Scheduled):
    r"""`AdamW` with a learning rate that falls along half a cosine, from $\eta$ to 0 at the horizon.

    Over the first `warmup` updates the rate rises in proportion, beside the cosine: update $t$ of them, from 1, has its
    $t$ / `warmup`. The horizon is declared, as to every optimizer with a schedule (`declare`).
    """

    learning_rate: Float[Array, "..."] = _hyperparameter(1e-2)
    b1: Float[Array, "..."] = _hyperparameter(0.9)
    b2: Float[Array, "..."] = _hyperparameter(0.999)
    weight_decay: Float[Array, "..."] = _hyperparameter(1e-2)
    warmup: Float[Array, "..."] = _hyperparameter(0.0)
    horizon: Int[Array, ""] = eqx.field(converter=whole_steps, default=1_000)

    def declare(self, horizon: int | Int[Array, ""]) -> "AdamWCosine":
        return eqx.tree_at(lambda it: it.horizon, self, whole_steps(horizon))

    def transformation(self) -> optax.GradientTransformation:
        def rate(count: Any) -> Array:
            count = count.astype(self.learning_rate.dtype)
            warm = jnp.minimum((count + 1) / jnp.maximum(self.warmup, 1), 1)
            return self.learning_rate * warm * _half_cosine(count, self.horizon)

        return optax.adamw(rate, b1=self.b1, b2=self.b2, eps=1e-8, eps_root=UNDER_ROOT, weight_decay=self.weight_decay)


class _OverTime(FromOptax, Scheduled):
    """Another rule, with updates that a schedule scales besides: it is for rules whose updates are in proportion to the
    learning rate of the moment, so that this is its schedule."""

    per_coordinate: ClassVar[bool] = False  # not of every rule
    rule: FromOptax
    horizon: Int[Array, ""] = eqx.field(converter=whole_steps, default=1_000)

    def __check_init__(self) -> None:
        if not isinstance(self.rule, FromOptax) or isinstance(self.rule, Scheduled) or not self.rule.proportional:
            name = type(self).__name__
            raise ValueError(
                f"{type(self.rule).__name__} is learned, or has a schedule or an average of its own, which a schedule"
                f" over its updates would spoil. Use it as it is, or give {name} a rule whose updates are in"
                " proportion to its learning rate: SGD, Nesterov, RMSprop, Adam, AdamW, Lion or Muon."
            )

    @property
    def learning_rate(self) -> Any:
        """The rule's, of which the schedule takes parts."""
        return self.rule.learning_rate  # pyright: ignore[reportAttributeAccessIssue]

    def declare(self, horizon: int | Int[Array, ""]) -> "_OverTime":
        return eqx.tree_at(lambda it: it.horizon, self, whole_steps(horizon))

    @abc.abstractmethod
    def part(self, count: Float[Array, ""]) -> Float[Array, ""]:
        """Return the part of the learning rate after `count` updates."""

    def transformation(self) -> optax.GradientTransformation:
        part = lambda count: self.part(count.astype(self.learning_rate.dtype))  # noqa: E731
        return optax.chain(self.rule.transformation(), optax.scale_by_schedule(part))


class Cosine(_OverTime):
    r"""Another rule, with updates that fall along half a cosine besides, from all of them to 0 at the horizon.

    It is for rules whose updates are in proportion to the learning rate of the moment, so that this is its schedule.

    **Raises:** `ValueError` for `ScheduleFree`, whose averages would be scaled with its steps, and for rules that have
    a schedule already.
    """

    def part(self, count: Float[Array, ""]) -> Float[Array, ""]:
        return _half_cosine(count, self.horizon)


class Trapezoid(_OverTime):
    r"""Another rule, with updates that rise over a warm-up, stay, and fall in proportion to the steps that are left.

    Of update $t$ from 1 to the horizon $T$ the part $\min(t / \text{warmup}, 1, (T - t + 1) / (\text{decay} \cdot T))$
    is taken. Of the learning rate of all steps together a cosine gives up half, this with its defaults a tenth: where a
    run is too short to end in the noise of its minibatches, that counts.

    **Arguments:** `rule`: as for `Cosine`, with the same errors. `warmup`: updates. `decay`: part of the horizon.

    **Source:** Zhai et al., *Scaling vision transformers* (2022), whose cooldown it is; Hu et al., *MiniCPM* (2024), as
    the warmup-stable-decay schedule.
    """

    warmup: Float[Array, "..."] = _hyperparameter(0.0)
    decay: Float[Array, "..."] = _hyperparameter(0.2)

    def part(self, count: Float[Array, ""]) -> Float[Array, ""]:
        rise = (count + 1) / jnp.maximum(self.warmup, 1)
        fall = (self.horizon - count) / jnp.maximum(self.decay * self.horizon, 1)
        return jnp.clip(jnp.minimum(rise, fall), 0, 1).astype(count.dtype)


def _half_cosine(count: Float[Array, ""], horizon: Int[Array, ""]) -> Float[Array, ""]:
    """Fall from 1 to 0 at the horizon."""
    return 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(count / jnp.maximum(horizon, 1), 1)))
