"""Random least-squares problems, the first benchmark of Andrychowicz et al. (2016), section 3.1."""

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .._core.sizes import all_count, all_sizes
from .base import ProblemFamily

System = tuple[Float[Array, "dimension dimension"], Float[Array, " dimension"]]


class Quadratic(ProblemFamily):
    r"""$f(p) = \lVert W p - y \rVert_2^2$ with a random square $W$ and a random $y$.

    `distribution="uniform"` draws $W, y \sim U[0, 1)$ and is the one behind figure 4 (left) of the paper, whose curves
    start at $10/3$; `"gaussian"` draws them from $N(0, 1)$ as the paper's text says. Both start at
    $p \sim N(0, 0.01^2)$, as the paper's published code does.

    **Arguments:** `dimension`: number of params, at least 1. `distribution`: see above. `scale`: standard deviation of
    the starting point.

    **Raises:** `ValueError` for a dimension below 1, another distribution, and a scale that is negative or no number.
    """

    dimension: int = eqx.field(static=True, default=10)
    distribution: Literal["uniform", "gaussian"] = eqx.field(static=True, default="uniform")
    scale: float = eqx.field(static=True, default=0.01)

    def __check_init__(self) -> None:
        if not all_count(self.dimension):
            raise ValueError(f"dimension is {self.dimension}, but a problem needs a param: give 1 or more.")
        if not all_sizes(self.scale):
            raise ValueError(
                f"scale is {self.scale}, but starts are drawn with it as standard deviation: give 0.01, say."
            )
        if self.distribution not in ("uniform", "gaussian"):
            raise ValueError(f"Unknown distribution {self.distribution!r}: choose 'uniform' or 'gaussian'.")

    def sample(self, key: PRNGKeyArray) -> System:
        matrix_key, target_key = jax.random.split(key)
        draw = jax.random.uniform if self.distribution == "uniform" else jax.random.normal
        return draw(matrix_key, (self.dimension, self.dimension)), draw(target_key, (self.dimension,))

    def init(self, instance: System, key: PRNGKeyArray) -> Float[Array, " dimension"]:
        return self.scale * jax.random.normal(key, (self.dimension,))

    def loss(self, params: Float[Array, " dimension"], instance: System, key: PRNGKeyArray | None) -> Float[Array, ""]:
        matrix, target = instance
        return jnp.sum(jnp.square(matrix @ params - target))
