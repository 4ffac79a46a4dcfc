"""Interrupted and resumed, meta-training gives what it would have given: bit for bit, and with the same log."""

import dataclasses
import errno
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bygrad._core import programs
from bygrad.metagrads import Clone, Replay
from bygrad.optimizers import LSTM, SGD, Adam, Controller, Nesterov, Optimizer
from bygrad.problems import Quadratic, find_family
from bygrad.training import (
    CheckpointError,
    Event,
    MetaTrained,
    Planned,
    Recipe,
    RolledBack,
    Stepped,
    Validated,
    Warned,
    meta_train,
)
from bygrad.training.devices import Devices
from bygrad.training.folder import Folder
from bygrad.training.learner import curves
from bygrad.training.loop import identity_of

from .estimators import Upward

FAMILY = Quadratic(2)
RECIPE = Recipe(
    horizon=4, truncation=2, instances=2, meta_steps=12, meta_learning_rate=0.05, validate_every=5, validation_runs=3
)
SETTINGS = {
    "Nesterov": (lambda: Nesterov(0.05), RECIPE),
    "LSTM": (lambda: LSTM(jax.random.key(0), (2,)), dataclasses.replace(RECIPE, estimator=Replay(0.5))),
}


def digest(optimizer: Optimizer) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(optimizer)]


def story(events: list[Event]) -> list[Event]:
    """The events without their times, and without the plan, which a resumed run makes anew."""
    return [dataclasses.replace(event, seconds=0.0) for event in events if not isinstance(event, Planned)]


def told(folder: Path) -> list[tuple[str, int]]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [(line["event"], line["step"]) for line in lines if line["event"] != "Planned"]


def assert_same(resumed: MetaTrained, reference: MetaTrained, folder: Path) -> None:
    assert digest(resumed.optimizer) == digest(reference.optimizer)
    assert story([resumed.best]) == story([reference.best])
    assert story(resumed.log.events) == story(reference.log.events)
    assert told(folder) == [(type(event).__name__, event.step) for event in story(reference.log.events)]
    seconds = [event.seconds for event in resumed.log.events]
    assert seconds == sorted(seconds)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[MetaTrained, Path]]:
    done = {}

    def run(name: str) -> tuple[MetaTrained, Path]:
        if name not in done:
            folder = tmp_path_factory.mktemp(name) / "run"
            make, recipe = SETTINGS[name]
            done[name] = meta_train(make(), FAMILY, recipe, folder=folder), folder
        return done[name]

    return run


def at(kind: type[Event], step: int, act: Callable[[], None]) -> Callable[[Event], None]:
    """A watcher that acts at one event."""

    def watch(event: Event) -> None:
        if isinstance(event, kind) and event.step == step:
            act()

    return watch


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def interrupt_twice() -> None:
    interrupt()
    interrupt()


def fail() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("name", "kind", "step", "act", "saved"),
    [
        ("Nesterov", Stepped, 1, interrupt, 1),
        ("Nesterov", Stepped, 5, interrupt, 5),
        ("Nesterov", Validated, 5, interrupt, 5),
        ("Nesterov", Stepped, 12, interrupt, 12),
        ("Nesterov", Stepped, 8, interrupt_twice, 5),
        ("Nesterov", Validated, 10, fail, 5),
        ("LSTM", Stepped, 7, interrupt, 7),
    ],
    ids=lambda it: getattr(it, "__name__", str(it)),
)
def test_ctrl_c_at_any_moment(name, kind, step, act, saved, uninterrupted, tmp_path):
    make, recipe = SETTINGS[name]
    reference, _ = uninterrupted(name)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        meta_train(make(), FAMILY, recipe, folder=tmp_path, watch=at(kind, step, act))
    assert signal.getsignal(signal.SIGINT) is handler
    if act is interrupt:
        assert told(tmp_path)[-1] == (kind.__name__, saved)
    news = []
    resumed = meta_train(make(), FAMILY, recipe, folder=tmp_path, resume=True, watch=news.append)
    assert_same(resumed, reference, tmp_path)
    assert (
        min(event.step for event in news if isinstance(event, Stepped)) == saved + 1
        if saved < 12
        else not [event for event in news if isinstance(event, Stepped)]
    )


