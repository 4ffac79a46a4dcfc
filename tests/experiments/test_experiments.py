"""Experiments: declarations that hold together, the paper's curves, and an experiment carried out from end to end."""

import base64
import csv
import dataclasses
import importlib
import io
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
import pytest
from jaxtyping import PRNGKeyArray
from rich.console import Console

import bygrad
from bygrad import experiments
from bygrad.evaluation import CONVENTION, Protocol, loss_of
from bygrad.experiments import EXPERIMENTS, Budget, Experiment, Level, Setting, Task, carry_out, paper_curves
from bygrad.optimizers import LSTM, PAPER_BASELINES, Learned, Optimizer
from bygrad.problems import FAMILIES, ProblemFamily, describe_family, find_family
from bygrad.training import RolledBack, Stepped, Validated, Warned
from bygrad.workflows import Display, claim

FIGURES = Path(experiments.__file__).parent / "paper_curves.csv"

USER_FILE = """
import jax, jax.numpy as jnp
from bygrad import ProblemFamily

class Bowl(ProblemFamily):
    def sample(self, key):
        return ()
    def init(self, instance, key):
        return jax.random.normal(key, (2,))
    def loss(self, params, instance, key):
        return jnp.sum(params ** 2)

class Cliff(Bowl):
    def init(self, instance, key):
        return jnp.ones(2)
    def loss(self, params, instance, key):
        return jnp.where(jnp.all(params == 1), jnp.sum(params), jnp.inf)
"""


def rows() -> list[dict[str, str]]:
    with FIGURES.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_declaration_holds_together(name):
    experiment = EXPERIMENTS[name]
    assert experiment.name == name
    assert set(experiment.recipes) == set(experiment.protocols) == {"quick", "paper"}
    names = [setting.name for setting in experiment.settings]
    assert len(set(names)) == len(names)
    assert experiment.settings_of("quick") == experiment.settings[:1]
    assert experiment.settings_of("paper") == experiment.settings
    figures = {row["figure"] for row in rows()}
    for setting in experiment.settings:
        assert setting.family in FAMILIES
        assert setting.figure is None or setting.figure in figures
        assert 1 <= setting.final_window <= setting.horizon
        assert setting.levels
    assert experiment.training_family in FAMILIES
    # It is trained for a horizon and a measure in which it is tested.
    tested = {(setting.horizon, setting.final_window) for setting in experiment.settings}
    for recipe in experiment.recipes.values():
        assert (recipe.horizon, recipe.final_window) in tested
    assert isinstance(eqx.filter_eval_shape(experiment.optimizer, jax.random.key(0)), Learned)


@pytest.mark.parametrize("figure", sorted({row["figure"] for row in rows()}))
def test_curves_of_the_paper_are_shifted_to_our_convention(figure):
    curves = paper_curves(figure)
    labels = {"NAG": "Nesterov", "ADAM": "Adam"}
    found = {row["optimizer"] for row in rows() if row["figure"] == figure}
    assert set(curves) == {labels.get(name, name) for name in found}
    for optimizer in found:
        theirs = [row for row in rows() if row["figure"] == figure and row["optimizer"] == optimizer]
        curve = curves[labels.get(optimizer, optimizer)]
        shift = 0 if optimizer.startswith("LSTM") else 1
        assert curve["steps"] == [float(row["step"]) - shift for row in theirs]
        assert curve["losses"] == [float(row["loss"]) for row in theirs]


def test_baselines_start_where_the_paper_starts_and_the_lstm_one_step_later():
    curves = paper_curves("fig4L_quadratics")
    for name in ("SGD", "Nesterov", "RMSprop", "Adam"):
        assert curves[name]["steps"][0] == 0
        assert curves[name]["losses"][0] == pytest.approx(10 / 3, rel=0.01)
    assert curves["LSTM"]["steps"][0] == 1
    assert curves["LSTM"]["losses"][0] < 1
    assert paper_curves("no such figure") == {}


