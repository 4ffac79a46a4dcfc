"""Training a convolutional network on CIFAR-10 and on parts of its labels: section 3.3 and figure 7 of the paper."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from .._core.types import PRNGKeyArray
from ..evaluation import Protocol
from ..metagrads import Clone, Imitate, Replay
from ..optimizers import LSTM, Adam, AdamWCosine, Optimizer, Partition
from ..training import Recipe
from .declaration import Budget, Experiment, Level, Setting


def _one(key: PRNGKeyArray, memory: int | None = None) -> LSTM:
    return LSTM(key, output_scale=0.1, initial_step=0.1, memory=memory)


def _two(key: PRNGKeyArray, memory: int | None = None) -> Partition:
    """One LSTM for the kernels of the convolutions, one for everything else."""
    first, second = jax.random.split(key)
    return Partition(parts={"convolutions": _one(first, memory), "rest": _one(second, memory)})


# Learned on images of half the side, at a quarter of the cost. The meta-gradient of so few instances is too noisy to
# begin with: alone, it leads nowhere in as many meta-steps. A teacher shows the way to where it can improve.
_QUICK = Recipe(
    horizon=100,
    truncation=20,
    instances=2,
    meta_steps=60,
    meta_learning_rate=2e-3,
    clip=0.1,
    estimator=Imitate(Replay(0.3), Adam(jnp.asarray(0.02)), weight=1.0, every=2),
    validate_every=30,
    validation_runs=1,
    final_window=5,
)
_RECIPES: dict[Budget, Recipe] = {
    "quick": _QUICK,
    "paper": dataclasses.replace(_QUICK, meta_steps=900, validate_every=150, validation_runs=4),
}
_PROTOCOLS: dict[Budget, Protocol] = {
    "quick": Protocol(100, runs=2, tuning_runs=1, second_order_runs=0, chunk=1, rates=5, rates_at_once=1),
    "paper": Protocol(
        1_000, runs=20, tuning_runs=1, second_order_runs=0, chunk=1, rates=9, rates_at_once=1, area_rates=False
    ),
}

LONG = 1_000
"""Steps of the longest runs of figure 7: an LSTM that learned in runs of a tenth does not know how to end them."""


def _teacher(learning_rate: float, b1: float, b2: float) -> AdamWCosine:
    settings = {"b1": b1, "b2": b2, "weight_decay": 0.0, "warmup": 50.0}
    return AdamWCosine(jnp.asarray(learning_rate), **{name: jnp.asarray(value) for name, value in settings.items()})


TEACHER = _teacher(0.01, b1=0.9, b2=0.9)
"""The second moment is of ten steps, a memory that an LSTM learns to have."""

TEN_LABELS = _teacher(0.02, b1=0.8, b2=0.95)
"""The lowest with ten labels, of twelve settings in a run each on images of training."""


def _long_recipes(teacher: AdamWCosine) -> dict[Budget, Recipe]:
    """Over a long run what counts at the end is to take ever smaller steps, and recorded runs of a teacher show how: no
    gradient is needed beyond them."""
    paper = Recipe(
        horizon=LONG,
        truncation=LONG,
        instances=4,
        meta_steps=2_500,
        meta_learning_rate=1e-2,
        warmup=20,
        estimator=Clone(teacher, coordinates=64),
        validate_every=500,
        validation_runs=2,
        final_window=20,
        select="final",
    )
    quick = dataclasses.replace(paper, instances=1, meta_steps=60, validate_every=60, validation_runs=1)
    return {"quick": quick, "paper": paper}


_LONG_PROTOCOLS: dict[Budget, Protocol] = {
    "quick": dataclasses.replace(_PROTOCOLS["quick"], horizon=LONG, runs=1, rates=3),
    "paper": _PROTOCOLS["paper"],
}

WINDOWS = {100: 5, 400: 10, LONG: 20}
"""Last losses that make a final loss, by horizon."""


def _experiment(
    name: str,
    title: str,
    family: str,
    figure: str,
    levels: dict[int, Level],
    *,
    optimizer: Callable[..., Optimizer] = _two,
    labels: str | None = None,
    teacher: AdamWCosine = TEACHER,
) -> Experiment:
    """Declare an experiment with one setting for every horizon in `levels`; baselines are tuned for each of them.

    `labels`: the family whose labels the optimizer is learned on, where it is another. `teacher`: of long runs.
    """
    settings = tuple(
        Setting(
            name="main" if number == 0 else f"{horizon}-steps",
            title=f"{title}, {horizon:,} steps",
            family=family,
            horizon=horizon,
            final_window=WINDOWS[horizon],
            figure=figure,
            levels=(level,),
        )
        for number, (horizon, level) in enumerate(levels.items())
    )
    long = settings[0].horizon == LONG
    optimizer = functools.partial(optimizer, memory=LONG if long else None)
    recipes, protocols = (_long_recipes(teacher), _LONG_PROTOCOLS) if long else (_RECIPES, _PROTOCOLS)
    return Experiment(name, title, optimizer, recipes, protocols, settings, train_on=f"{labels or family}-16")


def _loss(paper: float, reach: float | None) -> Level:
    return Level("final loss", "final", paper, reach)


def _share(paper: float, reach: float) -> Level:
    return Level("final loss, share of the best tuned baseline's", "final", paper, reach, relative=True)


_CIFAR10 = {100: _share(1.435 / 1.673, 1.0), 400: _share(1.132 / 1.150, 1.0)}
_CIFAR10_LONG = {LONG: _share(0.823 / 0.801, 1.0)}
_CIFAR5, _CIFAR5_SUB, _CIFAR2, _CIFAR2_SUB = ({100: _loss(level, None)} for level in (0.718, 0.706, 0.217, 0.212))
_CIFAR5_LONG, _CIFAR5_LONG_SUB = ({LONG: _loss(level, level)} for level in (0.358, 0.385))
_CIFAR2_LONG, _CIFAR2_LONG_SUB = ({LONG: _share(level / 0.065, 0.65)} for level in (0.041, 0.039))

_10, _5, _2 = ("cifar10", "fig7L_cifar10"), ("cifar5", "fig7C_cifar5"), ("cifar2", "fig7R_cifar2")
_HELD_OUT = "learned on the held-out labels"

CIFAR = (
    _experiment("cifar10", "CIFAR-10, two LSTMs", *_10, _CIFAR10),
    _experiment("cifar10-one", "CIFAR-10, one LSTM for all", *_10, _CIFAR10, optimizer=_one),
    _experiment("cifar10-long", "CIFAR-10", *_10, _CIFAR10_LONG, teacher=TEN_LABELS),
    _experiment("cifar5", "CIFAR-5", *_5, _CIFAR5),
    _experiment("cifar5-sub", f"CIFAR-5, {_HELD_OUT}", *_5, _CIFAR5_SUB, labels="cifar5-held-out"),
    _experiment("cifar5-long", "CIFAR-5", *_5, _CIFAR5_LONG),
    _experiment("cifar5-long-sub", f"CIFAR-5, {_HELD_OUT}", *_5, _CIFAR5_LONG_SUB, labels="cifar5-held-out"),
    _experiment("cifar2", "CIFAR-2", *_2, _CIFAR2),
    _experiment("cifar2-sub", f"CIFAR-2, {_HELD_OUT}", *_2, _CIFAR2_SUB, labels="cifar2-held-out"),
    _experiment("cifar2-long", "CIFAR-2", *_2, _CIFAR2_LONG),
    _experiment("cifar2-long-sub", f"CIFAR-2, {_HELD_OUT}", *_2, _CIFAR2_LONG_SUB, labels="cifar2-held-out"),
)
"""The paper's settings: two LSTMs, and one for all; learned on the labels of the test, and on all others ("sub"); for
runs of 100 steps, and for "long" ones."""
