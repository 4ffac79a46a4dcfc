"""The transfer benchmark, carried out with an untrained stand-in, and what is made of its rows."""

import io
import json
from typing import Any

import jax
import numpy as np
import pytest
from rich.console import Console

from bygrad import artifacts
from bygrad.evaluation import strict_json
from bygrad.experiments import STUDIES, transfer, transfer_report
from bygrad.experiments.small_networks import perceptron
from bygrad.experiments.study import Task
from bygrad.experiments.transfer import RATES, carry_out_rows, choose, labels_of
from bygrad.experiments.transfer_report import BETTER_ADAM, CALIBRATED, SECOND_ORDER, aggregate, calibrate
from bygrad.experiments.transfer_rows import ROWS, Effort, LossTimes, images_of
from bygrad.optimizers import SGD, TRANSFER_BASELINES, Controller
from bygrad.problems import ImageData, check_family, load_images
from bygrad.workflows import Display
from bygrad.workflows.work import slug


def images() -> ImageData:
    data = load_images("mnist")
    return ImageData("some", data.x_train[:200], data.y_train[:200], data.x_test[:200], data.y_test[:200])


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_row_is_a_problem_with_held_out_data(row):
    data = images()
    if row.source == "cifar10":
        small = np.zeros((20, 32, 32, 3), np.uint8)
        data = ImageData("colours", small, data.y_train[:20], small, data.y_test[:20])
    families = [row.build(data, split) for split in ("train", "test")]
    assert jax.tree.structure(families[0]) == jax.tree.structure(families[1])
    if row.name in ("attention", "loss x 1000"):
        check_family(families[0], jax.random.key(0))


def test_rows_differ_in_what_they_say():
    assert len({slug(row.name) for row in ROWS}) == len(ROWS)
    assert ROWS[0].name == "base"
    assert RATES >= 12
    assert "transfer" in STUDIES


def test_trained_files_of_one_name_are_apart_from_each_other_and_from_the_baselines():
    names = ("general/controller", "a/mine.safetensors", "b/net.safetensors", "c/Net.safetensors", "d/adam.safetensors")
    assert labels_of(names) == {
        "general/controller": "general/controller",
        "mine": "a/mine.safetensors",
        **{name: name for name in names[2:]},
    }


def test_the_digests_are_those_of_the_files(monkeypatch, tmp_path):
    monkeypatch.setattr(transfer, "carry_out_rows", lambda task, effort, learned, digests: digests)
    task = Task(
        "quick", tmp_path, Display(Console(file=io.StringIO())), artifacts=("general/controller", "paper/mnist")
    )
    digests = {name: artifacts.load(artifacts.find(name)).manifest.digest for name in task.artifacts}
    digests |= {f"{it}, {how}": digests[it] for how in ("guarded", "guarded, trusted") for it in task.artifacts}
    assert STUDIES["transfer"].carry_out(task) == digests
    assert len(set(digests.values())) == 2


def test_a_loss_times_a_constant_has_the_same_start():
    family = perceptron(images(), "train")
    scaled = LossTimes(family, 1e3)
    params = scaled.init((), jax.random.key(0))
    key = jax.random.key(1)
    np.testing.assert_allclose(scaled.loss(params, (), key), 1e3 * family.loss(params, (), key), rtol=1e-6)


def test_rows_on_cifar10_need_its_images(tmp_path):
    assert set(images_of(ROWS, "mnist")) == {"mnist"}
    colours, labels = np.zeros((20, 32, 32, 3), np.uint8), np.arange(20, dtype=np.uint8) % 10
    np.savez(tmp_path / "c.npz", x_train=colours, y_train=labels, x_test=colours, y_test=labels)
    found = images_of(ROWS, f"mnist,{tmp_path / 'c.npz'}")
    assert found["cifar10"].x_train.shape == colours.shape
    assert set(images_of([row for row in ROWS if row.source == "mnist"], f"mnist,{tmp_path / 'c.npz'}")) == {"mnist"}


def test_a_rate_at_which_a_run_is_lost_is_not_chosen():
    assert choose(np.array([[1.0, np.nan], [3.0, 2.0], [2.0, 2.0]])) == 2


