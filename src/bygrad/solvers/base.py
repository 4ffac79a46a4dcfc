"""What a batch-first solver is: a start and a step for one instance, without branches."""

import abc
import math
from collections.abc import Callable
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, PyTree

from .._core import trees
from .._core.draws import key_of
from .._core.programs import kind_of
from .._core.types import Instance, Params, Scalar
from ..problems import Bounded, Composite, LeastSquares, ProblemFamily, QuadraticProgram
from ..problems.base import blame, check_value
from .solution import RUNNING, Status

Shared = TypeVar("Shared")

_NONE = np.zeros(0, np.float32)  # float64 would not survive where JAX computes in float32


class Progress(NamedTuple):
    """How far one instance is; the fields are those of `Solution`, `memory` is the method's own, `dual` often empty."""

    x: Float[Array, " p"]
    cost: Scalar
    certificate: Scalar
    status: Int[Array, ""]
    nit: Int[Array, ""]
    nfev: Int[Array, ""]
    memory: PyTree
    dual: Float[Array | np.ndarray, " m"] = _NONE

    @classmethod
    def begin(cls, x: Float[Array, " p"], memory: PyTree, dual: Array | np.ndarray = _NONE) -> "Progress":
        """Return the state before anything is evaluated: the cost is infinite, so the first trial is better."""
        infinite, zero = jnp.full((), jnp.inf, x.dtype), jnp.zeros((), jnp.int32)
        return cls(x, infinite, infinite, jnp.int32(RUNNING), zero, zero, memory, dual)


def status_of(*ends: tuple[Bool[Array, ""], Status]) -> Int[Array, ""]:
    """Return the code of the first end whose condition holds; without any, the instance goes on."""
    return jnp.select([when for when, _ in ends], [jnp.int32(code) for _, code in ends], jnp.int32(RUNNING))


def check_part(what: str, part: Any, kind: Any) -> None:
    """**Raises:** `TypeError` for what is of another kind; a class instead of an object of it is told by its name."""
    if isinstance(part, type):
        raise TypeError(f"{what} is the class {part.__name__}, not an object of it. Give {part.__name__}(...).")
    if not isinstance(part, kind):
        wanted = "a function" if kind is Callable else f"a {kind.__name__}"
        raise TypeError(f"{what} is of type {type(part).__name__}, so nothing could be done with it. Give {wanted}.")


def certified(family: ProblemFamily) -> bool:
    """Say whether certificates prove what is solved: the family is convex, so that one start is enough as well."""
    return isinstance(family, Composite | QuadraticProgram)


_SAMPLED: dict[Any, PyTree] = {}


def instance_like(family: ProblemFamily) -> PyTree:
    """Return the shapes of an instance as the family draws it, or None where that cannot be told without drawing."""
    key = kind_of(family)
    if key not in _SAMPLED:  # tracing takes longer than to solve a hundred small problems
        try:
            _SAMPLED[key] = eqx.filter_eval_shape(lambda family: family.sample(key_of(0)), family)
        except Exception:  # a family that is only ever given its instances need not draw any
            _SAMPLED[key] = None
    return _SAMPLED[key]


class OncePerFamily(Generic[Shared]):
    """A function of a family and a precision whose last results are kept, as what takes long and all instances share.

    A result is found again for the very same family: the same structure, the same arrays of JAX, which never change,
    and equal arrays of NumPy, which may.
    """

    KEPT: ClassVar[int] = 8
    BYTES: ClassVar[int] = 2**28
    """Of what is kept; more only for the last family."""

    def __init__(self, function: Callable[[ProblemFamily, Any], Shared]) -> None:
        self._function = function
        self._known: list[tuple[tuple[Any, ...], list[Any], Shared]] = []

    def __call__(self, family: ProblemFamily, dtype: Any) -> Shared:
        leaves, structure = jax.tree.flatten(family)
        config: Any = jax.config
        key = structure, np.dtype(dtype), config.jax_enable_x64, config.jax_default_device
        for known, theirs, result in self._known:
            if known == key and all(map(_same, leaves, theirs)):
                return result
        result = self._function(family, dtype)
        if not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((leaves, result))):
            own = [leaf.copy() if isinstance(leaf, np.ndarray) else leaf for leaf in leaves]
            known, size = [(key, own, result)], _bytes((own, result))
            for entry in self._known[: self.KEPT - 1]:
                if (size := size + _bytes(entry)) > self.BYTES:
                    break
                known.append(entry)
            self._known = known
        return result