def test_a_figure_without_a_unit_is_scaled_to_the_best_baseline():
    module = importlib.import_module("bygrad.experiments.paper")
    for figure in ("fig8L_neuralart_64", "fig8R_neuralart_128"):
        ends = [curve["losses"][-1] for name, curve in paper_curves(figure).items() if name != "LSTM"]
        assert min(ends) * module.paper_scale(figure, 1356.0) == pytest.approx(1356.0)
    assert module.paper_scale("fig4L_quadratics", 1356.0) is None


def test_titles_say_where_the_meta_gradient_has_what_the_papers_leaves_out():
    for experiment in EXPERIMENTS.values():
        twice = getattr(experiment.recipe("paper").estimator, "second_derivatives", False)
        assert all(("second derivatives" in setting.title) is twice for setting in experiment.settings)


@pytest.mark.parametrize(("family", "told"), [("digits", True), ("quadratic", False)])
def test_a_report_says_that_losses_depend_on_whose_images_they_are_of(family, told, experiment, tmp_path):
    module = importlib.import_module("bygrad.experiments.reproduce")
    rows = {"sgd": {"label": "SGD", "kind": "hand-designed", "final": {"mean": 1.0}}}
    described = {"family": describe_family(find_family(family))}
    kept = {"optimizers": rows, "configuration": described, "convention": CONVENTION}
    (tmp_path / "comparison.json").write_text(json.dumps(kept))
    task, (setting, *_) = Task("quick", tmp_path, Display(Console())), experiment.settings
    optimizer, protocol = LSTM(jax.random.key(0), (2,)), experiment.protocols["quick"]
    results = module._compared(task, experiment, setting, optimizer, protocol)
    assert results["convention"].startswith(CONVENTION)
    assert ("test split" in results["convention"]) is told


def test_the_page_on_architectures_says_so_too(tmp_path):
    module = importlib.import_module("bygrad.experiments.architectures")
    found = {"final": {"mean": 0.5, "low": 0.4, "high": 0.6}, "seconds_per_step": 1e-3}
    kinds = {"LSTM": "learned", "SGD": "hand-designed"}
    rows = {label.lower(): {"label": label, "kind": kind} | found for label, kind in kinds.items()}
    module._report(Task("quick", tmp_path, Display(Console())), module.PROTOCOLS["quick"], {"1/20": rows})
    assert "test split" in (tmp_path / "report.html").read_text()


def test_what_is_lost_on_an_architecture_is_told_from_what_is_missing():
    module = importlib.import_module("bygrad.experiments.architectures")
    row = {"label": "SGD", "final": {"mean": None}, "seconds_per_step": 1e-3}  # as a file has what is infinite
    assert module._losses({"1/20": {"sgd": row}}).rows == (("1 of 20", "∞, 1.00 ms"),)


PAPER = {
    "quadratic": [0.0387],
    "quadratic-gaussian": [None],
    "mnist": [0.257, 45.7, 0.212, 0.192, 0.328, 2.607],
    "cifar10-middle": [0.984],
    "cifar10-long": [1.034],
    "cifar2-long": [0.695],
    "cifar2-long-sub": [0.603],
    "style": [0.963, 0.910],
}
"""The paper's figures that levels are held against, as read off its curves: over the window of the setting."""


@pytest.mark.parametrize("name", PAPER)
def test_levels_have_what_the_papers_curve_is_over_their_window(name):
    module = importlib.import_module("bygrad.experiments.paper")
    settings = EXPERIMENTS[name].settings
    found = [module.paper_level(setting, level) for setting in settings for level in setting.levels]
    assert found == [value if value is None else pytest.approx(value, rel=3e-3) for value in PAPER[name]]


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name.startswith("cifar")])
def test_levels_of_cifar_are_shares_and_of_the_curve_of_what_was_learned_on(name):
    ((level,),) = (setting.levels for setting in EXPERIMENTS[name].settings)
    assert level.relative and level.curve == ("LSTM-sub" if name.endswith("-sub") else "LSTM")


