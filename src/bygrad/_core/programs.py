"""Compiled programs: one for every structure of arguments, kept for as long as they are in use."""

import contextlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import equinox as eqx
import jax
import numpy as np
from jax.core import Tracer

Result = TypeVar("Result")


KEPT = 64
"""Compiled programs that a process keeps at most for each of its devices, each of which compiles its own. They take
hundreds of memory maps each, and Linux gives a process 65,530: a study of many structures would end in an error of the
compiler. So fewer are kept where half of those are in use."""

LOOK = 8
"""With every so many programs it is seen how many maps are in use, which takes some ten milliseconds."""


Runs = Literal["often", "seldom", "once"]
"""How often a program will run: the more seldom, the less time is spent on compiling it."""

OPTIONS: dict[Runs, dict[str, Any]] = {
    "often": {},
    "seldom": {"xla_backend_optimization_level": 2},
    "once": {"xla_backend_optimization_level": 2, "xla_cpu_use_fusion_emitters": False},
}
"""Options for CPUs. With those of `seldom` a program compiles in much less time (`benchmarks/compile_times.py`), and
most run as fast. With those of `once` it compiles sooner still, and may run more slowly."""

ANY_ORDER: dict[str, Any] = {
    "xla_cpu_enable_fast_math": True,
    "xla_cpu_fast_math_honor_nans": True,
    "xla_cpu_fast_math_honor_infs": True,
    "xla_cpu_fast_math_honor_division": True,
    "xla_cpu_fast_math_honor_functions": True,
}
"""Options for CPUs with which sums of several things at once use the lanes of the processor: terms are added in another
order. Nothing else is relaxed: what is NaN or infinite stays so, and functions are as exact."""

_ARRAY = object()


class _Kept:
    """The compiled programs used last, of all functions together."""

    def __init__(self) -> None:
        self._programs: OrderedDict[Any, Any] = OrderedDict()
        self._lock = threading.Lock()
        self._made: dict[Any, threading.Lock] = {}
        self._forget = False

    def __len__(self) -> int:
        return len(self._programs)

    def get(self, key: Any) -> Any:
        with self._lock:
            if key in self._programs:
                self._programs.move_to_end(key)
            return self._programs.get(key)

    def get_or_make(self, key: Any, make: Callable[[], Any]) -> Any:
        """Return a program, and make it where there is none: of several threads that ask for it, one does."""
        if (program := self.get(key)) is not None:
            return program
        with self._lock:
            turn = self._made.setdefault(key, threading.Lock())
        with turn:
            if (program := self.get(key)) is None:
                self.put(key, program := make())
        with self._lock:
            self._made.pop(key, None)
        return program

    def put(self, key: Any, program: Any) -> None:
        with self._lock:
            self._programs[key] = program
            count = len(self._programs)
            if count > KEPT * jax.local_device_count() or (count % LOOK == 0 and maps_are_scarce()):
                self._forget = True
                while len(self._programs) > count // 2:
                    self._programs.popitem(last=False)
        # JAX has references of its own. Half of them go at once, since what it forgets besides has to be traced again.
        # Its own caches are no place for two threads: where one compiles meanwhile, the next program is the occasion.
        if self._forget:
            with contextlib.suppress(RuntimeError):
                jax.clear_caches()
                self._forget = False


kept = _Kept()


def maps_are_scarce() -> bool:
    """Say whether this process has more than half of the memory maps that Linux gives to one."""
    try:
        with open("/proc/self/maps", "rb") as maps:
            return sum(1 for _ in maps) > int(Path("/proc/sys/vm/max_map_count").read_text()) // 2
    except OSError:
        return False  # another system


