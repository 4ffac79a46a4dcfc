"""Studies: what they compute, and all experiments in one index."""

import dataclasses
import io
import json
import math
from types import SimpleNamespace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, PRNGKeyArray
from rich.console import Console

from bygrad._core.programs import Program
from bygrad.artifacts import load, shipped_names
from bygrad.evaluation import Protocol, Sheet, bfgs_curves, lbfgs_curves, run_curves
from bygrad.experiments import EXPERIMENTS, STUDIES, Study, Task, horizon, specializations, update_shapes
from bygrad.experiments.everything import everything
from bygrad.experiments.horizon import CLONING, LEARNING, PROTOCOLS
from bygrad.experiments.update_shapes import CASES, choose, history, path_of, sweep
from bygrad.experiments.variations import (
    MNIST,
    QUADRATICS,
    Contest,
    difference_over_trainings,
    differences,
    hold,
    mean_over_trainings,
)
from bygrad.metagrads import NRES, Clone, Imitate, Replay
from bygrad.optimizers import LSTM, SGD, Adam, GlobalLSTM, Optimizer, Scaled
from bygrad.problems import ProblemFamily, Quadratic
from bygrad.training import Recipe, describe
from bygrad.workflows import Display
from bygrad.workflows.work import gradient_scale, train
from bygrad.workflows.worth import seconds_per_step


def task_in(folder, **options) -> Task:
    return Task("quick", folder, Display(Console(file=io.StringIO())), command="bygrad reproduce", **options)


def level(name: str, reached: bool | None) -> dict[str, object]:
    return {"what": name, "paper": 0.5, "reach": 0.4, "ours": 0.3, "low": 0.2, "high": 0.4, "reached": reached}


def test_all_runs_everything_once_goes_on_after_a_failure_and_writes_an_index(tmp_path):
    ran = []

    def study(name: str, fails: bool = False) -> Study:
        def carry_out(task: Task) -> dict[str, object]:
            ran.append((name, task.folder, task.resume))
            if fails:
                raise FileNotFoundError("the images are <not> there")
            task.folder.mkdir(parents=True, exist_ok=True)
            (task.folder / "loss.svg").write_text('<svg><path id="p1"/></svg>')
            return {"levels": [level(f"final of {name}", True), level("reported", None)]}

        return Study(name, f"The study {name}", carry_out)

    every = everything({"one": study("one"), "two": study("two", fails=True), "three": study("three")})
    results = every.carry_out(task_in(tmp_path))
    assert ran == [(name, tmp_path / name, False) for name in ("one", "two", "three")]
    assert len(results["levels"]) == 4
    assert results["refused"] == {"two": "the images are <not> there"}
    page = (tmp_path / "report.html").read_text()
    assert "2 of 2 levels are reached" in page
    for text in ("final of one", "final of three", "the images are &lt;not&gt; there", "0.300"):
        assert text in page
    # Figures of all experiments stand on one page: their ids must differ.
    assert 'id="one-loss-p1"' in page
    assert 'id="three-loss-p1"' in page
    assert json.loads((tmp_path / "results.json").read_text())["levels"]["one"][0]["ours"] == 0.3
    with pytest.raises(FileExistsError, match="--resume"):
        every.carry_out(task_in(tmp_path))
    every.carry_out(task_in(tmp_path, resume=True))
    assert [resumed for _, _, resumed in ran[3:]] == [True, False, True]  # the second has left nothing


def test_all_goes_on_with_the_settings_that_it_began_with_or_not_at_all(tmp_path):
    ran = []
    every = everything({"one": Study("one", "The first", lambda task: ran.append(task.seed) or {"levels": []})})
    every.carry_out(task_in(tmp_path))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    changes = {"budget": ("quick", "paper"), "seed": (0, 1), "data": ("mnist", "other.npz")}
    for name, (was, now) in changes.items():
        says = f"holds another experiment .{name} was {was}, is {now}.*Resume with the same arguments"
        with pytest.raises(ValueError, match=says):
            every.carry_out(dataclasses.replace(task_in(tmp_path, resume=True), **{name: now}))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before and ran == [0]
    # Other artifacts may be tested, as in `transfer` alone.
    every.carry_out(task_in(tmp_path, resume=True, artifacts=("paper/mnist",)))
    assert ran == [0, 0]