@pytest.mark.parametrize(("family", "beats"), [("digits", None), ("quadratic", True)])
def test_no_loss_is_held_against_one_of_other_images(family, beats):
    module = importlib.import_module("bygrad.experiments.reproduce")
    level = Level("end", "final", 0.5)
    setting = Setting("main", "Tiny", family, 100, 1, figure="fig4L_quadratics", levels=(level,))
    final = {"mean": 1e-3, "low": 1e-3, "high": 1e-3}
    rows = {kind: {"label": kind, "kind": kind, "final": final} for kind in ("learned", "hand-designed")}
    described = {"family": describe_family(find_family(family))}
    (row,) = module._levels(setting, {"optimizers": rows, "configuration": described}, "learned")
    assert (row["paper"], row["beats_paper"]) == (pytest.approx(0.0387, rel=3e-3), beats)


def display() -> tuple[Display, io.StringIO]:
    text = io.StringIO()
    return Display(Console(file=text, width=200)), text


def reproduce(experiment: Experiment, budget: Budget, folder: Path, shown: Display, **options: Any) -> dict[str, Any]:
    return experiments.reproduce(experiment, Task(budget, folder, shown, **options))


def test_the_display_shows_what_stays():
    shown, text = display()
    shown.levels, shown.meta_steps = {"SGD": 5.0, "Adam": 4.0}, 2
    with shown:
        shown.event(Validated(0, 3.0, 0.5, True, 1.0))
        shown.event(Stepped(1, 2.0, 0.1, 1e-2, 2.0))
        shown.event(Stepped(2, math.nan, 0.1, 1e-2, 2.0))
        shown.event(RolledBack(2, "the meta-loss was nan", 0.5, 3.0))
        shown.event(Warned(2, "nothing was learned [really]", 4.0))
        shown.phase("evaluating Adam", 0, 2)
        shown.phase("evaluating Adam", 2, 2)
    lines = text.getvalue()
    assert "validation area 3, final 0.5  (area 25% below the best tuned baseline, Adam 4)" in lines
    assert "the meta-loss was nan" in lines
    assert "nothing was learned [really]" in lines


@pytest.mark.parametrize(
    ("level", "reached", "told"),
    [
        (0.0, 0.0, "(final level with the best tuned baseline, Adam 0)"),
        (0.0, 0.5, "(final above the best tuned baseline, Adam 0)"),
        (math.inf, 0.5, "(final below the best tuned baseline, Adam inf)"),
        (math.inf, math.inf, "(final level with the best tuned baseline, Adam inf)"),
    ],
)
def test_the_display_knows_baselines_that_solve_a_problem_or_are_lost_on_it(level, reached, told):
    shown, text = display()
    shown.levels, shown.measure = {"Adam": level}, "final"
    shown.event(Validated(0, 3.0, reached, True, 1.0))
    assert told in text.getvalue()


def test_the_display_shows_meta_losses_after_one_that_was_infinite():
    shown, text = display()
    shown.meta_steps = 2
    for step, loss in enumerate((math.inf, 2.0), start=1):
        shown._quiet_since = -math.inf  # tells every line
        shown.event(Stepped(step, loss, 0.1, 1e-2, float(step)))
    first, second = text.getvalue().splitlines()
    assert first == "meta-training 1/2  meta-loss inf"  # from one step no speed is known
    assert second == "meta-training 2/2  meta-loss 2  1.0 meta-steps/s, 0 s left"


def one_pixel(family: ProblemFamily, optimizers: Mapping[str, Optimizer], key: PRNGKeyArray) -> dict:
    image = {"shape": [1, 1, 3], "data": base64.b64encode(bytes(3)).decode()}
    rows = [{"label": label, "images": [image]} for label in optimizers]
    return {"caption": f"One pixel of {type(family).__name__}.", "columns": ["it"], "rows": rows}


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    path = tmp_path_factory.mktemp("families") / "mine.py"
    path.write_text(USER_FILE)
    recipe = bygrad.Recipe(
        horizon=4, truncation=2, instances=2, meta_steps=3, validate_every=2, validation_runs=2, final_window=2
    )
    protocol = Protocol(1, runs=3, tuning_runs=2, second_order_runs=2, chunk=2)
    return Experiment(
        name="tiny",
        title="Something small",
        optimizer=lambda key: LSTM(key, (2,)),
        recipes={"quick": recipe, "paper": recipe},
        protocols={"quick": protocol, "paper": protocol},
        illustrate=one_pixel,
        settings=(
            Setting(
                "main",
                "Bowls",
                f"{path}:Bowl",
                horizon=4,
                final_window=2,
                figure="fig4L_quadratics",
                levels=(Level("end", "final", 100.0), Level("sum", "area", 1e-9)),
            ),
            # Whoever moves is lost, learned or not.
            Setting(
                "cliff", "Cliffs", f"{path}:Cliff", horizon=4, final_window=1, levels=(Level("end", "final", 1.0),)
            ),
        ),
    )


