"""Runs a method on a batch of any size: a working set of fixed size, refilled as instances finish.

`vmap` of a loop runs until the *slowest* instance has stopped. Here steps run on a working set until some of its
instances have finished; these are noted, and their rows go to others that wait in a queue, all in one program. The host
fills the queue and reads the notes. When none wait, the rows that still run move together into a smaller working set.
All programs have shapes of the working set alone: a batch of any size compiles the same few.

With several devices, each solves a part of the rows by itself; of a single CPU, each core does. One program hardly
fills a second core: what is done at once to a working set is too little to be worth dividing.
"""

import contextlib
import math
import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from .._core import trees
from .._core.hosts import usable_cores
from .._core.programs import Program
from .._core.threads import Threads
from .._core.types import Tick
from .base import Flat, Method, Progress
from .solution import RUNNING, Status

SHRINK = 16
"""A working set shrinks when no more than one in so many of its rows run, down to `Method.smallest`. Each size is
compiled once, for seconds, so that there are as few as two."""

SHARE = 32
"""Rows that a device gets at least: for fewer it would compile longer than it helps."""

QUEUE = 8
"""So many working sets wait in a queue, where they have room: the host then costs next to nothing."""

ROOM = 2**24
"""Numbers that wait in a queue, and that are noted, at most: of rows that are longer, fewer wait."""

FIRST, SECONDS, MOST = 64, 0.3, 2**20
"""Steps that the first program takes at most; about how long each may run, as who watches or interrupts waits for it;
and the most steps of any, since quick ones say nothing about how many there is time for."""

Rows = dict[str, np.ndarray]


class Work(NamedTuple):
    """A working set: how far it is, the instances of its rows, and which of the batch each is, -1 for none."""

    at: Progress
    instances: PyTree
    which: Int[Array, " rows"]


class Queue(NamedTuple):
    """Instances that wait, and their starts: numbers `first` to `end`, without the last, of `rows` in the batch."""

    instances: PyTree
    x: Float[Array | np.ndarray, "lot p"]
    first: Any
    end: Any
    rows: Any


class Notes(NamedTuple):
    """Which instances have finished, -1 for none, and how they ended."""

    which: Int[Array, " rows"]
    at: Progress


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
    if len(x) == 0:
        return _empty(x, method.multipliers(flat))
    devices = devices_for(len(x))
    if len(devices) == 1 and (cores := cores_for(len(x), batch)) > 1:
        devices = [None] * cores
    if len(devices) > 1:
        return _divided(method, flat, instances, x, devices, batch=batch, watch=watch)
    return _run(method, flat, instances, x, batch=batch, watch=watch)


def _run(
    method: Method, flat: Flat, instances: PyTree[np.ndarray], x: np.ndarray, *, batch: int, watch: Tick | None
) -> Rows:
    """Solve every instance with one working set, on the device in use."""
    rows, results = len(x), {}
    size = capacity(method, rows, batch)
    lot = size * _lots(method, flat, instances, x, size)
    which = np.arange(size, dtype=np.int32)
    place = np.minimum(which, rows - 1)
    work = _begin(method, flat, trees.rows(instances, place), x[place], np.where(which < rows, which, -1))
    waiting, most = min(size, rows), FIRST
    while True:
        began = time.perf_counter()
        numbers = (np.asarray(it, np.int32) for it in (waiting, min(rows, waiting + lot), rows))
        queue = Queue(*_part((instances, x), waiting, lot), *numbers)
        work, notes, next_ = _advance((method, flat, queue, np.asarray(most, np.int32)), work)
        waiting = int(next_)
        _keep(results, rows, notes)
        left = np.flatnonzero(np.asarray(work.which) >= 0)
        if watch is not None:
            watch("solving", waiting - len(left), rows)
        if waiting == rows and not len(left):
            return results
        if waiting == rows and len(left) <= _remainder(method, size):
            while len(left) <= _remainder(method, size):
                size = _remainder(method, size)
            lot = size * _lots(method, flat, instances, x, size)
            work = _take(work, np.resize(left, size), np.arange(size) < len(left))
        # The first one may have compiled, and any may have ended early: they lead to others step by step.
        most = int(np.clip(most * SECONDS / (time.perf_counter() - began), 1, min(2 * most, MOST)))


