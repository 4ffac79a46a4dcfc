"""How a controller is meta-trained and compared in the time given."""

import math
from typing import Any, Literal

from ..evaluation import Protocol
from ..metagrads import NRES, Members
from ..problems import ProblemFamily
from ..training import Recipe

Objective = Literal["training", "validation"]

SHORTEST_WINDOW, LONGEST_WINDOW = 10, 40
VALIDATIONS, VALIDATED_PART = 12, 1 / 4
WORTH_TRYING = 20
"""Meta-steps below which nothing can have been learned. Where time is too short, they are taken all the same."""
BEGINNING = 1.0
"""Seconds that a meta-training needs to begin, at most, when all is compiled."""
LATE = 3.0
"""By what power of time losses count where the end of a run decides: the last twentieth is then a fifth of them. Who
learns from the mean over the run learns to be fast, and a network that is trained sooner overfits sooner."""
FEW_META_STEPS = 2_000
"""Below, the meta-learning-rate bounds how far the meta-parameters can get: what begins as a tuned optimizer moves
further at each."""


def measure_of(objective: Objective) -> Literal["area", "final"]:
    """What decides: the mean loss over the run; for the held-out loss the one at its end, where the model is used."""
    return "final" if objective == "validation" else "area"


def protocol_of(horizon: int, runs: int, seed: int) -> Protocol:
    """How a specialized optimizer is compared."""
    return Protocol(
        horizon, runs=runs, tuning_runs=8, second_order_runs=0, final_window=max(1, horizon // 20), seed=seed, chunk=8
    )


def choose_recipe(
    horizon: int, seconds: float, seed: int, objective: Objective = "training", family: ProblemFamily | None = None
) -> Recipe:
    """Choose how to meta-train a controller in the time given, for runs of `horizon` steps.

    Noise-reuse evolution strategies in the robust form, in windows of about 20 steps: of what was compared at 90
    seconds, the only one that is both unbiased for the horizon and cheap. Where no number of such windows makes up the
    horizon, runs of meta-training are a few steps longer; comparisons are over the horizon itself. The members of a
    `Mixture` are looked at apart, so that none drowns the others.
    """
    estimator = NRES(sigma=0.02, robust=True, late=LATE if measure_of(objective) == "final" else None)

    def whole(steps: int) -> int:  # never shorter: a guard would hand over the last steps, of which it knows nothing
        return steps * math.ceil(horizon / steps)

    windows = range(min(SHORTEST_WINDOW, horizon), LONGEST_WINDOW + 1)
    truncation = min(windows, key=lambda steps: (whole(steps), abs(math.log(steps / 20))))
    return Recipe(
        horizon=whole(truncation),
        truncation=truncation,
        instances=8,
        meta_steps=1_000_000,
        meta_learning_rate=1e-3,
        clip=1.0,
        estimator=Members(estimator) if family is not None and len(family.parts()) > 1 else estimator,
        validate_every=1_000_000,
        validation_runs=16,
        final_window=max(1, horizon // 20),
        select=measure_of(objective),
        seed=seed,
        meta_b2=0.99,
        warmup=20,
        seconds=seconds,
    )


def pace_of(recipe: Recipe, left: float, step: float, validation: float, is_pretrained: bool) -> dict[str, Any]:
    """Return the settings that depend on how many meta-steps of `step` seconds fit into the `left` ones, of which
    validations take a fixed part at most.

    Where they are few, what begins as a tuned optimizer has far to go, so that each moves three times as far. What is
    pretrained has not. The last validation comes after `seconds`. Where these would end before there is anything to
    validate, steps are counted instead: beginning takes longer here and there, and would be all that there is time for.
    """
    seconds = left - validation
    pace: dict[str, Any] = {"seconds": seconds}
    if seconds / step < FEW_META_STEPS and not is_pretrained:
        pace |= {"meta_learning_rate": 3 * recipe.meta_learning_rate}
    if seconds < BEGINNING + validation + WORTH_TRYING * step:
        few = {"meta_steps": WORTH_TRYING, "validate_every": WORTH_TRYING, "warmup": WORTH_TRYING // 4}
        return pace | few | {"seconds": None}
    often = max(1, min(VALIDATIONS, int(VALIDATED_PART * seconds / validation))) if validation > 0 else VALIDATIONS
    return pace | {"validate_every": max(1, round((seconds - often * validation) / step / often))}
