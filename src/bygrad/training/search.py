"""Pattern search over a few numbers: where they matter much, comparing is quicker than estimating a gradient."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float

SMALLEST = 1 / 8
"""Turn below which a dial is left alone."""

SURE = 1.0
"""Standard errors by which one setting must be better than another. With none, half of the turns that are taken are
noise where a dial does nothing."""

Turns = dict[str, float]
Judge = Callable[[Mapping[str, float]], Float[np.ndarray, " runs"]]


@dataclasses.dataclass
class PatternSearch:
    """How far each dial is `turned`; its `next` turn, with its sign; what the last round `moved`; and `rounds` so far.

    **Source:** Hooke and Jeeves, *"Direct search" solution of numerical and statistical problems* (1961), with turns
    that get smaller for each dial by itself, and judged by paired differences, since what is judged is noisy.
    """

    turned: Turns
    next: Turns
    moved: Turns
    rounds: int = 0

    @classmethod
    def begin(cls, dials: Sequence[str]) -> "PatternSearch":
        """Return the search before its first round, with a whole turn to try for each dial."""
        return cls(dict.fromkeys(dials, 0.0), dict.fromkeys(dials, 1.0), dict.fromkeys(dials, 0.0))

    @property
    def is_over(self) -> bool:
        """Whether no dial has a turn left to try."""
        return all(abs(turn) < SMALLEST for turn in self.next.values())

    def round(self, judge: Judge, in_time: Callable[[], bool]) -> None:
        """Repeat what the last round moved, then turn every dial one way, or else the other, and keep what is better.

        A dial that helps neither way is turned by half as much in the next round.

        **Arguments:** `judge`: a loss for each of some runs, the same ones for all settings; infinite or NaN where a
        run was lost. `in_time`: whether there is time for one more setting; without, the round ends as it is.
        """
        began, losses = self.turned, judge(self.turned)

        def better(turned: Turns) -> bool:
            nonlocal losses
            if not in_time():
                return False
            found = judge(turned)
            if not is_lower(found, losses):
                return False
            self.turned, losses = turned, found
            return True

        if any(self.moved.values()):
            better({name: turn + self.moved[name] for name, turn in self.turned.items()})
        for name, turn in self.next.items():
            if abs(turn) < SMALLEST or better(self.turned | {name: self.turned[name] + turn}):
                continue
            if better(self.turned | {name: self.turned[name] - turn}):
                self.next[name] = -turn
            elif in_time():
                self.next[name] = turn / 2
        self.moved = {name: turn - began[name] for name, turn in self.turned.items()}
        self.rounds += 1


def is_lower(losses: Float[np.ndarray, " runs"], others: Float[np.ndarray, " runs"]) -> bool:
    """Whether losses are lower than others of the same runs, by more than chance makes of paired differences."""
    if not np.all(np.isfinite(losses)):
        return False
    if not np.all(np.isfinite(others)):
        return True
    gain = others - losses
    return bool(np.mean(gain) > SURE * np.std(gain) / math.sqrt(len(gain)))
