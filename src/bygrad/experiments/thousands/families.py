"""The families that are compared on: an entry for each, with its tolerances, its shift, and what to reach."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...problems import DampedOscillation, OralDose, ProblemFamily, QuadrotorControl, SparseCoding
from ...problems.data.pictures import PAINTINGS, load_painting, load_photographs
from ...solvers import ADMM, solve
from .judge import Certificate

Sequence = Callable[[Any, int, int, int], Any]
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
    - `shifted`, `shift`: a family whose `sample` draws instances from elsewhere, and how they differ, in words.
    - `fresh`: one whose `sample` draws held-out instances, where other draws of `build` would not be held out.
    - `tolerances`: loose, medium and tight. `certificate`: a proven bound to judge by instead of the best known cost.
    - `sequence`: draws sequences in which each instance follows from the one before.
    - `rivals`: names of the rivals that serve this family alone, beside those that serve its structure.
    """

    name: str
    title: str
    build: Callable[[], ProblemFamily]
    shifted: Callable[[], ProblemFamily]
    shift: str
    tolerances: tuple[float, float, float]
    fresh: Callable[[], ProblemFamily] | None = None
    certificate: Certificate | None = None
    sequence: Sequence | None = None
    rivals: tuple[str, ...] = ()
    goals: tuple[Goal, ...] = ()


def draw(family: ProblemFamily, count: int, seed: int) -> Any:
    """Draw instances as float64 NumPy arrays."""
    rows = jax.jit(jax.vmap(family.sample))(jax.random.split(jax.random.key(seed), count))
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
    draws = jax.random.split(jax.random.key(seed), steps * sequences)
    gusts = 0.1 * np.asarray(jax.vmap(family.sample)(draws), float).reshape(steps, sequences, -1)
    states = [10 * gusts[0]]
    for gust in gusts[1:]:
        planned = solve(family, states[-1], method=ADMM(tol=1e-4), batch=256).x
        states.append(planned[:, 12:24] + gust)
    return np.concatenate(states)


CASES: tuple[Case, ...] = (
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
        fresh=lambda: _patches("test"),
        goals=(
            Goal("learned against the best of ours and of users", "learned", "classical or users", 2.0, tolerance=0),
        ),
    ),
    Case(
        "quadrotor",
        "Model predictive control of a quadrotor: 172 params, 304 constraints",
        QuadrotorControl.build,
        lambda: QuadrotorControl.build(spread=2.0),
        "states twice as far from rest",
        (1e-2, 1e-3, 1e-4),
        sequence=flights,
        goals=(Goal("ours against OSQP and Clarabel", "classical or learned", "users", 1.5, tolerance=2),),
    ),
)
"""What `bygrad reproduce thousands` compares on. A further family is one more entry."""
