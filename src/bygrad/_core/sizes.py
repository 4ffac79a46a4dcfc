"""Horizons, and the sizes that a manifest says an optimizer was trained on: what JAX and PyTorch share of them."""

import math
import numbers
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeVar, get_args

Tensor = TypeVar("Tensor")

Action = Literal["warn", "fall back", "refuse"]
"""What an envelope does outside of it."""

IN_TORCH = "LSTM", "Controller"
"""Optimizers that have a rule for PyTorch too."""

HANDED_OVER = (
    "{} There the fallback alone moves the params. Train the optimizer on problems like this one, or give"
    " guard=lambda learned: Guard(learned, fallback) to let trials alone decide."
)
"""What is said where an envelope hands over to the fallback."""

LARGEST = 2**31 - 1
"""Number that can be counted: states count in 32 bits, as JAX does."""

INFINITE = 3e38
"""From where on no number is surely finite in float32."""

NO_HORIZON = (
    "{} goes by how many steps a run will have, and was not told: its steps end as for a run of {:,}, and stay small"
    " after that. Give horizon=."
)
"""What is said where an artifact that goes by the horizon is deployed without one."""


def check_envelope(action: str, factor: float) -> None:
    """Refuse an envelope that nothing would come of, or that nothing would fit into."""
    if action not in (actions := get_args(Action)) or not factor >= 1:
        raise ValueError(
            f"action={action!r}, factor={factor}: an envelope would watch, and nothing would be done outside of it, or"
            f" no size would be inside. Give one of {', '.join(map(repr, actions))}, and a factor of at least 1."
        )


def beyond(horizon: int, until: int, first: int) -> str:
    """Return what a guard says of a run that its envelope will end at `until`. `first`: steps of each part of the first
    trial, the shortest."""
    consequence = (
        "no trial of such a run would be over by then, so the fallback alone moves the params, from the first step to"
        " the last"
        if 2 * first > until
        else "from there on the fallback alone moves the params, and nothing is tried that would not be over by then"
    )
    return (
        f"The run will have {horizon:,} steps, but the learned optimizer was trained on runs of {until:,}:"
        f" {consequence}. Train it on longer runs, or give guard=lambda learned: Guard(learned, fallback) to let it be"
        " judged throughout."
    )


def check_trials(window: int, share: float, margin: float, growth: float | None) -> float:
    """Return the growth of a guard's windows, by default as much as fits the share; refuse what could not judge."""
    growth = min(0.02, share / 2) if growth is None else growth
    windows = is_whole(window) and window >= 4 and (share == 0 or 0 <= growth <= share / 2)
    if not (windows and 0 <= share <= 0.5 and margin >= 0):
        raise ValueError(
            f"window={window}, share={share}, margin={margin}, growth={growth}: the guard could not judge, or not keep"
            " to its share. Give a whole window >= 4, 0 <= share <= 0.5, margin >= 0 and 0 <= growth <= share / 2."
        )
    return growth


def whole_number(given: Any, name: str = "horizon", counted: str = "steps of a run") -> int:
    """Return a horizon, or what else is counted, as an integer; `ValueError` for what is no such number."""
    number = given.item() if getattr(given, "ndim", None) == 0 else given
    if not isinstance(number, int | float) or isinstance(number, bool) or not 1 <= number <= LARGEST or number % 1:
        raise ValueError(
            f"The {name} is {given!r}, but it counts the {counted}. Give a whole number from 1 to {LARGEST:,}."
        )
    return int(number)


def is_whole(value: Any) -> bool:
    """Whether a setting is an integer, Python's or NumPy's; `True` and 20.0 are none."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def all_count(*settings: Any, least: int = 1) -> bool:
    """Whether all of these are integers of at least that size."""
    return all(is_whole(setting) and setting >= least for setting in settings)


def all_positive(*settings: float) -> bool:
    """Whether all of these are positive and finite. NaN is neither, though `<= 0` would let it pass."""
    return all(0 < setting < math.inf for setting in settings)


def all_sizes(*settings: float) -> bool:
    """Whether all of these are finite and not negative, as standard deviations and weights are."""
    return all(0 <= setting < math.inf for setting in settings)


def horizons(tensors: Mapping[str, Tensor]) -> list[Tensor]:
    """Return the horizons among named tensors: of the rule itself, or of its parts (`parts/matrices/horizon`)."""
    return [tensor for name, tensor in tensors.items() if name.split("/")[-1] == "horizon"]


class TrainedSizes(NamedTuple):
    """Number of params, or the least and the most, the 1st and the 99th percentile of gradients, and steps of a run;
    None: not known."""

    parameter_count: int | tuple[int, int] | None
    gradient_scale: tuple[float, float] | None
    horizon: int | None


def trained_sizes(training: dict[str, Any]) -> TrainedSizes:
    """Read them from `manifest.training`, which may hold any JSON: what is no such size is not known."""
    scale, recipe = (it if isinstance(it := training.get(name), dict) else {} for name in ("gradient_scale", "recipe"))
    match training.get("parameter_count"):
        case [least, most] if _counts(least) and _counts(most) and least <= most:  # of a mixture, whose members differ
            count = least, most
        case one:
            count = one if _counts(one) else None
    sizes = _size(scale.get("0.01")), _size(scale.get("0.99"))
    horizon = recipe.get("horizon")
    known = 0 < sizes[0] <= sizes[1]
    return TrainedSizes(count, sizes if known else None, horizon if _counts(horizon, LARGEST) else None)


def _size(value: Any) -> float:
    """Return the size of a gradient; 0 for what is none."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and 0 < value < INFINITE else 0.0


def _counts(value: Any, most: int = 2**63 - 1) -> bool:
    return is_whole(value) and 1 <= value <= most


def is_near(size: int, trained: int | tuple[int, int], factor: float) -> bool:
    """Whether a number of params is at most `factor` times smaller or larger than those of training."""
    least, most = trained if isinstance(trained, tuple) else (trained, trained)
    return least / factor <= size <= most * factor
