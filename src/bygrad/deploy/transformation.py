"""Optimizers as optax transformations."""

import functools
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.tree_util import Partial
from jax.typing import ArrayLike
from jaxtyping import Array, PRNGKeyArray, PyTree
from optax import GradientTransformationExtraArgs

from .._core import trees
from .._core.remarks import remark
from .._core.sizes import NO_HORIZON, horizons
from .._core.types import Params, State
from ..artifacts import Artifact, find
from ..artifacts import load as load_artifact
from ..optimizers import Controller, Coordinatewise, Envelope, Guard, Optimizer, Partition, Scheduled, declare
from ..optimizers.base import bits_of, one_loss
from .jax import from_artifact


class DeployedState(NamedTuple):
    r"""The optax state: the optimizer with its meta-parameters $\theta$, and what it remembers between two steps."""

    optimizer: Optimizer
    state: State


def optax(
    optimizer: Optimizer | Artifact | str | os.PathLike[str],
    *,
    guard: Optimizer | Callable[[Optimizer], Optimizer] | None = None,
    horizon: int | None = None,
    depth: int | None = None,
) -> GradientTransformationExtraArgs:
    r"""Return an optimizer as an optax transformation: its updates are *added* to the params, as Adam's are.

    $\theta$ lies in the optax state, where `init` copies it. So it is never compiled into a program, a step is traced
    once for all artifacts of a structure, and several states that are donated share no memory. (A jitted `init` alone
    holds $\theta$ as a constant: call it outside `jit`, or inside the program that trains, where that does not matter.)

    Updates go downhill already. To scale them, chain with `optax.scale(factor)` or `optax.scale_by_schedule(schedule)`;
    `optax.scale_by_learning_rate` would turn them around, as it is meant for bare gradients. So would weight decay be:
    chain with `optax.add_decayed_weights(-rate)` *after* it, which takes `rate` of the weights off at every step. What
    a guard moves must reach the params as it is: scale inside, each of the two (`Guard`).

    **Arguments:** `optimizer`: the name of a shipped artifact, a file, an artifact that was read, or any optimizer of
    this package. `guard`: what to fall back to, say `Adam(3e-4)`: then the optimizer moves the params only while it
    shows that it is better, inside what its artifact says that it was trained on (`Guard`, `Envelope`; give `value`).
    Or a function from the bare optimizer to the guarded one, to choose how. `horizon`: how many steps a run will have,
    for rules that go by it (`Controller`), whose steps end there, and for guards; without, as in the artifact, which
    warns. `depth`: of the whole network, `bygrad.optimizers.depth_of(params)`, for rules that go by it (`Controller`)
    where an optimizer is given a part of its params (`optax.masked`, `optax.partition`) or layers that are stacked in
    one array; without, it is counted.

    **Returns:** A transformation for trees of floating-point arrays of any shapes. Its `update` takes `value`, the loss
    where the gradient was taken, for rules that look at it, and `key`, for rules that draw; other extra arguments
    belong to other parts of a chain and are ignored. An LSTM's state in bfloat16 lies there as its bits, integers
    that are written in place, through which no gradient goes.

    **Raises:** `ArtifactError` as `load` does; `TypeError` for what is no optimizer or no guard. `init` and `update`
    raise `TypeError` naming the leaf for params that are not floating-point, and `update` `ValueError` for gradients
    or a state that do not fit the params, and for a `value` that is not a single number.

        >>> import optax, bygrad.deploy
        >>> transformation = optax.chain(bygrad.deploy.optax("paper/quadratic"), optax.scale(0.5))
        >>> params = {"w": jnp.ones((2, 3)), "b": jnp.zeros(3)}
        >>> state = transformation.init(params)
        >>> updates, state = transformation.update(params, state, params, value=3.0)
        >>> bool(jnp.all(updates["w"] < 0))
        True
    """
    envelope, artifact = None, None
    if not isinstance(optimizer, Optimizer | Artifact | str | os.PathLike):
        raise TypeError(
            f"{optimizer!r} is no optimizer that could be deployed. Give the name of an artifact, its file, or an"
            " optimizer: an instance, bygrad.Adam(1e-3), say, not its class."
        )
    if not isinstance(optimizer, Optimizer):
        artifact = optimizer if isinstance(optimizer, Artifact) else load_artifact(find(optimizer))
        optimizer, envelope = from_artifact(artifact), Envelope.from_training(artifact.manifest.training)
    if depth is not None:
        optimizer = _deepened(optimizer, depth)
    deployed = _guarded(optimizer, guard, envelope)
    if horizon is not None:
        deployed = _declared(deployed, horizon)
    elif artifact is not None and (own := horizons(artifact.tensors)):
        # A function for the guard may have declared one.
        now = [it for it in horizons(trees.named_leaves(deployed)) if not isinstance(it, Tracer)]
        if int(min(own)) in map(int, now):
            remark(NO_HORIZON.format(artifact.manifest.name, int(min(own))))
    # A function that a layer of Equinox holds, its activation, travels in the structure of the state.
    deployed = jax.tree.map(lambda leaf: Partial(leaf) if callable(leaf) else leaf, deployed)
    _check_theta(deployed)

    def init(params: Params) -> Any:
        params = _arrays("params", _bare(params))
        if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(params)):
            return jax.eval_shape(init, params)
        state = deployed.init(params)
        if artifact is not None and isinstance(optimizer, Partition):
            _tell_idle_parts(optimizer, artifact, params)
        if isinstance(deployed, Coordinatewise):
            state = bits_of(state)  # so that a donated state is written where it lies
        state = _counting_everywhere(state, params)
        return DeployedState(_copied(deployed, params), _own_buffers(state, (deployed, params)))

    # All deployed optimizers share one function for their updates, and so its traces.
    return GradientTransformationExtraArgs(init, _update)


