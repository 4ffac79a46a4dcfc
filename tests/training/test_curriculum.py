"""The curriculum: who goes on to the next stage, when a stage ends, and that nothing is done twice."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pytest

from bygrad.metagrads import FullES
from bygrad.optimizers import SGD, Nesterov
from bygrad.problems import Quadratic
from bygrad.training import Curriculum, Recipe, Stepped, learn_by_curriculum
from bygrad.unroll import loss_curves

FAMILY = Quadratic(2)
RECIPE = Recipe(truncation=2, instances=2, meta_steps=2, meta_learning_rate=5e-3, validation_runs=2)
CURRICULUM = Curriculum(RECIPE, horizons=(2, 4, 8), rounds=3, patience=1, runs=2, late=0.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("curriculum")


@pytest.fixture(scope="module")
def graduated(folder):
    return learn_by_curriculum(SGD(0.02), FAMILY, CURRICULUM, folder=folder)


def test_what_comes_before_comes_once():
    curriculum = Curriculum(dataclasses.replace(RECIPE, before=RECIPE), horizons=(2, 4, 8))
    before = {(stage, round_): curriculum.recipe_of(stage, round_).before for stage in (0, 1) for round_ in (1, 2)}
    assert [place for place, recipe in before.items() if recipe is not None] == [(0, 1)]


def test_each_stage_is_judged_by_the_next_horizon_and_ends_when_nothing_comes(graduated):
    for stage, (horizon, judged_by) in enumerate(((2, 4), (4, 8))):
        course = [it for it in graduated.rounds if it.stage == stage]
        assert [it.round for it in course] == list(range(len(course)))
        assert {(it.horizon, it.judged_by) for it in course} == {(horizon, judged_by)}
        best = np.inf
        for it in course:
            assert it.best == (it.loss < best)
            best = min(best, it.loss)
        assert len(course) == 1 + CURRICULUM.rounds or not course[-1].best
        assert all(it.best for it in course[:-1])  # the patience is 1
    assert {it.stage for it in graduated.rounds} == {0, 1}


def test_the_best_of_the_last_stage_comes_out(graduated):
    best = min(it.loss for it in graduated.rounds if it.stage == 1)
    keys = jax.random.split(jax.random.key(RECIPE.seed), 2)
    late = loss_curves(graduated.optimizer, FAMILY, keys, 8)[:, -4:]
    np.testing.assert_allclose(np.mean(late), best, rtol=1e-6)
    start = next(it for it in graduated.rounds if it.stage == 1)
    assert best <= start.loss
    assert float(graduated.optimizer.learning_rate) > 0.02  # small steps are what there is to learn from


def test_resuming_repeats_nothing_and_gives_the_same(graduated, folder):
    events = []
    again = learn_by_curriculum(SGD(0.02), FAMILY, CURRICULUM, folder=folder, resume=True, watch=events.append)
    assert again.rounds == graduated.rounds
    np.testing.assert_array_equal(again.optimizer.learning_rate, graduated.optimizer.learning_rate)
    assert not any(isinstance(event, Stepped) for event in events)


def test_another_curriculum_and_a_used_folder_are_refused(graduated, folder):
    with pytest.raises(FileExistsError, match="already holds a curriculum"):
        learn_by_curriculum(SGD(0.02), FAMILY, CURRICULUM, folder=folder)
    other = Curriculum(RECIPE, horizons=(2, 4), runs=2)
    for changed, optimizer, family, curriculum in (
        ("curriculum", SGD(0.02), FAMILY, other),
        ("family", SGD(0.02), Quadratic(3), CURRICULUM),
        ("optimizer", Nesterov(0.02), FAMILY, CURRICULUM),
    ):
        with pytest.raises(ValueError, match=rf"is another one \({changed} differ"):
            learn_by_curriculum(optimizer, family, curriculum, folder=folder, resume=True)


def test_a_folder_of_before_says_nothing_of_the_family_and_goes_on(graduated, folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    found = json.loads((copy / "curriculum.json").read_text())
    (copy / "curriculum.json").write_text(json.dumps({name: found[name] for name in ("curriculum", "losses")}))
    again = learn_by_curriculum(SGD(0.02), FAMILY, CURRICULUM, folder=copy, resume=True)
    assert again.rounds == graduated.rounds


def test_there_must_be_something_to_resume_and_nothing_is_resumed_unasked(graduated, folder, tmp_path):
    with pytest.raises(ValueError, match="no folder is given"):
        learn_by_curriculum(SGD(0.02), FAMILY, CURRICULUM, resume=True)
    with pytest.raises(FileNotFoundError, match=r"There is no curriculum in .*Start without resume"):
        learn_by_curriculum(SGD(0.02), FAMILY, CURRICULUM, folder=tmp_path / "empty", resume=True)
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "curriculum.json").unlink()
    with pytest.raises(FileExistsError, match="already holds a meta-training"):
        learn_by_curriculum(SGD(0.02), FAMILY, CURRICULUM, folder=copy)


def test_ctrl_c_does_not_wait_for_a_judgement_and_what_it_ends_can_be_resumed(graduated, tmp_path, monkeypatch):
    over = threading.Event()

    def stuck(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        over.wait(60)

    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("bygrad.training.curriculum.compiled_loss_curves", stuck)
            learn_by_curriculum(SGD(0.02), FAMILY, CURRICULUM, folder=tmp_path)
        assert not over.is_set()
    finally:
        signal.signal(signal.SIGINT, handler)
        over.set()
    again = learn_by_curriculum(SGD(0.02), FAMILY, CURRICULUM, folder=tmp_path, resume=True)
    assert again.rounds == graduated.rounds


@pytest.mark.parametrize("horizons", [(2,), (4, 2), (3, 6)])
def test_horizons_that_do_not_grow_are_refused(horizons):
    with pytest.raises(ValueError, match="a curriculum needs at least two"):
        Curriculum(RECIPE, horizons=horizons)


def test_an_optimizer_that_diverges_goes_in_and_a_better_one_comes_out(tmp_path):
    """A rate far above 2 over the curvature: runs of the next horizon overflow, which counts as infinitely bad."""
    curriculum = Curriculum(RECIPE, horizons=(2, 60), rounds=1, runs=2)
    graduated = learn_by_curriculum(SGD(80.0), FAMILY, curriculum, folder=tmp_path)
    assert graduated.rounds[0].loss == np.inf
    assert not graduated.rounds[0].best
    again = learn_by_curriculum(SGD(80.0), FAMILY, curriculum, folder=tmp_path, resume=True)
    assert again.rounds == graduated.rounds


def test_what_only_a_later_stage_cannot_do_is_told_before_the_first(tmp_path):
    curriculum = dataclasses.replace(CURRICULUM, recipe=dataclasses.replace(RECIPE, estimator=FullES()))
    with pytest.raises(ValueError, match="FullES looks at whole runs, but the truncation is 2 and the horizon 4"):
        learn_by_curriculum(SGD(0.02), FAMILY, curriculum, folder=tmp_path)
    assert not list(tmp_path.iterdir())


NUMPYS = """
import sys
import numpy as np, bygrad
from bygrad.training import Curriculum, learn_by_curriculum

recipe = bygrad.Recipe(truncation=np.int64(2), instances=2, meta_steps=1, validation_runs=2)
curriculum = Curriculum(recipe, horizons=tuple(np.array([2, 4])), rounds=np.int64(1), runs=2, late=np.float32(0.5))
for resume in (False, True):
    print(learn_by_curriculum(bygrad.Adam(), bygrad.Quadratic(2), curriculum, folder=sys.argv[1], resume=resume).rounds)
"""


@pytest.mark.slow
def test_numbers_may_be_numpys(tmp_path):
    """In a process of its own, as annotations are not checked for a user."""
    done = subprocess.run(
        [sys.executable, "-W", "error:A JAX array is being set as static", "-c", NUMPYS, tmp_path / "run"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    first, again = done.stdout.splitlines()
    assert first == again
