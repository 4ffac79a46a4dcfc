"""A file is whole or absent, whatever fails while it is written."""

import contextlib
import errno
import os
import stat
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from bygrad._core import files
from bygrad._core.files import (
    join_arrays_atomically,
    locked,
    read_json,
    reading_arrays,
    refuse_unwritable,
    sweep,
    unwritable,
    write_arrays_atomically,
    write_atomically,
    write_text_atomically,
)


def test_bytes_and_text_arrive(tmp_path: Path):
    path = tmp_path / "new" / "folder" / "file"
    write_atomically(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    write_atomically(path, b"\x00", memoryview(b"\xff"))
    assert path.read_bytes() == b"\x00\xff"
    write_text_atomically(path, "θ")
    assert path.read_text(encoding="utf-8") == "θ"
    write_arrays_atomically(path, {"x/a": np.arange(3), "cost": np.float64(2)})
    with np.load(path) as arrays:
        assert list(arrays["x/a"]) == [0, 1, 2] and arrays["cost"] == 2
    assert [it.name for it in path.parent.iterdir()] == ["file"]


def test_whether_a_file_can_be_written_is_known_before(tmp_path: Path):
    refuse_unwritable(None)
    for file in (tmp_path / "file", tmp_path / "not" / "yet" / "file"):
        refuse_unwritable(file)
        assert unwritable(file.parent) == ""
    assert not list(tmp_path.iterdir())
    with pytest.raises(IsADirectoryError, match="is a folder"):
        refuse_unwritable(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "file" / "in" / "it")
    (tmp_path / "file").touch()
    with pytest.raises(PermissionError, match="Nothing can be written in"):
        refuse_unwritable(tmp_path / "link")
    for option in ("--out", "--json"):
        said = rf"Nothing can be written in .*file .*nothing was started.*choose another place \({option}\)"
        with pytest.raises(PermissionError, match=said):
            refuse_unwritable(tmp_path / "file" / "in" / "it", option)


def test_what_a_link_points_to_is_written_and_the_link_stays(tmp_path: Path):
    (tmp_path / "there").mkdir()
    for name in ("old", "not yet"):
        link, target = tmp_path / f"link to {name}", tmp_path / "there" / name
        link.symlink_to(target)
        for text in ("first", "second"):
            write_text_atomically(link, text)
            assert link.is_symlink() and target.read_text() == text
    assert len(list((tmp_path / "there").iterdir())) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="there are no named pipes on Windows")
