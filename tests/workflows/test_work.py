"""What the commands do beyond one function call."""

import numpy as np
import pytest

from bygrad.optimizers import SGD
from bygrad.problems import Quadratic
from bygrad.training import Recipe
from bygrad.workflows import work


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
