"""Compiled programs: one for every structure of arguments, kept for as long as they are in use."""

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Generic, Literal, TypeVar

import equinox as eqx
import jax

Result = TypeVar("Result")


KEPT = 64
"""Compiled programs that a process keeps at most for each of its devices, each of which compiles its own. They take
hundreds of memory maps each, of which a process may have 65,530 under Linux: a study of many structures would end in an
error of the compiler."""


class _Kept:
    """The compiled programs used last, of all functions together."""

    def __init__(self) -> None:
        self._programs: OrderedDict[Any, Any] = OrderedDict()
        self._lock = threading.Lock()
        self._forget = False

    def __len__(self) -> int:
        return len(self._programs)

    def get(self, key: Any) -> Any:
        with self._lock:
            if key in self._programs:
                self._programs.move_to_end(key)
            return self._programs.get(key)

    def put(self, key: Any, program: Any) -> None:
        most = KEPT * jax.local_device_count()
        with self._lock:
            self._programs[key] = program
            if len(self._programs) > most:
                self._forget = True
                while len(self._programs) > most // 2:
                    self._programs.popitem(last=False)
        # JAX has references of its own. Half of them go at once, since what it forgets besides has to be traced again.
        # Its own caches are no place for two threads: where one compiles meanwhile, the next program is the occasion.
        if self._forget:
            with contextlib.suppress(RuntimeError):
                jax.clear_caches()
                self._forget = False


kept = _Kept()


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

    def __call__(self, *arguments: Any) -> Result:
        return self._compile(*arguments)(*arguments)

    def bytes_needed(self, *arguments: Any) -> int:
        """Return the memory that a call holds at its peak, arguments and results included."""
        return self.bytes_more(*arguments) + int(self._memory(*arguments).argument_size_in_bytes)

    def bytes_more(self, *arguments: Any) -> int:
        """Return how much of that is not there yet, when the arguments are."""
        memory = self._memory(*arguments)
        return int(memory.output_size_in_bytes - memory.alias_size_in_bytes + memory.temp_size_in_bytes)

    def _memory(self, *arguments: Any) -> Any:
        return self._compile(*arguments).compiled.memory_analysis()

    def _compile(self, *arguments: Any) -> Any:
        key = (self, kind_of(arguments), _configuration())
        if (program := kept.get(key)) is None:
            kept.put(key, program := self._lower(*arguments).compile())
        return program

    def _lower(self, *arguments: Any) -> Any:
        return self._jitted.lower(*arguments)


def kind_of(tree: Any) -> tuple[Any, ...]:
    """Return what a compiled program depends on in a tree: its structure, arrays without their values, all the rest."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple(_kind(leaf) if eqx.is_array(leaf) else leaf for leaf in leaves)


def _kind(array: Any) -> tuple[Any, ...]:
    return array.shape, array.dtype, getattr(array, "weak_type", False), getattr(array, "sharding", None)


def _configuration() -> tuple[Any, ...]:
    """Return what a program depends on besides: the precisions that JAX computes in, here and now."""
    config: Any = jax.config
    return config.jax_enable_x64, config.jax_default_matmul_precision
