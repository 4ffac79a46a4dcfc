"""One optimizer over a batch of instances: by `vmap`, or, where coordinates stand alone, as one matrix of them.

A partition is lifted part by part, so that each part is applied in the way that suits it.
"""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree, Shaped

from .._core import trees
from .._core.types import Params, State
from ..optimizers import Coordinatewise, Optimizer, Partition, Scheduled, declare


class Lifted(eqx.Module):
    """How an optimizer is applied to a batch of params, leaves `[instances, ...]`.

    `see` arranges params or gradients as the optimizer wants them, `apply` adds updates in that arrangement to params.
    """

    optimizer: eqx.AbstractVar[Optimizer]

    @abc.abstractmethod
    def see(self, batch: Params) -> PyTree:
        """Arrange a batch of trees for the optimizer; leaves keep the instances as their first axis."""

    @abc.abstractmethod
    def apply(self, params: Params, updates: PyTree) -> Params:
        """Add updates, arranged as by `see`, to a batch of params."""

    @abc.abstractmethod
    def init(self, params: Params, horizons: Int[Array, " instances"] | None = None) -> State:
        """Return the state before the first step for every instance; `horizons`: how long each will be run."""

    @abc.abstractmethod
    def update(
        self,
        grads: PyTree,
        state: State,
        params: PyTree,
        value: Float[Array, " instances"],
        key: Shaped[PRNGKeyArray, " instances"],
    ) -> tuple[PyTree, State]:
        """Take one step for every instance; `grads` and `params` are arranged as by `see`."""

    @abc.abstractmethod
    def select(self, mask: Bool[Array, " instances"], yes: State, no: State) -> State:
        """Take the states of the instances where `mask` holds from `yes`, the others from `no`."""

    @abc.abstractmethod
    def axes(self, state: State) -> PyTree:
        """Return which axis of every leaf of a state is that of the instances: a tree of numbers, as for `vmap`."""


def lift(optimizer: Optimizer, *, in_blocks: bool = True) -> Lifted:
    """Return the way to apply `optimizer` to a batch of instances that suits its kind.

    `in_blocks=False` is for those who differentiate what it does (`Coordinatewise.step_in_blocks`).

    **Raises:** `ValueError` for a coordinatewise rule whose state has no entry for each coordinate.
    """
    if isinstance(optimizer, Partition):
        return _Parts(optimizer, {name: lift(part, in_blocks=in_blocks) for name, part in optimizer.parts.items()})
    if isinstance(optimizer, Coordinatewise):
        _check_state(optimizer)
        return _Matrix(optimizer, in_blocks)
    return _Mapped(optimizer)


def _check_state(rule: Coordinatewise) -> None:
    """Refuse a state that cannot be cut into coordinates, such as one number for all of them."""
    shape = (2, 3)
    for leaf in jax.tree.leaves(jax.eval_shape(lambda: rule.start(shape))):
        if leaf.shape[-2:] != shape:
            raise ValueError(
                f"{type(rule).__name__}.start({shape}) has a leaf of shape {leaf.shape} in its state, but a"
                " coordinatewise rule is run on parts of the coordinates, so every leaf must end in the shape"
                f" {shape}, with an entry for each. A counter of steps can be jnp.zeros(shape), which the rule counts"
                " up everywhere."
            )


def lift_by_vmap(optimizer: Optimizer) -> Lifted:
    """Return the way that suits every kind: the leaves of the state start with the axis of the instances."""
    return _Mapped(optimizer)


class _Mapped(Lifted):
    """Any optimizer: `vmap` over the instances."""

    optimizer: Optimizer

    def see(self, batch: Params) -> PyTree:
        return batch

    def apply(self, params: Params, updates: PyTree) -> Params:
        return trees.add(params, updates)

    def init(self, params: Params, horizons: Int[Array, " instances"] | None = None) -> State:
        if horizons is None:
            return jax.vmap(self.optimizer.init)(params)
        return jax.vmap(lambda horizon, params: declare(self.optimizer, horizon).init(params))(horizons, params)

    def update(self, grads: PyTree, state: State, params: PyTree, value: Any, key: Any) -> tuple[PyTree, State]:
        def step(grads: PyTree, state: State, params: PyTree, value: Any, key: Any) -> tuple[PyTree, State]:
            return self.optimizer.update(grads, state, params, value=value, key=key)

        return jax.vmap(step)(grads, state, params, value, key)

    def select(self, mask: Bool[Array, " instances"], yes: State, no: State) -> State:
        return trees.select_rows(mask, yes, no)

    def axes(self, state: State) -> PyTree:
        return jax.tree.map(lambda leaf: 0, state)


class _Matrix(Lifted):
    """A coordinatewise optimizer: all coordinates of all instances as one matrix `[instances, coordinates]`."""

    optimizer: Coordinatewise
    in_blocks: bool = eqx.field(static=True)

    def see(self, batch: Params) -> PyTree:
        return trees.to_matrix(batch)

    def apply(self, params: Params, updates: PyTree) -> Params:
        return trees.add(params, trees.from_matrix(updates, params))

    def init(self, params: Params, horizons: Int[Array, " instances"] | None = None) -> State:
        matrix = jax.eval_shape(trees.to_matrix, params)
        if horizons is None or not isinstance(self.optimizer, Scheduled):
            return self.optimizer.init(matrix)
        begun = jax.vmap(lambda horizon: declare(self.optimizer, horizon).start(matrix.shape[1:]))(horizons)
        return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, -2), begun)

    def update(self, grads: PyTree, state: State, params: PyTree, value: Any, key: Any) -> tuple[PyTree, State]:
        step = self.optimizer.step_in_blocks if self.in_blocks else self.optimizer.step
        updates, state = step(grads.astype(self.optimizer.dtype), state)
        return updates.astype(grads.dtype), state

    def select(self, mask: Bool[Array, " instances"], yes: State, no: State) -> State:
        return jax.tree.map(lambda a, b: jnp.where(mask[:, None], a, b), yes, no)

    def axes(self, state: State) -> PyTree:
        return jax.tree.map(lambda leaf: leaf.ndim - 2, state)  # leaves are `[..., instances, coordinates]`


class _Parts(Lifted):
    """A partition: every part on its own. What `see` returns, updates and state are dictionaries by the name of a part,
    of the parts that own any params."""

    optimizer: Partition
    lifted: dict[str, Lifted]

    def see(self, batch: Params) -> PyTree:
        return {name: self.lifted[name].see(owned) for name, owned in self.optimizer.divide(batch).items()}

    def apply(self, params: Params, updates: PyTree) -> Params:
        divided = self.optimizer.divide(params)
        moved = {name: self.lifted[name].apply(owned, updates[name]) for name, owned in divided.items()}
        return self.optimizer.join(moved, params)

    def init(self, params: Params, horizons: Int[Array, " instances"] | None = None) -> State:
        divided = self.optimizer.divide(params)
        return {name: self.lifted[name].init(owned, horizons) for name, owned in divided.items()}

    def update(self, grads: PyTree, state: State, params: PyTree, value: Any, key: Any) -> tuple[PyTree, State]:
        keys = jax.vmap(self.optimizer.part_keys)(key)
        updates, after = {}, {}
        for name, owned in grads.items():
            updates[name], after[name] = self.lifted[name].update(owned, state[name], params[name], value, keys[name])
        return updates, after

    def select(self, mask: Bool[Array, " instances"], yes: State, no: State) -> State:
        return {name: self.lifted[name].select(mask, yes[name], no[name]) for name in yes}

    def axes(self, state: State) -> PyTree:
        return {name: self.lifted[name].axes(part) for name, part in state.items()}
