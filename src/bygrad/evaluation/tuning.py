"""Tuning of hand-designed optimizers: one program for a whole grid of learning rates."""

import dataclasses
import functools
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped

from .._core.memory import bytes_available
from .._core.programs import Program
from .._core.types import PRNGKeyArray
from ..optimizers import FromOptax
from ..problems import ProblemFamily
from ..unroll import loss_curves
from .report import loss_of
from .runs import SIDE_BY_SIDE, Curves, area, final

POINTS = 17
"""Learning rates of a grid: those of four decades, with both ends."""

PER_DECADE = 4
"""Learning rates of a grid in a decade."""

COMPILE = 4.0
"""Seconds that it takes, about, to compile a program of runs: how long a wait is decided by it, and no result."""

Measure = Literal["final", "area"]
"""What a learning rate is chosen by."""

EXTENSIONS = 3
"""How many times a grid may be continued when the best rate stands at its edge."""

# The adaptive ones take steps of about their learning rate: 1e-2. Lion's are never smaller than it.
CENTRES = {"SGD": 1e-1, "Nesterov": 1e-1, "Lion": 1e-3, "Muon": 3e-2}


@dataclasses.dataclass(frozen=True)
class Tuning:
    """A grid of learning rates `[n]`, ascending, and the mean final loss and area `[n]` at each.

    A rate at which any run is lost has an infinite loss. `best_final` and `best_area` are the best rates. `seconds`:
    how long all rates ran, in this process; else `None`.
    """

    learning_rates: np.ndarray
    final: np.ndarray
    area: np.ndarray
    seconds: float | None = dataclasses.field(default=None, compare=False)

    @property
    def best_final(self) -> float:
        return float(self.learning_rates[_best(self.final)])

    @property
    def best_area(self) -> float:
        return float(self.learning_rates[_best(self.area)])

    def as_json(self) -> dict[str, list[float]]:
        """Return it as lists, without the time; `of_json` reads them."""
        return {name: getattr(self, name).tolist() for name in ("learning_rates", "final", "area")}

    @classmethod
    def of_json(cls, fields: Mapping[str, Sequence[float | None]]) -> "Tuning":
        """Read what `as_json` has given; strict JSON has no number for the loss of a run that diverged."""
        arrays = {name: np.array([loss_of(it) for it in values]) for name, values in fields.items()}
        return cls(arrays["learning_rates"], arrays["final"], arrays["area"])


