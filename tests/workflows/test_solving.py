"""Files of instances: how they are divided, shared by several processes, resumed, and joined."""

import itertools
import json
import os
import subprocess
import sys
import zipfile
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from bygrad._core.files import join_arrays_atomically, locked
from bygrad.cli import main
from bygrad.problems import LeastSquares, QuadraticProgram
from bygrad.solvers import ADMM, STATUS, LearnedSolver, LevenbergMarquardt, solve
from bygrad.solvers.card import Card
from bygrad.solvers.drift import Usual
from bygrad.workflows import Display, instances, parts, solve_file, solving

FILE = """
import jax.numpy as jnp
from bygrad.problems import LeastSquares


class Line(LeastSquares):
    def sample(self, key):
        return jnp.zeros(3)

    def init(self, instance, key):
        return {"slope": jnp.zeros(()), "end": jnp.zeros((1,))}

    def residuals(self, params, instance):
        return params["slope"] * jnp.arange(3) + params["end"] - instance
"""


class Line(LeastSquares):
    """Straight lines through three points, whose fits are linear: `np.polyfit` knows them."""

    def sample(self, key):
        return jnp.zeros(3)

    def init(self, instance, key):
        return {"slope": jnp.zeros(()), "end": jnp.zeros((1,))}

    def residuals(self, params, instance):
        return params["slope"] * jnp.arange(3) + params["end"] - instance


class Shares(QuadraticProgram):
    """The nearest three numbers from 0 on whose sum is at most 1."""

    def sample(self, key):
        return jnp.zeros(3)

    @property
    def matrices(self):
        return jnp.eye(3), jnp.concatenate([jnp.eye(3), jnp.ones((1, 3))])

    def vectors(self, instance):
        return -instance, jnp.array([0.0, 0.0, 0.0, -jnp.inf]), jnp.array([jnp.inf, jnp.inf, jnp.inf, 1.0])


@pytest.fixture
def display() -> Display:
    return Display(Console(quiet=True))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    np.save(tmp_path / "data.npy", np.random.default_rng(0).normal(size=(100, 3)))
    return tmp_path / "data.npy"


def is_solved(out: Path, data: Path) -> None:
    slope, end = np.polyfit(np.arange(3), np.load(data).T, 1)
    with np.load(out, allow_pickle=False) as found:
        np.testing.assert_allclose(found["x/slope"], slope, atol=2e-3)
        np.testing.assert_allclose(found["x/end"][:, 0], end, atol=2e-3)
        assert found["success"].all() and "warnings" not in found.files


