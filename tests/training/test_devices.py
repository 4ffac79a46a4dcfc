"""Devices and hosts: the same θ from one device, eight, and two processes of four; no process is lost in silence.

All others than the one device are real processes, on loopback, with virtual CPU devices.
"""

import json
import os
import re
import signal
import socket  # noqa: TID251 - loopback only: to find a free port
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from bygrad._core import hosts
from bygrad._core.hosts import INCOMPLETE, join, parse_hosts
from bygrad.training import is_begun
from bygrad.training.devices import PIECE, choose, from_lead

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gloo and signals between processes need a Unix")

SCRIPT = """
import os, signal, sys, threading, time
from pathlib import Path

import jax

folder, mode, index, port = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
if index >= 0:
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, index, heartbeat_timeout_seconds=60)

import equinox as eqx, numpy as np
from bygrad import LSTM, Adam, Quadratic, Recipe, Replay, meta_train
from bygrad._core.programs import kept
from bygrad.metagrads import Imitate
from bygrad.training import learner

recipe = Recipe(horizon=4, truncation=2, instances=8, meta_steps=8, meta_learning_rate=0.05, validate_every=3,
                validation_runs=5, estimator=Imitate(Replay(0.5), Adam(0.05), weight=0.5, every=2))

def interrupt():  # the process that does not lead gets the Ctrl-C
    log = folder / "log.jsonl"
    while not (log.exists() and '"Stepped", "step": 1,' in log.read_text()):
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGINT)

if mode == "interrupt" and index == 1:
    threading.Thread(target=interrupt, daemon=True).start()
slowly = lambda event: time.sleep(0.2 if mode == "interrupt" else 0)
try:
    trained = meta_train(LSTM(jax.random.key(0), (2,)), Quadratic(2), recipe, folder=folder, resume=mode == "resume",
                         watch=slowly)
except KeyboardInterrupt:
    print("INTERRUPTED")
    jax.distributed.shutdown()
    sys.exit()
programs = (learner._programs[True], learner.begin, learner.curves)
print("COMPILED", *(sum(owner is program for owner, *_ in kept._programs) for program in programs))
np.savez(folder / f"theta{max(index, 0)}.npz", *jax.tree.leaves(eqx.filter(trained.optimizer, eqx.is_array)))
"""


GATHER = """
import sys
import jax

index, port = int(sys.argv[1]), sys.argv[2]
jax.distributed.initialize(f"127.0.0.1:{port}", 2, index, heartbeat_timeout_seconds=60)

import jax.numpy as jnp, numpy as np
from bygrad.training import devices

devices.PIECE = 100  # bytes: a part of `wide` takes several pieces
shared = devices.Devices.sharing(4)
wide = np.random.default_rng(0).standard_normal((3, 4, 25)).astype(np.float32)
wide[0, :, :2] = -0.0, np.nan
keys = jax.random.split(jax.random.key(1), 4)
tree = {"wide": wide, "half": wide[0].astype(jnp.bfloat16), "flag": wide[0, :, 0] > 0, "keys": keys, "all": wide[0]}
axes = {"wide": 1, "half": 0, "flag": 0, "keys": 0, "all": None}

placed = shared.load(tree, axes)
sizes = {name: leaf.addressable_shards[0].data.size * 4 // leaf.size for name, leaf in placed.items()}
assert sizes == {"wide": 1, "half": 1, "flag": 1, "keys": 1, "all": 4}, sizes
mine = [leaf for leaf in jax.live_arrays() if leaf.shape == wide.shape and len(leaf.sharding.device_set) == 1]
assert not mine, mine
fetched = shared.fetch(placed)
if index < 1:
    for name, leaf in tree.items():
        leaf = np.asarray(jax.random.key_data(leaf) if name == "keys" else leaf)
        assert type(fetched[name]) is np.ndarray and fetched[name].dtype == leaf.dtype, name
        assert fetched[name].shape == leaf.shape and fetched[name].tobytes() == leaf.tobytes(), name
else:
    assert all(leaf is None for leaf in fetched.values()), fetched
alone = shared.alone(placed["all"])
assert alone.tobytes() == wide[0].tobytes() and alone.devices() == {jax.local_devices()[0]}, alone

data = np.random.default_rng(1).bytes(1001)
for sent in (data, b""):
    assert devices.from_lead(lambda: sent if index < 1 else b"another") == sent
print("THE SAME")
"""


