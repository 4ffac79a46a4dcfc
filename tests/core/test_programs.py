"""Programs: compiled once for a structure, never for a value; and the memory that they tell of."""

import dataclasses
import gc
import os
import re
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bygrad._core import cgroups, programs
from bygrad._core.hosts import usable_cores
from bygrad._core.memory import bytes_available, in_words
from bygrad._core.programs import Program
from bygrad.metagrads import Replay
from bygrad.optimizers import LSTM, MemoryLSTM
from bygrad.problems import MLPClassifier, ProblemFamily, Quadratic
from bygrad.training import Planned, Recipe, loop, meta_train

BACKEND_COMPILES = "/jax/core/compile/backend_compile_duration"


@pytest.fixture
def compilations():
    """A list that grows by one for every program that XLA compiles."""
    seen = []

    def listen(event: str, seconds: float, **_: object) -> None:
        if event == BACKEND_COMPILES:
            seen.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.core
def test_values_compile_nothing_and_structures_do(compilations):
    program = Program(lambda scale, tree, power: jax.tree.map(lambda leaf: scale * leaf**power, tree))
    one, two = jnp.float32(1.0), jnp.float32(2.0)
    tree = {"a": jnp.arange(3.0), "b": jnp.ones((2, 2))}
    assert jnp.array_equal(program(two, tree, 2)["a"], jnp.array([0.0, 2.0, 8.0]))
    other = jax.block_until_ready(jax.tree.map(lambda leaf: leaf + 1, tree))
    before = len(compilations)
    assert jnp.array_equal(program(one, other, 2)["a"], jnp.array([1.0, 4.0, 9.0]))
    assert len(compilations) == before
    program(one, other, 3)
    assert len(compilations) > before


def wave(x: jax.Array) -> jax.Array:
    return jax.lax.scan(lambda at, _: (jnp.sin(at @ at.T), jnp.sum(at)), x, length=5)[1]


@pytest.mark.core
@pytest.mark.parametrize("runs", programs.OPTIONS)
def test_a_program_that_runs_seldom_computes_the_same_and_leaves_the_choice_to_the_environment(runs, monkeypatch):
    x = jax.random.normal(jax.random.key(0), (6, 6))
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=3 --xla_cpu_use_fusion_emitters=true")
    assert programs._options(programs.OPTIONS[runs]) is None
    chosen = Program(wave, runs=runs)(x)
    monkeypatch.setenv("XLA_FLAGS", "")
    if jax.default_backend() == "cpu":
        assert (programs._options(programs.OPTIONS[runs]) or {}) == programs.OPTIONS[runs]
    np.testing.assert_allclose(Program(wave, runs=runs)(x), chosen, rtol=1e-5, atol=1e-5)


@pytest.mark.core
def test_an_option_that_this_version_of_xla_lacks_is_left_out(monkeypatch):
    monkeypatch.setitem(programs.OPTIONS, "seldom", {"xla_no_such_option": 1})
    x = jnp.eye(3)
    np.testing.assert_allclose(Program(wave, runs="seldom")(x), wave(x), rtol=1e-5)


@pytest.mark.core
def test_a_program_within_another_is_a_part_of_it(compilations):
    doubled = Program(lambda tree, name: {name: 2 * tree["x"]}, runs="once")

    def squares(x: jax.Array) -> jax.Array:
        return jnp.sum(doubled({"x": x}, "y")["y"] ** 2)

    x = jax.block_until_ready(jnp.arange(3.0))
    np.testing.assert_allclose(jax.jit(jax.grad(squares))(x), 8 * x)
    assert jax.vmap(lambda x: doubled({"x": x}, "z")["z"])(x).tolist() == [0.0, 2.0, 4.0]
    before = len(compilations)
    assert jax.eval_shape(squares, x).shape == ()
    assert len(compilations) == before


@pytest.mark.core
def test_arrays_of_numpy_are_arguments_too(compilations):
    program = Program(lambda tree, power: (tree["a"] ** power, tree["told"]))
    two = np.full(3, 2.0, np.float32)
    powers, told = program({"a": two, "told": "word"}, 3)
    assert np.array_equal(powers, [8.0, 8.0, 8.0]) and told == "word"
    before = len(compilations)
    assert np.array_equal(program({"a": two + 1, "told": "word"}, 3)[0], [27.0, 27.0, 27.0])
    assert len(compilations) == before
    assert program({"a": two, "told": "other"}, 3)[1] == "other"
    assert len(compilations) > before


