"""What the small per-parameter networks see of an array of params, and the networks: shared by the rules that use them.

The arithmetic is bound by memory, not by multiplications, so no matrix [params, features] is made for a large array:
the network is unrolled over its units, and everything from the features to the update is one loop over the params. Of
networks with layers of more than `UNROLLED_UNITS` units the matrices are made: 8 bytes a param and unit.
Features that are constant along an axis stay at that size: their share of a unit is summed once a row or column.
"""

import abc
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .._core.trees import widened
from .._core.types import Params, State
from .base import Learned, Optimizer

MEAN_DECAYS = (0.9, 0.99, 0.999)
"""Of the running means of the gradient, and of the factored second moments."""

SQUARE_DECAY = 0.999
"""Of the running mean of the squared gradient."""

TIMESCALES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 3e4, 1e5)
"""Of the features of time, in steps."""

UNROLLED = 2**16
"""Size from which on a network is unrolled. Below, all is in cache anyway, and matrix products compile sooner and are
much faster to differentiate."""

UNROLLED_UNITS = 8
"""Widest layer that is unrolled. Wider ones are bound by arithmetic after all, and take minutes to compile unrolled."""


ADAFACTOR_FEATURES = 28
"""The number of `adafactor_features`."""


class Moments(eqx.Module):
    """What is remembered of one array `[*c]`: 4 floats a param, and 3 a row and a column.

    `means`: running means of the gradient, `square`: of its square. `rows`, `columns`: running means of the square over
    the longest and the second longest axis, which keep a size of 1. Arrays of rank below 2 have no such axes: `rows`
    are running means of the square itself, `columns` are empty.
    """

    means: tuple[Float[Array, "*c"], ...]
    square: Float[Array, "*c"]
    rows: tuple[Float[Array, "..."], ...]
    columns: tuple[Float[Array, "..."], ...]

    @classmethod
    def zero(cls, param: Any) -> "Moments":
        """Return the moments before the first gradient, in float32 or more."""
        shape, dtype = jnp.shape(param), jnp.promote_types(param.dtype, jnp.float32)
        zeros = lambda shape: tuple(jnp.zeros(shape, dtype) for _ in MEAN_DECAYS)  # noqa: E731
        if (axes := factored_axes(shape)) is None:
            return cls(zeros(shape), jnp.zeros(shape, dtype), zeros(shape), ())
        rows, columns = (tuple(1 if axis == gone else n for axis, n in enumerate(shape)) for gone in axes)
        return cls(zeros(shape), jnp.zeros(shape, dtype), zeros(rows), zeros(columns))

    def take(
        self,
        grad: Float[Array, "*c"],
        mean_decays: Sequence[Any] | Array = MEAN_DECAYS,
        square_decay: Any = SQUARE_DECAY,
        factored_decays: Sequence[Any] | Array = MEAN_DECAYS,
    ) -> "Moments":
        """Return the moments after one more gradient. They are not corrected for their start at zero."""

        def average(old: tuple[Array, ...], new: Array, decays: Any) -> tuple[Array, ...]:
            return tuple(decays[i] * value + (1 - decays[i]) * new for i, value in enumerate(old))

        # A gradient above 1.8e19 has no finite square in float32, and what has taken an infinite one is lost for good.
        squared = jnp.minimum(jnp.square(grad), 1e30)
        seen = squared + 1e-30
        axes = factored_axes(grad.shape)
        by_row, by_column = (seen, seen) if axes is None else (_mean(seen, axis) for axis in axes)
        return Moments(
            average(self.means, grad, mean_decays),
            square_decay * self.square + (1 - square_decay) * squared,
            average(self.rows, by_row, factored_decays),
            average(self.columns, by_column, factored_decays),
        )


class RuleState(eqx.Module):
    """State of a per-parameter rule: steps taken, and the moments of every array, in the order of the tree's leaves."""

    step: Int[Array, ""]
    moments: tuple[Moments, ...]

    @classmethod
    def zero(cls, params: Params) -> "RuleState":
        """Return the state before the first step."""
        return cls(jnp.zeros((), jnp.int32), tuple(Moments.zero(leaf) for leaf in jax.tree.leaves(params)))


class ArrayRule(Optimizer, Learned):
    """A rule that sees one array at a time: its gradient, its params, their moments and the time."""

    @abc.abstractmethod
    def step_of(
        self, grad: Float[Array, "*c"], param: Float[Array, "*c"], moments: Moments, step: Int[Array, ""]
    ) -> tuple[Float[Array, "*c"], Moments]:
        """Return the update of an array, in float32 or more, and its moments with this gradient."""

    def init(self, params: Params) -> RuleState:
        return RuleState.zero(params)

    def update(
        self,
        grads: Params,
        state: State,
        params: Params | None = None,
        *,
        value: Float[Array, ""] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Params, RuleState]:
        """As `Optimizer.update`. **Raises:** `ValueError` without params, which these rules look at."""
        if params is None:
            raise ValueError(
                "update() got no params, but this rule has the values of the params among its inputs: without them it"
                " would be another rule. Call update(grads, state, params)."
            )
        leaves, structure = jax.tree.flatten(grads)
        updates, moments = [], []
        for grad, param, before in zip(leaves, structure.flatten_up_to(params), state.moments, strict=True):
            update, after = self.step_of(widened(grad), widened(param), before, state.step)
            updates.append(update.astype(grad.dtype))
            moments.append(after)
        return jax.tree.unflatten(structure, updates), RuleState(state.step + 1, tuple(moments))