@pytest.fixture(scope="module")
def done(experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path, str]:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    shown, text = display()
    with shown:
        results = reproduce(experiment, "paper", folder, shown, command="bygrad reproduce tiny")
    return results, folder, text.getvalue()


def test_everything_is_written(done, experiment):
    results, folder, text = done
    for name in ("report.html", "results.json", "optimizer.safetensors", "experiment.json", "tuning.json"):
        assert (folder / name).is_file(), name
    assert {path.name for path in (folder / "metatraining").iterdir()} == {"log.jsonl", "checkpoint.safetensors"}
    assert (folder / "cliff" / "report.html").is_file()
    written = json.loads((folder / "results.json").read_text())
    assert (written["experiment"], written["command"], written["seed"]) == ("tiny", "bygrad reproduce tiny", 0)
    assert set(written["optimizers"]) == {"lstm", *(name.lower() for name in PAPER_BASELINES), "lbfgs"}
    assert set(written["meta_training"]["baselines"]) == set(PAPER_BASELINES)
    assert written["meta_training"]["steps"] == [1, 2, 3]
    assert written["meta_training"]["validation_steps"] == [0, 2, 3]
    assert written["paper"] == json.loads(json.dumps(paper_curves("fig4L_quadratics")))
    best = sorted(PAPER_BASELINES, key=lambda name: written["optimizers"][name.lower()]["final"]["mean"])[:2]
    assert [row["label"] for row in written["pictures"]["rows"]] == ["LSTM", *best]
    assert "One pixel of Bowl." in (folder / "report.html").read_text()
    assert set(written["seconds"]) == {"tuning", "meta_training", "evaluation"}
    assert "tuned, area" in text and "best tuned baseline" in text
    assert results["optimizers"]["lstm"]["final"] == written["optimizers"]["lstm"]["final"]


@pytest.mark.slow
def test_progress_is_held_against_the_baselines_in_the_same_runs(done, experiment):
    """A tuned baseline that is meta-trained with the same recipe is validated, as it is at the start, at its level."""
    results, folder, text = done
    recipe, family = experiment.recipes["paper"], find_family(experiment.settings[0].family)
    levels = results["meta_training"]["baselines"]
    for name, tuning in json.loads((folder / "tuning.json").read_text()).items():
        rate = tuning["learning_rates"][int(np.argmin([loss_of(it) for it in tuning["area"]]))]
        trained = bygrad.meta_train(PAPER_BASELINES[name](rate), family, recipe, watch=lambda event: None)
        assert levels[name] == pytest.approx(trained.log.of(Validated)[0].area, rel=1e-5)
        assert f"{name} {levels[name]:.4g}" in text
    assert json.loads((folder / "levels.json").read_text()) == {name: {"area": level} for name, level in levels.items()}


def test_levels_are_judged(done):
    end, total, lost = done[0]["levels"]
    curve = paper_curves("fig4L_quadratics")["LSTM"]["losses"]
    assert (end["paper"], end["reach"], end["reached"]) == (pytest.approx(np.mean(curve[2:4])), 100.0, True)
    assert (total["reach"], total["reached"]) == (1e-9, False)
    assert (lost["paper"], lost["ours"], lost["reached"]) == (None, math.inf, False)
    assert end["ours"] == done[0]["optimizers"]["lstm"]["final"]["mean"]