def test_a_device_and_a_pipe_stay_what_they_are(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path / "link", Path(os.devnull)):
        for refuse in (refuse_unwritable, lambda path: write_atomically(path, b"data")):
            with pytest.raises(FileExistsError, match=r"is a device or a pipe, .*Choose another name"):
                refuse(path)
        assert not path.is_file()
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("links", [True, False])
def test_what_must_be_new_takes_nobodys_name(links, tmp_path: Path, monkeypatch):
    def fail(*arguments: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", fail)
    write_atomically(tmp_path / "file", b"first", new=True)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("file", "dangling"):
        with pytest.raises(FileExistsError, match=rf"{name} has appeared meanwhile and would be overwritten"):
            write_atomically(tmp_path / name, b"second", new=True)
    assert (tmp_path / "file").read_bytes() == b"first"
    assert sorted(it.name for it in tmp_path.iterdir()) == ["dangling", "file"]


def test_a_name_may_be_as_long_as_the_system_lets(tmp_path: Path):
    path = tmp_path / ("n" * 255)
    write_atomically(path, b"data")
    assert path.read_bytes() == b"data"


def test_an_array_without_a_name_is_damaged_too(tmp_path: Path):
    with (tmp_path / "kept.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(ValueError, match=r"damaged \(it holds one array"), reading_arrays(tmp_path / "kept.npz"):
        pass


@pytest.mark.parametrize("data", [b'{"a": 1, "b": [2', b"", b"\xff\xfe{", b"[" * 100_000], ids=len)
def test_what_is_damaged_is_named_with_a_remedy(data, tmp_path: Path):
    path = tmp_path / "kept.json"
    write_text_atomically(path, '{"a": "θ"}')
    assert read_json(path) == {"a": "θ"}
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"kept\.json is damaged \(.*cannot be read\. Delete it and resume"):
        read_json(path)
    with pytest.raises(ValueError, match="Start again"):
        read_json(path, "Start again.")


def write_one_array(path: Path, data: bytes) -> None:
    write_arrays_atomically(path, {"data": np.frombuffer(data, np.uint8)})


@pytest.mark.parametrize("write", [write_atomically, write_one_array])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_failure_leaves_the_previous_file_and_no_other(function, error, write, tmp_path: Path, monkeypatch):
    previous, missing = tmp_path / "previous", tmp_path / "missing"
    previous.write_bytes(b"previous")

    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(os, function, fail)
    for path in (previous, missing):
        with pytest.raises(type(error)):
            write(path, b"new" * 1000)
    monkeypatch.undo()
    assert [it.name for it in tmp_path.iterdir()] == ["previous"]
    assert previous.read_bytes() == b"previous"


def test_a_full_disk_says_which_file_did_not_fit(tmp_path: Path, monkeypatch):
    def fail(descriptor: int) -> None:
        raise OSError(errno.EFBIG, "File too large")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=r"File too large: '.*kept'"):
        write_atomically(tmp_path / "kept", b"new")


@pytest.mark.skipif(sys.platform == "win32", reason="folders are not synchronized on Windows")
@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EIO])
def test_a_file_system_may_not_synchronize_folders(code, tmp_path: Path, monkeypatch):
    real = os.fsync

    def only_files(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", only_files)
    with pytest.raises(OSError) if code == errno.EIO else contextlib.nullcontext():
        write_atomically(tmp_path / "file", b"data")
    assert (tmp_path / "file").read_bytes() == b"data"


@pytest.mark.parametrize("write", [write_atomically, write_one_array])
def test_the_bytes_are_on_the_disk_before_they_take_the_name(write, tmp_path: Path, monkeypatch):
    path, calls = tmp_path / "file", []
    real = {name: getattr(os, name) for name in ("fsync", "replace")}

    def spy(name: str) -> None:
        def call(*arguments: object) -> object:
            calls.append(name)
            return real[name](*arguments)

        monkeypatch.setattr(os, name, call)

    spy("fsync")
    spy("replace")
    write(path, b"new")
    assert calls == ["fsync", "replace", "fsync"]  # the file, its name, the folder that holds the name


def test_arrays_of_several_files_are_joined_without_being_held_together(tmp_path: Path):
    draw, parts, pieces = np.random.default_rng(0), [], []
    for number, rows in enumerate((*[20_000] * 8, 7)):
        x = np.asfortranarray(draw.normal(size=(rows, 3)))
        piece = {"x/a": x, "status": np.arange(rows, dtype=np.int32), "dual": np.zeros((rows, 0)), "good": x[:, 0] > 0}
        parts.append(tmp_path / f"{number}.npz")
        pieces.append(piece)
        write_arrays_atomically(parts[-1], piece)
    wanted = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
    tracemalloc.start()
    join_arrays_atomically(tmp_path / "whole.npz", parts, list(wanted), 160_007)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < wanted["x/a"].nbytes / 2  # an array of one file, its bytes, and what reads them
    with np.load(tmp_path / "whole.npz", allow_pickle=False) as found:
        assert found.files == list(wanted)
        for name, array in wanted.items():
            np.testing.assert_array_equal(found[name], array)
            assert found[name].dtype == array.dtype


@pytest.mark.skipif(sys.platform == "win32", reason="there is no umask on Windows")
@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_a_file_may_be_read_by_whom_the_umask_lets(umask, tmp_path: Path):
    before = os.umask(umask)
    try:
        for _ in ("new", "replaced"):
            write_atomically(tmp_path / "file", b"data")
            assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~umask
    finally:
        os.umask(before)


HOLD = """
import sys
from pathlib import Path
from bygrad._core.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there are no locks on Windows")
def test_a_lock_ends_with_the_process_that_holds_it(tmp_path: Path):
    path = tmp_path / "folder" / "lock"
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        for shared in (False, True):
            with pytest.raises(BlockingIOError, match="Another process holds"), locked(path, shared):
                pass
        process.kill()
    with locked(path, shared=True), locked(path, shared=True), pytest.raises(BlockingIOError), locked(path):
        pass
    with locked(path):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="there are no locks on Windows")
@pytest.mark.parametrize("again", [False, True])
def test_a_lock_on_a_file_that_was_removed_meanwhile_is_none(again, tmp_path: Path, monkeypatch):
    """Between opening and locking it, who held it takes it away, and perhaps another makes one of the same name."""
    path, flock = tmp_path / "lock", files.fcntl.flock

    def late(*arguments: object) -> None:
        path.unlink()
        if again:
            path.touch()
        flock(*arguments)

    with monkeypatch.context() as patch, pytest.raises(BlockingIOError, match="Another process holds"):
        patch.setattr(files.fcntl, "flock", late)
        with locked(path):
            pass
    with locked(path):
        pass


@pytest.mark.parametrize("name", ["a[1]", "n" * 200])
def test_what_a_killed_write_left_is_swept_up_and_nothing_else(name, tmp_path: Path, monkeypatch):
    def killed(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    unique = "0123456789abcdef"
    others = [name, f".a1.{unique}.tmp", f".a[1].npz.{unique}.tmp", ".a[1].0f.tmp", f"{name}.{unique}.tmp"]
    for other in others:
        (tmp_path / other).touch()
    monkeypatch.setattr(os, "replace", killed)
    monkeypatch.setattr(Path, "unlink", killed)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / name, b"data")
    monkeypatch.undo()
    assert len(list(tmp_path.iterdir())) == len(others) + 1
    sweep(tmp_path / name)
    assert sorted(it.name for it in tmp_path.iterdir()) == sorted(others)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no /dev on Windows")
def test_the_file_that_output_is_redirected_to_is_not_replaced(tmp_path: Path):
    log = tmp_path / "log.txt"
    log.write_text("yesterday\n")
    program = "import sys; from pathlib import Path; from bygrad._core.files import write_atomically as write\n"
    program += "try: write(Path(sys.argv[1]), b'data')\nexcept FileExistsError as error: print(error)"
    for name in ("/dev/stdout", str(log)):
        with log.open("a") as out:
            subprocess.run([sys.executable, "-c", program, name], stdout=out, check=True)
    first, *told = log.read_text().splitlines()
    assert first == "yesterday" and len(told) == 2
    assert all("is the file that this program's own output goes to" in line for line in told)