def test_ctrl_c_does_not_wait_for_a_validation(uninterrupted, tmp_path, monkeypatch):
    reference, _ = uninterrupted("Nesterov")
    calls, over = [], threading.Event()

    class Stuck:
        """The program of the validations; the second one does not end before meta-training has."""

        def __call__(self, *arguments):
            calls.append(arguments)
            if len(calls) == 2:
                interrupt()
                over.wait(60)
            return curves(*arguments)

        def __getattr__(self, name):
            return getattr(curves, name)

    with monkeypatch.context() as patch:
        patch.setattr("bygrad.training.loop.curves", Stuck())
        with pytest.raises(KeyboardInterrupt):
            meta_train(Nesterov(0.05), FAMILY, RECIPE, folder=tmp_path)
        over.set()
    assert told(tmp_path)[-1] == ("Stepped", 5)
    news = []
    resumed = meta_train(Nesterov(0.05), FAMILY, RECIPE, folder=tmp_path, resume=True, watch=news.append)
    assert_same(resumed, reference, tmp_path)
    assert min(event.step for event in news if isinstance(event, Stepped)) == 6


@pytest.mark.parametrize("before", [None, RECIPE], ids=["alone", "before"])
def test_ctrl_c_does_not_wait_for_the_compiler(before, tmp_path, monkeypatch):
    where, over = [], threading.Event()

    def compile_for_ever(*_: object) -> tuple[int, int]:
        where.append(threading.current_thread())
        interrupt()
        over.wait(60)
        return 0, 0

    recipe = dataclasses.replace(RECIPE, before=before)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("bygrad.training.loop.bytes_of_meta_step", compile_for_ever)
            meta_train(Nesterov(0.05), FAMILY, recipe, folder=tmp_path / "run")
    finally:
        signal.signal(signal.SIGINT, handler)
        over.set()
    # The main thread would be interrupted here as well, but not in a compiler.
    assert where and where[0] is not threading.main_thread()
    assert [path.name for path in (tmp_path / "run").rglob("*") if path.is_file()] == ["log.jsonl"]
    resumed = meta_train(Nesterov(0.05), FAMILY, recipe, folder=tmp_path / "run", resume=True)
    assert len(resumed.log.of(Stepped)) == 12


def test_what_ends_in_the_first_validation_can_be_resumed(uninterrupted, tmp_path):
    reference, _ = uninterrupted("Nesterov")
    with pytest.raises(KeyboardInterrupt):
        meta_train(Nesterov(0.05), FAMILY, RECIPE, folder=tmp_path, watch=at(Validated, 0, fail))
    assert_same(meta_train(Nesterov(0.05), FAMILY, RECIPE, folder=tmp_path, resume=True), reference, tmp_path)


SCRIPT = """
import sys, time, jax
from bygrad import LSTM, Quadratic, Recipe, Replay, meta_train

recipe = Recipe(horizon=4, truncation=2, instances=2, meta_steps=12, meta_learning_rate=0.05, validate_every=5,
                validation_runs=3, estimator=Replay(0.5))
slowly = lambda event: time.sleep(0.05)
meta_train(LSTM(jax.random.key(0), (2,)), Quadratic(2), recipe, folder=sys.argv[1], watch=slowly)
"""


def kill_at(folder: Path, lines: int, delay: float) -> None:
    """Start meta-training in another process and kill it once the log has so many lines."""
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder)], stderr=subprocess.PIPE, text=True)
    log, deadline = folder / "log.jsonl", time.monotonic() + 120
    while not (log.exists() and log.read_bytes().count(b"\n") >= lines):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(delay)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("lines", "delay"),
    [
        (9, 0.01),  # 2 validations, 7 steps
        *[pytest.param(lines, delay, marks=pytest.mark.slow) for lines in (2, 6, 7, 8, 13) for delay in (0.0, 0.03)],
    ],
)
def test_kill_9_at_any_moment(lines, delay, uninterrupted, tmp_path):
    reference, _ = uninterrupted("LSTM")
    kill_at(tmp_path, lines, delay)
    make, recipe = SETTINGS["LSTM"]
    assert_same(meta_train(make(), FAMILY, recipe, folder=tmp_path, resume=True), reference, tmp_path)


