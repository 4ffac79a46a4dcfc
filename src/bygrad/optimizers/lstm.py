"""The coordinatewise LSTM optimizer of Andrychowicz et al. (2016), section 2.1."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .._core.definitions import FORGET_BIAS
from .._core.programs import Program
from .._core.types import State
from .base import Coordinatewise, Learned, coordinates_at_a_time, drawing_key
from .preprocess import LogSign, Preprocessor, build_preprocessor, describe_preprocessor

STATE_DTYPES = (None, "bfloat16", "float32", "float64")
"""What the state can be kept in."""

TANH_END = 7.9
TANH_NUMERATOR = (1.1531871e-05, 2.9604764e-03, 1.2934421e-01, 9.9999987e-01)
TANH_DENOMINATOR = (2.4925578e-07, 2.4001248e-04, 2.3854096e-02, 4.6267647e-01, 1.0)
"""tanh x = x N(x^2) / D(x^2) on [-end, end] (`_tanh`)."""


class Cell(eqx.Module):
    """One LSTM layer: `weight` `[4 units, inputs + units]` and `bias` `[4 units]`, gates in the order i, g, f, o."""

    weight: Float[Array, "gates inputs"]
    bias: Float[Array, " gates"]

    def __init__(self, inputs: int, units: int, key: PRNGKeyArray, memory: int | None = None):
        # The range of torch's LSTMCell, with which public reproductions reach the paper's level.
        bound = units**-0.5
        self.weight = jax.random.uniform(key, (4 * units, inputs + units), minval=-bound, maxval=bound)
        self.bias = jnp.zeros(4 * units)
        if memory is not None:
            # A forget gate of z remembers for about exp(z) steps, and an input gate of -z fills the cell in as many.
            z = jnp.linspace(0.0, math.log(memory), units)
            self.bias = jnp.concatenate([-z, jnp.zeros(units), z - FORGET_BIAS, jnp.zeros(units)])

    @property
    def units(self) -> int:
        return self.bias.shape[0] // 4

    def __call__(
        self, inputs: Float[Array, "inputs c"], c: Float[Array, "units c"]
    ) -> tuple[Float[Array, "units c"], Float[Array, "units c"]]:
        """Return the new output and cell; `inputs` are the layer's input over its output."""
        return _advance(self.weight, self.bias, inputs, c)


@jax.custom_jvp
def _advance(
    weight: Float[Array, "gates inputs"],
    bias: Float[Array, " gates"],
    inputs: Float[Array, "inputs c"],
    c: Float[Array, "units c"],
) -> tuple[Float[Array, "units c"], Float[Array, "units c"]]:
    _, _, _, o, new = _gates(weight, bias, inputs, c)
    return o * _tanh(new), new


