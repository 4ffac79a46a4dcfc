"""Learned optimizers as named NumPy arrays and JSON values, and back."""

from typing import Any, NamedTuple, cast

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from .._core import trees
from .base import Learned, Optimizer

MOST_LAYERS = 100
"""Of a rule, in a file from a stranger."""


class Portable(NamedTuple):
    """An optimizer without its code: class name, configuration, feature version, and its arrays by path."""

    name: str
    config: dict[str, Any]
    features: int
    tensors: dict[str, np.ndarray]


def to_portable(optimizer: Optimizer) -> Portable:
    """Take a learned optimizer apart. Raises `TypeError` for one that is not one of the package's learned ones."""
    if not isinstance(optimizer, Learned):
        raise TypeError(
            f"{type(optimizer).__name__} is not a learned optimizer of this package, so it cannot be an artifact: a"
            " file holds no code, and names bygrad's own learned rules alone. Export one of those, or keep the arrays"
            " of this one yourself (equinox.tree_serialise_leaves)."
        )
    tensors = {name: np.array(leaf) for name, leaf in trees.named_leaves(eqx.filter(optimizer, eqx.is_array)).items()}
    return Portable(type(optimizer).__name__, optimizer.config, optimizer.feature_version, tensors)


def from_portable(portable: Portable, classes: dict[str, type[Learned]]) -> Optimizer:
    """Rebuild an optimizer; anything that does not match its class is refused with a `ValueError` by name."""
    if portable.name not in classes:
        raise ValueError(
            f"The optimizer is a {portable.name!r}, which this version of bygrad does not have (it has"
            f" {', '.join(classes)}). Upgrade bygrad, or use an artifact of one of these."
        )
    cls = classes[portable.name]
    if portable.features != cls.feature_version:
        raise ValueError(
            f"The optimizer was trained with version {portable.features} of {portable.name}'s features, but this bygrad"
            f" computes version {cls.feature_version}: its meta-parameters would mean something else. Use the bygrad it"
            " was written with, or train it again."
        )
    if (longest := _longest(portable.config)) > MOST_LAYERS:
        raise ValueError(
            f"The configuration of {portable.name} has a list of {longest:,} numbers, and no rule has more than"
            f" {MOST_LAYERS} layers: to build it could keep the machine busy for hours. The file is damaged, or made to"
            " do harm."
        )
    config = _in_short(portable.config)
    try:
        skeleton = eqx.filter_eval_shape(cls.of_file, portable.config)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(
            f"The configuration {config} is not one of {portable.name} ({type(error).__name__}: {_in_short(error)}),"
            " so the optimizer cannot be rebuilt. The file was written by another version, or by something else."
        ) from error
    wanted = trees.named_leaves(eqx.filter(skeleton, lambda leaf: hasattr(leaf, "shape")))
    if different := sorted(set(wanted) ^ set(portable.tensors)):
        raise ValueError(
            f"The tensors do not fit {portable.name} with {config}: {_in_short(', '.join(different[:3]))} stand on one"
            " side only. Loading by position would swap meta-parameters; use the artifact with its own configuration."
        )
    for name, leaf in wanted.items():
        found = portable.tensors[name]
        if found.shape != leaf.shape or _kind(found.dtype) != _kind(leaf.dtype):
            raise ValueError(
                f"Tensor {name} is {found.dtype}{list(found.shape)}, but {portable.name} with {config} needs"
                f" {leaf.dtype}{list(leaf.shape)}. Use the artifact with its own configuration."
            )
    filled = trees.replace_leaves(skeleton, lambda name, _: jnp.asarray(portable.tensors[name]))
    return cast(Optimizer, filled)


def _longest(config: Any) -> int:
    """Return how many numbers the longest list of them has, of all that lie inside one another."""
    if isinstance(config, dict):
        config = list(config.values())
    if not isinstance(config, list):
        return 0
    return max(sum(isinstance(it, int | float) for it in config), *map(_longest, config), 0)


def _in_short(text: object) -> str:
    return shown if len(shown := str(text)) <= 300 else f"{shown[:297]}..."


def _kind(dtype: Any) -> type:
    """Numbers of one kind convert into each other: no artifact stands or falls with its precision."""
    return np.floating if jnp.issubdtype(dtype, jnp.floating) else np.dtype(dtype).type