class Spy:
    """Calls `solve`, writes down how many rows it was given, and is interrupted at some call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, warn: bool = False):
        self.sizes, self.given, self.stop, self.warn = [], [], 0, warn
        monkeypatch.setattr(solving, "solve", self)

    def __call__(self, family, block, **settings):
        self.sizes.append(len(block))
        self.given.append(settings)
        if len(self.sizes) == self.stop:
            raise KeyboardInterrupt
        found = solve(family, block, **settings)
        if self.warn:
            object.__setattr__(found, "warnings", ("all alike", f"{block[0, 0]:.3f} has drifted"))
        return found


def test_rows_of_a_block_take_the_time_that_may_be_lost():
    assert parts.rows_in_time(256, 2.0, 65_536) == 256 * parts.SECONDS / 2
    assert parts.rows_in_time(256, 1e-9, 65_536) == 65_536
    assert parts.rows_in_time(256, 1e9, 65_536) == 1


def test_the_second_block_decides_on_the_size_of_the_others_also_of_a_resumed_run(tmp_path, data, display, monkeypatch):
    spy, out = Spy(monkeypatch), tmp_path / "out.npz"
    monkeypatch.setattr(parts, "rows_in_time", lambda rows, seconds, limit: 24)
    spy.stop = 4
    with pytest.raises(KeyboardInterrupt):
        solve_file(Line(), data, out, display, batch=16)
    assert spy.sizes == [16, 16, 24, 24]
    monkeypatch.setattr(parts, "rows_in_time", lambda rows, seconds, limit: 99)
    done = solve_file(Line(), data, out, display, batch=16, resume=True)
    assert spy.sizes[4:] == [24, 20] and (done["rows"], done["solved"]) == (100, 100)
    is_solved(out, data)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.npy", "out.npz"]


def test_progress_counts_rows_and_not_their_starts(tmp_path, data, display, monkeypatch):
    told = []
    monkeypatch.setattr(Display, "phase", lambda self, what, done, total, *_: told.append((done, total)))
    solve_file(Line(), data, tmp_path / "out.npz", display, block=60, batch=16, starts=3)
    finished = [done for done, _ in told]
    assert finished == sorted(finished) and finished[-1] == 100 and 60 in finished
    assert {total for _, total in told} == {100}


def test_a_foreign_file_does_not_end_an_interrupted_run(tmp_path, data, monkeypatch):
    out, display = tmp_path / "out.npz", Display(Console(width=500))
    solve, calls = parts.Parts.keep, []

    def interrupted(self, *given):
        if calls:
            raise KeyboardInterrupt
        calls.append(solve(self, *given))

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(parts.Parts, "keep", interrupted)
        solve_file(Line(), data, out, display, block=20)
    np.savez(out, x=np.zeros(3))
    with pytest.raises(FileExistsError, match="It is not of this run"):
        solve_file(Line(), data, out, display, block=20, resume=True)
    out.unlink()
    assert solve_file(Line(), data, out, display, block=20, resume=True)["rows"] == 100  # no part is lost
    is_solved(out, data)


def test_a_finished_run_is_resumed_to_no_end_and_others_are_refused(tmp_path, data, monkeypatch, capsys):
    spy, out, display = Spy(monkeypatch), tmp_path / "out.npz", Display(Console(width=500))
    solve_file(Line(), data, out, display, block=20)
    written, calls = out.read_bytes(), len(spy.sizes)
    done = solve_file(Line(), data, out, display, block=20, resume=True)
    assert (done["rows"], done["solved"]) == (100, 100) and f"{out} is finished" in capsys.readouterr().out
    with pytest.raises(FileExistsError, match=r"would be overwritten\. It is not of this run, or of a version"):
        solve_file(Line(), data, out, display, block=20, resume=True, seed=1)
    with pytest.raises(FileExistsError, match=r"would be overwritten\. Choose another --out"):
        solve_file(Line(), data, out, display, block=20)
    assert out.read_bytes() == written
    with np.load(out) as found:
        np.savez(out, **found)  # as an earlier version would have written it
    with pytest.raises(FileExistsError, match="of a version that does not say whose it is"):
        solve_file(Line(), data, out, display, block=20, resume=True)
    out.write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="would be overwritten"):
        solve_file(Line(), data, out, display, block=20, resume=True)
    assert len(spy.sizes) == calls
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.npy", "out.npz"]


def test_what_an_npz_holds_stays_on_the_disk_unless_it_is_compressed(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "signal": rng.normal(size=(5, 3, 2)),
        "a/long/path/to/what is counted": rng.integers(9, size=5).astype(np.int16),
        "columns": np.asfortranarray(rng.normal(size=(5, 4)).astype(np.float32)),
        "one": np.array(2.5),
        "none": np.zeros((0, 3)),
    }
    np.savez(tmp_path / "numpy.npz", **arrays)
    np.savez_compressed(tmp_path / "compressed.npz", **arrays)
    join_arrays_atomically(tmp_path / "ours.npz", [tmp_path / "numpy.npz"], ["signal"], rows=5)
    for name in ("numpy", "ours", "compressed"):
        file = tmp_path / f"{name}.npz"
        found = instances.arrays_in(file)
        assert found.keys() == ({"signal"} if name == "ours" else arrays.keys())
        for path, leaf in found.items():
            np.testing.assert_array_equal(leaf, arrays[path])
            assert leaf.dtype == arrays[path].dtype
            on_disk = isinstance(leaf, np.memmap) and Path(str(leaf.filename)) == file.resolve()
            assert on_disk == (name != "compressed" and path != "none")  # of nothing there is no map
    np.save(tmp_path / "signal.npy", arrays["signal"])
    # Fewer numbers than it says: what follows in the file is none of them.
    with zipfile.ZipFile(tmp_path / "short.npz", "w") as short:
        short.writestr("signal.npy", (tmp_path / "signal.npy").read_bytes()[:-8])
    with pytest.raises(ValueError, match="neither an npy nor an npz file"):
        instances.arrays_in(tmp_path / "short.npz")


@pytest.mark.parametrize("changed", ["data", "x0"])
def test_a_row_that_was_corrected_belongs_to_another_run(tmp_path, display, monkeypatch, changed):
    spy, out = Spy(monkeypatch), tmp_path / "out.npz"
    data, x0 = tmp_path / "data.npy", tmp_path / "x0.npz"
    rows = np.random.default_rng(0).normal(size=(200, 3))
    np.save(data, rows)
    np.savez(x0, **{"x/slope": np.zeros(200), "x/end": np.zeros((200, 1))})
    file = {"data": data, "x0": x0}[changed]
    before = file.read_bytes()
    solve = partial(solve_file, Line(), data, out, display, block=100, x0=x0, resume=True)

    def correct(row: int) -> None:
        if changed == "data":
            np.save(data, np.where(np.arange(200)[:, None] == row, 9.0, rows))
        else:
            np.savez(x0, **{"x/slope": 9.0 * (np.arange(200) == row), "x/end": np.zeros((200, 1))})

    spy.stop = 2
    with pytest.raises(KeyboardInterrupt):
        solve()
    correct(row=99)
    with pytest.raises(ValueError, match="differs in contents, so its results are not of this one"):
        solve()
    file.write_bytes(before)  # another time of writing, but the same rows
    assert solve()["solved"] == 200 and spy.sizes == [100, 100, 100]
    is_solved(out, data)
    assert solve()["solved"] == 200
    correct(row=99)
    with pytest.raises(FileExistsError, match="It is not of this run"):
        solve()
    assert spy.sizes == [100, 100, 100]


def test_the_bytes_of_instances_bound_a_block(tmp_path, data, display, monkeypatch):
    spy = Spy(monkeypatch)
    monkeypatch.setattr(solving, "BYTES", 8 * 3 * 40)
    solve_file(Line(), data, tmp_path / "out.npz", display)
    assert spy.sizes == [40, 40, 20]


@pytest.mark.parametrize("damage", [lambda it: it[:300], lambda it: it.replace(b"NUMPY", b"NUMPX"), lambda _: b""])
def test_a_damaged_block_is_told_and_may_be_solved_again(tmp_path, data, display, monkeypatch, damage):
    spy, out = Spy(monkeypatch), tmp_path / "out.npz"
    spy.stop = 3
    with pytest.raises(KeyboardInterrupt):
        solve_file(Line(), data, out, display, block=40)
    part = tmp_path / ".out.npz.parts" / "000000000040.npz"
    part.write_bytes(damage(part.read_bytes()))
    with pytest.raises(ValueError, match=r"000000000040.npz is damaged .* Delete it and resume"):
        solve_file(Line(), data, out, display, block=40, resume=True)
    assert not out.exists()
    part.unlink()
    solve_file(Line(), data, out, display, block=40, resume=True)
    assert spy.sizes == [40, 40, 20, 20, 40]  # the third was killed, and is kept since
    is_solved(out, data)


def test_warnings_of_blocks_before_a_kill_are_told_too(tmp_path, data, display, monkeypatch):
    spy, out = Spy(monkeypatch, warn=True), tmp_path / "out.npz"
    spy.stop = 3
    with pytest.raises(KeyboardInterrupt):
        solve_file(Line(), data, out, display, block=40)
    first = np.load(data)[:, 0]
    told = [f"Rows {at} to {min(at + 39, 99)}: {first[at]:.3f} has drifted" for at in (0, 40, 80)]
    assert solve_file(Line(), data, out, display, block=40, resume=True)["warnings"] == ["all alike", *told]
    monkeypatch.setattr(parts, "MANY", 2)
    said = solve_file(Line(), data, tmp_path / "other.npz", display, block=40)["warnings"]
    assert said[:2] == ["all alike", told[0]] and said[2].startswith("2 further warnings") and len(said) == 3


def test_two_who_know_nothing_of_each_other_do_not_solve_the_same(tmp_path, data, display):
    out, folder = tmp_path / "out.npz", tmp_path / ".out.npz.parts"
    with locked(folder / "lock"):
        for place in ((0, 1), (0, 2), (1, 2)):
            with pytest.raises(FileExistsError, match=r"Another process is at work on .*share the work: --hosts auto"):
                solve_file(Line(), data, out, display, place=place)
    with locked(folder / "lock", shared=True), locked(folder / "lock-1"):
        for place in ((0, 1), (1, 2)):
            with pytest.raises(FileExistsError, match="Another process is at work on"):
                solve_file(Line(), data, out, display, place=place)
    assert not out.exists()
    solve_file(Line(), data, out, display)
    is_solved(out, data)
    assert not folder.exists()


SHARED = """
import json, sys
from bygrad import cli
from bygrad.workflows import parts