def test_a_folder_is_claimed_for_a_study_and_its_results_say_where_they_come_from(tmp_path):
    task, study = task_in(tmp_path, seed=3), Study("some", "Something", dict)
    task.claim(study, steps=5)
    identity = {"experiment": "some", "budget": "quick", "seed": 3, "data": "mnist", "steps": 5}
    assert json.loads((tmp_path / "experiment.json").read_text()) == identity
    with pytest.raises(ValueError, match="steps was 5, is 6"):
        dataclasses.replace(task, resume=True).claim(study, steps=6)
    results = task.finish(study, {"losses": [1.0, math.inf]}, "A statement.", [Sheet("Table", ("a",), (("b",),))])
    assert (results["experiment"], results["title"], results["command"]) == ("some", "Something", "bygrad reproduce")
    assert {"versions", "machine"} < set(results)
    assert json.loads((tmp_path / "results.json").read_text()) == results | {"losses": [1.0, None]}
    page = (tmp_path / "report.html").read_text()
    assert "<h1>Something</h1>" in page and "A statement. bygrad reproduce" in page and "Table" in page


def test_a_comparison_of_a_setting_is_made_once(tmp_path):
    task, protocol = task_in(tmp_path), Protocol(3, runs=2, tuning_runs=1, second_order_runs=0, rates=3)
    arguments = ({"Mine": SGD()}, Quadratic(2), Quadratic(2), protocol, "Title", {"Adam": Adam})
    results = task.compare("Two layers", *arguments)
    report = task.folder / "two-layers" / "report.html"
    drawn = report.read_text()
    report.unlink()  # as if it had been killed before
    assert task.compare("Two layers", *arguments) == results
    assert report.read_text() == drawn
    assert set(results["optimizers"]) == {"mine", "adam"}
    kept = tmp_path / "two-layers" / "results.json"
    assert json.loads(kept.read_text()) == results and kept.with_name("report.html").exists()
    kept.write_text('{"title": "kept"}')
    assert task.compare("Two layers", *arguments) == {"title": "kept"}


def test_a_report_that_was_not_drawn_any_more_is_drawn_by_who_goes_on(tmp_path, monkeypatch):
    """Results are written first, and a run may be killed between them and the page."""
    row = {"label": "Adam", "kind": "hand-designed", "learning_rate": 0.1, "seconds_per_step": None, "note": None}
    losses = {"mean": 1.0, "low": 0.9, "high": 1.1}
    row |= {"final": losses, "area": losses, "curve": [1.0, 1.0], "runs": 2, "diverged": 0}
    found: dict[str, object] = {"title": "kept", "experiment": "some", "convention": "", "command": "", "levels": []}
    found |= {"horizon": 1, "runs": 2, "seed": 0, "optimizers": {"adam": row}}
    found |= {"specialization": {}, "seconds": {"meta_training": 1.0}}
    task, told = task_in(tmp_path), []
    task.claim(STUDIES["specialize"])
    (case, *_), objectives = specializations.CASES, specializations.OBJECTIVES
    names = [f"{case.family}-{case.horizon}-{objective}" for objective in objectives]
    for name in (*names, QUADRATICS.name):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(found))
    assert hold(QUADRATICS, task, tmp_path / QUADRATICS.name) == found
    monkeypatch.setattr(specializations, "CASES", (case,))
    monkeypatch.setattr(specializations, "levels_of", lambda what, results: told.append((what, results)) or [])
    STUDIES["specialize"].carry_out(dataclasses.replace(task, resume=True))
    assert [results for _, results in told] == [found] * len(names)
    assert all((tmp_path / name / "report.html").exists() for name in (*names, QUADRATICS.name))


def test_all_is_all():
    assert {"all", *EXPERIMENTS}.isdisjoint(set(STUDIES) - {"all"})
    assert {"variations", "horizon", "architectures", "update-shapes"} < set(STUDIES)


def test_the_contenders_are_trained_alike_and_the_recipes_are_json():
    for contest in (QUADRATICS, MNIST):
        for budget, recipe in contest.recipes.items():
            json.dumps(describe(recipe))
            assert recipe.horizon == contest.protocols[budget].horizon
            assert recipe.final_window == contest.protocols[budget].final_window
    for recipes in (CLONING, LEARNING):
        for budget, recipe in recipes.items():
            json.dumps(describe(recipe))
            assert PROTOCOLS[budget].horizon > 2 * recipe.horizon  # what it does beyond is what is asked


