"""The coordinatewise LSTM optimizer of Andrychowicz et al. (2016), section 2.1."""

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .base import Coordinatewise, Learned, coordinates_at_a_time, drawing_key
from .preprocess import LogSign, Preprocessor, build_preprocessor, describe_preprocessor

FORGET_BIAS = 1.0
"""Added to the forget gate, so that a new cell remembers: the "now-standard" practice that the paper follows."""

STATE_DTYPES = (None, "bfloat16", "float32", "float64")
"""What the state can be kept in."""


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
    ) -> tuple[Float[Array, "units c"], Float[Array, "units c"], Float[Array, "gates c"]]:
        """Return the new output and cell, and the activated gates; `inputs` are the layer's input over its output."""
        scale, shift, forget = _gate_constants(self.units, self.bias.dtype)
        # One tanh for all four gates, sigmoid(z) = (1 + tanh(z/2))/2: a single loop that vectorizes. The halves go into
        # the weights, which are few.
        pre = (scale * self.weight) @ inputs + scale * (self.bias + forget)[:, None]
        gates = scale * jnp.tanh(pre) + shift
        i, g, f, o = jnp.split(gates, 4)
        c = f * c + i * g
        return o * jnp.tanh(c), c, gates


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
            self.head, self.head_bias = _fit_head(self, head_key, initial_step)

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
        output, new = self.step_inputs(self.preprocess(grads.reshape(-1)), state.reshape(state.shape[0], grads.size))
        return (self.output_scale * output).reshape(grads.shape), new.reshape(state.shape)

    def step_inputs(
        self, inputs: Float[Array, "features c"], state: Float[Array, "rows c"]
    ) -> tuple[Float[Array, " c"], Float[Array, "rows c"]]:
        """Take a step on inputs instead of gradients, for rules that make their own; the output is not scaled."""
        top, new, _ = self._run(inputs, state)
        return self.head @ top + self.head_bias, new

    def _run(
        self, x: Float[Array, "features c"], state: Float[Array, "rows c"]
    ) -> tuple[Float[Array, "units c"], Float[Array, "rows c"], tuple[Any, ...]]:
        """Return the top layer's output, the new state, and what a layer's pullback needs, for each layer."""
        rows, saved, start = [], [], 0
        for cell in self.layers:
            h, c = (state[start + k * cell.units :][: cell.units].astype(self.dtype) for k in range(2))
            start += 2 * cell.units
            inputs = jnp.concatenate([x, h])
            x, new, gates = cell(inputs, c)
            saved.append((inputs, c, new, gates))
            rows += [x, new]
        return x, jnp.concatenate(rows).astype(state.dtype), tuple(saved)

    def pullback(
        self, grads: Float[Array, "t c"], state: Float[Array, "rows c"], cotangents: Float[Array, "t c"]
    ) -> "LSTM":
        run = self.run_inputs(jax.vmap(self.preprocess)(grads), state)
        gradient, _ = self.pull_inputs(run, self.output_scale * cotangents)
        return gradient

    def run_inputs(
        self, inputs: Float[Array, "t features c"], state: Float[Array, "rows c"]
    ) -> tuple[Float[Array, "t units c"], Any]:
        """Run on inputs; return the hidden units of the top layer, and what else `pull_inputs` needs."""

        def forward(state: Array, x: Array) -> tuple[Array, Any]:
            top, state, saved = self._run(x, state)
            return state, (top, saved)

        return jax.lax.scan(forward, state, inputs)[1]

    def pull_inputs(
        self, run: tuple[Float[Array, "t units c"], Any], cotangents: Float[Array, "t c"]
    ) -> tuple["LSTM", Float[Array, "t features c"]]:
        """Pull cotangents of the outputs of `run_inputs` back; return those of the weights and of the inputs."""

        def backward(carry: Any, inputs: Any) -> tuple[Any, Array]:
            memory_cotangents, theta = carry
            (top, saved), cotangent = inputs
            from_above = self.head[:, None] * cotangent
            before, theta_cells = [], []
            for cell, (x, c_before, c, gates), (dh, dc), (dweight, dbias) in zip(
                reversed(self.layers), reversed(saved), reversed(memory_cotangents), reversed(theta[0]), strict=True
            ):
                dpre, dc = _cell_pullback(gates, c, c_before, dh + from_above, dc)
                dinputs = cell.weight.T @ dpre
                above = x.shape[0] - cell.units
                from_above, dh = dinputs[:above], dinputs[above:]
                # Transposed, because the product is faster with the wider matrix on the right.
                theta_cells.append((dweight + x @ dpre.T, dbias + jnp.sum(dpre, 1)))
                before.append((dh, dc))
            head = (theta[1] + top @ cotangent, theta[2] + jnp.sum(cotangent))
            return (tuple(reversed(before)), (tuple(reversed(theta_cells)), *head)), from_above

        # The gradient of the weights is summed inside the reverse pass, while its factors are in cache.
        nothing = (
            tuple((jnp.zeros_like(cell.weight.T), jnp.zeros_like(cell.bias)) for cell in self.layers),
            jnp.zeros_like(self.head),
            jnp.zeros_like(self.head_bias),
        )
        # Rounding of the state, if it is kept in fewer bits, counts as the identity.
        last = tuple(
            tuple(jnp.zeros((cell.units, cotangents.shape[1]), self.dtype) for _ in range(2)) for cell in self.layers
        )
        (_, (theta_cells, head, head_bias)), of_inputs = jax.lax.scan(
            backward, (last, nothing), (run, cotangents), reverse=True
        )
        gradient = eqx.tree_at(
            lambda it: (*(part for cell in it.layers for part in (cell.weight, cell.bias)), it.head, it.head_bias),
            eqx.filter(self, eqx.is_inexact_array),
            (*(part for weight, bias in theta_cells for part in (weight.T, bias)), head, head_bias),
        )
        return gradient, of_inputs


