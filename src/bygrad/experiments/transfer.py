"""How far do optimizers carry without tuning? A row for each way in which a problem differs from those learned on."""

import collections
import dataclasses
import functools
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped

from .._core.draws import key_of
from .._core.files import read_json, write_text_atomically
from .._core.types import PRNGKeyArray
from ..artifacts import find
from ..artifacts import load as load_artifact
from ..deploy.jax import from_artifact, versions
from ..evaluation import (
    CONVENTION,
    LBFGS,
    GaussNewton,
    GridRuns,
    Protocol,
    SecondOrder,
    area,
    final,
    run_grid,
    run_in_time,
    strict_json,
)
from ..evaluation.compare import interval_of, summarize
from ..evaluation.tuning import CENTRES, EXTENSIONS, beyond
from ..optimizers import TRANSFER_BASELINES, Adam, Baselines, Cosine, FromOptax, Guard, Optimizer
from ..problems import describe_family
from ..problems.data import ImageData
from ..workflows.work import machine, slug
from .study import Study, Task
from .transfer_report import CALIBRATED, REFERENCE, aggregate, write_transfer_report
from .transfer_rows import EFFORTS, Effort, Row, images_of

RATES = 13
"""Learning rates of a baseline's first grid: four a decade over three decades."""

SCHEDULED = {"AdamWCosine": "cosine", "ScheduleFree": "averaging"}
"""Baselines that have a schedule of their own, or stand for one; the others are tuned without and with a cosine."""

LAYOUT = 4
"""Of the files of rows: a run that wrote others cannot be gone on with."""

POINTS = 400
"""Points of a curve that is kept at every rate."""

GRID = np.logspace(-1.5, 1.5, RATES)


SecondOrderMethods = Mapping[str, tuple[np.ndarray, list[SecondOrder]]]
"""By name, the dampings and the sizes of samples that are tried."""


def second_order_methods() -> SecondOrderMethods:
    """Methods that get as much time as tuned Adam takes, with their dampings and samples to tune."""
    return {
        "L-BFGS": (np.ones(1), [LBFGS(batches=batches) for batches in (16, 128)]),
        "Gauss-Newton": (0.1 * GRID, [GaussNewton(damping=jnp.ones(()), batches=batches) for batches in (1, 8)]),
    }


FALLBACK = 3e-3
"""Learning rate of the Adam that guards: the one that the controller learned from, not tuned."""


def carry_out_rows(
    task: Task,
    effort: Effort,
    learned: Mapping[str, Optimizer],
    digests: Mapping[str, str],
    baselines: Baselines = TRANSFER_BASELINES,
) -> dict[str, Any]:
    """Run every row, or read what an interrupted run has done of it; report, and return the results of the base row.

    Adam and AdamWCosine must be among the baselines: the others are compared with them. `digests` tell whether a
    learned one is that of the interrupted run (`Manifest.digest`); its name does not. Others can take its place: the
    baselines, which take most of the time, stay.
    """
    task.claim(TRANSFER, baselines=sorted(baselines), layout=LAYOUT)
    images, rows = images_of(effort.rows, task.data), {}
    left_out = [row.name for row in effort.rows if row.source not in images]
    effort = dataclasses.replace(effort, rows=tuple(row for row in effort.rows if row.source in images))
    if left_out:
        task.display.say(f"rows left out, since --data does not name their images: {', '.join(left_out)}")
    for done, row in enumerate(effort.rows):
        task.display.phase("rows", done, len(effort.rows))
        rows[row.name] = run_row(row, effort, learned, digests, baselines, images[row.source], task)
    task.display.phase("rows", len(effort.rows), len(effort.rows))
    found = aggregate(rows, list(learned), [row.name for row in effort.rows if not row.in_mixture])
    for line in found["summary"]:
        task.display.say(line)
    results = _base_results(rows, found, effort, learned, task)
    write_transfer_report(found, results, task.folder)
    return results