@_advance.defjvp
def _advance_jvp(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[tuple, tuple]:
    """Differentiate by one factor for each gate, worked out in the forward pass; what JAX makes of the gates by itself
    is slower in reverse."""
    weight, _, inputs, c = primals
    dweight, dbias, dinputs, dc = tangents
    i, g, f, o, new = _gates(*primals)
    squashed = _tanh(new)
    di, dg, df, do = jnp.split(dweight @ inputs + weight @ dinputs + dbias[:, None], 4)
    dnew = f * dc + g * i * (1 - i) * di + i * (1 - g * g) * dg + c * f * (1 - f) * df
    dh = o * (1 - squashed * squashed) * dnew + squashed * o * (1 - o) * do
    return (o * squashed, new), (dh, dnew)


def _gates(weight: Array, bias: Array, inputs: Array, c: Array) -> tuple[Array, Array, Array, Array, Array]:
    """Return the activated gates i, g, f, o, and the new cell."""
    scale, shift, forget = _gate_constants(len(bias) // 4, bias.dtype)
    # One tanh for all four gates, sigmoid(z) = (1 + tanh(z/2))/2: a single loop that vectorizes. The halves go into
    # the weights, which are few.
    pre = (scale * weight) @ inputs + scale * (bias + forget)[:, None]
    i, g, f, o = jnp.split(scale * _tanh(pre) + shift, 4)
    return i, g, f, o, f * c + i * g


def _tanh(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Hyperbolic tangent, in float32 by a rational function with a relative error below 5e-7, and no result above 1.

    `jnp.tanh` takes half as many operations again on a CPU, where the gates cost about as much as the products.
    """
    if x.dtype != jnp.float32:
        return jnp.tanh(x)
    # Minimax in the relative error, up to where float32 is a bit from 1. The highest power of x^2 comes first.
    x = jnp.clip(x, -TANH_END, TANH_END)
    square = x * x
    numerator, denominator = (
        functools.reduce(lambda value, coefficient: value * square + coefficient, coefficients)
        for coefficients in (TANH_NUMERATOR, TANH_DENOMINATOR)
    )
    return x * numerator / denominator


def _gate_constants(units: int, dtype: Any) -> tuple[Array, Array, Array]:
    """Scale and shift that turn tanh into each gate's activation, `[4 units, 1]`, and the forget bias `[4 units]`."""
    half, one, zero = jnp.full(units, 0.5, dtype), jnp.ones(units, dtype), jnp.zeros(units, dtype)
    scale = jnp.concatenate([half, one, half, half])[:, None]
    shift = jnp.concatenate([half, zero, half, half])[:, None]
    return scale, shift, jnp.concatenate([zero, zero, FORGET_BIAS * one, zero])


def run_cells(
    cells: tuple[Cell, ...], x: Float[Array, "features c"], state: Float[Array, "rows c"], averaged: int = 0
) -> tuple[Float[Array, "units c"], Float[Array, "rows c"]]:
    """Take a step with every layer; return what the top layer says and the new state: output and memory of each layer
    in turn. `averaged`: of how many units, the first of each layer, the outputs are averaged over all coordinates."""
    rows, start = [], 0
    for cell in cells:
        h, c = (state[start + k * cell.units :][: cell.units].astype(cell.bias.dtype) for k in range(2))
        start += 2 * cell.units
        x, c = cell(jnp.concatenate([x, h]), c)
        if averaged:
            shared = jnp.mean(x[:averaged], axis=1, keepdims=True)
            x = jnp.concatenate([jnp.broadcast_to(shared, (averaged, x.shape[1])), x[averaged:]])
        rows += [x, c]
    return x, jnp.concatenate(rows).astype(state.dtype)


class LSTM(Coordinatewise, Learned):
    r"""An LSTM for every coordinate of the params, all with the same weights.

    $$u_t = s \cdot (v^\top h_t + b), \qquad h_t = \mathrm{LSTM}(\mathrm{pre}(g_t), h_{t-1})$$

    With the defaults this is the network of the paper: 2 layers of 20 units and logarithmic preprocessing, 5,141
    meta-parameters; 5,061 with `Scaled()`. The state is one array `[80, *c]`: output and cell of each layer in turn;
    one array, so that an update writes it where it stands.

    **Arguments:** `key`: draws the weights. `layers`: units of each layer. `preprocess`: how gradients become inputs.
    `output_scale`: $s$; the paper uses 0.1 for networks and 1 elsewhere. `initial_step`: size, before $s$, of the steps
    that the untrained optimizer takes down the gradient; 0 leaves its last layer at zero. `state_dtype`: what the state
    is kept in between two steps, by default the dtype of the weights; `"bfloat16"` halves the memory. Arithmetic is in
    the dtype of the weights. `memory`: steps that the slowest unit of each layer begins by remembering, the others
    fewer, down to one; by default all are fast, and over long runs hardly a gradient tells them to be slow (Tallec and
    Ollivier, *Can recurrent neural networks warp time?*, 2018).
    """

    feature_version: ClassVar[int] = 1
    added_later = frozenset({"state_dtype"})

    layers: tuple[Cell, ...]
    head: Float[Array, " units"]
    head_bias: Float[Array, ""]
    preprocess: Preprocessor
    output_scale: float = eqx.field(static=True)
    state_dtype: str | None = eqx.field(static=True)

    def __init__(
        self,
        key: PRNGKeyArray,
        layers: Sequence[int] = (20, 20),
        preprocess: Preprocessor | None = None,
        output_scale: float = 0.1,
        initial_step: float = 0.1,
        state_dtype: str | None = None,
        memory: int | None = None,
    ):
        if not layers or min(layers) < 1:
            raise ValueError(f"layers is {tuple(layers)}, but the optimizer needs at least one layer of one unit.")
        if memory is not None and memory < 1:
            raise ValueError(
                f"memory is {memory}, but a unit remembers for one step or more. Give at least 1, or None."
            )
        if state_dtype not in STATE_DTYPES:
            raise ValueError(
                f"state_dtype is {state_dtype!r}, which the state cannot be kept in. Choose one of"
                f" {', '.join(map(repr, STATE_DTYPES))}; None is the dtype of the weights."
            )
        self.state_dtype = state_dtype
        self.preprocess = LogSign() if preprocess is None else preprocess
        self.output_scale = float(output_scale)
        *layer_keys, head_key = jax.random.split(key, len(layers) + 1)
        inputs = [self.preprocess.features, *layers[:-1]]
        sizes = zip(inputs, layers, layer_keys, strict=True)
        self.layers = tuple(Cell(n, units, k, memory) for n, units, k in sizes)
        self.head, self.head_bias = jnp.zeros(layers[-1]), jnp.zeros(())
        if initial_step:
            self.head, self.head_bias = descending_head(self._run, self.start, head_key, initial_step)

    @property
    def config(self) -> dict[str, Any]:
        return {
            "layers": [cell.units for cell in self.layers],
            "preprocess": describe_preprocessor(self.preprocess),
            "output_scale": self.output_scale,
            "state_dtype": self.state_dtype,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], key: PRNGKeyArray | None = None) -> "LSTM":
        preprocess = build_preprocessor(config["preprocess"])
        # Files of before it was an option have no state_dtype.
        state_dtype = config.get("state_dtype")
        return cls(drawing_key(key), config["layers"], preprocess, config["output_scale"], state_dtype=state_dtype)

    def with_state_dtype(self, state_dtype: str | None) -> "LSTM":
        """Return the optimizer with its state kept in another dtype, as `state_dtype` above; for trained ones too."""
        other = self.from_config(self.config | {"state_dtype": state_dtype})
        parts = lambda it: (it.layers, it.head, it.head_bias, it.preprocess)  # noqa: E731
        return eqx.tree_at(parts, other, parts(self))

    @property
    def dtype(self) -> Any:
        return self.head.dtype

    @property
    def block(self) -> int:
        # Measured over 20 steps on a CPU: 128 and 256 coordinates are alike, 512 take half as long again for each.
        # On an accelerator: 20 steps of 2^14 keep about half a gigabyte.
        return coordinates_at_a_time(256, accelerator=2**14)

    def start(self, shape: tuple[int, ...]) -> Float[Array, "rows *c"]:
        return jnp.zeros((2 * sum(cell.units for cell in self.layers), *shape), self.state_dtype or self.dtype)

    def step(
        self, grads: Float[Array, "*c"], state: Float[Array, "rows *c"]
    ) -> tuple[Float[Array, "*c"], Float[Array, "rows *c"]]:
        top, new = self._run(grads.reshape(-1), state.reshape(state.shape[0], grads.size))
        return (self.output_scale * self.read(top)).reshape(grads.shape), new.reshape(state.shape)

    def read(self, top: Float[Array, "units c"]) -> Float[Array, " c"]:
        """Return the output, which is not scaled, from what the top layer says (`run_cells`)."""
        return self.head @ top + self.head_bias

    def _run(
        self, grads: Float[Array, " c"], state: Float[Array, "rows c"]
    ) -> tuple[Float[Array, "units c"], Float[Array, "rows c"]]:
        return run_cells(self.layers, self.preprocess(grads), state)


@functools.partial(Program, runs="once")
def descending_head(
    hidden: Callable[[Float[Array, " c"], State], tuple[Float[Array, "units c"], State]],
    start: Callable[[tuple[int, ...]], State],
    key: PRNGKeyArray,
    step: float,
) -> tuple[Float[Array, " units"], Float[Array, ""]]:
    r"""Fit a head so that an untrained optimizer takes steps of about `-step` times the direction of the gradient.

    A random head drifts: its updates have a sign of their own, so that untrained optimizers ascend as often as not and
    the first meta-gradients come from exploding runs. A zero head stalls: nothing below it gets a gradient. Ridge
    regression of the direction on the hidden units, over random gradients of all magnitudes that change sign now and
    then, gives a head with neither fault.

    **Arguments:** `hidden`: takes a step and returns hidden units and state. `start`: returns the state before it for
    coordinates of a shape.
    """
    steps, coordinates = 16, 512
    size_key, sign_key, flip_key = jax.random.split(key, 3)
    size = jnp.exp(jax.random.uniform(size_key, (coordinates,), minval=-8.0, maxval=3.0))
    sign = jax.random.rademacher(sign_key, (coordinates,), jnp.float32)
    flips = jax.random.bernoulli(flip_key, 0.1, (steps, coordinates))
    direction = sign * jnp.cumprod(jnp.where(flips, -1.0, 1.0), axis=0)

    def look(state: State, grads: Array) -> tuple[State, Array]:
        units, state = hidden(grads.astype(like.dtype), state)
        return state, units

    # Everything is in the dtype of the weights, which is that of the units.
    like, _ = jax.eval_shape(hidden, jax.ShapeDtypeStruct((coordinates,), jnp.float32), start((coordinates,)))
    _, units = jax.lax.scan(look, start((coordinates,)), direction * size)
    inputs = jnp.moveaxis(units, 1, 0).reshape(units.shape[1], -1)
    inputs = jnp.concatenate([inputs, jnp.ones_like(inputs[:1])])
    ridge = 1e-2 * inputs.shape[1] * jnp.eye(inputs.shape[0])
    weights = -step * jnp.linalg.solve(inputs @ inputs.T + ridge, inputs @ direction.reshape(-1))
    return weights[:-1].astype(like.dtype), weights[-1].astype(like.dtype)