@pytest.mark.slow
def test_a_grid_goes_on_until_the_best_rate_is_within_it(tmp_path):
    """Gradient descent needs a rate that is a thousandth where the loss is times a thousand."""
    task = Task("quick", tmp_path, Display(Console(file=io.StringIO())))
    row = next(row for row in ROWS if row.name == "loss x 1000")
    measured = transfer._Measured(row, Effort(8, 1, 1, (row,)), images(), task)
    tuned = measured.baselines({"SGD": SGD})["optimizers"]["SGD"]
    losses, rates = np.asarray(tuned["mean"], float)[:, 0], np.asarray(tuned["rates"])
    assert len(rates) > 2 * RATES  # without and with a cosine
    assert rates.min() < rates[choose(losses[:, None])] < rates.max()
    keys = [
        set(map(tuple, np.asarray(jax.random.key_data(it)).tolist())) for it in (measured.tuning, measured.reported)
    ]
    assert list(map(len, keys)) == [1, 1] and not keys[0] & keys[1]


def test_a_row_with_larger_losses_does_not_decide_the_one_rate_for_all():
    rates = [1e-3, 1e-2]
    small, large = (
        {"optimizers": {"AdamWCosine": entry([[a] * 2, [b] * 2], rates)}} for a, b in ((1.0, 2.0), (2000.0, 1100.0))
    )
    assert calibrate({"small": small, "large": large}, "AdamWCosine") == 1e-3


def entry(mean: list[list[float]], rates: list[float] | None, kind: str = "hand-designed") -> dict[str, object]:
    """Losses `[rates, runs]` of an optimizer, the first run for tuning."""
    losses = np.asarray(mean)
    best = int(np.argmin(np.where(np.isfinite(losses[:, 0]), losses[:, 0], np.inf)))
    curves = np.repeat(losses[best, 1:, None], 5, axis=1)
    return strict_json(
        {"kind": kind, "rates": rates, "schedules": None if rates is None else ["constant"] * len(rates)}
        | {"tuning_runs": 1, "seconds": 1e-3, "curves": curves.tolist()}
        | {"curves_at_rates": np.repeat(losses[:, 1:, None], 4, axis=2).tolist()}
        | {measure: mean for measure in ("mean", "final", "test")}
    )


def rows(ours: float, adam: float, cosine: list[float]) -> dict[str, dict[str, Any]]:
    rates = [1e-3, 1e-2]
    easy = {
        "Ours": entry([[ours, ours, ours]], None, "learned"),
        "Adam": entry([[adam, adam, adam], [9.0, 9.0, 9.0]], rates),
        "AdamWCosine": entry([[rate, rate, rate] for rate in cosine], rates),
    }
    hard = {
        "Ours": entry([[2.0, 2.0, np.nan]], None, "learned"),
        "Adam": entry([[9.0, 9.0, 9.0], [1.0, 1.0, 1.0]], rates),
        "AdamWCosine": entry([[4.0, 4.0, 4.0], [1.5, 1.5, 1.5]], rates),
    }
    return {
        name: {"name": name, "axis": name, "horizon": 4, "final_window": 1, "optimizers": optimizers}
        for name, optimizers in (("easy", easy), ("hard", hard))
    }


