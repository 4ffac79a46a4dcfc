"""Names for the types that cross rooms."""

from collections.abc import Callable
from typing import Any, TypeAlias

from jaxtyping import Array, Float, PRNGKeyArray, PyTree

Params: TypeAlias = PyTree[Any]
"""Inner variables: a pytree of floating-point arrays."""

Instance: TypeAlias = PyTree[Any]
"""What differs between two problems of one family: a pytree of arrays, possibly empty."""

State: TypeAlias = PyTree[Any]
"""What an optimizer remembers from one step to the next."""

Scalar: TypeAlias = Float[Array, ""]

Tick: TypeAlias = Callable[[str, int, int], None]
"""Is told how far long work is: `(what, done, total)`."""

__all__ = ["Array", "Float", "Instance", "PRNGKeyArray", "Params", "PyTree", "Scalar", "State", "Tick"]
