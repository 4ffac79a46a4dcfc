"""The ablation of what helps on ReLU networks: its table, and that all its ways of training spend alike."""

from types import SimpleNamespace

import equinox as eqx
import jax
import pytest
from rich.console import Console

from bygrad.deploy.jax import export
from bygrad.experiments import STUDIES, Task, repairs
from bygrad.experiments.repairs import RECIPES, REPAIRS, finals, rows_of
from bygrad.optimizers import LSTM
from bygrad.training import Curriculum
from bygrad.workflows import Display


def row(kind: str, label: str, mean: float | None) -> dict[str, object]:
    return {"kind": kind, "label": label, "final": {"mean": mean, "low": mean, "high": mean}}


def test_a_row_has_a_loss_and_a_ratio_to_the_best_tuned_baseline():
    rows = {
        "lstm": row("learned", "LSTM", 0.3),
        "other": row("learned", "other", None),
        "adam": row("hand-designed", "Adam", 0.2),
        "sgd": row("hand-designed", "SGD", 0.4),
    }
    found = finals(rows)
    assert found["best baseline"] == {"label": "Adam", "mean": 0.2} and set(found) == {"LSTM", "other", "best baseline"}
    table = {label: cells for label, *cells in rows_of({"ReLU": found})}
    assert table["LSTM"] == ["0.300 [0.300, 0.300]", "1.50"]
    assert table["other"] == ["diverges", "–"]
    assert table["best baseline"] == ["0.200 (Adam)", "1.00"]


@pytest.mark.parametrize("label", ["LSTM", "LSTM+curriculum"])
def test_what_is_trained_is_read_and_not_trained_again(label, tmp_path, monkeypatch):
    trained, calls = LSTM(jax.random.key(1), (2,)), []

    def keep(optimizer, family, recipe, folder, display, *, name):
        calls.append(False)
        export(trained, folder / "optimizer.safetensors", name=name, training={}, validation={})
        return SimpleNamespace(optimizer=trained)

    def learn(*_, resume, **__):
        calls.append(resume)
        return SimpleNamespace(optimizer=trained)

    monkeypatch.setattr(repairs, "train_or_read", keep)
    monkeypatch.setattr(repairs, "learn_by_curriculum", learn)
    task = Task("quick", tmp_path, Display(Console(quiet=True)))
    for _ in range(2):
        assert eqx.tree_equal(repairs._train(label, REPAIRS[label], RECIPES["quick"], tmp_path / "0", task), trained)
    assert calls == [False]


@pytest.mark.parametrize("budget", RECIPES)
def test_a_curriculum_spends_no_more_meta_steps_than_the_others(budget):
    assert "relu" in STUDIES
    recipe = RECIPES[budget]
    for repair in REPAIRS.values():
        assert repair.build(jax.random.key(0)).per_coordinate
        if repair.horizons is not None:
            stages = len(repair.horizons) - 1
            assert recipe.meta_steps % stages == 0
            Curriculum(recipe, repair.horizons, rounds=1)
