"""The ablation of what helps on ReLU networks: its table, and that all its ways of training spend alike."""

import jax
import pytest

from bygrad.experiments import STUDIES
from bygrad.experiments.repairs import RECIPES, REPAIRS, finals, rows_of
from bygrad.training import Curriculum


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