def test_differences_of_single_trainings_are_taken_run_by_run():
    """With rates that differ a little, runs differ much more among themselves than within a pair."""
    protocol = Protocol(3, runs=16, tuning_runs=1, chunk=16)
    baseline = {"label": "Adam", "kind": "hand-designed", "final": {"mean": 1e9}}
    optimizers, results = {"a": [SGD(0.010)], "b": [SGD(0.011)]}, {"optimizers": {"x": baseline}}
    rows = differences(optimizers, Quadratic(3), protocol, "Title", results)
    assert [row["reached"] for row in rows] == [True, True, True]
    (one, other), difference = rows[:2], rows[2]
    assert difference["ours"] == pytest.approx(other["ours"] - one["ours"], rel=1e-6)
    assert difference["high"] - difference["low"] < 0.5 * (one["high"] - one["low"])
    assert "final loss of b minus that of a" in difference["what"]


def test_trainings_decide_where_there_are_several():
    """However many the runs, and however sure each training is of its mean."""
    baseline = {"label": "Adam", "kind": "hand-designed", "final": {"mean": 1e9}}
    optimizers = {"a": [SGD(0.01), SGD(0.05), SGD(0.06)], "b": [SGD(0.02), SGD(0.055), SGD(0.065)]}
    protocol = Protocol(3, runs=64, tuning_runs=1, chunk=64)
    rows = differences(optimizers, Quadratic(3), protocol, "Title", {"optimizers": {"x": baseline}})
    (one, other), difference = rows[:2], rows[2]
    assert "a, 3 trainings, " in one["what"]
    assert difference["ours"] == pytest.approx(other["ours"] - one["ours"], rel=1e-6) and difference["ours"] < 0
    assert not difference["reached"] and difference["low"] < difference["ours"] < 0 < difference["high"]


@pytest.mark.parametrize("spread", [0.0, 0.5])
def test_intervals_over_trainings_are_as_sure_as_they_say(spread):
    """Trainings and runs are drawn a thousand times; the true value lies in 95 % of the 95 % intervals."""
    rng, held = np.random.default_rng(0), np.zeros(2)
    for _ in range(1_000):
        one, other = (rng.normal(1, spread, (4, 1)) + rng.standard_normal((4, 8)) for _ in range(2))
        for at, interval, truth in ((0, mean_over_trainings(one), 1), (1, difference_over_trainings(other, one), 0)):
            held[at] += interval.low <= truth <= interval.high
    assert np.all(held > 930) and np.all(held < 985)


def test_a_training_that_diverged_leaves_no_interval():
    losses = np.array([[1.0, 2.0], [np.inf, 1.0]])
    assert not np.isfinite(mean_over_trainings(losses).mean)
    assert not np.isfinite(difference_over_trainings(losses, np.ones((2, 2))).high)
    assert not np.isfinite(difference_over_trainings(losses, losses).high)


def test_what_a_comparison_has_compiled_is_timed_without_compiling_it_again(monkeypatch):
    protocol = Protocol(3, runs=1, chunk=1)
    run_curves(SGD(0.1), Quadratic(2), protocol.keys[1], horizon=3, runs=1, chunk=1)
    monkeypatch.setattr(Program, "_compile", None)  # whatever were compiled now would raise
    assert len(seconds_per_step([SGD(0.2), SGD(0.3)], Quadratic(2), protocol)) == 2


@pytest.mark.slow
def test_a_contest_is_held_once(tmp_path):
    recipe = Recipe(4, 2, 2, 2, estimator=Replay(), validate_every=2, validation_runs=2)
    options = {"layers": (2,), "preprocess": Scaled()}
    contest = Contest(
        "tiny",
        "Something small",
        "quadratic",
        {"LSTM": lambda key: LSTM(key, **options), "LSTM+GAC": lambda key: GlobalLSTM(key, **options)},
        {"quick": recipe},
        {"quick": Protocol(4, runs=4, tuning_runs=2, second_order_runs=2, chunk=4)},
        {"quick": 2},
        bfgs=True,
    )
    task = task_in(tmp_path)
    results = hold(contest, task, tmp_path / "tiny")
    assert {"lstm", "lstm+gac", "adam", "lbfgs", "bfgs"} <= set(results["optimizers"])
    assert len(results["levels"]) == 3
    kept = load(tmp_path / "tiny" / "lstm-gac" / "optimizer.safetensors").manifest
    scores = kept.validation["by_seed"]
    assert kept.name == "paper/tiny-lstm-gac" and kept.training["seeds"] == [0, 1]
    assert scores[str(kept.training["chosen_seed"])] == min(scores.values()) and len(set(scores.values())) == 2
    assert "NTM" not in (tmp_path / "tiny" / "report.html").read_text()
    kept = json.loads((tmp_path / "tiny" / "results.json").read_text())
    kept["levels"][0]["ours"] = -1.0
    (tmp_path / "tiny" / "results.json").write_text(json.dumps(kept))
    assert hold(contest, task, tmp_path / "tiny")["levels"][0]["ours"] == -1.0


