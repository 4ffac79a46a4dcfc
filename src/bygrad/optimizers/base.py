"""What an optimizer is: one class for learned and hand-designed ones."""

import abc
from typing import Any, ClassVar, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from .._core.draws import key_of
from .._core.sizes import whole_number
from .._core.types import Params, State

AnyOptimizer = TypeVar("AnyOptimizer", bound="Optimizer")

STEP_BLOCK = 2048
"""Coordinates of a large array that take a step at a time on a CPU. Measured: 1024 to 4096 are alike."""


def coordinates_at_a_time(cpu: int, accelerator: int) -> int:
    """Return how many coordinates to work on at a time on the default device: on a CPU, as many as its cache holds; on
    an accelerator, enough to keep all of it busy, within a bounded part of its memory."""
    return cpu if jax.default_backend() == "cpu" else accelerator


class Optimizer(eqx.Module):
    r"""Maps gradients to updates. Its array leaves are its meta-parameters $\theta$.

    So `jax.vmap` over an optimizer with a batch of learning rates tunes it, and `jax.grad` with respect to it
    meta-trains it. The contract of `update` is optax's: the result is *added* to the params.
    """

    per_coordinate: ClassVar[bool] = False
    """Whether a coordinate's update depends on that coordinate alone: then it does not matter how params are cut."""

    @abc.abstractmethod
    def init(self, params: Params) -> State:
        """Return the state before the first step."""

    @abc.abstractmethod
    def update(
        self,
        grads: Params,
        state: State,
        params: Params | None = None,
        *,
        value: Float[Array, ""] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Params, State]:
        """Return `(updates, state)` for one step.

        **Arguments:** `grads`: the gradient, with the structure of the params. `params`: where it was taken, for the
        rules that look at it. `value`: the loss there, likewise. `key`: for rules that draw.
        """


class Learned(eqx.Module):
    """What an optimizer needs so that it can be written to a file and rebuilt: its configuration as JSON values."""

    feature_version: eqx.AbstractClassVar[int]
    """Version of what the rule computes from gradients: raised when old meta-parameters would mean something else."""

    added_later: ClassVar[frozenset[str]] = frozenset()
    """Settings that files from before them do not have, and that change nothing where they are left out."""

    @property
    @abc.abstractmethod
    def config(self) -> dict[str, Any]:
        """The static configuration, as JSON values."""

    @classmethod
    @abc.abstractmethod
    def from_config(cls, config: dict[str, Any], key: PRNGKeyArray | None = None) -> "Learned":
        """Build an untrained optimizer of this configuration; raises `ValueError` for one that does not exist.

        `key`: draws its weights, `drawing_key` if there is none.
        """

    @classmethod
    def of_file(cls, config: dict[str, Any], key: PRNGKeyArray | None = None) -> "Learned":
        """As `from_config`, but refuse what this class does not have, as a later version's may compute something else,
        and what is missing, as nothing is to be guessed."""
        optimizer = cls.from_config(config, key)
        if unknown := sorted(set(config) - set(optimizer.config)):
            raise ValueError(f"it has no {', '.join(unknown)}")
        if missing := sorted(set(optimizer.config) - set(config) - cls.added_later):
            raise ValueError(f"it lacks {', '.join(missing)}")
        return optimizer


def drawing_key(key: PRNGKeyArray | None) -> PRNGKeyArray:
    """Return a key to draw weights with: any will do where others take their place."""
    return key_of(0) if key is None else key


class Scheduled(eqx.Module):
    """What an optimizer needs that goes by how far a run has come: somebody must say how long it will be.

    Where runs of one meta-training are of several lengths (`Recipe.shortest`), `init` is called on what was declared
    for the run, and `update` on what was declared for the longest: a rule whose schedule is to fit keeps the horizon in
    its state, as `Controller` does.
    """

    @abc.abstractmethod
    def declare(self, horizon: int | Int[Array, ""]) -> "Scheduled":
        """Return the optimizer for runs of `horizon` steps, at least 1; other numbers compile nothing."""


def whole_steps(horizon: int | Int[Array, ""]) -> Int[Array, ""]:
    """Return a horizon as an array; `ValueError` for what is neither that nor an array, which may be traced."""
    array = isinstance(horizon, jax.Array | np.ndarray)
    return jnp.asarray(horizon if array else whole_number(horizon), jnp.int32)


def declare(optimizer: AnyOptimizer, horizon: int | Int[Array, ""]) -> AnyOptimizer:
    """Return the optimizer for runs of `horizon` steps, where it makes a difference."""
    return optimizer.declare(horizon) if isinstance(optimizer, Scheduled) else optimizer  # pyright: ignore