def test_rows_are_put_together():
    found = aggregate(rows(ours=0.5, adam=1.0, cosine=[0.4, 0.8]), ["Ours"], outside=["hard", "not among them"])
    # One rate for both rows: 1e-2, since 4 x 0.4 is more than 1.5 x 0.8.
    assert found["calibrated"] == {"AdamWCosine": 1e-2}
    assert found["table"][CALIBRATED["AdamWCosine"]]["easy"]["mean"] == 0.8
    assert found["table"]["AdamWCosine"]["easy"]["mean"] == 0.4
    assert found["table"]["Adam"]["hard"] == {"mean": 1.0, "final": 1.0, "test": 1.0, "timed": 1.0} | {
        "seconds": 1e-3,
        "rate": 1e-2,
        "schedule": "constant",
    }
    # A lost run is an infinite mean, and loses the row.
    assert found["table"]["Ours"]["hard"]["mean"] == np.inf
    measures = ("mean", "final", "test", "timed")
    assert found["won"]["Ours"]["Adam"] == {key: {"rows": 1, "outside": 0} for key in measures}
    assert found["outside"] == 1
    # Ahead of Adam on the easy row, but not of the better of the two: who tunes would take that.
    assert found["won"]["Ours"][BETTER_ADAM] == {key: {"rows": 0, "outside": 0} for key in measures}
    assert found["aggregates"]["Ours"]["diverged"] == 0.25
    assert found["aggregates"]["Adam"]["mean"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert [level["reached"] for level in found["levels"]] == [False, False]
    assert [(level["ours"], level["low"], level["high"]) for level in found["levels"]] == [(0.5, 0.5, 0.5)] * 2


def test_losses_are_relative_to_those_from_the_same_key():
    table = rows(ours=1.0, adam=1.0, cosine=[1.0, 1.0])
    for scale, row in zip((1.0, 100.0), table.values(), strict=True):
        adam, ours = ([it * scale for it in losses] for losses in ([1.0, 2.0, 8.0], [1.0, 4.0, 4.0]))
        optimizers = row["optimizers"]
        optimizers["Adam"] |= {"mean": [adam, [1e3 * scale] * 3], "final": [adam, [1e3 * scale] * 3]}
        optimizers["Ours"] |= {"mean": [ours], "final": [[2 * it for it in adam]]}
    found = aggregate(table, ["Ours"])["aggregates"]
    assert found["Adam"]["mean"] == {"mean": 1.0, "low": 1.0, "high": 1.0}  # though its runs differ eightfold
    assert found["Ours"]["final"] == pytest.approx({"mean": 2.0, "low": 2.0, "high": 2.0})
    # The one run twice, the other half as much: alike. Those of a key are drawn together, of both rows or of none.
    assert found["Ours"]["mean"] == pytest.approx({"mean": 1.0, "low": 0.5, "high": 2.0})
    for row in table.values():
        row["optimizers"]["Adam"]["final"][0][2] = None
    lost = aggregate(table, ["Ours"])["aggregates"]
    assert lost["Ours"]["final"]["mean"] < 1 < lost["Adam"]["final"]["mean"] == np.inf


def test_schedule_free_stands_at_one_rate_too(tmp_path, monkeypatch):
    table = rows(ours=0.5, adam=1.0, cosine=[0.4, 0.8])
    without = aggregate(table, ["Ours"])
    column = CALIBRATED["ScheduleFree"]
    assert column not in without["table"] and column not in without["won"]["Ours"]
    table["easy"]["optimizers"]["ScheduleFree"] = entry([[0.3, 0.3, 0.3], [0.6, 0.6, 0.6]], [1e-3, 1e-2])
    table["hard"]["optimizers"]["ScheduleFree"] = entry([[1.0, 1.0, 1.0], [4.0, 4.0, 4.0]], [1e-3, 1e-2])
    found = aggregate(table, ["Ours"])
    assert found["calibrated"] == {"AdamWCosine": 1e-2, "ScheduleFree": 1e-3}
    assert found["table"][column]["easy"]["mean"] == 0.3
    assert found["won"]["Ours"][column]["mean"] == {"rows": 0, "outside": 0}
    assert found["levels"] == without["levels"]
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "results.json").write_text("{}")
    monkeypatch.setattr(transfer_report, "write_report", lambda results, folder: None)
    page = transfer_report.write_transfer_report(found, {"command": "bygrad reproduce transfer"}, tmp_path)
    assert "Schedule-Free at one rate for all rows" in page.read_text()


def test_shares_of_rows_have_the_interval_of_their_runs():
    table = rows(ours=0.5, adam=1.0, cosine=[0.4, 0.8])
    table["easy"]["optimizers"]["Ours"]["mean"] = [
        [0.5, 0.0, 1.8]
    ]  # below Adam in the mean, but not in half of its runs
    to_one_rate, to_adam = aggregate(table, ["Ours"])["levels"]
    assert (to_adam["ours"], to_adam["low"], to_adam["high"]) == (0.5, 0.0, 0.5)
    assert (to_one_rate["ours"], to_one_rate["low"], to_one_rate["high"]) == (0.0, 0.0, 0.5)


def test_every_measure_is_at_the_setting_that_tuned_best_for_it():
    table = rows(ours=1.0, adam=1.0, cosine=[1.0, 1.0])
    for row in table.values():
        row["optimizers"]["Adam"] |= {
            "schedules": ["constant", "cosine"],
            "mean": [[1.0, 5.0, 5.0], [2.0, 0.0, 0.0]],
            "final": [[2.0, 0.0, 0.0], [1.0, 7.0, 7.0]],
        }
    cell = aggregate(table, ["Ours"])["table"]["Adam"]["easy"]
    assert (cell["mean"], cell["final"], cell["schedule"]) == (5.0, 7.0, "constant")


