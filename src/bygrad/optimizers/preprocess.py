"""How a coordinatewise optimizer looks at a gradient: inputs `[features, *c]` from gradients `[*c]`."""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float


class Preprocessor(eqx.Module):
    """Turns gradients `[*c]` into inputs `[features, *c]`."""

    features: eqx.AbstractClassVar[int]

    @abc.abstractmethod
    def __call__(self, grads: Float[Array, "*c"]) -> Float[Array, "features *c"]:
        """Return the inputs of the rule."""


class LogSign(Preprocessor):
    r"""Logarithm and direction of a gradient, appendix A of Andrychowicz et al. (2016).

    $$g \mapsto \begin{cases} (\log|g| / p,\ \operatorname{sgn} g) & |g| \ge e^{-p} \\
    (-1,\ e^p g) & \text{else}\end{cases}$$

    so that gradients over many orders of magnitude use the same range, and vanishing ones fade out smoothly.

    **Arguments:** `p`: how small a gradient still counts, in nepers; the paper uses 10.
    """

    features: ClassVar[int] = 2
    p: float = eqx.field(static=True, default=10.0)

    def __check_init__(self) -> None:
        if not 0 < self.p <= 80:
            raise ValueError(
                f"p is {self.p}, but it must be above 0, or the range of magnitudes would be empty, and at most 80, or"
                " e^p overflows in float32 and a zero gradient becomes NaN. Give a positive number, such as 10."
            )

    def __call__(self, grads: Float[Array, "*c"]) -> Float[Array, "features *c"]:
        size = jnp.abs(grads)
        # The logarithm is taken of a number that is never zero: a `where` after it would leave an infinite derivative.
        log = jnp.log(jnp.maximum(size, jnp.exp(-self.p).astype(size.dtype))) / self.p
        direction = jnp.clip(grads * jnp.exp(self.p).astype(size.dtype), -1.0, 1.0)
        return jnp.stack([log, direction])


class Scaled(Preprocessor):
    """The gradient itself, times a constant: the paper's choice for the quadratics, with a constant of 1."""

    features: ClassVar[int] = 1
    scale: float = eqx.field(static=True, default=1.0)

    def __call__(self, grads: Float[Array, "*c"]) -> Float[Array, "features *c"]:
        return (self.scale * grads)[None]


class Given(Preprocessor):
    """Nothing: for an optimizer that makes the inputs of its network itself, this only tells how many there are."""

    features: int = eqx.field(static=True)  # pyright: ignore[reportIncompatibleVariableOverride]

    def __call__(self, grads: Float[Array, "*c"]) -> Float[Array, "features *c"]:
        raise ValueError(
            f"A network with {self.features} inputs of its own got gradients, and has no way to look at them. Use"
            " `run_cells`, or another preprocessor."
        )


PREPROCESSORS: dict[str, type[Preprocessor]] = {"LogSign": LogSign, "Scaled": Scaled}
"""The preprocessors, by class name."""


def describe_preprocessor(preprocess: Preprocessor) -> dict[str, Any]:
    """Write a preprocessor as JSON values."""
    fields = {field.name: getattr(preprocess, field.name) for field in dataclasses.fields(preprocess)}
    return {"name": type(preprocess).__name__, **fields}


def build_preprocessor(described: Mapping[str, Any]) -> Preprocessor:
    """Undo `describe_preprocessor`; raises `ValueError` for one that this version does not have."""
    options = dict(described)
    if (name := options.pop("name")) not in PREPROCESSORS:
        raise ValueError(f"Unknown preprocessor {name!r}: this version of bygrad has {', '.join(PREPROCESSORS)}.")
    return PREPROCESSORS[name](**options)
