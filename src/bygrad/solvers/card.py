"""What was measured when a solver was learned, as values and in words."""

import dataclasses

from ..problems import ProblemFamily
from .base import certified


@dataclasses.dataclass(frozen=True)
class Card:
    """What was measured when a solver was learned; JSON values. `report` writes it out.

    **Arguments:** `kept`: the name of the candidate that is used. `candidates`: what each one reached on held-out
    instances. `heldout`: how many these were. `failures`, `fallbacks`: how many of them the kept one did not solve to
    the tolerance, and how many needed the classical solver. `failure_bound`, `steps_bound`: what that proves about
    new instances, at `confidence`. `break_even`: instances after which learning has paid, against each rival.
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


def report(card: Card | None, family: ProblemFamily) -> str:
    """Write the card of a family's solver out: what each candidate reached, what is kept, and what is proven."""
    if card is None:
        return f"{type(family).__name__}: nothing was measured for this solver."
    lines = [
        f"{type(family).__name__}: {card.kept} is kept."
        + ("" if card.pays else " Learning does not pay here: a classical solver is as fast at the same success."),
        "",
        f"On {card.heldout} held-out instances, solved: {_meaning(family).format(card.tol)}",
        f"{'candidate':<38}{'success':>9}{'fits/s':>10}{'evals':>8}{'worst':>7}{'fallback':>10}{'break-even':>12}",
    ]
    for name, it in sorted(card.candidates.items(), key=_simplest_first):
        even = card.break_even.get(name)
        lines.append(
            f"{name:<38}{it['success']:>9.1%}{it['throughput']:>10.0f}{it['evaluations']:>8.1f}{it['worst_steps']:>7.0f}"
            f"{it['fallbacks']:>10.1%}{'' if even is None or not card.pays else f'{even:,.0f}':>12}"
        )
    steps = "no bound: too few instances" if card.steps_bound is None else f"at most {card.steps_bound:.0f}"
    lines += [
        "",
        f"With confidence {card.confidence:.1%}, for new instances of the same distribution:",
        f"  the probability not to be solved is at most {card.failure_bound:.2%}"
        f" ({card.failures} of {card.heldout} held out were not)",
        f"  99 in 100 take, in steps, {steps}",
        "  " + ", ".join(f"{what} {seconds:.0f} s" for what, seconds in sorted(card.seconds.items())),
    ]
    lines.append("  fits/s: for a second of the processor, whatever else it has to do")
    if card.pays:
        lines.append("  break-even: instances after which tuning and training are repaid, against that candidate")
    return "\n".join(lines)


def _simplest_first(candidate: tuple[str, object]) -> tuple[bool, bool, str]:
    """Sort classical candidates before learned ones; a file keeps no order."""
    name = candidate[0]
    return not name.startswith("tuned"), "damping" in name, name


def _meaning(family: ProblemFamily) -> str:
    return "a certificate of {:g} or less" if certified(family) else "within {:g} of the best known cost"
