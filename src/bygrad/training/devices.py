"""Devices and hosts: instances are divided over all of them, and everything else is on each.

One process drives one or several devices; a job has one or several processes (`jax.distributed.initialize`). All run
the same program and take the same decisions, because they decide on the same numbers; process 0, the lead, alone reads,
writes and speaks.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

Tree = TypeVar("Tree", bound=PyTree)

AXIS = "instances"
"""Name of the only axis of the mesh."""
PIECE = 2**26
"""Bytes that one process sends to the others at a time: every device holds them twice meanwhile."""


@dataclasses.dataclass(frozen=True)
class Devices:
    """The devices that share the instances of a meta-step: `mesh`, a row of them, or `None` for a single one.

    With a single one, every method does nothing, and what is compiled is what would be without this class.

    Axes are given as to `jax.vmap`: the number of the axis that is divided, `None` for an array that is whole on every
    device; a tree of them may be a prefix of the tree of arrays.
    """

    mesh: Mesh | None
    idle: int

    @classmethod
    def sharing(cls, instances: int) -> "Devices":
        """Choose devices, of all processes, so that each gets the same number of instances.

        **Raises:** `ValueError` where a process would get none.
        """
        chosen, idle = choose(instances, jax.devices())
        return cls(Mesh(np.array(chosen), (AXIS,), axis_types=(AxisType.Auto,)) if len(chosen) > 1 else None, idle)

    @property
    def count(self) -> int:
        return 1 if self.mesh is None else self.mesh.size

    @property
    def axis(self) -> str | None:
        """Name of the axis that instances are divided along, inside a program that runs on every device."""
        return None if self.mesh is None else AXIS

    @property
    def lead(self) -> bool:
        """Whether this process is the one that reads, writes and speaks."""
        return jax.process_index() == 0

    @property
    def local(self) -> int:
        """How many of the devices this process drives."""
        if self.mesh is None:
            return 1
        return sum(device.process_index == jax.process_index() for device in self.mesh.devices.flat)

    # What follows is for use inside a compiled program.

    def divide(self, function: Callable[..., Any], in_axes: tuple[Any, ...], out_axes: PyTree) -> Callable[..., Any]:
        """Run `function` on every device, on its part of the arguments; it may call `mean` and `join`."""
        if self.mesh is None:
            return function
        mesh = self.mesh

        def divided(*arguments: Any) -> Any:
            arrays, static = eqx.partition(arguments, eqx.is_array)
            static_result: list[Any] = []

            def local(*arrays: Any) -> Any:
                result, rest = eqx.partition(function(*eqx.combine(arrays, static)), eqx.is_array)
                static_result.append(rest)
                return result

            # No check of what varies over devices: it would sum the gradients of whole arguments over the devices by
            # itself, whereas `mean` does that once for all; and it refuses scans that start from constants, which
            # problem families are free to contain.
            specs = self._specs(in_axes), self._specs(out_axes)
            result = jax.shard_map(local, mesh=mesh, in_specs=specs[0], out_specs=specs[1], check_vma=False)(*arrays)
            return eqx.combine(result, static_result[-1])

        return divided

    def mean(self, tree: Tree) -> Tree:
        """Return the mean over the devices, leaf by leaf, in one message: latency is what a small message costs."""
        if self.mesh is None:
            return tree
        flat, restore = jax.flatten_util.ravel_pytree(tree)
        return restore(jax.lax.pmean(flat, AXIS))

    def join(self, array: Array) -> Array:
        """Put the parts of an array, divided along its first axis, together again, on every device."""
        return array if self.mesh is None else jax.lax.all_gather(array, AXIS, tiled=True)

    def constrain(self, tree: Tree, axes: PyTree) -> Tree:
        """Have the arrays of a result divided along their axes."""
        if self.mesh is None:
            return tree
        return jax.lax.with_sharding_constraint(tree, jax.tree.map(self._sharding, self._specs(axes)))

    # What follows is for use outside.

    def place(self, tree: Tree, axes: PyTree = None) -> Tree:
        """Divide arrays that every process has whole along their axes; by default, put them on every device."""
        if self.mesh is None:
            return tree
        arrays, static = eqx.partition(tree, eqx.is_array)
        return eqx.combine(self.load(arrays, axes), static)

    def load(self, arrays: Tree, axes: PyTree = None) -> Tree:
        """`place` a tree of nothing but arrays, of NumPy or JAX. A device never holds more of them than it keeps."""
        if self.mesh is None:
            return jax.tree.map(jnp.asarray, arrays)
        return jax.tree.map(self._put_all, self._specs(axes), arrays)

    def alone(self, tree: Tree) -> Tree:
        """Return arrays of this process alone from those that are whole on every device."""
        if self.mesh is None:
            return tree
        arrays, static = eqx.partition(tree, eqx.is_array)
        copy = functools.partial(_on_numbers, lambda leaf: jnp.asarray(np.asarray(leaf)))
        return eqx.combine(jax.tree.map(copy, arrays), static)

    def fetch(self, arrays: Tree) -> Tree:
        """Return divided arrays whole in the lead, in its main memory (NumPy; keys as their numbers), and `None` in the
        other processes. All must call it together."""
        if self.mesh is None:
            return arrays
        return jax.tree.map(_to_lead, arrays)

    def flag(self, value: bool) -> Array | None:
        """Return a number for each device, 1 or 0, by which one process can tell all in the next meta-step."""
        if self.mesh is None or jax.process_count() == 1:
            return None
        shape, one = (self.count,), np.full(1, value, np.float32)
        return jax.make_array_from_callback(shape, NamedSharding(self.mesh, PartitionSpec(AXIS)), lambda _: one)

    def _specs(self, axes: PyTree) -> PyTree:
        def spec(axis: int | None) -> PartitionSpec:
            return PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, AXIS)

        return jax.tree.map(spec, axes, is_leaf=lambda axis: axis is None)

    def _sharding(self, spec: PartitionSpec) -> NamedSharding:
        assert self.mesh is not None
        return NamedSharding(self.mesh, spec)

    def _put_all(self, spec: PartitionSpec, tree: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: _put(leaf, self._sharding(spec)), tree)


def choose(instances: int, devices: Sequence[Any]) -> tuple[list[Any], int]:
    """Return the most devices among which `instances` can be divided evenly, and how many are left idle.

    They are taken from all processes in turn, and stand in the order of the processes.
    """
    rank: dict[Any, tuple[int, int]] = {}
    for device in sorted(devices, key=lambda it: (it.process_index, it.id)):
        rank[device] = (sum(it.process_index == device.process_index for it in rank), device.process_index)
    processes = len({device.process_index for device in devices})
    count = max(n for n in range(1, min(instances, len(devices)) + 1) if instances % n == 0)
    if count < processes:
        raise ValueError(
            f"{instances} instances can be divided evenly among {count} devices at most, so some of the {processes}"
            f" processes would have nothing to do. Start {count} of them, or choose a multiple of {processes}."
        )
    chosen = sorted(rank, key=lambda it: rank[it])[:count]
    return sorted(chosen, key=lambda it: (it.process_index, it.id)), len(devices) - count


def from_lead(read: Callable[[], bytes]) -> bytes:
    """Return what `read` gives in the lead, in every process: what all must decide on alike, one reads."""
    if jax.process_count() == 1:
        return read()
    data = read() if jax.process_index() == 0 else b""
    length = _broadcast(len(data).to_bytes(8, "little"), 8)
    return _broadcast(data, int.from_bytes(length, "little"))


def least(value: int) -> int:
    """Return the least of the numbers that the processes give; of several, to seven digits."""
    if jax.process_count() == 1:
        return value
    return int(np.min(multihost_utils.process_allgather(np.float32(value))))  # bytes do not fit JAX's 32-bit integers


def meet(where: str) -> None:
    """Wait until every process has come to this place."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