class Decays(eqx.Module):
    r"""Learned changes $\delta$ of the decays, zero at first: $\beta = \max(0, 1 - (1 - \beta_0) e^{10 \delta})$."""

    means: Float[Array, " means"]
    square: Float[Array, ""]
    factored: Float[Array, " means"]

    def __init__(self) -> None:
        self.means, self.factored = jnp.zeros(len(MEAN_DECAYS)), jnp.zeros(len(MEAN_DECAYS))
        self.square = jnp.zeros(())

    def take(self, moments: Moments, grad: Float[Array, "*c"]) -> Moments:
        """`Moments.take` with these decays."""

        def decays(start: Any, change: Array) -> Array:
            # Published changes go up to 0.19, and at 0.23 the shortest memory would be below 0: means of squares would
            # be too, and their roots NaN.
            decay = 1 - (1 - jnp.asarray(start, change.dtype)) * jnp.exp(10 * change)
            return jnp.maximum(decay, 0).astype(grad.dtype)

        return moments.take(
            grad,
            decays(MEAN_DECAYS, self.means),
            decays(SQUARE_DECAY, self.square),
            decays(MEAN_DECAYS, self.factored),
        )


def factored_axes(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """Return the longest axis and the second longest, or None below rank 2."""
    if len(shape) < 2:
        return None
    order = np.argsort(shape, kind="stable")
    return int(order[-1]), int(order[-2])


def adafactor_features(
    grad: Float[Array, "*c"], param: Float[Array, "*c"], moments: Moments
) -> list[Float[Array, "..."]]:
    """Return the 28 inputs of the Adafactor-featured rules, in the order of their definition, each `[*c]` or of size 1
    along an axis along which it is constant:

    gradient, param, 3 means, square, 3 means / root of the square, 1 / root of the square, 3 gradients / factored root,
    3 rows, 3 columns, 3 + 3 of their inverse roots, 3 means / factored root.

    **Source:** Metz et al., *Practical tradeoffs between memory, compute, and performance in learned optimizers*
    (2022), and the class `AdafacMLPLOpt` of google/learned_optimization.
    """
    inverse = jax.lax.rsqrt(moments.square + 1e-6)
    axes = factored_axes(grad.shape)
    if axes is None:
        columns = moments.rows
        of_grad = [_inverse_root(v + 1e-9) for v in moments.rows]
        of_means = [jax.lax.rsqrt(v + 1e-6) for v in moments.rows]
    else:
        columns = moments.columns
        of_grad = of_means = [
            _inverse_root(row / (_mean(row, axes[1]) + 1e-9)) * _inverse_root(column)
            for row, column in zip(moments.rows, columns, strict=True)
        ]
    return [
        grad,
        param,
        *moments.means,
        moments.square,
        *(mean * inverse for mean in moments.means),
        inverse,
        *(grad * factor for factor in of_grad),
        *moments.rows,
        *columns,
        *(jax.lax.rsqrt(row + 1e-8) for row in moments.rows),
        *(jax.lax.rsqrt(column + 1e-8) for column in columns),
        *(mean * factor for mean, factor in zip(moments.means, of_means, strict=True)),
    ]


def time_features(step: Int[Array, ""], dtype: Any) -> Float[Array, " timescales"]:
    r"""Return $\tanh(t / \tau - 1)$ for every timescale $\tau$."""
    return jnp.tanh(step.astype(dtype) / jnp.asarray(TIMESCALES, dtype) - 1)


class Dense(eqx.Module):
    """One layer of a perceptron: `weight` `[units, inputs]` and `bias` `[units]`."""

    weight: Float[Array, "units inputs"]
    bias: Float[Array, " units"]

    def __init__(self, inputs: int, units: int, key: PRNGKeyArray):
        self.weight = jax.random.truncated_normal(key, -2.0, 2.0, (units, inputs)) * inputs**-0.5
        self.bias = jnp.zeros(units)


def dense_layers(inputs: int, hidden: Sequence[int], outputs: int, key: PRNGKeyArray) -> tuple[Dense, ...]:
    """Draw a perceptron whose last layer is zero.

    **Raises:** `ValueError` for hidden layers of fewer than two units, which `wire` needs.
    """
    if not hidden or min(hidden) < 2:
        raise ValueError(
            f"hidden is {tuple(hidden)}, but the network needs at least one hidden layer, and each two units or more:"
            " one for each sign of a signal. Give two numbers of units, such as (4, 4)."
        )
    sizes = [inputs, *hidden, outputs]
    keys = jax.random.split(key, len(sizes) - 1)
    *below, head = (Dense(n, units, k) for n, units, k in zip(sizes, sizes[1:], keys, strict=False))
    return (*below, eqx.tree_at(lambda it: it.weight, head, jnp.zeros_like(head.weight)))


def wire(layers: tuple[Dense, ...], feature: int) -> tuple[Dense, ...]:
    """Lead one input through to the first output: two units of each layer carry its positive and its negative part.

    So a network without a nominal term starts as a rule that works. The other units keep what was drawn for them, but
    nothing behind them listens yet.
    """
    first, *rest = layers
    pair = jnp.array([1.0, -1.0])
    both = jnp.zeros((2, first.weight.shape[1])).at[:, feature].set(pair)
    wired = [eqx.tree_at(lambda it: it.weight, first, first.weight.at[:2].set(both))]
    for layer in rest:
        units = 2 if layer is not rest[-1] else 1
        through = jnp.zeros((units, layer.weight.shape[1])).at[:, :2].set(pair[:units, None] * pair)
        wired.append(eqx.tree_at(lambda it: it.weight, layer, layer.weight.at[:units].set(through)))
    return tuple(wired)


def perceptron(
    layers: tuple[Dense, ...],
    features_of: Any,
    inputs: Any,
    constants: Float[Array, " constants"] | None = None,
    *,
    epsilon: float,
) -> list[Float[Array, "..."]]:
    r"""Run a ReLU network on the features of every coordinate of an array, each divided by its root mean square.

    **Arguments:** `features_of`, `inputs`: the features are `features_of(*inputs)`, given apart because a large array
    has them computed twice, once for their squares and once for the network: to store them would cost more.
    `constants`: further inputs, the same for all coordinates and not normalized. `epsilon`: added to the mean square.
    Returns the outputs, each of the shape of the first feature.
    """
    features = features_of(*inputs)
    shape = features[0].shape
    first, *rest = layers
    count = len(features)
    weight, bias = first.weight[:, :count], first.bias
    if constants is not None:
        bias = bias + first.weight[:, count:] @ constants
    # What is constant along an axis is normalized and summed at its own size.
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, x in enumerate(features):
        groups.setdefault(x.shape, []).append(i)
    if int(np.prod(shape)) >= UNROLLED and max(len(layer.bias) for layer in layers) <= UNROLLED_UNITS:
        scales = jnp.stack([jax.lax.rsqrt(mean_square(x) + epsilon) for x in features])
        # Without the barrier the two uses would share the features, and all of them would be written to memory.
        inputs, scales = jax.lax.optimization_barrier((inputs, scales))
        return _unrolled(weight * scales, bias, rest, features_of(*inputs), groups)

    def normalized(members: list[int]) -> Array:
        stacked = jnp.stack([features[i] for i in members])
        axes = tuple(range(1, stacked.ndim))
        squares = jnp.sum(jnp.square(stacked), axes, keepdims=True) / max(stacked[0].size, 1)
        return stacked * jax.lax.rsqrt(squares + epsilon)

    column = lambda bias: bias.reshape(-1, *[1] * len(shape))  # noqa: E731
    parts = [jnp.tensordot(weight[:, np.array(members)], normalized(members), 1) for members in groups.values()]
    hidden = sum(parts[1:], start=parts[0]) + column(bias)
    for layer in rest:
        hidden = jnp.tensordot(layer.weight, jax.nn.relu(hidden), 1) + column(layer.bias)
    return [jnp.broadcast_to(output, shape) for output in hidden]


def _unrolled(
    weight: Float[Array, "units features"],
    bias: Float[Array, " units"],
    rest: Sequence[Dense],
    features: Sequence[Float[Array, "..."]],
    groups: dict[tuple[int, ...], list[int]],
) -> list[Float[Array, "..."]]:
    """Write the network out unit by unit, so that it becomes one loop over the params."""
    shape = features[0].shape
    parts: list[Any] = []
    for size, members in groups.items():
        if size == shape:
            parts.append([sum(weight[k, i] * features[i] for i in members) for k in range(len(bias))])
        else:
            parts.append(jnp.tensordot(weight[:, np.array(members)], jnp.stack([features[i] for i in members]), 1))
    hidden = [sum(part[k] for part in parts) + bias[k] for k in range(len(bias))]
    for layer in rest:
        seen = [jax.nn.relu(unit) for unit in hidden]
        hidden = [
            sum(layer.weight[k, i] * x for i, x in enumerate(seen)) + layer.bias[k] for k in range(len(layer.bias))
        ]
    return hidden


def mean_square(x: Array) -> Float[Array, ""]:
    """Return the mean square, zero for an empty array: a NaN from there would spread to the meta-gradient."""
    return jnp.sum(jnp.square(x)) / max(x.size, 1)


def _mean(array: Array, axis: int) -> Array:
    """Mean over an axis, which keeps a size of 1; zero over an empty one."""
    return jnp.sum(array, axis=axis, keepdims=True) / max(array.shape[axis], 1)


def _inverse_root(x: Array) -> Array:
    return jax.lax.rsqrt(jnp.maximum(x, 1e-9))
