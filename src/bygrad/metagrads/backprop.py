"""Truncated backpropagation through the inner steps: the reference estimator."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ..optimizers import Optimizer
from ..unroll import Inner, Windows, instance_axes, rollout
from .base import Estimate, Estimator


class Backprop(Estimator):
    r"""Differentiates a window through everything that happens in it.

    Exact for the window; biased for the horizon when the window is shorter, as every truncation is. Memory grows with
    the graph of the problem, once for every step of the window. Params in half precision have their derivatives added
    up in it, which stop growing in long windows: of 1,000 steps in bfloat16, to two thirds of what they are. `Replay`
    adds them up in float32.

    An instance that is not finite, though it be one of thousands, leaves no meta-gradient of this meta-step, and
    meta-training goes back to the last validated state with half the meta-learning-rate, ten times at most. Where runs
    diverge now and then, `Replay` and evolution strategies leave them out.

    **Arguments:** `second_derivatives`: whether to differentiate what the optimizer sees with respect to the params
    (one Hessian-vector product a step). The paper does without, and then `Replay` gives the same for less.
    """

    second_derivatives: bool = eqx.field(static=True, default=False)

    def init(self, optimizer: Optimizer, windows: Windows, key: PRNGKeyArray) -> Inner:
        return windows.begin(optimizer, key)

    def axes(self, optimizer: Optimizer, state: Inner) -> Inner:
        return instance_axes(optimizer, state)

    def estimate(self, optimizer: Optimizer, windows: Windows, state: Inner) -> tuple[Estimate, Inner]:
        state = windows.renew(optimizer, state)

        def meta_loss(optimizer: Optimizer) -> tuple[Float[Array, ""], tuple]:
            end, trajectory = rollout(
                optimizer,
                windows.family,
                state,
                windows.truncation,
                second_derivatives=self.second_derivatives,
                in_blocks=False,
            )
            losses = jnp.mean(jnp.concatenate([trajectory.value[1:], trajectory.end_value[None]]), axis=0)
            return jnp.mean(losses), (losses, end)

        (loss, (losses, end)), gradient = eqx.filter_value_and_grad(meta_loss, has_aux=True)(optimizer)
        return Estimate(loss, gradient, losses), end
