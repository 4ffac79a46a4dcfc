"""The drift alarm: whether new instances still are like the held-out ones that a card rests on."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, PyTree

from .._core import trees
from .card import Card
from .certificate import failure_bound, is_excess
from .solution import Tally, side_by_side

SAYS = {
    "unsolved": "were not solved at the first attempt",
    "steps": "took more than {:.0f} steps",
    "distance": "have a number more than {:.2g} spreads from the mean of those learned from",
}


SELDOM = 0.01
"""A number that is infinite in no larger share of the instances is far where it is."""


@dataclasses.dataclass(frozen=True)
class Usual:
    """Where the instances lie that were learned from: mean and spread of each of their numbers where they are finite,
    and in which share of the instances each is infinite, a limit that is none; in float32."""

    mean: Float[np.ndarray, " d"]
    spread: Float[np.ndarray, " d"]
    infinite: Float[np.ndarray, " d"]

    @classmethod
    def of(cls, instances: PyTree[np.ndarray]) -> "Usual":
        """Measure them; numbers that are always the same are in units of their own size."""
        rows = _vectors(instances)
        finite, infinite = np.isfinite(rows), np.isinf(rows).sum(axis=0) / max(len(rows), 1)
        count = np.maximum(finite.sum(axis=0), 1)
        mean = np.where(finite, rows, 0.0).sum(axis=0) / count
        spread = np.sqrt(np.square(np.where(finite, rows, mean) - mean).sum(axis=0) / count)
        size = np.where(mean != 0, np.abs(mean), 1.0)
        spread = np.where(spread > 1e-6 * size, spread, size)
        return cls(*(it.astype(np.float32) for it in (mean, spread, infinite)))

    def distance(self, instances: PyTree[np.ndarray]) -> Float[np.ndarray, " rows"]:
        """Return how many spreads from the mean the outermost number of each instance lies.

        It is infinite for NaN, for what is infinite and seldom was, and for instances of another length. It is computed
        in float32 for all: where a number has few values, a level of dose say, one beside the limit would be beyond it
        by rounding in another precision.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            rows = _vectors(instances).astype(np.float32)
            if rows.shape[1] != len(self.mean):
                return np.full(len(rows), np.inf)
            away = np.abs(rows - self.mean) / self.spread
            far = np.max(np.where(np.isinf(rows) & (self.infinite > SELDOM), 0.0, away), axis=1, initial=0.0)
        return np.where(np.isnan(far), np.inf, far)


def signs_of(card: Card) -> Sequence[dict[str, Any]]:
    """Return what the alarm counts: those beyond a limit, whose probability has a bound, the rate."""
    if card.signs or not card.pays:
        return card.signs
    # A card that was written before there were signs.
    rate = failure_bound(card.fallbacks, card.heldout, 1 - (1 - card.confidence) / 2)
    return [{"what": "unsolved", "limit": 0.0, "rate": rate}]


def tally(card: Card, seen: dict[str, np.ndarray], rows: int) -> Tally:
    """Count the instances beyond each sign. `seen`: values by what they are; what was not looked at counts as usual."""
    beyond = (seen.get(sign["what"], np.zeros(rows)) > sign["limit"] for sign in signs_of(card))
    return Tally(rows, tuple(int(it.sum()) for it in beyond))


def alarm(card: Card, tallies: Sequence[Tally]) -> tuple[str, ...]:
    """Return a warning where more of all instances are beyond a sign than chance allows, each at an equal level."""
    rows, signs = sum(it.rows for it in tallies), signs_of(card)
    level = (1 - card.confidence) / (4 * max(len(signs), 1))  # three quarters went into the rates
    told = []
    for at, sign in enumerate(signs):
        count = sum(it.beyond[at] for it in tallies)
        if is_excess(count, rows, sign["rate"], level):
            says = SAYS[sign["what"]].format(sign["limit"])
            told.append(f"{count} of {rows} {says} (held out: at most {sign['rate']:.2%} do)")
    if not told:
        return ()
    return (
        f"The family has drifted: of the instances, {'; '.join(told)}. What is a success still is one by the stopping"
        " rules, but the card no longer holds. Learn again on recent instances.",
    )


def _vectors(instances: PyTree[np.ndarray]) -> Float[np.ndarray, "rows d"]:
    return side_by_side(trees.real_leaves(instances))