def test_of_several_threads_one_compiles():
    at_once, made = 4, []
    meet = threading.Barrier(at_once)

    def traced(x: jax.Array) -> jax.Array:
        made.append(threading.get_ident())
        time.sleep(0.2)  # so that the others ask meanwhile
        return x + 1

    program = Program(traced)

    def call(number: int) -> float:
        meet.wait()
        return float(program(jnp.float32(number)))

    with ThreadPoolExecutor(at_once) as pool:
        assert list(pool.map(call, range(at_once))) == [1.0, 2.0, 3.0, 4.0]
    assert len(made) == 1 and not programs.kept._made


def test_who_fails_to_compile_keeps_no_other_thread_waiting():
    program, fails = Program(lambda x: 1 / 0 if fails else x), [True]
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            program(jnp.ones(2))
    fails.clear()
    assert jnp.array_equal(program(jnp.ones(2)), jnp.ones(2)) and not programs.kept._made


@pytest.mark.core
def test_equal_numbers_of_other_types_are_other_programs():
    times = Program(lambda x, factor: x * factor)
    found = [times(jnp.arange(3), factor) for factor in (1, 1.0, True)]
    assert [it.dtype for it in found] == [jnp.int32, jnp.float32, jnp.int32]


def test_a_compiled_program_holds_no_arrays_of_its_first_call():
    program, array = Program(lambda it: it + 1), jnp.ones(5)
    gone = weakref.ref(array)
    program(array)
    del array
    gc.collect()
    assert gone() is None


@pytest.mark.core
@pytest.mark.parametrize(("donate", "kept"), [("none", [True, True]), ("all-except-first", [True, False])])
def test_memory_is_reused_of_the_arguments_that_are_given_for_it(donate, kept):
    first, second = jnp.ones(1_000), jnp.full(1_000, 2.0)
    total = Program(lambda one, other: one + other, donate=donate)(first, second)
    assert jnp.array_equal(total, jnp.full(1_000, 3.0))
    assert [not it.is_deleted() for it in (first, second)] == kept


@pytest.mark.core
def test_a_program_is_compiled_for_the_precision_that_it_is_called_in():
    program, one = Program(lambda it: (it.astype(float), it @ it.T)), jnp.full((2, 2), 1 + 2.0**-10, jnp.float32)
    assert program(one)[0].dtype == jnp.float32
    with jax.enable_x64(True):
        assert program(one)[0].dtype == jnp.float64
    assert program(one)[0].dtype == jnp.float32
    before = len(programs.kept)
    with jax.default_matmul_precision("highest"):
        program(one)
    assert len(programs.kept) == before + 1


@pytest.mark.core
def test_each_device_keeps_as_many_programs(monkeypatch):
    monkeypatch.setattr(programs, "KEPT", 2)
    monkeypatch.setattr(jax, "local_device_count", lambda: 4)
    monkeypatch.setattr(jax, "clear_caches", lambda: None)
    kept = programs._Kept()
    for number in range(8):
        kept.put(number, number)
    assert len(kept) == 8
    kept.put(8, 8)
    assert len(kept) == 4


@pytest.mark.core
def test_half_of_the_programs_go_where_memory_maps_are_scarce(monkeypatch):
    monkeypatch.setattr(jax, "clear_caches", lambda: None)
    kept, scarce = programs._Kept(), [False]
    monkeypatch.setattr(programs, "maps_are_scarce", lambda: scarce[0])
    for number in range(16):
        kept.put(number, number)
    assert len(kept) == 16
    scarce[0] = True
    for number in range(16, 24):
        kept.put(number, number)
    assert [number for number in range(24) if kept.get(number) is not None] == list(range(12, 24))
    for number in range(24, 40):
        kept.put(number, number)
    assert len(kept) < 16 and kept.get(39) == 39


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts memory maps")
def test_memory_maps_are_counted(monkeypatch):
    assert not programs.maps_are_scarce()
    read = Path.read_text
    few = lambda self: "20" if self.name == "max_map_count" else read(self)  # noqa: E731
    monkeypatch.setattr(Path, "read_text", few)
    assert programs.maps_are_scarce()


def test_programs_that_are_not_used_are_freed(monkeypatch):
    monkeypatch.setattr(programs, "kept", programs._Kept())
    monkeypatch.setattr(programs, "KEPT", 4)
    compiled, lower = [], programs.Program._compile
    monkeypatch.setattr(programs.Program, "_compile", lambda *arguments: compiled.append(0) or lower(*arguments))
    program, client = Program(lambda it: it + 1), jax.devices()[0].client
    arrays = [jnp.ones(size) for size in range(1, 41)]
    before = len(client.live_executables())
    for array in arrays:
        assert jnp.array_equal(program(array), jnp.full_like(array, 2.0))
        program(arrays[0])  # used in between, so it stays
    gc.collect()
    assert len(programs.kept) <= 4
    assert len(client.live_executables()) < before + len(arrays) / 2
    assert len(compiled) == len(arrays)
    program(arrays[1])
    assert len(compiled) == len(arrays) + 1


