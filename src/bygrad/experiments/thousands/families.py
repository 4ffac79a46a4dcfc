"""The families that are compared on: an entry for each, with its tolerances, its shift, and what to reach."""

import dataclasses
import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from ..._core.draws import key_of
from ...problems import (
    BallAndStick,
    DampedOscillation,
    EconomicDispatch,
    LennardJones,
    MeanVariance,
    OralDose,
    ProblemFamily,
    QuadrotorControl,
    SparseCoding,
)
from ...problems.data.pictures import PAINTINGS, load_painting, load_photographs
from ...solvers import ADMM, solve
from ...solvers.starts import draws

EARLIER, LATER = slice(5_500), slice(5_500, None)
"""Days that a portfolio of stocks is learned from, and those that it is judged by."""

Source: TypeAlias = Callable[[], ProblemFamily | np.ndarray]
"""Builds a family whose `sample` draws instances, or data: an instance a row."""

Sequence: TypeAlias = Callable[[Any, int, int, int], Any]
"""Maps family, number of sequences, steps and seed to instances `[steps * sequences, ...]`, a step after the other."""


@dataclasses.dataclass(frozen=True)
class Goal:
    """A figure to reach: the throughput of the solvers of one group over that of the best of another, at a tolerance
    (0 is loose, 2 is tight), with success that is no lower."""

    what: str
    ours: str
    against: str
    reach: float
    tolerance: int = 1


@dataclasses.dataclass(frozen=True)
class Case:
    """A family to compare on.

    **Arguments:**

    - `build`: the family that is solved, and whose `sample` draws what is learned from.
    - `shifted`, `shift`: instances from elsewhere, and how they differ, in words.
    - `fresh`: held-out instances, where other draws of `build` would not be held out.
    - `tolerances`: loose, medium and tight. `aim`: for which of them solvers are tuned and learned; for the others
      their tolerance alone is changed.
    - `minimum`: the minimum of all instances, where it is known. `dtype`: precision of our own solvers.
    - `sequence`: draws sequences in which each instance follows from the one before.
    - `patience`: factor on the seconds of learning that a budget allows, where one minute is not enough for a family.
    """

    name: str
    title: str
    build: Callable[[], ProblemFamily]
    shifted: Source
    shift: str
    tolerances: tuple[float, float, float]
    fresh: Source | None = None
    minimum: float | None = None
    dtype: Literal["float32", "float64"] = "float64"
    sequence: Sequence | None = None
    patience: float = 1.0
    goals: tuple[Goal, ...] = ()
    aim: int = 1


def draw(source: ProblemFamily | np.ndarray, count: int, seed: int) -> Any:
    """Draw instances as float64 NumPy arrays; of data, as many different rows as there are."""
    if isinstance(source, np.ndarray):
        return source[np.random.default_rng(seed).permutation(len(source))[:count]].astype(float)
    rows = draws(source, jax.random.split(key_of(seed), count))
    return jax.tree.map(lambda leaf: np.asarray(leaf, float) if leaf.dtype == jnp.float32 else np.asarray(leaf), rows)


def _grey(pictures: np.ndarray) -> np.ndarray:
    return pictures.mean(axis=-1) / 255


def _patches(split: str) -> SparseCoding:
    if split == "paintings":
        images = np.stack([_grey(load_painting(name)) for name in PAINTINGS])
    else:
        images = _grey(load_photographs("train" if split == "train" else "test"))
    return SparseCoding.from_images(images)


def flights(family: Any, sequences: int, steps: int, seed: int) -> np.ndarray:
    """Fly in a closed loop: the next state is the first that was planned, and a gust of a tenth of the spread."""
    draws = jax.random.split(key_of(seed), steps * sequences)
    gusts = 0.1 * np.asarray(jax.vmap(family.sample)(draws), float).reshape(steps, sequences, -1)
    states = [10 * gusts[0]]
    for gust in gusts[1:]:
        planned = solve(family, states[-1], method=ADMM(tol=1e-4), batch=256).x
        states.append(planned[:, 12:24] + gust)
    return np.concatenate(states)


