"""The curves of the paper's figures, digitised from its vector graphics, in this library's convention."""

import csv
from functools import lru_cache
from pathlib import Path

import numpy as np

from .declaration import Level, Setting

_LABELS = {"NAG": "Nesterov", "ADAM": "Adam"}
_WITHOUT_UNIT = ("fig8L_neuralart_64", "fig8R_neuralart_128")
"""Figures whose axis has no absolute labels: their losses are known up to a factor."""

OF_IMAGES = (
    "Networks train on the images of the test split, as in the paper's code; which ones its figures are of, it does not"
    " say. There are more images of training, and losses on them are higher: compare shares of a baseline's loss with"
    " the paper's, rather than losses."
)
"""What to know where losses of networks on images stand beside the paper's."""


@lru_cache
def _rows() -> tuple[tuple[str, str, float, float], ...]:
    with (Path(__file__).parent / "paper_curves.csv").open() as file:
        rows = csv.DictReader(file)
        return tuple((row["figure"], row["optimizer"], float(row["step"]), float(row["loss"])) for row in rows)


def paper_curves(figure: str) -> dict[str, dict[str, list[float]]]:
    """Return `{optimizer: {"steps", "losses"}}` of a figure; empty for a figure that is not there.

    The paper's LSTM at step t is the loss after t updates, as here; its baselines at step t are the loss *before* the
    t-th update (they start from the initial loss), and are shifted by one to match.
    """
    curves: dict[str, dict[str, list[float]]] = {}
    for name, optimizer, step, loss in _rows():
        if name == figure:
            label = _LABELS.get(optimizer, optimizer)
            curve = curves.setdefault(label, {"steps": [], "losses": []})
            curve["steps"].append(step if optimizer.startswith("LSTM") else step - 1)
            curve["losses"].append(loss)
    return curves


def paper_scale(figure: str, best: float) -> float | None:
    """Return the factor that brings the paper's best baseline to where ours ends, `best`; None for a figure that has a
    unit, and whose losses can be compared as they are."""
    if figure not in _WITHOUT_UNIT:
        return None
    ends = [curve["losses"][-1] for name, curve in paper_curves(figure).items() if not name.startswith("LSTM")]
    return best / min(ends)


def paper_level(setting: Setting, level: Level) -> float | None:
    """Return what a level measures of the paper's own curve, over the setting's window or, where that has no point of
    the curve, at its end; None without a figure."""
    if setting.figure is None:
        return None
    curves = paper_curves(setting.figure)

    def measured(curve: dict[str, list[float]]) -> float:
        steps, losses = np.asarray(curve["steps"]), np.asarray(curve["losses"])
        if level.measure == "area":  # before its first update, the LSTM's curve has no point, and is as after it
            return float(np.sum(np.interp(np.arange(setting.horizon), steps, losses)))
        inside = (steps > setting.horizon - setting.final_window) & (steps <= setting.horizon)
        return float(np.mean(losses[inside]) if np.any(inside) else np.interp(setting.horizon, steps, losses))

    ours = measured(curves[level.curve])
    if not level.relative:
        return ours
    return ours / min(measured(curve) for name, curve in curves.items() if not name.startswith("LSTM"))