def run_row(
    row: Row,
    effort: Effort,
    learned: Mapping[str, Optimizer],
    digests: Mapping[str, str],
    baselines: Baselines,
    images: ImageData,
    task: Task,
    methods: SecondOrderMethods | None = None,
) -> dict[str, Any]:
    """Run every optimizer on a row, or read what was measured; it is kept in a file for the baselines, one for the
    second-order methods, and one for each learned optimizer.

    Each entry of `optimizers` has the kind, the settings tried: `rates` and `schedules` `[n]`, and per setting and run
    the mean loss over the run, the final and the test loss, first of the tuning runs, then of the others (null for
    settings that were not run on these: they are those that tuned best for one of the measures); and the curves at the
    best for the mean loss, of those in `CALIBRATED` at all rates besides. Learned optimizers have no settings and no
    tuning runs. Second-order methods (`methods`, or all) run for as long as tuned Adam takes; their settings are
    dampings, and the sizes of their samples. Of these two kinds, each has `adam_seconds`, of a step of tuned Adam that
    was timed beside it.
    """
    measured = _Measured(row, effort, images, task)
    rivals = measured.kept("", lambda: measured.baselines(baselines))
    adam = rivals["optimizers"][REFERENCE]
    ours = {
        name: measured.kept(f"-{slug(name)}-{digests[name][:12]}", lambda it=it: measured.learned(it, adam))
        for name, it in measured.named(learned)
    }
    methods = second_order_methods() if methods is None else methods
    second = measured.kept("-second-order", lambda: measured.second_order(methods, adam))
    return rivals | {"optimizers": ours | rivals["optimizers"] | second}


Measure = Callable[[np.ndarray, Shaped[PRNGKeyArray, " runs"]], GridRuns]
"""Runs something at every rate of a grid."""


