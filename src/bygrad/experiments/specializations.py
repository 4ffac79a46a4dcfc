"""What 90 seconds of learning are worth: controllers specialized on small networks, for training and held-out loss."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ..evaluation import LEVEL_HEADINGS, Sheet, best_baseline, level_cells, level_row, loss_of, strict_json
from ..problems import find_family
from ..workflows.specialize import Objective, specialize
from ..workflows.worth import ratio
from .declaration import Budget
from .study import Study, Task, reported


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
                find_family(case.family, data=task.data),
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
    statement = (
        f"Controllers, meta-trained for {seconds:.0f} s each, compilation included, and compared on {runs} fresh runs."
        " Ratios to the best of the tuned baselines (Nesterov, Adam, AdamW with a cosine), and for held-out loss to"
        " AdamW with a cosine, at the best of four weight decays: below 1 is better. Intervals are those of the"
        " controller's losses, as shares of the baseline's mean. The reports of each are in the folders beside this"
        " page."
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
        _, best = best_baseline(rows, "final")
        rival = min(loss_of(row["final"]["mean"]) for name, row in rows.items() if name.startswith("adamwcosine"))
        return [
            _level(f"{what}: final held-out loss, to tuned AdamW with a cosine", worth, "final_loss", rival, 1.0),
            _level(f"{what}: final held-out loss, to the best tuned baseline", worth, "final_loss", best, None),
            *_beside_lbfgs(what, worth),
        ]
    mean, final = worth["best_mean_loss"], worth["best_final_loss"]
    return [
        _level(f"{what}: mean loss at equal steps", worth, "mean_loss", mean, 0.75),
        _level(f"{what}: mean loss at equal seconds", worth, "mean_loss_at_equal_seconds", mean, 0.9),
        _level(f"{what}: final loss", worth, "final_loss", final, 0.5 if what.startswith("digits,") else None),
        *_beside_lbfgs(what, worth),
    ]


def _beside_lbfgs(what: str, worth: Mapping[str, Any]) -> list[dict[str, Any]]:
    second = worth.get("second_order_at_equal_seconds")
    if second is None:  # results of earlier versions
        return []
    beside = f"{what}: final loss at equal seconds, to that of L-BFGS in the seconds of the best baseline"
    return [_level(beside, worth, "final_loss_at_equal_seconds", second["final_loss"], 1.0)]


def _level(
    what: str, worth: Mapping[str, Any], measure: str, theirs: float | None, reach: float | None
) -> dict[str, Any]:
    ours = [worth[measure], *worth.get("intervals", {}).get(measure, [])]  # results of earlier versions have no ends
    return level_row(what, reach, *(ratio(loss_of(it), loss_of(theirs)) for it in ours))


SPECIALIZATIONS = Study("specialize", "Controllers specialized in 90 seconds, on small networks", _carry_out)
