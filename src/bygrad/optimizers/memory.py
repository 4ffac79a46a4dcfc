"""LSTMs with a memory that they share: NTM-BFGS and NTM-L-BFGS, appendix D of Andrychowicz et al. (2016)."""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from .base import drawing_key
from .global_lstm import AveragingLSTM, check_averaged
from .lstm import Cell, descending_head, run_cells
from .preprocess import LogSign, Preprocessor, build_preprocessor, describe_preprocessor


class Memory(eqx.Module):
    r"""A linear map of the coordinates that starts as the identity and grows by products of rank one.

    $$M_0 = I, \qquad M \leftarrow M + \frac{1}{n} \sum_w a_w b_w^\top$$

    The identity is BFGS's own start, and a memory of zeros would read zeros: nothing would teach the heads what to ask.
    The factor $1/n$ makes a reading $r + a \cdot \operatorname{mean}(b r)$ of the same size whatever the number of
    coordinates.
    """

    @abc.abstractmethod
    def start(self, coordinates: int, heads: int, dtype: Any) -> PyTree:
        """Return the memory before anything is written, for so many write heads."""

    @abc.abstractmethod
    def read(self, memory: PyTree, vectors: Float[Array, "r n"]) -> Float[Array, "r n"]:
        """Return $M r$ for each of the vectors $r$."""

    @abc.abstractmethod
    def write(self, memory: PyTree, a: Float[Array, "w n"], b: Float[Array, "w n"]) -> PyTree:
        """Return the memory with a product added for every write head."""


class Matrix(Memory):
    """All of the map, `[n, n]`: for problems of few params."""

    def start(self, coordinates: int, heads: int, dtype: Any) -> Float[Array, "n n"]:
        return jnp.eye(coordinates, dtype=dtype)

    def read(self, memory: Float[Array, "n n"], vectors: Float[Array, "r n"]) -> Float[Array, "r n"]:
        return vectors @ memory.T

    def write(self, memory: Float[Array, "n n"], a: Float[Array, "w n"], b: Float[Array, "w n"]) -> Float[Array, "n n"]:
        return memory + a.T @ b / a.shape[1]


class Window(Memory):
    """The products of the last `steps` steps, older ones forgotten: for problems where the matrix does not fit.

    **Arguments:** `steps`: how many, at least 1; 10 is common for L-BFGS.
    """

    steps: int = eqx.field(static=True, default=10)

    def __check_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}, but a window without steps remembers nothing: give 1 or more.")

    def start(self, coordinates: int, heads: int, dtype: Any) -> Float[Array, "2 pairs n"]:
        return jnp.zeros((2, self.steps * heads, coordinates), dtype)

    def read(self, memory: Float[Array, "2 pairs n"], vectors: Float[Array, "r n"]) -> Float[Array, "r n"]:
        a, b = memory
        return vectors + (vectors @ b.T / vectors.shape[1]) @ a

    def write(
        self, memory: Float[Array, "2 pairs n"], a: Float[Array, "w n"], b: Float[Array, "w n"]
    ) -> Float[Array, "2 pairs n"]:
        return jnp.concatenate([memory[:, len(a) :], jnp.stack([a, b])], axis=1)


MEMORIES: dict[str, type[Memory]] = {"Matrix": Matrix, "Window": Window}
"""The memories, by class name."""


class Remembered(eqx.Module):
    """State of a `MemoryLSTM`: the layers' `[80, n]`, what the heads asked for last `[r, n]`, and the memory."""

    cells: Float[Array, "rows n"]
    query: Float[Array, "r n"]
    memory: PyTree


