"""Sigmoid to other activations: what is made of the comparisons."""

import numpy as np
import pytest

from bygrad.experiments import STUDIES
from bygrad.experiments.activations import LEARNED_ON, USED_ON, _level, _ratios, _sheet
from bygrad.problems import MLPClassifier, find_family


def row(kind: str, label: str, area: float | None, final: float) -> dict[str, object]:
    return {"kind": kind, "label": label, "area": {"mean": area}, "final": {"mean": final}}


def test_ratios_are_to_adam_and_to_the_best_and_a_lost_run_is_infinite():
    rows = {
        "controller": row("learned", "Controller", 200.0, 0.1),
        "adam": row("hand-designed", "Adam", 400.0, 0.2),
        "nesterov": row("hand-designed", "Nesterov", 100.0, 0.4),
    }
    mean, final = _ratios("relu", {"optimizers": rows})
    assert (mean["to_adam"], mean["to_best"], mean["best"]) == (0.5, 2.0, "Nesterov")
    assert (final["to_adam"], final["to_best"], final["best"]) == (0.5, 0.5, "Adam")
    assert _level(mean)["reached"]
    rows["controller"] = row("learned", "Controller", None, 0.3)
    mean, final = _ratios("relu", {"optimizers": rows})
    assert np.isinf(mean["to_adam"]) and not _level(mean)["reached"]
    assert final["to_adam"] == pytest.approx(1.5) and not _level(final)["reached"]


def test_every_cell_of_the_table_stands_below_its_heading():
    numbers = {"ours": 0.123, "best": "Nesterov", "to_adam": 0.5, "to_best": 2.0}
    sheet = _sheet([{"activation": "relu", "measure": "final", **numbers}])
    (cells,) = sheet.rows
    assert dict(zip(sheet.headings, cells, strict=True)) == {
        "activation": "relu",
        "loss": "final",
        "best baseline": "Nesterov",
        "ours": "0.123",
        "ours / tuned Adam": "0.50",
        "ours / best baseline": "2.00",
    }
    assert sheet.headings[sheet.text_columns] == "ours"


def test_the_networks_differ_in_the_activation_alone():
    assert "activations" in STUDIES
    trained = find_family(LEARNED_ON)
    assert isinstance(trained, MLPClassifier) and trained.activation == "sigmoid"
    for activation, name in USED_ON.items():
        used = find_family(name)
        assert isinstance(used, MLPClassifier) and used.activation == activation
        assert (used.hidden, used.layers, used.scale, used.batch) == (
            trained.hidden,
            trained.layers,
            trained.scale,
            trained.batch,
        )
        np.testing.assert_array_equal(used.images, trained.images)