@eqx.filter_jit
def _fit_head(optimizer: LSTM, key: PRNGKeyArray, step: float) -> tuple[Array, Array]:
    def hidden_of(grads: Array) -> Array:
        inputs = jax.vmap(optimizer.preprocess)(grads.astype(optimizer.dtype))
        return optimizer.run_inputs(inputs, optimizer.start(grads.shape[1:]))[0]

    return descending_head(hidden_of, key, step)


def _gate_constants(units: int, dtype: Any) -> tuple[Array, Array, Array]:
    """Scale and shift that turn tanh into each gate's activation, `[4 units, 1]`, and the forget bias `[4 units]`."""
    half, one, zero = jnp.full(units, 0.5, dtype), jnp.ones(units, dtype), jnp.zeros(units, dtype)
    scale = jnp.concatenate([half, one, half, half])[:, None]
    shift = jnp.concatenate([half, zero, half, half])[:, None]
    return scale, shift, jnp.concatenate([zero, zero, FORGET_BIAS * one, zero])


def _cell_pullback(
    gates: Float[Array, "gates c"],
    c: Float[Array, "units c"],
    c_before: Float[Array, "units c"],
    dh: Float[Array, "units c"],
    dc: Float[Array, "units c"],
) -> tuple[Float[Array, "gates c"], Float[Array, "units c"]]:
    """Pull the cotangents of a cell's `h` and `c` back to its pre-activations and to the `c` before."""
    i, g, f, o = jnp.split(gates, 4)
    squashed = jnp.tanh(c)
    dc = dc + dh * o * (1 - squashed * squashed)
    dpre = [dc * g * i * (1 - i), dc * i * (1 - g * g), dc * c_before * f * (1 - f), dh * squashed * o * (1 - o)]
    return jnp.concatenate(dpre), dc * f


def descending_head(
    hidden_of: Callable[[Float[Array, "t c"]], Float[Array, "t units c"]], key: PRNGKeyArray, step: float
) -> tuple[Float[Array, " units"], Float[Array, ""]]:
    r"""Fit a head so that an untrained optimizer takes steps of about `-step` times the direction of the gradient.

    A random head drifts: its updates have a sign of their own, so that untrained optimizers ascend as often as not and
    the first meta-gradients come from exploding runs. A zero head stalls: nothing below it gets a gradient. Ridge
    regression of the direction on the hidden units, over random gradients of all magnitudes that change sign now and
    then, gives a head with neither fault.
    """
    steps, coordinates = 16, 512
    size_key, sign_key, flip_key = jax.random.split(key, 3)
    size = jnp.exp(jax.random.uniform(size_key, (coordinates,), minval=-8.0, maxval=3.0))
    sign = jax.random.rademacher(sign_key, (coordinates,), jnp.float32)
    flips = jax.random.bernoulli(flip_key, 0.1, (steps, coordinates))
    direction = sign * jnp.cumprod(jnp.where(flips, -1.0, 1.0), axis=0)

    hidden = hidden_of(direction * size)
    inputs = jnp.moveaxis(hidden, 1, 0).reshape(hidden.shape[1], -1)
    inputs = jnp.concatenate([inputs, jnp.ones_like(inputs[:1])])
    ridge = 1e-2 * inputs.shape[1] * jnp.eye(inputs.shape[0])
    weights = -step * jnp.linalg.solve(inputs @ inputs.T + ridge, inputs @ direction.reshape(-1))
    return weights[:-1].astype(hidden.dtype), weights[-1].astype(hidden.dtype)