@pytest.mark.core
def test_the_memory_of_a_program_is_that_of_its_arrays():
    array = jnp.ones(1_000_000)  # 4 MB in and 4 MB out
    need = Program(lambda it: it + 1).bytes_needed(array)
    assert 8_000_000 <= need < 9_000_000


def images(seed: int) -> MLPClassifier:
    pixels = jax.random.randint(jax.random.key(seed), (20, 6), 0, 256).astype(jnp.uint8)
    return MLPClassifier(pixels, jnp.arange(20) % 3, classes=3, hidden=2, batch=4)


def test_a_second_meta_training_compiles_nothing(monkeypatch):
    """Neither another theta, nor other learning rates, seeds, lengths or data."""
    compiled, lower = [], programs.Program._compile
    monkeypatch.setattr(programs.Program, "_compile", lambda *arguments: compiled.append(0) or lower(*arguments))
    monkeypatch.setattr(programs, "kept", programs._Kept())  # not what other tests have compiled
    recipe = Recipe(
        horizon=4, truncation=2, instances=2, meta_steps=2, validation_runs=2, estimator=Replay(0.5), validate_every=2
    )
    optimizer, other, more = LSTM(jax.random.key(0), (2,)), LSTM(jax.random.key(1), (2,)), images(1)
    assert len(compiled) == 1  # the head that both begin with
    compiled.clear()
    meta_train(optimizer, images(0), recipe)
    before = len(compiled)
    assert before == 6  # three to check the family; the first inner problems, a meta-step, a validation
    meta_train(other, more, dataclasses.replace(recipe, meta_learning_rate=1e-3, clip=0.5, seed=7, meta_steps=3))
    assert len(compiled) == before


def test_what_will_not_fit_is_refused_before_it_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "bytes_available", lambda *_: 2_500)  # enough for the inner problems
    recipe = Recipe(horizon=4, truncation=2, instances=2, meta_steps=2, validation_runs=2)
    with pytest.raises(MemoryError, match=r"a meta-step, but 2.441 KiB.*Lower instances \(now 2\).*\(now 2\)\.$"):
        meta_train(LSTM(jax.random.key(0), (2,)), Quadratic(2), recipe, folder=tmp_path / "run")
    long = dataclasses.replace(recipe, horizon=16, truncation=16)  # 12 S + 20 (16 / S + 1) bytes a coordinate, or 256
    with pytest.raises(MemoryError, match=r"\(now 16\), or keep 4 steps .*Replay\(segment=4\), --segment 4"):
        meta_train(LSTM(jax.random.key(0), (2,)), Quadratic(2), long)
    assert not list((tmp_path / "run").glob("checkpoint*"))
    monkeypatch.setattr(loop, "bytes_available", lambda *_: 100_000)
    many = dataclasses.replace(recipe, validation_runs=10_000)  # 5 losses of 4 bytes each
    with pytest.raises(MemoryError, match=r"a validation, .*validation_runs \(now 10000; --validation-runs\)"):
        meta_train(LSTM(jax.random.key(0), (2,)), Quadratic(2), many)


def test_a_state_that_will_not_fit_is_refused_before_it_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "bytes_available", lambda *_: 1_000_000)
    monkeypatch.setattr(loop.Learner, "fresh", lambda *_: pytest.fail("the state was made"))
    family = Quadratic(500)  # of the memory alone: 500 x 500 numbers of 4 bytes
    recipe = Recipe(horizon=4, truncation=2, instances=2, meta_steps=2, validation_runs=2)
    with pytest.raises(MemoryError) as caught:
        meta_train(MemoryLSTM(jax.random.key(0), (2,)), family, recipe, folder=tmp_path / "run")
    said = str(caught.value)
    assert "for the inner problems, but 976.6 KiB are free" in said and "Lower instances (now 2)." in said
    assert re.search(r"state of MemoryLSTM: 98\d.\d KiB an instance, for 1.953 KiB of params", said), said
    assert not (tmp_path / "run").exists()