def _fitting(optimizer: FromOptax, family: ProblemFamily, keys: Any, horizon: int, points: int) -> int | None:
    """Return how many of a grid's rates fit into memory side by side, beside as many of another baseline; or None, if
    all do."""
    needs = _curves.bytes_more(with_learning_rate(optimizer, np.ones(points)), family, keys, horizon, None)
    room = bytes_available() // SIDE_BY_SIDE
    return None if needs <= room else max(1, points * room // needs)


def _best(losses: np.ndarray) -> int:
    """Return where the least loss is; where several are, as on a loss that does not move, in their middle. Where every
    rate loses runs it is at the lowest, so that lower ones are tried."""
    least = np.flatnonzero(losses == np.min(losses))
    return int(least[len(least) // 2 if np.isfinite(np.min(losses)) else 0])


def with_learning_rate(optimizer: FromOptax, rate: Any) -> FromOptax:
    """Return the optimizer with another learning rate, or with a batch of them."""
    return eqx.tree_at(lambda it: it.learning_rate, optimizer, jnp.asarray(rate, jnp.result_type(float)))  # pyright: ignore


def tune(
    optimizer: FromOptax,
    family: ProblemFamily,
    key: PRNGKeyArray,
    *,
    horizon: int,
    runs: int = 8,
    final_window: int = 1,
    points: int = POINTS,
    per_decade: int = PER_DECADE,
    scale: float = 1.0,
    at_once: int | None = None,
    confirming_runs: int = 0,
    measures: Sequence[Measure] = ("final", "area"),
) -> Tuning:
    """Run a hand-designed optimizer at every learning rate of a log grid, on the same instances.

    Where the best rate for a measure stands at an edge of the grid, the grid is continued that way by as many rates
    again, so that the optimum is an interior one.

    **Arguments:** `runs`: instances to average over. `final_window`: how many last losses make the final loss.
    `points`: rates of a grid. `per_decade`: those of a decade. `scale`: times 0.1 for gradient descent, and times 0.01
    for the others, it is the middle of the first grid. `at_once`: rates that run side by side; by default all of them,
    or as many as there is room for. `confirming_runs`: instances more for the rates that count, `confirmed`.
    `measures`: what a rate will be chosen by.
    """
    keys, seconds = jax.random.split(key, runs), 0.0
    at_once = _fitting(optimizer, family, keys, horizon, points) if at_once is None else at_once

    def measure(rates: np.ndarray) -> tuple[Curves, Curves]:
        nonlocal seconds
        arguments = with_learning_rate(optimizer, rates), family, keys, horizon, at_once
        _curves.bytes_needed(*arguments)  # compiles, so that it is not timed
        started = time.perf_counter()
        curves = np.asarray(_curves(*arguments), np.float64)
        seconds = time.perf_counter() - started
        with np.errstate(over="ignore", invalid="ignore"):
            measures = np.stack([final(curves, final_window), area(curves)]).mean(axis=-1)
        finals, areas = np.where(np.isfinite(measures), measures, np.inf)
        return finals, areas

    def further(tuning: Tuning) -> list[np.ndarray]:
        return beyond(tuning.learning_rates, {_best(getattr(tuning, name)) for name in measures}, points, per_decade)

    centre = scale * CENTRES.get(type(optimizer).__name__, 1e-2)
    rates = centre * 10.0 ** ((np.arange(points) - points // 2) / per_decade)
    finals, areas = measure(rates)
    options = {"horizon": horizon, "final_window": final_window, "points": points, "at_once": at_once, "runs": runs}
    extensions = 0
    while True:
        tuning = Tuning(rates, finals, areas)
        more = further(tuning)
        if confirming_runs and (not more or extensions == EXTENSIONS):
            tuning = confirmed(tuning, optimizer, family, key, **options, more=confirming_runs, measures=measures)
            more = further(tuning)
        if not more or extensions == EXTENSIONS:
            return dataclasses.replace(tuning, seconds=seconds)
        for new in more:
            order = np.argsort(np.concatenate([rates, new]))
            both = ((rates, new), *zip((finals, areas), measure(new), strict=True))
            rates, finals, areas = (np.concatenate(pair)[order] for pair in both)
        extensions += 1


def confirmed(
    tuning: Tuning,
    optimizer: FromOptax,
    family: ProblemFamily,
    key: PRNGKeyArray,
    *,
    horizon: int,
    runs: int,
    more: int,
    final_window: int = 1,
    points: int = POINTS,
    at_once: int | None = None,
    measures: Sequence[Measure] = ("final", "area"),
) -> Tuning:
    """Run the best rate and its neighbours on `more` instances, until the best of all has run on them.

    Where a whole grid can only be run on one or two instances, these decide between neighbours; here a few rates get as
    many as that takes. To the losses of the others is added by how much that of the best of these rates has risen: the
    first instances may have been easy ones.

    **Arguments:** `tuning`: the means over `runs` instances, drawn with `key`; the others are drawn apart from these.
    `measures`: what the best is best in. The others as for `tune`.
    """
    keys, options = jax.random.split(jax.random.fold_in(key, 0xC0F), more), {"points": points, "at_once": at_once}
    before = np.stack([tuning.final, tuning.area])
    after, done = np.full_like(before, np.nan), set[int]()
    losses = before
    while True:
        best = [_best(losses[("final", "area").index(measure)]) for measure in measures]
        near = {place for it in best for place in (it - 1, it, it + 1)} & set(range(before.shape[1])) - done
        if not near:
            return Tuning(tuning.learning_rates, *losses)
        for place in sorted(near):
            rate = tuning.learning_rates[place]
            curves = run_tuned(optimizer, rate, family, keys, horizon=horizon, runs=runs, **options)
            with np.errstate(over="ignore", invalid="ignore"):
                sums = np.stack([final(curves, final_window), area(curves)]).sum(axis=1)
                mean = (runs * before[:, place] + sums) / (runs + more)
            after[:, place] = np.where(np.isfinite(mean), mean, np.inf)
        done |= near
        least = np.nanargmin(after, axis=1)[:, None]
        with np.errstate(invalid="ignore"):
            rise = np.take_along_axis(after, least, 1) - np.take_along_axis(before, least, 1)
        losses = np.where(np.isnan(after), before + np.where(np.isfinite(rise), rise, 0.0), after)


def beyond(rates: np.ndarray, best: Collection[int], points: int, per_decade: int = PER_DECADE) -> list[np.ndarray]:
    """Return `points` rates more beyond each edge of a grid at which one of the best stands."""
    above = [rates[-points:] * 10.0 ** (points / per_decade)] if len(rates) - 1 in best else []
    below = [rates[:points] / 10.0 ** (points / per_decade)] if 0 in best else []
    return above + below


def run_tuned(
    optimizer: FromOptax,
    rate: float,
    family: ProblemFamily,
    keys: Shaped[PRNGKeyArray, " runs"],
    *,
    horizon: int,
    runs: int = 8,
    points: int = POINTS,
    at_once: int | None = None,
    seconds: float | None = None,
) -> Curves:
    """Run a hand-designed optimizer at one learning rate, `runs` at a time: curves `[len(keys), horizon + 1]`.

    Where the rates of a grid went side by side, and took less than it takes to compile, this is the program that `tune`
    has compiled, as many times at this rate.

    **Arguments:** `seconds`: how long all rates of the grid ran (`Tuning.seconds`). The others as for `tune`.
    """
    pieces = keys[np.arange(-(-len(keys) // runs) * runs) % len(keys)].reshape(-1, runs)
    is_there = at_once is None and seconds is not None and len(pieces) * seconds < COMPILE
    optimizer = with_learning_rate(optimizer, np.full(points if is_there else 1, rate))
    curves = [np.asarray(_curves(optimizer, family, piece, horizon, at_once)[0], np.float64) for piece in pieces]
    return np.concatenate(curves)[: len(keys)]


@functools.partial(Program, runs="seldom")
def _curves(optimizers: FromOptax, family: ProblemFamily, keys: Any, horizon: int, at_once: int | None) -> Any:
    """`loss_curves` for a batch of learning rates: `[rates, runs, horizon + 1]`."""
    rates = optimizers.learning_rate  # pyright: ignore[reportAttributeAccessIssue]

    def one(rate: Any) -> Any:
        return loss_curves(with_learning_rate(optimizers, rate), family, keys, horizon)

    return jax.vmap(one)(rates) if at_once is None else jax.lax.map(one, rates, batch_size=at_once)
