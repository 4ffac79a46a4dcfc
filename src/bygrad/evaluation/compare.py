"""Comparison of optimizers on fresh instances: learned ones as they are, baselines tuned with an equal budget."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Shaped

from .._core.draws import check_seed, key_of
from .._core.memory import bytes_available, in_words
from .._core.programs import Program
from .._core.sizes import LARGEST, is_whole
from .._core.threads import Threads, completed
from .._core.types import PRNGKeyArray, Tick
from ..optimizers import BASELINES, PAPER_BASELINES, Baselines, FromOptax, Optimizer, declare
from ..problems import ProblemFamily
from .report import loss_of
from .runs import SIDE_BY_SIDE, Curves, area, compile_curves, final, run_curves, run_in_chunks
from .second_order import bfgs_curves, lbfgs_curves, no_objective
from .statistics import Interval, bootstrap_curves, bootstrap_mean, bootstrap_ratio, check_reference
from .tuning import PER_DECADE, POINTS, Tuning, run_tuned, tune, with_learning_rate

CONVENTION = (
    "The loss at step t is the loss after t updates, on the minibatch that the next update would use; step 0 is the"
    " starting point. All optimizers run on the same instances, starts and minibatches. Area: sum of the losses before"
    " each update."
)
"""What "loss at step t" means here, for every optimizer alike."""

_LBFGS_CURVES, _BFGS_CURVES = Program(lbfgs_curves, runs="seldom"), Program(bfgs_curves, runs="seldom")


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How a comparison is made.

    **Arguments:** `horizon`: steps of a run. `runs`: fresh instances for every optimizer. `tuning_runs`: instances to
    tune a baseline on. `second_order_runs`: instances for L-BFGS, whose steps cost many times more; 0 leaves it out.
    `final_window`: how many last losses make the final loss. `seed`: of the fresh instances; the tuning instances come
    from another branch of it. `chunk`: runs side by side. `rates`, `rates_per_decade` and `rate_scale`: size, fineness
    and place of the first grid of learning rates (`tune`), for problems whose useful steps are not those of networks,
    or where a rate between two of a grid is much better than either. `rates_at_once`: how many run side by side, all by
    default; 1 for problems that gain nothing from a batch. `area_rates`: whether a baseline runs once more, at the rate
    tuned for the area, where that is another one; without, its area is at the final loss's rate. `confirming_runs`:
    instances more for the best rates (`confirmed`), where a whole grid runs on few.
    """

    horizon: int
    runs: int = 128
    tuning_runs: int = 8
    second_order_runs: int = 16
    final_window: int = 1
    seed: int = 0
    chunk: int = 16
    rates: int = POINTS
    rates_per_decade: int = PER_DECADE
    rate_scale: float = 1.0
    rates_at_once: int | None = None
    area_rates: bool = True
    confirming_runs: int = 0

    def __post_init__(self) -> None:
        counts = ("horizon", "runs", "tuning_runs", "final_window", "chunk", "rates", "rates_per_decade")
        for name in (*counts, "second_order_runs", "confirming_runs", "seed", "rates_at_once"):
            value = getattr(self, name)
            if not is_whole(value) and not (name == "rates_at_once" and value is None):
                raise TypeError(f"{name} is {value!r}, which is no whole number. Give one.")
        check_seed(self.seed)
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: there would be nothing to compare. Give 1 or more.")
            if getattr(self, name) > LARGEST:
                raise ValueError(f"{name} is {getattr(self, name)}, which nothing counts to. Give at most {LARGEST:,}.")
        if self.second_order_runs < 0 or self.confirming_runs < 0:
            raise ValueError(
                f"second_order_runs={self.second_order_runs}, confirming_runs={self.confirming_runs}: give 0 to leave"
                " L-BFGS, or confirming, out, or more."
            )
        if not 0 < self.rate_scale < float("inf"):
            raise ValueError(
                f"rate_scale is {self.rate_scale}, but the grid of learning rates is multiplied by it. Give a positive"
                " number, 1 for networks."
            )
        if self.rates_at_once is not None and self.rates_at_once < 1:
            raise ValueError(
                f"rates_at_once is {self.rates_at_once}: no rate would run. Give 1 or more, or None for all."
            )
        if self.final_window > self.horizon:
            raise ValueError(
                f"final_window is {self.final_window}, longer than the horizon of {self.horizon} steps, so the final"
                " loss is not defined. Choose at most the horizon."
            )

    def refuse_what_cannot_fit(self) -> None:
        """**Raises:** `MemoryError` where the losses of all steps of all runs do not fit into memory."""
        needs = 2 * 8 * self.runs * (self.horizon + 1)  # in parts, and joined
        if needs > (free := bytes_available()):
            raise MemoryError(
                f"The losses of {self.runs:,} runs of {self.horizon:,} steps take {in_words(needs)} of memory, but"
                f" {in_words(free)} are free. Nothing was started. Lower the runs or the horizon."
            )

    @property
    def keys(self) -> tuple[PRNGKeyArray, PRNGKeyArray]:
        """Keys of the tuning and of the fresh instances, apart from each other and from those of meta-training."""
        tuning, fresh = jax.random.split(jax.random.fold_in(key_of(self.seed), 0xE7A1))
        return tuning, fresh


