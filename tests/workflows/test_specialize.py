"""Specializing: a budget in, an optimizer with its evidence out, and never a worse one than at the start."""

import dataclasses
import io
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import bygrad
from bygrad.deploy.jax import export
from bygrad.evaluation import Tuning, strict_json
from bygrad.metagrads import NRES, Members
from bygrad.optimizers import BASELINES, Controller, dials_of, turned
from bygrad.problems import HeldOut, Mixture, MLPClassifier, ProblemFamily, find_family
from bygrad.training import PatternSearch, Recipe, Stepped, Validated, Warned, describe
from bygrad.unroll import Windows
from bygrad.workflows import worth as worth_module
from bygrad.workflows.display import Display
from bygrad.workflows.plan import VALIDATIONS, WORTH_TRYING, choose_recipe, pace_of, protocol_of
from bygrad.workflows.specialize import START_BRANCH, Specialized, _Specialization, specialize
from bygrad.workflows.worth import _beside_lbfgs, _seconds_saved, sentences

HORIZON = 12
TUNING = Tuning(np.array([0.01, 0.03]), final=np.array([1.0, 2.0]), area=np.array([2.0, 1.0]))
TOO_SMALL = Tuning(np.array([1e-7]), final=np.array([1.0]), area=np.array([1.0]))


class Bowl(ProblemFamily):
    """Half the squared distance to a point that moves at every step."""

    def sample(self, key):
        return jax.random.uniform(key, (2,), minval=0.5, maxval=1.0)

    def init(self, instance, key):
        return instance

    def loss(self, params, instance, key):
        return 0.5 * jnp.sum((params - 0.1 * jax.random.normal(key, (2,))) ** 2)


def under_way(pretrained: str | None, **changes: Any) -> _Specialization:
    """A specialization to Bowl of which nothing is done."""
    parts = {
        "family": Bowl(),
        "problems": Bowl(),
        "judged": Bowl(),
        "seconds": 3.0,
        "objective": "training",
        "folder": Path(),
        **changes,
    }
    protocol, display = protocol_of(HORIZON, 8, 0), Display(Console(quiet=True))
    return _Specialization(**parts, pretrained=pretrained, protocol=protocol, display=display, command="")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("specialize") / "bowl"


@pytest.fixture(scope="module")
def done(folder: Path) -> Specialized:
    return specialize(Bowl(), "3s", horizon=HORIZON, runs=8, folder=folder)