def test_the_lstms_of_long_runs_are_judged_by_the_baselines_and_shown_beside_their_teacher(tmp_path, monkeypatch):
    def evaluate(learned, *_, teacher, **__):
        assert teacher.learning_rate == pytest.approx(5.6e-3)
        losses = dict(zip(learned, (3.0, 0.5, 1.5), strict=True))
        rows = {"adam": {"kind": "hand-designed", "label": "Adam", "final": {"mean": 1.0}}}
        rows["adam (its teacher)"] = {"kind": "teacher", "label": "Adam (its teacher)", "final": {"mean": 0.25}}
        for name, loss in losses.items():
            final = dict.fromkeys(("mean", "low", "high"), loss)
            rows[name.lower()] = {"kind": "learned", "label": name, "final": final}
        return {"optimizers": rows, "configuration": {}, "seconds": {}}

    def learn(optimizer, family, recipe, *_, **__):
        trainings.append((optimizer, type(recipe.estimator)))
        return SimpleNamespace(optimizer=SGD(), best=SimpleNamespace(seconds=1.0))

    trainings: list[tuple[Optimizer, type]] = []
    monkeypatch.setattr(horizon, "evaluate", evaluate)
    monkeypatch.setattr(horizon, "train_or_read", learn)
    monkeypatch.setattr(horizon, "tune", lambda *_: ({}, 1.0))
    monkeypatch.setattr(horizon, "meta_training_results", lambda *_: None)
    monkeypatch.setattr(horizon, "write_report", lambda *_: None)
    results = horizon.HORIZON.carry_out(task_in(tmp_path))
    assert [estimator for _, estimator in trainings] == [Clone, Imitate]
    assert [type(begun_with) for begun_with, _ in trainings] == [LSTM, SGD]  # the second begins as the clone
    assert results["seconds"]["meta_training"] == 2.0
    lstm, cloned, learned = results["levels"]
    assert (lstm["what"].split(",")[0], lstm["reach"], lstm["reached"]) == ("LSTM", None, None)
    assert "best tuned baseline: Adam 1)" in cloned["what"] and (cloned["reach"], cloned["reached"]) == (1.0, True)
    assert learned["what"].startswith("LSTM, cloned, then learned") and not learned["reached"]