def test_a_full_disk_costs_what_came_after_the_last_checkpoint_and_no_more(uninterrupted, tmp_path, monkeypatch):
    make, recipe = SETTINGS["Nesterov"]
    reference, _ = uninterrupted("Nesterov")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"No space left on device\).*of meta-step 5, is whole.*--resume") as caught:
        act = lambda: monkeypatch.setattr(os, "fsync", full)  # noqa: E731
        meta_train(make(), FAMILY, recipe, folder=tmp_path, watch=at(Stepped, 7, act))
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    resumed = meta_train(make(), FAMILY, recipe, folder=tmp_path, resume=True)
    assert_same(resumed, reference, tmp_path)


@pytest.mark.parametrize(("number", "remedy"), [(errno.EDQUOT, "Make room"), (errno.EFBIG, r"larger .*ulimit -f")])
def test_what_stopped_before_its_first_checkpoint_begins_anew(number, remedy, uninterrupted, tmp_path, monkeypatch):
    make, recipe = SETTINGS["Nesterov"]
    reference, _ = uninterrupted("Nesterov")

    def full(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=f"{remedy}.*Nothing was kept in {re.escape(str(tmp_path))}, .*--resume"):
            meta_train(make(), FAMILY, recipe, folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]
    assert_same(meta_train(make(), FAMILY, recipe, folder=tmp_path, resume=True), reference, tmp_path)


def test_a_folder_that_cannot_be_written_to_is_refused_with_a_remedy(tmp_path):
    (tmp_path / "file").touch()
    make, recipe = SETTINGS["Nesterov"]
    with pytest.raises(OSError, match=r"Nothing can be written in .*file/run \(Not a dir.*choose another folder"):
        meta_train(make(), FAMILY, recipe, folder=tmp_path / "file" / "run")


def test_one_folder_is_for_one_process(uninterrupted, tmp_path):
    make, recipe = SETTINGS["Nesterov"]
    reference, _ = uninterrupted("Nesterov")
    refused = []

    def meddle(event: Event) -> None:
        if isinstance(event, Stepped) and event.step == 7:
            for resume in (True, False):
                with pytest.raises(FileExistsError, match=r"Another process is at work in .*--hosts auto"):
                    meta_train(make(), FAMILY, recipe, folder=tmp_path, resume=resume)
                refused.append(resume)

    assert_same(meta_train(make(), FAMILY, recipe, folder=tmp_path, watch=meddle), reference, tmp_path)
    assert refused == [True, False]
    assert {path.name for path in tmp_path.iterdir()} == {"log.jsonl", "checkpoint.safetensors"}
    (tmp_path / "lock").touch()  # as a killed process leaves it
    assert_same(meta_train(make(), FAMILY, recipe, folder=tmp_path, resume=True), reference, tmp_path)


def test_what_stopped_where_a_validation_led_back_goes_on_from_there(tmp_path):
    """Rates that grow by 3, and then by half of it, diverge: validations lead back, and that is what is resumed."""
    recipe = Recipe(
        horizon=10, truncation=2, meta_steps=6, meta_learning_rate=3.0, validate_every=2, estimator=Upward()
    )
    reference = meta_train(SGD(0.01), FAMILY, recipe)
    led_back = [event.step for event in reference.log.of(RolledBack)]
    assert len(led_back) > 1
    for step in led_back:
        with pytest.raises(KeyboardInterrupt):
            at_step = at(RolledBack, step, interrupt)
            meta_train(SGD(0.01), FAMILY, recipe, folder=tmp_path, resume=step > led_back[0], watch=at_step)
    resumed = meta_train(SGD(0.01), FAMILY, recipe, folder=tmp_path, resume=True)
    assert_same(resumed, reference, tmp_path)