def test_each_run_of_the_report_of_the_base_row_is_of_the_setting_of_its_mean(tmp_path):
    table = rows(ours=1.0, adam=1.0, cosine=[1.0, 1.0])
    adam = table["easy"]["optimizers"]["Adam"]
    adam |= {"mean": [[1.0, 5.0, 6.0], [2.0, 0.0, 0.0]], "final": [[2.0, 0.0, 0.0], [1.0, 7.0, 8.0]]}
    task = Task("quick", tmp_path, Display(Console(file=io.StringIO())))
    found = aggregate(table, ["Ours"])
    row = transfer._base_results(table, found, Effort(4, 1, 2, ROWS[:1]), {}, task)["optimizers"]["adam"]
    assert row["final"]["mean"] == 7.5
    assert row["each_run"]["final"] == [7.0, 8.0]


def test_who_takes_longer_takes_fewer_steps_in_the_time_of_adam():
    table = rows(ours=0.5, adam=1.0, cosine=[0.4, 0.8])
    for row in table.values():
        row["optimizers"]["Ours"] |= {"seconds": 2e-3, "curves": [[4.0, 2.0, 1.0, 1.0, 0.0]] * 2}
        # Runs of four steps at one rate, which is not the best of its row in the first, kept as two means of two.
        row["optimizers"]["AdamWCosine"] |= {"seconds": 2e-3, "curves_at_rates": [[[7.0, 7.0]] * 2, [[5.0, 3.0]] * 2]}
        row["optimizers"]["Adam"]["seconds"] = 1e-3
    found = aggregate(table, ["Ours"])
    assert found["table"]["Ours"]["easy"]["timed"] == 3.0
    assert found["calibrated"] == {"AdamWCosine": 1e-2}
    assert found["table"][CALIBRATED["AdamWCosine"]]["easy"]["timed"] == 5.0
    for row in table.values():  # in half the time of Adam, no more steps than there are
        row["optimizers"]["Ours"]["seconds"] = 5e-4
    assert aggregate(table, ["Ours"])["table"]["Ours"]["easy"]["timed"] == 2.0


def test_second_order_methods_are_rivals_of_their_own():
    table = rows(ours=0.5, adam=1.0, cosine=[1.0, 1.0])
    for row, loss in (("easy", 0.9), ("hard", 0.1)):
        table[row]["optimizers"]["L-BFGS"] = entry([[loss, loss, loss]], [1.0], "second-order")
    found = aggregate(table, ["Ours"])
    assert found["aggregates"]["L-BFGS"]["kind"] == "second-order"
    assert found["won"]["Ours"][SECOND_ORDER]["mean"] == {"rows": 1, "outside": 0}
    without = aggregate(rows(0.5, 1.0, [1.0, 1.0]), ["Ours"])
    assert found["won"]["Ours"][BETTER_ADAM] == without["won"]["Ours"][BETTER_ADAM]
    assert SECOND_ORDER not in without["won"]["Ours"]


def test_the_calibrated_rate_is_chosen_on_the_runs_for_tuning_alone():
    table = rows(ours=1.0, adam=1.0, cosine=[1.0, 1.0])
    for row in table.values():
        row["optimizers"]["AdamWCosine"]["mean"] = [[1.0, 9.0, 9.0], [2.0, 0.0, 0.0]]
    assert calibrate(table, "AdamWCosine") == 1e-3


