"""How far do optimizers carry without tuning? A row for each way in which a problem differs from those learned on."""

import collections
import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped

from .._core.files import write_text_atomically
from .._core.types import Instance, Params, PRNGKeyArray, Scalar
from ..artifacts import find
from ..artifacts import load as load_artifact
from ..deploy.jax import from_artifact, versions
from ..evaluation import CONVENTION, GridRuns, Protocol, area, final, run_grid, strict_json
from ..evaluation.compare import summarize
from ..evaluation.tuning import CENTRES
from ..optimizers import TRANSFER_BASELINES, Adam, Cosine, FromOptax, Guard, Optimizer
from ..problems import CharacterModel, MLPClassifier, ProblemFamily, describe_family
from ..problems.catalogue import mnist_images
from ..problems.data import ImageData
from .declaration import Budget
from .small_networks import Split, convolutional, perceptron
from .study import Study, Task
from .transfer_report import CALIBRATED, CALIBRATED_FROM, aggregate, write_transfer_report
from .work import machine, slug

RATES = 13
"""Learning rates of a baseline in every row: four a decade over three decades."""

SCHEDULED = {"AdamWCosine": "cosine", "ScheduleFree": "averaging"}
"""Baselines that have a schedule of their own, or stand for one; the others are tuned without and with a cosine."""

FALLBACK = 3e-3
"""Learning rate of the Adam that guards: the one that the controller learned from, not tuned."""


@dataclasses.dataclass(frozen=True)
class Row:
    """A problem that differs in one respect, `axis`, from the base: a 64-32-10 ReLU perceptron on digits of 8 x 8
    pixels, in minibatches of 64.

    `build` makes its family over a split of the images. `horizon`: times the budget's. `one_by_one`: see `run_grid`.
    """

    name: str
    axis: str
    build: Callable[[ImageData, Split], ProblemFamily]
    horizon: float = 1.0
    one_by_one: bool = False
    full_only: bool = False


class LossTimes(ProblemFamily):
    """The problems of another family, with all losses times a constant."""

    family: ProblemFamily
    factor: float

    def sample(self, key: PRNGKeyArray) -> Instance:
        return self.family.sample(key)

    def init(self, instance: Instance, key: PRNGKeyArray) -> Params:
        return self.family.init(instance, key)

    def loss(self, params: Params, instance: Instance, key: PRNGKeyArray | None) -> Scalar:
        return self.factor * self.family.loss(params, instance, key)


def _changed(**options: Any) -> Callable[[ImageData, Split], ProblemFamily]:
    return lambda images, split: perceptron(images, split, **options)


def _times(factor: float) -> Callable[[ImageData, Split], ProblemFamily]:
    return lambda images, split: LossTimes(perceptron(images, split), factor)


def _mnist(images: ImageData, split: Split) -> ProblemFamily:
    return MLPClassifier.from_data(images, split, hidden=32, activation="relu", scale=0.05, batch=64)


ROWS = (
    Row("base", "none: a family like those learned on", _changed()),
    Row("tanh", "activation", _changed(activation="tanh")),
    Row("sigmoid", "activation", _changed(activation="sigmoid")),
    Row("gelu", "activation", _changed(activation="gelu")),
    Row("128 units", "width", _changed(hidden=128)),
    Row("4 layers", "depth", _changed(layers=4, scale=0.2)),
    Row("convolution", "architecture", convolutional, one_by_one=True),
    Row("attention", "architecture and data: characters", lambda images, split: CharacterModel.embedded(split)),
    Row("MNIST", "data: 28 x 28 pixels", _mnist),
    Row("batch 8", "batch size", _changed(batch=8)),
    Row("batch 512", "batch size", _changed(batch=512), full_only=True),
    Row("start x 1/4", "initial scale", _changed(scale=0.15 / 4)),
    Row("start x 4", "initial scale", _changed(scale=0.15 * 4)),
    Row("horizon x 1/4", "horizon", _changed(), 0.25),
    Row("horizon x 4", "horizon", _changed(), 4.0),
    Row("horizon x 25", "horizon", _changed(), 25.0, full_only=True),
    Row("loss x 1000", "loss scale", _times(1e3)),
    Row("loss / 1000", "loss scale", _times(1e-3)),
)


@dataclasses.dataclass(frozen=True)
class Effort:
    """What a budget spends on a row: steps of a run, and runs to tune a baseline on and to report."""

    horizon: int
    tuning_runs: int
    runs: int
    rows: tuple[Row, ...]


