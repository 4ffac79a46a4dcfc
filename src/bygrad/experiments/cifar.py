"""Training a convolutional network on CIFAR-10 and on parts of its labels: section 3.3 and figure 7 of the paper."""

import dataclasses
from collections.abc import Callable

import jax

from .._core.types import PRNGKeyArray
from ..evaluation import Protocol
from ..metagrads import Replay
from ..optimizers import LSTM, Optimizer, Partition
from ..training import Recipe
from .declaration import Budget, Experiment, Level, Setting


def _one(key: PRNGKeyArray) -> LSTM:
    return LSTM(key, output_scale=0.1, initial_step=0.1)


def _two(key: PRNGKeyArray) -> Partition:
    """One LSTM for the kernels of the convolutions, one for everything else."""
    first, second = jax.random.split(key)
    return Partition(parts={"convolutions": _one(first), "rest": _one(second)})


_QUICK = Recipe(
    horizon=100,
    truncation=20,
    instances=1,  # a convolution with kernels of its own for every instance is slow on CPUs
    meta_steps=60,
    clip=0.1,
    estimator=Replay(0.1),
    validate_every=30,
    validation_runs=1,
    final_window=5,
)
_RECIPES: dict[Budget, Recipe] = {
    "quick": _QUICK,
    "paper": dataclasses.replace(
        _QUICK, horizon=1_000, meta_steps=4_000, validate_every=500, validation_runs=2, final_window=20
    ),
}
_PROTOCOLS: dict[Budget, Protocol] = {
    "quick": Protocol(100, runs=2, tuning_runs=1, second_order_runs=0, chunk=1, rates=5, rates_at_once=1),
    "paper": Protocol(1_000, runs=20, tuning_runs=1, second_order_runs=0, chunk=1, rates=9, rates_at_once=1),
}


def _experiment(
    name: str,
    title: str,
    family: str,
    figure: str,
    levels: tuple[Level, ...],
    *,
    optimizer: Callable[[PRNGKeyArray], Optimizer] = _two,
    train_on: str | None = None,
) -> Experiment:
    quick = Level("loss after 100 updates", "final", None, None)
    return Experiment(
        name=name,
        title=title,
        optimizer=optimizer,
        recipes=_RECIPES,
        protocols=_PROTOCOLS,
        settings=(
            Setting("main", f"{title}, 100 steps", family, 100, 5, figure=figure, levels=(quick,)),
            Setting("1000-steps", f"{title}, 1,000 steps", family, 1_000, 20, figure=figure, levels=levels),
        ),
        train_on=train_on,
    )


def _share(step: int, paper: float, reach: float) -> Level:
    what = f"loss after {step:,} updates, share of the best tuned baseline's"
    return Level(what, "final", paper, reach, relative=True, step=None if step == 1_000 else step)


_CIFAR10 = (_share(100, 1.435 / 1.673, 1.0), _share(400, 1.132 / 1.150, 1.0), _share(1_000, 0.823 / 0.801, 1.0))
_CIFAR5, _CIFAR5_SUB = (Level("loss after 1,000 updates", "final", level, level) for level in (0.358, 0.385))
_CIFAR2, _CIFAR2_SUB = (_share(1_000, level / 0.065, 0.65) for level in (0.041, 0.039))

CIFAR = (
    _experiment("cifar10", "CIFAR-10, two LSTMs", "cifar10", "fig7L_cifar10", _CIFAR10),
    _experiment("cifar10-one", "CIFAR-10, one LSTM for all", "cifar10", "fig7L_cifar10", _CIFAR10, optimizer=_one),
    _experiment("cifar5", "CIFAR-5", "cifar5", "fig7C_cifar5", (_CIFAR5,)),
    _experiment(
        "cifar5-sub",
        "CIFAR-5, learned on the held-out labels",
        "cifar5",
        "fig7C_cifar5",
        (_CIFAR5_SUB,),
        train_on="cifar5-held-out",
    ),
    _experiment("cifar2", "CIFAR-2", "cifar2", "fig7R_cifar2", (_CIFAR2,)),
    _experiment(
        "cifar2-sub",
        "CIFAR-2, learned on the held-out labels",
        "cifar2",
        "fig7R_cifar2",
        (_CIFAR2_SUB,),
        train_on="cifar2-held-out",
    ),
)
"""The paper's settings: two LSTMs, and one for all; learned on the labels of the test, and on all others ("sub")."""
