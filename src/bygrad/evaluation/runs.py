"""Runs of an optimizer on fresh instances, timed, in pieces of a size that memory and a person's patience allow."""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Shaped

from .._core.programs import Program
from .._core.threads import Threads, in_thread
from .._core.types import PRNGKeyArray
from ..optimizers import Optimizer, judged_elsewhere
from ..problems import ProblemFamily, descended
from ..unroll import compiled_loss_curves, loss_curves

Curves = np.ndarray
Ticker = Callable[[int, int], None]
"""Is told `(done, total)` runs."""

SIDE_BY_SIDE = 2
"""Programs that compile or run at a time: XLA compiles one, and runs many small operations, on a single core. No more
than two, because each takes its memory."""


def run_curves(
    optimizer: Optimizer,
    family: ProblemFamily,
    key: PRNGKeyArray,
    *,
    horizon: int,
    runs: int,
    chunk: int = 16,
    tick: Ticker | None = None,
) -> tuple[Curves, float]:
    """Run an optimizer on `runs` fresh instances, `chunk` of them at a time.

    **Returns:** curves `[runs, horizon + 1]`, column `t` the loss after `t` updates; and the wall-clock seconds of a
    step of a run, problem and optimizer together, compilation left out, when runs go `chunk` at a time and nothing else
    does: those of the first `chunk`. What an optimizer takes to be judged elsewhere, or on held-out data, is none of
    its time.
    """
    options: dict[str, Any] = {"horizon": horizon, "chunk": chunk}
    curves, seconds = run_in_chunks(compiled_loss_curves, (optimizer, family), key, runs=runs, tick=tick, **options)
    timed = descended(family)
    if judged_elsewhere(optimizer) or timed is not family:
        _, seconds = run_in_chunks(_curves_in_passing, (optimizer, timed), key, runs=min(chunk, runs), **options)
    return curves, seconds


def curves_side_by_side(
    optimizer: Optimizer, family: ProblemFamily, keys: Shaped[PRNGKeyArray, " runs"], horizon: int
) -> Curves:
    """Run an optimizer on the instance of each key, without taking the time: a part in each of a few threads.

    **Returns:** curves `[keys, horizon + 1]`, as `run_curves`. All parts run one program, so `SIDE_BY_SIDE` divides how
    many keys there are.
    """
    parts = keys.reshape(SIDE_BY_SIDE, -1)
    in_thread(compiled_loss_curves.bytes_needed, optimizer, family, parts[0], horizon)  # compiles, once for all
    with Threads(SIDE_BY_SIDE) as pool:
        curves = pool.map(lambda part: np.asarray(compiled_loss_curves(optimizer, family, part, horizon)), list(parts))
        return np.concatenate(list(curves)).astype(np.float64)


@functools.partial(Program, runs="seldom")
def _curves_in_passing(optimizer: Optimizer, family: ProblemFamily, keys: Any, horizon: int) -> Any:
    return loss_curves(optimizer, family, keys, horizon, in_passing=True)


def compile_curves(
    optimizer: Optimizer, family: ProblemFamily, key: PRNGKeyArray, *, horizon: int, runs: int, chunk: int
) -> None:
    """Compile what `run_curves` will run, and run nothing."""
    compiled_loss_curves.bytes_needed(optimizer, family, jax.random.split(key, min(chunk, runs)), horizon)


def run_in_chunks(
    curves_of: Program[Any],
    problem: tuple[Any, ...],
    key: PRNGKeyArray,
    *,
    horizon: int,
    runs: int,
    chunk: int,
    tick: Ticker | None = None,
) -> tuple[Curves, float]:
    """`run_curves` for any program from `(*problem, keys, horizon)` to curves `[chunk, horizon + 1]`."""
    chunk = min(chunk, runs)
    pieces = -(-runs // chunk)
    keys = jax.random.split(key, pieces * chunk).reshape(pieces, chunk)
    in_thread(curves_of.bytes_needed, *problem, keys[0], horizon)  # compiles, so that it is not timed

    def run(piece: Any) -> Curves:
        return np.asarray(curves_of(*problem, piece, horizon), np.float64)

    # The first piece has the machine to itself and is timed; the others may share it.
    started = time.perf_counter()
    curves = [in_thread(run, keys[0])]
    seconds = time.perf_counter() - started
    with Threads(SIDE_BY_SIDE) as pool:
        others = pool.map(run, list(keys[1:]))
        for done in range(1, pieces + 1):
            if tick is not None:
                tick(min(done * chunk, runs), runs)
            if done < pieces:
                curves.append(next(others))
    return np.concatenate(curves)[:runs], seconds / (chunk * horizon)


def area(curves: Curves) -> Curves:
    """Sum the losses before each update: `[..., horizon + 1]` to `[...]`."""
    return np.sum(curves[..., :-1], axis=-1)


def final(curves: Curves, window: int) -> Curves:
    """Average the last `window` losses: `[..., horizon + 1]` to `[...]`."""
    return np.mean(curves[..., -window:], axis=-1)
