"""Comparing trained optimizers in a folder: several at a time, with the baselines asked for, and after a kill."""

import json

import pytest
from rich.console import Console

from bygrad.artifacts import ArtifactError
from bygrad.evaluation import Protocol
from bygrad.optimizers import BASELINES, SGD, Adam
from bygrad.problems import Quadratic
from bygrad.workflows import Display, evaluate_to_folder, tune

PROTOCOL = Protocol(2, runs=2, tuning_runs=1, second_order_runs=0, rates=3)
PAIR = ("paper/quadratic", "paper/quadratic-lstm-gac")


def quiet() -> Display:
    return Display(Console(quiet=True))


def test_how_long_tuning_took_is_kept_unless_it_was_interrupted(tmp_path):
    def seconds() -> float | None:
        return tune(Quadratic(2), PROTOCOL, tmp_path, quiet(), {"SGD": SGD, "Adam": Adam})[1]

    first = seconds()
    assert first is not None and first > 0 and seconds() == first
    tuned = json.loads((tmp_path / "tuning.json").read_text())
    (tmp_path / "tuning.json").write_text(json.dumps({"SGD": tuned["SGD"]}))  # as if it had been killed before Adam,
    (tmp_path / "seconds.json").unlink()  # and so before its end
    assert seconds() is None and seconds() is None


def test_several_go_by_their_own_names_and_run_on_the_same_instances(tmp_path):
    chosen = {name: BASELINES[name] for name in ("Adam", "Muon")}
    both = evaluate_to_folder(PAIR, "quadratic", PROTOCOL, tmp_path / "both", quiet(), baselines=chosen)
    assert list(both["optimizers"]) == [*PAIR, "adam", "muon"]
    alone = evaluate_to_folder(PAIR[1:], "quadratic", PROTOCOL, tmp_path / "one", quiet(), baselines=chosen)
    assert list(alone["optimizers"]) == ["globallstm", "adam", "muon"]
    assert alone["optimizers"]["globallstm"]["curve"] == both["optimizers"][PAIR[1]]["curve"]
    assert json.loads((tmp_path / "both" / "results.json").read_text())["optimizers"] == both["optimizers"]
    assert (tmp_path / "both" / "report.html").exists()


def without_times(results):
    return {name: {**row, "seconds_per_step": None} for name, row in results["optimizers"].items()}


@pytest.mark.parametrize("at", ["tuning Adam", "evaluating paper/quadratic-lstm-gac", "evaluating Adam"])
def test_an_interrupted_comparison_goes_on_and_ends_as_another(at, tmp_path, monkeypatch):
    chosen, display = {name: BASELINES[name] for name in ("SGD", "Adam")}, quiet()
    whole = evaluate_to_folder(PAIR, "quadratic", PROTOCOL, tmp_path / "whole", quiet(), baselines=chosen)
    seen = []

    def phase(what: str, done: int, total: int, note: str = "") -> None:
        seen.append(what)
        if what == at and len(set(seen)) > 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(Display, "phase", lambda self, *told: phase(*told))
    folder, arguments = tmp_path / "cut", (PAIR, "quadratic", PROTOCOL, tmp_path / "cut", display)
    with pytest.raises(KeyboardInterrupt):
        evaluate_to_folder(*arguments, baselines=chosen)
    assert not (folder / "results.json").exists()
    with pytest.raises(FileExistsError, match="--resume"):
        evaluate_to_folder(*arguments, baselines=chosen)
    done, seen[:] = set(seen) - {at}, []
    monkeypatch.setattr(Display, "phase", lambda self, what, *more: seen.append(what))
    resumed = evaluate_to_folder(*arguments, baselines=chosen, resume=True)
    assert without_times(resumed) == without_times(whole)
    assert not {it for it in done if it.startswith("evaluating")} & set(seen)  # nothing is run twice
    seen.clear()
    assert evaluate_to_folder(*arguments, baselines=chosen, resume=True) == resumed and not seen


def test_a_folder_of_another_comparison_is_refused_and_left_as_it_was(tmp_path):
    chosen = {"SGD": SGD}

    def run(artifacts=PAIR[:1], family="quadratic", protocol=PROTOCOL, **options):
        options = {"baselines": chosen, "resume": True} | options
        return evaluate_to_folder(artifacts, family, protocol, tmp_path / "it", quiet(), **options)

    run()
    before = {path.name: path.read_bytes() for path in (tmp_path / "it").iterdir()}
    for change, what in (
        ({"artifacts": PAIR[1:]}, "optimizers was"),
        ({"family": "quadratic-gaussian"}, "families was"),
        ({"protocol": Protocol(3, runs=2, tuning_runs=1, second_order_runs=0, rates=3)}, "protocol was"),
        ({"baselines": {"Adam": Adam}}, "baselines was"),
    ):
        with pytest.raises(ValueError, match=what):
            run(**change)
    assert {path.name: path.read_bytes() for path in (tmp_path / "it").iterdir()} == before


@pytest.mark.parametrize(
    ("artifacts", "error", "said"),
    [
        ((), ValueError, "No trained optimizer"),
        (("paper/quadratic", "paper/quadratic"), ValueError, "named twice"),
        (("paper/quadratic", "paper/nothing"), ArtifactError, "paper/nothing"),
    ],
)
def test_nothing_begins_with_names_that_cannot_be_compared(artifacts, error, said, tmp_path):
    with pytest.raises(error, match=said):
        evaluate_to_folder(artifacts, "quadratic", PROTOCOL, tmp_path / "it", quiet())
    assert not (tmp_path / "it").exists()
