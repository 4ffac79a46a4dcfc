"""What the commands do beyond one function call."""

import json

import numpy as np
import pytest
from rich.console import Console

from bygrad.evaluation import Protocol
from bygrad.optimizers import SGD, Adam
from bygrad.problems import Quadratic
from bygrad.training import Recipe
from bygrad.workflows import Display, work


def test_gradients_are_measured_where_a_run_starts_at_its_instance():
    class Anywhere(Quadratic):
        def init(self, instance, key):
            return instance[1]

    assert work.gradient_scale(SGD(0.01), Anywhere(3), Recipe(horizon=4, truncation=2))


@pytest.mark.parametrize(("entries", "pieces"), [(10_000, [100, 30]), (400, [10] * 13), (7, [1] * 130)])
def test_of_many_params_the_gradients_of_fewer_steps_are_held_together(entries, pieces, monkeypatch):
    """Ten params of four instances are forty entries a step."""
    taken, grads = [], work._grads

    def spied(fixed, inner, steps):
        taken.append(steps)
        return grads(fixed, inner, steps)

    told, recipe = [], Recipe(horizon=130, truncation=10)
    whole = work.gradient_scale(SGD(0.01), Quadratic(10), recipe)
    monkeypatch.setattr(work, "_grads", spied)
    monkeypatch.setattr(work, "ENTRIES", entries)
    found = work.gradient_scale(SGD(0.01), Quadratic(10), recipe, lambda *it: told.append(it))
    assert told == [("measuring gradients", sum(pieces[:i]), 130) for i in range(len(pieces))]
    assert taken == pieces
    if entries >= 130 * 40:  # all are looked at
        assert found == whole
    elif entries == 400:
        np.testing.assert_allclose(found["0.5"], whole["0.5"], rtol=0.5)


def test_how_long_tuning_took_is_kept_unless_it_was_interrupted(tmp_path):
    protocol = Protocol(2, runs=2, tuning_runs=1, second_order_runs=0, rates=3)

    def tune() -> float | None:
        return work.tune(Quadratic(2), protocol, tmp_path, Display(Console(quiet=True)), {"SGD": SGD, "Adam": Adam})[1]

    first = tune()
    assert first is not None and first > 0 and tune() == first
    tuned = json.loads((tmp_path / "tuning.json").read_text())
    (tmp_path / "tuning.json").write_text(json.dumps({"SGD": tuned["SGD"]}))  # as if it had been killed before Adam,
    (tmp_path / "seconds.json").unlink()  # and so before its end
    assert tune() is None and tune() is None
