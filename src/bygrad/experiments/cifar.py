"""Training a convolutional network on CIFAR-10 and on parts of its labels: section 3.3 and figure 7 of the paper."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from .._core.types import PRNGKeyArray
from ..evaluation import Protocol
from ..metagrads import Clone, Imitate, Replay
from ..optimizers import LSTM, Adam, AdamWCosine, Optimizer, Partition, Trapezoid
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
    validate_every=30,
    validation_runs=1,
    final_window=5,
)
_RECIPES: dict[Budget, Recipe] = {
    "quick": _QUICK,
    "paper": dataclasses.replace(_QUICK, meta_steps=900, validate_every=150, validation_runs=4),
}
# Without L-BFGS: batch norm depends on the minibatch, so that there is no objective without noise for its line search.
_PROTOCOLS: dict[Budget, Protocol] = {
    "quick": Protocol(100, runs=2, tuning_runs=1, second_order_runs=0, chunk=1, rates=5, rates_at_once=1),
    "paper": Protocol(
        1_000,
        runs=20,
        tuning_runs=1,
        confirming_runs=4,
        second_order_runs=0,
        chunk=1,
        rates=9,
        rates_at_once=1,
        area_rates=False,
    ),
}

WINDOWS = {100: 5, 400: 10, 1_000: 20}
"""Last losses that make a final loss, by the horizons that figure 7 tells apart. An LSTM that learned in runs of the
first does not know how to end the others."""


def _imitate() -> Imitate:
    return Imitate(Replay(0.3), Adam(jnp.asarray(0.02)), weight=1.0, every=2)


def teacher() -> AdamWCosine:
    """Of long runs; the second moment is of ten steps, a memory that an LSTM learns to have."""
    return _scheduled(0.01, b1=0.9, b2=0.9)


def teacher_of_many_labels() -> AdamWCosine:
    """For five labels and ten: tuned by hand, with ten, on images of training; it is no baseline."""
    return _scheduled(0.02, b1=0.8, b2=0.95)


def teacher_of_middle_runs() -> Trapezoid:
    """For runs of a few epochs, which do not yet end in the noise of minibatches: to take small steps early is to give
    some up. Tuned by hand on 10,000 images of training, as many as there are of the test; it is no baseline."""
    adam = Adam(jnp.asarray(0.02), b1=jnp.asarray(0.8), b2=jnp.asarray(0.95))
    return Trapezoid(adam, warmup=jnp.asarray(50.0), decay=jnp.asarray(0.3))


def _scheduled(learning_rate: float, b1: float, b2: float) -> AdamWCosine:
    settings = {"b1": b1, "b2": b2, "weight_decay": 0.0, "warmup": 50.0}
    return AdamWCosine(jnp.asarray(learning_rate), **{name: jnp.asarray(value) for name, value in settings.items()})


def _long_recipes(horizon: int) -> dict[Budget, Recipe]:
    """Over a long run what counts at the end is to take ever smaller steps, and recorded runs of a teacher show how: no
    gradient is needed beyond them."""
    paper = Recipe(
        horizon=horizon,
        truncation=horizon,
        instances=4,
        meta_steps=2_500,
        meta_learning_rate=1e-2,
        warmup=20,
        validate_every=500,
        validation_runs=2,
        final_window=WINDOWS[horizon],
        select="final",
        keep="last",
    )
    quick = dataclasses.replace(paper, instances=1, meta_steps=60, validate_every=60, validation_runs=1)
    return {"quick": quick, "paper": paper}


_LONG_PROTOCOLS: dict[Budget, Protocol] = {
    "quick": dataclasses.replace(_PROTOCOLS["quick"], runs=1, rates=3),
    "paper": _PROTOCOLS["paper"],
}


def _experiment(
    name: str,
    title: str,
    family: str,
    figure: str,
    horizon: int,
    level: Level,
    *,
    optimizer: Callable[..., Optimizer] = _two,
    labels: str | None = None,
    taught_by: Callable[[], Optimizer] = teacher,
) -> Experiment:
    """Declare an experiment on runs of `horizon` steps.

    `labels`: the family whose labels the optimizer is learned on, where it is another. `taught_by`: in long runs.
    """
    setting = Setting(
        name="main",
        title=f"{title}, {horizon:,} steps",
        family=family,
        horizon=horizon,
        final_window=WINDOWS[horizon],
        figure=figure,
        levels=(level,),
    )
    long = horizon > min(WINDOWS)
    optimizer = functools.partial(optimizer, memory=horizon if long else None)
    recipes, protocols = (_long_recipes(horizon), _LONG_PROTOCOLS) if long else (_RECIPES, _PROTOCOLS)
    return Experiment(
        name,
        setting.title,
        optimizer,
        recipes,
        protocols,
        (setting,),
        train_on=f"{labels or family}-16",
        estimator=(lambda: Clone(taught_by(), coordinates=64)) if long else _imitate,
    )


# Which images the paper's losses are of it does not say: only shares of a baseline's compare with its own.
def _share(reach: float | None, curve: str = "LSTM") -> Level:
    return Level("final loss, share of the best tuned baseline's", "final", reach, relative=True, curve=curve)


_10, _5, _2 = ("cifar10", "fig7L_cifar10"), ("cifar5", "fig7C_cifar5"), ("cifar2", "fig7R_cifar2")
_HELD_OUT = "learned on the held-out labels"
_SUB = "LSTM-sub"
_SHORT_10, _MIDDLE_10, _LONG_10 = ((horizon, _share(1.0)) for horizon in WINDOWS)
_SHORT, _SHORT_SUB = (100, _share(None)), (100, _share(None, _SUB))
_LONG_5, _LONG_5_SUB = (1_000, _share(0.97)), (1_000, _share(1.0, _SUB))
_LONG_2, _LONG_2_SUB = (1_000, _share(0.65)), (1_000, _share(0.65, _SUB))

CIFAR = (
    _experiment("cifar10", "CIFAR-10, two LSTMs", *_10, *_SHORT_10),
    _experiment("cifar10-one", "CIFAR-10, one LSTM for all", *_10, *_SHORT_10, optimizer=_one),
    _experiment("cifar10-middle", "CIFAR-10", *_10, *_MIDDLE_10, taught_by=teacher_of_middle_runs),
    _experiment("cifar10-long", "CIFAR-10", *_10, *_LONG_10, taught_by=teacher_of_many_labels),
    _experiment("cifar5", "CIFAR-5", *_5, *_SHORT),
    _experiment("cifar5-sub", f"CIFAR-5, {_HELD_OUT}", *_5, *_SHORT_SUB, labels="cifar5-held-out"),
    _experiment("cifar5-long", "CIFAR-5", *_5, *_LONG_5, taught_by=teacher_of_many_labels),
    _experiment(
        "cifar5-long-sub",
        f"CIFAR-5, {_HELD_OUT}",
        *_5,
        *_LONG_5_SUB,
        labels="cifar5-held-out",
        taught_by=teacher_of_many_labels,
    ),
    _experiment("cifar2", "CIFAR-2", *_2, *_SHORT),
    _experiment("cifar2-sub", f"CIFAR-2, {_HELD_OUT}", *_2, *_SHORT_SUB, labels="cifar2-held-out"),
    _experiment("cifar2-long", "CIFAR-2", *_2, *_LONG_2),
    _experiment("cifar2-long-sub", f"CIFAR-2, {_HELD_OUT}", *_2, *_LONG_2_SUB, labels="cifar2-held-out"),
)
"""The paper's settings: two LSTMs, and one for all; learned on the labels of the test, and on all others ("sub"); for
runs of 100 steps, of 400 ("middle") and of 1,000 ("long")."""
