"""Windows in segments: the same meta-gradient as from a whole window, for less memory."""

import equinox as eqx
import jax
import numpy as np
import pytest

from bygrad.metagrads import Estimate, Replay
from bygrad.optimizers import LSTM, Adam, Nesterov, Optimizer
from bygrad.problems import Quadratic
from bygrad.unroll import Inner, Windows

KINDS = {"lstm": lambda: LSTM(jax.random.key(0), (3, 2)), "adam": Adam}


@eqx.filter_jit
def estimate(estimator: Replay, optimizer: Optimizer, windows: Windows, state: Inner) -> tuple[Estimate, Inner]:
    return estimator.estimate(optimizer, windows, state)


@pytest.fixture(scope="module", params=KINDS)
def optimizer(request: pytest.FixtureRequest) -> Optimizer:
    with jax.enable_x64(True):
        return eqx.filter_jit(KINDS[request.param])()


def test_segments_leave_no_trace(optimizer: Optimizer) -> None:
    # Two windows, the second with a state that is not the first one's, and an instance renewed in between.
    with jax.enable_x64(True):
        windows = Windows(Quadratic(3), horizon=12, truncation=6, instances=2)
        whole = state = windows.begin(optimizer, jax.random.key(1))
        for _ in range(2):
            ours, state = estimate(Replay(segment=2), optimizer, windows, state)
            theirs, whole = estimate(Replay(), optimizer, windows, whole)
            for a, b in zip(jax.tree.leaves((ours, state)), jax.tree.leaves((theirs, whole)), strict=True):
                if jax.numpy.issubdtype(a.dtype, jax.dtypes.prng_key):
                    a, b = jax.random.key_data(a), jax.random.key_data(b)
                np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-13)


def test_memory_does_not_grow_with_the_window() -> None:
    optimizer = LSTM(jax.random.key(0))

    def bytes_needed(truncation: int, segment: int) -> int:
        windows = Windows(Quadratic(500), truncation, truncation, 4)  # several blocks of coordinates
        state = windows.begin(optimizer, jax.random.key(1))
        lowered = estimate.lower(Replay(segment=segment), optimizer, windows, state)
        return lowered.compile().compiled.memory_analysis().temp_size_in_bytes

    assert bytes_needed(256, 16) < bytes_needed(256, 0) / 3


def test_segments_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="coordinates=1"):
        Replay(0.5, segment=2)
    windows = Windows(Quadratic(2), 6, 6, 1)
    optimizer = Nesterov()
    with pytest.raises(ValueError, match="divides the truncation"):
        Replay(segment=4).estimate(optimizer, windows, windows.begin(optimizer, jax.random.key(0)))