def test_what_is_finished_is_read_and_not_done_again(uninterrupted, monkeypatch):
    reference, folder = uninterrupted("LSTM")
    monkeypatch.setattr("bygrad.training.loop.bytes_available", lambda devices: 0)  # what does not run needs nothing
    make, recipe = SETTINGS["LSTM"]
    news = []
    again = meta_train(make(), FAMILY, recipe, folder=folder, resume=True, watch=news.append)
    assert not [event for event in news if isinstance(event, Stepped | Validated | Planned)]
    assert digest(again.optimizer) == digest(reference.optimizer)
    assert story([again.best]) == story([reference.best])


def test_resuming_draws_nothing_and_runs_no_teacher_again(tmp_path, monkeypatch):
    recipe = dataclasses.replace(RECIPE, truncation=4, meta_steps=4, validate_every=4, estimator=Clone(Adam(0.1), 2))
    reference = meta_train(LSTM(jax.random.key(0), (2,)), FAMILY, recipe, folder=tmp_path / "whole")
    folder = tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt):
        meta_train(LSTM(jax.random.key(0), (2,)), FAMILY, recipe, folder=folder, watch=at(Stepped, 3, interrupt))
    for room in ("learner", "loop"):
        monkeypatch.setattr(f"bygrad.training.{room}.begin", None)
    resumed = meta_train(LSTM(jax.random.key(0), (2,)), FAMILY, recipe, folder=folder, resume=True)
    assert_same(resumed, reference, folder)


def test_what_watches_may_end_it_and_nothing_is_lost(uninterrupted, tmp_path):
    make, recipe = SETTINGS["Nesterov"]
    reference, _ = uninterrupted("Nesterov")

    def fail() -> None:
        raise RuntimeError("the plot is closed")

    with pytest.raises(RuntimeError, match="the plot is closed"):
        meta_train(make(), FAMILY, recipe, folder=tmp_path, watch=at(Stepped, 8, fail))
    news = []
    resumed = meta_train(make(), FAMILY, recipe, folder=tmp_path, resume=True, watch=news.append)
    assert next(event.step for event in news if isinstance(event, Stepped)) == 9  # the last validation was at 5
    assert_same(resumed, reference, tmp_path)