def tune_baselines(
    family: ProblemFamily,
    protocol: Protocol,
    baselines: Baselines = PAPER_BASELINES,
    watch: Tick | None = None,
    results: MutableMapping[str, dict[str, Any]] | None = None,
) -> dict[str, Tuning]:
    """Tune every baseline on instances of its own; the same number of rates and of runs for each.

    **Arguments:** `results`: what an interrupted tuning has, by name; what is there is not run again, and what is new
    is put there as it comes.
    """
    protocol.refuse_what_cannot_fit()
    results = {} if results is None else results
    tunings = {name: Tuning.of_json(results[name]) for name in baselines if name in results}

    def tuned(build: Callable[[], FromOptax]) -> Tuning:
        return tune(
            build(),
            family,
            protocol.keys[0],
            horizon=protocol.horizon,
            runs=protocol.tuning_runs,
            final_window=protocol.final_window,
            points=protocol.rates,
            per_decade=protocol.rates_per_decade,
            scale=protocol.rate_scale,
            at_once=protocol.rates_at_once,
            confirming_runs=protocol.confirming_runs,
            measures=("final", "area") if protocol.area_rates else ("final",),
        )

    def tell() -> None:
        if watch is not None:
            missing = [name for name in baselines if name not in tunings]
            watch(" ".join(["tuning", *missing[:1]]), len(baselines) - len(missing), len(baselines))

    tell()
    # Side by side, because most of the time goes into compiling, which fills one core.
    with Threads(SIDE_BY_SIDE) as pool:
        names = {pool.submit(tuned, build): name for name, build in baselines.items() if name not in tunings}
        for future in completed(names):
            name = names[future]
            tunings[name] = future.result()
            results[name] = tunings[name].as_json()
            tell()
    return {name: tunings[name] for name in baselines}


def tuned_levels(
    tunings: Mapping[str, Tuning],
    family: ProblemFamily,
    keys: Shaped[PRNGKeyArray, " runs"],
    measure: Literal["area", "final"],
    protocol: Protocol,
    watch: Tick | None = None,
    results: MutableMapping[str, dict[str, Any]] | None = None,
    baselines: Baselines = BASELINES,
) -> dict[str, float]:
    """Return what each baseline reaches in the runs of `keys`, at the rate that was best for `measure`.

    It is what others are held against in these runs: those that it was tuned on may be easier, or harder.

    **Arguments:** `protocol`: that of the tuning. `watch`, `results`: as for `tune_baselines`. `baselines`: as for
    `compare`.
    """
    results = {} if results is None else results

    def level(name: str) -> float:
        curves = run_tuned(
            _built(name, baselines),
            getattr(tunings[name], f"best_{measure}"),
            family,
            keys,
            horizon=protocol.horizon,
            runs=protocol.tuning_runs,
            points=protocol.rates,
            at_once=protocol.rates_at_once,
            seconds=tunings[name].seconds,
        )
        return float(np.mean(area(curves) if measure == "area" else final(curves, protocol.final_window)))

    missing = [name for name in tunings if name not in results]
    with Threads(SIDE_BY_SIDE) as pool:
        found = pool.map(level, missing)
        for name in missing:
            if watch is not None:
                watch(f"running {name} as tuned", len(results), len(tunings))
            results[name] = {measure: next(found)}
    return {name: loss_of(results[name][measure]) for name in tunings}


