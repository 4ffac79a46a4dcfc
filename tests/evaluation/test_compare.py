"""A comparison: what it holds, that it is fair, and that lost runs are counted."""

import dataclasses
import json
import math
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bygrad.evaluation import (
    Protocol,
    Tuning,
    best_baseline,
    compare,
    ratio_to_best,
    run_curves,
    strict_json,
    tune_baselines,
    tuned_levels,
)
from bygrad.evaluation.compare import summarize
from bygrad.optimizers import LSTM, SGD, AdamWCosine, Controller, Cosine, Guard
from bygrad.problems import ProblemFamily, Quadratic

FIELDS = {
    "kind",
    "label",
    "final",
    "area",
    "each_run",
    "curve",
    "curve_low",
    "curve_high",
    "area_curve",
    "area_curve_low",
    "area_curve_high",
    "learning_rate",
    "area_learning_rate",
    "seconds_per_step",
    "runs",
    "diverged",
    "note",
    "tuning",
}
PROTOCOL = Protocol(5, runs=6, second_order_runs=6, final_window=2, chunk=4)
RATES = {"SGD": (0.01, 0.02), "Nesterov": (0.01, 0.01), "Lion": (0.01, 0.01)}


def tuning(final: float, area: float) -> Tuning:
    """As if these rates had been found to be the best."""
    rates = np.array([final, area])
    return Tuning(rates, np.array([0.0, 1.0]), np.array([1.0, 0.0]) if final != area else np.array([0.0, 1.0]))


@pytest.fixture(scope="module")
def results() -> dict[str, dict[str, object]]:
    learned = {"LSTM": LSTM(jax.random.key(0), (3,)), "Lost": SGD(1e9)}
    tunings = {name: tuning(*rates) for name, rates in RATES.items()}
    return compare(learned, tunings, Quadratic(3), PROTOCOL)


def test_all_are_there_with_everything_that_a_report_needs(results):
    assert list(results) == ["lstm", "lost", *(name.lower() for name in RATES), "lbfgs"]
    for row in results.values():
        assert set(row) == FIELDS
        for measure in ("final", "area"):
            interval = row[measure]
            assert set(interval) == {"mean", "low", "high", "median"}
            assert interval["low"] <= interval["mean"] <= interval["high"]
        assert len(row["curve"]) == len(row["curve_low"]) == len(row["curve_high"]) == PROTOCOL.horizon + 1
        assert row["seconds_per_step"] > 0
    assert json.loads(json.dumps(strict_json(results), allow_nan=False)).keys() == results.keys()


def test_kinds_and_what_belongs_to_each(results):
    kinds = {name: row["kind"] for name, row in results.items()}
    assert {kinds[name] for name in ("lstm", "lost")} == {"learned"}
    assert {kinds[name.lower()] for name in RATES} == {"hand-designed"}
    assert kinds["lbfgs"] == "second-order"
    for name, row in results.items():
        tuned = kinds[name] == "hand-designed"
        assert (row["tuning"] is not None) == (row["learning_rate"] is not None) == tuned
        assert row["runs"] == 6
    assert results["sgd"]["tuning"]["learning_rates"] == [0.01, 0.02]


def test_all_start_from_the_same_loss(results):
    starts = {name: row["curve"][0] for name, row in results.items()}
    assert len({round(start, 5) for start in starts.values()}) == 1, starts


def test_numbers_agree_with_each_other(results):
    for name, row in results.items():
        if name != "lost":
            assert row["final"]["mean"] == pytest.approx(np.mean(row["curve"][-2:]), rel=1e-6)
            areas = row["area_curve"] or row["curve"]
            assert row["area"]["mean"] == pytest.approx(np.sum(areas[:-1]), rel=1e-6)
            for measure, each in row["each_run"].items():
                assert len(each) == row["runs"]
                assert row[measure]["mean"] == pytest.approx(np.mean(each), rel=1e-6)


def test_each_measure_sees_a_baseline_at_its_best(results):
    row = results["sgd"]
    assert (row["learning_rate"], row["area_learning_rate"]) == (0.01, 0.02)
    assert row["curve"] != row["area_curve"]
    low, mean, high = (np.array(row[f"area_curve{end}"]) for end in ("_low", "", "_high"))
    assert np.all((low < mean) & (mean < high))
    same = results["nesterov"]
    for end in ("", "_low", "_high"):
        assert same[f"curve{end}"] == pytest.approx(same[f"area_curve{end}"])


def test_a_protocol_may_save_the_second_run(results):
    protocol = dataclasses.replace(PROTOCOL, second_order_runs=0, area_rates=False)
    row = compare({}, {"SGD": tuning(*RATES["SGD"])}, Quadratic(3), protocol)["sgd"]
    assert (row["learning_rate"], row["area_learning_rate"], row["area_curve"]) == (0.01, None, None)
    assert row["curve"] == pytest.approx(results["sgd"]["curve"])


class Halved(SGD):
    """Gradient descent by half of the learning rate: a baseline of the user's own."""

    def transformation(self):
        return optax.sgd(0.5 * self.learning_rate)