parts.PAUSE, written, write = 0.05, [], parts.write_part
def keep(path, found):
    written.append(int(path.stem))
    write(path, found)
parts.write_part = keep
cli.main(sys.argv[1:])
print(json.dumps(written))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there are no locks on Windows")
def test_two_processes_share_the_blocks_of_a_file(tmp_path, data):
    (tmp_path / "line.py").write_text(FILE)
    out = tmp_path / "out.npz"
    command = ["solve", str(tmp_path / "line.py"), str(data), "-o", str(out), "--block", "8", "--hosts"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}

    def start(index: int) -> subprocess.Popen[str]:
        line = [sys.executable, "-u", "-c", SHARED, *command, f"2,{index}"]
        return subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, text=True)

    early = start(1)
    assert early.stdout is not None
    assert early.stdout.readline().strip() == "process 1 waits for the first blocks of process 0"
    started = [early, start(0)]
    second, first = (process.communicate(timeout=300)[0].splitlines() for process in started)
    assert [process.returncode for process in started] == [0, 0]
    mine, theirs = json.loads(first[-1]), json.loads(second[-1])
    assert mine == [0, 8, *range(16, 100, 16)] and theirs == list(range(24, 100, 16))
    assert f"{8 * len(theirs)} of {8 * len(theirs)} solved" in " ".join(second)
    assert "100 of 100 solved" in " ".join(first)
    is_solved(out, data)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name[0] != "_") == ["data.npy", "line.py", "out.npz"]


