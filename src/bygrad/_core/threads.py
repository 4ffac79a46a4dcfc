"""Ctrl-C while long calls run: threads for them, and a request that waits for a good moment."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Any, TypeVar

import jax

Result = TypeVar("Result")

_SHORT = 0.1
"""Seconds of one wait. A Ctrl-C that comes just before Python falls asleep does not wake it: it is heard after."""


class Threads(ThreadPoolExecutor):
    """A pool of threads that is not waited for where one leaves it early.

    Nothing in Python stops a compiled program, and the main thread hears of Ctrl-C only between two calls. So long
    programs run here, and the main thread waits for their results, where Ctrl-C reaches it at once. Calls that have not
    begun by then are dropped; those that have are left to themselves, and only the end of the interpreter waits for
    them. Calls compute in the precision, and on the device, of the thread that submits them. Wait for them by `map`,
    `completed` or `awaited`: these never miss a Ctrl-C.
    """

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        config: Any = jax.config
        x64, precision, device = config.jax_enable_x64, config.jax_default_matmul_precision, config.jax_default_device

        def call() -> Any:
            with jax.enable_x64(x64), jax.default_matmul_precision(precision), jax.default_device(device):
                return fn(*args, **kwargs)

        return super().submit(call)

    def map(  # pyright: ignore[reportIncompatibleMethodOverride] (nobody here gives a timeout)
        self, fn: Callable[..., Result], *iterables: Iterable[Any]
    ) -> Iterator[Result]:
        futures = [self.submit(fn, *arguments) for arguments in zip(*iterables, strict=True)]
        return (awaited(future) for future in futures)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown(wait=False, cancel_futures=True)


def completed(futures: Iterable[Future[Result]]) -> Iterator[Future[Result]]:
    """Yield futures in the order in which they end."""
    left = set(futures)
    while left:
        done, left = wait(left, timeout=_SHORT, return_when=FIRST_COMPLETED)
        yield from done


def awaited(future: Future[Result]) -> Result:
    """Wait for a future, and return its result."""
    return next(completed([future])).result()


def in_thread(call: Callable[..., Result], *arguments: Any, asked: Callable[[], bool] | None = None) -> Result:
    """Return what a call returns; Ctrl-C does not wait for it.

    **Arguments:** `asked`: where Ctrl-C does not raise, whether it was asked for; then this raises `KeyboardInterrupt`.
    """
    with Threads(1) as pool:
        future = pool.submit(call, *arguments)
        while not wait([future], timeout=_SHORT).done:
            if asked is not None and asked():
                raise KeyboardInterrupt
        return future.result()


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a request, which the caller looks for where it can stop; a second one interrupts.

    Where the process ignores it, as what a script runs in the background does, or another program's handler is in
    place, that stays.
    """
    asked = False

    def ask(number: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    # Outside of the main thread there are no signals to catch.
    here = threading.current_thread() is threading.main_thread()
    if not here or signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, None):
        yield lambda: False
        return
    previous = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, previous)