def test_the_plan_tells_the_memory():
    class Large(ProblemFamily):
        def sample(self, key):
            return ()

        def init(self, instance, key):
            return jax.random.normal(key, (100_000,))

        def loss(self, params, instance, key):
            return jnp.sum(params**2)

    recipe = Recipe(horizon=2, truncation=2, instances=1, meta_steps=1, validation_runs=1)
    (plan,) = meta_train(LSTM(jax.random.key(0), (2,)), Large(), recipe).log.of(Planned)
    state, params = 100_000 * 4 * 4, 100_000 * 4
    assert state + params < plan.meta_step_bytes < 20 * (state + params)
    assert 0 < plan.validation_bytes < 20 * (state + params)
    assert plan.available_bytes > 0


@pytest.mark.parametrize(("count", "words"), [(0, "0 B"), (512, "512 B"), (1024, "1 KiB"), (1023 * 2**20, "1023 MiB")])
def test_bytes_in_words(count, words):
    assert in_words(count) == words


@pytest.mark.parametrize("version", [1, 2])
def test_control_groups_may_have_less_than_the_machine(version, tmp_path, monkeypatch):
    limit, used = [("memory.limit_in_bytes", "memory.usage_in_bytes"), ("memory.max", "memory.current")][version - 1]
    top = tmp_path / "memory" if version == 1 else tmp_path

    def group(path, most, held, cached):
        (top / path).mkdir(parents=True, exist_ok=True)
        (top / path / limit).write_text(f"{most}\n")
        (top / path / used).write_text(f"{held}\n")
        stat = f"inactive_file {cached if version == 2 else 7}\ntotal_inactive_file {cached}\n"
        (top / path / "memory.stat").write_text(f"anon 5\n{stat}")

    own = tmp_path / "cgroup"
    monkeypatch.setattr(cgroups, "_TOP", tmp_path)
    monkeypatch.setattr(cgroups, "_OWN", own)
    own.write_text("5:cpu,memory:/job/step\n4:pids:/\n" if version == 1 else "0::/job/step\n")
    group("job/step", 9000, 2000, 500)
    assert bytes_available() == 7500
    group("job", 5000, 2500, 1000)
    assert bytes_available() == 3500
    assert bytes_available(devices=2) == 1750
    group("other", 10, 0, 0)
    assert bytes_available() == 3500
    group("", 4000, 1500, 0)
    assert bytes_available() == 2500
    own.write_text(own.read_text().replace("/job/step", "/not/seen/in/a/container"))
    assert bytes_available() == 2500
    group("", 2**63 - 4096 if version == 1 else "max", 1500, 0)
    assert bytes_available() > 9000
    own.unlink()
    assert bytes_available() > 9000


@pytest.mark.parametrize("version", [1, 2])
def test_a_quota_of_a_control_group_bounds_the_cores(version, tmp_path, monkeypatch):
    top = tmp_path / "cpu,cpuacct" if version == 1 else tmp_path

    def group(path: str, quota: int, period: int) -> None:
        (top / path).mkdir(parents=True, exist_ok=True)
        if version == 1:
            (top / path / "cpu.cfs_quota_us").write_text(f"{quota}\n")
            (top / path / "cpu.cfs_period_us").write_text(f"{period}\n")
        else:
            (top / path / "cpu.max").write_text(f"{'max' if quota < 0 else quota} {period}\n")

    own = tmp_path / "cgroup"
    monkeypatch.setattr(cgroups, "_TOP", tmp_path)
    monkeypatch.setattr(cgroups, "_OWN", own)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)), raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    own.write_text("5:cpu,cpuacct:/job/step\n" if version == 1 else "0::/job/step\n")
    assert usable_cores() == 64
    group("job/step", -1, 100_000)
    assert usable_cores() == 64
    group("job", 250_000, 100_000)
    assert usable_cores() == 3
    group("", 100_000, 100_000)
    assert usable_cores() == 1


@pytest.mark.core
def test_what_a_program_returns_may_hold_more_than_arrays():
    module = Program(lambda key: eqx.nn.MLP(1, 1, 2, 1, key=key))(jax.random.key(0))
    assert module(jnp.ones(1)).shape == (1,)


def test_caches_that_another_thread_is_changing_are_cleared_at_the_next_occasion(monkeypatch):
    cleared = []

    def clear():
        cleared.append(True)
        if len(cleared) == 1:
            raise RuntimeError("dictionary changed size during iteration")

    monkeypatch.setattr(jax, "clear_caches", clear)
    kept = programs._Kept()
    most = programs.KEPT * jax.local_device_count()
    for number in range(most + 3):
        kept.put(number, number)
    assert len(cleared) == 2
    assert kept.get(most + 2) == most + 2