def check_parts(whole: str, *parts: Any) -> None:
    """Refuse what is no optimizer, where one is made of others: a class would fail far from here, in `init`."""
    for part in parts:
        if not isinstance(part, Optimizer):
            raise TypeError(
                f"{whole} was given {part!r}, which is no optimizer of this package. Give bygrad.load(NAME) or"
                " bygrad.Adam(1e-3), say: instances."
            )


def one_loss(value: Any) -> Float[Array, ""]:
    """Return a loss as an array; `ValueError` for several, of which none is the run's."""
    loss = jnp.asarray(value)
    if loss.size != 1:
        raise ValueError(
            f"The value has shape {loss.shape}, but runs are compared by one loss for all params. Give the number whose"
            " gradients these are (the mean over a minibatch, say), or jax.vmap over several runs."
        )
    return loss.reshape(())


class Coordinatewise(Optimizer):
    r"""An optimizer that treats every coordinate alike and alone: shared $\theta$, separate state.

    Such a rule does not care how coordinates are arranged: arrays of any shape `[*c]` are just coordinates, and its
    state has leaves `[..., *c]`, *feature-major*: a matrix product then reads and writes whole rows, which is what
    makes it fast. A batch of problem instances is more coordinates, and needs no `vmap`; a random subset of
    coordinates, or a block that fits the cache, is as good as all of them. `bygrad.unroll` makes use of each.

    A rule writes `dtype`, `block`, `start` and `step`, and gets `init` and `update` over trees. Where params are
    divided over devices, their coordinates' state and updates are divided alike.
    """

    per_coordinate: ClassVar[bool] = True

    @property
    @abc.abstractmethod
    def dtype(self) -> Any:
        """The dtype that the rule computes in."""

    @property
    @abc.abstractmethod
    def block(self) -> int:
        """Coordinates to replay at a time, so that the working set stays in cache."""

    @abc.abstractmethod
    def start(self, shape: tuple[int, ...]) -> State:
        """Return the state before the first step for coordinates of `shape`; leaves `[..., *shape]`."""

    @abc.abstractmethod
    def step(self, grads: Float[Array, "*c"], state: State) -> tuple[Float[Array, "*c"], State]:
        """Return `(updates, state)` for coordinates of any shape, in the rule's dtype."""

    def init(self, params: Params) -> State:
        return jax.tree.map(lambda leaf: _divided_like(leaf, self.start(jnp.shape(leaf))), params)

    def update(
        self,
        grads: Params,
        state: State,
        params: Params | None = None,
        *,
        value: Float[Array, ""] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Params, State]:
        leaves, structure = jax.tree.flatten(grads)
        stepped = [
            self.step_in_blocks(leaf.astype(self.dtype), leaf_state)
            for leaf, leaf_state in zip(leaves, structure.flatten_up_to(state), strict=True)
        ]
        placed = [
            _divided_like(leaf, (update.astype(leaf.dtype), leaf_state))
            for (update, leaf_state), leaf in zip(stepped, leaves, strict=True)
        ]
        updates, states = [update for update, _ in placed], [leaf_state for _, leaf_state in placed]
        return jax.tree.unflatten(structure, updates), jax.tree.unflatten(structure, states)

    def step_in_blocks(self, grads: Float[Array, "*c"], state: State) -> tuple[Float[Array, "*c"], State]:
        """Take a `step` block by block for large arrays: what happens inside stays in cache, and each block of the
        state is written where it was read, so that a donated state needs no second copy.

        Its derivatives are those of `step` for the whole array. A state that is given as its bits (`bits_of`) comes out
        so.
        """
        size, width = grads.size, coordinates_at_a_time(STEP_BLOCK, accelerator=2**18)
        # Blocks would lie across the borders of arrays that are divided over devices: each device would have to gather
        # all of the state.
        if size <= width or _may_be_divided((grads, state)):
            return _step_as_given(self, grads, state)
        return _step_in_blocks(self, grads, state, width)


def _step_as_given(rule: Coordinatewise, grads: Float[Array, "*c"], state: State) -> tuple[Float[Array, "*c"], State]:
    """Take a step; the new state is of bits where the old one was."""
    update, new = rule.step(grads, _values_of(state, rule))
    return update, jax.tree.map(lambda leaf, old: leaf if leaf.dtype == old.dtype else bits_of(leaf), new, state)


