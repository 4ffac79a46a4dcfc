"""Quadratics: section 3.1 and figure 4 (left) of the paper, with its figure's distribution and its text's; learned with
second derivatives, which the paper leaves out."""

import dataclasses

from .._core.types import PRNGKeyArray
from ..evaluation import Protocol
from ..metagrads import Backprop
from ..optimizers import LSTM, GlobalLSTM, Scaled
from ..training import Recipe
from .declaration import Budget, Experiment, Level, Setting

# Second derivatives are cheap here, and they decide: without them meta-training ends a little above the paper's level,
# since an update's effect on later gradients, which a quadratic contracts quickly, is left out of the meta-gradient.
_QUICK = Recipe(
    instances=128,
    meta_steps=500,
    clip=0.1,
    estimator=Backprop(second_derivatives=True),
    validate_every=100,
    validation_runs=1_024,
)
_PAPER = dataclasses.replace(_QUICK, meta_steps=3_000, validate_every=200, validation_runs=4_096, select="final")
_COMMON = Protocol(100, runs=1_024, tuning_runs=1_024, second_order_runs=64, chunk=512)
# Momentum is best close below the rate at which the first problem of thousands is lost: a grid of four rates a decade
# has none that is close enough, and one of so many problems does not tell which rates lose one.
_PROTOCOLS: dict[Budget, Protocol] = {
    "quick": _COMMON,
    "paper": dataclasses.replace(
        _COMMON,
        runs=4_096,
        tuning_runs=4_096,
        second_order_runs=256,
        rates=65,
        rates_per_decade=16,
        confirming_runs=126_976,
    ),
}


# Raw gradients in, as in the paper; updates are a tenth of the output, which learns faster than all of it.
def _optimizer(key: PRNGKeyArray) -> LSTM:
    return LSTM(key, preprocess=Scaled(), output_scale=0.1, initial_step=0.3)


def _averaging(key: PRNGKeyArray) -> GlobalLSTM:
    return GlobalLSTM(key, preprocess=Scaled(), output_scale=0.1, initial_step=0.3)


QUADRATIC = Experiment(
    name="quadratic",
    title="10-dimensional quadratics, W and y uniform",
    optimizer=_optimizer,
    recipes={"quick": _QUICK, "paper": _PAPER},
    protocols=_PROTOCOLS,
    settings=(
        Setting(
            "main",
            "Quadratics, uniform, learned with second derivatives",
            "quadratic",
            horizon=100,
            final_window=1,
            figure="fig4L_quadratics",
            levels=(Level("loss after 100 updates", "final", 0.0387),),
        ),
    ),
)

QUADRATIC_GAUSSIAN = Experiment(
    name="quadratic-gaussian",
    title="10-dimensional quadratics, W and y gaussian",
    optimizer=_optimizer,
    recipes={
        "quick": _QUICK,
        "paper": dataclasses.replace(_PAPER, meta_steps=4_000, meta_learning_rate=3e-2, select="area"),
    },
    protocols=_PROTOCOLS,
    settings=(
        Setting(
            "main",
            "Quadratics, gaussian, learned with second derivatives",
            "quadratic-gaussian",
            horizon=100,
            final_window=1,
            levels=(Level("sum over 100 steps, pre-update", "area", 49.0),),
        ),
    ),
)

# Where problems differ this much, what all coordinates know of one is worth more than training an LSTM for longer.
QUADRATIC_GAUSSIAN_GAC = dataclasses.replace(
    QUADRATIC_GAUSSIAN,
    name="quadratic-gaussian-gac",
    title="10-dimensional quadratics, W and y gaussian, by LSTM+GAC",
    label="LSTM+GAC",
    optimizer=_averaging,
    recipes={"quick": _QUICK, "paper": dataclasses.replace(_PAPER, instances=64, meta_steps=6_000, select="area")},
)
