"""What was measured when a solver was learned, as values and in words."""

import dataclasses
from typing import Any

from ..problems import ProblemFamily
from .base import certified


@dataclasses.dataclass(frozen=True)
class Card:
    """What was measured when a solver was learned; JSON values. `report` writes it out.

    **Arguments:** `kept`: the name of the candidate that is used. `candidates`: what each one reached on held-out
    instances. `heldout`: how many these were. `failures`, `fallbacks`: how many of them the kept one did not solve to
    the tolerance, and how many were not solved at the first attempt, so that the classical solver was needed, if that
    is another one. `failure_bound`, `steps_bound`: what that proves about new instances. `within`: the same for a
    number of steps: how many were not solved within it, and the bound on that probability. All bounds hold together at
    `confidence`. `signs`: what the drift alarm counts, a limit and a bound on the probability to be beyond it; each
    with `what` is compared. `break_even`: instances after which learning has paid, against each rival.
    """

    kept: str
    candidates: dict[str, dict[str, float]]
    heldout: int
    failures: int
    fallbacks: int
    failure_bound: float
    steps_bound: float | None
    confidence: float
    tol: float
    seconds: dict[str, float]
    break_even: dict[str, float | None]
    pays: bool
    within: dict[str, list[int | float]] = dataclasses.field(default_factory=dict)
    signs: list[dict[str, Any]] = dataclasses.field(default_factory=list)


def report(card: Card | None, family: ProblemFamily) -> str:
    """Write the card of a family's solver out: what each candidate reached, what is kept, and what is proven."""
    if card is None:
        return f"{type(family).__name__}: nothing was measured for this solver."
    width = max(map(len, ("candidate", *card.candidates)))
    lines = [
        f"{type(family).__name__}: {card.kept} is kept."
        + ("" if card.pays else " Learning does not pay here: a classical solver is as fast at the same success."),
        "",
        f"On {card.heldout} held-out instances, solved: {_meaning(family).format(card.tol)}",
        f"{'candidate':<{width}}{'success':>9}{'fits/s':>10}{'evals':>8}{'worst':>7}{'fallback':>10}{'break-even':>12}",
    ]
    for name, it in sorted(card.candidates.items(), key=_simplest_first):
        even = card.break_even.get(name)
        lines.append(
            f"{name:<{width}}{it['success']:>9.1%}{it['throughput']:>10.0f}{it['evaluations']:>8.1f}{it['worst_steps']:>7.0f}"
            f"{it['fallbacks']:>10.1%}{'' if even is None or not card.pays else f'{even:,.0f}':>12}"
        )
    steps = "a number of steps without a bound: too few instances"
    if card.steps_bound is not None:
        steps = f"at most {card.steps_bound:.0f} steps"
    lines += [
        "",
        f"With confidence {card.confidence:.1%}, for new instances of the same distribution, all of this holds:",
        *_bounds(card),
        f"  99 in 100 take {steps}",
        "  " + ", ".join(f"{what} {seconds:.0f} s" for what, seconds in sorted(card.seconds.items())),
    ]
    lines += [
        "  fits/s: for a second of the processor, whatever else it has to do; evals: evaluations for one instance",
        "  worst: steps of the slowest instance; fallback: instances that the classical solver had to solve after all",
    ]
    if card.pays:
        lines.append("  break-even: instances after which tuning and training are repaid, against that candidate")
    return "\n".join(lines)


def _bounds(card: Card) -> list[str]:
    """Say for every number of steps that decides anything how probable it is not to be solved within it."""
    lines = []
    for steps, (count, bound) in sorted(card.within.items(), key=lambda it: int(it[0])):
        if count < card.heldout:
            lines.append(
                f"  the probability not to be solved within {steps} steps is at most {bound:.2%}"
                f" ({count} of {card.heldout} held out were not)"
            )
        if count == card.failures:  # further steps solve no more of them
            break
    return [
        *lines,
        f"  the probability not to be solved {'at all ' if lines else ''}is at most {card.failure_bound:.2%}"
        f" ({card.failures} of {card.heldout} held out were not)",
    ]


def _simplest_first(candidate: tuple[str, object]) -> tuple[bool, bool, str]:
    """Sort classical candidates before learned ones; a file keeps no order."""
    name = candidate[0]
    return not name.startswith("tuned"), "damping" in name, name


def _meaning(family: ProblemFamily) -> str:
    return "a certificate of {:g} or less" if certified(family) else "within {:g} of the best known cost"