def _tell_idle_parts(optimizer: Partition, artifact: Artifact, params: Params) -> None:
    """Patterns are for the names of one library: elsewhere a part may get none of the leaves that it was made for."""
    if idle := sorted(optimizer.parts.keys() - optimizer.divide(params).keys()):
        patterns = ", ".join(repr(pattern) for pattern, name in optimizer.rules if name in idle)
        paths = ", ".join(list(trees.named_leaves(params))[:3])
        remark(
            f"No param goes to {', '.join(idle)} of {artifact.manifest.name} ({patterns}), so the others, which learned"
            f" beside it, take all steps. The params are called {paths}, ... If some of them are meant, give"
            " Partition(parts=loaded.parts, rules=...) with patterns for their names."
        )


def _update(
    updates: Params,
    state: Any,
    params: Params | None = None,
    *,
    value: ArrayLike | None = None,
    key: PRNGKeyArray | None = None,
    **_: Any,
) -> tuple[Params, Any]:
    if not (hasattr(state, "optimizer") and hasattr(state, "state")):
        raise ValueError(
            f"The state is a {type(state).__name__}, and not what init(params) of this transformation returns: that of"
            " another optimizer, of a chain as a whole, or of a checkpoint that was read without telling how it is"
            " built. Give what init or the last update returned, or put the leaves of a checkpoint back into it:"
            " jax.tree.unflatten(jax.tree.structure(transformation.init(params)), leaves)."
        )
    structure = jax.tree.structure(updates)
    updates = _arrays("gradients", _bare(updates))
    if params is not None:
        params = _arrays("params", _bare(params))
        _check_alike(updates, params)
        updates = _as_exact_as(updates, params)
    loss = None if value is None else one_loss(value)
    # The state that fits is computed where something went wrong, and not in every step that is not compiled.
    try:
        new_updates, new = _stepped(updates, state, params, loss, key)
    except Exception:
        _check_state(state, updates)
        raise
    # Shapes that differ may broadcast.
    if _layout((new_updates, new)) != _layout((updates, state.state)):
        _check_state(state, updates)
    return jax.tree.unflatten(structure, jax.tree.leaves(new_updates)), DeployedState(state.optimizer, new)


def _stepped(
    updates: Params, state: DeployedState, params: Params | None, loss: Array | None, key: PRNGKeyArray | None
) -> tuple[Params, State]:
    def step(updates: Params, state: DeployedState, params: Params | None, loss: Any, key: Any) -> tuple[Params, State]:
        # Products in full float32, as in PyTorch and where `verify` replays: accelerators would take fewer bits.
        with jax.default_matmul_precision("highest"):
            return state.optimizer.update(updates, state.state, params, value=loss, key=key)

    if not jax.sharding.get_abstract_mesh().explicit_axes:
        return step(updates, state, params, loss, key)
    # Where shardings are types (`jax.make_mesh`), no tensor may be looked at in another shape. So inside it is left to
    # the compiler how arrays are divided; what comes out lies where it lay.
    places = jax.tree.map(lambda leaf: jax.typeof(leaf).sharding.spec, (updates, state.state))
    divided: Any = jax.sharding.auto_axes(step, out_sharding=places)
    return divided(updates, state, params, loss, key)