@eqx.filter_custom_jvp
def _step_in_blocks(
    rule: Coordinatewise, grads: Float[Array, "*c"], state: State, width: int
) -> tuple[Float[Array, "*c"], State]:
    def columns(start: Any, width: int, tree: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, width, axis=-1), tree)

    def replace(start: Any, tree: PyTree, part: PyTree) -> PyTree:
        return jax.tree.map(
            lambda leaf, new: jax.lax.dynamic_update_slice_in_dim(leaf, new, start, axis=-1), tree, part
        )

    def advance(start: Any, width: int, carry: tuple[Array, State]) -> tuple[Array, State]:
        return replace(start, carry, _step_as_given(rule, *columns(start, width, carry)))

    # The updates take the place of the gradients, block by block.
    size = grads.size
    rows = jax.tree.map(lambda leaf: leaf.reshape(*leaf.shape[: -grads.ndim], size), state)
    carry = grads.reshape(-1), bits_of(rows)
    whole, first = size // width, 0
    if jax.device_count() > 1:
        # Inside `shard_map`, what is the same on all devices meets what is not: after one block, all of it varies.
        carry, first = advance(0, width, carry), 1
    carry = jax.lax.fori_loop(first, whole, lambda i, carry: advance(i * width, width, carry), carry)
    if rest := size % width:
        carry = advance(whole * width, rest, carry)

    def as_given(leaf: Array, old: Array) -> Array:
        values = leaf if leaf.dtype == old.dtype else jax.lax.bitcast_convert_type(leaf, old.dtype)
        return values.reshape(old.shape)

    updates, new = carry
    return updates.reshape(grads.shape), jax.tree.map(as_given, new, state)


@_step_in_blocks.def_jvp
def _step_in_blocks_jvp(primals: tuple, tangents: tuple) -> tuple:
    """Differentiate the step on the whole: through blocks, reverse mode would keep the whole state once for every one
    of them, and the bits of bfloat16 have no derivative."""
    return eqx.filter_jvp(lambda rule, grads, state, _: _step_as_given(rule, grads, state), primals, tangents)


def _may_be_divided(arrays: PyTree) -> bool:
    """Whether arrays may lie on several devices. What is traced may, except inside `shard_map` over all axes."""
    if jax.device_count() == 1 or jax.sharding.get_abstract_mesh().are_all_axes_manual:
        return False
    leaves = jax.tree.leaves(arrays)
    return any(isinstance(leaf, Tracer) or (isinstance(leaf, jax.Array) and len(leaf.devices()) > 1) for leaf in leaves)


def bits_of(state: State) -> State:
    """Take what is bfloat16 in a state as integers of 16 bits: XLA for CPUs would convert a whole array to float32 to
    replace a part of it, and copies it to take it as integers."""
    return jax.tree.map(lambda leaf: _bits(leaf) if leaf.dtype == jnp.bfloat16 else leaf, state)


@jax.custom_jvp
def _bits(leaf: Array) -> Array:
    return jax.lax.bitcast_convert_type(leaf, jnp.uint16)


@_bits.defjvp
def _bits_jvp(primals: tuple, tangents: tuple) -> tuple:
    raise TypeError(
        "A state that is kept as bits has no derivative, so that the gradient through more than one step would be"
        " wrong. Differentiate the optimizer itself, whose state is bfloat16, and not what bygrad.deploy.optax makes of"
        " it, or keep its state in float32 (state_dtype)."
    )


def _values_of(state: State, rule: Coordinatewise) -> State:
    """Undo `bits_of`, where the rule begins with bfloat16."""
    if all(leaf.dtype != jnp.uint16 for leaf in jax.tree.leaves(state)):
        return state

    def value(leaf: Array, like: jax.ShapeDtypeStruct) -> Array:
        bits = like.dtype == jnp.bfloat16 and leaf.dtype == jnp.uint16
        return jax.lax.bitcast_convert_type(leaf, jnp.bfloat16) if bits else leaf

    return jax.tree.map(value, state, jax.eval_shape(lambda: rule.start((1,))))


def _divided_like(param: Any, state: State) -> State:
    """Return `state`, leaves `[..., *c]`, with its coordinates on the devices where those of `param`, `[*c]`, are."""
    if isinstance(param, Tracer):
        if jax.device_count() == 1:
            return state
        # Where they will be is not known yet. Constants depend on nothing, and the compiler would leave them in one
        # place: adding a zero that is computed from the param lets its sharding spread to them.
        zero = jnp.where(jnp.isnan(param), 0, jnp.minimum(jnp.abs(param), 0))

        def like(leaf: Array) -> Array:
            return leaf + jnp.broadcast_to(zero, leaf.shape).astype(leaf.dtype)

        return jax.tree.map(like, state)
    if isinstance(param, jax.Array) and isinstance(param.sharding, NamedSharding) and param.is_fully_addressable:
        mesh, spec = param.sharding.mesh, param.sharding.spec

        def put(leaf: Array) -> Array:
            # Spelled as a compiled step spells it, which would otherwise compile again for its own result.
            spelled_out = any(spec) or AxisType.Explicit in mesh.axis_types
            axes = [None] * (leaf.ndim - param.ndim) if spelled_out else []
            return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(*axes, *spec)))

        return jax.tree.map(put, state)
    return state


def parameter_count(optimizer: PyTree) -> int:
    r"""Count the meta-parameters $\theta$: the entries of all floating-point leaves."""
    return sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(optimizer, eqx.is_inexact_array)))