def test_a_folder_in_use_is_not_overwritten(uninterrupted):
    _, folder = uninterrupted("Nesterov")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(FileExistsError, match=r"already holds a meta-training.*resume=True, --resume.*another folder"):
        meta_train(Nesterov(0.05), FAMILY, RECIPE, folder=folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_there_must_be_something_to_resume(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no checkpoint in .*Start without resume"):
        meta_train(Nesterov(0.05), FAMILY, RECIPE, folder=tmp_path / "empty", resume=True)
    assert not (tmp_path / "empty").exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"meta_learning_rate": 0.1}, "meta_learning_rate was 0.05, is 0.1"),
        ({"meta_steps": 13}, "meta_steps was 12, is 13"),
        ({"seed": 1}, "seed was 0, is 1"),
        ({"estimator": Replay(0.25)}, "estimator was .*1.0.*, is .*0.25"),
        ({"select": "final", "clip": 2.0}, "clip was 1.0, is 2.0, select was area, is final"),
        ({"keep": "last"}, "keep was best, is last"),
    ],
    ids=str,
)
def test_another_recipe_is_refused_by_name(change, named, uninterrupted):
    _, folder = uninterrupted("Nesterov")
    before = (folder / "log.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match=named):
        meta_train(Nesterov(0.05), FAMILY, dataclasses.replace(RECIPE, **change), folder=folder, resume=True)
    assert (folder / "log.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("optimizer", "family"),
    [
        (lambda: LSTM(jax.random.key(0), (3,)), FAMILY),
        (lambda: LSTM(jax.random.key(0), (2,), output_scale=1.0), FAMILY),
        (Nesterov, FAMILY),
        (SETTINGS["LSTM"][0], Quadratic(2, "gaussian")),
        (SETTINGS["LSTM"][0], Quadratic(3)),
    ],
    ids=["layers", "output_scale", "class", "distribution", "dimension"],
)
def test_another_optimizer_or_family_is_refused(optimizer, family, uninterrupted):
    _, folder = uninterrupted("LSTM")
    with pytest.raises(CheckpointError, match=r"resume with the settings it was started with|Resume with the same"):
        meta_train(optimizer(), family, SETTINGS["LSTM"][1], folder=folder, resume=True)


def test_a_controller_of_another_depth_is_refused(tmp_path):
    recipe = dataclasses.replace(RECIPE, meta_steps=1, validation_runs=1)
    meta_train(Controller(jax.random.key(0)).with_depth(4), FAMILY, recipe, folder=tmp_path)
    with pytest.raises(CheckpointError, match="depth was 4, is None"):
        meta_train(Controller(jax.random.key(0)), FAMILY, recipe, folder=tmp_path, resume=True)


class Momentum(Optimizer):
    """A rule from outside of the package, which writes no configuration, inside of which is another."""

    decay: jax.Array
    steps: SGD
    inner: "Momentum | None" = None
    nesterov: bool = eqx.field(static=True, default=False)

    def init(self, params):
        return jnp.zeros_like(params)

    def update(self, grads, state, params=None, *, value=None, key=None):
        state = self.decay * state + grads
        ahead = self.decay * state + grads if self.nesterov else state
        return self.steps.update(ahead, self.steps.init(grads))[0], state


def test_another_setting_of_a_rule_from_outside_is_refused(tmp_path):
    rule, short = Momentum(jnp.asarray(0.5), SGD(0.1)), dataclasses.replace(RECIPE, meta_steps=1)
    first = meta_train(rule, FAMILY, short, folder=tmp_path)
    for other in (dataclasses.replace(rule, nesterov=True), dataclasses.replace(rule, inner=rule)):
        with pytest.raises(CheckpointError, match="Resume with the same settings"):
            meta_train(other, FAMILY, short, folder=tmp_path, resume=True)
    # Arrays are those of the checkpoint.
    again = meta_train(Momentum(jnp.asarray(0.9), SGD(1.0)), FAMILY, short, folder=tmp_path, resume=True)
    assert digest(again.optimizer) == digest(first.optimizer)


def test_a_setting_that_is_nan_or_a_set_is_the_same_in_the_next_process(tmp_path):
    class Limited(Momentum):
        limit: float = eqx.field(static=True, default=float("nan"))
        names: frozenset[str] = eqx.field(static=True, default=frozenset("abcdefgh"))

    identity = identity_of(Limited(jnp.asarray(0.5), SGD(0.1)), FAMILY)
    assert identity["optimizer"]["names"] == "frozenset['a', 'b', 'c', 'd', 'e', 'f', 'g', 'h']"  # by hash in others
    folder = Folder(tmp_path, Devices.sharing(1))
    folder.save(0, {}, {"recipe": identity | {"most": math.inf}})
    assert folder.read(identity | {"most": math.inf}).info
    with pytest.raises(CheckpointError, match="most was Infinity, is -Infinity"):
        folder.read(identity | {"most": -math.inf})


FAMILY_FILE = """
import jax, jax.numpy as jnp, bygrad

class Bowl(bygrad.ProblemFamily):
    def sample(self, key):
        return ()
    def init(self, instance, key):
        return jax.random.normal(key, (2,))
    def loss(self, params, instance, key):
        return jnp.sum(params**2)
"""


def test_a_family_that_was_mended_in_between_is_told(tmp_path):
    file = tmp_path / "mine.py"

    def warnings(content: str, resume: bool) -> list[str]:
        file.write_text(content)
        meta_train(
            Nesterov(0.05), find_family(str(file)), RECIPE, folder=tmp_path / "run", resume=resume, watch=events.append
        )
        told = [event.message for event in events if isinstance(event, Warned)]
        events.clear()
        return [it for it in told if "Bowl" in it]

    events: list[Event] = []
    mended = FAMILY_FILE.replace("params**2", "(params - 1) ** 2")
    assert not warnings(FAMILY_FILE, False) and not warnings(FAMILY_FILE, True)
    (warning,) = warnings(mended, True)
    assert warning.startswith(f"Bowl, the file that it is written in or its data, has changed since {tmp_path / 'run'}")


def test_a_damaged_checkpoint_is_refused(uninterrupted, tmp_path):
    _, folder = uninterrupted("Nesterov")
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    checkpoint = tmp_path / "checkpoint.safetensors"
    data = checkpoint.read_bytes()
    for damaged, message in (
        (data[:-1] + bytes([data[-1] ^ 1]), "is damaged"),
        (data[:-1], "not a readable checkpoint"),
    ):
        checkpoint.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=message):
            meta_train(Nesterov(0.05), FAMILY, RECIPE, folder=tmp_path, resume=True)


