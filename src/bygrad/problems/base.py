"""The contract of a problem family, and the check that a family keeps it."""

import abc
import contextlib
import dataclasses
import functools
import hashlib
import inspect
import random
import re
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from traceback import extract_tb
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._core import trees
from .._core.programs import Program, is_array
from .._core.types import Instance, Params, PRNGKeyArray, Scalar


class NoHeldOutDataError(NotImplementedError, ValueError):
    """A family is to be judged by data that it does not have."""


class ProblemFamily(eqx.Module):
    r"""A distribution over optimization problems $\min_p f_i(p)$, one for every instance $i$.

    Subclass it and write three methods; that is all it takes to learn an optimizer for the family:

    >>> import jax, jax.numpy as jnp
    >>> class Rosenbrock(ProblemFamily):
    ...     def sample(self, key):
    ...         return jax.random.uniform(key, minval=1.0, maxval=10.0)
    ...     def init(self, instance, key):
    ...         return jax.random.normal(key, (2,))
    ...     def loss(self, params, instance, key):
    ...         return (1 - params[0]) ** 2 + instance * (params[1] - params[0] ** 2) ** 2

    Arrays that all instances share (a data set, say) are fields of the family, so that they travel as arguments of
    the compiled program and never as constants inside it.
    """

    @abc.abstractmethod
    def sample(self, key: PRNGKeyArray) -> Instance:
        """Draw an instance: a pytree of arrays, `()` where instances differ in their start and their noise only."""

    @abc.abstractmethod
    def init(self, instance: Instance, key: PRNGKeyArray) -> Params:
        """Draw the params to start from: a pytree of floating-point arrays."""

    @abc.abstractmethod
    def loss(self, params: Params, instance: Instance, key: PRNGKeyArray | None) -> Scalar:
        """Return the value to minimize, a scalar.

        `key` draws the minibatch or the noise. `None` asks for the objective without noise (the whole data set);
        only the second-order baselines ask for it, and a family that has none may raise.
        """

    def value_and_grad(self, params: Params, instance: Instance, key: PRNGKeyArray | None) -> tuple[Scalar, Params]:
        """Return the loss and its gradient with respect to the params.

        Everything that optimizes asks for this. Override it where the gradient does not come from JAX (`Oracle`).
        """
        return jax.value_and_grad(self.loss)(params, instance, key)

    def held_out_loss(self, params: Params, instance: Instance, key: PRNGKeyArray | None) -> Scalar:
        """Return the loss on data that `loss` never sees, for those who care about more than the training loss.

        **Raises:** `NotImplementedError`: this family has no such data.
        """
        raise NoHeldOutDataError(
            f"{type(self).__name__} has no held-out data, so it cannot be judged by a validation loss. Give held_out=,"
            " how many of its last entries to keep from training, if it has such a field; else write its"
            " `held_out_loss(params, instance, key)`, or choose the training objective."
        )

    def parts(self) -> tuple[tuple["ProblemFamily", float], ...]:
        """Return the families whose problems are run each by itself, with the weights of their losses: those of a
        `Mixture`, and the family itself otherwise."""
        return ((self, 1.0),)


def differentiable_loss(family: ProblemFamily) -> Callable[[Params, Instance, PRNGKeyArray | None], Scalar]:
    """Return the loss of a family for others to differentiate: what they get is the gradient that the family gives,
    also where it writes a `value_and_grad` of its own. Second derivatives are then those of that gradient."""
    if type(family).value_and_grad is ProblemFamily.value_and_grad:
        return family.loss

    def loss(params: Params, instance: Instance, key: PRNGKeyArray | None) -> Scalar:
        @jax.custom_jvp
        def value(params: Params) -> Scalar:
            return family.value_and_grad(params, instance, key)[0]

        @value.defjvp
        def _(primals: tuple[Params], tangents: tuple[Params]) -> tuple[Scalar, Scalar]:
            at, grads = family.value_and_grad(*primals, instance, key)
            return _sloped(at, grads, *primals), _along(grads, *tangents).astype(at.dtype)

        return value(params)

    return loss


def differentiable_value_and_grad(
    family: ProblemFamily,
) -> Callable[[Params, Instance, PRNGKeyArray | None], tuple[Scalar, Params]]:
    """Return a family's `value_and_grad` for others to differentiate: the derivative of the value is the gradient, also
    where the family writes both by itself, and autodiff would see through neither."""
    if type(family).value_and_grad is ProblemFamily.value_and_grad:
        return family.value_and_grad

    def value_and_grad(params: Params, instance: Instance, key: PRNGKeyArray | None) -> tuple[Scalar, Params]:
        value, grads = family.value_and_grad(params, instance, key)
        return _sloped(value, grads, params), grads

    return value_and_grad