def test_it_leaves_an_optimizer_with_its_evidence(done, folder):
    assert {"optimizer.safetensors", "report.html", "results.json"} <= {path.name for path in folder.iterdir()}
    optimizer = bygrad.load(done.path)
    assert isinstance(optimizer, Controller)
    results = json.loads((folder / "results.json").read_text())
    assert done.report == folder / "report.html"
    worth = results["specialization"]
    assert worth["kept"] == done.kept
    rows = results["optimizers"]
    assert set(rows) - {"dials"} == {"controller", "start", "nesterov", "adam", "adamwcosine"}
    kept = rows["controller" if worth["kept"] == "learned" else "start"]
    assert worth["mean_loss"] == pytest.approx(kept["area"]["mean"] / HORIZON)
    best = min(rows[name]["area"]["mean"] for name in ("nesterov", "adam", "adamwcosine"))
    assert worth["best_mean_loss"] == pytest.approx(best / HORIZON)
    manifest = bygrad.artifacts.load(done.path).manifest
    assert manifest.validation["mean_loss"] == worth["mean_loss"]
    assert manifest.training["recipe"]["estimator"]["name"] == "NRES"
    assert f"({manifest.training['start']})" in rows["start"]["label"]
    seconds = results["seconds"]
    assert set(seconds) == {"tuning", "meta_training", "evaluation"} and min(seconds.values()) > 0
    told = "runs that repay the meta-training" in (folder / "report.html").read_text()
    assert told == (worth["break_even_runs"] is not None)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_same_optimizer(ours: Specialized, theirs: Specialized) -> None:
    for one, other in zip(jax.tree.leaves(ours.optimizer), jax.tree.leaves(theirs.optimizer), strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_is_finished_is_returned_as_it_is(done, folder, monkeypatch):
    before, module, out = contents(folder), sys.modules[specialize.__module__], io.StringIO()
    for work in ("tune", "tuned_levels", "train", "evaluate", "worth_of", "run_curves"):
        monkeypatch.setattr(module, work, None)
    shown = Display(Console(file=out))
    again = specialize(Bowl(), "3s", horizon=HORIZON, runs=8, folder=folder, resume=True, display=shown)
    assert contents(folder) == before
    assert again.results == strict_json(done.results) and (again.kept, again.path) == (done.kept, done.path)
    assert_same_optimizer(again, done)
    for line in sentences(done.results["specialization"]):
        assert line in out.getvalue()


def test_a_folder_in_use_is_not_for_another(done, folder):
    with pytest.raises(FileExistsError, match="already exists"):
        specialize(Bowl(), "3s", horizon=HORIZON, folder=folder)
    for budget, runs in (("20s", 8), ("3s", 9)):
        with pytest.raises(ValueError, match="holds another experiment"):
            specialize(Bowl(), budget, horizon=HORIZON, runs=runs, folder=folder, resume=True)


def test_what_stopped_before_its_report_is_compared_and_told_how_long_tuning_took(done, folder):
    copy = shutil.copytree(folder, folder.with_name("cut"))
    (copy / "results.json").unlink()
    again = specialize(Bowl(), "3s", horizon=HORIZON, runs=8, folder=copy, resume=True)
    assert_same_optimizer(again, done)
    assert again.results["seconds"]["tuning"] == done.results["seconds"]["tuning"]


@pytest.mark.slow
def test_a_damaged_pace_is_named_and_learning_begins_anew_once_it_is_deleted(done, folder):
    copy = shutil.copytree(folder, folder.with_name("damaged"))
    (copy / "results.json").unlink()  # as what is finished needs no pace any more
    (copy / "pace.json").write_text('{"seconds": 2')
    carry_on = lambda: specialize(Bowl(), "3s", horizon=HORIZON, runs=8, folder=copy, resume=True)  # noqa: E731
    with pytest.raises(ValueError, match=r"pace\.json is damaged .*Delete it and the folder metatraining"):
        carry_on()
    (copy / "pace.json").unlink()
    shutil.rmtree(copy / "metatraining")
    assert carry_on().report.exists()


@pytest.mark.slow
def test_what_is_no_better_than_its_start_is_not_returned(tmp_path, monkeypatch):
    judge = _Specialization._judge

    def as_good(*arguments, what):
        return judge(*arguments, what=what) if arguments[-1] == START_BRANCH else 1.0

    monkeypatch.setattr(_Specialization, "_judge", as_good)
    # Not by `pytest.warns`: the type checker of these tests catches warnings while it reads an annotation, and of two
    # threads that do so at once one restores what the other has set.
    told = []
    monkeypatch.setattr(sys.modules[Display.__module__], "remark", told.append)
    done = specialize(Bowl(), "2s", horizon=HORIZON, runs=8, folder=tmp_path / "bowl", pretrained=None)
    assert "what was learned is no better than its start on held-out instances: the start is kept" in told
    assert done.kept == done.results["specialization"]["kept"] == "start"
    assert "No better than its start" in done.results["optimizers"]["controller"]["note"]
    origin = bygrad.artifacts.load(done.path).manifest.training["start"]
    tunings = {
        name: Tuning.of_json(found)
        for name, found in json.loads((tmp_path / "bowl" / "tuning.json").read_text()).items()
    }
    start, expected = under_way(None)._start(tunings)
    assert origin == expected
    for ours, theirs in zip(jax.tree.leaves(done.optimizer), jax.tree.leaves(start), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_levels_are_those_of_the_runs_that_validate(done, folder):
    levels = json.loads((folder / "levels.json").read_text())
    assert set(levels) == {"Adam", "AdamWCosine", "Nesterov"}
    assert all(value["area"] > 0 for value in levels.values())
    course = done.results["meta_training"]
    assert course["baselines"] == {name: value["area"] for name, value in levels.items()}


def test_it_starts_from_the_best_of_three_controllers(tmp_path):
    tunings = {"Adam": TUNING, "AdamWCosine": TOO_SMALL}
    for rate, chosen in ((0.1, "pretrained"), (1e-6, "tuned Adam")):
        file = str(tmp_path / f"{rate}.safetensors")
        export(Controller(jax.random.key(1), learning_rate=rate), file, name="mine/known", training={}, validation={})
        start, origin = under_way(file)._start(tunings)
        better = chosen == "pretrained"
        assert (start.learning_rate, int(start.horizon)) == (rate if better else 0.03, HORIZON)
        assert origin == (file if better else "tuned Adam, 0.03")
    assert under_way(None)._start(tunings)[1] == "tuned Adam, 0.03"
    start, origin = under_way(None, objective="validation")._start(tunings)
    assert origin == "tuned Adam, 0.01" and start.weight_decay == 0
    start, origin = under_way(None)._start({"Adam": TOO_SMALL, "AdamWCosine": TUNING})
    assert origin == "tuned Adam with a cosine, 0.03"
    assert float(jnp.abs(start.head_times).sum()) > 0 and start.weight_decay is None


def test_where_held_out_data_judges_weight_decay_is_tuned_and_learned(tmp_path):
    """It begins at that of the best baseline, whose rates are tuned for each of several; what is pretrained, at 0."""
    better = Tuning(np.array([0.02, 0.04]), final=np.array([2.0, 0.5]), area=np.array([0.1, 3.0]))
    tunings = {"Adam": TOO_SMALL, "AdamWCosine": TUNING, "AdamWCosine, decay 0.3": better}
    task = under_way(None, objective="validation")
    decays = [float(build().weight_decay) for name, build in task.rivals.items() if name.startswith("AdamWCosine")]
    assert decays == pytest.approx([0.01, 0.1, 0.3, 1.0])
    start, origin = task._start(tunings)
    assert origin == "tuned Adam with a cosine, 0.04, and decay 0.3"
    assert (start.learning_rate, float(start.weight_decay)) == (0.04, pytest.approx(0.3))
    assert {"size", "decay"} <= set(dials_of(start))
    file = str(tmp_path / "known.safetensors")
    export(Controller(jax.random.key(1), learning_rate=0.1), file, name="mine/known", training={}, validation={})
    start, origin = under_way(file, objective="validation")._start({"Adam": TOO_SMALL, "AdamWCosine": TOO_SMALL})
    assert origin == file and start.weight_decay == 0


def test_only_a_controller_can_be_started_from(tmp_path):
    with pytest.raises(ValueError, match="paper/mnist is a trained LSTM, but only a Controller"):
        specialize(Bowl(), "3s", horizon=HORIZON, folder=tmp_path / "new", pretrained="paper/mnist")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"objective": "validation"}, "^Bowl has no held-out data.* Give held_out=.*or choose the training objective"),
        ({"objective": "validation", "held_out": 3}, "Bowl has no images or text of which the last 3"),
        ({"held_out": 3}, "held_out is 3, but the objective is the training loss"),
    ],
)
def test_a_family_without_held_out_data_is_refused_before_anything_is_written(options, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        specialize(Bowl(), folder=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("held_out", "kept"), [(None, 280), (100, 100)])
def test_what_is_held_out_of_a_family_of_the_package_is_what_it_is_judged_by(held_out, kept, tmp_path, monkeypatch):
    def stop(problems, *rest):
        assert sum(name.startswith("AdamWCosine") for name in rest[-1]) == 4
        raise KeyboardInterrupt(problems)

    monkeypatch.setattr(sys.modules[specialize.__module__], "tune", stop)
    with pytest.raises(KeyboardInterrupt) as stopped:
        specialize(find_family("digits"), objective="validation", held_out=held_out, folder=tmp_path, pretrained=None)
    (problems,) = stopped.value.args
    assert (type(problems), problems.family.held_out) == (HeldOut, kept // 2)  # the other half judges
    assert json.loads((tmp_path / "experiment.json").read_text())["family"]["held_out"] == kept


def test_what_meta_training_warns_of_is_heard_where_nothing_is_shown(recwarn):
    out = io.StringIO()
    Display(Console(file=out)).event(Warned(3, "nothing was learned", 1.0))
    assert out.getvalue() == "nothing was learned\n" and not recwarn
    with pytest.warns(UserWarning, match="^nothing was learned$"):
        Display(Console(file=out, quiet=True)).event(Warned(3, "nothing was learned", 1.0))


def test_a_family_that_was_mended_before_its_baselines_were_tuned_is_told(tmp_path, monkeypatch, recwarn):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules[specialize.__module__], "tune", stop)
    text = "class Mended(Bowl):\n    def loss(self, params, instance, key):\n        return {} * jnp.sum(params**2)\n"

    def begin(factor: float, resume: bool) -> list[str]:
        (tmp_path / "mine.py").write_text(
            f"import jax.numpy as jnp\nfrom {__name__} import Bowl\n{text.format(factor)}"
        )
        with pytest.raises(KeyboardInterrupt):
            specialize(find_family(str(tmp_path / "mine.py")), folder=tmp_path / "run", resume=resume, pretrained=None)
        told = [str(it.message) for it in recwarn.list]
        recwarn.clear()
        return told

    assert not begin(1.0, False) and not begin(1.0, True)
    (told,) = begin(2.0, True)
    assert told.startswith("Mended, the file that it is written in") and str(tmp_path / "run") in told


class _Größe(Bowl):
    """A family whose name no file may have."""


@pytest.mark.parametrize(
    ("family", "name", "estimator"),
    [
        (_Größe(), "mine/gr-e", NRES(0.02, robust=True)),
        (Mixture((Bowl(), _Größe())), "mine/mixture", Members(NRES(0.02, robust=True))),
    ],
    ids=["name", "mixture"],
)
def test_what_is_trained_has_a_name_and_an_estimator_that_fit_its_family(
    family, name, estimator, tmp_path, monkeypatch
):
    told = {}

    def train(start, problems, recipe, *_, **options):
        told.update(options, recipe=recipe)
        raise KeyboardInterrupt

    module = sys.modules[specialize.__module__]
    monkeypatch.setattr(module, "tune", lambda *_: ({}, None))
    monkeypatch.setattr(module, "tuned_levels", lambda *_: {})
    monkeypatch.setattr(_Specialization, "_start", lambda *_: (Controller(jax.random.key(0)), "nothing"))
    monkeypatch.setattr(_Specialization, "_paced", lambda self, recipe, *_: (recipe, 0.0))
    monkeypatch.setattr(module, "train", train)
    with pytest.raises(KeyboardInterrupt):
        specialize(family, "3s", horizon=HORIZON, folder=tmp_path / "run")
    assert told["name"] == name
    assert describe(told["recipe"]) == describe(choose_recipe(HORIZON, 3.0, 0)) | {
        "estimator": describe(Recipe(estimator=estimator))["estimator"]
    }


@pytest.mark.slow
def test_dials_are_turned_on_and_not_anew(tmp_path, monkeypatch):
    start, task = Controller(jax.random.key(0), learning_rate=1e-3), under_way(None, folder=tmp_path, seconds=1e6)
    begun, turns, spent = task._turned(start)
    assert turns["size"] > 2 and spent > 0  # twelve steps of a thousandth do not reach the bottom of the bowl
    for ours, theirs in zip(jax.tree.leaves(begun), jax.tree.leaves(turned(start, turns)), strict=True):
        np.testing.assert_array_equal(ours, theirs)

    # A search that is killed after every round turns them as far as one that is left alone.
    whole, rounds = json.loads((tmp_path / "search.json").read_text()), PatternSearch.round
    (tmp_path / "search.json").unlink()

    def killed(search, *arguments):
        monkeypatch.setattr(PatternSearch, "round", die)
        rounds(search, *arguments)

    def die(*_):
        raise KeyboardInterrupt

    for number in range(whole["search"]["rounds"] - 1):
        monkeypatch.setattr(PatternSearch, "round", killed)
        with pytest.raises(KeyboardInterrupt):
            task._turned(start)
        assert json.loads((tmp_path / "search.json").read_text())["search"]["rounds"] == number + 1
    monkeypatch.setattr(PatternSearch, "round", killed)
    assert task._turned(start)[1] == turns
    assert json.loads((tmp_path / "search.json").read_text())["search"] == whole["search"]
    assert task._turned(start)[1] == turns  # there is nothing left to try


def test_no_more_than_its_part_of_the_time_goes_into_dials(tmp_path):
    assert under_way(None, folder=tmp_path, seconds=1e-9)._turned(Controller(jax.random.key(0)))[1] == {}
    assert not list(tmp_path.iterdir())


def test_a_loss_that_leaves_its_domain_at_once_is_told(tmp_path):
    class Point(Bowl):
        def loss(self, params, instance, key):
            return jnp.where(jnp.all(params == instance), jnp.sum(params), jnp.inf)

    recipe = choose_recipe(2, 3.0, 0)
    with pytest.raises(FloatingPointError, match=r"^Only 0 of the first 6 meta-steps .* check it for divisions"):
        under_way(None, problems=Point(), folder=tmp_path)._paced(recipe, Controller(jax.random.key(0)), "", 3.0)
    assert not list(tmp_path.iterdir())


LBFGS = {"runs": 8, "steps": 7, "minibatches": 16, "low": 0.5, "high": 1.5}


def test_worth_in_words_says_when_no_time_is_saved():
    worth = {
        "mean_loss": 1.0,
        "best_mean_loss": 2.0,
        "best_mean_baseline": "Adam",
        "final_loss": 3.0,
        "best_final_loss": 2.0,
        "best_final_baseline": "Nesterov",
        "mean_loss_at_equal_seconds": 1.5,
        "final_loss_at_equal_seconds": 4.0,
        "second_order_at_equal_seconds": LBFGS | {"final_loss": None, "ours_there": [4.0, 3.0, 5.0]},
        "seconds_per_step": 2.0,
        "baseline_seconds_per_step": 1.0,
        "seconds_of_meta_training": 90.0,
        "seconds_saved_per_run": None,
        "break_even_runs": None,
    }
    mean, final, beside, last = sentences(worth)
    assert mean.startswith(
        "mean loss over the run: 0.50 x that of the best tuned baseline (Adam) at equal steps, 0.75 x"
    )
    assert "1.50 x that of the best tuned baseline (Nesterov)" in final
    assert "run of Nesterov (7 steps of 16 minibatches, 8 runs): inf x that of this optimizer in as many" in beside
    assert last.startswith("it saves no time")
    assert "repay" in sentences(worth | {"seconds_saved_per_run": 0.5, "break_even_runs": 180})[-1]
    start = worth | {"seconds_saved_per_run": 0.5, "seconds_of_meta_training": None}
    assert sentences(start)[-1].startswith("nothing that was learned is in it")
    negative = {"mean_loss": -2.5, "best_mean_loss": -2.0, "mean_loss_at_equal_seconds": -1.0, "final_loss": math.inf}
    mean, final, *_ = sentences(worth | negative | {"best_final_loss": -3.0})
    assert "0.5 below that of the best tuned baseline (Adam) at equal steps, 1 above at equal seconds" in mean
    assert "final loss: inf above that of" in final
    lost = {"final_loss": math.inf, "best_final_loss": math.inf}
    lost |= {"second_order_at_equal_seconds": LBFGS | {"final_loss": None, "ours_there": [math.inf] * 3}}
    _, final, beside, _ = sentences(worth | lost)
    assert "final loss: as infinite as that of the best tuned baseline (Nesterov)" in final
    assert "as infinite as that of this optimizer in as many" in beside


@pytest.mark.parametrize(
    ("ours", "theirs", "factor", "advice"),
    [
        ([4.0, 3.0, 5.0], {}, "0.25 x", "use"),
        ([4.0, 0.9, 7.0], {}, "0.25 x", "unsure"),
        ([0.8, 0.6, 1.1], {}, "1.25 x", "unsure"),
        ([0.5, 0.4, 0.6], {}, "2.00 x", "none"),
        ([4.0, 4.0, 4.0], {"runs": 1}, "0.25 x", "unsure"),
        # Of lost runs there are no ratios: an interval is held against an interval.
        ([None, 2.0, None], {}, "0.00 x", "use"),
        ([None, 1.2, None], {}, "0.00 x", "unsure"),
        ([4.0, 3.0, 5.0], {"final_loss": None, "high": None}, "inf x", "unsure"),
        ([0.3, 0.2, 0.4], {"final_loss": None, "high": None}, "inf x", "none"),
        ([None, 2.0, None], {"final_loss": None, "high": None}, "as infinite as", "unsure"),
    ],
)
def test_lbfgs_is_advised_where_the_runs_tell_that_it_is_better(ours, theirs, factor, advice):
    second = LBFGS | {"final_loss": 1.0, "ours_there": ours} | theirs
    said = _beside_lbfgs({"best_final_baseline": "Adam", "second_order_at_equal_seconds": second})
    _, _, said = said.partition("runs): ")
    assert said.partition(". ")[0] == f"{factor} that of this optimizer in as many"
    assert ("Use L-BFGS instead" in said, "So few runs do not tell" in said) == (advice == "use", advice == "unsure")


def test_time_is_saved_by_no_run_that_diverges_where_all_baselines_do():
    assert _seconds_saved([math.inf] * 5, math.inf, 2, 1.0, 4.0) is None
    assert _seconds_saved([math.inf, math.inf, 3.0, 2.0, 1.0], math.inf, 2, 1.0, 4.0) == 4.0 - 3.0


def test_each_baseline_is_worth_its_own_seconds(monkeypatch):
    """The best over a run takes two seconds a step, the best at its end one, and what is specialized half of one."""
    interval = {"low": 1.0, "high": 1.0, "median": 1.0}

    def row(kind: str, label: str, area: float, final: float) -> dict[str, Any]:
        losses = {"area": interval | {"mean": area}, "final": interval | {"mean": final}}
        losses |= {"each_run": {"area": [area, area], "final": [final, final]}}
        return losses | {"kind": kind, "label": label, "learning_rate": 0.2, "area_learning_rate": 0.1}

    rows = {
        "adam": row("hand-designed", "Adam", 10.0, 2.0),
        "nesterov": row("hand-designed", "Nesterov", 20.0, 1.0),
        "controller": row("learned", "Controller", 5.0, 0.5) | {"curve": [4.0, 3.0, 2.0, 1.0, *[0.5] * (HORIZON - 3)]},
    }
    seconds, timed = {"Controller": 0.5, "Adam": 2.0, "Nesterov": 1.0}, []

    def seconds_per_step(optimizers: Any, *_: Any) -> list[float]:
        timed.extend((type(it).__name__, float(it.learning_rate)) for it in optimizers[1:])
        return [seconds[type(it).__name__] for it in optimizers]

    monkeypatch.setattr(worth_module, "seconds_per_step", seconds_per_step)
    monkeypatch.setattr(
        worth_module, "lbfgs_in_time", lambda family, protocol, seconds: (np.ones(2), {"seconds": seconds})
    )
    protocol = dataclasses.replace(protocol_of(HORIZON, 2, 0), final_window=1)
    controller = Controller(jax.random.key(0))
    worth = worth_module.worth_of(controller, rows["controller"], rows, BASELINES, Bowl(), protocol, spent=90.0)
    assert sorted(timed) == [("Adam", pytest.approx(0.1)), ("Nesterov", pytest.approx(0.2))]
    # It is where Nesterov ends after three steps, in 1.5 seconds of the 12 that Nesterov takes, and not of Adam's 24.
    assert worth["seconds_saved_per_run"] == HORIZON * 1.0 - 3 * 0.5
    assert worth["break_even_runs"] == math.ceil(90.0 / (HORIZON - 1.5))
    second = worth["second_order_at_equal_seconds"]
    assert second["seconds"] == HORIZON * 1.0
    assert second["ours_there"][0] == pytest.approx(worth["final_loss_at_equal_seconds"])
    assert worth["baseline_seconds_per_step"] == 2.0
    second |= LBFGS | {"final_loss": 1.0}
    told = [it["what"] for it in worth_module.rows_of(worth | {"second_order_at_equal_seconds": second})]
    assert f"final loss beside Nesterov, in its seconds: {HORIZON} of our steps" in told
    # Where ours is the slower one, it has fewer steps in the time of Nesterov than in that of Adam.
    seconds["Controller"] = 4.0
    worth = worth_module.worth_of(controller, rows["controller"], rows, BASELINES, Bowl(), protocol, spent=90.0)
    assert worth["steps_at_equal_seconds"] == {"mean_loss": HORIZON // 2, "final_loss": HORIZON // 4}


def test_what_judges_is_held_out_of_learning_and_of_tuning_too(tmp_path, monkeypatch):
    """The images of the comparison: neither those that are trained on, nor those that are learned and tuned from."""
    seen = {}

    def run(self: _Specialization) -> Any:
        seen.update(chosen=self.problems, judged=self.judged)
        return Specialized(bygrad.Adam(), self.folder, {})

    monkeypatch.setattr(_Specialization, "run", run)
    images = jnp.arange(40 * 4, dtype=jnp.uint8).reshape(40, 4)
    family = MLPClassifier(images, jnp.arange(40) % 2, classes=2, batch=4)
    specialize(family, "3s", objective="validation", held_out=9, horizon=2, folder=tmp_path / "a")
    chosen, judged = seen["chosen"].family, seen["judged"].family
    np.testing.assert_array_equal(chosen.images, images[:35])
    np.testing.assert_array_equal(judged.images, np.concatenate([images[:31], images[35:]]))
    assert (chosen.entries, judged.entries) == ((31, 35), (31, 36))
    specialize(family, "3s", horizon=2, folder=tmp_path / "b")
    assert seen["chosen"] is seen["judged"] is family
    with pytest.raises(ValueError, match=r"held_out is 1, .* there must be two at least"):
        specialize(family, "3s", objective="validation", held_out=1, horizon=2, folder=tmp_path / "c")
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("horizons", [range(1, 10), range(10, 20), range(20, 2001)], ids=str)
def test_windows_of_every_horizon_are_neither_short_nor_long(horizons):
    for horizon in horizons:
        recipe = choose_recipe(horizon, 90.0, 0)
        Windows(Bowl(), recipe.horizon, recipe.truncation, recipe.instances)  # refuses what does not divide
        assert min(horizon, 10) <= recipe.truncation <= 40
        # Of a longer run than was trained for, a guard hands the last steps over.
        assert 0 <= recipe.horizon - horizon <= (6 if horizon > 40 else 0)
    assert [choose_recipe(steps, 90.0, 0).truncation for steps in (100, 400, 1000)] == [20, 20, 20]


def test_late_losses_count_for_more_where_the_end_of_a_run_decides():
    for objective, measure, late in (("training", "area", None), ("validation", "final", 3.0)):
        family = Mixture((Bowl(), Bowl()), (1.0, 1.0))
        problems = HeldOut(family) if objective == "validation" else family
        recipe = choose_recipe(400, 90.0, 0, objective, problems)
        assert recipe.select == measure and recipe.estimator == Members(NRES(0.02, robust=True, late=late))
        windows = Windows(problems, recipe.horizon, recipe.truncation, recipe.instances)
        members = recipe.estimator.init(Controller(jax.random.key(0)), windows, jax.random.key(1))
        assert [it.inner.params.shape for it in members] == 2 * [(2, 8, 2)]  # pairs, instances, params of a member


@pytest.mark.slow
def test_an_objective_that_there_is_not_is_refused(tmp_path):
    script = f"""
import bygrad
bygrad.specialize(bygrad.Quadratic(2), objective="held-out", folder={str(tmp_path / "run")!r})
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert "ValueError: objective is 'held-out'" in ended.stderr and "'validation'" in ended.stderr
    assert not (tmp_path / "run").exists()


def test_where_few_meta_steps_fit_what_is_not_pretrained_moves_further():
    recipe = choose_recipe(400, 90.0, 0)
    free = {"validation": 0.0, "is_pretrained": False}
    assert pace_of(recipe, 80.0, 0.01, **free) == {"seconds": 80.0, "validate_every": round(8000 / VALIDATIONS)}
    known = pace_of(recipe, 80.0, 0.8, 0.0, True)
    assert known == {"seconds": 80.0, "validate_every": round(100 / VALIDATIONS)}
    assert pace_of(recipe, 80.0, 0.8, **free) == known | {"meta_learning_rate": 3 * recipe.meta_learning_rate}


def test_validations_take_a_quarter_of_the_time_at_most():
    recipe = choose_recipe(400, 90.0, 0)
    # Of 80 seconds two validations take 20, one before and one after 60 meta-steps of a second.
    assert pace_of(recipe, 80.0, 1.0, 10.0, True) == {"seconds": 70.0, "validate_every": 60}
    # Of 160 four take 40, and 40 meta-steps come before each but the first.
    assert pace_of(recipe, 160.0, 1.0, 10.0, True) == {"seconds": 150.0, "validate_every": 40}


def test_where_there_is_no_time_to_learn_anything_some_meta_steps_are_taken_all_the_same():
    """They are counted, as beginning alone may take longer than what is left, and validated before and after."""
    recipe = choose_recipe(400, 90.0, 0)
    for left, step, validation in ((1.0, 10.0, 50.0), (-5.0, 1e-3, 5e-3), (80.0, 1.0, 1e3), (0.5, 1e-3, 5e-3)):
        few = dataclasses.replace(recipe, **pace_of(recipe, left, step, validation, True))
        assert (few.seconds, few.meta_steps, few.validate_every) == (None, WORTH_TRYING, WORTH_TRYING)
        assert few.warmup < WORTH_TRYING / 2  # or the cosine would be over when the rate has risen
        assert few.meta_learning_rate == recipe.meta_learning_rate
    assert pace_of(recipe, 1.0, 10.0, 50.0, False)["meta_learning_rate"] == 3 * recipe.meta_learning_rate


@pytest.mark.slow
def test_a_budget_that_is_too_short_is_told_before_meta_training_and_something_is_learned_all_the_same(tmp_path):
    out = io.StringIO()
    shown = Display(Console(file=out))
    task = dataclasses.replace(under_way(None, folder=tmp_path, seconds=1e-3), display=shown)
    recipe, start = choose_recipe(HORIZON, 1e-3, 0), Controller(jax.random.key(0))
    recipe, pilot = task._paced(recipe, start, "", 1e-3)
    told = out.getvalue()
    assert "compiling, and timing meta-steps 0/6" in told
    assert (
        "0.001 s are too few here" in told and "20 meta-steps are taken all the same" in told and "(--budget)" in told
    )
    trained = task._trained(start, recipe, {}, pilot)
    assert len(trained.log.of(Stepped)) == WORTH_TRYING
    assert [event.step for event in trained.log.of(Validated)] == [0, WORTH_TRYING]
    assert "too few to learn from" not in out.getvalue()
    # Who resumes is given the same pace, and finds it done.
    again, _ = task._paced(choose_recipe(HORIZON, 1e-3, 0), start, "", 1e-3)
    assert describe(again) == describe(recipe)


def test_what_is_timed_has_no_held_out_loss(monkeypatch):
    timed = []
    monkeypatch.setattr(worth_module, "compiled_loss_curves", lambda optimizer, family, *_: timed.append(family))
    monkeypatch.setattr(worth_module, "MOST_TURNS", 0)
    worth_module.seconds_per_step([Controller(jax.random.key(0))], HeldOut(Bowl()), protocol_of(HORIZON, 2, 0))
    assert {type(it) for it in timed} == {Bowl}