def test_process_0_says_what_it_waits_for_and_another_may_take_it_over(tmp_path, data, capsys, monkeypatch):
    out = tmp_path / "out.npz"
    display = Display(Console(width=500))

    def give_up(seconds: float) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(parts.time, "sleep", give_up)
        solve_file(Line(), data, out, display, block=20, place=(0, 2))
    assert "process 0 waits for 1 of 5 blocks, of process 1. If one is lost" in capsys.readouterr().out
    spy = Spy(monkeypatch)
    done = solve_file(Line(), data, out, display, block=20, place=(1, 2))
    assert spy.sizes == [20] and not out.exists()
    assert (done["rows"], done["solved"], sum(done["status"].values())) == (20, 20, 20)
    solve_file(Line(), data, out, display, block=20, resume=True)
    assert spy.sizes == [20]
    is_solved(out, data)
    assert solve_file(Line(), data, out, display, block=20, place=(1, 2))["rows"] == 0  # it came too late


def test_no_process_takes_what_is_there_already_for_its_own_results(tmp_path, data, display):
    out = tmp_path / "out.npz"
    solve_file(Line(), data, out, display, block=20)
    np.save(other := tmp_path / "other.npy", np.load(data)[::-1])
    for place in ((0, 2), (1, 2)):
        with pytest.raises(FileExistsError, match="already exists and would be overwritten"):
            solve_file(Line(), other, out, display, block=20, place=place)
    assert not list(tmp_path.glob(".out.npz.parts/*.npz"))
    is_solved(out, data)


def test_who_waits_for_long_asks_whether_process_0_is_there(tmp_path, data, capsys, monkeypatch):
    pauses = itertools.count()

    def give_up(seconds: float) -> None:
        if next(pauses) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(parts.time, "sleep", give_up)
    monkeypatch.setattr(parts, "LONG", -1.0)
    with pytest.raises(KeyboardInterrupt):
        solve_file(Line(), data, tmp_path / "out.npz", Display(Console(width=500)), place=(1, 2))
    assert capsys.readouterr().out.count("process 0 has written nothing yet. If it has ended") == 1