@jax.custom_jvp
def _sloped(value: Scalar, grads: Params, params: Params) -> Scalar:
    """Return the value, whose derivative with respect to the params is `grads`, whatever it was computed from."""
    return value


@_sloped.defjvp
def _(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Scalar, Scalar]:
    value, grads, _ = primals
    return _sloped(*primals), _along(grads, tangents[2]).astype(value.dtype)


def _along(grads: Params, tangents: Params) -> Scalar:
    """Return the derivative in a direction."""
    products = jax.tree.map(lambda grad, tangent: jnp.sum(grad * tangent), grads, tangents)
    return sum(jax.tree.leaves(products), jnp.zeros(()))


def check_family(family: ProblemFamily, key: PRNGKeyArray) -> Params:
    """Refuse a family that cannot be optimized, before anything is trained on it.

    Draws one instance and evaluates its loss and gradient once.

    **Returns:** the params drawn, as an example of their structure.

    **Raises:** `TypeError` if the params are not floating-point arrays or the loss is not a real scalar; `ValueError`
    if a method raises, also where it is compiled, or draws from `numpy.random`, if the loss or its gradient is not
    finite at the start, or the gradient is zero everywhere.
    """
    check_is_family(family)
    name = type(family).__name__
    _check_fields(name, family)
    # As every compiled program has them: one of NumPy could not be indexed by what a key draws.
    family = jax.tree.map(lambda leaf: jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf, family)
    instance_like = _traced(f"{name}.sample", family.sample, key)
    _check_instance(name, instance_like)
    params_like = _traced(f"{name}.init", family.init, instance_like, key)
    _check_params(name, params_like)
    loss = lambda *inputs: jax.tree.map(jnp.asarray, family.loss(*inputs))  # noqa: E731
    check_value(name, _traced(f"{name}.loss", loss, params_like, instance_like, key))
    sample_key, init_key, loss_key = jax.random.split(key, 3)
    with blame(f"{name}.sample"):
        instance = _draw_instance(family, sample_key)
    with blame(f"{name}.init"):
        params = _draw_params(family, instance, init_key)
    with blame(f"the gradient of {name}.loss"):
        value, grads = jax.device_get(_differentiate(family, params, instance, loss_key))
    if not np.isfinite(value):
        raise ValueError(
            f"{name}.loss is {value} at the start, so there is no descent to learn from. Check the initial params and"
            " guard divisions, roots and logarithms."
        )
    for path, grad in trees.named_leaves(grads).items():
        if not np.all(np.isfinite(grad)):
            raise ValueError(
                f"The gradient of {name}.loss with respect to params[{path!r}] is not finite at the start although"
                f" the loss is {value}: every optimizer would be lost after one step. Guard roots, norms and logarithms"
                " at zero so that their gradient is finite too."
            )
    if all(not np.any(grad) for grad in jax.tree.leaves(grads)):
        raise ValueError(
            f"The gradient of {name}.loss is exactly zero at the start, so no optimizer that sees gradients can move."
            " The loss is not differentiable in its params (a rounding, a comparison, stop_gradient or an integer in"
            " between), or it starts at a stationary point."
        )
    return params


# Of the module, so that a family that is checked again compiles nothing. Each runs once.
@functools.partial(Program, runs="once")
def _draw_instance(family: ProblemFamily, key: PRNGKeyArray) -> Instance:
    return family.sample(key)


@functools.partial(Program, runs="once")
def _draw_params(family: ProblemFamily, instance: Instance, key: PRNGKeyArray) -> Params:
    return family.init(instance, key)


@functools.partial(Program, runs="once")
def _differentiate(
    family: ProblemFamily, params: Params, instance: Instance, key: PRNGKeyArray
) -> tuple[Scalar, Params]:
    return family.value_and_grad(params, instance, key)


def check_is_family(family: Any) -> None:
    """**Raises:** `TypeError` for what is no family; a class instead of one of its instances is told by its name."""
    if isinstance(family, type):
        raise TypeError(
            f"You gave the class {family.__name__}, whose fields have no values, so it cannot be sampled or optimized."
            f" Give {family.__name__}()."
        )
    if not isinstance(family, ProblemFamily):
        raise TypeError(
            f"{type(family).__name__} is not a ProblemFamily, so it cannot be sampled or optimized. Subclass"
            " bygrad.ProblemFamily and write `sample`, `init` and `loss`."
        )