def test_levels_may_be_shares():
    def row(kind: str, label: str, final: float | None) -> dict:
        interval = {"mean": final, "low": final and final / 2, "high": final and final * 2}
        return {"kind": kind, "label": label, "final": interval}

    setting = Setting("main", "Tiny", "quadratic", 2, 1, levels=(Level("end", "final", 0.5, relative=True),))
    baselines = {"adam": row("hand-designed", "Adam", 8.0), "sgd": row("hand-designed", "SGD", 4.0)}
    levels = importlib.import_module("bygrad.experiments.reproduce")._levels
    (judged,) = levels(setting, {"optimizers": {"lstm": row("learned", "LSTM", 2.0), **baselines}}, "LSTM")
    assert (judged["ours"], judged["low"], judged["high"], judged["reached"]) == (0.5, 0.25, 1.0, True)
    assert "best tuned baseline: SGD 4)" in judged["what"]
    (lost,) = levels(setting, {"optimizers": {"lstm+gac": row("learned", "LSTM+GAC", None), **baselines}}, "LSTM+GAC")
    assert lost["reached"] is False


def test_an_interrupted_comparison_goes_on_where_it_was(done, experiment, monkeypatch):
    results, folder, _ = done
    copy = shutil.copytree(folder, folder.with_name("interrupted"))
    for path in ("comparison.json", "cliff/comparison.json"):  # in the second the LSTM is lost: JSON says null
        (copy / path).unlink()
    kept = json.loads((copy / "optimizers.json").read_text())
    assert list(kept) == ["lstm", *(name.lower() for name in PAPER_BASELINES), "lbfgs"]
    (copy / "optimizers.json").write_text(json.dumps({name: row for name, row in kept.items() if name != "adam"}))
    ran = []
    module = importlib.import_module("bygrad.evaluation.compare")
    run_curves = module.run_curves
    monkeypatch.setattr(module, "run_curves", lambda it, *rest, **more: ran.append(it) or run_curves(it, *rest, **more))
    shown, _ = display()
    with shown:
        again = reproduce(experiment, "paper", copy, shown, resume=True, command="bygrad reproduce tiny")
    assert {type(optimizer).__name__ for optimizer in ran} == {"Adam"}
    for name, row in results["optimizers"].items():
        assert again["optimizers"][name]["curve"] == pytest.approx(row["curve"], nan_ok=True)
    assert again["seconds"]["evaluation"] is None
    assert again["levels"][-1]["reached"] is False


@pytest.mark.slow
def test_what_is_damaged_is_named_and_done_again_once_deleted(done, experiment):
    results, folder, _ = done
    copy = shutil.copytree(folder, folder.with_name("damaged"))
    carry_on = lambda: reproduce(experiment, "paper", copy, display()[0], resume=True)  # noqa: E731
    for name in ("tuning.json", "levels.json", "comparison.json", "optimizers.json"):
        (copy / name).write_bytes((copy / name).read_bytes()[:-5])
    for name in ("tuning.json", "levels.json", "comparison.json", "optimizers.json"):
        with pytest.raises(ValueError, match=f"{name} is damaged .*Delete it and resume"):
            carry_on()
        (copy / name).unlink()
    assert carry_on()["optimizers"].keys() == results["optimizers"].keys()
    (copy / "experiment.json").write_text("{")
    with pytest.raises(ValueError, match=r"experiment\.json is damaged .*choose another"):
        carry_on()


def test_the_optimizer_is_the_one_that_was_compared(done, experiment):
    results, folder, _ = done
    optimizer = bygrad.load(folder / "optimizer.safetensors")
    family = find_family(experiment.settings[0].family)
    protocol = dataclasses.replace(experiment.protocols["paper"], horizon=4, final_window=2, second_order_runs=0)
    again = bygrad.compare({"LSTM": optimizer}, {}, family, protocol)
    np.testing.assert_allclose(again["lstm"]["curve"], results["optimizers"]["lstm"]["curve"], rtol=1e-6)


