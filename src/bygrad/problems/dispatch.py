"""Economic dispatch: which power plants serve the demand of a quarter-hour most cheaply, within a grid's limits."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from .._core.sizes import all_positive
from .._core.types import Scalar
from .data.embedded import read_arrays
from .load_profile import year_of_load
from .merit_order import Units
from .power_grid import transfer_factors, unlike_lines
from .structured import QuadraticProgram

BASE = 100.0
"""MW of a unit of power, and $/h of a unit of cost."""

SPREAD = 0.05
"""Standard deviation of a bus's demand about its share of the system's."""


class EconomicDispatch(QuadraticProgram):
    r"""Dispatch with the limits of lines (DC optimal power flow):
    $\min_p \sum_g a_g p_g^2 + b_g p_g$ subject to $\sum_g p_g = \sum_k d_k$, $0 \le p \le \bar p$ and
    $\lvert H (p - d) \rvert \le r$.

    $H$ holds the power transfer distribution factors of the generators' buses and the loads' buses. The limits of lines
    are soft, as in markets: a unit of overload costs `price`. An instance is the demand $d$ of each bus with a load;
    params are the outputs of the generators, both in 100 MW. Units may be off, so that the lower limit is 0; constant
    costs are left out, as are ramps: quarter-hours are independent.

    **Certificate (weak duality).** For $\lvert \mu \rvert \le$ `price`, any $\lambda$, and limits $[l, u]$ of the flow
    $H p$, every feasible $p$ costs at least
    $$\sum_g \min_{0 \le p_g \le \bar p_g} \left( a_g p_g^2 + (b_g + H_g^\top \mu - \lambda) p_g \right)
    + \lambda \sum_k d_k - u^\top \mu^+ + l^\top \mu^-.$$
    *Proof:* with $v = H p$, and $z$ the point of $[l, u]$ next to $v$, the overload costs
    $\text{price} \lVert v - z \rVert_1 \ge \mu^\top (v - z) \ge \mu^\top v - u^\top \mu^+ + l^\top \mu^-$. Add
    $\lambda (\sum d - \sum p) = 0$ and minimize each term alone. `certify` takes $\mu$ from the solver, cut to the
    price, and the best $\lambda$ for it. The point that it is held against serves the demand exactly: the minimum of
    $\sum_g a_g p_g^2 + (b_g + H_g^\top \mu) p_g$ and the squared distance to the outputs over $2 \tau$, which is the
    solution if the solver has found it. So the gap is a bound whatever the solver did, up to rounding.

    The embedded grid is the IEEE Reliability Test System of 1996 (73 buses, 96 units, 120 lines) with its costs, and
    lines may carry `margin` of their rating, a stand-in for the security of the grid when one line fails.

    **Source:** Klamkin, Tanneau and Van Hentenryck, *Self-certifying primal-dual optimization proxies* (2025), for
    dispatch with soft lines and the proportional `repair`.
    """

    cost: Float[Array, "units 2"]
    capacity: Float[Array, " units"]
    rating: Float[Array, " lines"]
    transfer: Float[Array, "lines units"]
    loads: Float[Array, "lines buses"]
    demand: Float[Array, " buses"]
    profile: Float[Array, " quarters"]
    price: float = eqx.field(static=True, default=1000.0)

    def __check_init__(self) -> None:
        if not all_positive(self.price):
            raise ValueError(f"price is {self.price}, but it is what a unit of overload costs: give a positive number.")

    @classmethod
    def embedded(cls, margin: float = 0.6) -> "EconomicDispatch":
        """Return the dispatch of the IEEE Reliability Test System; `margin`: share of a rating that may be used."""
        if not 0 < margin <= 1:
            raise ValueError(
                f"margin is {margin}, but lines can carry a share of their rating in (0, 1] only. Give 0.6, say."
            )
        grid = read_arrays("ieee_rts96.npz")
        factors, unlike = unlike_lines(transfer_factors(grid["line"], grid["reactance"], len(grid["load"])))
        loaded = grid["load"] > 0
        return cls(
            cost=jnp.float32(grid["cost"] * [BASE, 1.0]),
            capacity=jnp.float32(grid["capacity"] / BASE),
            rating=jnp.float32(margin * grid["rating"][unlike] / BASE),
            transfer=jnp.float32(factors[:, grid["generator_bus"]]),
            loads=jnp.float32(factors[:, loaded]),
            demand=jnp.float32(grid["load"][loaded] / BASE),
            profile=jnp.float32(year_of_load()),
        )

    def sample(self, key: PRNGKeyArray) -> Float[Array, " buses"]:
        when, noise = jax.random.split(key)
        share = self.profile[jax.random.randint(when, (), 0, len(self.profile))]
        return share * self.demand * (1 + SPREAD * jax.random.normal(noise, self.demand.shape))

    def year(self, seed: int = 0) -> Float[np.ndarray, "quarters buses"]:
        """Return the demand of every quarter-hour of a leap year, 35,136 rows, in order."""
        share, demand = np.asarray(self.profile, float)[:, None], np.asarray(self.demand, float)
        noise = np.random.default_rng(seed).normal(size=(len(share), len(demand)))
        return share * demand * (1 + SPREAD * noise)

    @property
    def units(self) -> Units:
        """The power plants, whatever the grid."""
        return Units(self.cost[:, 0], self.capacity)

    @property
    def matrices(self) -> tuple[Float[Array, "n n"], Float[Array, "m n"]]:
        units = len(self.capacity)
        one = jnp.ones((1, units), self.transfer.dtype)
        return jnp.diag(2 * self.cost[:, 0]), jnp.concatenate([one, jnp.eye(units), self.transfer])

    @property
    def equations(self) -> Bool[Array, " m"]:
        return jnp.arange(1 + len(self.capacity) + len(self.rating)) == 0

    @property
    def ceiling(self) -> Float[Array, " m"]:
        return jnp.concatenate([jnp.full(1 + len(self.capacity), jnp.inf), jnp.full(len(self.rating), self.price)])

    def vectors(self, instance: Float[Array, " buses"]) -> tuple[Array, Array, Array]:
        total, flow = jnp.sum(instance, keepdims=True), self.loads @ instance
        low = jnp.concatenate([total, jnp.zeros_like(self.capacity), flow - self.rating])
        return self.cost[:, 1], low, jnp.concatenate([total, self.capacity, flow + self.rating])

    def init(self, instance: Float[Array, " buses"], key: PRNGKeyArray) -> Float[Array, " units"]:
        """Start with the cheapest outputs in a grid without limits (the merit order)."""
        outputs, _ = self.units.merit_order(self.cost[:, 1], jnp.sum(instance))
        return self.units.serve(outputs[1], jnp.sum(instance))

    def certify(
        self, params: Float[Array, " units"], dual: Float[Array, " m"], instance: Float[Array, " buses"]
    ) -> tuple[Float[Array, " units"], Scalar, Scalar]:
        units, total = len(self.capacity), jnp.sum(instance)
        _, low, high = (it[1 + units :] if it.size > units else it for it in self.vectors(instance))
        quadratic, linear = self.cost.T
        mu = jnp.clip(dual[units:], -self.price, self.price)
        slope = linear + self.transfer.T @ mu

        outputs = self.units.serve(self.units.cheaper(params, slope, total), total)
        flow = self.transfer @ outputs
        overload = jnp.maximum(flow - high, 0) + jnp.maximum(low - flow, 0)
        cost = outputs @ (quadratic * outputs + linear) + self.price * jnp.sum(overload)

        # The bound's gradient is that at the optimum of both: those of the outputs and of the price vanish (Danskin).
        cheapest, value = jax.lax.stop_gradient(self.units.merit_order(slope, total))
        # Of both ends of the price, as the best one may be an end: that of no demand is the lowest there is.
        least = jnp.maximum(*(jnp.sum(cheapest * (quadratic * cheapest + slope - value[:, None]), 1) + value * total))
        lowest = least - high @ jnp.maximum(mu, 0) + low @ jnp.maximum(-mu, 0)
        served = (total >= 0) & (total <= jnp.sum(self.capacity.astype(total.dtype)))
        return outputs, cost, jnp.where(served, lowest, -jnp.inf)

    def repair(self, params: Float[Array, " units"], instance: Float[Array, " buses"]) -> Float[Array, " units"]:
        """Cut outputs to their limits, and spread what is missing in proportion to what each unit has left."""
        return self.units.serve(params, jnp.sum(instance))
