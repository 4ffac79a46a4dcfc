"""RNNprop: an LSTM that sees gradients as Adam does and takes bounded steps (Lv et al., 2017)."""

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .base import Coordinatewise, Learned, drawing_key
from .lstm import LSTM, descending_head, run_cells
from .preprocess import Given


class RNNpropState(NamedTuple):
    """State: the network's, and running means of the gradient, of its square, and of one (which corrects the start)."""

    network: Float[Array, "rows *c"]
    mean: Float[Array, "*c"]
    square: Float[Array, "*c"]
    weight: Float[Array, "*c"]


class RNNprop(Coordinatewise, Learned):
    r"""An LSTM for every coordinate that sees the gradient in units of its own size, and whose steps are bounded.

    $$u_t = -s \tanh(v^\top h_t + b), \qquad h_t = \mathrm{LSTM}\left(\mathrm{elu}\left(W \left[
    \frac{\hat m_t}{\sqrt{\hat v_t}}, \frac{g_t}{\sqrt{\hat v_t}}\right] + w\right), h_{t-1}\right)$$

    with Adam's corrected running means, both with $\beta = 0.95$. Inputs that do not know the scale of the gradient and
    steps that cannot exceed $s$ are what a plain LSTM lacks when the activation function or the horizon changes. With
    the defaults 6,641 meta-parameters; 332 bytes of state a coordinate.

    **Arguments:** `key`: draws the weights. `layers`: units of each layer of the LSTM; the layer before it has as many
    as the first. `output_scale`: $s$. `initial_step`: size, before $s$, of the steps that the untrained optimizer takes
    down the gradient. `decay`: $\beta$.

    **Example:**

        >>> import jax, jax.numpy as jnp
        >>> from bygrad.optimizers import RNNprop
        >>> optimizer = RNNprop(jax.random.key(0))
        >>> updates, _ = optimizer.update(jnp.array([1e6]), optimizer.init(jnp.zeros(1)))
        >>> bool(-0.1 < updates[0] < 0)
        True

    **Source:** Lv, Jiang and Li, *Learning gradient descent: better generalization and longer horizons* (ICML 2017),
    section 4.
    """

    feature_version: ClassVar[int] = 1

    weight: Float[Array, "units inputs"]
    bias: Float[Array, " units"]
    network: LSTM
    output_scale: float = eqx.field(static=True)
    decay: float = eqx.field(static=True)

    def __init__(
        self,
        key: PRNGKeyArray,
        layers: Sequence[int] = (20, 20),
        output_scale: float = 0.1,
        initial_step: float = 0.1,
        decay: float = 0.95,
    ):
        if not 0 <= decay < 1:
            raise ValueError(
                f"decay is {decay}, but it is the share of the running means that a step keeps: below 0 it is none, and"
                " at 1 no gradient would ever count. Give a number from 0 to below 1, such as 0.95."
            )
        if not layers:
            raise ValueError("layers is empty, but the optimizer needs at least one layer. Give (20, 20), say.")
        weight_key, network_key, head_key = jax.random.split(key, 3)
        self.weight = jax.random.uniform(weight_key, (layers[0], 2), minval=-1.0, maxval=1.0) * 2**-0.5
        self.bias = jnp.zeros(layers[0])
        self.output_scale, self.decay = float(output_scale), float(decay)
        self.network = LSTM(network_key, layers, Given(layers[0]), output_scale=1.0, initial_step=0.0)
        # The head stands before -tanh, so it points up the gradient.
        head, head_bias = descending_head(self._run, self.start, head_key, -initial_step)
        self.network = eqx.tree_at(lambda it: (it.head, it.head_bias), self.network, (head, head_bias))

    @property
    def config(self) -> dict[str, Any]:
        layers = [cell.units for cell in self.network.layers]
        return {"layers": layers, "output_scale": self.output_scale, "decay": self.decay}

    @classmethod
    def from_config(cls, config: dict[str, Any], key: PRNGKeyArray | None = None) -> "RNNprop":
        return cls(drawing_key(key), **config)

    @property
    def dtype(self) -> Any:
        return self.bias.dtype

    @property
    def block(self) -> int:
        return self.network.block

    def start(self, shape: tuple[int, ...]) -> RNNpropState:
        mean, square, weight = (jnp.zeros(shape, self.dtype) for _ in range(3))
        return RNNpropState(self.network.start(shape), mean, square, weight)

    def step(self, grads: Float[Array, "*c"], state: RNNpropState) -> tuple[Float[Array, "*c"], RNNpropState]:
        flat = jax.tree.map(lambda leaf: leaf.reshape(*leaf.shape[: leaf.ndim - grads.ndim], grads.size), state)
        top, new = self._run(grads.reshape(-1), flat)
        update = -self.output_scale * jnp.tanh(self.network.read(top))
        new = jax.tree.map(lambda leaf, old: leaf.reshape(old.shape), new, state)
        return update.reshape(grads.shape), new

    def _run(self, grads: Float[Array, " c"], state: RNNpropState) -> tuple[Float[Array, "units c"], RNNpropState]:
        now = (grads, jnp.square(grads), jnp.ones_like(grads))
        moments = [self.decay * old + (1 - self.decay) * x for old, x in zip(state[1:], now, strict=True)]
        mean, square, weight = moments
        # The constant under the root serves the derivative at zero. Squares of gradients below 1e-19 are zero in
        # float32: the constant behind it then makes the inputs vanish.
        root = jnp.sqrt(square / weight + 1e-30) + 1e-8
        seen = jnp.stack([mean / weight, grads]) / root
        inputs = jax.nn.elu(self.weight @ seen + self.bias[:, None])
        top, network = run_cells(self.network.layers, inputs, state.network)
        return top, RNNpropState(network, *moments)
