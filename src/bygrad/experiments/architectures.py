"""Figure 6: the optimizer of one network on networks of other sizes, beside baselines tuned for each of them."""

import dataclasses
import json
from typing import TYPE_CHECKING, Any

from .._core.files import read_json, write_text_atomically
from ..deploy.jax import load
from ..evaluation import (
    LEVEL_HEADINGS,
    Picture,
    Protocol,
    Sheet,
    best_baseline,
    compare,
    level_cells,
    level_row,
    loss_of,
    number,
    strict_json,
    tune_baselines,
)
from ..evaluation.drawing import GREY, colours, floats, limits_of, set_scale
from ..problems import MLPClassifier
from ..problems.catalogue import mnist_images
from .declaration import Budget
from .paper import OF_IMAGES
from .study import Study, Task

if TYPE_CHECKING:
    import matplotlib.figure

TRAINED = "paper/mnist"
"""The optimizer: trained on one layer of 20 units."""

SIZES: dict[Budget, tuple[tuple[int, int], ...]] = {
    "quick": ((1, 10), (1, 30)),
    "paper": tuple((layers, hidden) for layers in (1, 2) for hidden in range(5, 55, 5)),
}
"""Layers and units of each."""

PROTOCOLS: dict[Budget, Protocol] = {
    "quick": Protocol(100, runs=8, tuning_runs=1, second_order_runs=0, final_window=5, chunk=8),
    "paper": Protocol(100, runs=100, tuning_runs=4, second_order_runs=4, final_window=5, chunk=10),
}
_UNITS = tuple(range(5, 55, 5))
_PAPER: dict[int, dict[str, tuple[float, ...]]] = {
    1: {
        "LSTM": (0.595, 0.349, 0.282, 0.245, 0.231, 0.212, 0.207, 0.192, 0.178, 0.194),
        "Adam": (0.829, 0.489, 0.422, 0.369, 0.352, 0.321, 0.315, 0.311, 0.293, 0.294),
        "Nesterov": (0.580, 0.354, 0.282, 0.252, 0.242, 0.239, 0.233, 0.225, 0.238, 0.226),
    },
    2: {
        "LSTM": (1.021, 0.550, 0.399, 0.321, 0.296, 0.264, 0.245, 0.238, 0.226, 0.203),
        "Adam": (1.552, 1.022, 0.837, 0.696, 0.640, 0.611, 0.603, 0.572, 0.560, 0.554),
        "Nesterov": (0.933, 0.589, 0.484, 0.452, 0.437, 0.445, 0.458, 0.443, 0.452, 0.448),
    },
}
"""Figure 6 of the paper, digitised: final loss at 5 to 50 units, by number of layers."""


def _carry_out(task: Task) -> dict[str, Any]:
    protocol = dataclasses.replace(PROTOCOLS[task.budget], seed=task.seed)
    task.claim(ARCHITECTURES, protocol=dataclasses.asdict(protocol))
    path = task.folder / "architectures.json"
    done: dict[str, Any] = read_json(path) if path.exists() else {}
    optimizer, images = load(TRAINED), mnist_images(task.data)
    for position, (layers, hidden) in enumerate(SIZES[task.budget]):
        if (name := f"{layers}/{hidden}") in done:
            continue
        task.display.phase("architectures", position, len(SIZES[task.budget]))
        train, test = (
            MLPClassifier.from_data(images, split, hidden=hidden, layers=layers) for split in ("train", "test")
        )
        found = compare({"LSTM": optimizer}, tune_baselines(train, protocol), test, protocol)
        label, best = best_baseline(found, "final")
        ours = found["lstm"]["final"]
        task.display.say(f"{layers} of {hidden} units: LSTM {ours['mean']:.4g}, best tuned baseline {label} {best:.4g}")
        kept = ("label", "kind", "final", "learning_rate", "diverged", "runs", "seconds_per_step")
        done[name] = strict_json({key: {field: row[field] for field in kept} for key, row in found.items()})
        write_text_atomically(path, json.dumps(done))
    return _report(task, protocol, done)


