"""Power plants without a grid: which outputs serve a demand, and which of these are cheapest."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._core.types import Scalar

REACH = 3e-3
r"""$\tau$ of `cheaper`: how far, in 100 MW, a $ an hour and MW moves an output. Learned ones are so near."""


class Units(NamedTuple):
    """Units whose costs are $a p^2 + b p$ for outputs $p$ from 0 to their capacity, $b$ being what is given each time.

    **Arguments:** `quadratic`: $a$ of each. `capacity`: their largest outputs.
    """

    quadratic: Float[Array, " units"]
    capacity: Float[Array, " units"]

    def serve(self, outputs: Float[Array, " units"], total: Scalar) -> Float[Array, " units"]:
        """Cut outputs to their limits and let them serve the demand, if all together can."""
        outputs = jnp.clip(outputs, 0, self.capacity)
        missing = total - jnp.sum(outputs)
        room = jnp.where(missing > 0, self.capacity - outputs, outputs)
        whole = jnp.sum(room)
        return outputs + room * jnp.clip(missing / jnp.where(whole > 0, whole, 1.0), -1, 1)

    def cheaper(
        self, outputs: Float[Array, " units"], slope: Float[Array, " units"], total: Scalar
    ) -> Float[Array, " units"]:
        """Return the minimum of the cost at a `slope` and the squared distance to `outputs` over 2 `REACH`, such that
        all together serve `total`."""
        outputs = jnp.clip(outputs, 0, self.capacity)
        weight = 1 / (2 * self.quadratic + 1 / REACH)

        def at(value: Array) -> Array:
            return jnp.clip(weight * (outputs / REACH + value - slope), 0, self.capacity)

        least = slope - outputs / REACH
        ends = jnp.min(least), jnp.max(least + self.capacity / weight)
        _, value = jax.lax.stop_gradient(_halve(lambda value: jnp.sum(at(value)) >= total, ends))
        # One more step, exact on a piece that is linear, whose derivative is that of the price.
        found = at(value)
        rise = jnp.sum(jnp.where((found > 0) & (found < self.capacity), weight, 0.0))
        return at(value + jnp.where(rise > 0, (total - jnp.sum(found)) / jnp.where(rise > 0, rise, 1.0), 0.0))

    def merit_order(
        self, slope: Float[Array, " units"], total: Scalar
    ) -> tuple[Float[Array, "2 units"], Float[Array, " 2"]]:
        """Return the outputs that minimize the cost at a price of power, and the price at which they sum to `total`: at
        both ends of the narrow range that it is in, of which the second one serves as much."""
        curvature = 2 * self.quadratic
        curved = curvature > 0

        def outputs(value: Array) -> Array:
            inside = (value - slope) / jnp.where(curved, curvature, 1.0)
            step = jnp.where(value > slope, self.capacity, 0.0)
            return jnp.where(curved, jnp.clip(inside, 0, self.capacity), step)

        ends = jnp.min(slope), jnp.max(slope + curvature * self.capacity)
        values = jnp.stack(_halve(lambda value: jnp.sum(outputs(value)) >= total, ends))
        return jax.vmap(outputs)(values), values


def _halve(enough: Callable[[Scalar], Bool[Array, ""]], ends: tuple[Scalar, Scalar]) -> tuple[Scalar, Scalar]:
    """Return two ends, between those given and close to each other, between which lies the least value of enough."""

    def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = 0.5 * (low + high)
        met = enough(middle)
        return jnp.where(met, low, middle), jnp.where(met, middle, high)

    return jax.lax.fori_loop(0, 32, halve, ends)