class MemoryLSTM(AveragingLSTM):
    r"""An LSTM with averaging cells that reads from and writes to a map $M$ of all coordinates.

    $$i_t = M_t r_t, \qquad h_t = \text{LSTM+GAC}(g_t, i_t, h_{t-1}), \qquad
    (u_t, r_{t+1}, a_t, b_t) = \text{heads}(h_t), \quad M_{t+1} = M_t + \tfrac{1}{n} \sum_w a_t^w (b_t^w)^\top$$

    Only the map is shared; the network is the same for every coordinate. With the memory `Matrix()` this is NTM-BFGS,
    with `Window()` NTM-L-BFGS. The structure is that of quasi-Newton methods: one read head, three write heads and two
    averages suffice for BFGS with unit steps. What is asked in one step is answered in the next, so that each of BFGS's
    takes two: one to ask, where the params stay, and one to write and to move. That is for cells which compute exactly
    what they are to; an LSTM's can only come near, and whether they learn to is another question.

    The write heads' $a$ start at zero, so that the untrained memory is the identity.

    **Arguments:** as for `GlobalLSTM`. `read_heads`, `write_heads`: at least 1. `memory`: the kind.

    **Raises:** `ValueError` as `GlobalLSTM` does, and without heads.

    **Example:**

        >>> optimizer = MemoryLSTM(jax.random.key(0), memory=Window(5))
        >>> updates, state = optimizer.update(jnp.ones(3), optimizer.init(jnp.ones(3)))
        >>> updates.shape, state.memory.shape
        ((3,), (2, 15, 3))
    """

    feature_version: ClassVar[int] = 1

    heads: Float[Array, "r_and_2w units"]
    heads_bias: Float[Array, " r_and_2w"]
    memory: Memory
    read_heads: int = eqx.field(static=True)
    write_heads: int = eqx.field(static=True)

    def __init__(
        self,
        key: PRNGKeyArray,
        layers: Sequence[int] = (20, 20),
        preprocess: Preprocessor | None = None,
        output_scale: float = 0.1,
        initial_step: float = 0.1,
        averaged: int | None = None,
        read_heads: int = 1,
        write_heads: int = 3,
        memory: Memory | None = None,
    ):
        if read_heads < 1 or write_heads < 1:
            raise ValueError(
                f"read_heads={read_heads}, write_heads={write_heads}: without heads of both kinds the memory is of no"
                " use. Give at least 1 of each, or use GlobalLSTM."
            )
        self.averaged = check_averaged(averaged, layers)
        self.preprocess = LogSign() if preprocess is None else preprocess
        self.memory = Matrix() if memory is None else memory
        self.output_scale, self.read_heads, self.write_heads = float(output_scale), read_heads, write_heads
        *layer_keys, heads_key, head_key = jax.random.split(key, len(layers) + 2)
        inputs = [self.preprocess.features + read_heads, *layers[:-1]]
        self.layers = tuple(Cell(n, units, k) for n, units, k in zip(inputs, layers, layer_keys, strict=True))
        bound, total = layers[-1] ** -0.5, read_heads + 2 * write_heads
        heads = jax.random.uniform(heads_key, (total, layers[-1]), minval=-bound, maxval=bound)
        self.heads = heads.at[read_heads : read_heads + write_heads].set(0)
        self.heads_bias = jnp.zeros(total)
        self.head, self.head_bias = jnp.zeros(layers[-1]), jnp.zeros(())
        self.head, self.head_bias = descending_head(self._run, self._start, head_key, initial_step)

    @property
    def config(self) -> dict[str, Any]:
        memory = {field.name: getattr(self.memory, field.name) for field in dataclasses.fields(self.memory)}
        return {
            "layers": [cell.units for cell in self.layers],
            "preprocess": describe_preprocessor(self.preprocess),
            "output_scale": self.output_scale,
            "averaged": self.averaged,
            "read_heads": self.read_heads,
            "write_heads": self.write_heads,
            "memory": {"name": type(self.memory).__name__, **memory},
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], key: PRNGKeyArray | None = None) -> "MemoryLSTM":
        options = {name: config[name] for name in ("output_scale", "averaged", "read_heads", "write_heads")}
        preprocess, memory = build_preprocessor(config["preprocess"]), _build_memory(config["memory"])
        return cls(drawing_key(key), config["layers"], preprocess, memory=memory, **options)

    def _start(self, shape: tuple[int, ...]) -> Remembered:
        memory = self.memory.start(shape[0], self.write_heads, self.head.dtype)
        return Remembered(self._zero_cells(shape), jnp.zeros((self.read_heads, *shape), self.head.dtype), memory)

    def _run(self, grads: Float[Array, " n"], state: Remembered) -> tuple[Float[Array, "units n"], Remembered]:
        reading = self.memory.read(state.memory, state.query)
        inputs = jnp.concatenate([self.preprocess(grads), reading])
        top, cells = run_cells(self.layers, inputs, state.cells, self.averaged)
        said = self.heads @ top + self.heads_bias[:, None]
        query, a, b = jnp.split(said, [self.read_heads, self.read_heads + self.write_heads])
        return top, Remembered(cells, query, self.memory.write(state.memory, a, b))


def _build_memory(described: Mapping[str, Any]) -> Memory:
    options = dict(described)
    if (name := options.pop("name")) not in MEMORIES:
        raise ValueError(f"Unknown memory {name!r}: this version of bygrad has {', '.join(MEMORIES)}.")
    return MEMORIES[name](**options)
