"""Problems whose values and gradients come from a plain function: NumPy, PyTorch, SciPy, a simulator, C or Fortran."""

import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._core.types import Instance, Params, PRNGKeyArray, PyTree, Scalar
from .base import ProblemFamily, differentiable_loss

_ONE_AT_A_TIME = threading.RLock()
"""Programs run side by side, and a generator that `torch.manual_seed` sets is one for all of them. Reentrant, so that
a function that asks another Oracle does not wait for itself."""


class Oracle(ProblemFamily):
    """A family given by a function that JAX cannot trace.

    Meta-training needs nothing but values and gradients, as Adam needs nothing else: `Replay` works, and so does what
    does not differentiate at all. What would differentiate the function itself (`Backprop`) is refused.

    The functions run on the host, once for every instance and step, with NumPy arrays, in no certain order and never
    two at a time. Meta-training draws instances and starts for all where one begins anew; on several devices, in every
    window. They must be pure: the same arguments, the same result. Keep JAX out of them: on large arrays a
    program that runs inside another may wait for it forever.

    **Arguments:** `function`: takes params and a seed, and returns the value and the gradient, in the structure of the
    params; with `draw`, it takes the instance third. `start`: takes a seed (and the instance) and returns the params
    to start from; or the params, the same for all. `draw`: takes a seed and returns an instance, a tree of arrays.
    Seeds are whole numbers below 2³², for `numpy.random.default_rng` or `torch.manual_seed`. In `function` it draws
    the minibatch or the noise; there, `None` asks for the objective without noise, for L-BFGS and for losses of a
    whole data set: the same at every call. A function that has none may raise; whether it has one is tried out here.

    >>> def bowl(params, seed):
    ...     return np.sum(params**2), 2 * params
    >>> family = Oracle(bowl, lambda seed: np.random.default_rng(seed).standard_normal(3))
    >>> params = family.init((), jax.random.key(0))
    >>> value, grads = jax.jit(family.value_and_grad)(params, (), jax.random.key(1))
    >>> bool(jnp.allclose(grads, 2 * params))
    True
    """

    function: Callable[..., tuple[Any, Params]] = eqx.field(static=True)
    start: Callable[..., Params] | None = eqx.field(static=True)
    start_params: Params
    draw: Callable[[int], Instance] | None = eqx.field(static=True)
    params_like: "Structure" = eqx.field(static=True)
    instance_like: "Structure" = eqx.field(static=True)
    has_objective: bool = eqx.field(static=True)

    def __init__(
        self,
        function: Callable[..., tuple[Any, Params]],
        start: Callable[..., Params] | Params,
        draw: Callable[[int], Instance] | None = None,
    ):
        self.function, self.draw = function, draw
        self.start = start if callable(start) else None
        # One draw tells the structures, which must be known before anything is compiled. One evaluation shows mistakes
        # while they are easy to read.
        instance = () if draw is None else draw(0)
        params = start(0, *self._third(instance)) if callable(start) else start
        self.params_like, self.instance_like = Structure.of(params), Structure.of(instance)
        self.start_params = () if callable(start) else jax.tree.map(jnp.asarray, start)
        params = jax.tree.unflatten(self.params_like.tree, self.params_like.fit(params))
        self._result_like.fit(function(params, 0, *self._third(instance)))
        self.has_objective = self._gives_objective(params, instance)

    def sample(self, key: PRNGKeyArray) -> Instance:
        if self.draw is None:
            return ()
        return _on_host(self.draw, self.instance_like, key)

    def init(self, instance: Instance, key: PRNGKeyArray) -> Params:
        if self.start is None:
            return self.start_params
        return _on_host(self.start, self.params_like, key, *self._third(instance))

    def loss(self, params: Params, instance: Instance, key: PRNGKeyArray | None) -> Scalar:
        return differentiable_loss(self)(params, instance, key)

    def value_and_grad(self, params: Params, instance: Instance, key: PRNGKeyArray | None) -> tuple[Scalar, Params]:
        if key is None and not self.has_objective:  # in a program, it would come up in the middle of a run
            raise ValueError(
                "The function of this Oracle gives no objective without noise: for the seed None it raises, or gives"
                " another value each time. Where it has one, let it return that for None."
            )
        call = jax.custom_jvp(lambda params: _on_host(self._evaluate, self._result_like, key, instance, params))
        call.defjvp(_refuse_second_derivatives)
        return call(params)

    @property
    def _result_like(self) -> "Structure":
        return Structure.of((np.zeros(()), self.params_like.example()))

    def _gives_objective(self, params: Params, instance: Instance) -> bool:
        try:
            once, again = (self._result_like.fit(self._evaluate(None, instance, params)) for _ in range(2))
        except Exception:  # whatever it raises
            return False
        # Sums that threads share may be rounded otherwise each time; minibatches differ by more.
        sizes = [np.max(np.abs(it), initial=0.0, where=np.isfinite(it)) for it in once]
        return all(
            np.allclose(one, other, rtol=1e-3, atol=1e-3 * size, equal_nan=True)
            for one, other, size in zip(once, again, sizes, strict=True)
        )

    def _evaluate(self, seed: int | None, instance: Instance, params: Params) -> tuple[Any, Params]:
        value, grads = self.function(params, seed, *self._third(instance))
        return value, grads

    def _third(self, instance: Instance) -> tuple[Instance, ...]:
        return () if self.draw is None else (instance,)


