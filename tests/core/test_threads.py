"""Threads for long calls: Ctrl-C does not wait for them, and they compute as the thread that asks does."""

import _thread
import os
import signal
import threading

import jax
import jax.numpy as jnp
import pytest

from bygrad._core.threads import Threads, in_thread, interruptible


def test_calls_compute_in_the_precision_of_who_asks():
    def found() -> tuple[jnp.dtype, str]:
        return jnp.ones(1).dtype, str(jax.make_jaxpr(jnp.matmul)(jnp.eye(2), jnp.eye(2)))

    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        here, there = found(), in_thread(found)
    assert there == here and here[0] == jnp.float64
    assert in_thread(found) == found() != here


def test_results_and_errors_come_back():
    assert in_thread(divmod, 7, 3, asked=lambda: False) == (2, 1)
    with pytest.raises(ZeroDivisionError):
        in_thread(divmod, 7, 0, asked=lambda: False)


def test_whoever_leaves_waits_for_nothing_and_what_has_not_begun_never_does():
    begun, over, ran = threading.Event(), threading.Event(), []

    def first() -> None:
        begun.set()
        over.wait(60)
        ran.append("first")

    pool = Threads(1)
    running, dropped = pool.submit(first), pool.submit(ran.append, "second")
    begun.wait(60)
    with pytest.raises(KeyboardInterrupt), pool:
        raise KeyboardInterrupt
    assert dropped.cancelled() and not ran
    over.set()
    running.result()
    assert ran == ["first"]


@pytest.mark.parametrize("wait", [in_thread, lambda call: list(Threads(1).map(lambda _: call(), [0]))])
def test_no_ctrl_c_is_missed_by_who_falls_asleep(wait):
    """A signal that comes just before does not end the wait, and neither does this."""
    over, waited = threading.Event(), []

    def call() -> None:
        _thread.interrupt_main()
        waited.append(over.wait(60))

    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            wait(call)
        assert not waited
    finally:
        signal.signal(signal.SIGINT, handler)
        over.set()


def test_who_is_asked_to_stop_does_not_wait():
    over = threading.Event()
    with pytest.raises(KeyboardInterrupt):
        in_thread(over.wait, 60, asked=lambda: True)
    over.set()


@pytest.mark.parametrize("ignored", [False, True])
def test_ctrl_c_is_a_request_but_for_who_ignores_it(ignored):
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.default_int_handler)
    try:
        with interruptible() as asked:
            os.kill(os.getpid(), signal.SIGINT)
            assert asked() is not ignored
        assert signal.getsignal(signal.SIGINT) is (signal.SIG_IGN if ignored else signal.default_int_handler)
        with interruptible() as asked:
            assert in_thread(interruptible().__enter__)() is asked() is False
    finally:
        signal.signal(signal.SIGINT, handler)