def compare(
    learned: Mapping[str, Optimizer],
    tunings: Mapping[str, Tuning],
    family: ProblemFamily,
    protocol: Protocol,
    watch: Tick | None = None,
    results: MutableMapping[str, dict[str, Any]] | None = None,
    baselines: Baselines = BASELINES,
    teacher: Optimizer | None = None,
) -> dict[str, dict[str, Any]]:
    """Run everything on the same fresh instances; return the `optimizers` of a report's results.

    A baseline's final loss and curve are at the rate tuned for the final loss, its area at the rate tuned for the area:
    each measure sees it at its best. Without `Protocol.area_rates`, both are at the rate tuned for the final loss.

    **Arguments:** `results`: what an interrupted comparison has, by name; what is there is not run again, and what is
    new is put there as it comes. `baselines`: those that are tuned, where one is not of this package.
    `teacher`: what the learned one imitated in meta-training, if anything; it runs as it is, and is no baseline.
    """
    protocol.refuse_what_cannot_fit()
    results = {} if results is None else results
    refuse_one_name([*learned, *tunings])
    taught_by = {} if teacher is None else {f"{type(teacher).__name__} (its teacher)": teacher}
    taught_by = {name: declare(it, protocol.horizon) for name, it in taught_by.items() if name.lower() not in results}
    learned = {name: optimizer for name, optimizer in learned.items() if name.lower() not in results}
    tunings = {name: tuning for name, tuning in tunings.items() if name.lower() not in results}

    def ticker(name: str) -> Callable[[int, int], None] | None:
        return None if watch is None else functools.partial(watch, f"evaluating {name}")

    options = {"horizon": protocol.horizon, "runs": protocol.runs, "chunk": protocol.chunk}

    def run(optimizer: Optimizer, name: str) -> tuple[Curves, float]:
        return run_curves(optimizer, family, protocol.keys[1], tick=ticker(name), **options)

    # Compiled side by side, but run one after the other: they are timed.
    rivals = {name: _built(name, baselines) for name in tunings}
    everything = [
        *learned.values(),
        *taught_by.values(),
        *(with_learning_rate(rival, 0.0) for rival in rivals.values()),
    ]
    with Threads(SIDE_BY_SIDE) as pool:
        list(pool.map(lambda it: compile_curves(it, family, protocol.keys[1], **options), everything))
    for name, optimizer in learned.items():
        results[name.lower()] = summarize("learned", name, *run(optimizer, name), protocol)
    for name, optimizer in taught_by.items():
        summary = summarize("teacher", name, *run(optimizer, name), protocol)
        results[name.lower()] = summary | {"note": _settings(optimizer)}  # whole, as it may be written at once
    for name, tuning in tunings.items():
        optimizer = rivals[name]
        curves, seconds = run(with_learning_rate(optimizer, tuning.best_final), name)
        summary = summarize("hand-designed", name, curves, seconds, protocol)
        summary["learning_rate"], summary["tuning"] = tuning.best_final, tuning.as_json()
        if protocol.area_rates:
            if tuning.best_area != tuning.best_final:
                curves, _ = run(with_learning_rate(optimizer, tuning.best_area), name)
            summary["area"] = interval_of(area(curves))
            # Runs lost at either of the two rates: each counts as infinite in its own measure.
            summary["diverged"] = max(summary["diverged"], int(np.sum(~np.isfinite(curves).all(axis=1))))
            summary["each_run"]["area"] = _short(area(curves))
            for key, curve in zip(("", "_low", "_high"), bootstrap_curves(curves), strict=True):
                summary[f"area_curve{key}"] = _short(curve)
            summary["area_learning_rate"] = tuning.best_area
        results[name.lower()] = summary
    if protocol.second_order_runs and "lbfgs" not in results and no_objective(family) is None:
        results["lbfgs"] = _second_order(family, protocol, ticker("L-BFGS"))
    return dict(results)


def refuse_one_name(names: Iterable[str]) -> None:
    """Results go by names in lower case, and one of two alike would be lost.

    **Raises:** `ValueError` where two are alike, or one is that of L-BFGS.
    """
    keys = [name.lower() for name in names]
    if twice := sorted({key for key in keys if keys.count(key) > 1 or key == "lbfgs"}):
        raise ValueError(
            f"More than one optimizer would be called {', '.join(twice)} in the results, where names are in lower case"
            " and `lbfgs` is the row of L-BFGS: one would be taken for the other. Give each learned optimizer a name of"
            " its own."
        )


def _settings(teacher: Optimizer) -> str:
    """Say what a teacher is: its numbers, and not what else it is made of."""
    numbers = {name: it for name, it in vars(teacher).items() if isinstance(it, float | jax.Array) and np.ndim(it) == 0}
    told = ", ".join(f"{name} {float(value):.3g}" for name, value in numbers.items())
    settings = f" ({told})" if told else ""
    return f"Imitated in meta-training{settings}. Chosen by hand, so it is not among the tuned baselines."


def _built(name: str, baselines: Baselines) -> FromOptax:
    if name not in baselines:
        raise ValueError(
            f"{name} is tuned, but is none of the baselines {', '.join(baselines)}, so it is not known what to run."
            " Give `baselines`, by name what builds those that were tuned, their classes, say."
        )
    return baselines[name]()


def compare_bfgs(family: ProblemFamily, protocol: Protocol, watch: Tick | None = None) -> dict[str, Any]:
    """Run BFGS on the first of the fresh instances, as `compare` does L-BFGS: for problems of few params."""
    tick = None if watch is None else functools.partial(watch, "evaluating BFGS")
    return _second_order(family, protocol, tick, "BFGS (full batch)", _BFGS_CURVES)