class _Measured:
    """A row, and what it takes to measure on it."""

    def __init__(self, row: Row, effort: Effort, images: ImageData, task: Task) -> None:
        self.row, self.task = row, task
        self.family, self.held_out = row.build(images, "train"), row.build(images, "test")
        self.horizon = max(1, round(row.horizon * effort.horizon))
        keys = jax.random.split(
            jax.random.fold_in(key_of(task.seed), 0x7AF), effort.tuning_runs + effort.runs
        )  # the same for every row
        self.tuning, self.reported = keys[: effort.tuning_runs], keys[effort.tuning_runs :]

    def kept(self, ending: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what an interrupted run has measured, or measure and keep it."""
        path = self.task.folder / "rows" / f"{slug(self.row.name)}{ending}.json"
        if not path.exists():
            write_text_atomically(path, json.dumps(strict_json(measure())))
        return read_json(path)

    def baselines(self, baselines: Baselines) -> dict[str, Any]:
        optimizers: dict[str, Any] = {}
        for name, kind in self.named(baselines):
            rule = kind()
            variants = {SCHEDULED[name]: rule} if name in SCHEDULED else _schedules(rule)
            rates = CENTRES.get(name, 1e-2) * GRID
            runs = {schedule: self._run(variant) for schedule, variant in variants.items()}
            # The one rate for all rows is known only after the last of them.
            entry = self._tuned(runs, rates, everywhere=name in CALIBRATED)
            optimizers[name] = {"kind": "hand-designed"} | entry
        return {
            "name": self.row.name,
            "axis": self.row.axis,
            "horizon": self.horizon,
            "final_window": _window(self.horizon),
            "family": describe_family(self.family),
            "optimizers": optimizers,
        }

    def learned(self, optimizer: Optimizer, adam: Mapping[str, Any]) -> dict[str, Any]:
        described = {"kind": "learned", "rates": None, "schedules": None, "tuning_runs": 0}
        described["adam_seconds"] = self._seconds_of(adam)
        ran = self._run(optimizer)(np.zeros(1), self.reported)
        return described | _entry(ran, _measures(ran))

    def second_order(self, methods: SecondOrderMethods, adam: Mapping[str, Any]) -> dict[str, Any]:
        beside = self._seconds_of(adam)
        optimizers: dict[str, Any] = {}
        for name, (dampings, sizes) in self.named(methods):
            runs = {
                f"{method.batches} minibatches": self._run_in_time(method, self.horizon * beside) for method in sizes
            }
            described = {"kind": "second-order", "adam_seconds": beside}
            optimizers[name] = described | self._tuned(runs, dampings)
        return optimizers

    def _seconds_of(self, adam: Mapping[str, Any]) -> float:
        """Time a step of tuned Adam, next to those that are held against its time."""
        best = choose(np.asarray(adam["mean"], float)[:, : adam["tuning_runs"]])
        rule = _schedules(Adam())[adam["schedules"][best]]
        return self._run(rule)(np.array([adam["rates"][best]]), self.reported).seconds

    def named(self, optimizers: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
        for done, (name, optimizer) in enumerate(optimizers.items()):
            self.task.display.phase(f"{self.row.name}: {name}", done, len(optimizers))
            yield name, optimizer

    def _run(self, optimizer: Optimizer) -> Measure:
        return lambda rates, keys: run_grid(
            optimizer, rates, self.family, self.held_out, keys, self.horizon, one_by_one=self.row.one_by_one
        )

    def _run_in_time(self, method: SecondOrder, seconds: float) -> Measure:
        return lambda dampings, keys: run_in_time(
            method,
            dampings,
            self.family,
            self.held_out,
            keys,
            seconds,
            self.horizon,
            one_by_one=self.row.one_by_one,
        )

    def _tuned(self, variants: Mapping[str, Measure], rates: np.ndarray, everywhere: bool = False) -> dict[str, Any]:
        """Return the entry of what has a setting for every variant and rate.

        Where the best for a measure stands at the edge of the rates, there are more that way, as in `tune`.

        `everywhere`: report at all rates of the one variant, with `curves_at_rates` `[rates, runs, points]`; every row
        has the same, and no more.
        """

        def on_tuning(rates: np.ndarray) -> dict[str, np.ndarray]:
            found = [_measures(run(rates, self.tuning)) for run in variants.values()]
            return {key: np.stack([it[key] for it in found]) for key in found[0]}

        by_variant = on_tuning(rates)
        for _ in range(EXTENSIONS if len(rates) > 1 and not everywhere else 0):
            best_rates = {choose(_by_setting(values)) % len(rates) for values in by_variant.values()}
            for more in beyond(rates, best_rates, len(GRID)):
                order = np.argsort(np.append(rates, more))
                rates, new = np.append(rates, more)[order], on_tuning(more)
                by_variant = {key: np.append(it, new[key], axis=1)[:, order] for key, it in by_variant.items()}
        settings = [(variant, rate) for variant in variants for rate in rates]
        losses = {key: _by_setting(values) for key, values in by_variant.items()}
        best = {key: choose(values) for key, values in losses.items()}
        on_reported = {key: np.full((len(settings), len(self.reported)), np.nan) for key in losses}
        kept: dict[str, Any] = {}
        if everywhere:
            (run,) = variants.values()
            ran = run(rates, self.reported)
            on_reported, kept["curves_at_rates"] = _measures(ran), _shortened(ran.curves[..., :-1]).tolist()
        curves = None
        for index in sorted(set(best.values()), key=lambda index: index == best["mean"]):  # the mean's come last
            variant, rate = settings[index]
            # Timed with as many runs side by side for every optimizer.
            curves = variants[variant](np.array([rate]), self.reported)
            for key, values in _measures(curves).items():
                on_reported[key][index] = values[0]
        assert curves is not None
        described = {
            "rates": [float(rate) for _, rate in settings],
            "schedules": [variant for variant, _ in settings],
            "tuning_runs": len(self.tuning),
        }
        both = {key: np.concatenate([losses[key], on_reported[key]], axis=1) for key in losses}
        return described | kept | _entry(curves, both)


def _by_setting(losses: np.ndarray) -> np.ndarray:
    """Return losses `[variants, rates, runs]` as `[settings, runs]`."""
    return losses.reshape(-1, losses.shape[-1])


def _schedules(rule: FromOptax) -> dict[str, FromOptax]:
    return {"constant": rule, "cosine": Cosine(rule)}


def _entry(ran: GridRuns, runs: Mapping[str, np.ndarray]) -> dict[str, Any]:
    return {
        "seconds": ran.seconds,
        "curves": ran.curves[0].tolist(),
        **{key: values.tolist() for key, values in runs.items()},
    }


def _shortened(curves: np.ndarray) -> np.ndarray:
    """Return means over equal parts of the curves, `[..., at most 2 * POINTS]`: their mean is the curves'."""
    size = max(1, curves.shape[-1] // POINTS)
    parts = curves[..., : curves.shape[-1] // size * size]
    return parts.reshape(*parts.shape[:-1], -1, size).mean(axis=-1)


def _window(steps: int) -> int:
    """Return over how many losses the final one is the mean."""
    return max(1, steps // 20)


def _measures(ran: GridRuns) -> dict[str, np.ndarray]:
    """Return for every rate and run, `[rates, runs]`, the mean loss over the run, the final and the test loss."""
    steps = ran.curves.shape[-1] - 1
    with np.errstate(over="ignore", invalid="ignore"):
        mean, last = area(ran.curves) / steps, final(ran.curves, _window(steps))
    return {"mean": mean, "final": last, "test": np.array(ran.test)}


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
        if entry["kind"] == "second-order":  # has steps of its own, and stands in the tables of all rows
            continue
        curves = np.asarray(entry["curves"], float)
        summary = summarize(entry["kind"], name, curves, entry["seconds"], protocol)
        if entry["rates"] is not None:  # curves are at the rate that is best for the mean loss, and so for the area
            losses = {measure: np.asarray(entry[measure], float) for measure in ("mean", "final")}
            best = {measure: choose(it[:, : entry["tuning_runs"]]) for measure, it in losses.items()}
            final = losses["final"][best["final"], entry["tuning_runs"] :]
            summary["final"], summary["each_run"]["final"] = interval_of(final), final.tolist()
            summary["learning_rate"] = entry["rates"][best["final"]]
            summary["area_learning_rate"] = entry["rates"][best["mean"]]
        optimizers[name.lower()] = summary
    return {
        "experiment": "transfer",
        "title": "Transfer: the base problem; curves are at the rates tuned for the area",
        "convention": CONVENTION,
        "horizon": base["horizon"],
        "runs": effort.runs,
        "seed": task.seed,
        "optimizers": optimizers,
        "meta_training": None,
        "levels": found["levels"],
        "transfer": {key: found[key] for key in ("table", "aggregates", "won", "outside", "calibrated", "axes")},
        "configuration": {
            "protocol": dataclasses.asdict(protocol),
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
    fallback = Adam(jnp.asarray(FALLBACK))
    guards = {"guarded": Guard, "guarded, trusted": functools.partial(Guard, trusted=True)}
    digests = {label: artifact.manifest.digest for label, artifact in found.items()}
    for how, guard in guards.items():
        learned |= {f"{label}, {how}": guard(learned[label], fallback) for label in found}
        digests |= {f"{label}, {how}": digests[label] for label in found}
    return carry_out_rows(task, EFFORTS[task.budget], learned, digests)


def labels_of(artifacts: Iterable[str]) -> dict[str, str]:
    """Label trained optimizers by the stems of their files, and by whole paths where another column has that label."""
    stems = {name: Path(name).stem if name.endswith(".safetensors") else name for name in artifacts}
    columns = collections.Counter(
        label.lower() for label in (*stems.values(), *TRANSFER_BASELINES, *CALIBRATED.values())
    )
    return {stem if columns[stem.lower()] == 1 else name: name for name, stem in stems.items()}


TRANSFER = Study("transfer", "Trained optimizers, untuned, on problems that differ in one respect", _carry_out)
