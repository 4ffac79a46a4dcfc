"""Several devices, and a process that is killed: the same solutions as of one device, in one go."""

import _thread
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from bygrad.cli import main
from bygrad.solvers import engine, solve
from bygrad.workflows import solving

from .families import Decay, decays

FILE = Path(__file__).parent / "families.py"

SHARED = """
import json, os, signal, sys
sys.path.insert(0, sys.argv[1])
import jax, numpy as np
from families import Decay
"""

SOLVE = """
from bygrad.solvers import engine, solve

used, begin = set(), engine._begin
def spy(*arguments):
    after = begin(*arguments)
    used.update(device.id for leaf in jax.tree.leaves(after) for device in leaf.devices())
    return after
engine._begin = spy
told = []
data = np.load(sys.argv[2])
found = solve(Decay(), data, starts=2, seed=3, batch=16, watch=lambda what, done, of: told.append((done, of)))
alone = list(used)
used.clear()
with jax.default_device(jax.devices()[2]):
    solve(Decay(), data[:32], starts=2, batch=64)
np.savez(sys.argv[3], height=found.x["height"], cost=found.cost, status=found.status, nit=found.nit)
print(json.dumps({"used": sorted(alone), "chosen": sorted(used), "told": [max(told), told == sorted(told)]}))
"""

KILLED = """
from bygrad import cli
from bygrad.workflows import parts

write, done = parts.write_part, []
def stop(path, found):
    if done:
        path.with_name(path.name + ".partial").write_bytes(b"half of a file")
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, found)
    done.append(path)
parts.write_part = stop
cli.main(["solve", f"{sys.argv[1]}/families.py:Decay", sys.argv[2], "-o", sys.argv[3], "--block", "16"])
"""


def run(script: str, *arguments: object, devices: int = 1) -> subprocess.CompletedProcess[str]:
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    command = [sys.executable, "-c", SHARED + script, str(FILE.parent), *map(str, arguments)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_four_devices_find_what_one_finds(tmp_path):
    data = decays(128)
    data[17] = np.nan
    np.save(tmp_path / "data.npy", data)
    done = run(SOLVE, tmp_path / "data.npy", tmp_path / "four.npz", devices=4)
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout)
    assert said["used"] == list(range(4))  # 256 starts, 64 a device at least
    assert said["chosen"] == [2]
    assert said["told"] == [[256, 256], True]
    one = solve(Decay(), data, starts=2, seed=3, batch=64)
    with np.load(tmp_path / "four.npz") as four:
        np.testing.assert_array_equal(four["status"], one.status)
        np.testing.assert_array_equal(four["nit"], one.nit)
        np.testing.assert_allclose(four["cost"], one.cost, rtol=1e-9)
        np.testing.assert_allclose(four["height"], one.x["height"], rtol=1e-6)


@pytest.fixture
def two_devices(monkeypatch):
    """One device that counts as two for a batch of four rows."""
    monkeypatch.setattr(engine, "devices_for", lambda rows: jax.devices()[:1] * (2 if rows == 4 else 1))


def test_every_device_computes_as_who_asks(two_devices, monkeypatch):
    found, finish = [], engine._advance

    def spy(*arguments):
        found.append((jax.config.jax_default_matmul_precision, jax.config.jax_enable_x64))
        return finish(*arguments)

    monkeypatch.setattr(engine, "_advance", spy)
    with jax.default_matmul_precision("highest"):
        solution = solve(Decay(), decays(4))
    assert len(found) >= 2 and set(found) == {("highest", True)}
    assert solution.success.all()


@pytest.fixture
def hears_ctrl_c():
    """The background jobs of a shell ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_who_interrupts_waits_for_no_device_and_all_of_them_end(two_devices, hears_ctrl_c, monkeypatch):
    over, finished, told, finish, before = threading.Event(), [], [], engine._advance, set(threading.enumerate())
    once = threading.Lock()

    def slow(*arguments):
        if once.acquire(blocking=False):
            _thread.interrupt_main()  # as a signal that comes just before the main thread falls asleep
        over.wait(60)
        finished.append(None)
        return finish(*arguments)

    monkeypatch.setattr(engine, "_advance", slow)
    with pytest.raises(KeyboardInterrupt):
        solve(Decay(), decays(4), watch=lambda *_: told.append(None))
    assert not finished
    over.set()
    deadline = time.monotonic() + 60
    while set(threading.enumerate()) - before:  # one that was still being started cannot be joined
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert len(finished) <= 2 and told == []


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL on Windows")
def test_what_was_killed_goes_on(tmp_path, capsys, monkeypatch):
    data, out = decays(40), tmp_path / "out.npz"
    np.save(tmp_path / "data.npy", data)
    done = run(KILLED, tmp_path / "data.npy", out)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert not out.exists()
    sizes = []

    def counting(family, block, **options):
        sizes.append(len(block))
        return solve(family, block, **options)

    monkeypatch.setattr(solving, "solve", counting)
    main(["solve", f"{FILE}:Decay", str(tmp_path / "data.npy"), "-o", str(out), "--resume"])
    assert "40 of 40 solved" in capsys.readouterr().out
    assert sizes == [16, 8]
    with np.load(out) as found:
        np.testing.assert_allclose(found["cost"], solve(Decay(), data).cost, rtol=1e-9)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.npy", "out.npz"]