def _bytes(tree: PyTree) -> int:
    return sum(getattr(leaf, "nbytes", 0) for leaf in jax.tree.leaves(tree))


def _same(leaf: Any, other: Any) -> bool:
    if isinstance(leaf, np.ndarray) and isinstance(other, np.ndarray):
        return leaf.dtype == other.dtype and np.array_equal(leaf, other, equal_nan=leaf.dtype.kind in "fc")
    return leaf is other


_PARAMS: dict[Any, tuple[Any, tuple[tuple[int, ...], ...]]] = {}


def parts_in_words(leaves: dict[str, Any]) -> str:
    """Say what a tree is built of, from its named leaves."""
    if list(leaves) == [""]:
        return "one array"
    return f"a tree of arrays {trees.in_words(leaves)}" if leaves else "a tree without arrays"


class Flat(eqx.Module):
    """A family seen by a solver: its params as one vector."""

    family: ProblemFamily
    structure: Any = eqx.field(static=True)
    shapes: tuple[tuple[int, ...], ...] = eqx.field(static=True)

    @classmethod
    def of(cls, family: ProblemFamily, instance: Instance) -> "Flat":
        """Find out what the params look like, without computing anything.

        **Raises:** `TypeError` or `ValueError` where the family's functions do not return what a solver needs.
        """
        inputs = family, jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), instance)
        key = kind_of(inputs)
        if key not in _PARAMS:  # tracing `init` takes longer than to solve a hundred small problems
            with blame(f"{type(family).__name__}.init"):
                like = _shapes(lambda family, one: family.init(one, key_of(0)), *inputs)
            leaves, structure = jax.tree.flatten(like)
            if not leaves or any(jnp.issubdtype(leaf.dtype, jnp.complexfloating) for leaf in leaves):
                found = ", ".join(f"{leaf.dtype}{list(leaf.shape)}" for leaf in leaves)
                raise TypeError(
                    f"{type(family).__name__}.init returned {found or 'a tree without arrays'}, but params are real"
                    " numbers, and there must be some. Return them as real arrays."
                )
            _check_functions(like, *inputs)
            _PARAMS[key] = structure, tuple(leaf.shape for leaf in leaves)
        return cls(family, *_PARAMS[key])

    def params(self, x: Float[Array | np.ndarray, "*rows p"]) -> Params:
        """Return a vector, or rows of them, as the family's params."""
        leaves, start = [], 0
        for shape in self.shapes:
            size = math.prod(shape)
            leaves.append(x[..., start : start + size].reshape(*x.shape[:-1], *shape))
            start += size
        return jax.tree.unflatten(self.structure, leaves)

    def vector(self, params: Params) -> Float[Array, " p"]:
        """Return params as one vector."""
        return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(params)])

    @property
    def size(self) -> int:
        """Number of params."""
        return sum(math.prod(shape) for shape in self.shapes)

    def loss(self, x: Float[Array, " p"], instance: Instance) -> Scalar:
        """Return the objective without noise."""
        return self.family.loss(self.params(x), instance, None)

    def bounds(self, x: Float[Array, " p"], instance: Instance) -> tuple[Array, Array]:
        """Return the lowest and the highest vector that are allowed."""
        limits = self.family.bounds(instance) if isinstance(self.family, Bounded) else None
        if limits is None:
            return jnp.full_like(x, -jnp.inf), jnp.full_like(x, jnp.inf)
        like = self.params(x)  # one number is the limit of a whole array
        spread = [jax.tree.map(lambda limit, leaf: jnp.broadcast_to(limit, leaf.shape), it, like) for it in limits]
        low, high = (self.vector(limit).astype(x.dtype) for limit in spread)
        return low, high

    def allowed(self, x: Float[Array, " p"], instance: Instance) -> Float[Array, " p"]:
        """Return the nearest vector within the bounds; for a `Composite`, the nearest where its penalty is finite.

        What cannot be moved there, being NaN say, stays what it is.
        """
        x = jnp.clip(x, *self.bounds(x, instance))
        if isinstance(self.family, Composite):
            nearest = self.family.prox(x, jnp.zeros((), x.dtype), instance)
            x = jnp.where(jnp.all(jnp.isfinite(nearest)), nearest, x)
        return x


