"""The command line: what it prints, what it writes, and how it fails."""

import dataclasses
import errno
import gc
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import equinox as eqx
import jax
import numpy as np
import pytest

import bygrad
from bygrad._core.hosts import usable_cores
from bygrad.artifacts import SOLVER, Artifact, Manifest, find, load, save, shipped_names
from bygrad.cli import main
from bygrad.cli.job import hearing_ctrl_c
from bygrad.cli.options import label_of
from bygrad.cli.terminal import finish
from bygrad.experiments import EXPERIMENTS
from bygrad.metagrads import ESTIMATORS, NRES, Backprop, Members, Replay
from bygrad.optimizers import BASELINES, LEARNED, LSTM, PAPER_BASELINES, Controller, MemoryLSTM, Scaled, Window
from bygrad.problems import FAMILIES
from bygrad.training import Recipe, Validated, is_begun

USER_FILE = """
import jax, jax.numpy as jnp
from bygrad import ProblemFamily

class Bowl(ProblemFamily):
    def sample(self, key):
        return jax.random.uniform(key, (2,), minval=0.5, maxval=2.0)
    def init(self, instance, key):
        return jax.random.normal(key, (2,))
    def loss(self, params, instance, key):
        return jnp.sum(instance * params ** 2)
"""
BEST = Validated(0, 1.0, 1.0, True, 0.0)
SHORT = ["--horizon", "4", "--truncation", "2", "--instances", "2", "--meta-steps", "3"]
TINY = ["--config", '{"layers": [2]}', *SHORT]  # one layer compiles sooner than the two of the default


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("families") / "mine.py"
    path.write_text(USER_FILE)
    return f"{path}:Bowl"


