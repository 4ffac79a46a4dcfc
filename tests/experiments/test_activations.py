"""Sigmoid to other activations: what is made of the comparisons."""

import numpy as np
import pytest
from rich.console import Console

from bygrad.experiments import STUDIES, Task, activations
from bygrad.experiments.activations import LEARNED, LEARNED_ON, RECOMMENDED, USED_ON, _level, _sheet, ratios
from bygrad.optimizers import SGD
from bygrad.problems import MLPClassifier, find_family
from bygrad.workflows import Display, Specialized


def row(kind: str, label: str, area: float | None, final: float) -> dict[str, object]:
    """Of two runs, one easier and one harder by a fifth."""
    each = {"area": [None, None] if area is None else [0.8 * area, 1.2 * area], "final": [0.8 * final, 1.2 * final]}
    return {"kind": kind, "label": label, "area": {"mean": area}, "final": {"mean": final}, "each_run": each}


def rows_with(area: float | None, final: float) -> dict[str, dict[str, object]]:
    return {
        "one network": row("learned", "one network", 800.0, 0.8),
        "four networks": row("learned", "four networks", area, final),
        "adam": row("hand-designed", "Adam", 400.0, 0.2),
        "nesterov": row("hand-designed", "Nesterov", 100.0, 0.4),
    }


def test_ratios_are_to_adam_and_to_the_best_and_a_lost_run_is_infinite():
    *one, mean, final = ratios("relu", rows_with(200.0, 0.1))
    assert [(it["learned_on"], it["to_adam"]) for it in one] == [
        ("one network", pytest.approx(2.0)),
        ("one network", pytest.approx(4.0)),
    ]
    assert [_level(it)["reached"] for it in one] == [None, None]  # told, and not judged
    assert (mean["to_adam"], mean["to_best"], mean["best"]) == (pytest.approx(0.5), 2.0, "Nesterov")
    assert (final["to_adam"], final["to_best"], final["best"]) == (pytest.approx(0.5), 0.5, "Adam")
    assert mean["low"] == mean["high"] == pytest.approx(0.5)  # what makes a run hard for both cancels
    assert _level(mean)["reached"]
    *_, mean, final = ratios("relu", rows_with(None, 0.3))
    assert np.isinf(mean["to_adam"]) and not _level(mean)["reached"]
    assert final["to_adam"] == pytest.approx(1.5) and not _level(final)["reached"]


def test_both_ways_are_carried_out_and_who_kept_its_start_is_told(tmp_path, monkeypatch):
    families = []

    def specialized(family, *_, folder, **options):
        assert options["pretrained"] is None
        families.append(family)
        kept = "start" if folder.name == "one-network" else "learned"
        return Specialized(SGD(), tmp_path, {"specialization": {"kept": kept}, "seconds": {"meta_training": 2.5}})

    monkeypatch.setattr(activations, "specialize", specialized)
    monkeypatch.setattr(Task, "compare", lambda *_, **__: {"optimizers": rows_with(200.0, 0.1)})
    results = activations.ACTIVATIONS.carry_out(Task("quick", tmp_path / "out", Display(Console(quiet=True))))
    assert [len(family.parts()) for family in families] == [1, 4]
    assert {it["activation"] for it in results["ratios"]} == set(USED_ON)
    assert len(results["levels"]) == 2 * 2 * (len(USED_ON) - 1)
    assert results["seconds"] == {"meta_training": 5.0}  # of both
    assert all(it["reached"] == (True if RECOMMENDED in it["what"] else None) for it in results["levels"])
    page = (tmp_path / "out" / "report.html").read_text()
    assert "learned on one network was no better than its start" in page
    assert "learned on four networks was no better" not in page


def test_every_cell_of_the_table_stands_below_its_heading():
    numbers = {"ours": 0.123, "best": "Nesterov", "to_adam": 0.5, "low": 0.4, "high": 0.6, "to_best": 2.0}
    sheet = _sheet([{"activation": "relu", "learned_on": "one network", "measure": "final", **numbers}])
    (cells,) = sheet.rows
    assert dict(zip(sheet.headings, cells, strict=True)) == {
        "activation": "relu",
        "learned on": "one network",
        "loss": "final",
        "best baseline": "Nesterov",
        "ours": "0.123",
        "ours / tuned Adam": "0.50 [0.40, 0.60]",
        "ours / best baseline": "2.00",
    }
    assert sheet.headings[sheet.text_columns] == "ours"


def test_what_is_learned_on_has_sigmoids_alone_and_what_it_is_used_on_differs_in_the_activation_alone():
    assert "activations" in STUDIES
    trained = find_family(LEARNED_ON)
    assert isinstance(trained, MLPClassifier) and trained.activation == "sigmoid"
    for family_of in LEARNED.values():
        parts = [part for part, _ in family_of(trained).parts()]
        assert parts[0] is trained or len(parts) == 1
        assert {part.activation for part in parts if isinstance(part, MLPClassifier)} == {"sigmoid"}
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