class Program(Generic[Result]):
    """A function that is compiled once for every structure, and tells the memory it needs before it runs.

    Arrays are arguments: other values compile nothing. NumPy's are as good as JAX's: to bring them to the device before
    would take longer. They must not change until the results are there. Everything else in the arguments (sizes,
    activation functions, an estimator's settings) is compiled in. Made at module level, as a decorator, so that a
    second meta-training finds it compiled.

    **Arguments:** `function`: pure. `donate`: the arguments whose memory may be reused, as in `equinox.filter_jit`.
    `runs`: how often it will, which decides how long to compile it. `any_order`: whether the order in which terms are
    added may change, and rounding with it.

    While JAX traces another function, a call becomes a part of that one.
    """

    def __init__(
        self,
        function: Callable[..., Result],
        donate: Literal["all", "all-except-first", "none"] = "none",
        runs: Runs = "often",
        any_order: bool = False,
    ) -> None:
        self._function, self._donate = function, donate
        self._options = OPTIONS[runs] | (ANY_ORDER if any_order else {})

    def __call__(self, *arguments: Any) -> Result:
        leaves, structure = jax.tree.flatten(arguments)
        if any(isinstance(leaf, Tracer) for leaf in leaves):
            return eqx.filter_jit(self._function)(*arguments)
        return self._compiled(leaves, structure)(*self._arrays(leaves, structure))

    def bytes_needed(self, *arguments: Any) -> int:
        """Return the memory that a call holds at its peak, arguments and results included."""
        return self.bytes_more(*arguments) + int(self._memory(*arguments).argument_size_in_bytes)

    def bytes_more(self, *arguments: Any) -> int:
        """Return how much of that is not there yet, when the arguments are."""
        memory = self._memory(*arguments)
        return int(memory.output_size_in_bytes - memory.alias_size_in_bytes + memory.temp_size_in_bytes)

    def _memory(self, *arguments: Any) -> Any:
        return self._compiled(*jax.tree.flatten(arguments)).compiled.memory_analysis()

    def _compiled(self, leaves: list[Any], structure: Any) -> "_Compiled":
        key = (self, _kind_of(leaves, structure), _configuration())
        return kept.get_or_make(key, lambda: self._compile(leaves, structure))

    def _compile(self, leaves: list[Any], structure: Any) -> "_Compiled":
        told: list[Any] = []
        # JAX keeps what it traced, so that must not hold on to the arrays of this call.
        fixed = [_ARRAY if is_array(leaf) else leaf for leaf in leaves]

        def traced(donated: tuple[Any, ...], others: tuple[Any, ...]) -> Any:
            arrays = iter((*others, *donated) if self._donate == "all-except-first" else (*donated, *others))
            filled = [next(arrays) if leaf is _ARRAY else leaf for leaf in fixed]
            result, rest = eqx.partition(self._function(*jax.tree.unflatten(structure, filled)), eqx.is_array)
            told.append(rest)
            return result

        traced.__name__ = getattr(self._function, "__name__", type(self._function).__name__)
        lowered = jax.jit(traced, donate_argnums=0).lower(*self._arrays(leaves, structure))
        return _Compiled(_compile(lowered, self._options), told[0])

    def _arrays(self, leaves: list[Any], structure: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Return the arrays of a call: those whose memory may be reused, and the others."""
        if self._donate == "all-except-first":
            first = structure.children()[0].num_leaves
            return tuple(filter(is_array, leaves[first:])), tuple(filter(is_array, leaves[:first]))
        arrays = tuple(filter(is_array, leaves))
        return (arrays, ()) if self._donate == "all" else ((), arrays)


class _Compiled:
    """A compiled program, and what it returns besides arrays."""

    def __init__(self, compiled: Any, rest: Any) -> None:
        self.compiled, self._rest = compiled, rest if jax.tree.leaves(rest) else None

    def __call__(self, donated: tuple[Any, ...], others: tuple[Any, ...]) -> Any:
        result = self.compiled(donated, others)
        return result if self._rest is None else eqx.combine(result, self._rest)


def _compile(lowered: Any, wanted: dict[str, Any]) -> Any:
    try:
        return lowered.compile(_options(wanted))
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
        return lowered.compile()  # another version of XLA: the options change nothing but the time


def _options(wanted: dict[str, Any]) -> dict[str, Any] | None:
    """Return the options to compile with, but for those that the environment chooses."""
    flags = os.environ.get("XLA_FLAGS", "")
    options = {name: value for name, value in wanted.items() if name not in flags}
    return options if options and jax.default_backend() == "cpu" else None


def is_array(leaf: Any) -> bool:
    """Say whether a program takes a leaf as an argument, rather than have it compiled in."""
    return isinstance(leaf, jax.Array | np.ndarray)


def kind_of(tree: Any) -> tuple[Any, ...]:
    """Return what a compiled program depends on in a tree: its structure, arrays without their values, all the rest."""
    return _kind_of(*jax.tree.flatten(tree))


def _kind_of(leaves: list[Any], structure: Any) -> tuple[Any, ...]:
    # With their types: 1, 1.0 and True are equal, and make different programs.
    return structure, tuple(_kind(leaf) if is_array(leaf) else (type(leaf), leaf) for leaf in leaves)


def _kind(array: Any) -> tuple[Any, ...]:
    return array.shape, array.dtype, getattr(array, "weak_type", False), getattr(array, "sharding", None)


def _configuration() -> tuple[Any, ...]:
    """Return what a program depends on besides: the precisions that JAX computes in, and where it puts arrays."""
    config: Any = jax.config
    return config.jax_enable_x64, config.jax_default_matmul_precision, config.jax_default_device