EFFORTS: dict[Budget, Effort] = {
    "quick": Effort(200, 2, 4, tuple(row for row in ROWS if not row.full_only)),
    "paper": Effort(400, 8, 16, ROWS),
}


def carry_out_rows(
    task: Task,
    effort: Effort,
    learned: Mapping[str, Optimizer],
    digests: Mapping[str, str],
    baselines: Mapping[str, type[FromOptax]] = TRANSFER_BASELINES,
) -> dict[str, Any]:
    """Run every row, or read what an interrupted run has done of it; report, and return the results of the base row.

    Adam and AdamWCosine must be among the baselines: the others are compared with them. `digests` tell whether the
    learned ones are those of the interrupted run (`Manifest.digest`); their names do not.
    """
    task.claim(TRANSFER, learned=dict(digests))
    images, rows = mnist_images(task.data), {}
    for done, row in enumerate(effort.rows):
        task.display.phase("rows", done, len(effort.rows))
        path = task.folder / "rows" / f"{slug(row.name)}.json"
        rows[row.name] = run_row(row, effort, learned, baselines, images, task, path)
    task.display.phase("rows", len(effort.rows), len(effort.rows))
    found = aggregate(rows, list(learned))
    for line in found["summary"]:
        task.display.say(line)
    results = _base_results(rows, found, effort, learned, task)
    write_transfer_report(found, results, task.folder)
    return results