def test_what_is_found_of_a_case_is_kept_and_drawn_alike(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    found = {
        "coordinates": list(range(6)),
        "gradients": rng.standard_normal((6, 32)).tolist(),
        "updates": {"LSTM": rng.standard_normal((6, 32)).tolist()},
        "responses": {"gradients": np.linspace(-2, 2, 81).tolist(), "LSTM": rng.standard_normal((32, 81)).tolist()},
        "learning_rates": {"Adam": 0.0123},
        "configuration": {},
    }
    watched, drawn, task = [], [], task_in(tmp_path, resume=True)
    monkeypatch.setattr(update_shapes, "_watch", lambda case, task: watched.append(case.trained) or found)
    monkeypatch.setattr(update_shapes, "_draw_histories", lambda *given: drawn.append(given))
    monkeypatch.setattr(update_shapes, "_draw_responses", lambda *given: drawn.append(given))
    monkeypatch.setattr(Task, "finish", lambda self, study, results, statement, pictures: results | {"said": statement})
    for _ in range(2):
        results = update_shapes.UPDATE_SHAPES.carry_out(task)
        assert results["updates"] == found["updates"] and "Adam at 0.0123 (tuned)" in results["said"]
        (updates,), (swept, responses, grads) = drawn[-2:]
        np.testing.assert_array_equal(updates["LSTM"], np.array(found["updates"]["LSTM"]).T)
        np.testing.assert_array_equal(swept, found["responses"]["gradients"])
        np.testing.assert_array_equal(responses["LSTM"], found["responses"]["LSTM"])
        np.testing.assert_array_equal(grads, found["gradients"][-1])
    assert watched == ["paper/mnist"] and set(responses) == {"LSTM"}


def test_the_path_of_an_image_is_that_of_its_pixels():
    class Steep(ProblemFamily):
        def sample(self, key: PRNGKeyArray) -> tuple[()]:
            return ()

        def init(self, instance: tuple[()], key: PRNGKeyArray) -> Array:
            return jnp.zeros((2, 2, 3))

        def loss(self, params: Array, instance: tuple[()], key: PRNGKeyArray | None) -> Array:
            return jnp.sum(params * jnp.arange(12.0).reshape(2, 2, 3))

    grads = path_of(LSTM(jax.random.key(0), (2,)), Steep(), Protocol(3, runs=1))
    np.testing.assert_allclose(grads, np.tile(np.arange(12.0), (3, 1)))
    with pytest.raises(TypeError, match="not coordinatewise"):
        path_of(GlobalLSTM(jax.random.key(0), layers=(2,)), Steep(), Protocol(3, runs=1))


def test_updates_are_watched_where_the_trained_optimizers_were_trained():
    assert [case.trained for case in CASES["paper"]] == ["paper/mnist", "paper/style"]
    for case in (case for cases in CASES.values() for case in cases):
        assert case.trained in shipped_names() and case.family == EXPERIMENTS[case.trained.removeprefix("paper/")].name
        assert case.protocol.horizon == EXPERIMENTS[case.family].settings[0].horizon


def test_histories_and_responses_of_gradient_descent_are_lines():
    grads = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    np.testing.assert_allclose(history(SGD(0.5), grads), -0.5 * grads, rtol=1e-6)
    swept, responses = sweep({"SGD": SGD(0.5)}, grads[:, 0])
    np.testing.assert_allclose(responses["SGD"], np.tile(-0.5 * swept, (5, 1)), rtol=1e-5, atol=1e-7)


def test_responses_pass_through_the_updates_that_were_taken():
    grads = np.array([0.3, -0.2, 0.1, 0.25], np.float32)
    swept, responses = sweep({"Adam": Adam(0.1)}, grads)
    taken = history(Adam(0.1), grads[:, None])[:, 0]
    for step, update in enumerate(taken):
        assert np.interp(grads[step], swept, responses["Adam"][step]) == pytest.approx(update, abs=3e-3)


def test_coordinates_are_chosen_by_the_size_of_their_gradients():
    grads = np.arange(1, 201)[None, ::-1] * np.array([[1.0], [-1.0]])
    sizes = np.abs(grads[0, choose(grads, 3)])
    assert sizes[0] == pytest.approx(100, abs=1)
    assert sizes[-1] == pytest.approx(198, abs=1)
    assert list(sizes) == sorted(sizes)


def test_the_gradients_of_a_second_run_of_the_same_structure_are_not_compiled_again():
    traced, counts = [], []

    class Counted(ProblemFamily):
        minimum: Array

        def sample(self, key: PRNGKeyArray) -> tuple[()]:
            return ()

        def init(self, instance: tuple[()], key: PRNGKeyArray) -> Array:
            return jnp.zeros(2)

        def loss(self, params: Array, instance: tuple[()], key: PRNGKeyArray | None) -> Array:
            traced.append(self)
            return 0.5 * jnp.sum(jnp.square(params - self.minimum))

    recipe = Recipe(1, 1, 1, 1)
    for minimum in (2.0, 3.0):
        scale = gradient_scale(SGD(), Counted(jnp.full(2, minimum)), recipe)
        assert scale["0.5"] == pytest.approx(minimum)
        counts.append(len(traced))
    assert counts[0] == counts[1] > 0


def test_bfgs_reaches_the_minimum_of_quadratics():
    keys = jax.random.split(jax.random.key(0), 3)
    ours, limited = (np.asarray(curves(Quadratic(4), keys, 20)) for curves in (bfgs_curves, lbfgs_curves))
    np.testing.assert_array_equal(ours[:, 0], limited[:, 0])
    assert np.all(ours[:, -1] < 1e-4)
    assert np.all(np.diff(ours, axis=1) < 1e-6)


@pytest.mark.slow
def test_what_was_never_finite_on_held_out_instances_comes_back_untrained(tmp_path):
    class Risky(ProblemFamily):
        """Half of the instances have no finite loss but at the start."""

        def sample(self, key):
            return jax.random.uniform(key, (2,))

        def init(self, instance, key):
            return instance

        def loss(self, params, instance, key):
            lost = (instance[0] > 0.5) & jnp.any(params != instance)
            return jnp.where(lost, jnp.inf, jnp.sum(jnp.square(params)))

    optimizer = LSTM(jax.random.key(0), (2,))
    recipe = Recipe(2, 2, instances=8, meta_steps=1, estimator=NRES(0.01), clip=math.inf)
    trained = train(optimizer, Risky(), recipe, tmp_path, task_in(tmp_path).display, name="mine/risky")
    assert eqx.tree_equal(trained.optimizer, optimizer) and trained.best.area == math.inf
    manifest = load(tmp_path / "optimizer.safetensors").manifest
    assert manifest.validation == {"step": 0, "area": None, "final": None}
    assert manifest.training["recipe"]["clip"] is None
