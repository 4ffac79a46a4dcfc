"""A process that belongs to a job of several: how it joins, and how it ends."""

import _thread
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from .._core.hosts import LastWords, join, parse_hosts, refuse_to_repeat

_last_words: LastWords | None = None
"""Of this process, where it belongs to a job of several."""


def in_job() -> bool:
    """Say whether this process has joined others."""
    return _last_words is not None


def join_job(hosts: str | None, folder: Path) -> None:
    """Join the job that `hosts` describes, if it is not `none`; `folder` is where it can be resumed from."""
    global _last_words
    if hosts is None:
        refuse_to_repeat()
    if hosts is None or hosts == "none":
        return
    parse_hosts(hosts)
    _last_words = LastWords(
        "bygrad: this process ended in the middle of its work: it was killed, or the runtime ended it because another"
        " process of the job was lost (the lines above say so then). The job cannot go on without it. The same command"
        f" with --resume goes on from the last checkpoint in {folder}, on any number of devices and processes."
    )
    join(hosts)


def leave(status: int) -> NoReturn:
    """End with a status; in a job of several processes at once, as JAX would first wait for those that cannot come."""
    if _last_words is None:
        sys.exit(status)
    _end_at_once(status)


@contextlib.contextmanager
def hearing_ctrl_c() -> Iterator[None]:
    """Interrupt again, a little later, where a Ctrl-C has come to nothing.

    Python ignores what is raised in callbacks of its garbage collector, such as JAX's, and in finalizers, and the
    command would run on to its end. Who handles SIGINT, or ignores it, is left as it is.
    """
    before = sys.unraisablehook

    def press_again() -> None:
        time.sleep(0.05)  # at once, it would end in the same callback
        if sys.unraisablehook is not hear:  # there is nothing left to interrupt
            return
        if sys.platform == "win32":
            signal.raise_signal(signal.SIGINT)
        else:  # only a signal to the main thread itself wakes it where it waits for others
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    def hear(ignored: "sys.UnraisableHookArgs") -> None:
        if issubclass(ignored.exc_type, KeyboardInterrupt):
            # Not by `threading`, whose locks may be held where the garbage collector began.
            _thread.start_new_thread(press_again, ())
        else:
            before(ignored)

    sys.unraisablehook = hear
    try:
        yield
    finally:
        sys.unraisablehook = before


def interrupt() -> NoReturn:
    """End after Ctrl-C; at once where a thread still computes, as Python would first wait for it."""
    main = threading.main_thread()
    # The processes of a job have all stopped after the same meta-step, and end together.
    if not in_job() and any(not thread.daemon for thread in threading.enumerate() if thread is not main):
        _end_at_once(130)
    sys.exit(130)


def _end_at_once(status: int) -> NoReturn:
    withhold()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def withhold() -> None:
    """Say no last words: this process ends as it should."""
    if _last_words is not None:
        _last_words.withhold()