@dataclasses.dataclass(frozen=True)
class Structure:
    """How a tree of arrays is built: hashable, so that it can be compiled in."""

    tree: Any
    leaves: tuple[jax.ShapeDtypeStruct, ...]

    @classmethod
    def of(cls, tree: PyTree) -> "Structure":
        """Describe NumPy arrays or numbers, with the dtypes that JAX gives them. Raises `ValueError` for what is
        neither: `None` in an array of objects would become NaN, and no program holds a text."""
        leaves, structure = jax.tree.flatten(tree)
        arrays = [np.asarray(leaf) for leaf in leaves]
        for array in arrays:
            if not (jnp.issubdtype(array.dtype, np.number) or array.dtype == bool):
                raise ValueError(
                    f"A function of an Oracle returned {array!s:.60} ({array.dtype}), which is no number, and compiled"
                    " programs hold numbers alone. Return arrays of numbers, and look up inside the functions what they"
                    " stand for: names[index], say."
                )
        dtypes = [jax.dtypes.canonicalize_dtype(array.dtype) for array in arrays]
        shapes = [jax.ShapeDtypeStruct(array.shape, dtype) for array, dtype in zip(arrays, dtypes, strict=True)]
        return cls(structure, tuple(shapes))

    def example(self) -> PyTree:
        return jax.tree.unflatten(self.tree, [np.zeros(leaf.shape, leaf.dtype) for leaf in self.leaves])

    def fit(self, tree: PyTree) -> list[np.ndarray]:
        """Return the leaves of a tree of this structure as arrays. Raises `ValueError` for another structure, and for
        numbers that are not real, or not whole where whole ones are kept, or too large for those."""
        found = Structure.of(tree)
        if found.tree != self.tree or [leaf.shape for leaf in found.leaves] != [leaf.shape for leaf in self.leaves]:
            raise ValueError(
                f"A function of an Oracle returned {found.in_words()}, but {self.in_words()} is needed, since a"
                " compiled program has fixed shapes. Return (value, grads), with grads built like the params, and draws"
                " built like the first one."
            )
        pairs = zip(jax.tree.leaves(tree), self.leaves, strict=True)
        return [_as_kind(np.asarray(leaf), like.dtype) for leaf, like in pairs]

    def in_words(self) -> str:
        leaves = [f"{leaf.dtype}{list(leaf.shape)}" for leaf in self.leaves]
        return str(jax.tree.unflatten(self.tree, leaves)).replace("'", "")


def _as_kind(array: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    if jnp.issubdtype(array.dtype, jnp.complexfloating) <= jnp.issubdtype(dtype, jnp.complexfloating):
        with np.errstate(invalid="ignore", over="ignore"):  # a loss beyond float32 is infinite
            cast = array.astype(dtype)
        if jnp.issubdtype(dtype, jnp.inexact) or np.array_equal(cast, array):
            return cast
    raise ValueError(
        f"A function of an Oracle returned {array.dtype} numbers that {dtype} cannot hold ({array!s:.60}), so others"
        " would be used in their place. Return real values and gradients, draws of the kind of the first one, and whole"
        " numbers of 32 bits: np.uint32(seed), if a seed is an instance."
    )


def _on_host(function: Callable[..., Any], like: Structure, key: PRNGKeyArray | None, *arguments: PyTree) -> PyTree:
    """Call `function(seed, *arguments)` outside of JAX; under `vmap` once for every row, in one visit to the host."""
    # A seed is given in any case: it tells by how much the call is mapped.
    seeds = jnp.zeros((), jnp.uint32) if key is None else jax.random.bits(key, dtype=jnp.uint32)

    def host(seeds: Any, arguments: PyTree) -> PyTree:
        seeds, arguments = np.asarray(seeds), jax.tree.map(np.asarray, arguments)
        rows = []
        for row in np.ndindex(seeds.shape):
            mine = jax.tree.map(lambda leaf, row=row: leaf[row], arguments)
            with _ONE_AT_A_TIME:
                result = function(None if key is None else int(seeds[row]), *mine)
            rows.append(like.fit(result))
        stacked = [np.stack(leaves).reshape((*seeds.shape, *leaves[0].shape)) for leaves in zip(*rows, strict=True)]
        return jax.tree.unflatten(like.tree, stacked)

    shapes = jax.tree.unflatten(like.tree, like.leaves)
    return jax.pure_callback(host, shapes, seeds, arguments, vmap_method="broadcast_all")


def _refuse_second_derivatives(primals: Any, tangents: Any) -> Any:
    raise TypeError(
        "An Oracle gives values and gradients and no more: how they change with the params is not known, so nothing can"
        " be differentiated through it (Backprop, second derivatives). Meta-train with Replay(), the default, or with"
        " an estimator that does not differentiate the problem."
    )
