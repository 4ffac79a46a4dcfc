"""Families judged by data that they are not trained on."""

import abc
import dataclasses
from typing import Any, TypeVar

import jax
import numpy as np
from jaxtyping import Array, Float

from .._core.sizes import is_whole
from .._core.types import Instance, Params, PRNGKeyArray, Scalar
from .base import ProblemFamily, check_is_family, differentiable_loss

AnyFamily = TypeVar("AnyFamily", bound=ProblemFamily)


class DataFamily(ProblemFamily):
    """Problems on one set of data, the last `held_out` entries of which are not trained on.

    Subclasses have the field `held_out`. An `AbstractVar` here would become the first of their arguments.
    """

    def __check_init__(self) -> None:
        trained, size = self.entries
        if not (is_whole(trained) and 0 < trained <= size):
            raise ValueError(
                f"held_out is {size - trained} of {size} entries of the data, but some must be left to train on. Give"
                " at least 0 and less than all."
            )

    @property
    @abc.abstractmethod
    def entries(self) -> tuple[int, int]:
        """How many are trained on, the first ones, and how many there are."""

    def sample(self, key: PRNGKeyArray) -> tuple[()]:
        return ()

    def loss(self, params: Any, instance: tuple[()], key: PRNGKeyArray | None) -> Float[Array, ""]:
        return self.loss_on(params, key, 0, self.entries[0])

    def held_out_loss(self, params: Any, instance: tuple[()], key: PRNGKeyArray | None) -> Float[Array, ""]:
        trained, size = self.entries
        if trained == size:
            return super().held_out_loss(params, instance, key)
        return self.loss_on(params, key, trained, size)

    @abc.abstractmethod
    def with_entries(self, which: np.ndarray, held_out: int) -> "DataFamily":
        """Return the family over these entries of the data, in this order, the last `held_out` not trained on."""

    @abc.abstractmethod
    def loss_on(self, params: Any, key: PRNGKeyArray | None, start: int, end: int) -> Float[Array, ""]:
        """Return the mean over a minibatch that `key` draws from entries `start` to `end`; over all for `None`."""


def hold_out(family: AnyFamily, count: int | None = None) -> AnyFamily:
    """Return the family with some of its data kept from training, for `held_out_loss`.

    **Arguments:** `family`: what is in it of images or text is divided, also inside other families (`RandomStart`); one
    without is returned as it is, as its held-out data are its own affair. `count`: how many of the last images or
    characters to keep; by default as many as the family keeps already, and a fifth where it keeps none. Shuffle data
    that are sorted.

    **Raises:** `ValueError`: `count` is given, and there is nothing to divide.

    >>> from bygrad.problems import find_family, hold_out
    >>> hold_out(find_family("mnist")).held_out
    2000
    """
    if count is not None and not is_whole(count):
        raise ValueError(f"count is {count!r}, which is no number of images or characters to hold out. Give 2000, say.")
    if count is not None and not _contains(family, DataFamily):
        raise ValueError(
            f"{type(family).__name__} has no images or text of which the last {count} could be held out. Leave held_out"
            " (--held-out) away, and write the family's `held_out_loss` where it has none."
        )

    def divide(part: Any) -> Any:
        if not isinstance(part, DataFamily):
            return part
        trained, size = part.entries
        kept = (size - trained or max(1, size // 5)) if count is None else count
        return dataclasses.replace(part, held_out=kept)  # pyright: ignore[reportCallIssue]

    return jax.tree.map(divide, family, is_leaf=lambda part: isinstance(part, DataFamily))


def halved(family: AnyFamily) -> tuple[AnyFamily, AnyFamily]:
    """Return the family twice, with the first and with the last half of what it holds out; both train on the same data.

    What is learned or chosen by the one can be judged by the other. A family whose held-out data are its own affair is
    returned as it is, twice.

    **Raises:** `ValueError` where less than two images or characters are held out.
    """

    def half(which: int) -> Any:
        def divide(part: Any) -> Any:
            if not isinstance(part, DataFamily):
                return part
            trained, size = part.entries
            middle = (trained + size) // 2
            if middle == trained:
                raise ValueError(
                    f"held_out is {size - trained}, but what is learned by some of the held-out data is judged by"
                    " others, so that there must be two at least. Hold out more."
                )
            chosen = np.arange(trained, middle) if which == 0 else np.arange(middle, size)
            return part.with_entries(np.concatenate([np.arange(trained), chosen]), len(chosen))

        return jax.tree.map(divide, family, is_leaf=lambda part: isinstance(part, DataFamily))

    return half(0), half(1)


class HeldOut(ProblemFamily):
    r"""The problems of another family, with its held-out loss as the value and the gradient of its training loss.

    Whoever descends follows the training loss; whoever looks at values, in meta-training by evolution strategies, in
    tuning or in a comparison, sees the held-out loss. Meta-gradients that are made from derivatives of the losses
    (`Replay`, `Backprop`, `Forward`, `Blend`) would be those of the training loss: `meta_train` refuses them.

    **Arguments:** `family`: one that has a `held_out_loss` (`hold_out` gives one to those with images or text).
    """

    family: ProblemFamily

    def __check_init__(self) -> None:
        check_is_family(self.family)

    def sample(self, key: PRNGKeyArray) -> Instance:
        return self.family.sample(key)

    def init(self, instance: Instance, key: PRNGKeyArray) -> Params:
        return self.family.init(instance, key)

    def loss(self, params: Params, instance: Instance, key: PRNGKeyArray | None) -> Scalar:
        training = differentiable_loss(self.family)(params, instance, key)
        fixed = jax.lax.stop_gradient(params)
        # Another branch of the key: the same one would draw minibatches that are paired with those trained on. One that
        # no split into fewer than 19,998 keys gives.
        other = None if key is None else jax.random.fold_in(key, 0x4E1D)
        return self.family.held_out_loss(fixed, instance, other) + (training - jax.lax.stop_gradient(training))

    def parts(self) -> tuple[tuple[ProblemFamily, float], ...]:
        return tuple((HeldOut(part), weight) for part, weight in self.family.parts())


def descended(family: ProblemFamily) -> ProblemFamily:
    """Return the family whose losses are those that gradients are of: without any `HeldOut` around it, or in it."""

    if not is_held_out(family):
        return family

    def is_one(part: Any) -> bool:
        return isinstance(part, HeldOut)

    return jax.tree.map(lambda part: descended(part.family) if is_one(part) else part, family, is_leaf=is_one)


def is_held_out(family: ProblemFamily) -> bool:
    """Whether the family, or one that it is made of, is judged by other data than it is trained on."""
    return _contains(family, HeldOut)


def _contains(family: ProblemFamily, kind: type[ProblemFamily]) -> bool:
    def is_one(part: Any) -> bool:
        return isinstance(part, kind)

    return any(map(is_one, jax.tree.leaves(family, is_leaf=is_one)))
