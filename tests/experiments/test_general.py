"""The controller that comes with the package: what it was trained on, and that it helps where it was not."""

import dataclasses
import io
import json
import math
import sys

import jax
import numpy as np
import pytest
from rich.console import Console

from bygrad.artifacts import find, load
from bygrad.deploy.jax import load as load_optimizer
from bygrad.evaluation import area, run_curves
from bygrad.experiments import Task
from bygrad.experiments.general import GENERAL, RECIPE, held_out, mixture
from bygrad.experiments.small_networks import perceptron
from bygrad.optimizers import Adam, Controller, declare
from bygrad.problems import ProblemFamily, describe_family, load_images
from bygrad.training import Log, MetaTrained, Validated, describe
from bygrad.workflows import Display


def test_the_seed_is_chosen_on_networks_that_the_mixture_has_none_of():
    def architecture(family: ProblemFamily) -> str:
        names = ("name", "layers", "hidden", "activation", "channels", "width", "window", "dimension")
        return str({name: value for name, value in describe_family(family).items() if name in names})

    members = mixture().members
    seen = set(map(architecture, members))
    assert len({str(describe_family(member)) for member in members}) == len(members) == len(mixture().weights)
    assert seen.isdisjoint(map(architecture, held_out().values()))


def test_the_shipped_controller_says_how_to_make_it_again():
    def given(settings: object) -> object:
        """Leave out what is none: a setting may be younger than the artifact."""
        if not isinstance(settings, dict):
            return settings
        return {name: given(value) for name, value in settings.items() if value is not None}

    training = load(find("general/controller")).manifest.training
    assert given(training["recipe"] | {"seed": None}) == given(describe(RECIPE) | {"seed": None})
    assert training["chosen_seed"] in training["seeds"]
    assert training["command"].startswith("bygrad reproduce general")
    assert len(training["mixture"]) == len(mixture().members)


def test_a_controller_that_diverges_where_it_is_judged_is_kept_all_the_same(tmp_path, monkeypatch):
    module = sys.modules[mixture.__module__]
    trained = MetaTrained(Controller(jax.random.key(0)), Validated(0, 1.0, 1.0, True, 0.0), Log(None))
    monkeypatch.setattr("bygrad.workflows.work.train", lambda *_, **__: trained)
    judged = []
    monkeypatch.setattr(module, "judge", lambda *_: judged.append(0) or {"deep": {"area": math.inf, "final": 0.5}})
    for resume in (False, True):
        GENERAL.carry_out(Task("quick", tmp_path, Display(Console(file=io.StringIO())), resume=resume))
        (scores,) = load(tmp_path / "controller.safetensors").manifest.validation["held_out"].values()
        assert scores == {"deep": {"area": None, "final": 0.5}}
        assert json.loads((tmp_path / "results.json").read_text())["chosen"] == 0
    assert len(judged) == 1  # what is judged is kept, infinite or not


def test_who_resumes_judges_the_seeds_that_are_not_judged_and_chooses_among_all(tmp_path, monkeypatch):
    module, judged = sys.modules[mixture.__module__], []
    starts = iter(range(10))
    monkeypatch.setattr(
        "bygrad.workflows.work.train",
        lambda *_, **__: MetaTrained(
            Controller(jax.random.key(next(starts))), Validated(0, 1.0, 1.0, True, 0.0), Log(None)
        ),
    )

    def judge(*_):
        judged.append(len(judged))
        if len(judged) == 3:
            raise KeyboardInterrupt
        return {"deep": {"area": float(len(judged)), "final": 1.0}}

    monkeypatch.setattr(module, "judge", judge)
    task = Task("paper", tmp_path, Display(Console(file=io.StringIO())))
    with pytest.raises(KeyboardInterrupt):
        GENERAL.carry_out(task)
    results = GENERAL.carry_out(dataclasses.replace(task, resume=True))
    assert len(judged) == 4 and results["chosen"] == 0
    assert [row["deep"]["area"] for row in results["scores"].values()] == [1.0, 2.0, 4.0]


@pytest.mark.parametrize("which", [pytest.param("small", marks=pytest.mark.slow), "inputs of one sign"])
def test_the_shipped_controller_beats_adam_on_networks_that_it_has_not_seen(which):
    small = perceptron(load_images("mnist"), layers=2, hidden=12, activation="elu", scale=0.2)
    family, horizon = {"small": small, "inputs of one sign": held_out()["24 x 24 pixels, inverted"]}[which], 150
    ours, *theirs = (
        run_curves(declare(it, horizon), family, jax.random.key(5), horizon=horizon, runs=4, chunk=4)[0]
        for it in (load_optimizer("general/controller"), Adam(1e-3), Adam(3e-3))
    )
    for curves in theirs:
        assert np.mean(area(ours)) < 0.9 * np.mean(area(curves))
        assert np.mean(ours[:, -10:]) < np.mean(curves[:, -10:])