def devices_for(rows: int) -> Sequence[Any]:
    """Return the devices that a batch is divided among: all of this process, but no more than it fills.

    Inside `jax.default_device`, that device alone.
    """
    devices = jax.local_devices()
    chosen = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    return devices[: max(1, rows // SHARE)] if chosen is None else devices[:1]


def cores_for(rows: int, batch: int) -> int:
    """Return among how many threads to divide rows on the device in use, of which `batch` are worked on at once: on a
    CPU one a core, but no more than have that many rows; anything else is filled by one."""
    chosen: Any = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    platform = jax.default_backend() if chosen is None else getattr(chosen, "platform", chosen)
    return min(usable_cores(), rows // batch) if rows >= 2 * batch and platform == "cpu" else 1


def _divided(
    method: Method,
    flat: Flat,
    instances: PyTree[np.ndarray],
    x: np.ndarray,
    devices: Sequence[Any],
    *,
    batch: int,
    watch: Tick | None,
) -> Rows:
    """Solve an equal part of the rows on every device, None being the one in use, each with a working set of its own:
    none waits for another."""
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

        device, part = devices[place], slice(parts[place][0], parts[place][-1] + 1)
        method_here, flat_here = method, flat
        with contextlib.nullcontext() if device is None else jax.default_device(device):
            if device is not None:
                arrays, rest = eqx.partition((method, flat), eqx.is_array)
                method_here, flat_here = eqx.combine(jax.device_put(arrays, device), rest)
            return _run(method_here, flat_here, trees.rows(instances, part), x[part], batch=batch, watch=told)

    try:
        with Threads(len(devices)) as pool:
            solved = list(pool.map(solve_part, range(len(devices))))
    finally:
        left.set()
    return {name: np.concatenate([rows[name] for rows in solved]) for name in solved[0]}


def capacity(method: Method, rows: int, batch: int) -> int:
    """Return the size of the working set to begin with, of those that one of `batch` rows shrinks to: with half of its
    rows without an instance it would be too large, and others can wait."""
    size = batch
    while size > method.smallest and size >= 2 * rows:
        size = _remainder(method, size)
    return size


def _remainder(method: Method, size: int) -> int:
    """Return how many may still run when a working set shrinks, which is its next size, or ends."""
    return max(size // SHRINK, method.smallest) if size > method.smallest else 0


def _lots(method: Method, flat: Flat, instances: PyTree[np.ndarray], x: np.ndarray, size: int) -> int:
    """Return how many working sets may wait: of long rows fewer than `QUEUE`, as they take room, and notes of them."""
    waiting = sum(math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(instances)) + x.shape[1]
    noted = x.shape[1] + method.multipliers(flat)
    return int(np.clip(ROOM // (size * (waiting + noted)), 1, QUEUE))


def _part(rows: PyTree[np.ndarray], first: int, count: int) -> PyTree[np.ndarray]:
    """Return `count` rows from the first one on, without a copy; with zeros after the last."""

    def part(leaf: np.ndarray) -> np.ndarray:
        some = leaf[first : first + count]
        if len(some) == count:
            return some
        filled = np.zeros((count, *leaf.shape[1:]), leaf.dtype)
        filled[: len(some)] = some
        return filled

    return jax.tree.map(part, rows)


def _keep(results: Rows, rows: int, notes: Notes) -> None:
    """Keep the results of the instances that have finished, which come first."""
    which = np.asarray(notes.which)
    count = int(np.count_nonzero(which >= 0))
    fields = notes.at._asdict() | {"finished": np.full(which.shape, time.perf_counter())}
    del fields["memory"]
    for name, field in fields.items():
        values = np.asarray(field)
        if name not in results:
            results[name] = np.empty((rows, *values.shape[1:]), values.dtype)
        results[name][which[:count]] = values[:count]


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


@Program
def _begin(method: Method, flat: Flat, instances: PyTree, x: Array, which: Int[Array, " rows"]) -> Work:
    return Work(_begun(method, flat, instances, x, which >= 0), instances, which)


@Program
def _take(work: Work, pick: Int[Array, " rows"], real: Bool[Array, " rows"]) -> Work:
    at, instances, which = trees.rows(work, pick)
    at = at._replace(status=jnp.where(real, at.status, jnp.int32(Status.OUT_OF_STEPS)))
    return Work(at, instances, jnp.where(real, which, -1))


def _stepped(
    method: Method, flat: Flat, work: Work, enough: int | Int[Array, ""], steps: Int[Array, ""]
) -> tuple[Work, Int[Array, ""]]:
    """Take steps until no more than `enough` rows run, or until none of the `steps` is left; return these too. What has
    finished stays as it is."""
    instances = work.instances

    def go_on(carry: tuple[Array, Progress]) -> Array:
        left, at = carry
        return (left > 0) & (jnp.sum(at.status == RUNNING) > enough)

    def body(carry: tuple[Array, Progress]) -> tuple[Array, Progress]:
        left, at = carry
        after = jax.vmap(lambda one, at: method.step(flat, one, at))(instances, at)
        late = (after.status == RUNNING) & (after.nit >= method.max_steps)
        after = after._replace(status=jnp.where(late, jnp.int32(Status.OUT_OF_STEPS), after.status))
        return left - 1, trees.select_rows(at.status == RUNNING, after, at)

    left, at = jax.lax.while_loop(go_on, body, (steps, work.at))
    return work._replace(at=at), left


def _noted(work: Work, notes: Notes, count: Int[Array, ""], most: int) -> tuple[Work, Notes, Int[Array, ""]]:
    """Note no more than `most` of the rows that have finished, after the `count` that are noted, which is returned as
    well; they have no number any more."""
    done = (work.at.status != RUNNING) & (work.which >= 0)
    place = jnp.cumsum(done, dtype=jnp.int32)
    chosen = jnp.searchsorted(place, jnp.arange(1, most + 1, dtype=jnp.int32))
    which, at = trees.rows((work.which, work.at._replace(memory=None)), jnp.minimum(chosen, len(done) - 1))
    block = Notes(jnp.where(chosen < len(done), which, -1), at)
    notes = jax.tree.map(lambda whole, some: jax.lax.dynamic_update_slice_in_dim(whole, some, count, 0), notes, block)
    taken = done & (place <= most)
    return work._replace(which=jnp.where(taken, -1, work.which)), notes, count + jnp.sum(taken, dtype=jnp.int32)


def _advanced(given: tuple[Method, Flat, Queue, Int[Array, ""]], work: Work) -> tuple[Work, Notes, Int[Array, ""]]:
    """Solve instances until none waits in the queue or, where it is the last, the working set may shrink; return what
    is noted, and which of the batch waits next.

    Which instances are in the working set after how many steps does not depend on where programs end, which hangs on
    the clock: rows are given away only where enough are free, and always as many at once. So the same batch has the
    same results, to the last bit, as compilers treat the rows of a working set differently, and each of its sizes.

    `given`: method, family, the queue, and the most steps.
    """
    method, flat, queue, steps = given
    size = len(work.which)
    few = max(1, size // method.refill)

    def short(waiting: Array) -> Array:
        """Say whether only the next queue has enough."""
        return (waiting + few > queue.end) & (queue.end < queue.rows)

    def go_on(carry: tuple[Array, Array, Array, Work, Notes]) -> Array:
        left, waiting, _, work, _ = carry
        running = work.at.status == RUNNING
        more = (waiting < queue.rows) | (jnp.sum(running) > _remainder(method, size))
        return ((left > 0) & more) | jnp.any(~running & (work.which >= 0))

    def body(carry: tuple[Array, Array, Array, Work, Notes]) -> tuple[Array, Array, Array, Work, Notes]:
        left, waiting, count, work, notes = carry
        enough = jnp.where(waiting < queue.rows, size - few, _remainder(method, size))
        work, left = _stepped(method, flat, work, enough, left)
        work, notes, count = _noted(work, notes, count, few)
        ready = (jnp.sum(work.at.status == RUNNING) <= enough) & ~short(waiting)
        free = work.which < 0
        place = jnp.cumsum(free, dtype=jnp.int32) - 1
        fresh = free & (place < few) & (waiting + place < queue.end) & ready
        number = jnp.minimum(waiting + jnp.arange(few, dtype=jnp.int32), queue.end - 1) - queue.first
        instances, x = trees.rows((queue.instances, queue.x), number)
        begun = _begun(method, flat, instances, x, jnp.ones(few, bool))
        begun, instances = trees.rows((begun, instances), jnp.clip(place, 0, few - 1))
        at, instances = trees.select_rows(fresh, (begun, instances), (work.at, work.instances))
        work = Work(at, instances, jnp.where(fresh, waiting + place, work.which))
        waiting += jnp.sum(fresh, dtype=jnp.int32)
        return jnp.where(short(waiting), 0, left), waiting, count, work, notes

    room = len(queue.x) + size + few  # what waits, what runs, and what is written over by the next
    blank = jax.tree.map(lambda leaf: jnp.zeros((room, *leaf.shape[1:]), leaf.dtype), work.at._replace(memory=None))
    notes = Notes(jnp.full(room, -1, jnp.int32), blank)
    _, waiting, _, work, notes = jax.lax.while_loop(go_on, body, (steps, queue.first, jnp.int32(0), work, notes))
    return work, notes, waiting


# A working set is changed where it lies.
_ADVANCE = {order: Program(_advanced, donate="all-except-first", any_order=order) for order in (False, True)}


def _advance(given: tuple[Method, Flat, Queue, Any], work: Work) -> tuple[Work, Notes, Int[Array, ""]]:
    return _ADVANCE[given[0].any_order](given, work)
