"""Small networks, specialized for two objectives: what is made of the comparisons."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bygrad.evaluation import Protocol, strict_json
from bygrad.experiments import STUDIES
from bygrad.experiments.specializations import CASES, OBJECTIVES, levels_of
from bygrad.optimizers import BASELINES, SGD
from bygrad.problems import HeldOut, MLPClassifier, ProblemFamily, Quadratic, check_family, find_family, hold_out
from bygrad.workflows.worth import LBFGS_RUNS, LBFGS_SAMPLE, lbfgs_in_time, rows_of, worth_of


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


def test_both_objectives_are_held_against_lbfgs_at_equal_seconds():
    found = results(0.8)
    second = {"second_order_at_equal_seconds": {"final_loss": 0.5}, "final_loss_at_equal_seconds": 0.4}
    found["specialization"] |= second  # pyright: ignore[reportOperatorIssue]
    for what, others in (("digits, training", 3), ("mnist, validation", 2)):
        *rest, lbfgs = levels_of(what, found)
        assert len(rest) == others and "L-BFGS" in lbfgs["what"]
        assert lbfgs["ours"] == pytest.approx(0.8) and lbfgs["reached"]


def test_ratios_have_the_intervals_of_the_losses_where_these_are_kept():
    found = results(0.8)
    assert {level["low"] for level in levels_of("digits, training", found)} == {None}
    ends = {"mean_loss": [0.6, 1.0], "mean_loss_at_equal_seconds": [0.7, None], "final_loss": [0.1, 0.5]}
    found["specialization"]["intervals"] = ends  # pyright: ignore[reportIndexIssue]
    steps, seconds, end = levels_of("digits, training", found)
    assert [(level["low"], level["high"]) for level in (steps, seconds, end)] == [(0.6, 1.0), (0.7, math.inf), (0.2, 1)]
    schedule, best = levels_of("mnist, validation", found)
    assert (schedule["low"], best["high"]) == (0.2, 2.0)


def test_what_is_worth_has_intervals_over_runs_in_steps_and_in_seconds():
    row = {"area": {"mean": 4.0, "low": 2.0, "high": 8.0}, "final": {"mean": 0.5, "low": 0.25, "high": 1.0}}
    rates = {"learning_rate": 0.01, "area_learning_rate": 0.01}
    rival = row | rates | {"label": "SGD", "kind": "hand-designed"}
    protocol = Protocol(4, runs=8, tuning_runs=1, second_order_runs=0)
    ours, rows = row | {"curve": [1.0] * 5}, {"sgd": rival}
    worth = worth_of(SGD(jnp.asarray(0.01)), ours, rows, BASELINES, Quadratic(2), protocol, 1.0)
    assert worth["intervals"]["mean_loss"] == [0.5, 2.0] and worth["intervals"]["final_loss"] == [0.25, 1.0]
    low, high = worth["intervals"]["mean_loss_at_equal_seconds"]
    assert 0 < low < worth["mean_loss_at_equal_seconds"] < high
    assert [(level["low"], level["high"]) for level in rows_of(worth)[:3]] == [(0.5, 2.0), (low, high), (0.25, 1.0)]


class Split(ProblemFamily):
    """A quadratic, with a minimum elsewhere on what is held out, and noise in its slope where `noise` is positive."""

    noise: float

    def sample(self, key):
        return jnp.arange(1.0, 4.0)

    def init(self, instance, key):
        return jax.random.normal(key, (3,))

    def loss(self, params, instance, key):
        slope = jnp.zeros(3) if key is None else self.noise * jax.random.normal(key, (3,))
        return 0.5 * jnp.sum((instance * (params - 1)) ** 2) + slope @ params

    def held_out_loss(self, params, instance, key):
        return 0.5 * jnp.sum(params**2)


@pytest.mark.slow
def test_lbfgs_solves_in_the_same_time_what_has_no_noise_and_knows_a_sample_of_the_rest():
    protocol = Protocol(30, runs=12, tuning_runs=1, second_order_runs=0)
    exact = lbfgs_in_time(Split(0.0), protocol, 60.0)
    assert (exact["minibatches"], exact["steps"], exact["runs"]) == (1, 30, LBFGS_RUNS)
    assert 0 <= exact["low"] <= exact["final_loss"] <= exact["high"] < 1e-9
    noisy = lbfgs_in_time(Split(0.4), protocol, 60.0)
    # The minimum of the sample is off by its mean slope over the curvature, so that the loss is off by the sum of
    # squares of noise / sqrt(minibatches) / curvature, halved.
    expected = 0.5 * 0.4**2 / LBFGS_SAMPLE * sum(1 / curvature**2 for curvature in (1, 2, 3))
    assert noisy["minibatches"] == LBFGS_SAMPLE and 0.2 * expected < noisy["final_loss"] < 5 * expected


@pytest.mark.slow
def test_lbfgs_knows_a_sample_of_what_begins_at_one_loss_for_all_minibatches():
    """A classifier from zero: the loss of every minibatch is the logarithm of the number of classes."""
    images = np.random.default_rng(0).integers(0, 256, (40, 4), dtype=np.uint8)
    labels = jnp.arange(40, dtype=jnp.int32) % 3
    family = MLPClassifier(jnp.asarray(images), labels, classes=3, layers=0, scale=0.0, batch=4)
    protocol = Protocol(2, runs=1, tuning_runs=1, second_order_runs=0)
    assert lbfgs_in_time(family, protocol, 60.0)["minibatches"] == LBFGS_SAMPLE


def test_lbfgs_descends_the_training_loss_where_it_is_judged_by_the_held_out_one():
    protocol = Protocol(30, runs=4, tuning_runs=1, second_order_runs=0)
    found = lbfgs_in_time(HeldOut(Split(0.0)), protocol, 60.0)
    assert found["final_loss"] == pytest.approx(1.5, rel=1e-4)  # that of ones, the minimum of the training loss


def test_held_out_loss_is_held_against_the_schedule_and_against_the_best():
    schedule, best = levels_of("mnist, validation", results(0.8))
    assert (schedule["ours"], schedule["reached"]) == (pytest.approx(0.8), True)
    assert (best["ours"], best["reached"]) == (pytest.approx(1.6), None)
    found = results(0.8)
    decayed = {"label": "AdamWCosine, decay 0.3", "kind": "hand-designed", "final": {"mean": 0.32}}
    found["optimizers"] |= {"adamwcosine, decay 0.3": decayed}  # pyright: ignore[reportOperatorIssue]
    schedule, _ = levels_of("mnist, validation", found)
    assert (schedule["ours"], schedule["reached"]) == (pytest.approx(1.25), False)


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


@pytest.mark.slow
def test_every_family_can_hold_images_out():
    assert "specialize" in STUDIES and "validation" in OBJECTIVES
    assert len({case.name for case in CASES}) == len(CASES)
    for case in CASES:
        family = hold_out(find_family(case.family), case.held_out)
        assert 0 < case.held_out < len(family.images) / 2  # pyright: ignore[reportAttributeAccessIssue]
        check_family(HeldOut(family), jax.random.key(0))
