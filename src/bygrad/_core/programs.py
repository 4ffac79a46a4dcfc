"""Compiled programs: one for every structure of arguments, kept for as long as the process lives."""

from collections.abc import Callable
from typing import Any, Generic, Literal, TypeVar

import equinox as eqx
import jax

Result = TypeVar("Result")


class Program(Generic[Result]):
    """A function that is compiled once for every structure, and tells the memory it needs before it runs.

    Arrays are arguments: other values compile nothing. Everything else in the arguments (sizes, activation functions,
    an estimator's settings) is compiled in. Made at module level, so that a second meta-training finds it compiled.

    **Arguments:** `function`: pure. `donate`: as in `equinox.filter_jit`, the arguments whose memory may be reused.
    """

    def __init__(
        self, function: Callable[..., Result], donate: Literal["all", "all-except-first", "none"] = "none"
    ) -> None:
        self._jitted: Any = eqx.filter_jit(function, donate=donate)
        self._compiled: dict[Any, Any] = {}

    def __call__(self, *arguments: Any) -> Result:
        return self._compile(*arguments)(*arguments)

    def bytes_needed(self, *arguments: Any) -> int:
        """Return the memory that a call holds at its peak, arguments and results included."""
        memory = self._compile(*arguments).compiled.memory_analysis()
        held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
        return int(held + memory.temp_size_in_bytes)

    def _compile(self, *arguments: Any) -> Any:
        key = kind_of(arguments)
        if key not in self._compiled:
            self._compiled[key] = self._lower(*arguments).compile()
        return self._compiled[key]

    def _lower(self, *arguments: Any) -> Any:
        return self._jitted.lower(*arguments)


def kind_of(tree: Any) -> tuple[Any, ...]:
    """Return what a compiled program depends on in a tree: its structure, arrays without their values, all the rest."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple(_kind(leaf) if eqx.is_array(leaf) else leaf for leaf in leaves)


def _kind(array: Any) -> tuple[Any, ...]:
    return array.shape, array.dtype, getattr(array, "weak_type", False), getattr(array, "sharding", None)