def test_a_file_of_params_is_where_the_classical_method_starts(tmp_path, data, display, monkeypatch):
    out, spy = tmp_path / "out.npz", Spy(monkeypatch)
    solve_file(Line(), data, out, display, block=40)
    again = ["solve", str(data), "-o", str(tmp_path / "again.npz"), "--x0", str(out), "--block", "40", "--seed", "3"]
    (tmp_path / "line.py").write_text(FILE)
    main([again[0], str(tmp_path / "line.py"), *again[1:]])
    with np.load(out) as found, np.load(tmp_path / "again.npz") as warm:
        assert (warm["nit"] < found["nit"]).all()
        np.testing.assert_array_equal(spy.given[-1]["x0"]["slope"], found["x/slope"][80:])
    assert spy.given[-1]["seed"] == 3
    np.savez(tmp_path / "one.npz", **{"x/slope": 2.0, "x/end": np.ones(1)})
    solve_file(Line(), data, tmp_path / "one-start.npz", display, x0=tmp_path / "one.npz", block=40)
    np.testing.assert_array_equal(spy.given[-1]["x0"]["slope"], np.full(20, 2.0))
    np.savez(tmp_path / "short.npz", **{"x/slope": np.zeros(99), "x/end": np.zeros((99, 1))})
    with pytest.raises(ValueError, match=r"shape \[99\], but those of 100 instances have \[100\]"):
        solve_file(Line(), data, tmp_path / "short-start.npz", display, x0=tmp_path / "short.npz")
    with pytest.raises(ValueError, match=r"one array for x, but the params of Line are a tree of arrays end, slope"):
        solve_file(Line(), data, tmp_path / "other-start.npz", display, x0=data)


def test_a_file_of_foreign_bytes_is_solved_from_a_file_of_params(tmp_path, display):
    counts = np.random.default_rng(0).integers(-9, 9, (20, 3))
    np.save(tmp_path / "counts.npy", counts.astype(">i2"))
    np.savez(tmp_path / "one.npz", **{"x/slope": 2.0, "x/end": np.ones(1)})
    solve_file(Line(), tmp_path / "counts.npy", tmp_path / "out.npz", display, x0=tmp_path / "one.npz")
    is_solved(tmp_path / "out.npz", tmp_path / "counts.npy")


def test_the_command_says_why_rows_are_not_solved(tmp_path, capsys):
    rows = np.random.default_rng(0).normal(size=(30, 3))
    rows[[3, 17]] = np.nan
    np.save(tmp_path / "data.npy", rows)
    (tmp_path / "line.py").write_text(FILE)
    command = ["solve", str(tmp_path / "line.py"), str(tmp_path / "data.npy"), "--block", "20", "-o"]
    main([*command, str(tmp_path / "out.npz")])
    whole = capsys.readouterr().out.replace("\n", " ")
    assert "28 of 30 solved" in whole and f"2 not solved: {STATUS[-1]}" in whole and whole.count("not solved") == 1
    main([*command, str(tmp_path / "short.npz"), "--max-steps", "1"])
    short = capsys.readouterr().out.replace("\n", " ")
    assert f"28 not solved: {STATUS[0]}" in short and f"2 not solved: {STATUS[-1]}" in short


def test_a_family_beside_a_family_is_refused(tmp_path, data, capsys):
    with pytest.raises(SystemExit):
        main(["solve", "quadrotor", str(data), "-o", str(tmp_path / "out.npz"), "--family", "dispatch"])
    assert "not known which family is meant" in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "out.npz").exists()