def _put(leaf: Array | np.ndarray, sharding: NamedSharding) -> Array:
    if isinstance(leaf, Array) and leaf.sharding == sharding:
        return leaf

    def put(leaf: Array | np.ndarray) -> Array:
        # Every process gives its devices what belongs there; `device_put` would compare the values of all first.
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return _on_numbers(put, leaf)


def _on_numbers(function: Callable[[Any], Array], leaf: Any) -> Array:
    """Apply `function` to an array; to the numbers of keys."""
    if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return function(leaf)
    return jax.random.wrap_key_data(function(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))


def _to_lead(leaf: Array) -> np.ndarray | None:
    leaf = jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
    lead = jax.process_index() == 0
    if leaf.is_fully_addressable or leaf.is_fully_replicated:
        return np.asarray(leaf) if lead else None
    whole = np.empty(leaf.shape, leaf.dtype) if lead else None
    parts = {shard.device: shard.data for shard in leaf.addressable_shards}
    shape = leaf.sharding.shard_shape(leaf.shape)
    # Part by part, as JAX would gather all of them on every device; in bytes, as its sums lose the sign of zeros.
    for device, index in leaf.sharding.devices_indices_map(leaf.shape).items():
        data = np.asarray(parts[device]).tobytes() if device in parts else b""
        if device.process_index != 0:
            data = _broadcast(data, math.prod(shape) * leaf.dtype.itemsize, device.process_index)
        if whole is not None:
            whole[index] = np.frombuffer(data, leaf.dtype).reshape(shape)
    return whole


def _broadcast(data: bytes, length: int, source: int = 0) -> bytes:
    """Return the `length` bytes that process `source` has in every process."""
    mine, pieces = jax.process_index() == source, []
    for start in range(0, length, PIECE):
        size = min(PIECE, length - start)
        piece = np.frombuffer(data, np.uint8, size, start) if mine else np.zeros(size, np.uint8)
        piece = multihost_utils.broadcast_one_to_all(piece, is_source=mine)
        if not mine:
            pieces.append(piece.tobytes())
    return data if mine else b"".join(pieces)