def _check_functions(params: Params, family: ProblemFamily, instance: Instance) -> None:
    """Refuse a family whose objective or bounds are not what a solver needs, by their shapes."""
    name = type(family).__name__
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.result_type(float)), params)
    if isinstance(family, LeastSquares):
        with blame(f"{name}.residuals"):
            found = eqx.filter_eval_shape(lambda family, *inputs: family.residuals(*inputs), family, params, instance)
        if not isinstance(found, jax.ShapeDtypeStruct):
            raise TypeError(
                f"{name}.residuals returned a {type(found).__name__}, not one array, so it is not known what to square."
                " Join the parts, jnp.concatenate([...])."
            )
        if found.shape == () and sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) > 1:
            raise ValueError(
                f"{name}.residuals returned a single number, which is squared and summed once more, so that one slope"
                " is all that is known of all params. Return the residuals themselves, one for each measurement."
            )
        if jnp.issubdtype(found.dtype, jnp.complexfloating):
            raise TypeError(
                f"{name}.residuals returned {found.dtype}{list(found.shape)}, whose squares are no cost. Return real"
                " and imaginary parts, jnp.stack([r.real, r.imag])."
            )
    else:
        if isinstance(family, Composite):
            _check_composite(name, params, family, instance)
        if isinstance(family, QuadraticProgram):
            _check_program(name, params, family, instance)
        check_value(name, _value_without_noise(params, family, instance))
    if isinstance(family, Bounded):
        with blame(f"{name}.restart"):
            other = _shapes(lambda family, one: family.restart(one, key_of(0)), family, instance)
        (drawn, found), (wanted, like) = (
            (leaves, trees.in_words(list(leaf.shape) for leaf in leaves.values()))
            for leaves in map(trees.named_leaves, (other, params))
        )
        if jax.tree.structure(other) != jax.tree.structure(params) or found != like:
            raise TypeError(
                f"{name}.restart returned {parts_in_words(drawn)} of shape {found}, but params are"
                f" {parts_in_words(wanted)} of shape {like}, so its numbers would be starts of others. Build it as"
                " `init` builds params."
            )
        with blame(f"{name}.bounds"):
            limits = _shapes(_pair_of_bounds, family, instance)
        structures = None if limits is None else [jax.tree.structure(limit) for limit in limits]
        if structures not in (None, 2 * [jax.tree.structure(params)]):
            raise TypeError(
                f"{name}.bounds returned {jax.tree.structure(limits)}, which is not a pair of params, so it is not"
                " known what holds each param. Return the lowest and the highest params, both built as `init` builds"
                " them and infinite where there is no limit, or None for no bounds at all."
            )
        for path, like in trees.named_leaves(params).items():
            for limit in limits or ():
                if (shape := trees.named_leaves(limit)[path].shape) not in ((), like.shape):
                    raise TypeError(
                        f"{name}.bounds returned limits of shape {list(shape)} for params of shape {list(like.shape)}"
                        f"{f' at {path}' if path else ''}, so it is not known what holds each of them. Give one for"
                        " each, or a single number for all."
                    )


def _check_composite(name: str, params: Params, family: Composite, instance: Instance) -> None:
    """Refuse params that are no vector, of which the parts would be given another shape than the loss is, and maps that
    return another shape than they should, which would be repeated to fit."""
    if not isinstance(params, jax.ShapeDtypeStruct) or len(params.shape) != 1:
        shapes = trees.in_words(list(leaf.shape) for leaf in jax.tree.leaves(params))
        raise TypeError(
            f"{name}.init returned {parts_in_words(trees.named_leaves(params))} of shape {shapes}, but params of a"
            " Composite are one vector, as `smooth` and `prox` are given them. Return a vector, and reshape it there."
        )
    step = jax.ShapeDtypeStruct((), params.dtype)
    with blame(f"{name}.prox"):
        moved = _shapes(lambda family, *inputs: family.prox(*inputs), family, params, step, instance)
    with blame(f"{name}.gap"):
        gap = _shapes(lambda family, *inputs: family.gap(*inputs), family, params, params, instance)
    for part, value, shape in (("prox", moved, params.shape), ("gap", gap, ())):
        if getattr(value, "shape", None) != shape and (part, value) != ("gap", None):
            found = getattr(value, "shape", type(value).__name__)
            raise TypeError(
                f"{name}.{part} returned {list(found) if isinstance(found, tuple) else found}, but it must be of shape"
                f" {list(shape)}: its numbers would be repeated to fit, or do not. Return an array of that shape."
            )


