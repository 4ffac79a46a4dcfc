"""Several families at once."""

from collections.abc import Callable, Sequence

import equinox as eqx
import jax

from .._core.sizes import all_sizes
from .._core.types import Instance, Params, PRNGKeyArray, Scalar
from .base import ProblemFamily, check_is_family, differentiable_loss


class Mixture(ProblemFamily):
    r"""One problem of every member family, side by side: $f(p_1, \dots, p_k) = \frac1k \sum_j w_j f_j(p_j)$.

    Problems of different shapes do not fit into one batch, but they fit beside each other: to an optimizer that treats
    tensors separately, a mixture is all of its members, and to everything that knows families it is a family. Losses of
    runs (`bygrad.unroll.loss_curves`: validation, tuning, comparing) are those of runs on each member by itself, since
    an optimizer that sees more than a tensor would meet another problem in all of them together. Estimators run them
    together, unless they are inside of `bygrad.metagrads.Members`. The members of a mixture inside of it, also of one
    that other families wrap, are its own.

    **Arguments:** `members`: the families, of any kinds. `weights`: of their losses, 1 by default; they should make the
    losses of the members alike in size. The held-out loss is the same mean, of members that all have one.

    **Raises:** `TypeError` for a member that is no family, a class, say, and for what is no tuple; `ValueError` for
    none, and for other than one weight, finite and not negative, for each.
    """

    members: tuple[ProblemFamily, ...]
    weights: tuple[float, ...] = eqx.field(static=True)

    def __init__(self, members: Sequence[ProblemFamily], weights: tuple[float, ...] | None = None):
        if not isinstance(members, list | tuple):
            raise TypeError(
                f"members is one {type(members).__name__}, but a mixture is of several families: which ones is not"
                " known. Give a tuple of them."
            )
        if not members or (weights is not None and len(weights) != len(members)):
            raise ValueError(
                f"A mixture of {len(members)} families with {len(members) if weights is None else len(weights)} weights"
                " is not defined. Give at least one family, and a weight for each or none at all."
            )
        for member in members:
            check_is_family(member)
        if weights is not None and not all_sizes(*weights):
            raise ValueError(
                f"The weights are {tuple(weights)}, but a loss times one that is negative or no number would not be"
                " minimized. Give positive numbers."
            )
        self.members = tuple(members)
        self.weights = tuple(map(float, weights)) if weights is not None else (1.0,) * len(members)

    def sample(self, key: PRNGKeyArray) -> Instance:
        return tuple(member.sample(jax.random.fold_in(key, i)) for i, member in enumerate(self.members))

    def init(self, instance: Instance, key: PRNGKeyArray) -> Params:
        return tuple(
            member.init(part, jax.random.fold_in(key, i))
            for i, (member, part) in enumerate(zip(self.members, instance, strict=True))
        )

    def loss(self, params: Params, instance: Instance, key: PRNGKeyArray | None) -> Scalar:
        return self._mean(list(map(differentiable_loss, self.members)), params, instance, key)

    def parts(self) -> tuple[tuple[ProblemFamily, float], ...]:
        count = len(self.members)
        return tuple(
            (part, weight / count * share)
            for member, weight in zip(self.members, self.weights, strict=True)
            for part, share in member.parts()
        )

    def held_out_loss(self, params: Params, instance: Instance, key: PRNGKeyArray | None) -> Scalar:
        return self._mean([member.held_out_loss for member in self.members], params, instance, key)

    def _mean(
        self, of: Sequence[Callable[..., Scalar]], params: Params, instance: Instance, key: PRNGKeyArray | None
    ) -> Scalar:
        losses = [
            weight * loss(part, piece, None if key is None else jax.random.fold_in(key, i))
            for i, (loss, weight, part, piece) in enumerate(zip(of, self.weights, params, instance, strict=True))
        ]
        return sum(losses[1:], start=losses[0]) / len(losses)