def _guarded(
    optimizer: Optimizer, guard: Optimizer | Callable[[Optimizer], Optimizer] | None, envelope: Envelope | None
) -> Optimizer:
    if guard is None:
        return optimizer
    if isinstance(guard, Optimizer):
        return Guard(optimizer, guard, envelope=envelope)
    # Not whatever can be called: a class, or an optax transformation, would fail far from here.
    guarded = guard(optimizer) if inspect.isroutine(guard) or isinstance(guard, functools.partial) else None
    if not isinstance(guarded, Optimizer):
        raise TypeError(
            f"guard is {guard!r}: there is nothing to fall back to. Give an optimizer of this package,"
            " bygrad.Adam(1e-3), say, or a function from the bare optimizer to a guarded one."
        )
    return guarded


def _declared(optimizer: Optimizer, horizon: int) -> Optimizer:
    if not _goes_by_horizon(optimizer):
        raise ValueError(
            f"The steps of {type(optimizer).__name__} do not depend on how long a run will be: horizon={horizon}"
            " would change nothing. Leave it out, and chain with optax.scale_by_schedule."
        )
    return declare(optimizer, horizon)


def _goes_by_horizon(optimizer: Optimizer) -> bool:
    if isinstance(optimizer, Partition):
        return any(map(_goes_by_horizon, optimizer.parts.values()))
    return isinstance(optimizer, Scheduled)


def _deepened(optimizer: Optimizer, depth: int) -> Optimizer:
    """Tell the depth to the controllers that there are: the optimizer itself, or parts of it."""
    is_controller = lambda it: isinstance(it, Controller)  # noqa: E731
    leaves, structure = jax.tree.flatten(optimizer, is_leaf=is_controller)
    if not any(map(is_controller, leaves)):
        raise ValueError(
            f"The steps of {type(optimizer).__name__} do not depend on the depth of the network: depth={depth} would"
            " change nothing. Leave it out."
        )
    return jax.tree.unflatten(structure, [it.with_depth(depth) if is_controller(it) else it for it in leaves])


def _copied(optimizer: Optimizer, params: Params) -> Optimizer:
    r"""Copy $\theta$, to every device of the params where those lie on several: a step then moves nothing."""
    copy, mesh = jax.tree.map(jnp.copy, optimizer), _mesh_of(params)
    return copy if mesh is None else jax.tree.map(lambda leaf: _everywhere(leaf, mesh), copy)


def _counting_everywhere(state: State, params: Params) -> State:
    """Put what counts for all params where all of them are, as a compiled step gives it back: the second step would be
    compiled again for it."""
    if (mesh := _mesh_of(params)) is None:
        return state

    def put(leaf: Any) -> Any:
        counts = leaf.ndim < 2 and not isinstance(leaf, Tracer) and len(leaf.devices()) == 1
        return _everywhere(leaf, mesh) if counts else leaf

    return jax.tree.map(put, state)


def _mesh_of(params: Params) -> Mesh | None:
    """Return the devices of the params, where those are known and several."""
    for leaf in jax.tree.leaves(params):
        sharding = None if isinstance(leaf, Tracer) else getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding) and sharding.is_fully_addressable:
            return sharding.mesh  # pyright: ignore[reportReturnType]
    return None


def _everywhere(leaf: Any, mesh: Mesh) -> Any:
    # Spelled as a compiled step spells it.
    axes = [None] * leaf.ndim if AxisType.Explicit in mesh.axis_types else []
    return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(*axes)))


def _own_buffers(state: State, others: PyTree) -> State:
    """Copy what the state shares with others or holds twice: a buffer cannot be donated two times."""
    seen = {id(leaf) for leaf in jax.tree.leaves(others)}

    def own(leaf: Any) -> Any:
        if id(leaf) in seen:
            return jnp.copy(leaf)
        seen.add(id(leaf))
        return leaf

    return jax.tree.map(own, state)


