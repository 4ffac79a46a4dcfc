"""Sigmoid to other activations: what is made of the comparisons."""

import numpy as np
import pytest
from rich.console import Console

from bygrad.experiments import STUDIES, Task, activations
from bygrad.experiments.activations import LEARNED_ON, USED_ON, _level, _ratios, _sheet
from bygrad.optimizers import SGD
from bygrad.problems import MLPClassifier, find_family
from bygrad.workflows import Display, Specialized


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


def test_rows_are_of_the_optimizer_that_was_kept_on_every_activation(tmp_path, monkeypatch):
    def rows(ours: float) -> dict[str, object]:
        return {"controller": row("learned", "Controller", ours, ours), "adam": row("hand-designed", "Adam", 1.0, 1.0)}

    for kept, share in (("learned", 0.5), ("start", 0.75)):
        task = Task("quick", tmp_path / kept, Display(Console(quiet=True)))
        on_sigmoid = rows(0.5) | {"start": row("learned", "the start", 0.75, 0.75)}
        found = {"optimizers": on_sigmoid, "specialization": {"kept": kept}, "seconds": {"meta_training": 1.0}}
        specialized = Specialized(SGD(), tmp_path, found)
        monkeypatch.setattr(activations, "specialize", lambda *_, done=specialized, **__: done)
        monkeypatch.setattr(Task, "compare", lambda *_, ours=share, **__: {"optimizers": rows(ours)})
        results = activations.ACTIVATIONS.carry_out(task)
        assert {it["to_adam"] for it in results["ratios"]} == {share}
        page = (tmp_path / kept / "report.html").read_text()
        assert ("all rows are of the start" in page) == (kept == "start")


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