@pytest.fixture(scope="module")
def trained(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "train"
    main(["train", "--family", family, *TINY, "--out", str(folder)])
    return folder


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command says when it exits with 2."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return " ".join(said.split())


def test_list_shows_every_name(capsys):
    main(["list"])
    shown = capsys.readouterr().out
    for name in (*EXPERIMENTS, *FAMILIES, *LEARNED, *BASELINES, *ESTIMATORS, *shipped_names()):
        assert re.search(rf"^  {re.escape(name)}\b", shown, re.MULTILINE), name


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["reproduce", "mnits"], ["no experiment 'mnits'", "Did you mean 'mnist'?", *EXPERIMENTS]),
        (["reproduce", "mnist", "--families", "dispatch"], ["--families", "`thousands`", "'mnist'"]),
        (["reproduce", "mnist", "--artifacts", "paper/mnist"], ["--artifacts", "`transfer`", "'mnist'"]),
        (["reproduce", "thousands", "--data", "a.npz"], ["names images, but thousands has none", "Leave it out"]),
        (["reproduce", "quadratic", "--data", "a.npz"], ["names images, but quadratic has none", "Leave it out"]),
        (["train", "--family", "quadratic", "--data", "a.npz"], ["a.npz would not be used", "Leave data"]),
        (["train", "--family", "quadratics"], ["no family 'quadratics'", "Did you mean 'quadratic'?", *FAMILIES]),
        (["train", "--family", "gone.py:Bowl"], ["There is no file gone.py"]),
        (["solve", "fit.bygrda", "data.npy", "-o", "out.npz"], ["There is no file fit.bygrda"]),
        (["solve", __file__, "data.npy", "-o", "out.npz"], ["test_cli.py has no family class"]),
        (["train", "--family", "quadratic", "--optimizer", "GRU"], ["no learned optimizer 'GRU'", *LEARNED]),
        (["train", "--family", "quadratic", "--preprocess", "Square"], ["no preprocessor 'Square'", "LogSign"]),
        (["train", "--family", "quadratic", "--truncation", "7"], ["100 steps", "not a multiple", "7"]),
        (["train", "--family", "quadratic", "--coordinates", "2"], ["coordinates is 2.0"]),
        (["train", "--family", "quadratic", "--estimator", "ES"], ["no estimator 'ES'", *ESTIMATORS]),
        (["train", "--family", "quadratic", "--estimator", "FullES"], ["truncation is 20 and the horizon 100"]),
        (
            ["train", "--family", "quadratic", "--estimator", "NRES", "--coordinates", "1"],
            ["NRES has no --coordinates", "another --estimator (bygrad train --help says which have it)"],
        ),
        (
            ["train", "--optimizer", "Controller", "--coordinates", "0.25", "--family", "quadratic"],
            ["Controller does not treat coordinates one by one", "--coordinates 0.25", "such as LSTM"],
        ),
        (["train", "--family", "quadratic", "--per-member"], ["needs a Mixture", "no --per-member"]),
        (["train", "--family", "quadratic", "--seed", "-1"], ["seed is -1", "0 or more"]),
        (
            ["train", "--family", "quadratic", "--seed", str(2**64 + 3)],
            ["the same would be drawn as from 3", "less than 2^32"],
        ),
        (["train", "--family", "quadratic", "--out", __file__], ["is a file", "another folder (--out)"]),
        (["solve", "oscillation", "nowhere.npy", "-o", "out.npz"], ["no file nowhere.npy"]),
        (["report", "nowhere.bygrad"], ["no file nowhere.bygrad", "bygrad learn"]),
        (["train", "--family", "quadratic", "--sigma", "1", "--robust"], ["Replay has no --sigma or --robust"]),
        (
            ["train", "--family", "quadratic", "--estimator", "PES", "--robust", "--largest", "1"],
            ["clips differences at 3 times their median", "largest is 1.0"],
        ),
        (["train", "--family", "quadratic", "--seconds", "soon"], ["'soon' is not a positive duration"]),
        (
            ["train", "--family", "quadratic", "--config", '{"hidden": 8}'],
            ["hidden: unknown", '"layers": [20, 20]'],
        ),
        (["train", "--family", "quadratic", "--config", "layers=8"], ["LSTM cannot have", "layers=8", "Give JSON"]),
        (["train", "--family", "quadratic", "--config", '{"layers": []}'], ["layers is ()", "at least one layer"]),
        (["evaluate", "paper/nothing", "--family", "quadratic"], ["'paper/nothing' is neither a file nor"]),
        (["evaluate", "--family", "quadratic"], ["No trained optimizer is named"]),
        (
            ["evaluate", "paper/quadratic", "--family", "quadratic", "--baselines", "Adm"],
            ["no hand-designed optimizer 'Adm'", "Did you mean 'Adam'", "Muon"],
        ),
        (
            ["evaluate", "paper/quadratic", "--family", "quadratic", "--tuning-runs", "0"],
            ["tuning_runs is 0", "Give 1 or more"],
        ),
        (["inspect", "paper/nothing"], ["'paper/nothing' is neither a file nor"]),
        (["inspect", "/"], ["'/' is a folder without an optimizer"]),
        (["inspect", __file__], [Path(__file__).name]),
    ],
    ids=lambda it: " ".join(it[:5]).replace(str(Path(__file__).parent), "") if isinstance(it, list) else None,
)
def test_a_mistake_is_explained_without_a_traceback(arguments, parts, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = refusal(arguments, capsys)
    assert said.startswith("bygrad:")
    for part in parts:
        assert part in said, said
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_an_unknown_option_exits_with_2(capsys):
    refusal(["train", "--family", "quadratic", "--no-such-option"], capsys)


def test_a_traceback_is_there_for_those_who_ask(monkeypatch):
    monkeypatch.setenv("BYGRAD_TRACEBACK", "1")
    with pytest.raises(ValueError, match="no experiment"):
        main(["reproduce", "mnits"])


def test_a_device_that_is_out_of_memory_is_told_with_a_remedy(monkeypatch, capsys, tmp_path):
    def fail(*arguments, **settings):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.\nmore for developers")

    monkeypatch.setattr("bygrad.workflows.work.meta_train", fail)
    said = refusal(["train", "--family", "quadratic", *SHORT, "--out", str(tmp_path / "run")], capsys)
    assert "ran out of memory (RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.), so the command stopped" in said
    assert "add --resume. Lower what is held at a time (--instances," in said and "developers" not in said


def test_train_writes_an_optimizer_that_loads(trained):
    assert {path.name for path in trained.iterdir()} == {"metatraining", "optimizer.safetensors"}
    assert type(bygrad.load(trained / "optimizer.safetensors")) is LEARNED["LSTM"]


@pytest.mark.slow
def test_train_learns_the_optimizer_that_it_is_told_to(family, tmp_path, capsys):
    command = ["train", "--family", family, *SHORT, "--optimizer", "Controller", "--out", str(tmp_path)]
    assert "Controller has no --state-dtype" in refusal([*command, "--state-dtype", "bfloat16"], capsys)
    command += ["--config", '{"hidden": 3}', "--estimator", "NRES"]
    main(command)
    trained = bygrad.load(tmp_path / "optimizer.safetensors")
    assert isinstance(trained, Controller) and trained.config["hidden"] == 3
    assert "estimator was" in refusal([*command, "--resume", "--sigma", "0.1"], capsys)


def test_train_hands_on_what_it_is_told(family, tmp_path, monkeypatch, capsys):
    told, named = [], {}

    def carry_out(*arguments, **options):
        told[:] = arguments
        named.update(options)
        return SimpleNamespace(best=BEST)

    monkeypatch.setattr("bygrad.workflows.train", carry_out)
    command = ["train", "--family", family, "--seed", "5"]
    main(command)
    expected = {"instances": 8, "meta_learning_rate": 5e-3, "clip": 0.1, "final_window": 5, "seed": 5}
    assert told[2] == Recipe(**expected) and eqx.tree_equal(told[0], LSTM(jax.random.key(5)))
    changed = {"memory": {"name": "Window", "steps": 3}, "averaged": 2, "write_heads": 1}
    command += ["--optimizer", "MemoryLSTM", "--config", json.dumps(changed), "--preprocess", "Scaled"]
    command += ["--estimator", "NRES", "--sigma", "0.5", "--robust", "--meta-b2", "0.9", "--warmup", "3"]
    command += ["--clip", "2", "--validate-every", "7", "--validation-runs", "9", "--per-member"]
    main([*command, "--select", "final", "--keep", "last", "--seconds", "2m"])
    network = {"memory": Window(3), "averaged": 2, "write_heads": 1, "preprocess": Scaled()}
    assert eqx.tree_equal(told[0], MemoryLSTM(jax.random.key(5), **network))
    expected |= {"clip": 2.0, "validate_every": 7, "validation_runs": 9}
    expected |= {
        "estimator": Members(NRES(0.5, True)),
        "meta_b2": 0.9,
        "warmup": 3,
        "select": "final",
        "keep": "last",
        "seconds": 120.0,
    }
    assert told[2] == Recipe(**expected)
    strange = tmp_path / "my problem.py"
    strange.write_text(USER_FILE)
    main(["train", "--family", str(strange)])
    assert named["name"] == "mine/my-problem"
    capsys.readouterr()
    for options in (["--family", str(strange), "--horizon", "40"], ["--family", "mnist", "--horizon", "40"]):
        options += ["--data", "mnist,my a.npz"] if "mnist" in options else []
        main(["train", *options, "--out", str(tmp_path / "it")])
        compare = shlex.split(capsys.readouterr().out.partition("compare it: ")[2])
        assert compare == ["bygrad", "evaluate", str(tmp_path / "it" / "optimizer.safetensors"), *options]
    main(["train", "--family", family, "--coordinates", "0.5"])
    assert told[2].estimator == Replay(0.5)
    main(["train", "--family", family, "--estimator", "NRES", "--log", "--largest", "0.5", "--late", "3"])
    assert told[2].estimator == NRES(log=True, largest=0.5, late=3.0)
    main(["train", "--family", family, "--coordinates", "0.5", "--optimizer", "Partition"])
    assert told[2].estimator == Replay(0.5)
    main(["train", "--family", family, "--segment", "10"])
    assert told[2].estimator == Replay(segment=10)
    main(["train", "--family", family, "--estimator", "Backprop", "--second-derivatives"])
    assert told[2].estimator == Backprop(second_derivatives=True)


def test_train_is_not_carried_out_many_times_over(family, tmp_path, monkeypatch, capsys):
    told = []
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    monkeypatch.setattr("bygrad.workflows.train", lambda *given, **_: told.append(given) or SimpleNamespace(best=BEST))
    command = ["train", "--family", family, "--out", str(tmp_path)]
    assert "one of 8 processes" in refusal(command, capsys) and not told
    main([*command, "--hosts", "none"])
    assert len(told) == 1


def test_train_does_not_overwrite_and_resumes_what_is_finished(trained, family, capsys):
    command = ["train", "--family", family, *TINY, "--out", str(trained)]
    before = (trained / "optimizer.safetensors").read_bytes()
    assert "would be overwritten. Go on with it (--resume)" in refusal(command, capsys)
    assert "meta_steps was 3, is 4" in refusal([*command[:-3], "4", *command[-2:], "--resume"], capsys)
    main([*command, "--resume"])
    assert (trained / "optimizer.safetensors").read_bytes() == before


@pytest.mark.parametrize("name", ["optimizer.safetensors", "metatraining/log.jsonl", "report.html"])
def test_train_overwrites_nothing_where_there_is_no_checkpoint(name, family, tmp_path, capsys):
    out = tmp_path / "out"
    (out / "metatraining").mkdir(parents=True)
    (out / name).write_text("mine")
    assert f"{out} already exists" in refusal(["train", "--family", family, *TINY, "--out", str(out)], capsys)
    assert [path.read_text() for path in out.rglob("*") if path.is_file()] == ["mine"]


@pytest.mark.slow
def test_train_begins_anew_where_nothing_was_kept(trained, family, tmp_path):
    """In a folder where a process was killed before it wrote anything, and then one after it began its log."""
    command, kept = ["train", "--family", family, *TINY, "--out", str(tmp_path)], tmp_path / "metatraining"
    kept.mkdir()
    for name, how in (("lock", []), ("lock", ["--resume"]), ("log.jsonl", ["--resume"])):
        (kept / name).touch()
        main([*command, *how])
        done = tmp_path / "optimizer.safetensors"
        assert done.read_bytes() == (trained / done.name).read_bytes()
        for path in (done, *kept.iterdir()):
            path.unlink()


def test_train_resumes_where_nothing_was_begun_by_starting(trained, family, tmp_path, capsys):
    out = tmp_path / "new"
    command = ["train", "--family", family, *TINY, "--resume", "--out", str(out)]
    main(command)
    assert f"nothing was begun in {out}: meta-training starts" in capsys.readouterr().out.replace("\n", "")
    assert (out / "optimizer.safetensors").read_bytes() == (trained / "optimizer.safetensors").read_bytes()
    (other := tmp_path / "other").mkdir()
    (other / "report.html").write_text("mine")
    said = refusal([*command[:-1], str(other)], capsys)
    assert "would be overwritten. Choose another folder" in said and len(list(other.iterdir())) == 1


def test_what_ends_in_a_report_does_not_begin_without_matplotlib(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.chdir(tmp_path)
    evaluate = ["evaluate", "paper/quadratic", "--family", "quadratic"]
    for command in (["reproduce", "quadratic"], evaluate, ["specialize", "quadratic"]):
        assert "pip install matplotlib" in refusal(command, capsys)
    assert not list(tmp_path.iterdir())


def test_what_could_not_be_kept_is_not_begun(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("data.npy", np.zeros((1, 41)))
    evaluate = ["evaluate", "paper/quadratic", "--family", "quadratic"]
    for command in (["reproduce", "quadratic"], evaluate, ["specialize", "quadratic"]):
        assert f"{tmp_path} is a folder" in refusal([*command, "--json", str(tmp_path)], capsys)
        for file in ("new", "new/report"):  # what will be one when all is done
            said = refusal([*command, "--out", "new/report", "--json", file], capsys)
            assert f"--json {file} would be a folder, that of the report" in said
    assert [path.name for path in tmp_path.iterdir()] == ["data.npy"]

    def touch(self):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "touch", touch)
    learn, solve = (
        ["learn", "oscillation", "--tol", "1e-3", "-o", "fit"],
        ["solve", "oscillation", "data.npy", "-o", "x"],
    )
    train = ["train", "--family", "quadratic"]
    for command in (["reproduce", "quadratic"], evaluate, ["specialize", "quadratic"], train, learn, solve):
        said = refusal(command, capsys)
        assert f"Nothing can be written in {tmp_path} (Read-only file system)" in said and "nothing was started" in said
    assert [path.name for path in tmp_path.iterdir()] == ["data.npy"]


@pytest.mark.parametrize(
    ("family", "label"),
    [("mnist", "mnist"), ("own/Mine.py", "mine"), ("own/mine.py:One", "one"), ("own/mine.py:", "mine")],
)
def test_folders_are_called_after_families(family, label):
    assert label_of(family) == label


def test_what_a_strangers_file_says_does_not_steer_the_terminal(tmp_path, capsys):
    """Neither where it is shown, nor in an error: escape sequences move the cursor, or name a window."""
    path, bad = str(tmp_path / "it.safetensors"), "A\x1b[2J\x9b2J\x9d0;B\x9c\u202e"
    artifact = load(find("paper/quadratic"))
    save(path, Artifact(dataclasses.replace(artifact.manifest, training={"by": bad}), artifact.tensors))
    main(["inspect", path])
    shown = capsys.readouterr().out
    assert shown.isascii() and "\x1b" not in shown and json.loads(shown)["training"] == {"by": bad}
    config = {"family": "lennard-jones", "family_sha256": ""}
    manifest = {"name": "it/it", "optimizer": SOLVER, "config": config, "features": 1, "tensors": {}}
    save(path, Artifact(Manifest(**manifest, training={"family": {"name": bad}}), {}))
    with pytest.raises(SystemExit, match="2"):
        main(["report", path])
    assert r"name was A\x1b[2J\x9b2J\x9d0;B\x9c\u202e, is" in capsys.readouterr().err


def test_inspect_prints_the_manifest(trained, capsys):
    main(["inspect", str(trained / "optimizer.safetensors")])
    manifest = json.loads(capsys.readouterr().out)
    assert (manifest["name"], manifest["optimizer"]) == ("mine/bowl", "LSTM")
    assert manifest["training"]["parameter_count"] == 2
    assert manifest["training"]["recipe"]["meta_steps"] == 3
    assert set(manifest["validation"]) == {"step", "area", "final"}
    assert {"0.01", "0.5", "0.99"} <= set(manifest["training"]["gradient_scale"])


def test_evaluate_compares_and_writes(trained, family, tmp_path, capsys):
    out, file = tmp_path / "out", tmp_path / "results.json"
    command = ["evaluate", str(trained / "optimizer.safetensors"), "--family", family]
    command += ["--runs", "3", "--horizon", "4", "--seed", "5", "--out", str(out), "--json", str(file)]
    main(command)
    shown = capsys.readouterr().out
    assert "LSTM" in shown and "Adam" in shown and f"report: {out / 'report.html'}" in shown
    assert re.search("^time: tuning .*, evaluation .*, in all ", shown, re.MULTILINE)
    results = json.loads(file.read_text())
    assert (results["horizon"], results["runs"], results["seed"]) == (4, 3, 5)
    assert set(results["optimizers"]) == {"lstm", *(name.lower() for name in PAPER_BASELINES), "lbfgs"}
    assert results["optimizers"]["adam"]["runs"] == 3
    assert results["configuration"]["family"] == {"name": "Bowl"}
    manifest = bygrad.artifacts.load(trained / "optimizer.safetensors").manifest
    tested = {"name": "LSTM", "config": manifest.config, "digest": manifest.digest}
    assert results["configuration"]["optimizers"] == {"LSTM": tested}
    assert (out / "report.html").is_file()
    assert json.loads((out / "results.json").read_text())["optimizers"] == results["optimizers"]
    said = refusal(command, capsys)
    assert "would be overwritten. Go on with it (--resume) or choose another folder (--out)" in said
    shutil.rmtree(out)
    main([*command, "--resume", "--baselines", "Lion", "--tuning-runs", "2"])
    assert set(json.loads(file.read_text())["optimizers"]) == {"lstm", "lion", "lbfgs"}


def test_evaluate_compares_on_the_split_asked_for(trained, tmp_path, monkeypatch):
    seen = {}

    def evaluate(learned, family, tuning_family, *more, **options):
        seen.update(run=len(family.labels), tuned=len(tuning_family.labels), title=options["title"])
        raise KeyboardInterrupt

    monkeypatch.setattr("bygrad.workflows.evaluating.evaluate", evaluate)
    command = ["evaluate", str(trained / "optimizer.safetensors"), "--family", "mnist"]
    for split, images in (("test", 2_000), ("train", 10_000)):
        with pytest.raises(SystemExit):
            main([*command, "--split", split, "--out", str(tmp_path / split)])
        assert (seen["run"], seen["tuned"]) == (images, 10_000)
        assert seen["title"].endswith("(training split)") == (split == "train")


def test_specialize_and_reproduce_carry_out_what_they_are_told(family, tmp_path, capsys, monkeypatch):
    told = {}

    def specialize(problems, budget, **options):
        told.update(options, family=type(problems).__name__, budget=budget)
        return SimpleNamespace(results={"found": 1}, path=tmp_path / "optimizer.safetensors")

    monkeypatch.setattr("bygrad.workflows.specialize", specialize)
    out, file = tmp_path / "out", tmp_path / "results.json"
    common = ["--seed", "5", "--out", str(out), "--json", str(file), "--resume"]
    command = ["specialize", family, "--budget", "7s", "--objective", "validation", "--horizon", "9", "--held-out", "4"]
    main([*command, "--pretrained", "none", *common])
    del told["display"], told["command"]
    expected = {"family": "Bowl", "budget": "7s", "objective": "validation", "horizon": 9, "pretrained": None}
    expected |= {"held_out": 4}
    assert told == {**expected, "folder": out, "resume": True, "seed": 5}
    assert f"optimizer: {tmp_path / 'optimizer.safetensors'}" in capsys.readouterr().out
    assert json.loads(file.read_text()) == {"found": 1}
    main(["specialize", family])
    assert told["pretrained"] == "general/controller" and told["objective"] == "training"
    assert (told["folder"], told["resume"]) == (Path("runs/specialize-bowl"), False)

    def carry_out(experiment, task):
        told.update(experiment=experiment, task=task)
        return {"found": 2}

    monkeypatch.setattr("bygrad.experiments.carry_out", carry_out)
    main(["reproduce", "mnist", "--budget", "paper", "--data", "cifar10", *common])
    task = told["task"]
    assert told["experiment"] is EXPERIMENTS["mnist"]
    assert (task.budget, task.folder, task.resume, task.seed, task.data) == ("paper", out, True, 5, "cifar10")
    assert (task.artifacts, task.families) == (("general/controller",), ())
    assert task.command.startswith("bygrad")
    assert json.loads(file.read_text()) == {"found": 2}
    for name in ("transfer", "all"):
        main(["reproduce", name, "--artifacts", "a", "b"])
        assert told["task"].artifacts == ("a", "b")
    main(["reproduce", "thousands", "--families", "dispatch"])
    assert told["task"].families == ("dispatch",) and told["task"].folder == Path("runs/thousands-quick")


# A shell in which the tests run in the background ignores Ctrl-C, and so would its children.
HEARING = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("bygrad", run_name="__main__")
"""


@pytest.mark.parametrize(
    ("arguments", "given", "devices"),
    [
        (["train", "--help"], {}, str(usable_cores())),
        (["specialize", "--help"], {}, str(usable_cores())),
        (["solve", "--help"], {}, None),
        (["train", "--help"], {"JAX_NUM_CPU_DEVICES": "1"}, "1"),
        (["train", "--help"], {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}, None),
    ],
)
def test_meta_training_makes_a_device_of_every_core_unless_told_otherwise(arguments, given, devices):
    script = f"""
import os
from bygrad.cli import main
try:
    main({arguments})
except SystemExit:
    print("DEVICES", os.environ.get("JAX_NUM_CPU_DEVICES"))
"""
    environment = {name: it for name, it in os.environ.items() if name not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
    command = [sys.executable, "-c", script]
    told = subprocess.run(command, env=environment | given, capture_output=True, text=True, timeout=60).stdout
    assert told.splitlines()[-1] == f"DEVICES {devices}"


def start(arguments: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HEARING, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(path: Path, text: str, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not (path.exists() and text in path.read_text()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_ctrl_c_is_answered_while_the_command_loads():
    script = """
import builtins, sys
from bygrad.cli import main
load = builtins.__import__
def interrupted(name, *more):
    if name == "tyro":
        raise KeyboardInterrupt
    return load(name, *more)
builtins.__import__ = interrupted
main(["list"])
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "Interrupted.\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect", "general/controller"],
        pytest.param(["train", "--family", "quadratic", *TINY], marks=pytest.mark.slow),
    ],
)
def test_who_reads_no_further_ends_the_command_without_a_word(arguments, tmp_path):
    folder = ["--out", str(tmp_path / "run")] if arguments[0] == "train" else []
    command = [sys.executable, "-m", "bygrad", *arguments, *folder]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        words = process.stderr.read()
    assert (process.returncode, words) == (1, "")
    if folder:
        done = subprocess.run([*command, "--resume"], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr


def test_ctrl_c_promises_nothing_where_nothing_is_kept(monkeypatch, capsys):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bygrad.workflows.learn_to_file", interrupt)
    with pytest.raises(SystemExit) as ended:
        main(["learn", "oral-dose", "-o", "fit.safetensors"])
    assert ended.value.code == 130 and capsys.readouterr().err.strip() == "Interrupted."


def test_ctrl_c_is_heard_where_the_garbage_collector_swallows_it():
    swallowed = []

    def _xla_gc_callback(phase: str, _: object) -> None:
        if phase == "start" and not swallowed:
            swallowed.append(phase)
            signal.raise_signal(signal.SIGINT)

    before, hook = signal.signal(signal.SIGINT, signal.default_int_handler), sys.unraisablehook
    gc.callbacks.append(_xla_gc_callback)
    try:
        with pytest.raises(KeyboardInterrupt), hearing_ctrl_c():
            gc.collect()
            assert swallowed
            threading.Event().wait(20)
    finally:
        gc.callbacks.remove(_xla_gc_callback)
        signal.signal(signal.SIGINT, before)
    assert sys.unraisablehook is hook


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
def test_ctrl_c_saves_and_resume_goes_on(family, tmp_path):
    out = tmp_path / "out"
    arguments = ["train", "--family", family, *TINY[:-1], "250", "--out", str(out)]
    process = start(arguments)
    wait_for(out / "metatraining" / "log.jsonl", '"Stepped"', process)
    process.send_signal(signal.SIGINT)
    asked = time.monotonic()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert time.monotonic() - asked < 20
    assert "Traceback" not in said
    assert "Add --resume to the same command" in " ".join(said.split())
    steps = [json.loads(line)["step"] for line in (out / "metatraining" / "log.jsonl").read_text().splitlines()]
    assert 1 <= steps[-1] < 250
    assert not (out / "optimizer.safetensors").exists()
    main([*arguments, "--resume"])
    lines = [json.loads(line) for line in (out / "metatraining" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["event"] == "Stepped"] == list(range(1, 251))
    assert (out / "optimizer.safetensors").is_file()


SLOW = """
import os, time
import numpy as np
import bygrad

def bowl(params, seed):
    with open(os.environ["EVALUATIONS"], "a") as file:
        file.write("x")
    time.sleep(0.05)
    return np.sum(params**2), 2 * params

class Slow(bygrad.Oracle):
    def __init__(self):
        super().__init__(bowl, np.ones(2, np.float32))
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
@pytest.mark.slow
@pytest.mark.parametrize("command", ["evaluate", "train"])
def test_ctrl_c_does_not_wait_for_what_takes_minutes(command, trained, tmp_path, monkeypatch):
    """To tune one optimizer takes eleven minutes here, and so does a validation."""
    out, evaluations = tmp_path / "out", tmp_path / "evaluations"
    (tmp_path / "slow.py").write_text(SLOW)
    arguments = {
        "evaluate": ["evaluate", str(trained / "optimizer.safetensors"), "--horizon", "100"],
        "train": ["train", "--horizon", "800", "--truncation", "2", "--instances", "2"],
    }[command]
    monkeypatch.setenv("EVALUATIONS", str(evaluations))
    process = start([*arguments, "--family", f"{tmp_path / 'slow.py'}:Slow", "--out", str(out)])
    try:
        wait_for(evaluations, 40 * "x", process)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert "Interrupted." in said and "Traceback" not in said
    if command == "train":
        assert is_begun(out / "metatraining")
        assert '"Validated"' not in (out / "metatraining" / "log.jsonl").read_text()


def test_levels_are_held_against_what_there_is(tmp_path, capsys):
    level = {"what": "area", "ours": 2.0, "low": 1.5, "high": 2.5, "paper": None, "reach": None, "reached": None}
    against = [{}, {"paper": 3.0}, {"reach": 1.0, "reached": False}, {"paper": 3.0, "reach": 4.0, "reached": True}]
    finish({"levels": [level | it for it in against]}, tmp_path, None)
    said = [line.partition("]")[2] for line in capsys.readouterr().out.splitlines()[:4]]
    assert said == ["", "; paper 3.00", "; to reach 1.00: NOT reached", "; paper 3.00, to reach 4.00: reached"]


def test_the_version_is_told(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"bygrad {bygrad.__version__}\n"