def _check_theta(optimizer: Optimizer) -> None:
    for name, leaf in trees.named_leaves(optimizer).items():
        if not isinstance(leaf, jax.Array):
            raise TypeError(
                f"The leaf {name} of {type(optimizer).__name__} is a {type(leaf).__name__}, not an array, so it cannot"
                " travel in the optax state. Make it a static field of the class, or a JAX array."
            )


def _bare(params: Params) -> Params:
    """Take arrays out of variables of Flax NNX, in which every param has another path. Its optimizer gives those to
    `init`, and bare arrays to `update`."""
    nnx = sys.modules.get("flax.nnx")
    bare = getattr(nnx, "as_pure", None) or getattr(nnx, "pure", None)  # its name in older versions
    return params if bare is None else bare(params)


def _arrays(what: str, tree: PyTree) -> PyTree:
    """Make arrays of numbers, and refuse what is no floating-point array."""
    for name, leaf in trees.named_leaves(tree).items():
        if not hasattr(leaf, "dtype") and not isinstance(leaf, int | float | complex):
            raise TypeError(
                f"The {what} have a leaf {name or '(the only one)'} that is a {type(leaf).__name__}, no array. Keep the"
                " arrays alone: eqx.filter(model, eqx.is_inexact_array), for a model of Equinox."
            )
        dtype = jnp.result_type(leaf)
        if jnp.issubdtype(dtype, jnp.complexfloating):
            raise TypeError(
                f"The {what} have a complex leaf {name or '(the only one)'} ({dtype}). The rule was learned on real"
                " numbers, and what it would do to complex ones is not defined. Wrap the transformation in"
                " optax.contrib.split_real_and_imaginary, which gives it both parts as real numbers, but passes no"
                " value=: without a guard."
            )
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"The {what} have a leaf {name or '(the only one)'} of dtype {dtype}, which cannot take a small step."
                " Leave it out with optax.masked or optax.partition."
            )
    # NumPy's in the precision that JAX computes in.
    held = (jax.Array, jax.ShapeDtypeStruct)
    return jax.tree.map(lambda leaf: leaf if isinstance(leaf, held) else jnp.asarray(leaf), tree)


def _as_exact_as(grads: Params, params: Params) -> Params:
    """Widen gradients in lower precision than their params, or the updates, in the dtype of the gradients, would be
    rounded to it."""

    def widened(grad: Array, param: Array) -> Array:
        wide = jnp.promote_types(grad.dtype, param.dtype)
        return grad if grad.dtype == wide else grad.astype(wide)

    leaves, structure = jax.tree.flatten(grads)
    return jax.tree.unflatten(structure, map(widened, leaves, jax.tree.leaves(params)))


def _layout(tree: PyTree) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    return structure, [getattr(leaf, "shape", ()) for leaf in leaves]


def _check_state(state: DeployedState, grads: Params) -> None:
    """Refuse a state with other leaves than `init` gives it for such params."""
    ours, theirs = (
        {name: list(getattr(leaf, "shape", ())) for name, leaf in trees.named_leaves(tree).items()}
        for tree in (state.state, jax.eval_shape(state.optimizer.init, grads))
    )
    for name in [*sorted(ours.keys() ^ theirs.keys()), *ours]:
        held, wanted = (f"of shape {it[name]}" if name in it else "missing" for it in (ours, theirs))
        if held != wanted:
            raise ValueError(
                f"The state is not that of these params: {name or 'its only leaf'} is {held} there, and {wanted} for"
                " these params. What it remembers is another model's, from another checkpoint, say. Give the state of"
                " this model, or start with init(params)."
            )


def _check_alike(grads: Params, params: Params) -> None:
    """Refuse gradients with other leaves than the params, where JAX would speak of tree definitions."""
    ours, theirs = trees.named_leaves(grads), trees.named_leaves(params)
    if different := sorted(ours.keys() ^ theirs.keys()):
        raise ValueError(
            f"The gradients and the params are different trees: {different[0] or '(a single leaf)'} stands only in the"
            f" {'gradients' if different[0] in ours else 'params'}. A state belongs to one structure. Give the gradient"
            " with respect to these params."
        )
    for name, leaf in ours.items():
        if jnp.shape(leaf) != jnp.shape(theirs[name]):
            raise ValueError(
                f"The gradient of {name or 'the params'} has the shape {list(jnp.shape(leaf))}, and the param"
                f" {list(jnp.shape(theirs[name]))}. Give the gradient with respect to these params."
            )