def test_a_folder_in_use_is_not_overwritten(done, experiment):
    _, folder, _ = done
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(FileExistsError, match=r"already exists.*--resume.*--out"):
        reproduce(experiment, "paper", folder, display()[0])
    for change, named in (
        ({"seed": 1}, "seed was 0, is 1"),
        ({"data": "other.npz"}, "data was mnist, is other.npz"),
        ({"budget": "quick"}, "budget was paper, is quick"),
    ):
        budget = change.pop("budget", "paper")
        with pytest.raises(ValueError, match=f"holds another experiment .*{named}"):
            reproduce(experiment, budget, folder, display()[0], resume=True, **change)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_mistake_leaves_no_folder_that_is_of_no_use(experiment, tmp_path):
    task = Task("paper", tmp_path / "out", display()[0], data="nowhere.npz")
    on_images = tuple(dataclasses.replace(setting, family="mnist") for setting in experiment.settings)
    with pytest.raises((ValueError, OSError), match="nowhere"):
        carry_out(dataclasses.replace(experiment, settings=on_images), task)
    assert not task.folder.exists()
    # What somebody else has there is left as it is.
    task.folder.mkdir()
    (task.folder / "experiment.json").write_text("{}")
    with pytest.raises(FileExistsError, match="already exists"):
        carry_out(experiment, task)
    assert (task.folder / "experiment.json").read_text() == "{}"


def test_more_data_may_be_named_after_those_that_it_began_with(tmp_path):
    identity = {"experiment": "tiny", "data": "mnist"}
    claim(tmp_path, identity, resume=False)
    for other in ("cifar10.npz,mnist", "mnist-all,mnist"):  # the first might be taken instead
        with pytest.raises(ValueError, match=f"data was mnist, is {other}"):
            claim(tmp_path, identity | {"data": other}, resume=True)
    more = identity | {"data": "mnist,cifar10.npz"}
    claim(tmp_path, more, resume=True)
    assert json.loads((tmp_path / "experiment.json").read_text()) == more


def test_a_finished_experiment_is_resumed_to_the_same_results(done, experiment):
    results, folder, _ = done
    again = reproduce(experiment, "paper", folder, display()[0], resume=True, command="bygrad reproduce tiny")
    assert again["optimizers"].keys() == results["optimizers"].keys()
    for part in ("tuning", "evaluation"):
        assert again["seconds"][part] == results["seconds"][part] > 0
    plain = json.loads((folder / "results.json").read_text())
    for name, row in plain["optimizers"].items():
        assert row["final"] == json.loads(
            json.dumps(bygrad.evaluation.strict_json(results["optimizers"][name]["final"]))
        )
    assert [level["reached"] for level in again["levels"]] == [level["reached"] for level in results["levels"]]


@pytest.mark.slow
def test_a_meta_training_that_is_over_needs_no_checkpoint(done, experiment, tmp_path, monkeypatch):
    results, folder, _ = done
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    for path in copy.rglob("checkpoint.safetensors"):
        path.unlink()
    for path in (*copy.rglob("comparison.json"), *copy.rglob("optimizers.json")):
        path.unlink()  # compared again, so that it is seen whose optimizer it is
    kept = json.loads((copy / "levels.json").read_text()) | {"SGD": {"area": 123.0}}
    (copy / "levels.json").write_text(json.dumps(kept))
    monkeypatch.setattr("bygrad.workflows.work.meta_train", None)
    again = reproduce(experiment, "paper", copy, display()[0], resume=True, command="bygrad reproduce tiny")
    assert again["optimizers"]["lstm"]["final"] == results["optimizers"]["lstm"]["final"]
    levels = {name: level["area"] for name, level in kept.items()}  # not measured again either
    assert again["meta_training"] == results["meta_training"] | {"baselines": levels}


def test_another_file_in_the_folder_is_not_taken_for_an_experiment(experiment, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError):
        reproduce(experiment, "quick", tmp_path, display()[0])
    with pytest.raises(ValueError, match="holds another experiment"):
        reproduce(experiment, "quick", tmp_path, display()[0], resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_resuming_where_nothing_is_begins(experiment, tmp_path, monkeypatch):
    started = []

    def stop(*arguments: object, **options: object) -> None:
        started.append(arguments)
        raise KeyboardInterrupt

    module = importlib.import_module("bygrad.experiments.reproduce")
    monkeypatch.setattr(module, "train_or_read", stop)
    monkeypatch.setattr(module, "tune", lambda *arguments: ({}, None))
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            reproduce(experiment, "quick", tmp_path / "new", display()[0], resume=True)
    assert len(started) == 2
