"""Rolling mean-variance portfolios: the weights of a few assets, chosen anew for every window of their past."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from .._core.sizes import all_count
from .structured import Composite

ROUNDING = 100
"""How far a portfolio may be from its constraints, in units of the precision."""


class MeanVariance(Composite):
    r"""The portfolio whose returns in a window come nearest to a target $b$:
    $\min_w \frac12 \mathrm{E} (r^\top w - b)^2$ subject to $\sum w = 1$ and $0 \le w \le c$.

    With $\sum w = 1$ this is $\frac12 w^\top S w$ with $S = \mathrm{E} (r - b)(r - b)^\top$. Its solutions are the
    mean-variance efficient portfolios, one for each target. The covariance changes from window to window, so that the
    instances share no matrix; the constraints are in the proximal map, a projection.

    An instance is $S$ of a window, divided by its largest eigenvalue; it must be positive semidefinite, as a covariance
    is (of data with gaps, an estimate need not be): nothing else is convex. The gap is that of Frank and Wolfe,
    $\max_v \nabla f(w)^\top (w - v)$ over the portfolios $v$: for a convex $f$ it bounds $f(w) - \min f$. It is
    infinite where $w$ is no portfolio, beyond rounding. The loss is finite there: half the squared violation times 100
    is added, as in a `QuadraticProgram`.

    **Arguments:** `returns`: `[days, assets]`, daily. `window`: days that a portfolio is chosen from. `target`: $b$, a
    daily return. `cap`: $c$, the largest weight.

    **Source:** Britten-Jones, *The sampling error in estimates of mean-variance efficient portfolio weights* (1999),
    for the regression on a target; Jaggi, *Revisiting Frank-Wolfe* (2013), equation 2, for the gap.
    """

    returns: Float[Array, "days assets"]
    window: int = eqx.field(static=True, default=252)
    target: float = eqx.field(static=True, default=1e-3)
    cap: float = eqx.field(static=True, default=0.2)

    def __check_init__(self) -> None:
        days, assets = self.returns.shape
        if not math.isfinite(self.target):
            raise ValueError(f"target is {self.target}, but it is the daily return aimed at: give 1e-3, say.")
        if not 1 / assets < self.cap <= 1 or not (all_count(self.window, least=2) and self.window < days):
            raise ValueError(
                f"cap is {self.cap} and window {self.window} for {assets} assets on {days} days: weights of at most"
                " the cap must be able to sum to 1 in more than one way, and a window must be shorter than the data."
                f" Give a cap above {1 / assets:g}, up to 1, and 2 to {days - 1} days."
            )

    @classmethod
    def from_prices(cls, prices: Float[np.ndarray, "days assets"], **settings: float | int) -> "MeanVariance":
        """Build it from daily prices, `[days, assets]`; `settings`: `window`, `target` and `cap`."""
        prices = np.asarray(prices, float)
        if not (np.isfinite(prices) & (prices > 0)).all():
            raise ValueError(
                "Prices must be positive, finite and known on every day, or there are no returns. Leave out assets or"
                " days with gaps."
            )
        return cls(jnp.asarray(prices[1:] / prices[:-1] - 1, jnp.float32), **settings)  # pyright: ignore[reportArgumentType]

    @classmethod
    def simulated(cls, days: int = 2520, assets: int = 20, seed: int = 0, **settings: float | int) -> "MeanVariance":
        """Build it from simulated returns: a market whose volatility wanders, and what is the assets' own."""
        if not all_count(days, assets, least=2):
            raise ValueError(
                f"days is {days} and assets {assets}, but a portfolio is chosen among several by several days: give"
                " whole numbers of two or more."
            )
        draw = np.random.default_rng(seed)
        wander = np.cumsum(0.02 * draw.normal(size=days))
        market = 0.01 * np.exp(wander - wander.mean()) * draw.standard_t(5, size=days)
        own = draw.uniform(0.008, 0.025, assets) * draw.standard_t(5, size=(days, assets))
        steps = draw.uniform(0.5, 1.5, assets) * market[:, None] + own + draw.normal(4e-4, 3e-4, assets)
        start = np.ones((1, assets))
        return cls.from_prices(np.concatenate([start, np.cumprod(1 + np.clip(steps, -0.5, 0.5), axis=0)]), **settings)

    def windows(self) -> Float[np.ndarray, "windows assets assets"]:
        """Return the instances of all windows, in order."""
        centred = np.asarray(self.returns, float) - self.target
        squares = np.concatenate([np.zeros((1, *centred.shape[1:] * 2)), centred[:, :, None] * centred[:, None, :]])
        sums = np.cumsum(squares, axis=0)
        moments = (sums[self.window :] - sums[: -self.window]) / self.window
        return moments / np.linalg.eigvalsh(moments)[:, -1, None, None]

    def sample(self, key: PRNGKeyArray) -> Float[Array, "assets assets"]:
        first = jax.random.randint(key, (), 0, len(self.returns) - self.window + 1)
        centred = jax.lax.dynamic_slice_in_dim(self.returns, first, self.window) - self.target
        moment = centred.T @ centred
        return moment / jnp.linalg.norm(moment, ord=2)

    def init(self, instance: Float[Array, "assets assets"], key: PRNGKeyArray) -> Float[Array, " assets"]:
        return jnp.full(len(instance), 1 / len(instance), instance.dtype)

    def smooth(self, params: Float[Array, " assets"], instance: Float[Array, "assets assets"]) -> Float[Array, ""]:
        return 0.5 * params @ (instance @ params)

    def penalty(self, params: Float[Array, " assets"], instance: Float[Array, "assets assets"]) -> Float[Array, ""]:
        return 50.0 * jnp.sum(jnp.square(self._violations(params)))

    def _violations(self, params: Float[Array, " assets"]) -> Float[Array, " rows"]:
        return jnp.append(params - jnp.clip(params, 0, self.cap), jnp.sum(params) - 1)

    def prox(
        self, params: Float[Array, " assets"], step: Float[Array, ""], instance: Float[Array, "assets assets"]
    ) -> Float[Array, " assets"]:
        # The sum of clip(params - shift, 0, cap) falls with the shift, linearly between kinks at params and params - c.
        # Nothing is sorted, which under `vmap` would cost more than the sum at every kink.
        kinks = jnp.concatenate([params - self.cap, params])
        sums = jnp.sum(jnp.clip(params - kinks[:, None], 0, self.cap), axis=1)
        enough = sums >= 1
        low, high = jnp.max(jnp.where(enough, kinks, -jnp.inf)), jnp.min(jnp.where(enough, jnp.inf, kinks))
        most, least = jnp.min(jnp.where(enough, sums, jnp.inf)), jnp.max(jnp.where(enough, -jnp.inf, sums))
        shift = low + (high - low) * (most - 1) / (most - least)
        weights = jnp.clip(params - shift, 0, self.cap)
        # Rounding is relative to params, which may be far away: those between the limits take what is left.
        free = (weights > 0) & (weights < self.cap)
        left = (1 - jnp.sum(weights)) / jnp.maximum(jnp.sum(free), 1)
        return jnp.clip(weights + jnp.where(free, left, 0.0), 0, self.cap)

    def curvature(self) -> Float[Array, ""]:
        return jnp.ones(())

    def gap(
        self,
        params: Float[Array, " assets"],
        gradient: Float[Array, " assets"],
        instance: Float[Array, "assets assets"],
    ) -> Float[Array, ""]:
        # The least gradient @ v over portfolios v, by duality: the best threshold is one of the entries.
        under = jnp.minimum(gradient - gradient[:, None], 0.0)
        least = jnp.max(gradient + self.cap * jnp.sum(under, axis=1))
        allowed = jnp.max(jnp.abs(self._violations(params))) <= ROUNDING * jnp.finfo(params.dtype).eps
        return jnp.where(allowed, jnp.maximum(gradient @ params - least, 0.0), jnp.inf)