def environment(devices: int) -> dict[str, str]:
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    return os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}


def start(devices: int, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment(devices), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Done(NamedTuple):
    """What processes left behind: what they said, the meta-parameters each ended with, the log."""

    said: list[str]
    theta: list[list[np.ndarray]]
    folder: Path

    def events(self, kind: str) -> list[dict]:
        lines = map(json.loads, (self.folder / "log.jsonl").read_text().splitlines())
        return [line for line in lines if line["event"] == kind]


def train(folder: Path, processes: int, devices: int, mode: str = "fresh") -> Done:
    """Run SCRIPT in so many processes of so many devices each."""
    port = free_port()
    indices = range(processes) if processes > 1 else [-1]
    running = [start(devices, "-c", SCRIPT, folder, mode, index, port) for index in indices]
    said = [process.communicate(timeout=300)[0] for process in running]
    assert [process.returncode for process in running] == [0] * processes, "\n".join(said)
    return done_in(folder, said)


def done_in(folder: Path, said: list[str]) -> Done:
    saved = [np.load(path) for path in sorted(folder.glob("theta*.npz"))]
    return Done(said, [list(arrays.values()) for arrays in saved], folder)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """Here, by one device: a process for it would take longer to start than to learn."""
    folder = tmp_path_factory.mktemp("one") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["", str(folder), "fresh", "-1", "0"])
        patch.setattr("bygrad.training.devices.choose", lambda instances, found: (found[:1], 0))
        exec(SCRIPT, {})  # noqa: S102 - what the others run
    return done_in(folder, [])


def assert_same(done: Done, one: Done) -> None:
    for theta in done.theta:
        for ours, reference in zip(theta, one.theta[0], strict=True):
            np.testing.assert_allclose(ours, reference, rtol=1e-4, atol=1e-6)
    for kind, values in {"Stepped": ("meta_loss", "gradient_norm"), "Validated": ("area", "final")}.items():
        ours, reference = done.events(kind), one.events(kind)
        assert [event["step"] for event in ours] == [event["step"] for event in reference]
        for value in values:
            left, right = ([event[value] for event in events] for events in (ours, reference))
            np.testing.assert_allclose(left, right, rtol=1e-4)


def test_eight_devices_give_what_one_gives(one, tmp_path):
    eight = train(tmp_path / "run", 1, 8)
    assert_same(eight, one)
    assert "COMPILED 1 1 1" in eight.said[0]


@pytest.mark.slow
def test_the_lead_gathers_in_its_memory_what_the_devices_share():
    port = free_port()
    running = [start(2, "-c", GATHER, index, port) for index in range(2)]
    said = [process.communicate(timeout=300)[0] for process in running]
    assert all("THE SAME" in it for it in said), "\n".join(said)


def test_a_file_above_4_gib_is_sent_whole_and_in_pieces(monkeypatch):
    sent = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "broadcast_one_to_all", lambda it, is_source: sent.append(it) or it)
    size = 2**32 + 5
    data = bytes(size)  # zeros that the system gives no memory to before they are touched
    same = from_lead(lambda: data) is data  # not in the assertion: where that fails, pytest would write them out
    assert same
    assert int.from_bytes(sent[0].tobytes(), "little") == size
    assert sum(it.nbytes for it in sent[1:]) == size
    assert max(it.nbytes for it in sent) == PIECE


