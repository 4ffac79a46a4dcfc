"""A checkpoint restores bit for bit, or it is refused; a killed process leaves the previous one or the new one."""

import errno
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from bygrad.training import CheckpointError, checkpoint

INFO = {"recipe": {"seed": 0, "rate": 0.1}, "seconds": 12.5}


def state(seed: int = 0) -> dict[str, object]:
    draw = np.random.default_rng(seed).standard_normal
    return {
        "theta": [jnp.asarray(draw((2, 3)), jnp.float32), jnp.asarray(draw(()), jnp.float32)],
        "half": jnp.asarray(draw(3), jnp.bfloat16),
        "eighths": [jnp.asarray(draw(3), dtype) for dtype in (jnp.float8_e4m3fn, jnp.float8_e5m2)],
        "sixteenths": [jnp.asarray([1, 7], dtype) for dtype in (jnp.int4, jnp.uint4)],
        "empty": jnp.zeros((2, 0), jnp.float16),
        "step": jnp.int32(seed),
        "flag": jnp.asarray(True),
        "keys": jax.random.split(jax.random.key(seed), 2),
    }


def of_every_kind() -> dict[str, jax.Array]:
    dtypes = (np.bool_, np.uint8, np.int8, np.uint16, np.float16, np.int32, np.uint32, np.complex64)
    return {np.dtype(dtype).name: jnp.arange(3).astype(dtype) for dtype in dtypes}


def raw(leaf: jax.Array) -> tuple:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return leaf.dtype, leaf.shape, np.asarray(leaf).tobytes()


def same(left: object, right: object) -> bool:
    return jax.tree.structure(left) == jax.tree.structure(right) and all(
        raw(a) == raw(b) for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    checkpoint.save(tmp_path / "new" / "state.safetensors", state(), INFO)
    return tmp_path / "new" / "state.safetensors"


@pytest.mark.core
def test_everything_comes_back(path):
    restored = checkpoint.restore(path, state(1))
    assert same(restored, state())
    assert not same(restored, state(1))
    assert jax.tree.map(lambda leaf: leaf.dtype, restored) == jax.tree.map(lambda leaf: leaf.dtype, state())
    assert checkpoint.read_info(path) == INFO
    np.testing.assert_array_equal(  # a restored key draws what the key would have drawn
        jax.random.normal(restored["keys"][0], (3,)), jax.random.normal(state()["keys"][0], (3,))
    )


def test_it_is_the_file_that_safetensors_writes_but_not_held_in_memory(tmp_path):
    path, tree = tmp_path / "state", {"a": jnp.zeros((1000, 1000), jnp.float32), **of_every_kind()}
    tracemalloc.start()
    checkpoint.save(path, tree, INFO)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < tree["a"].nbytes / 10
    found = safetensors.numpy.load_file(path)
    assert list(found) and same(
        {name: jnp.asarray(leaf) for name, leaf in found.items()}, jax.tree.map(jnp.asarray, tree)
    )
    # Every number begins at a multiple of its size.
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    del header["__metadata__"]
    assert all((8 + length + it["data_offsets"][0]) % found[name].itemsize == 0 for name, it in header.items())


def test_complex_numbers_come_back(tmp_path):
    values = [1 + 2j, complex(-0.0, -0.0), complex(np.inf, -1e-300)]
    with jax.enable_x64(True):
        tree = {name: jnp.asarray(values, name) for name in ("complex64", "complex128")}
        tree["one"] = jnp.asarray(-2j, "complex128")
        checkpoint.save(tmp_path / "it", tree, INFO)
        assert same(checkpoint.restore(tmp_path / "it", tree), tree)


def test_what_no_checkpoint_can_hold_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(checkpoint.CheckpointError, match="dtype float4_e2m1fn, which no checkpoint can hold"):
        checkpoint.save(tmp_path / "it", {"a": jnp.ones(3, jnp.float4_e2m1fn)}, INFO)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 100, -1], ids=str)
def test_a_truncated_file_is_refused(path, keep):
    path.write_bytes(path.read_bytes()[:keep])
    for read in (checkpoint.read_info, lambda path: checkpoint.restore(path, state())):
        with pytest.raises(CheckpointError, match=r"is not a readable checkpoint .*put back a copy of the file"):
            read(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="is not a readable checkpoint"):
        checkpoint.read_info(tmp_path / "nothing")


def test_a_flipped_bit_anywhere_is_noticed(path):
    data = path.read_bytes()
    unseen = []
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        try:
            if not (checkpoint.read_info(path) == INFO and same(checkpoint.restore(path, state()), state())):
                unseen.append(place)
        except CheckpointError:
            pass
    assert not unseen, [data[place - 20 : place + 1] for place in unseen[:5]]


def test_damaged_arrays_are_refused_as_such(path):
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="is damaged: its content does not have the SHA-256"):
        checkpoint.restore(path, state())


@pytest.mark.core
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda it: it | {"more": jnp.zeros(1)}, "more stand on one side only"),
        (lambda it: {name: leaf for name, leaf in it.items() if name != "half"}, "half stand on one side only"),
        (lambda it: it | {"step": jnp.zeros(2, jnp.int32)}, r"holds step as int32\[\], but int32\[2\] is needed"),
        (lambda it: it | {"step": jnp.float32(0)}, r"holds step as int32\[\], but float32\[\] is needed"),
    ],
    ids=["missing", "extra", "shape", "dtype"],
)
def test_another_structure_is_refused_by_name(path, change, message):
    with pytest.raises(CheckpointError, match=message):
        checkpoint.restore(path, change(state()))


def test_a_full_disk_leaves_the_previous_checkpoint(path, monkeypatch):
    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(path, state(1), {"recipe": {}, "seconds": 0.0})
    assert same(checkpoint.restore(path, state(1)), state())
    assert checkpoint.read_info(path) == INFO
    assert [it.name for it in path.parent.iterdir()] == [path.name]


# Starts process after process that does nothing but save, kills each, and looks at what is there. NumPy arrays only:
# JAX then starts no threads, and forking is safe.
KILLS = """
import json, os, pathlib, random, signal, sys, time
import numpy as np
from bygrad.training import checkpoint

path, states, last = pathlib.Path(sys.argv[1]), [], 0
like = {"a": np.zeros(200_000, np.float32), "b": np.zeros((3, 4), np.float32)}
fill = lambda i: {name: np.full_like(leaf, i) for name, leaf in like.items()}
checkpoint.save(path, fill(0), {"i": 0})
for attempt in range(30):
    child = os.fork()
    if child == 0:
        for i in range(last + 1, last + 1000):
            checkpoint.save(path, fill(i), {"i": i})
        os._exit(1)
    time.sleep(random.Random(attempt).uniform(0, 0.03))
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    states.append(path.read_bytes())
    last = checkpoint.read_info(path)["i"]

seen = []
for state in states:
    path.write_bytes(state)
    tree, i = checkpoint.restore(path, like), checkpoint.read_info(path)["i"]
    assert all(np.all(tree[name] == i) for name in like)
    seen.append(i)
print(json.dumps(seen))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that can be forked")
def test_a_process_killed_while_it_saves_leaves_a_whole_checkpoint(tmp_path):
    command = [sys.executable, "-c", KILLS, str(tmp_path / "state.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert len(seen) == 30
    assert seen == sorted(seen)
    assert len(set(seen)) > 1  # processes did get to save something before they were killed, on a busy machine too
