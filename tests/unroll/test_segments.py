"""Windows in segments: the same meta-gradient as from a whole window, for less memory."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bygrad.metagrads import Estimate, Replay
from bygrad.optimizers import LSTM, Adam, Nesterov, Optimizer, Partition
from bygrad.problems import ProblemFamily, Quadratic
from bygrad.unroll import Inner, Windows, best_segment


class Divided(ProblemFamily):
    """Bowls of two arrays."""

    size: int = eqx.field(static=True)

    def sample(self, key):
        return jax.random.normal(key, (self.size,))

    def init(self, instance, key):
        left, right = jnp.split(jax.random.normal(key, (self.size,)), [self.size // 2])
        return {"left": left, "right": right}

    def loss(self, params, instance, key):
        point = jnp.concatenate([params["left"], params["right"]])
        return jnp.sum((instance * point) ** 2)


def divided(**parts: Optimizer) -> Partition:
    return Partition(parts=parts, rules=(("left", "first"), ("right", "second"), ("*", "idle")))


def lstm(*layers: int) -> LSTM:
    return LSTM(jax.random.key(0), layers)


KINDS = {
    "lstm": lambda: lstm(3, 2),
    "adam": Adam,
    "partition": lambda: divided(first=lstm(3, 2), second=lstm(2), idle=lstm(2)),
    "mixed": lambda: divided(first=lstm(2), second=Adam(), idle=Adam()),
}


@eqx.filter_jit
def estimate(estimator: Replay, optimizer: Optimizer, windows: Windows, state: Inner) -> tuple[Estimate, Inner]:
    return estimator.estimate(optimizer, windows, state)


@pytest.fixture(
    scope="module", params=[pytest.param(it, marks=[pytest.mark.slow] * (it in ("lstm", "adam"))) for it in KINDS]
)
def optimizer(request: pytest.FixtureRequest) -> Optimizer:
    with jax.enable_x64(True):
        return eqx.filter_jit(KINDS[request.param])()


def test_segments_leave_no_trace(optimizer: Optimizer, monkeypatch: pytest.MonkeyPatch) -> None:
    # Two windows, the second with a state that is not the first one's, and an instance renewed in between.
    monkeypatch.setattr(LSTM, "block", 4)  # blocks, the last of which is not full
    with jax.enable_x64(True):
        windows = Windows(Divided(5), horizon=12, truncation=6, instances=2)
        whole = state = windows.begin(optimizer, jax.random.key(1))
        for _ in range(2):
            ours, state = estimate(Replay(segment=2), optimizer, windows, state)
            theirs, whole = estimate(Replay(), optimizer, windows, whole)
            for a, b in zip(jax.tree.leaves((ours, state)), jax.tree.leaves((theirs, whole)), strict=True):
                if jax.numpy.issubdtype(a.dtype, jax.dtypes.prng_key):
                    a, b = jax.random.key_data(a), jax.random.key_data(b)
                np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(
    "estimator",
    [
        pytest.param(Replay(segment=1), id="segments", marks=pytest.mark.slow),
        pytest.param(Replay(0.5), id="coordinates"),
    ],
)
def test_a_part_whose_params_have_no_entries_leaves_the_others_as_they_are(estimator: Replay) -> None:
    class Hollow(Divided):
        def init(self, instance, key):
            return super().init(instance, key) | {"none": jnp.zeros((0, 3))}

    found = []
    for family in (Divided(5), Hollow(5)):
        optimizer = divided(first=lstm(2), second=lstm(2), idle=lstm(2))
        windows = Windows(family, 2, 2, 2)
        found.append(estimate(estimator, optimizer, windows, windows.begin(optimizer, jax.random.key(1)))[0])
    for a, b in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


class Hit(Divided):
    """One gradient of the first half of the instances is infinite in the middle of a run, and no loss tells."""

    def value_and_grad(self, params, instance, key):
        value, grads = jax.value_and_grad(self.loss)(params, instance, key)
        hit = jnp.sum(jnp.square(instance)) > 5
        bad = hit & (jax.random.uniform(key) < 0.4)
        return value, jax.tree.map(lambda leaf: jnp.where(bad, jnp.inf, leaf), grads)


def test_an_instance_with_a_gradient_that_is_not_finite_is_left_out_of_segments_as_of_the_whole():
    optimizer = divided(first=lstm(2), second=lstm(2), idle=lstm(2))  # which survive it: they see logarithms, cut
    windows = Windows(Hit(5), 6, 6, 16)
    state = windows.begin(optimizer, jax.random.key(1))
    whole, _ = estimate(Replay(), optimizer, windows, state)
    ours, _ = estimate(Replay(segment=2), optimizer, windows, state)
    assert 0 < whole.lost < 1 and np.isfinite(whole.loss)
    for a, b in zip(
        jax.tree.leaves((ours.lost, ours.loss, ours.gradient)),
        jax.tree.leaves((whole.lost, whole.loss, whole.gradient)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def bytes_needed(optimizer: Optimizer, truncation: int, segment: int) -> int:
    windows = Windows(Divided(4000), truncation, truncation, 4)  # many blocks of coordinates
    state = eqx.filter_eval_shape(windows.begin, optimizer, jax.random.key(1))
    step = jax.jit(lambda state: Replay(segment=segment).estimate(optimizer, windows, state), donate_argnums=0)
    memory: Any = step.lower(state).compile().memory_analysis()
    return memory.temp_size_in_bytes + memory.output_size_in_bytes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("steps", "segments"),
    [
        pytest.param(30, (0, 15), id="short"),
        pytest.param(324, (81, 0, 162, 18), id="long", marks=pytest.mark.slow),
    ],
)
def test_the_best_segment_takes_the_least_memory(
    steps: int, segments: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LSTM, "block", 16)  # what a block takes is little then, as beside millions of coordinates
    windows = Windows(Divided(3), steps, steps, 2)
    assert best_segment(windows.begin(lstm(20, 20), jax.random.key(0)), steps) == segments[0]
    needs = [bytes_needed(lstm(20, 20), steps, segment) for segment in segments]
    assert min(needs) == needs[0]


@pytest.mark.slow
def test_the_parts_of_a_partition_need_no_more_than_one_optimizer() -> None:
    parts = divided(first=lstm(8, 8), second=lstm(8, 8), idle=lstm(1))
    assert bytes_needed(parts, 64, 8) < 1.2 * bytes_needed(lstm(8, 8), 64, 8)


def test_segments_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="coordinates=1"):
        Replay(0.5, segment=2)
    windows = Windows(Quadratic(2), 6, 6, 1)
    optimizer = Nesterov()
    with pytest.raises(ValueError, match="divides the truncation"):
        Replay(segment=4).estimate(optimizer, windows, windows.begin(optimizer, jax.random.key(0)))
