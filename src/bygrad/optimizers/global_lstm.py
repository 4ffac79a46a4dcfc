"""The LSTM whose coordinates communicate: global averaging cells, appendix D of Andrychowicz et al. (2016)."""

import abc
from collections.abc import Sequence
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .._core import trees
from .._core.types import Params, State
from .base import Learned, Optimizer, drawing_key
from .lstm import Cell, descending_head, run_cells
from .preprocess import LogSign, Preprocessor, build_preprocessor, describe_preprocessor


class AveragingLSTM(Optimizer, Learned):
    """An LSTM with averaging cells and one head: updates of all coordinates at once, as one vector."""

    layers: tuple[Cell, ...]
    head: Float[Array, " units"]
    head_bias: Float[Array, ""]
    preprocess: Preprocessor
    output_scale: float = eqx.field(static=True)
    averaged: int = eqx.field(static=True)

    @abc.abstractmethod
    def _start(self, shape: tuple[int, ...]) -> State:
        """Return the state before the first step, for coordinates of this shape, `(n,)`."""

    @abc.abstractmethod
    def _run(self, grads: Float[Array, " n"], state: State) -> tuple[Float[Array, "units n"], State]:
        """Return what the top layer says, and the new state."""

    def init(self, params: Params) -> State:
        return self._start((sum(jnp.size(leaf) for leaf in jax.tree.leaves(params)),))

    def update(
        self,
        grads: Params,
        state: State,
        params: Params | None = None,
        *,
        value: Float[Array, ""] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Params, State]:
        if not jax.tree.leaves(grads):
            return grads, state
        top, state = self._run(trees.to_vector(grads, self.head.dtype), state)
        return trees.from_vector(self.output_scale * (self.head @ top + self.head_bias), grads), state

    def _zero_cells(self, shape: tuple[int, ...]) -> Float[Array, "rows n"]:
        return jnp.zeros((2 * sum(cell.units for cell in self.layers), *shape), self.head.dtype)


class GlobalLSTM(AveragingLSTM):
    r"""LSTM+GAC: in each layer, the outputs of the first $G$ cells are averaged over all coordinates of the params.

    $$h_t^{(k)} \leftarrow \frac{1}{n} \sum_{j=1}^n h_t^{(j)} \quad \text{for the first } G \text{ units}$$

    What is averaged is what the next layer, the head and the next step see; the cells' memories stay a coordinate's
    own. So coordinates can agree on sizes: on the norm of the gradient, say, and clip by it. All else is `LSTM`,
    but for memory: no coordinate goes on before all have been through a layer, so an update takes about 1 kB a param
    beside the state, and an LSTM, which goes through them in blocks, 5 bytes.

    **Arguments:** as for `LSTM`. `averaged`: $G$; 5 of 20, as we remember an earlier version of the paper to say.

    **Raises:** `ValueError` for layers without units, and for more averaged units than the smallest layer has.

    **Example:**

        >>> optimizer = GlobalLSTM(jax.random.key(0))
        >>> updates, state = optimizer.update(jnp.ones(3), optimizer.init(jnp.ones(3)))
        >>> updates.shape, state.shape
        ((3,), (80, 3))
    """

    feature_version: ClassVar[int] = 1

    def __init__(
        self,
        key: PRNGKeyArray,
        layers: Sequence[int] = (20, 20),
        preprocess: Preprocessor | None = None,
        output_scale: float = 0.1,
        initial_step: float = 0.1,
        averaged: int | None = None,
    ):
        self.averaged = check_averaged(averaged, layers)
        self.preprocess = LogSign() if preprocess is None else preprocess
        self.output_scale = float(output_scale)
        *layer_keys, head_key = jax.random.split(key, len(layers) + 1)
        inputs = [self.preprocess.features, *layers[:-1]]
        self.layers = tuple(Cell(n, units, k) for n, units, k in zip(inputs, layers, layer_keys, strict=True))
        self.head, self.head_bias = jnp.zeros(layers[-1]), jnp.zeros(())
        self.head, self.head_bias = descending_head(self._run, self._start, head_key, initial_step)

    @property
    def config(self) -> dict[str, Any]:
        return {
            "layers": [cell.units for cell in self.layers],
            "preprocess": describe_preprocessor(self.preprocess),
            "output_scale": self.output_scale,
            "averaged": self.averaged,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], key: PRNGKeyArray | None = None) -> "GlobalLSTM":
        preprocess = build_preprocessor(config["preprocess"])
        return cls(drawing_key(key), config["layers"], preprocess, config["output_scale"], averaged=config["averaged"])

    def _start(self, shape: tuple[int, ...]) -> Float[Array, "rows n"]:
        return self._zero_cells(shape)

    def _run(
        self, grads: Float[Array, " n"], state: Float[Array, "rows n"]
    ) -> tuple[Float[Array, "units n"], Float[Array, "rows n"]]:
        return run_cells(self.layers, self.preprocess(grads), state, self.averaged)


def check_averaged(averaged: int | None, layers: Sequence[int]) -> int:
    """Return the number of averaged units, by default a quarter of the smallest layer and at least one."""
    if not layers or min(layers) < 1:
        raise ValueError(f"layers is {tuple(layers)}, but the optimizer needs at least one layer of one unit.")
    averaged = max(1, min(layers) // 4) if averaged is None else averaged
    if not 0 <= averaged <= min(layers):
        raise ValueError(
            f"averaged is {averaged}, but the layers have {', '.join(map(str, layers))} units, and the same number is"
            f" averaged in each. Give 0 to {min(layers)}; 0 is an LSTM without communication."
        )
    return averaged
