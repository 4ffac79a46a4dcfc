"""What a learned optimizer was trained on, as limits: used outside them, it warns, hands over, or refuses."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .._core.definitions import REMEMBER
from .._core.remarks import remark
from .._core.results import Result
from .._core.sizes import Action, check_envelope, is_near, trained_sizes
from .._core.types import Params


class Envelope(eqx.Module):
    """The sizes of problems, gradients and runs that an optimizer was trained on.

    It is evidence, not proof: inside, an optimizer can still fail, and outside, it can still work. `Guard` watches it,
    statically in `init` and with every `update`.

    **Arguments:** `parameter_count`: params of the problems, or the least and the most. `gradient_scale`: the sizes
    between which nearly all nonzero gradient entries lay. `horizon`: steps of the runs. `None` for what is not known
    and not watched. `action`: what to do outside. "warn" counts and warns; "fall back" lets the fallback take over;
    "refuse" raises. `factor`: how many times larger or smaller than in training a problem may be. `tolerance`: the
    share of the nonzero gradient entries that may lie outside, averaged over about ten steps.

    >>> envelope = Envelope(parameter_count=100, gradient_scale=(1e-8, 2e-2), horizon=100)
    >>> envelope.check({"weight": jnp.zeros((30, 4))}), envelope.check({"weight": jnp.zeros((3, 3))})
    (True, False)
    """

    parameter_count: int | tuple[int, int] | None = eqx.field(static=True, default=None)
    gradient_scale: tuple[float, float] | None = eqx.field(static=True, default=None)
    horizon: int | None = eqx.field(static=True, default=None)
    action: Action = eqx.field(static=True, default="fall back")
    factor: float = eqx.field(static=True, default=10.0)
    tolerance: float = eqx.field(static=True, default=0.5)

    def __check_init__(self) -> None:
        check_envelope(self.action, self.factor)

    @classmethod
    def from_training(
        cls, training: dict[str, Any], action: Action = "fall back", *, factor: float = 10.0, tolerance: float = 0.5
    ) -> "Envelope":
        """Read it from `manifest.training` of an artifact; what is not there, or is of another kind, is not watched."""
        return cls(*trained_sizes(training), action, factor, tolerance)

    def check(self, params: Params) -> bool:
        """Return whether a problem's number of params is within the envelope; outside, warn or raise as asked to."""
        size = sum(leaf.size for leaf in jax.tree.leaves(params))
        trained = self.parameter_count
        if trained is None or is_near(size, trained, self.factor):
            return True
        told = f"{trained:,}" if isinstance(trained, int) else f"{trained[0]:,} to {trained[1]:,}"
        message = (
            f"The problem has {size:,} params, and the optimizer was trained on {told}, which is more than"
            f" {self.factor:g} times away: nothing is known about what it does there. Train one for this size, raise"
            " the envelope's `factor`, or use a guard that falls back."
        )
        if self.action == "refuse":
            raise ValueError(message)
        if self.action == "warn":
            remark(message)
        return False

    def watch(
        self, grads: Params, step: Int[Array, ""], outside: Float[Array, ""]
    ) -> tuple[Int[Array, ""], Float[Array, ""]]:
        """Return a result code (`UNDECIDED` inside) and the running share of gradients outside, given the last one."""
        code = jnp.asarray(Result.UNDECIDED, jnp.int32)
        if self.gradient_scale is not None:
            low, high = self.gradient_scale
            sizes = [jnp.abs(leaf.astype(jnp.float32)) for leaf in jax.tree.leaves(grads)]
            strange = sum((jnp.sum((size > 0) & ((size < low) | (size > high))) for size in sizes), jnp.zeros((), int))
            nonzero = sum((jnp.sum(size > 0) for size in sizes), jnp.zeros((), int))
            outside = REMEMBER * outside + (1 - REMEMBER) * strange / jnp.maximum(nonzero, 1)
            code = jnp.where(outside > self.tolerance, Result.OUTSIDE_SCALE, code)
        if self.horizon is not None:
            code = jnp.where(step >= self.horizon, Result.OUTSIDE_HORIZON, code)
        return code.astype(jnp.int32), outside

    def act(self, updates: Params, code: Int[Array, ""], crossed: Bool[Array, ""]) -> Params:
        """Return `updates`, after a warning where the border is `crossed`, or an error, as asked for."""
        if self.action == "refuse":
            message = (
                "The optimizer is used outside what it was trained on: {}. It was told to refuse that. Use an Envelope"
                " with action='fall back', or train it on problems like this one."
            )
            for reason in (Result.OUTSIDE_SCALE, Result.OUTSIDE_HORIZON):
                updates = eqx.error_if(updates, code == reason, message.format(reason.sentence.rstrip(".")))
        if self.action == "warn":
            jax.lax.cond(crossed, lambda: jax.debug.callback(_warn, code, crossed), lambda: None)
        return updates


def _warn(code: Any, crossed: Any) -> None:
    if crossed:  # under vmap both branches of a condition run
        remark(f"{Result(int(code)).sentence} What it does there is not known.")