def _check_program(name: str, params: Params, family: QuadraticProgram, instance: Instance) -> None:
    """Refuse matrices and vectors that do not fit each other, of which some would be repeated to fit."""
    with blame(f"{name}.matrices"):
        quadratic, constraints = _shapes(lambda family: tuple(family.matrices), family)
    with blame(f"{name}.vectors"):
        linear, low, high = _shapes(lambda family, one: tuple(family.vectors(one)), family, instance)
    size, rows = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)), constraints.shape[:1]
    given = {"P": quadratic, "A": constraints, "q": linear, "l": low, "u": high}
    fit = {"P": [(size, size)], "A": [(*rows, size)], "q": [(size,)], "l": [rows, ()], "u": [rows, ()]}
    for part, it in given.items():
        if it.shape not in fit[part]:
            raise TypeError(
                f"{name}'s program has {part} of shape {list(it.shape)}, for {size} params and {rows[0] if rows else 0}"
                f" rows of constraints, and should have {' or '.join(str(list(shape)) for shape in fit[part])}. Mend"
                f" {name}.{'matrices' if part in 'PA' else 'vectors'}, or the params that `init` returns."
            )


def _shapes(function: Callable[..., Any], *inputs: Any) -> Any:
    """Return shapes and dtypes of what a function returns; numbers of Python are arrays as well."""
    return eqx.filter_eval_shape(lambda *inputs: jax.tree.map(jnp.asarray, function(*inputs)), *inputs)


def _value_without_noise(params: Params, family: ProblemFamily, instance: Instance) -> Any:
    """Return the shape of the objective without noise; tell a loss that needs a key from one that never works."""
    name = f"{type(family).__name__}.loss"

    def value(key: Any) -> Any:
        return _shapes(lambda family, *inputs: family.loss(*inputs), family, params, instance, key)

    try:
        return value(None)
    except Exception as error:
        with blame(name):
            value(key_of(0))
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"{name} works with a key, but without one it raised {type(error).__name__}: {reason}. Solvers need the"
            " objective without noise. Return the loss on all data where key is None, or learn an optimizer for"
            " minibatches instead: bygrad.specialize, bygrad.meta_train."
        ) from error


def _pair_of_bounds(family: Bounded, instance: Instance) -> tuple[Params, ...] | None:
    limits = family.bounds(instance)
    return None if limits is None else tuple(limits)  # two rows of an array are a pair as well


class Method(eqx.Module):
    """A solver: pure functions of one instance, which the engine runs on thousands at once.

    A step never branches: what an instance does differently, its own numbers say (damping, flags). A finished
    instance may be given further steps, whose results are discarded.

    **Arguments:** `tol`: what counts as solved. `max_steps`: steps after which an instance is given up.
    """

    batch: ClassVar[int] = 256
    """Instances that are worked on at once, unless the caller says otherwise: small problems then stay in cache."""

    smallest: ClassVar[int] = 32
    """Instances that are worked on at once in the end of a batch, when the last ones run, and of a small batch: so few
    that fewer would take hardly less time for a step."""

    refill: ClassVar[int] = 4
    """Rows are given to other instances when one in so many has finished: more often where a step costs much and a
    start little. What idle rows and starts cost is then about the same."""

    any_order: ClassVar[bool] = False
    """Whether terms may be added in another order than they are written (`Program`): where a step is many sums."""

    solves: ClassVar[type[ProblemFamily]] = ProblemFamily
    """The structure that a family must have."""

    tol: eqx.AbstractVar[float | Array]
    max_steps: eqx.AbstractVar[int | Array]

    def prepare(self, flat: Flat, dtype: Any) -> "Method":
        """Do what all instances share, a factorization say; returns the method to run.

        Every batch is prepared for, so that a method never brings along what belongs to another family. What takes long
        is kept by `OncePerFamily`.
        """
        return self

    def multipliers(self, flat: Flat) -> int:
        """Return how many multipliers may follow the params in the vector that it starts from."""
        return 0

    @abc.abstractmethod
    def start(self, flat: Flat, instance: Instance, x: Float[Array, " p"]) -> Progress:
        """Return the state before the first step from `x`."""

    @abc.abstractmethod
    def step(self, flat: Flat, instance: Instance, at: Progress) -> Progress:
        """Take one step."""