@pytest.mark.slow
def test_a_ctrl_c_for_one_process_stops_all_and_another_number_of_devices_goes_on(one, tmp_path):
    folder = tmp_path / "run"
    stopped = train(folder, 2, 2, "interrupt")
    assert all("INTERRUPTED" in said for said in stopped.said)
    assert 0 < len(stopped.events("Stepped")) < 8
    two = train(folder, 2, 4, "resume")
    assert_same(two, one)
    for ours, theirs in zip(*two.theta, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_one_device_writes_what_two_processes_go_on_from(one, tmp_path):
    folder = tmp_path / "run"
    process = start(1, "-c", SCRIPT, folder, "interrupt", -1, 0)
    log = folder / "log.jsonl"
    wait_for(log, '"Stepped", "step": 4,', process)
    process.kill()
    process.communicate()
    assert_same(train(folder, 2, 2, "resume"), one)


def wait_for(path: Path, text: str, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 200
    while not (path.exists() and text in path.read_text()):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_job_with_a_message_and_a_checkpoint(victim, tmp_path):
    tiny = ["--config", '{"layers": [2]}', "--horizon", 2, "--truncation", 1, "--instances", 4, "--meta-steps", 250]
    command = ["-m", "bygrad", "train", "--family", "quadratic", *tiny, "--out", tmp_path]
    port = free_port()
    running = [start(1, *command, "--hosts", f"127.0.0.1:{port},2,{index}") for index in (0, 1)]
    wait_for(tmp_path / "metatraining" / "log.jsonl", '"Stepped", "step": 40,', running[0])
    running[victim].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    said = [re.sub(r"\s+", " ", process.communicate(timeout=100)[0]) for process in running]
    assert time.monotonic() - killed < 60
    assert running[victim].returncode == -signal.SIGKILL
    # The survivor says it itself, unless JAX's runtime was quicker to end it: then its last words are said for it.
    assert running[1 - victim].returncode in (INCOMPLETE, -signal.SIGABRT), said
    assert "another of its 2 processes ended" in said[1 - victim] or "process of the job was lost" in said[1 - victim]
    assert "--resume" in said[1 - victim]
    assert "ended in the middle of its work" in said[victim]
    assert is_begun(tmp_path / "metatraining")


class Device(NamedTuple):
    id: int
    process_index: int


@pytest.mark.parametrize(
    ("instances", "layout", "expected"),
    [
        (8, [8], [8]),
        (8, [4, 4], [4, 4]),
        (6, [8], [6]),
        (6, [4, 4], [3, 3]),
        (7, [4], [1]),
        (9, [4, 4], [2, 1]),
        (12, [8, 2], [4, 2]),
        (1, [1], [1]),
        (1000, [3, 5], [3, 5]),
    ],
    ids=str,
)
def test_as_many_devices_as_divide_the_instances(instances, layout, expected):
    devices = [Device(10 * process + i, process) for process, count in enumerate(layout) for i in range(count)]
    chosen, idle = choose(instances, devices[::-1])
    assert [sum(it.process_index == process for it in chosen) for process in range(len(layout))] == expected
    assert chosen == sorted(chosen)
    assert idle == len(devices) - len(chosen)


def test_a_process_with_nothing_to_do_is_refused():
    devices = [Device(i, i) for i in range(4)]
    with pytest.raises(ValueError, match=r"3 instances .* among 3 devices .* of the 4 processes .*multiple of 4"):
        choose(3, devices)


def test_hosts_are_read_or_refused():
    assert parse_hosts("auto") == {}
    assert parse_hosts("[::1]:99,4,3") == {"coordinator_address": "[::1]:99", "num_processes": 4, "process_id": 3}
    for wrong in ("", "host,2,0", "host:1,2", "host:1,2,2", "host:x,2,0", "host:1,2,-1"):
        with pytest.raises(ValueError, match=r"names no place in a job.*ADDRESS:PORT,COUNT,INDEX.*auto"):
            parse_hosts(wrong)


@pytest.mark.parametrize("mpi4py", [None, "a module"], ids=["without", "with mpi4py"])
@pytest.mark.parametrize("orte", [None, "1531576320.0;tcp://10.96.0.1:34911"], ids=["5", "4"])
def test_open_mpi_5_needs_mpi4py(monkeypatch, mpi4py, orte):
    asked = []

    def initialize(initialization_timeout, heartbeat_timeout_seconds, **arguments):
        asked.append(arguments)
        if not arguments and orte is None:
            raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setattr(hosts, "find_spec", lambda name: mpi4py)
    monkeypatch.setenv("JAX_ENABLE_PREEMPTION_SERVICE", "0")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "3")
    if orte is not None:
        monkeypatch.setenv("OMPI_MCA_orte_hnp_uri", orte)
    if orte is None and mpi4py is None:
        with pytest.raises(ValueError, match=r"pip install mpi4py.*PORT,\$OMPI_COMM_WORLD_SIZE,\$OMPI_COMM_WORLD_RANK"):
            join("auto")
        return
    join("auto")
    found = {"cluster_detection_method": "mpi4py", "num_processes": 4, "process_id": 3}
    assert asked == [{} if orte else found]
    join("10.0.0.1:99,2,1")
    assert asked[1] == parse_hosts("10.0.0.1:99,2,1")
