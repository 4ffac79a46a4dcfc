"""A learned schedule for the proximal gradient method: a few numbers for each of the first steps."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._core import trees
from .._core.types import Scalar


class LearnedSchedule(eqx.Module):
    r"""The step $s L$, the factor $\theta$ on the threshold and the momentum $\beta$ of the first steps.

    The same for all instances: where a step costs two products with a dictionary, a network would cost more than it
    saves. Where the penalty is separable, each param has a factor of its own on each step as well, and a
    momentum of its own. After the last row the classical rules go on.

    **Guarantee (any numbers, also NaN, huge or ascending ones):** that of `ProximalGradient`, which takes no trial
    above the cost at the start, and after the schedule's end none that does not lower the cost at x; instead it makes
    the plain step with $1/L$ its next trial. *Assume* that $g$ is convex with an $L$-Lipschitz gradient and that $f$
    has a minimum. *Then* the cost is never above that at the start, and converges to the minimum. *Sketch:* the first
    is what the test says. After the last row the method is the classical one, which converges from any point. So a bad
    schedule costs at most its own length. The test is free: the cost at the trial comes with the gradient that the step
    needs.

    **Arguments:** `rows`: `[steps, 3]`, the logarithms of $s L$ and of $\theta$, and $\beta$. `metric`: `[steps, p]`,
    logarithms of the factors on the steps of the params, or `[steps]`, of one for all of them. `momenta`: `[steps, p]`,
    how much the momentum of each param is above that of its row, or None.
    """

    rows: Float[Array, "steps 3"]
    metric: Float[Array, "steps *p"]
    momenta: Float[Array, "steps p"] | None = None

    def __check_init__(self) -> None:
        for name, table in (("metric", self.metric), ("momenta", self.momenta)):
            if table is not None and len(self.rows) != len(table):
                raise ValueError(
                    f"A schedule of {len(self.rows)} steps got {name} of shape {list(table.shape)}, which must have as"
                    " many rows, so no step would have its own. Give [steps, params]."
                )

    @classmethod
    def classical(cls, steps: int = 20, params: int | None = None) -> "LearnedSchedule":
        """Return FISTA's own numbers: $s = 1/L$, $\\theta = 1$, and Nesterov's momentum; `params`: of the tables."""
        t, momentum = 1.0, []
        for _ in range(steps):
            after = 0.5 * (1 + np.sqrt(1 + 4 * t * t))
            momentum.append((t - 1) / after)
            t = after
        zero = np.zeros(steps)
        rows = jnp.asarray(np.stack([zero, zero, momentum], axis=1), jnp.float32)
        if params is None:
            return cls(rows, jnp.zeros(steps))
        return cls(rows, jnp.zeros((steps, params)), jnp.zeros((steps, params)))

    def __call__(self, nit: Array, step: Scalar, theta: Scalar, beta: Scalar) -> tuple[Array, Scalar, Array]:
        """Return the numbers of a step: those given, the classical ones, after the schedule's end."""
        sane = lambda it: jnp.clip(jnp.nan_to_num(it.astype(step.dtype)), -4.0, 4.0)  # noqa: E731
        rows = sane(self.rows)
        # Of whole tables, which are the same in every step: what is taken from them is not.
        sizes, shrinks = jnp.exp(trees.along_rows(rows[:, 0], self.metric) + sane(self.metric)), jnp.exp(rows[:, 1])
        momenta = rows[:, 2] if self.momenta is None else rows[:, 2:] + sane(self.momenta)
        place, learned = jnp.minimum(nit, len(rows) - 1), nit < len(rows)
        pick: Any = lambda new, old: jnp.where(learned, new[place], old)  # noqa: E731
        return pick(sizes, step), pick(shrinks, theta), pick(momenta, beta)