@pytest.mark.parametrize("learned", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_multipliers_in_a_file_of_params_are_half_of_a_warm_start(tmp_path, data, display, monkeypatch, learned):
    out, again, method = tmp_path / "out.npz", tmp_path / "again.npz", ADMM(inner=1)
    solver = LearnedSolver(Shares(), method, method, None, 1, 1) if learned else Shares()
    monkeypatch.setattr(solving, "default_method", lambda family, tol, max_steps: method)
    solve_file(solver, data, out, display, block=40)
    solve_file(solver, data, again, display, block=40, x0=out)
    with np.load(out) as found, np.load(again) as warm:
        results = dict(found)
        assert warm["success"].all() and warm["nit"].max() <= 2 < np.median(found["nit"])
        np.testing.assert_allclose(warm["x"], found["x"], atol=1e-3)
    np.savez(again, x=results["x"])
    solve_file(solver, data, tmp_path / "half.npz", display, block=40, x0=again)
    with np.load(tmp_path / "half.npz") as half:
        assert np.median(half["nit"]) > 2
    for name, dual in {"few": results["dual"][:, 1:], "short": results["dual"][1:]}.items():
        np.savez(again, x=results["x"], dual=dual)
        with pytest.raises(ValueError, match=r"multipliers of shape .*, but 100 instances have \[100, 4\], so they"):
            solve_file(solver, data, tmp_path / f"{name}.npz", display, x0=again)


@pytest.mark.parametrize("resumed", [False, True])
def test_a_file_has_drifted_or_not_as_a_whole(tmp_path, display, monkeypatch, resumed):
    rows = np.random.default_rng(0).normal(size=(200, 3))
    rows[::20] = np.nan  # one of each block: chance there, and not ten times
    np.save(tmp_path / "data.npy", rows)
    sign = {"what": "unsolved", "limit": 0.0, "rate": 0.01}
    card = Card("tuned", {}, 1000, 0, 0, 0.01, None, 0.999, 1e-3, {}, {}, False, signs=[sign])
    method, usual = LevenbergMarquardt(), Usual.of(rows[1:20])
    learned = LearnedSolver(Line(), method, method, None, 1, 1, card, usual=usual)
    if resumed:
        act, calls = LearnedSolver.solve, []

        def interrupted(self, *given, **settings):
            calls.append(given)
            if len(calls) == 6:
                raise KeyboardInterrupt
            return act(self, *given, **settings)

        monkeypatch.setattr(LearnedSolver, "solve", interrupted)
        with pytest.raises(KeyboardInterrupt):
            solve_file(learned, tmp_path / "data.npy", tmp_path / "out.npz", display, block=20)
    done = solve_file(learned, tmp_path / "data.npy", tmp_path / "out.npz", display, block=20, resume=resumed)
    (warning,) = [it for it in done["warnings"] if "drifted" in it]
    assert "10 of 200 were not solved" in warning
    with np.load(tmp_path / "out.npz", allow_pickle=False) as found:
        assert "tally" not in found.files and found["success"].sum() == 190


def test_a_guard_is_of_learned_solvers_alone_and_a_start_of_all(tmp_path, data, display, monkeypatch):
    method, given = LevenbergMarquardt(), {}
    learned, act = LearnedSolver(Line(), method, method, None, 1, 1), LearnedSolver.solve
    monkeypatch.setattr(LearnedSolver, "solve", lambda self, *rows, **its: given.update(its) or act(self, *rows, **its))
    solve_file(learned, data, tmp_path / "out.npz", display, guard="best_of_two", seed=5)
    assert (given["guard"], given["seed"]) == ("best_of_two", 5)
    solve_file(learned, data, tmp_path / "again.npz", display, x0=tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as found:
        np.testing.assert_array_equal(given["x0"]["slope"], found["x/slope"][-len(given["x0"]["slope"]) :])
    with pytest.raises(ValueError, match="Line is solved classically, so there is nothing to guard against"):
        solve_file(Line(), data, tmp_path / "other.npz", display, guard="certificate")
    with pytest.raises(ValueError, match="block is 0"):
        solve_file(Line(), data, tmp_path / "other.npz", display, block=0)


@pytest.mark.parametrize("name", ["gone.npy", "."])
def test_instances_to_learn_from_that_are_not_there_are_refused_as_those_to_solve(tmp_path, name, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["learn", "oscillation", "-o", str(tmp_path / "solver"), "--instances", str(tmp_path / name)])
    assert "There is no file" in capsys.readouterr().err.replace("\n", " ")


def test_the_command_learns_with_as_many_held_out_as_it_is_told(tmp_path, monkeypatch):
    given = {}

    def learn(family, **settings):
        given.update(settings, family=type(family).__name__)
        raise KeyboardInterrupt

    monkeypatch.setattr(solving, "learn", learn)
    (tmp_path / "line.py").write_text(FILE)
    with pytest.raises(SystemExit):
        main(["learn", str(tmp_path / "line.py"), "-o", str(tmp_path / "fit.safetensors"), "--heldout", "77"])
    assert (given["family"], given["heldout"]) == ("Line", 77)