def test_a_baseline_of_ones_own_is_compared_where_its_class_is_given(results):
    protocol, own = dataclasses.replace(PROTOCOL, second_order_runs=0, area_rates=False), {"Mine": Halved}
    given = {"Mine": tuning(0.02, 0.02)}
    row = compare({}, given, Quadratic(3), protocol, baselines=own)["mine"]
    assert (row["kind"], row["label"], row["learning_rate"]) == ("hand-designed", "Mine", 0.02)
    assert row["curve"] == pytest.approx(results["sgd"]["curve"])
    keys, told = protocol.keys[1][None], []
    levels = tuned_levels(given, Quadratic(3), keys, "final", protocol, lambda *it: told.append(it), baselines=own)
    assert told == [("running Mine as tuned", 0, 1)]
    sgd = tuned_levels({"SGD": tuning(0.01, 0.01)}, Quadratic(3), keys, "final", protocol)
    assert levels == {"Mine": pytest.approx(sgd["SGD"])}
    with pytest.raises(ValueError, match="Mine is tuned, but is none of the baselines SGD, Nesterov"):
        compare({}, given, Quadratic(3), protocol)


def test_a_lost_run_is_infinite_in_the_median_too():
    curves = np.array([[1.0, 0.5], [1.0, 0.25], [1.0, np.nan]])
    row = summarize("learned", "some", curves, 0.0, dataclasses.replace(PROTOCOL, horizon=1, final_window=1))
    assert (row["final"]["mean"], row["final"]["median"]) == (math.inf, 0.5)


def test_lost_runs_are_counted_and_make_the_mean_infinite(results):
    assert results["lost"]["diverged"] == 6
    assert results["lost"]["final"]["mean"] == math.inf
    assert all(row["diverged"] == 0 for name, row in results.items() if name != "lost")
    plain = strict_json(results)
    assert plain["lost"]["final"]["mean"] is None


class NeedsKey(ProblemFamily):
    def sample(self, key):
        return ()

    def init(self, instance, key):
        return jax.random.normal(key, (3,))

    def loss(self, params, instance, key):
        return jnp.sum((params - jax.random.normal(key, (3,))) ** 2)


@pytest.mark.parametrize(
    ("family", "runs"), [(NeedsKey(), 2), (Quadratic(3), 0)], ids=["no objective", "not asked for"]
)
def test_second_order_is_left_out(family, runs):
    protocol = Protocol(2, runs=2, second_order_runs=runs)
    assert list(compare({"LSTM": LSTM(jax.random.key(0), (3,))}, {}, family, protocol)) == ["lstm"]


def test_fresh_instances_are_not_those_of_the_tuning():
    keys = [key for seed in (0, 1) for key in Protocol(1, seed=seed).keys]
    assert len({tuple(np.asarray(jax.random.key_data(key)).tolist()) for key in keys}) == 4


def test_the_best_baseline_is_hand_designed_and_finite():
    def row(kind: str, final: float, area: float) -> dict[str, object]:
        return {"kind": kind, "label": f"{kind} {final}", "final": {"mean": final}, "area": {"mean": area}}

    rows = {
        "a": row("learned", 0.1, 0.1),
        "b": row("hand-designed", 3.0, 20.0),
        "c": row("hand-designed", 2.0, 30.0),
        "d": row("hand-designed", math.nan, math.inf),
        "e": row("second-order", 0.0, 0.0),
    }
    assert best_baseline(rows, "final") == ("hand-designed 2.0", 2.0)
    assert best_baseline(rows, "area") == ("hand-designed 3.0", 20.0)


def test_a_ratio_to_the_best_is_that_of_pairs_of_runs():
    def row(kind: str, *finals: float) -> dict[str, object]:
        return {"kind": kind, "label": kind, "each_run": {"final": finals}} | {
            "final": {"mean": np.mean(finals), "low": min(finals), "high": max(finals)}
        }

    rows = {"lstm": row("learned", 0.5, 5.0, 50.0), "adam": row("hand-designed", 1.0, 10.0, 100.0)}
    assert ratio_to_best(rows, "lstm", "final") == ("hand-designed", (0.5, 0.5, 0.5))
    del rows["adam"]["each_run"]  # as in older records
    _, ratio = ratio_to_best(rows, "lstm", "final")
    assert ratio == pytest.approx((0.5, 0.5 / 37, 50 / 37))


@pytest.mark.parametrize("learned", [["Adam"], ["a", "A"], ["LBFGS"]], ids=str)
def test_no_optimizer_is_taken_for_another(learned):
    with pytest.raises(ValueError, match="More than one optimizer would be called"):
        compare(dict.fromkeys(learned, SGD(0.1)), {"Adam": tuning(0.1, 0.1)}, Quadratic(3), PROTOCOL)


