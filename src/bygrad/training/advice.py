"""What a user should hear: that a meta-training cannot fit, that devices stay idle, that nothing was learned."""

from collections.abc import Mapping
from typing import Any, Literal

import equinox as eqx
import jax
import numpy as np

from .._core.draws import key_of
from .._core.memory import in_words
from .._core.types import Params, State
from ..metagrads import Evolution, Replay
from ..optimizers import Optimizer
from ..problems import ProblemFamily
from ..unroll import best_segment
from .devices import Devices
from .recipe import Recipe

Part = Literal["the family's data on each device", "the inner problems", "a meta-step", "a validation"]

MUCH = 10
"""An optimizer's state of more than so many times its params is the first thing to make smaller."""


def refuse_what_cannot_fit(
    needs: Mapping[Part, int],
    available: int,
    recipe: Recipe,
    optimizer: Optimizer,
    family: ProblemFamily,
    inner: Any = None,
) -> None:
    """Raise `MemoryError` where a part needs more than is available, both in bytes, and say what to lower.

    `inner`: the inner problems, where they are drawn already, so that it can be said whether segments help.
    """
    instances = f"instances (now {recipe.instances})"
    remedies: dict[Part, str] = {
        "the family's data on each device": "the number of devices (of cores, that is JAX_NUM_CPU_DEVICES)",
        "the inner problems": instances,
        "a meta-step": f"{instances}{_of_windows(recipe, inner)}",
        "a validation": f"validation_runs (now {recipe.validation_runs}; --validation-runs)",
    }
    for part, more in needs.items():
        if more > available:
            raise MemoryError(
                f"Meta-training would need another {in_words(more)} of memory for {part}, but {in_words(available)} are"
                f" free, so it would be killed at the first. Nothing was started. Lower {remedies[part]}."
                f"{_of_the_state(optimizer, family)}"
            )


def _of_windows(recipe: Recipe, inner: Any) -> str:
    """Return the rest of a list of what to lower: where windows are kept, their length, or less of one at a time."""
    if isinstance(recipe.estimator, Evolution):  # keeps nothing but where the window ends
        return ""
    rest = f", truncation (now {recipe.truncation})"
    if inner is None or recipe.estimator != Replay() or not (segment := best_segment(inner, recipe.truncation)):
        return rest
    return f"{rest}, or keep {segment} steps of a window at a time (Replay(segment={segment}), --segment {segment})"


def _of_the_state(optimizer: Optimizer, family: ProblemFamily) -> str:
    """Return what to say of an optimizer whose own state is most of what an instance takes."""

    def of_one() -> tuple[Params, State]:
        key = key_of(0)
        params = family.init(family.sample(key), key)
        return params, optimizer.init(params)

    sizes = (
        sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(it)) for it in eqx.filter_eval_shape(of_one)
    )
    params, state = sizes
    if state <= MUCH * params:
        return ""
    return (
        f" Much of it is the state of {type(optimizer).__name__}: {in_words(state)} an instance, for"
        f" {in_words(params)} of params. A smaller configuration of it (--config) takes less."
    )


def of_idle_devices(devices: Devices, instances: int) -> str | None:
    """Return a warning where instances cannot be divided among all devices."""
    if not (idle := devices.idle):
        return None
    if jax.default_backend() == "cpu" and jax.process_count() == 1:
        return None  # its cores help with single operations on the others
    everything = devices.count + idle
    return (
        f"{idle} of {everything} devices stay idle: {instances} instances can be divided evenly among {devices.count}"
        f" devices at most. Choose a multiple of {everything} instances to use all of them."
    )


def of_what_was_learned(optimizer: Optimizer, recipe: Recipe, steps: int, before: float, after: float) -> str | None:
    """Return a warning where what counts on held-out instances is no better than at the start, or never was finite.

    `steps`: meta-steps that were taken. `before`, `after`: what counts, at the start and at its best.
    """
    measure = recipe.select
    if not steps:
        return (
            f"The {recipe.seconds:.3g} s were over before the first meta-step, so nothing was learned. Give more time."
        )
    if not np.isfinite(after):
        return (
            f"No {measure} on held-out instances was ever finite, so what comes back is the untrained optimizer, which"
            " diverges. Lower its output_scale or learning rate, or check the problem's loss for divisions, logarithms"
            " and roots."
        )
    if np.isfinite(before) and not before - after > 0.02 * abs(before):
        improved = "hardly improved" if after < before else "did not improve"
        sized = ", an output_scale nearer to the size of useful steps" if hasattr(optimizer, "output_scale") else ""
        return (
            f"Meta-training {improved} the {measure} on held-out instances (from {before:.4g} to {after:.4g}). Try a"
            " meta-learning-rate 3 times larger or smaller (1e-3 to 3e-2 works for LSTMs), more"
            f" {'meta-steps' if recipe.seconds is None else 'time'}{sized}, or a longer truncation."
        )
    return None
