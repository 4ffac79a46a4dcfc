"""Evolution strategies: the meta-gradient from losses alone, with antithetic pairs."""

import abc
import math
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ..optimizers import Optimizer
from ..unroll import Inner, Windows
from . import particles
from .base import Estimate, Estimator
from .particles import Pairs


class Evolution(Estimator):
    r"""An estimator from the difference of the losses of a pair,

    $$\hat g = \frac1N \sum_i
    \frac{L_i(\theta + \sigma \epsilon_i) - L_i(\theta - \sigma \epsilon_i)}{2 \sigma} \, e_i,$$

    with $L_i$ the mean loss after each update of a window and $e_i$ the direction of the pair, over all that has
    happened to it. What it estimates is the gradient of the meta-loss smoothed with $N(0, \sigma^2 I)$: a curve that no
    cliff and no chaos in the inner problem makes useless. It needs no derivative of the optimizer or of the gradient.

    **Arguments:** `sigma`: $\sigma$, in units of the meta-parameters. `robust`: divide the differences by the median
    of their absolute values and clip them at 3: one diverging pair then does not decide a meta-step, but the size of
    the gradient is lost, and with it the claim to be unbiased. `log`: take the logarithm of the losses, so that
    the last digits of a run count as much as its first, down to `SMALLEST_LOSS`; a window whose mean loss is negative
    has none, and counts as lost. `largest`: clip half the differences at this, and do not divide: what is about to
    fail then counts for more than what gains a little. That matters for the `Members` of a mixture, each of which the
    robust form sees at the same size, so that many small gains outvote one failure. In units of the loss, or of its
    logarithm: there 0.5 stands for a pair whose losses differ by a factor of e. Where one of a pair is not finite,
    these two forms take it to have lost by as much as can be, so that what fails is learned from; otherwise such a pair
    is left out, and what is estimated is the gradient where nothing fails. `late`: another meta-loss, in which the
    end of a run counts for more than its begin: its window from $a$ to $b$, as shares of the horizon, by
    $(b^{k+1} - a^{k+1}) / (b - a)$ with $k$ = `late`. That is 1 on average, and 1 everywhere for `None`, the mean over
    the run. It is applied after all else, so that the robust form does not undo it; the losses that are told are plain.

    **Raises:** `ValueError`: `sigma` or `largest` is not positive, `late` is negative, or the form is robust and
    `largest` is given.
    """

    sigma: float = eqx.field(static=True, default=0.02)
    robust: bool = eqx.field(static=True, default=False)
    log: bool = eqx.field(static=True, default=False)
    largest: float | None = eqx.field(static=True, default=None)
    late: float | None = eqx.field(static=True, default=None)

    keeps_past: ClassVar[bool] = False
    """Whether directions of earlier windows of a run are added up."""

    def __check_init__(self) -> None:
        particles.check_sigma(self.sigma)
        if self.largest is not None and not self.largest > 0:
            raise ValueError(
                f"largest is {self.largest}, so that no difference would be left. Give a positive number, or None to"
                " clip none."
            )
        if self.late is not None and not 0 <= self.late < math.inf:
            raise ValueError(
                f"late is {self.late}, but it is the power of time by which the end of a run counts for more. Give"
                " None, for the mean over the run, or a positive number, such as 3."
            )
        if self.largest is not None and self.robust:
            raise ValueError(
                f"The robust form clips differences at {particles.LARGEST:g} times their median, but largest is"
                f" {self.largest}. Choose one of the two."
            )

    @property
    def transforms(self) -> bool:
        """Whether differences are not those of the losses: no such estimator is unbiased."""
        return self.robust or self.log or self.largest is not None

    @property
    def differentiates(self) -> bool:
        return False

    @abc.abstractmethod
    def directions(self, optimizer: Optimizer, inner: Inner) -> PyTree:
        """Draw the direction of every pair for a window."""

    def settle(self, inner: Inner) -> Inner:
        """Return where the pairs begin the next window."""
        return inner

    def init(self, optimizer: Optimizer, windows: Windows, key: PRNGKeyArray) -> Pairs:
        return particles.begin(optimizer, windows, key, past=self.keeps_past)

    def axes(self, optimizer: Optimizer, state: Pairs) -> Pairs:
        return particles.axes(state)

    def estimate(self, optimizer: Optimizer, windows: Windows, state: Pairs) -> tuple[Estimate, Pairs]:
        state = particles.renew(optimizer, windows, state)
        now = self.directions(optimizer, state.inner)
        total = jax.tree.map(jnp.add, state.past, now) if self.keeps_past else now
        inner, losses = particles.run_pairs(optimizer, windows, state.inner, now, self.sigma)
        usable = jnp.isfinite(losses) & (losses >= 0 if self.log else True)
        live = jnp.all(usable, axis=0)
        inner = self.settle(particles.give_up(windows, inner, live))
        # Where one of the two has failed, by how much the other one is better has no number, but a limit.
        one = jnp.any(~jnp.isfinite(losses), axis=0) & jnp.any(usable, axis=0)
        heard = live | one if self.robust or self.largest is not None else live
        differences, clipped = self._differences(windows, losses, live, heard)
        differences *= self._weights(windows, state.inner)
        gradients = jax.tree.map(lambda leaf: particles.scaled(differences / self.sigma, leaf), total)
        # Those that are lost show what they are.
        told = jnp.mean(losses, axis=0, where=usable | ~heard)
        estimate = particles.combine(windows, gradients, told, heard, clipped)
        return estimate, Pairs(inner, total if self.keeps_past else None)

    def _weights(self, windows: Windows, inner: Inner) -> Float[Array, " instances"] | float:
        """Return by what the windows count that begin here."""
        if not self.late:
            return 1.0
        horizons, power = windows.horizons(inner.key), self.late + 1
        begin, end = inner.step / horizons, (inner.step + windows.truncation) / horizons
        return (end**power - begin**power) / (end - begin)

    def _differences(
        self, windows: Windows, losses: Float[Array, "2 instances"], live: Array, heard: Array
    ) -> tuple[Float[Array, " instances"], Array | float]:
        """Return half the differences of the pairs that are `heard`, of which the `live` ones have two losses."""
        failed = ~jnp.isfinite(losses[0])
        if self.log:
            losses = jnp.log(jnp.maximum(losses, SMALLEST_LOSS))
        differences = jnp.where(live, losses[0] - losses[1], 0) / 2
        differences = jnp.where(heard & ~live, jnp.where(failed, jnp.inf, -jnp.inf), differences)
        if self.robust:
            return particles.robust(windows, differences, live, heard)
        return (differences, 0.0) if self.largest is None else particles.cut(windows, differences, heard, self.largest)


SMALLEST_LOSS = 1e-6
"""Losses below count as this much where their logarithm is taken."""
