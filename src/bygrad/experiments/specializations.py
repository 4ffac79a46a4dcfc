"""What 90 seconds of learning are worth: controllers specialized on small networks, for training and held-out loss."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ..evaluation import LEVEL_HEADINGS, Sheet, bootstrap_ratio, level_cells, level_row, loss_of, strict_json
from ..workflows.folder import reported
from ..workflows.plan import Objective
from ..workflows.specialize import specialize
from ..workflows.worth import ratio
from .declaration import Budget
from .study import Study, Task


@dataclasses.dataclass(frozen=True)
class Case:
    """A family, the steps of its runs, and how many of its images are kept from training where held-out loss counts."""

    family: str
    horizon: int
    held_out: int

    @property
    def name(self) -> str:
        return f"{self.family}, {self.horizon} steps"


CASES = (Case("digits", 400, 400), Case("mnist", 100, 2_000), Case("mnist", 400, 2_000), Case("digits-conv", 400, 400))
"""Small perceptrons; the paper's network over the paper's 100 steps, and over more; and a convolutional network."""

OBJECTIVES: tuple[Objective, ...] = ("training", "validation")
SECONDS: dict[Budget, float] = {"quick": 15.0, "paper": 90.0}
RUNS: dict[Budget, int] = {"quick": 8, "paper": 100}


def _carry_out(task: Task) -> dict[str, Any]:
    seconds, runs = SECONDS[task.budget], RUNS[task.budget]
    task.claim(SPECIALIZATIONS)
    found: dict[str, dict[str, Any]] = {}
    for case in CASES:
        for objective in OBJECTIVES:
            folder = task.folder / f"{case.family}-{case.horizon}-{objective}"
            if (results := reported(folder)) is not None:
                found[f"{case.name}, {objective}"] = results
                continue
            task.display.say(f"{case.name}, {objective} loss", "bold")
            specialized = specialize(
                task.family(case.family),
                seconds,
                objective=objective,
                held_out=case.held_out if objective == "validation" else None,
                horizon=case.horizon,
                folder=folder,
                resume=folder.exists(),
                seed=task.seed,
                runs=runs,
                display=task.display,
                command=task.command,
            )
            found[f"{case.name}, {objective}"] = strict_json(specialized.results)
    levels = [level for what, results in found.items() for level in levels_of(what, results)]
    results = {
        "specializations": {
            what: results["specialization"] | {"losses": _losses(results), "seconds": results["seconds"]}
            for what, results in found.items()
        },
        "levels": levels,
    }
    spent = [results["seconds"]["meta_training"] for results in found.values()]
    statement = (
        f"Controllers, given {seconds:.0f} s each for dials and meta-training, compilation included (they took"
        f" {min(spent):.0f} to {max(spent):.0f}), and compared on {runs} fresh runs. Ratios to the best of the tuned"
        " baselines (Nesterov, Adam, AdamW with a cosine), and for held-out loss, on images that neither learning nor"
        " tuning has seen, to AdamW with a cosine at the best of four weight decays in tuning: below 1 is better."
        " Intervals are over runs in pairs, on the same images all. The reports are in the folders beside this page."
    )
    headings = ("ratio", *LEVEL_HEADINGS[1:])
    sheet = Sheet("Ratios", headings, tuple(map(level_cells, levels)))
    return task.finish(SPECIALIZATIONS, results, statement, [sheet])


def _losses(results: dict[str, Any]) -> dict[str, Any]:
    """Return mean and final losses of all optimizers with intervals, the controller before it learned among them."""
    return {
        row["label"]: {measure: row[measure] for measure in ("area", "final")} for row in results["optimizers"].values()
    }


def levels_of(what: str, results: dict[str, Any]) -> list[dict[str, Any]]:
    """Hold one specialization against its levels: ratios of losses to those of the best tuned baselines."""
    worth, rows = results["specialization"], results["optimizers"]
    if what.endswith("validation"):
        schedules = [row for name, row in rows.items() if name.startswith("adamwcosine")]
        # Its decay is tuned, as its rate: by the images that ours was learned from, and not by those that judge.
        rival = min(schedules, key=lambda row: min(map(loss_of, row["tuning"]["final"])))
        kept = rows["controller" if worth["kept"] == "learned" else "start"]
        ours, theirs = ([loss_of(value) for value in row["each_run"]["final"]] for row in (kept, rival))
        to_schedule = bootstrap_ratio(ours, theirs)
        levels = [
            level_row(f"{what}: final held-out loss, to tuned AdamW with a cosine", 1.0, *to_schedule, sure=True),
            _level(f"{what}: final held-out loss, to whichever tuned baseline is best there", worth, "final", ""),
        ]
    else:
        end = 0.5 if what.startswith("digits,") else None
        levels = [
            _level(f"{what}: mean loss at equal steps", worth, "mean", "", 0.75),
            _level(f"{what}: mean loss at equal seconds", worth, "mean", "_at_equal_seconds", 0.9),
            _level(f"{what}: final loss", worth, "final", "", end),
        ]
    second = worth["second_order_at_equal_seconds"]
    beside = f"{what}: final loss at equal seconds, to that of L-BFGS in the seconds of the best baseline"
    return [*levels, level_row(beside, 1.0, *_ratios(second["ours_there"], second["final_loss"]), sure=True)]


def _level(
    what: str, worth: Mapping[str, Any], measure: Literal["mean", "final"], when: str, reach: float | None = None
) -> dict[str, Any]:
    name = f"{measure}_loss{when}"
    ours = [worth[name], *worth["intervals"][name]]
    return level_row(what, reach, *_ratios(ours, worth[f"best_{measure}_loss"]))


def _ratios(ours: Sequence[float | None], theirs: float | None) -> list[float]:
    return [ratio(loss_of(it), loss_of(theirs)) for it in ours]


SPECIALIZATIONS = Study("specialize", "Controllers specialized in 90 seconds, on small networks", _carry_out)