def _report(task: Task, protocol: Protocol, done: dict[str, Any]) -> dict[str, Any]:
    levels = []
    for name, rows in done.items():
        layers, hidden = map(int, name.split("/"))
        label, best = best_baseline(rows, "final")
        ours = rows["lstm"]["final"]
        levels.append(
            level_row(
                f"{layers} hidden layer{'s' * (layers > 1)} of {hidden} units, final loss (best tuned baseline:"
                f" {label} {best:.4g})",
                best,
                ours["mean"],
                ours["low"],
                ours["high"],
                paper=_paper(layers, hidden),
                comparable=False,  # it may be of other images: `OF_IMAGES`
            )
        )
    wins = sum(level["reached"] for level in levels)
    results = {
        "title": f"The LSTM of one layer of 20 units on {len(levels)} architectures",
        "architectures": done,
        "levels": levels,
        "configuration": {"protocol": dataclasses.asdict(protocol), "data": task.data},
    }
    second_order = (
        f" L-BFGS ({protocol.second_order_runs} runs) sees all the data at every step, several times: compare it by"
        " wall-clock."
    )
    statement = (
        f"Mean of the last {protocol.final_window} of {protocol.horizon} updates, {protocol.runs} runs each. The LSTM"
        f" was trained on one layer of 20 units; every baseline is tuned for every architecture. The LSTM is below all"
        f" of them in {wins} of {len(levels)}.{second_order * bool(protocol.second_order_runs)} Dotted: the paper's."
        f" {OF_IMAGES}"
    )
    sheet = Sheet("Levels to reach", LEVEL_HEADINGS, tuple(map(level_cells, levels)))
    caption = (
        "Final loss against hidden units, with its 95 % interval. Dotted, in the same colours: the paper's, digitised."
        " What lies far below is in the table."
    )
    picture = Picture("architectures", caption, _draw(done))
    return task.finish(ARCHITECTURES, results, statement, [picture, _losses(done), sheet])


def _losses(done: dict[str, Any]) -> Sheet:
    """Lay out final losses and times of a step: a row for every architecture, a column for every optimizer."""
    labels = [row["label"] for row in next(iter(done.values())).values()]
    rows = [
        (
            "{} of {}".format(*name.split("/")),
            *(
                f"{number(loss_of(row['final']['mean']))}, {number(1e3 * row['seconds_per_step'])} ms"
                for row in found.values()
            ),
        )
        for name, found in done.items()
    ]
    return Sheet("Final losses, and milliseconds of a step", ("layers, units", *labels), tuple(rows))


def _paper(layers: int, hidden: int) -> float | None:
    return dict(zip(_UNITS, _PAPER[layers]["LSTM"], strict=True)).get(hidden)


def _draw(done: dict[str, Any]) -> "matplotlib.figure.Figure":
    from matplotlib.figure import Figure

    numbers = sorted({int(name.split("/")[0]) for name in done})
    figure = Figure(figsize=(3.7 * len(numbers), 3.7), layout="constrained")
    panels = figure.subplots(1, len(numbers), sharey=True, squeeze=False)[0]
    for axes, layers in zip(panels, numbers, strict=True):
        sizes = sorted(int(name.split("/")[1]) for name in done if name.startswith(f"{layers}/"))
        names = list(done[f"{layers}/{sizes[0]}"])
        palette = colours(names)
        for name in names:
            rows = [done[f"{layers}/{hidden}"][name] for hidden in sizes]
            mean, low, high = (floats([row["final"][key] for row in rows]) for key in ("mean", "low", "high"))
            width = 2.0 if name == "lstm" else 1.2
            axes.plot(sizes, mean, ".-", color=palette[name], linewidth=width, label=rows[0]["label"])
            axes.fill_between(sizes, low, high, color=palette[name], alpha=0.16, linewidth=0)
            if curve := _PAPER[layers].get(rows[0]["label"]):
                axes.plot(_UNITS, curve, ":", color=palette[name], linewidth=1, alpha=0.6)
        axes.set(title=f"{layers} hidden layer{'s' * (layers > 1)}", xlabel="hidden units")
    # L-BFGS leaves the panels at the bottom: orders of magnitude below, it would press all others together.
    shown = [it for row in done.values() for it in row.values() if it["kind"] != "second-order"]
    ends = [value for it in shown for value in it["final"].values()]
    set_scale(panels[0].yaxis, *limits_of(floats(ends)))
    panels[0].set_ylabel("final loss")
    panels[-1].plot([], [], ":", color=GREY, linewidth=1, label="the paper's")
    legend = panels[-1].get_legend_handles_labels()
    figure.legend(*legend, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure


ARCHITECTURES = Study("architectures", "Figure 6: final loss on networks of 5 to 50 hidden units", _carry_out)
