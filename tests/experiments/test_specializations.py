"""Small networks, specialized for two objectives: what is made of the comparisons."""

import json
import math

import jax
import pytest

from bygrad.evaluation import strict_json
from bygrad.experiments import STUDIES
from bygrad.experiments.specializations import CASES, OBJECTIVES, levels_of
from bygrad.problems import HeldOut, check_family, find_family, hold_out


def results(ours: float, adam: float = 0.25, schedule: float = 0.5) -> dict[str, object]:
    worth = {"mean_loss": ours, "mean_loss_at_equal_seconds": 1.1 * ours, "final_loss": ours / 2}
    rivals = {"best_mean_loss": 1.0, "best_final_loss": 0.5}
    rows = {
        "adamwcosine": {"label": "AdamWCosine", "kind": "hand-designed", "final": {"mean": schedule}},
        "adam": {"label": "Adam", "kind": "hand-designed", "final": {"mean": adam}},
        "controller": {"label": "Controller", "kind": "learned", "final": {"mean": ours / 2}},
    }
    return {"specialization": worth | rivals, "optimizers": rows}


def test_training_is_held_against_the_best_baseline_in_steps_in_seconds_and_at_the_end():
    steps, seconds, end = levels_of("digits, 400 steps, training", results(0.7))
    assert [level["ours"] for level in (steps, seconds, end)] == pytest.approx([0.7, 0.77, 0.7])
    assert [level["reached"] for level in (steps, seconds, end)] == [True, True, False]
    assert levels_of("mnist, training", results(0.7))[-1]["reached"] is None
    assert not levels_of("mnist, training", results(0.85))[1]["reached"]


def test_held_out_loss_is_held_against_the_schedule_and_against_the_best():
    schedule, best = levels_of("mnist, validation", results(0.8))
    assert (schedule["ours"], schedule["reached"]) == (pytest.approx(0.8), True)
    assert (best["ours"], best["reached"]) == (pytest.approx(1.6), None)


def test_what_diverged_is_infinite_also_when_it_is_read_from_a_file():
    lost, won, both = (
        json.loads(json.dumps(strict_json(it)))
        for it in (results(math.inf), results(0.8, math.inf, math.inf), results(math.inf, math.inf, math.inf))
    )
    won["specialization"] |= {"best_mean_loss": None, "best_final_loss": None}
    for what in ("digits, 400 steps, training", "mnist, validation"):
        levels = levels_of(what, lost)
        assert all(math.isinf(level["ours"]) and not level["reached"] for level in levels)
        levels = levels_of(what, won)
        assert all(level["ours"] == 0 and level["reached"] is not False for level in levels)
    assert not levels_of("mnist, validation", both)[0]["reached"]


def test_every_family_can_hold_images_out():
    assert "specialize" in STUDIES and "validation" in OBJECTIVES
    assert len({case.name for case in CASES}) == len(CASES)
    for case in CASES:
        family = hold_out(find_family(case.family), case.held_out)
        assert 0 < case.held_out < len(family.images) / 2  # pyright: ignore[reportAttributeAccessIssue]
        check_family(HeldOut(family), jax.random.key(0))
