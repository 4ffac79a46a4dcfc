"""The meta-gradient of a mixture, from each of its members apart."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray, PyTree

from .._core import trees
from .._core.types import Scalar
from ..optimizers import Optimizer
from ..problems import Mixture
from ..unroll import Windows
from .base import Estimate, Estimator


class Members(Estimator):
    r"""Estimates the meta-gradient of every member of a `Mixture` by itself: $\hat g = \frac1k \sum_j \hat g_j$.

    Each counts alike: the mixture's weights scale the losses that are reported, not the gradient. With weights of 1,
    and for an optimizer that treats tensors separately and does not see the scale of the loss, it is the meta-gradient
    of the mixture. Estimators from random directions draw other directions for each member, so as many more of them for
    the same cost; and in the robust form no member drowns the others, whatever the size of its losses.

    **Arguments:** `estimator`: for each member.
    """

    estimator: Estimator

    @property
    def biased(self) -> bool:
        return self.estimator.biased

    @property
    def differentiates(self) -> bool:
        return self.estimator.differentiates

    def init(self, optimizer: Optimizer, windows: Windows, key: PRNGKeyArray) -> tuple[Any, ...]:
        return tuple(
            self.estimator.init(optimizer, part, jax.random.fold_in(key, i)) for i, part in enumerate(_parts(windows))
        )

    def axes(self, optimizer: Optimizer, state: tuple[Any, ...]) -> PyTree:
        return tuple(self.estimator.axes(optimizer, part) for part in state)

    def estimate(
        self, optimizer: Optimizer, windows: Windows, state: tuple[Any, ...]
    ) -> tuple[Estimate, tuple[Any, ...]]:
        pairs = [
            self.estimator.estimate(optimizer, part, inner) for part, inner in zip(_parts(windows), state, strict=True)
        ]
        estimates = [estimate for estimate, _ in pairs]
        count = len(estimates)
        gradient = jax.tree.map(lambda *leaves: sum(leaves) / count, *(it.gradient for it in estimates))
        weights = jnp.array([weight for _, weight in windows.family.parts()])
        square = _mean([it.square for it in estimates])
        if square is not None:
            # Directions are independent between members, so their variances add up.
            norms = [jnp.square(trees.global_norm(it.gradient)) for it in estimates]
            square = jnp.square(trees.global_norm(gradient)) + (square - sum(norms) / count) / count
        estimate = Estimate(
            loss=weights @ jnp.stack([it.loss for it in estimates]),
            gradient=gradient,
            losses=weights @ jnp.stack([it.losses for it in estimates]),
            square=square,
            clipped=_mean([it.clipped for it in estimates]),
            lost=_mean([it.lost for it in estimates]),
        )
        return estimate, tuple(inner for _, inner in pairs)


def _mean(values: list[Scalar | None]) -> Scalar | None:
    """Average what the members say; `None` where their estimator has no particles to say it of."""
    said = [value for value in values if value is not None]
    return jnp.mean(jnp.stack(said)) if said else None


def _parts(windows: Windows) -> list[Windows]:
    families = [family for family, _ in windows.family.parts()]
    if len(families) == 1 and not isinstance(windows.family, Mixture):
        raise TypeError(
            f"Members needs a Mixture, but the family is {type(windows.family).__name__}, which has no members. Use the"
            " estimator that is inside it directly (on the command line: no --per-member)."
        )
    return [dataclasses.replace(windows, family=family) for family in families]