def run_row(
    row: Row,
    effort: Effort,
    learned: Mapping[str, Optimizer],
    baselines: Mapping[str, type[FromOptax]],
    images: ImageData,
    task: Task,
    path: Path,
) -> dict[str, Any]:
    """Run every optimizer on a row; keep what was measured in `path`.

    Each entry of `optimizers` has the kind, the settings tried: `rates` and `schedules` `[n]`, and per setting and run
    the mean loss over the run, the final and the test loss, first of the tuning runs, then of the others (null for
    settings that were not run on these: they are those that tuned best for one of the measures); and the curves at the
    best for the mean loss. Learned optimizers have no settings and no tuning runs.
    """
    if path.exists():
        return json.loads(path.read_text())
    family, held_out = row.build(images, "train"), row.build(images, "test")
    horizon = max(1, round(row.horizon * effort.horizon))
    keys = jax.random.split(
        jax.random.fold_in(jax.random.key(task.seed), 0x7AF), effort.tuning_runs + effort.runs
    )  # the same for every row
    window = max(1, horizon // 20)
    tuning, reported = keys[: effort.tuning_runs], keys[effort.tuning_runs :]

    def measure(optimizer: Optimizer, rates: np.ndarray, keys: Shaped[PRNGKeyArray, " runs"]) -> GridRuns:
        return run_grid(optimizer, rates, family, held_out, keys, horizon, one_by_one=row.one_by_one)

    def untuned(optimizer: Optimizer) -> dict[str, Any]:
        ran = measure(optimizer, np.zeros(1), reported)
        settings = {"kind": "learned", "rates": None, "schedules": None, "tuning_runs": 0}
        return settings | _entry(ran, _measures(ran, window))

    def tuned(name: str, kind: type[FromOptax]) -> dict[str, Any]:
        variants: dict[str, FromOptax] = {SCHEDULED[name]: kind()} if name in SCHEDULED else _schedules(kind())
        rates = CENTRES.get(name, 1e-2) * np.logspace(-1.5, 1.5, RATES)
        settings = [(schedule, rate) for schedule in variants for rate in rates]
        found = [_measures(measure(variant, rates, tuning), window) for variant in variants.values()]
        losses = {key: np.concatenate([it[key] for it in found]) for key in found[0]}
        best = {key: choose(values) for key, values in losses.items()}
        on_reported = {key: np.full((len(settings), effort.runs), np.nan) for key in losses}
        if name == CALIBRATED_FROM:  # its one rate for all rows is known only after the last of them
            (variant,) = variants.values()
            on_reported = _measures(measure(variant, rates, reported), window)
        curves = None
        for index in sorted(set(best.values()), key=lambda index: index == best["mean"]):  # the mean's come last
            schedule, rate = settings[index]
            # Timed with as many runs side by side for every optimizer.
            curves = measure(variants[schedule], np.array([rate]), reported)
            for key, values in _measures(curves, window).items():
                on_reported[key][index] = values[0]
        assert curves is not None
        described = {
            "kind": "hand-designed",
            "rates": [rate for _, rate in settings],
            "schedules": [schedule for schedule, _ in settings],
            "tuning_runs": effort.tuning_runs,
        }
        return described | _entry(
            curves, {key: np.concatenate([losses[key], on_reported[key]], axis=1) for key in losses}
        )

    optimizers: dict[str, Any] = {}
    for done, name in enumerate(names := [*learned, *baselines]):
        task.display.phase(f"{row.name}: {name}", done, len(names))
        optimizers[name] = untuned(learned[name]) if name in learned else tuned(name, baselines[name])
    result = {
        "name": row.name,
        "axis": row.axis,
        "horizon": horizon,
        "final_window": window,
        "family": describe_family(family),
        "optimizers": optimizers,
    }
    write_text_atomically(path, json.dumps(strict_json(result)))
    return json.loads(path.read_text())


def _schedules(rule: FromOptax) -> dict[str, FromOptax]:
    return {"constant": rule, "cosine": Cosine(rule)}


def _entry(ran: GridRuns, runs: Mapping[str, np.ndarray]) -> dict[str, Any]:
    return {
        "seconds": ran.seconds,
        "curves": ran.curves[0].tolist(),
        **{key: values.tolist() for key, values in runs.items()},
    }


def _measures(ran: GridRuns, window: int) -> dict[str, np.ndarray]:
    """Return for every rate and run, `[rates, runs]`, the mean loss over the run, the final and the test loss."""
    with np.errstate(over="ignore", invalid="ignore"):
        mean = area(ran.curves) / (ran.curves.shape[-1] - 1)
        return {"mean": mean, "final": final(ran.curves, window), "test": np.array(ran.test)}


def choose(losses: np.ndarray) -> int:
    """Return the setting `[settings, runs]` whose mean is least; one at which a run is lost is infinitely bad."""
    return int(np.argmin(np.where(np.isfinite(losses), losses, np.inf).mean(axis=1)))


def _base_results(
    rows: dict[str, Any], found: dict[str, Any], effort: Effort, learned: Mapping[str, Optimizer], task: Task
) -> dict[str, Any]:
    base = next(iter(rows.values()))
    protocol = Protocol(base["horizon"], runs=effort.runs, final_window=base["final_window"])
    optimizers = {}
    for name, entry in base["optimizers"].items():
        curves = np.asarray(entry["curves"], float)
        summary = summarize(entry["kind"], name, curves, entry["seconds"], protocol)
        tuned = np.asarray(entry["mean"], float)[:, : entry["tuning_runs"]]
        summary["learning_rate"] = None if entry["rates"] is None else entry["rates"][choose(tuned)]
        optimizers[name.lower()] = summary
    return {
        "experiment": "transfer",
        "title": "Transfer: the base problem",
        "convention": CONVENTION,
        "horizon": base["horizon"],
        "runs": effort.runs,
        "seed": task.seed,
        "optimizers": optimizers,
        "meta_training": None,
        "levels": found["levels"],
        "transfer": {key: found[key] for key in ("table", "aggregates", "shares", "calibrated", "axes")},
        "configuration": {
            "data": task.data,
            "learned": sorted(learned),
            "rates": RATES,
            "tuning_runs": effort.tuning_runs,
            "rows": [row.name for row in effort.rows],
        },
        "versions": versions(),
        "machine": machine(),
        "command": task.command,
    }


def _carry_out(task: Task) -> dict[str, Any]:
    found = {label: load_artifact(find(name)) for label, name in labels_of(task.artifacts).items()}
    learned: dict[str, Optimizer] = {label: from_artifact(artifact) for label, artifact in found.items()}
    guarded = {
        f"{label}, guarded": Guard(optimizer, Adam(jnp.asarray(FALLBACK))) for label, optimizer in learned.items()
    }
    digests = {label: artifact.manifest.digest for label, artifact in found.items()}
    return carry_out_rows(task, EFFORTS[task.budget], learned | guarded, digests)


def labels_of(artifacts: Iterable[str]) -> dict[str, str]:
    """Label trained optimizers by the stems of their files, and by whole paths where another column has that label."""
    stems = {name: Path(name).stem if name.endswith(".safetensors") else name for name in artifacts}
    columns = collections.Counter(label.lower() for label in (*stems.values(), *TRANSFER_BASELINES, CALIBRATED))
    return {stem if columns[stem.lower()] == 1 else name: name for name, stem in stems.items()}


TRANSFER = Study("transfer", "Trained optimizers, untuned, on problems that differ in one respect", _carry_out)