def quarters(family: Any, sequences: int, steps: int, seed: int) -> np.ndarray:
    """Take days at random from the year, and of each the first quarter-hours from its morning on."""
    year = family.year(seed)
    days = np.random.default_rng(seed).choice(len(year) // 96, sequences, replace=False)
    return np.concatenate([year[96 * days + 24 + step] for step in range(steps)])


def another_market(family: MeanVariance, seed: int) -> MeanVariance:
    """Simulate returns of as many assets on as many days."""
    days, assets = family.returns.shape
    return MeanVariance.simulated(days, assets, seed, window=family.window, target=family.target, cap=family.cap)


def stocks(days: slice, **settings: float | int) -> MeanVariance:
    """Build portfolios of 20 stocks of the S&P 500, whose daily prices from 1990 to 2022 come with skfolio, from some
    of these days.

    **Raises:** `ModuleNotFoundError` without it.
    """
    found = importlib.util.find_spec("skfolio")
    if found is None or found.origin is None:
        raise ModuleNotFoundError(
            "Prices of stocks come with skfolio, which is not installed, so there is nothing to compare on. Install it,"
            " pip install skfolio, or choose other families."
        )
    file = Path(found.origin).parent / "datasets" / "data" / "sp500_dataset.csv.gz"
    prices = np.loadtxt(file, delimiter=",", skiprows=1, usecols=range(1, 21))
    return MeanVariance.from_prices(prices[days], **settings)


def rolling(
    family: MeanVariance,
    sequences: int,
    steps: int,
    seed: int,
    market: Callable[[MeanVariance, int], MeanVariance] = another_market,
) -> np.ndarray:
    """Take windows of another market at random, and after each the windows of the days that follow."""
    windows = market(family, seed).windows()
    firsts = np.random.default_rng(seed).choice(len(windows) - steps + 1, sequences, replace=False)
    return np.concatenate([windows[firsts + step] for step in range(steps)])


def voxels() -> np.ndarray:
    """Return the voxels of the scan that hold a signal."""
    signals = BallAndStick.scan().reshape(-1, 102)
    return signals[np.isfinite(signals).all(axis=1) & (signals.min(axis=1) > 0)]


CASES: tuple[Case, ...] = (
    Case(
        "ball-and-stick",
        "Diffusion MRI, ball and stick: 5 params, 102 signals of a voxel",
        BallAndStick.embedded,
        voxels,
        "voxels of a real scan instead of simulated ones",
        (1e-2, 1e-3, 1e-6),
        goals=(
            Goal("batched core against vmap of Optimistix", "batched", "peer", 15.0),
            Goal("batched core against a SciPy loop", "batched", "users", 20.0),
        ),
    ),
    Case(
        "oral-dose",
        "Oral pharmacokinetics: an ODE with 4 params and 12 samples",
        OralDose,
        lambda: OralDose(noise=0.2),
        "twice the noise",
        (1e-2, 1e-3, 1e-6),
        goals=(
            Goal("batched core against vmap of Optimistix", "batched", "peer", 30.0),
            Goal("learned against the best batched classical", "learned", "classical", 4.0),
        ),
    ),
    Case(
        "oscillation",
        "Damped oscillations: 5 params, 41 samples, many local minima",
        DampedOscillation,
        lambda: DampedOscillation(noise=0.3),
        "three times the noise",
        (1e-2, 1e-3, 1e-6),
    ),
    Case(
        "sparse-coding",
        "Sparse coding of 8 x 8 patches with 256 atoms",
        lambda: _patches("train"),
        lambda: _patches("paintings"),
        "patches of paintings instead of photographs",
        (1e-2, 1e-3, 1e-4),
        aim=0,
        fresh=lambda: _patches("test"),
        dtype="float32",
        goals=(
            Goal("learned against the best of ours and of users", "learned", "classical or users", 2.0, tolerance=0),
        ),
    ),
    Case(
        "quadrotor",
        "Model predictive control of a quadrotor: 172 params",
        QuadrotorControl.build,
        lambda: QuadrotorControl.build(spread=2.0),
        "states twice as far from rest",
        (1e-2, 1e-3, 1e-4),
        sequence=flights,
        goals=(Goal("ours against OSQP and Clarabel", "classical or learned", "users", 1.5, tolerance=2),),
    ),
    Case(
        "dispatch",
        "Economic dispatch on the IEEE RTS-96: 96 units, soft limits of lines",
        EconomicDispatch.embedded,
        lambda: 1.1 * EconomicDispatch.embedded().year(1)[::17],
        "all demands a tenth higher",
        (1e-2, 1e-3, 1e-4),
        dtype="float32",
        sequence=quarters,
        patience=5.0,
        goals=(Goal("ours against the best compiled", "classical or learned", "users or compiled", 3.0, tolerance=0),),
    ),
    Case(
        "portfolio",
        "Rolling mean-variance portfolios of 20 assets, a covariance for every window",
        MeanVariance.simulated,
        functools.partial(MeanVariance.simulated, seed=2, window=126),
        "windows half as long, of another market",
        (1e-2, 1e-3, 1e-4),
        fresh=functools.partial(MeanVariance.simulated, seed=1),
        dtype="float32",
        sequence=rolling,
    ),
    Case(
        "stocks",
        "Rolling mean-variance portfolios of 20 stocks of the S&P 500, learned on 1990 to 2011 for 2011 to 2022",
        lambda: stocks(EARLIER),
        lambda: stocks(LATER, window=126),
        "windows half as long",
        (1e-2, 1e-3, 1e-4),
        fresh=lambda: stocks(LATER),
        dtype="float32",
        sequence=functools.partial(rolling, market=lambda *_: stocks(LATER)),
    ),
    Case(
        "lennard-jones",
        "Lennard-Jones clusters of 13 atoms: the lowest of 1,500 minima",
        LennardJones,
        functools.partial(LennardJones, spread=1.5),
        "atoms drawn from a larger ball",
        (1e-2, 1e-3, 1e-6),
        minimum=-44.326801,
    ),
)
"""What `bygrad reproduce thousands` compares on. A further family is one more entry."""