@contextlib.contextmanager
def blame(what: str) -> Iterator[None]:
    """Turn whatever a family raises into one error that says which part of it failed."""
    try:
        yield
    except NoHeldOutDataError:  # the family is right, but not for what is asked of it
        raise
    except Exception as error:
        said, of_host, traceback = str(error).strip().partition("Traceback (most recent call last):")
        if of_host:  # what a function outside of JAX raised comes as text, behind the lines of code that led there
            reason = next((line for line in traceback.splitlines() if line[:1].strip()), said).rstrip(".")
            raise ValueError(
                f"{what} raised {reason}. It happened in a function outside of JAX, without which there is nothing to"
                " optimize; mend that one first."
            ) from error
        reason = ": ".join(filter(None, (type(error).__name__, said.split("\n")[0].rstrip("."))))
        raise ValueError(
            f"{what} raised {reason}{_where(error)}. A family's methods must be JAX functions of"
            " their arguments (jax.numpy, no Python branches on values); mend this one first."
        ) from error


def _where(error: Exception) -> str:
    """Say in which line of code outside of Python's and its packages an error came up, for those who see no traceback:
    the command prints none."""
    installed = [Path(__file__).parents[1], *(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib"))]
    files = ((Path(frame.filename), frame.lineno) for frame in reversed(extract_tb(error.__traceback__)))
    theirs = (it for it in files if it[0].is_file() and not any(map(it[0].is_relative_to, installed)))
    return next((f" ({file.name}, line {line})" for file, line in theirs), "")


def _traced(what: str, function: Callable[..., Any], *inputs: Any) -> Any:
    """Return the shapes of what a function returns where it is compiled, and what is no array as it is.

    **Raises:** `ValueError` if it raises there, or draws from a generator of NumPy or Python: its constants, or what
    the generators have drawn, are then not the same twice.
    """

    def trace() -> tuple[Any, list[Any]]:
        rest: list[Any] = []

        def arrays(*inputs: Any) -> Any:  # another function, so traced again
            returned, others = eqx.partition(function(*inputs), eqx.is_array)
            rest.append(others)
            return returned

        program, shape = jax.make_jaxpr(arrays, return_shape=True)(*inputs)
        _, *state = np.random.get_state()
        constants = [*program.consts, *jax.tree.leaves(rest[0]), *state, *random.getstate()[1:]]
        return eqx.combine(shape, rest[0]), constants

    with blame(what):
        (shape, once), (_, twice) = trace(), trace()
    if not all(map(_alike, once, twice)):
        raise ValueError(
            f"{what} draws from a generator of NumPy or Python, which happens once, when it is compiled: all instances"
            " and steps would have the same draw. Draw from the key, jax.random.normal(key, shape), or, of a problem"
            " outside of JAX, make it an Oracle."
        )
    return shape


def _alike(one: Any, other: Any) -> bool:
    if one is other or not eqx.is_array_like(one):
        return True
    is_key = isinstance(one, jax.Array) and jnp.issubdtype(one.dtype, jax.dtypes.prng_key)
    one, other = (np.asarray(jax.random.key_data(it) if is_key else it) for it in (one, other))
    return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=one.dtype.kind in "fc")


def _check_fields(name: str, family: ProblemFamily) -> None:
    for path, leaf in trees.named_leaves(family).items():
        try:
            _ = None if is_array(leaf) else hash(leaf)
        except TypeError as error:
            raise TypeError(
                f"{name}.{path} is a {type(leaf).__name__}, which has no hash, so that a program with it compiled in"
                " could not be found again. Freeze it, @dataclasses.dataclass(frozen=True), say, or make it an"
                " equinox.Module where it holds arrays."
            ) from error


def _check_instance(name: str, instance: Instance) -> None:
    for path, leaf in trees.named_leaves(instance).items():
        if not isinstance(leaf, jax.ShapeDtypeStruct) and not eqx.is_array_like(leaf):
            raise TypeError(
                f"{name}.sample returned {type(leaf).__name__} at instance[{path!r}]; instances lie side by side in"
                " arrays, so that they can differ in nothing else. Return arrays or numbers, and make what all of them"
                " share a field of the family."
            )


def _check_params(name: str, params: Params) -> None:
    leaves = trees.named_leaves(params)
    if not leaves:
        raise TypeError(f"{name}.init returned a tree without arrays: there is nothing to optimize. Return the params.")
    for path, leaf in leaves.items():
        kind = getattr(leaf, "dtype", type(leaf).__name__)
        if isinstance(kind, str) or not jnp.issubdtype(kind, jnp.floating):
            remedy = "Convert it with jnp.asarray(..., jnp.float32), or make it a field of the family."
            if callable(leaf):  # an activation, in a model of Equinox
                remedy = (
                    "Return the arrays alone, eqx.filter(model, eqx.is_inexact_array), and put them into a model in"
                    " `loss`: eqx.combine(params, model), where the model is a field of the family."
                )
            raise TypeError(
                f"{name}.init returned {kind} at params[{path!r}]; only real floating-point arrays have gradients to"
                f" follow. {remedy}"
            )


def check_value(name: str, value: Any) -> None:
    """**Raises:** `TypeError` where the shape that `loss` returns is not that of one real number."""
    leaves = jax.tree.leaves(value)
    if len(leaves) != 1 or leaves[0].shape != () or not jnp.issubdtype(leaves[0].dtype, jnp.floating):
        found = ", ".join(f"{leaf.dtype}{list(leaf.shape)}" for leaf in leaves)
        raise TypeError(
            f"{name}.loss returned {found or 'nothing'}; a loss must be one real floating-point scalar, or its gradient"
            " is not defined. Reduce it with jnp.mean or jnp.sum, and return nothing else."
        )


def _kind(leaf: Any) -> Any:
    """Write a leaf without its address in memory, which would be another in the next process."""
    if eqx.is_array(leaf):
        return f"{leaf.dtype}{list(leaf.shape)}"
    if isinstance(leaf, functools.partial):
        return f"{_kind(leaf.func)}{leaf.args}{leaf.keywords}"
    if isinstance(leaf, set | frozenset):  # whose order is another in every process
        return f"{type(leaf).__name__}{sorted(str(_kind(it)) for it in leaf)}"
    leaf = getattr(leaf, "__func__", leaf)
    if callable(leaf) and hasattr(leaf, "__name__"):
        return f"{getattr(leaf, '__module__', '')}.{getattr(leaf, '__qualname__', leaf.__name__)}"
    return leaf


def leaf_in_words(leaf: Any) -> str:
    """Write what is no number and no text, a function say, in the same words in every process."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(_kind(leaf)))


def describe_family(family: ProblemFamily) -> dict[str, Any]:
    """Write a family as JSON values: its class, its static fields, and dtype and shape of its arrays."""
    return describe_module(family)


def describe_module(module: eqx.Module) -> dict[str, Any]:
    """Do so for any module: an optimizer that has no `config`, say."""
    described: dict[str, Any] = {"name": type(module).__name__}
    for field in dataclasses.fields(module):
        # Of arrays the kind alone: their entries may differ in the last digit from one machine to another.
        value = jax.tree.map(_kind, getattr(module, field.name))
        plain = isinstance(value, int | float | str | bool | None)
        described[field.name] = value if plain else leaf_in_words(value)
    return described


FAMILY_CHANGED = (
    "{}, the file that it is written in or its data, has changed since {} was begun: what was found before the change"
    " was found on other problems. Start again in another folder, unless the problems are the same."
)
"""What to say where `digest_family` is another than it was; with the family's name and the folder."""


def digest_family(family: ProblemFamily) -> str:
    """SHA-256 of the files that a family is written in, and of its arrays: what was found before either was mended does
    not belong to what is found after."""
    return _digest(family, _sources(family))


def digest_rule(rule: eqx.Module) -> str:
    """SHA-256 of an optimizer's arrays, and of the file of its class where that is none of this package: a version of
    ours trains as another did."""
    own = type(rule).__module__.partition(".")[0] == __name__.partition(".")[0]
    return _digest(rule, () if own else _written(type(rule)))


def _digest(tree: PyTree, sources: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for source in sources:
        digest.update(source)
    for leaf in jax.tree.leaves(tree):
        if eqx.is_array(leaf) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        digest.update(np.asarray(leaf).tobytes() if eqx.is_array_like(leaf) else b"")
    return digest.hexdigest()


def _sources(family: ProblemFamily) -> Iterator[bytes]:
    """Read where a family is written, the functions that it was given (`Oracle`) and the families inside it."""
    for written in (type(family), *filter(inspect.isfunction, vars(family).values())):
        yield from _written(written)
    for part in jax.tree.leaves(family, is_leaf=lambda it: it is not family and isinstance(it, ProblemFamily)):
        if isinstance(part, ProblemFamily):
            yield from _sources(part)


def _written(what: Any) -> Iterator[bytes]:
    """Read where a class or a function is written."""
    with contextlib.suppress(OSError, TypeError, SyntaxError):  # typed into a notebook, it has no file
        if what.__module__ == "__main__":  # the rest of a script changes without it: resume=True
            yield inspect.getsource(what).encode()
        else:
            yield Path(inspect.getfile(what)).read_bytes()
