"""What a specialized optimizer is worth against the best tuned baselines: in steps, in seconds, and over many runs."""

import functools
import math
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PRNGKeyArray

from .._core import trees
from .._core.programs import Program
from .._core.types import Tick
from ..evaluation import (
    LBFGS,
    Interval,
    Protocol,
    area,
    best_baseline,
    bootstrap_mean,
    bootstrap_ratio,
    final,
    level_row,
    loss_of,
    run_curves,
    run_in_time,
    with_learning_rate,
)
from ..optimizers import Baselines, Optimizer
from ..problems import ProblemFamily, descended
from ..unroll import compiled_loss_curves, draw, step_keys

FEWEST_TURNS, MOST_TURNS, SECONDS_OF_TURNS = 6, 60, 15.0
"""How often runs are timed: the first number at least, and up to the second while so many seconds have not gone."""

LBFGS_RUNS = 8
"""Runs of L-BFGS, at most."""

LBFGS_SAMPLE = 16
"""Minibatches that its objective is made of, drawn once for a run; of a problem without noise one is all of it. The
objective of all data may take longer for a step than all else has for a run."""


def _unwatched(what: str, done: int, total: int) -> None:
    """Nobody is told."""


def worth_of(
    optimizer: Optimizer,
    ours: Mapping[str, Any],
    rows: Mapping[str, Mapping[str, Any]],
    baselines: Baselines,
    family: ProblemFamily,
    protocol: Protocol,
    spent: float | None,
    watch: Tick = _unwatched,
) -> dict[str, Any]:
    """Hold the kept optimizer against the best tuned baselines: in steps, in seconds, and over many runs.

    **Arguments:** `ours`: its row of the `rows` of a report. `baselines`: those that were tuned. `family`: what `rows`
    are of. `spent`: seconds of the meta-training that the optimizer came from, None for one that needed none. `watch`:
    is called with what is done, how much of how much.

    **Returns:** The mean loss and the final one, at equal steps and at equal seconds, with those of the best baselines;
    and `intervals`: the ends of what the runs, in pairs, say of the ratio to that baseline, times its mean. A loss that
    such an interval excludes is one that the runs tell apart.
    """
    horizon = protocol.horizon
    (area_label, best_area), (final_label, best_final) = (best_baseline(rows, key) for key in ("area", "final"))
    by_label = {row["label"]: row for row in rows.values() if row["kind"] == "hand-designed"}
    rates = {final_label: by_label[final_label]["learning_rate"]}
    rates[area_label] = by_label[area_label]["area_learning_rate"]
    rivals = [with_learning_rate(baselines[label](), rate) for label, rate in rates.items()]
    ours_step, *steps = seconds_per_step([optimizer, *rivals], family, protocol, watch)
    rival_steps = dict(zip(rates, steps, strict=True))
    runs = {label: {key: _runs(row, key) for key in ("area", "final")} for label, row in by_label.items()}
    mean_rival, final_rival = runs[area_label]["area"] / horizon, runs[final_label]["final"]

    key = protocol.keys[1]
    # The same wall-clock as the rival's whole run: ours is told that its run is so much shorter. It is never longer, as
    # no step of ours does less than one of the rivals, and what was timed otherwise is noise.
    same_time = {label: min(horizon, max(1, math.floor(horizon * it / ours_step))) for label, it in rival_steps.items()}
    in_time, tick = {}, functools.partial(watch, "comparing in seconds")
    options: dict[str, Any] = {"runs": protocol.runs, "chunk": protocol.chunk, "tick": tick}
    for steps in set(same_time.values()):
        tick(0, protocol.runs)
        in_time[steps], _ = run_curves(optimizer, family, key, horizon=steps, **options)
    mean_steps, final_steps = same_time[area_label], same_time[final_label]
    ends = final(in_time[final_steps], max(1, final_steps // 20))
    whole_run = horizon * rival_steps[final_label]
    saved = _seconds_saved(ours["curve"], best_final, protocol.final_window, ours_step, whole_run)
    watch("running L-BFGS in as many seconds", 0, 1)
    theirs, second_order = lbfgs_in_time(family, protocol, whole_run)
    watch("running L-BFGS in as many seconds", 1, 1)
    second_order["ours_there"] = list(_beside(ends[: len(theirs)], theirs))
    found = {
        "mean_loss": _beside(_runs(ours, "area") / horizon, mean_rival),
        "final_loss": _beside(_runs(ours, "final"), final_rival),
        "mean_loss_at_equal_seconds": _beside(area(in_time[mean_steps]) / mean_steps, mean_rival),
        "final_loss_at_equal_seconds": _beside(ends, final_rival),
    }
    return {
        **{name: it.mean for name, it in found.items()},
        "intervals": {name: [it.low, it.high] for name, it in found.items()},
        "best_mean_baseline": area_label,
        "best_mean_loss": best_area / horizon,
        "best_final_baseline": final_label,
        "best_final_loss": best_final,
        "steps_at_equal_seconds": {"mean_loss": mean_steps, "final_loss": final_steps},
        "second_order_at_equal_seconds": second_order,
        "seconds_per_step": ours_step,
        "baseline_seconds_per_step": rival_steps[area_label],
        "seconds_of_meta_training": spent,
        "seconds_saved_per_run": saved,
        "break_even_runs": None if spent is None or saved is None or saved <= 0 else math.ceil(spent / saved),
    }


def _runs(row: Mapping[str, Any], measure: str) -> np.ndarray:
    return np.array([loss_of(value) for value in row["each_run"][measure]])


def _beside(ours: np.ndarray, theirs: np.ndarray) -> Interval:
    """Return the mean of `ours`, with the interval of its ratio to that of `theirs` over the same runs, in pairs, times
    the mean of `theirs`; of the difference, where losses may be negative. Where runs are lost there is none of the two,
    and it is that of `ours` alone."""
    if not np.isfinite([ours, theirs]).all():
        return bootstrap_mean(ours)
    level = float(theirs.mean())
    if np.min([ours, theirs]) > 0:
        return Interval(*(level * end for end in bootstrap_ratio(ours, theirs)))
    return Interval(*(level + end for end in bootstrap_mean(ours - theirs)))


def lbfgs_in_time(family: ProblemFamily, protocol: Protocol, seconds: float) -> tuple[np.ndarray, dict[str, Any]]:
    """Run L-BFGS for so many seconds a run, on the first of the runs that the others are compared on.

    **Returns:** its final losses `[runs]`; and its `final_loss`, with `low` and `high`, over how many `runs`, of how
    many `steps` and `minibatches`.
    """
    runs = min(LBFGS_RUNS, protocol.runs)
    keys = jax.random.split(protocol.keys[1], protocol.runs)[:runs]
    minibatches = LBFGS_SAMPLE if _noisy(family, keys[0]) else 1
    ran = run_in_time(LBFGS(minibatches), np.ones(1), family, family, keys, seconds, protocol.horizon)
    end = bootstrap_mean(ran.test[0])
    taken = {"runs": runs, "steps": ran.curves.shape[-1] - 1, "minibatches": minibatches}
    return ran.test[0], {"final_loss": end.mean, "low": end.low, "high": end.high} | taken


@functools.partial(Program, runs="once")
def _noisy(family: ProblemFamily, key: PRNGKeyArray) -> Bool[Array, ""]:
    """Whether minibatches differ: in their gradients, as the losses of a network whose output begins at zero do not."""
    instance, params, run_key = trees.rows(draw(family, key[None]), 0)
    first, second = (family.value_and_grad(params, instance, step_keys(run_key, step)[0]) for step in jnp.arange(2))
    differ = jax.tree.map(lambda one, other: jnp.any(one != other), first, second)
    return jnp.any(jnp.stack(jax.tree.leaves(differ)))


def seconds_per_step(
    optimizers: list[Optimizer], family: ProblemFamily, protocol: Protocol, watch: Tick = _unwatched
) -> list[float]:
    """Time single runs, problem and optimizer together: the least of several, by turns, so that what else the machine
    does disturbs all alike. Where runs are short there are many, since a moment disturbs all of a few. Held-out losses
    are left out, as nobody looks at them in every step."""
    keys, timed = jax.random.split(protocol.keys[1], 1), descended(family)
    times: list[list[float]] = [[] for _ in optimizers]
    turns, started = 0, time.perf_counter()
    while turns < FEWEST_TURNS or (turns < MOST_TURNS and time.perf_counter() - started < SECONDS_OF_TURNS):
        for which, (optimizer, taken) in enumerate(zip(optimizers, times, strict=True)):
            # Told between runs, so that it is none of their time.
            watch("timing single runs", turns * len(times) + which, max(turns + 1, FEWEST_TURNS) * len(times))
            began = time.perf_counter()
            jax.block_until_ready(compiled_loss_curves(optimizer, timed, keys, protocol.horizon))
            taken.append(time.perf_counter() - began)
        turns += 1
    return [min(taken[1:]) / protocol.horizon for taken in times]  # the first ones compile


def _seconds_saved(
    curve: list[float], level: float, window: int, ours_step: float, rival_seconds: float
) -> float | None:
    """Return what a run saves that may stop when it is where the best baseline ends; `None` if it never is."""
    smooth = np.convolve(curve, np.ones(window) / window, "valid")
    reached = np.flatnonzero(np.isfinite(smooth) & (smooth <= level))
    return float(rival_seconds - (reached[0] + window - 1) * ours_step) if reached.size else None


def sentences(worth: Mapping[str, Any]) -> list[str]:
    """Say in words what a specialization is worth, as it is or as JSON has it."""
    mean, final = (_against(worth[f"{key}_loss"], worth[f"best_{key}_loss"]) for key in ("mean", "final"))
    same_time = _against(worth["mean_loss_at_equal_seconds"], worth["best_mean_loss"])
    slower = worth["seconds_per_step"] / worth["baseline_seconds_per_step"]
    lines = [
        f"mean loss over the run: {mean} that of the best tuned baseline ({worth['best_mean_baseline']}) at equal"
        f" steps, {same_time} at equal seconds; a step takes {slower:.2f} x as long",
        f"final loss: {final} that of the best tuned baseline ({worth['best_final_baseline']})",
        _beside_lbfgs(worth),
    ]
    if worth["seconds_of_meta_training"] is None:
        lines.append("nothing that was learned is in it, so there is no meta-training to repay")
    elif worth["break_even_runs"] is None:
        lines.append("it saves no time: it does not get sooner where the best tuned baseline ends")
    else:
        lines.append(
            f"a run gets where the best tuned baseline ends {worth['seconds_saved_per_run']:.3g} s sooner, so"
            f" {worth['break_even_runs']:,} runs repay the meta-training"
        )
    return lines


def _beside_lbfgs(worth: Mapping[str, Any]) -> str:
    second = worth["second_order_at_equal_seconds"]
    theirs, (ours, low, high) = loss_of(second["final_loss"]), map(loss_of, second["ours_there"])
    # Where runs are lost, ours is an interval of its own (`_beside`), and so is what it is held against.
    lost = math.isinf(ours) or math.isinf(theirs)
    least, most = (loss_of(second[end]) for end in ("low", "high")) if lost else (theirs, theirs)
    said = (
        f"final loss of L-BFGS, in the seconds of a run of {worth['best_final_baseline']} ({second['steps']} steps of"
        f" {second['minibatches']} minibatches, {second['runs']} runs): {_against(theirs, ours)} that of this optimizer"
        " in as many"
    )
    if most < low and second["runs"] > 1:
        return f"{said}. Use L-BFGS instead, if the end of a run is what counts"
    if least <= high:  # and one run alone tells nothing apart
        return f"{said}. So few runs do not tell which of the two is lower"
    return said


def _against(ours: float | None, theirs: float | None) -> str:
    """Say how much larger a loss is: as a factor, or where there is none as a difference."""
    ours, theirs = loss_of(ours), loss_of(theirs)
    if math.isinf(ours) and math.isinf(theirs):
        return "as infinite as"
    factor, more = ratio(ours, theirs), ours - theirs
    if not math.isnan(factor):
        return f"{factor:.2f} x"
    return f"{abs(more):.3g} {'above' if more > 0 else 'below'}"


def ratio(ours: float, theirs: float) -> float:
    """Return how much larger a loss is, infinite where the other one is zero; of negative losses there is no ratio."""
    if ours < 0 or theirs < 0:
        return math.nan
    return ours / theirs if theirs > 0 else math.inf if ours > 0 else 1.0


def _interval(worth: Mapping[str, Any], measure: str) -> list[float]:
    return [worth[measure], *worth["intervals"][measure]]


def rows_of(worth: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The evidence as rows of a report: what to reach is the level of the best tuned baseline."""
    rows = []
    for measure in ("mean", "final"):
        label, level = worth[f"best_{measure}_baseline"], worth[f"best_{measure}_loss"]
        steps = worth["steps_at_equal_seconds"][f"{measure}_loss"]
        for what, key in (("at equal steps", ""), (f"in its seconds: {steps} of our steps", "_at_equal_seconds")):
            numbers = _interval(worth, f"{measure}_loss{key}")
            rows.append(level_row(f"{measure} loss beside {label}, {what}", level, *numbers))
    second = worth["second_order_at_equal_seconds"]
    what = f"L-BFGS: {second['steps']} steps of {second['minibatches']} minibatches, {second['runs']} runs"
    rows.append(
        level_row(f"final loss beside {what}, in the same seconds", second["final_loss"], *second["ours_there"])
    )
    if worth["break_even_runs"] is not None:
        rows.append(level_row("runs that repay the meta-training", None, worth["break_even_runs"]))
    return rows