def _second_order(
    family: ProblemFamily,
    protocol: Protocol,
    tick: Callable[[int, int], None] | None,
    label: str = "L-BFGS (full batch)",
    program: Program[Any] = _LBFGS_CURVES,
) -> dict[str, Any]:
    runs = min(protocol.second_order_runs, protocol.runs)
    curves, seconds = run_in_chunks(
        program,
        (family,),
        protocol.keys[1],
        horizon=protocol.horizon,
        runs=runs,
        chunk=min(protocol.chunk, runs),
        tick=tick,
    )
    summary = summarize("second-order", label, curves, seconds, protocol)
    summary["note"] = (
        "Sees the objective without noise (all data) and evaluates it several times a step, in a line search: its steps"
        " are not the others' steps."
        + f" Its seconds are those of one run at a time; the others run {protocol.chunk} side by side and share theirs."
        * (protocol.chunk > 1)
        + f" Its means are over the first {runs} of the others' {protocol.runs} runs." * (runs < protocol.runs)
    )
    return summary


def summarize(kind: str, label: str, curves: Curves, seconds: float, protocol: Protocol) -> dict[str, Any]:
    """Return the entry of a report's `optimizers` for curves `[runs, horizon + 1]`."""
    mean, low, high = bootstrap_curves(curves)
    return {
        "kind": kind,
        "label": label,
        "final": interval_of(final(curves, protocol.final_window)),
        "area": interval_of(area(curves)),
        "each_run": {"final": _short(final(curves, protocol.final_window)), "area": _short(area(curves))},
        "curve": _short(mean),
        "curve_low": _short(low),
        "curve_high": _short(high),
        "seconds_per_step": seconds,
        "learning_rate": None,
        "area_learning_rate": None,
        "area_curve": None,
        "area_curve_low": None,
        "area_curve_high": None,
        "runs": len(curves),
        "diverged": int(np.sum(~np.isfinite(curves).all(axis=1))),
        "note": None,
        "tuning": None,
    }


def _short(curve: np.ndarray) -> list[float]:
    """Write a curve in as many digits as it was computed in: in a file, half the length."""
    return [float(f"{value:.7g}") for value in curve]


def interval_of(values: np.ndarray) -> dict[str, float]:
    """Return mean, interval and median of one number per run, as a report's results have them."""
    interval, values = bootstrap_mean(values), np.where(np.isfinite(values), values, np.inf)
    return {"mean": interval.mean, "low": interval.low, "high": interval.high, "median": float(np.median(values))}


def ratio_to_best(
    optimizers: Mapping[str, Mapping[str, Any]], name: str, measure: Literal["final", "area"]
) -> tuple[str, Interval]:
    """Return the label of the best tuned hand-designed optimizer, and the ratio of another's mean to its mean.

    The interval is that over runs in pairs; of rows from before rows kept their runs, that of the other's mean alone.
    Where the best one lost a run there is no ratio: it is infinite, from 0.

    **Raises:** `ValueError` where the best one's losses are negative, as `bootstrap_ratio`.
    """
    label, level = best_baseline(optimizers, measure)
    if not math.isfinite(level):
        return label, Interval(math.inf, 0.0, math.inf)
    ours, best = optimizers[name], next(row for row in optimizers.values() if row["label"] == label)
    if not ("each_run" in ours and "each_run" in best):
        check_reference([level])
        return label, Interval(*(loss_of(ours[measure][key]) / level for key in ("mean", "low", "high")))
    return label, bootstrap_ratio(*([loss_of(value) for value in row["each_run"][measure]] for row in (ours, best)))


def best_baseline(optimizers: Mapping[str, Mapping[str, Any]], measure: str) -> tuple[str, float]:
    """Return label and mean of the tuned hand-designed optimizer that is best in `measure` (`final` or `area`).

    Of those that all lost runs, it is the one that lost fewest, and then the one with the lowest median.

    **Raises:** `ValueError` where there is none.
    """
    rows = [row for row in optimizers.values() if row["kind"] == "hand-designed"]
    if not rows:
        raise ValueError(
            "There is no tuned hand-designed optimizer among the results, so that there is no best one. Tune some by"
            " tune_baselines, and give what it returns to compare."
        )
    best = min(rows, key=lambda row: (loss_of(row[measure]["mean"]), _lost(row), loss_of(row[measure].get("median"))))
    return best["label"], loss_of(best[measure]["mean"])


def _lost(row: Mapping[str, Any]) -> int:
    return int(row.get("diverged") or 0)