def test_a_checkpoint_alone_goes_on_bit_for_bit(uninterrupted, tmp_path):
    reference, _ = uninterrupted("Nesterov")
    with pytest.raises(KeyboardInterrupt):
        meta_train(Nesterov(0.05), FAMILY, RECIPE, folder=tmp_path, watch=at(Stepped, 7, interrupt))
    (tmp_path / "log.jsonl").unlink()
    resumed = meta_train(Nesterov(0.05), FAMILY, RECIPE, folder=tmp_path, resume=True)
    assert [event.step for event in resumed.log.of(Validated)] == [
        event.step for event in reference.log.of(Validated) if event.step > 7
    ]
    assert not resumed.log.of(Warned)
    assert digest(resumed.optimizer) == digest(reference.optimizer)


class Step(Optimizer):
    """A rule from outside, whose rate is whatever array it was given."""

    log_rate: jax.Array | np.ndarray

    def init(self, params):
        return jnp.asarray(0.0)

    def update(self, grads, state, params=None, *, value=None, key=None):
        rate = jnp.exp(jnp.asarray(self.log_rate))
        return jax.tree.map(lambda grad: (-rate * grad).astype(grad.dtype), grads), state + 1


class HalfPrecision(Quadratic):
    """Where a number of Python's, which takes the dtype of what it meets, and an array of float32 round differently."""

    def init(self, instance, key):
        return super().init(instance, key).astype(jnp.bfloat16)


@pytest.mark.parametrize(
    "log_rate",
    [
        pytest.param(jnp.asarray(-2.3), id="weak", marks=pytest.mark.slow),
        pytest.param(np.float64(-2.3), id="number", marks=pytest.mark.slow),
        pytest.param(np.array(-2.3), id="64"),
    ],
)
def test_a_rule_has_from_the_first_step_the_types_that_it_keeps(log_rate, tmp_path, monkeypatch):
    """What ends before its first step resumes to the same, and nothing is compiled but what is planned."""
    compiled, lower = [], programs.Program._compile
    monkeypatch.setattr(programs.Program, "_compile", lambda *arguments: compiled.append(0) or lower(*arguments))
    monkeypatch.setattr(programs, "kept", programs._Kept())  # not what other tests have compiled
    rule, family = Step(log_rate), HalfPrecision(2)
    reference = meta_train(rule, family, RECIPE, folder=tmp_path / "whole", watch=lambda event: None)
    assert len(compiled) == 6  # three to check the family; the first inner problems, a meta-step, a validation
    with pytest.raises(KeyboardInterrupt):
        meta_train(rule, family, RECIPE, folder=tmp_path / "cut", watch=at(Validated, 0, fail))
    resumed = meta_train(rule, family, RECIPE, folder=tmp_path / "cut", resume=True, watch=lambda event: None)
    assert_same(resumed, reference, tmp_path / "cut")
    assert len(compiled) == 6


def test_a_run_that_was_killed_while_it_compiled_begins_anew(tmp_path):
    recipe = Recipe(horizon=2, truncation=1, instances=2, meta_steps=1, validation_runs=2, validate_every=1)
    (tmp_path / "lock").touch()
    resumed = meta_train(SGD(0.01), FAMILY, recipe, folder=tmp_path, resume=True)
    assert resumed.best.step in (0, 1)
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        meta_train(SGD(0.01), FAMILY, recipe, folder=tmp_path / "another", resume=True)