def test_a_teacher_runs_over_the_horizon_as_it_is_and_is_no_baseline(results):
    protocol = dataclasses.replace(PROTOCOL, second_order_runs=0)
    rows = compare({}, {"SGD": tuning(*RATES["SGD"])}, Quadratic(3), protocol, teacher=AdamWCosine(0.3))
    row = rows["adamwcosine (its teacher)"]
    ended, _ = run_curves(AdamWCosine(0.3, horizon=5), Quadratic(3), protocol.keys[1], horizon=5, runs=6, chunk=4)
    assert row["curve"] == pytest.approx(ended.mean(axis=0), rel=1e-5)
    assert (row["kind"], row["tuning"], row["learning_rate"]) == ("teacher", None, None)
    assert "learning_rate 0.3" in row["note"]
    assert best_baseline(rows, "final")[0] == "SGD"


@pytest.mark.parametrize(
    ("teacher", "told"),
    [
        (Controller(jax.random.key(0), hidden=2, learning_rate=0.02), r" \(horizon 5, learning_rate 0\.02\)\."),
        (Cosine(SGD(0.3)), r" \(horizon 5\)\."),
        (Guard(SGD(0.3), SGD(0.1)), r"\."),
    ],
    ids=lambda it: type(it).__name__,
)
def test_a_teacher_of_any_kind_is_told_by_its_numbers(teacher, told):
    protocol = dataclasses.replace(PROTOCOL, second_order_runs=0)
    row = compare({}, {}, Quadratic(3), protocol, teacher=teacher)[f"{type(teacher).__name__} (its teacher)".lower()]
    assert re.match(f"Imitated in meta-training{told}", row["note"])
    expected, _ = run_curves(teacher, Quadratic(3), protocol.keys[1], horizon=5, runs=6, chunk=4)
    assert row["curve"] == pytest.approx(expected.mean(axis=0), rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"horizon": 0}, "horizon is 0"),
        ({"runs": 0}, "runs is 0"),
        ({"runs": 10**20}, "runs is 100000000000000000000, which nothing counts to. Give at most 2,147,483,647."),
        ({"tuning_runs": 0}, "tuning_runs is 0"),
        ({"chunk": 0}, "chunk is 0"),
        ({"final_window": 0}, "final_window is 0"),
        ({"final_window": 6}, "final_window is 6, longer than the horizon of 5"),
        ({"second_order_runs": -1}, "second_order_runs=-1"),
        ({"confirming_runs": -1}, "confirming_runs=-1"),
        ({"rate_scale": -1.0}, "rate_scale is -1.0"),
        ({"rate_scale": math.nan}, "rate_scale is nan"),
        ({"rates_at_once": 0}, "rates_at_once is 0"),
    ],
    ids=str,
)
def test_a_protocol_that_cannot_work_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Protocol(**{"horizon": 5} | settings)


PARTS = """
import bygrad, numpy

for settings in ({"horizon": 5.0}, {"horizon": True}, {"runs": 2.5}, {"final_window": 1.5}, {"second_order_runs": 1.5},
                 {"rates_at_once": 1.5}, {"seed": 1.5}, {"chunk": "4"}, {"rates_at_once": None},
                 {"rates_at_once": numpy.int32(2)}):
    try:
        print(bygrad.Protocol(**{"horizon": 5} | settings).rates_at_once)
    except TypeError as error:
        print(error)
try:
    bygrad.specialize(bygrad.Quadratic(2), horizon=400.0)
except TypeError as error:
    print(error)
"""


@pytest.mark.slow
def test_what_counts_something_is_a_whole_number(tmp_path):
    """In a process of its own, as annotations are not checked for a user."""
    done = subprocess.run([sys.executable, "-c", PARTS], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = ("horizon is 5.0", "horizon is True", "runs is 2.5", "final_window is 1.5", "second_order_runs is 1.5")
    told += ("rates_at_once is 1.5", "seed is 1.5", "chunk is '4'")
    said = [f"{it}, which is no whole number. Give one." for it in told]
    assert done.stdout.splitlines() == [*said, "None", "2", "horizon is 400.0, which is no whole number. Give one."]
    assert not list(tmp_path.iterdir())


def test_curves_that_do_not_fit_into_memory_are_refused_before_anything_is_tuned():
    protocol = Protocol(100_000, runs=2_000_000_000)
    for call in (tune_baselines, lambda *given: compare({}, {}, *given)):
        with pytest.raises(MemoryError, match="2,000,000,000 runs of 100,000 steps take"):
            call(Quadratic(2), protocol)


def test_baselines_are_judged_on_other_instances_than_they_were_tuned_on(monkeypatch):
    module, keys = sys.modules["bygrad.evaluation.compare"], {}

    def spied(name, real):
        def spy(optimizer, family, key, **options):
            keys.setdefault(name, set()).add(tuple(np.asarray(jax.random.key_data(key)).tolist()))
            return real(optimizer, family, key, **options)

        monkeypatch.setattr(module, name, spy)

    spied("tune", module.tune)
    spied("run_curves", module.run_curves)
    protocol = Protocol(3, runs=2, tuning_runs=2, second_order_runs=0, final_window=1, chunk=2)
    tunings = tune_baselines(Quadratic(2), protocol, {"SGD": SGD})
    compare({}, tunings, Quadratic(2), protocol, baselines={"SGD": SGD})
    assert len(keys["tune"]) == len(keys["run_curves"]) == 1 and not keys["tune"] & keys["run_curves"]
