"""Runs a method on a batch of any size: a working set of fixed size, refilled as instances finish.

`vmap` of a loop runs until the *slowest* instance has stopped. Here a chunk of steps runs on a working set until some
of its instances have finished; the host keeps their results and gives their rows to instances that wait. When none
wait, the rows that still run move together into a smaller working set. All programs have shapes of the working set
alone: a batch of any size compiles the same few.

With several devices, each solves a part of the rows by itself.
"""

import threading
import time
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, PyTree

from .._core import trees
from .._core.programs import Program
from .._core.threads import Threads
from .._core.types import Tick
from .base import Flat, Method, Progress
from .solution import RUNNING, Status

SHRINK = 4
"""A working set shrinks when no more than one in so many of its rows run. Each size is compiled once."""

SMALLEST = 16
"""Rows of the smallest working set: below, a step costs about the same."""

REFILL = 4
"""A chunk ends when one in so many rows has finished: idle rows and the look of the host then cost about the same."""

LONGEST = 200
"""Steps of a chunk at most, for whoever watches."""

Rows = dict[str, np.ndarray]


def run(
    method: Method,
    flat: Flat,
    instances: PyTree[np.ndarray],
    x: np.ndarray,
    *,
    batch: int,
    watch: Tick | None = None,
) -> Rows:
    """Solve every instance from its row of `x`.

    **Arguments:** `instances`: a pytree of NumPy arrays, one row an instance. `x`: `[rows, p]`. `batch`: the most rows
    that are worked on at once. `watch`: told `("solving", finished, rows)`.

    **Returns:** the fields of `Progress` as arrays by name, without `memory`; and `finished`, see `Solution`.
    """
    if len(devices := devices_for(len(x))) > 1:
        return _on_devices(method, flat, instances, x, devices, batch=batch, watch=watch)
    rows, waiting = len(x), 0
    results: Rows = {}
    if rows == 0:
        return _empty(x, method.multipliers(flat))
    size = capacity(rows, batch)
    slots = np.full(size, -1)
    at: Progress | None = None
    ours, starts = None, None
    while waiting < rows or np.any(slots >= 0):
        if at is not None and waiting == rows and (smaller := _smaller(slots)) < size:
            size, kept = smaller, np.flatnonzero(slots >= 0)
            pick = np.resize(kept, size)
            slots = np.where(np.arange(size) < len(kept), slots[pick], -1)
            at, ours, starts = _take(at, pick, slots >= 0), trees.rows(ours, pick), None
        free = np.flatnonzero(slots < 0)[: rows - waiting]
        fresh = np.zeros(size, bool)
        fresh[free] = True
        slots[free] = np.arange(waiting, waiting + len(free))
        waiting += len(free)
        if len(free):
            ours, starts = trees.rows((instances, x), np.maximum(slots, 0))
        if at is None:
            at = _begin(method, flat, ours, starts, fresh)
            fresh = np.zeros(size, bool)
        enough = size - max(1, size // REFILL) if waiting < rows else size // SHRINK if size > SMALLEST else 0
        refill = None if starts is None else (starts, fresh)
        at = _advance((method, flat, ours, refill, np.asarray(enough, np.int32)), at)
        _harvest(results, rows, slots, at)
        if watch is not None:
            watch("solving", waiting - int(np.sum(slots >= 0)), rows)
    return results


def devices_for(rows: int) -> Sequence[Any]:
    """Return the devices that a batch is divided among: all of this process, but no more than it fills.

    Inside `jax.default_device`, that device alone.
    """
    devices = jax.local_devices()
    chosen = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    return devices[: max(1, rows // SMALLEST)] if chosen is None else devices[:1]


def _on_devices(
    method: Method,
    flat: Flat,
    instances: PyTree[np.ndarray],
    x: np.ndarray,
    devices: Sequence[Any],
    *,
    batch: int,
    watch: Tick | None,
) -> Rows:
    """Solve an equal part of the rows on every device, each with a working set of its own: none waits for another."""
    parts = np.array_split(np.arange(len(x)), len(devices))
    lock, finished, left = threading.Lock(), [0] * len(devices), threading.Event()

    def solve_part(place: int) -> Rows:
        def told(what: str, done: int, _: int) -> None:
            with lock:
                if left.is_set():
                    raise KeyboardInterrupt  # nobody waits for these rows any more
                finished[place] = done
                if watch is not None:
                    watch(what, sum(finished), len(x))

        part, device = parts[place], devices[place]
        with jax.default_device(device):
            arrays, rest = eqx.partition((method, flat), eqx.is_array)
            method_here, flat_here = eqx.combine(jax.device_put(arrays, device), rest)
            some = trees.rows(instances, part)
            return run(method_here, flat_here, some, x[part], batch=batch, watch=told)

    try:
        with Threads(len(devices)) as pool:
            solved = list(pool.map(solve_part, range(len(devices))))
    finally:
        left.set()
    return {name: np.concatenate([rows[name] for rows in solved]) for name in solved[0]}


def capacity(rows: int, batch: int) -> int:
    """Return the size of the working set: about as many as there are rows, `batch` divided by a power of `SHRINK`."""
    size = batch
    while size > SMALLEST and size >= 2 * rows:
        size //= SHRINK
    return size


def _smaller(slots: np.ndarray) -> int:
    size, running = len(slots), int(np.sum(slots >= 0))
    while size > SMALLEST and size // SHRINK >= running:
        size //= SHRINK
    return size


def _harvest(results: Rows, rows: int, slots: np.ndarray, at: Progress) -> None:
    """Keep the results of the rows that have finished, and free their slots."""
    done = (slots >= 0) & (np.asarray(at.status) != RUNNING)
    fields = at._replace(memory=None)._asdict() | {"finished": np.full(len(slots), time.perf_counter())}
    for name, field in fields.items():
        if field is None or not np.any(done):
            continue
        values = np.asarray(field)
        if name not in results:
            results[name] = np.empty((rows, *values.shape[1:]), values.dtype)
        results[name][slots[done]] = values[done]
    slots[done] = -1


def _empty(x: np.ndarray, multipliers: int) -> Rows:
    real, whole, dual = np.empty(0, x.dtype), np.empty(0, np.int32), np.empty((0, multipliers), x.dtype)
    counts = {"status": whole, "nit": whole, "nfev": whole}
    return {"x": x, "dual": dual, "cost": real, "certificate": real, "finished": np.empty(0), **counts}


def _begun(method: Method, flat: Flat, instances: PyTree, x: Array, real: Bool[Array, " rows"]) -> Progress:
    def start(one: PyTree, x: Array) -> Progress:
        at, (low, high) = method.start(flat, one, x), flat.bounds(x, one)
        return at._replace(status=jnp.where(jnp.any(low > high), jnp.int32(Status.CONTRADICTION), at.status))

    at = jax.vmap(start)(instances, x)
    return at._replace(status=jnp.where(real, at.status, jnp.int32(Status.OUT_OF_STEPS)))


_begin = Program(_begun)


@Program
def _take(at: Progress, pick: Int[Array, " rows"], real: Bool[Array, " rows"]) -> Progress:
    at = trees.rows(at, pick)
    return at._replace(status=jnp.where(real, at.status, jnp.int32(Status.OUT_OF_STEPS)))


Refill = tuple[Array, Bool[Array, " rows"]]
"""Where the rows start, and which of them do."""


def _advanced(given: tuple[Method, Flat, PyTree, Refill | None, Int[Array, ""]], at: Progress) -> Progress:
    """Take steps until no more than `enough` rows run. What has finished stays as it is.

    `given`: method, family, the instances of the rows, the `refill`, of which `fresh` rows begin first, and `enough`.
    Smaller working sets are never refilled. They compile in less time without.
    """
    method, flat, ours, refill, enough = given
    if refill is not None:
        x, fresh = refill
        begin = lambda: trees.select_rows(fresh, _begun(method, flat, ours, x, fresh), at)  # noqa: E731
        at = jax.lax.cond(jnp.any(fresh), begin, lambda: at)

    def go_on(carry: tuple[Any, Progress]) -> Array:
        count, at = carry
        return (count < LONGEST) & (jnp.sum(at.status == RUNNING) > enough)

    def body(carry: tuple[Any, Progress]) -> tuple[Any, Progress]:
        count, at = carry
        after = jax.vmap(lambda one, at: method.step(flat, one, at))(ours, at)
        late = (after.status == RUNNING) & (after.nit >= method.max_steps)
        after = after._replace(status=jnp.where(late, jnp.int32(Status.OUT_OF_STEPS), after.status))
        return count + 1, trees.select_rows(at.status == RUNNING, after, at)

    return jax.lax.while_loop(go_on, body, (jnp.int32(0), at))[1]


_advance = Program(_advanced, donate="all-except-first")  # a working set is changed where it lies