@pytest.mark.slow
def test_it_runs_resumes_and_reports(tmp_path, monkeypatch):
    # One damping, and as many runs to tune on as to report, so that both are one program; where a grid ends, see above.
    # Two sizes of samples for one of the methods: each is a program that takes long to compile.
    monkeypatch.setattr(transfer, "EXTENSIONS", 0)
    methods = {name: methods for name, (_, methods) in transfer.second_order_methods().items()}
    few = {"L-BFGS": methods["L-BFGS"][:1], "Gauss-Newton": methods["Gauss-Newton"]}
    monkeypatch.setattr(
        transfer, "second_order_methods", lambda: {name: (np.full(1, 0.1), it) for name, it in few.items()}
    )
    text = io.StringIO()
    effort = Effort(4, 2, 2, (ROWS[0],))
    learned = {"stand-in": Controller(jax.random.key(0))}
    task = Task("quick", tmp_path / "out", Display(Console(file=text, width=200)), command="bygrad reproduce transfer")
    baselines = {name: TRANSFER_BASELINES[name] for name in ("Adam", "AdamWCosine")}
    results = carry_out_rows(task, effort, learned, {"stand-in": "untrained"}, baselines)
    assert set(results["optimizers"]) == {"stand-in", "adam", "adamwcosine"}
    row = json.loads((task.folder / "rows" / "base.json").read_text())
    ours = json.loads((task.folder / "rows" / "base-stand-in-untrained.json").read_text())
    timed = json.loads((task.folder / "rows" / "base-second-order.json").read_text())
    assert set(timed) == {"L-BFGS", "Gauss-Newton"}
    for name, batches in (("L-BFGS", (16,)), ("Gauss-Newton", (1, 8))):
        method = timed[name]
        assert np.shape(method["mean"]) == (len(batches), 4)
        assert set(method["schedules"]) == {f"{batch} minibatches" for batch in batches}
        steps = np.shape(method["curves"])[1] - 1
        assert 1 <= steps <= 4
        assert np.all(np.isfinite(method["curves"]))
    for name, entry in {"stand-in": ours, **row["optimizers"]}.items():
        # Two runs to tune on and two to report, the latter at all rates only where one is calibrated afterwards.
        shape = (1, 2) if name == "stand-in" else (len(entry["rates"]), 4)
        assert name != "AdamWCosine" or len(entry["rates"]) == RATES
        assert np.shape(entry["mean"]) == np.shape(entry["test"]) == shape
        measured = np.isfinite(np.asarray(entry["mean"], float))
        at_settings = {"stand-in": {1}, "AdamWCosine": {RATES}, "Adam": {1, 2, 3}}[name]
        assert measured[:, -2:].all(axis=1).sum() in at_settings
        assert measured[:, : entry["tuning_runs"]].all()
        assert np.shape(entry["curves"]) == (2, 5)
        assert entry["seconds"] > 0
    # In the report of the row, each measure is at the rate that was tuned for it.
    adam, reported = row["optimizers"]["Adam"], results["optimizers"]["adam"]
    for measure, key in (("final", "learning_rate"), ("mean", "area_learning_rate")):
        assert reported[key] == adam["rates"][choose(np.asarray(adam[measure], float)[:, :2])]
    at = choose(np.asarray(adam["final"], float)[:, :2])
    assert reported["final"]["mean"] == pytest.approx(np.mean(adam["final"][at][2:]))
    # An untrained controller is Adam at its rate, 3e-3, and beats nobody who is tuned.
    assert [level["what"][:19] for level in results["levels"]] == ["share of rows in wh"] * 2
    page = (task.folder / "report.html").read_text()
    assert "stand-in" in page and CALIBRATED["AdamWCosine"] in page and "<svg" in page
    # What was done is read and not run again.
    row["optimizers"]["Adam"]["seconds"] = 123.0
    (task.folder / "rows" / "base.json").write_text(json.dumps(row))
    resumed = Task(**{**vars(task), "resume": True})
    again = carry_out_rows(resumed, effort, learned, {"stand-in": "untrained"}, baselines)
    assert again["optimizers"]["adam"]["seconds_per_step"] == 123.0
    assert again["optimizers"]["stand-in"] == results["optimizers"]["stand-in"]
    with pytest.raises(ValueError, match="another experiment"):
        carry_out_rows(Task(**{**vars(resumed), "seed": 1}), effort, learned, {"stand-in": "untrained"}, baselines)
    # Of another file by that name, the same baselines tell.
    faster = {"stand-in": Controller(jax.random.key(0), learning_rate=3e-2)}
    retrained = carry_out_rows(resumed, effort, faster, {"stand-in": "retrained"}, baselines)
    assert retrained["optimizers"]["adam"] == again["optimizers"]["adam"]
    assert retrained["optimizers"]["stand-in"]["area"] != results["optimizers"]["stand-in"]["area"]


def test_learned_ones_get_the_time_of_the_adam_that_was_timed_beside_them():
    table = rows(ours=0.5, adam=1.0, cosine=[1.0, 1.0])
    for row in table.values():
        row["optimizers"]["Ours"] |= {"seconds": 2e-3, "curves": [[4.0, 2.0, 1.0, 1.0, 0.0]] * 2}
        row["optimizers"]["Adam"]["seconds"] = 1e-3
    assert aggregate(table, ["Ours"])["table"]["Ours"]["easy"]["timed"] == 3.0
    for row in table.values():  # measured on another day, when everything took twice as long
        row["optimizers"]["Ours"] |= {"seconds": 4e-3, "adam_seconds": 2e-3}
    assert aggregate(table, ["Ours"])["table"]["Ours"]["easy"]["timed"] == 3.0
