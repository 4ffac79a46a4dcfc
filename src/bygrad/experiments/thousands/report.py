"""What the measured cells say: tables, the three gains, break-even numbers, levels, figures, and one page of all."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...evaluation import LEVEL_HEADINGS, Picture, Sheet, level_cells, level_row, write_page
from ...evaluation.figures import gains as draw_gains
from ...evaluation.figures import profiles
from ...evaluation.report import number
from ...solvers import Card
from ..study import Task
from .families import Case, Goal
from .judge import MARGIN, Kind, break_even, excess, gain, profile, time_to_solve
from .measure import Cell, Row

GROUPS = {
    "users": "what users run",
    "compiled": "specialized in small programs",
    "peer": "compiled peer",
    "batched": "our batched core",
    "tuned": "tuned",
    "multistart": "multistart",
    "warm": "warm start",
    "learned": "learned",
    "paper": "the paper's optimizer",
}
CLASSICAL = ("batched", "tuned", "multistart", "warm")
SHARES = (0.5, 0.9, 0.99, 1.0)
_COLOURS = {
    "users": ("sgd", "adamw"),
    "compiled": ("muon",),
    "peer": ("nesterov",),
    "batched": ("adam",),
    "tuned": ("lbfgs",),
    "multistart": ("rmsprop",),
    "learned": ("lstm",),
}
"""Names of optimizers whose colours the figures have."""

Results = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Block:
    """What was measured on one family: rows by set and tolerance, cells by set, tolerance and row.

    `known`: best known costs of every set. `picked`: which instances of a set solvers were given that loop. `cards`: of
    the learned solvers, by seed.
    """

    case: Case
    kind: Kind
    known: dict[str, np.ndarray]
    picked: dict[str, np.ndarray]
    rows: dict[tuple[str, float], list[Row]]
    cells: dict[tuple[str, float, str], Cell]
    cards: list[Card]


def results_of(
    blocks: Sequence[Block], problems: Mapping[str, str], around: Mapping[str, Any], task: Task, effort: dict[str, Any]
) -> dict[str, Any]:
    """Return all that the report says, as JSON values."""
    families = {block.case.name: _family(block, around["usable_cores"]) for block in blocks}
    return {
        "experiment": "thousands",
        "title": "Families of problems solved thousands of times",
        "budget": task.budget,
        "seed": task.seed,
        "effort": effort,
        "circumstances": dict(around),
        "families": families,
        "problems": dict(problems),
        "levels": [
            _level(families[block.case.name], block.case, goal) for block in blocks for goal in block.case.goals
        ],
        "command": task.command,
    }


def _family(block: Block, cores: int) -> dict[str, Any]:
    case = block.case
    best = {name: _best_known(block, name) for name in block.known}
    sets: dict[str, dict[str, list[dict[str, Any]]]] = {name: {} for name in block.known}
    for (name, tol), rows in block.rows.items():
        sets[name][f"{tol:g}"] = [_summary(block, name, tol, row, best[name], cores) for row in rows]
    found = {
        "title": case.title,
        "judged_by": block.kind,
        "shift": case.shift,
        "tolerances": list(case.tolerances),
        "batch": {name: len(costs) for name, costs in block.known.items()},
        "without_solution": {name: float(np.mean(np.isnan(costs))) for name, costs in block.known.items()},
        "sets": sets,
        "learning": [{"kept": it.kept, "pays": it.pays, "seconds": dict(it.seconds)} for it in block.cards],
    }
    found["gains"] = {f"{tol:g}": gains_of(sets["held out"][f"{tol:g}"]) for tol in case.tolerances}
    found["break_even"] = {
        f"{tol:g}": break_even_of(sets["held out"][f"{tol:g}"], found["learning"]) for tol in case.tolerances
    }
    return found


def _best_known(block: Block, name: str) -> np.ndarray:
    """Return the lowest cost of each instance in the reference and, where cost alone decides, in any row."""
    best = block.known[name].copy()
    if block.kind != "cost":
        return best
    for (at, *_), cell in block.cells.items():
        if at == name:
            rows = _places(block, name, cell)
            best[rows] = np.fmin(best[rows], cell.cost)
    return best


def _places(block: Block, name: str, cell: Cell) -> np.ndarray:
    """Return which instances of a set a cell belongs to."""
    whole = len(block.known[name])
    return np.arange(whole) if len(cell.cost) == whole else block.picked[name]


def _summary(block: Block, name: str, tol: float, row: Row, best: np.ndarray, cores: int) -> dict[str, Any]:
    told = {"name": row.name, "group": row.group, "note": row.note, "problem": row.problem}
    cell = block.cells.get((name, tol, row.name))
    if cell is None:
        return told
    batch, rows = len(best), len(cell.cost)
    far = excess(block.kind, cell.assessed, best[_places(block, name, cell)])
    solved = far <= tol
    credit = cores if row.loops else 1
    seconds = cell.finished / credit
    times, shares = profile(seconds, solved, batch)
    return told | {
        "rows": rows,
        "success": float(np.mean(solved)),
        # On the instances that every row has, since others are compared with it by it.
        "success_of_all": float(np.mean(solved if rows < batch else solved[block.picked[name]])),
        "throughput": rows / cell.wall * credit,
        "per_cpu_second": rows / max(cell.cpu, 1e-9),
        "latency": cell.latency,
        "solved_after": {f"{share:g}": time_to_solve(seconds, solved, share, batch) for share in SHARES},
        "worst": float(np.max(far)),
        "evaluations": float(np.mean(cell.evaluations)),
        "fallback": float(np.mean(cell.fallback)),
        "compiling": cell.compiling,
        "profile": {"seconds": times, "shares": shares},
    }


def fastest(
    rows: Sequence[Mapping[str, Any]], groups: Sequence[str], rival: Mapping[str, Any] | None = None
) -> dict[str, Any] | None:
    """Return the fastest row of some groups whose success is near the best of them, or near that of `rival` if that is
    lower. So a solver that is fast and wrong stands for nobody.

    Success is compared on the instances that all rows have, those of the solvers that loop.
    """
    ran = [row for row in rows if row["group"] in groups and "throughput" in row]
    if not ran:
        return None
    enough = max(row["success_of_all"] for row in ran)
    enough = enough if rival is None else min(enough, rival["success_of_all"])
    enough_of_them = [row for row in ran if row["success_of_all"] >= enough - MARGIN]
    return dict(max(enough_of_them, key=lambda row: row["throughput"]))


def falls_short(ours: Mapping[str, Any] | None, rival: Mapping[str, Any] | None) -> bool:
    """Say whether one row's success is below that of another, by more than counts as equal."""
    return ours is not None and rival is not None and ours["success_of_all"] < rival["success_of_all"] - MARGIN


def median_seed(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return the learned row with the middle throughput; of two, the slower."""
    ran = sorted(
        (it for it in rows if it["group"] == "learned" and "throughput" in it), key=lambda it: it["throughput"]
    )
    return dict(ran[(len(ran) - 1) // 2]) if ran else None


def gains_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what batching, tuning and learning are worth, each by itself, and with what success.

    Batching: the batched core over the fastest of what users run. Tuning: over that core, with one start. Learning: the
    median seed over the fastest classical row, of however many starts, that solves as much. `lower` says which of the
    factors comes with less success than that of what it is over.
    """
    learned = median_seed(rows)
    rival = None if learned is None else fastest(rows, CLASSICAL, learned)
    users, core, tuned = (fastest(rows, (group,)) for group in ("users", "batched", "tuned"))
    pairs = {"batching": (core, users), "tuning": (tuned, core), "learning": (learned, rival)}
    stages = {"users": users, "batched": core, "tuned": tuned, "best classical": rival, "learned": learned}
    return {
        **{step: gain(_rate(after), _rate(before)) for step, (after, before) in pairs.items()},
        "lower": [step for step, (after, before) in pairs.items() if falls_short(after, before)],
        "throughput": {name: _rate(row) for name, row in stages.items()},
        "success": {name: None if row is None else row["success"] for name, row in stages.items()},
        "names": {name: None if row is None else row["name"] for name, row in stages.items()},
    }


def _rate(row: Mapping[str, Any] | None) -> float | None:
    return None if row is None else row["throughput"]


def break_even_of(rows: Sequence[Mapping[str, Any]], learning: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return how many instances repay tuning, learning, their comparison and compilation, against four rivals."""
    ours = median_seed(rows)
    if ours is None or not learning:
        return {}
    number_of = int(str(ours["name"]).rsplit(" ", 1)[1])
    spent = sum(learning[min(number_of, len(learning) - 1)]["seconds"].values()) + ours["compiling"]
    groups = {"users": ("users",), "batched": ("batched",), "tuned": ("tuned",), "best classical": CLASSICAL}
    rivals = {name: fastest(rows, group, ours) for name, group in groups.items()}
    counts = {
        name: None if row is None else break_even(spent, 1 / row["throughput"], 1 / ours["throughput"])
        for name, row in rivals.items()
    }
    return {"seconds": spent, "instances": counts}


def _level(family: Mapping[str, Any], case: Case, goal: Goal) -> dict[str, Any]:
    tol = f"{case.tolerances[goal.tolerance]:g}"
    rows = family["sets"]["held out"][tol]
    ours = median_seed(rows) if goal.ours == "learned" else fastest(rows, _groups(goal.ours))
    rival = None if ours is None else fastest(rows, _groups(goal.against), ours)
    ratio = gain(_rate(ours), _rate(rival))
    said = ""
    if ours is not None and rival is not None:
        said = f" ({ours['name']} {ours['success']:.1%}, {rival['name']} {rival['success']:.1%} solved)"
    what = f"{case.name} to {tol}: {goal.what}, ratio of throughputs{said}"
    level = level_row(what, goal.reach, ratio, ratio, ratio, at_least=True)
    # Speed that costs success reaches nothing.
    return level | {"reached": level["reached"] and not falls_short(ours, rival)}


def _groups(text: str) -> tuple[str, ...]:
    parts = text.split(" or ")
    return tuple(group for part in parts for group in (CLASSICAL if part == "classical" else (part,)))


def write(folder: Path, results: Results) -> Path:
    """Write `report.html` and the figures; return the path of the page."""
    around, families = results["circumstances"], results["families"]
    warning = " THE MACHINE WAS BUSY: these times say little." if around["busy"] else ""
    load = "not known" if around["load_at_start"] is None else f"{around['load_at_start']:.2f}"
    statement = (
        f"{around['machine']}, {around['usable_cores']} cores used, load average {load} at the start.{warning}"
        " Solved means within the tolerance of the best known cost, or proven to be (quadratic programs: constraints"
        " and cost), judged alike for all solvers in float64. Throughput is by the clock and without the first call,"
        " which compiles. A solver that takes one instance after the other on one core is credited with a process on"
        " each core. Instances are held out: nothing was tuned or trained on them."
        f" {results['command']}"
    )
    parts: list[Picture | Sheet] = []
    if results["levels"]:
        parts.append(Sheet("Levels", LEVEL_HEADINGS, tuple(level_cells(it) for it in results["levels"])))
    parts += _gains(families)
    for name, family in families.items():
        parts += _of_family(name, family)
    failed = [(name, why) for name, why in results["problems"].items()]
    failed += [(f"{name}: {row['name']}", row["problem"]) for name, it in families.items() for row in _not_run(it)]
    if failed:
        parts.append(Sheet("Not run", ("what", "why"), tuple(failed), text_columns=2))
    versions = tuple((name, str(version)) for name, version in around["versions"].items())
    parts.append(Sheet("Versions", ("package", "version"), versions, text_columns=2))
    return write_page(folder, str(results["title"]), statement, parts)


def _not_run(family: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    rows = {row["name"]: row for by_tol in family["sets"].values() for it in by_tol.values() for row in it}
    return [row for row in rows.values() if row["problem"]]


def _gains(families: Mapping[str, Any]) -> list[Picture | Sheet]:
    if not families:
        return []
    rows, evens, bars = [], [], {}
    for name, family in families.items():
        for tol, found in family["gains"].items():
            rates = [f"{_n(found['throughput'][it])} ({_share(found['success'][it])})" for it in found["throughput"]]
            factors = [
                _n(found[it]) + "\N{DAGGER}" * (it in found["lower"]) for it in ("batching", "tuning", "learning")
            ]
            rows.append((name, tol, *factors, *rates))
            even = family["break_even"][tol]
            if even:
                counts = [_count(count, found["throughput"][it]) for it, count in even["instances"].items()]
                evens.append((name, tol, f"{even['seconds']:.0f}", *counts))
        bars[name] = family["gains"][f"{family['tolerances'][1]:g}"]
    rivals = ("users' best", "batched", "tuned", "best classical")
    caption = (
        "What each step multiplies the throughput by, at the medium tolerance: batching the classical method (against"
        " the fastest of what users run), tuning it on 20 instances, and learning inside it (against the fastest"
        " classical row, of however many starts, that solves as much). Below 1 is a loss."
    )
    return [
        Picture("gains", caption, draw_gains({"gains": bars})),
        Sheet(
            "Three gains: factors (\N{DAGGER}: with less success), and the instances a second (share solved) that they"
            " come from; learned: the median seed",
            ("family", "tolerance", "batching", "tuning", "learning", *rivals, "learned"),
            tuple(rows),
        ),
        Sheet(
            "Break-even: instances that repay tuning, learning, their comparison and compilation, against",
            ("family", "tolerance", "seconds spent", *rivals),
            tuple(evens),
        ),
    ]


def _of_family(name: str, family: Mapping[str, Any]) -> list[Picture | Sheet]:
    medium = f"{family['tolerances'][1]:g}"
    shown = family["sets"]["held out"][medium]
    drawn = _profiles(shown)
    batch = family["batch"]["held out"]
    parts: list[Picture | Sheet] = []
    if drawn:
        measure = f"seconds, for a batch of {batch}"
        figure = profiles({"profiles": drawn, "measure": measure, "share": "share solved", "steps": True})
        parts.append(Picture(f"{name}-time", f"{family['title']}: share solved to {medium} against time.", figure))
    headings = (
        "solver",
        "kind",
        "tolerance",
        "instances",
        "solved",
        "a second",
        "a CPU-second",
        "alone, ms",
        *(f"{share:.0%} after, s" for share in SHARES),
        "worst excess",
        "evaluations",
        "fallback",
        "compiling, s",
    )
    where = {"held out": "held out", "shifted": f"shifted: {family['shift']}", "sequence": "sequences"}
    for name_of_set, by_tol in family["sets"].items():
        rows = [_cells(row, tol) for tol, of_tol in by_tol.items() for row in of_tol if "success" in row]
        title, none = f"{family['title']}, {where[name_of_set]}", family["without_solution"][name_of_set]
        title += f" (for {none:.1%} no feasible point is known)" if none else ""
        parts.append(Sheet(title, headings, tuple(rows), text_columns=2))
    return parts


def _profiles(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Choose what the figure of a family shows, with colours that are the same for every family."""
    middle, drawn = median_seed(rows), {}
    end = 1.3 * max((max(it["profile"]["seconds"], default=0.0) for it in rows if "profile" in it), default=0.0)
    used: dict[str, int] = {}
    for row in rows:
        if "profile" not in row or not row["profile"]["seconds"]:
            continue
        if row["group"] == "learned" and middle is not None and row["name"] != middle["name"]:
            continue
        known, place = _COLOURS.get(row["group"], ()), used.get(row["group"], 0)
        used[row["group"]] = place + 1
        key = known[place] if place < len(known) else row["name"]
        kind = "learned" if row["group"] == "learned" else "hand-designed"
        seconds, shares = row["profile"]["seconds"], row["profile"]["shares"]
        drawn[key] = {"label": row["name"], "kind": kind, "levels": [seconds[0], *seconds, end]}
        drawn[key]["shares"] = [0.0, *shares, shares[-1]]
    return drawn


def _cells(row: Mapping[str, Any], tol: str) -> tuple[str, ...]:
    return (
        row["name"] + (f" ({row['note']})" if row["note"] else ""),
        GROUPS[row["group"]],
        tol,
        f"{row['rows']:,}",
        _share(row["success"]),
        _n(row["throughput"]),
        _n(row["per_cpu_second"]),
        _n(1e3 * row["latency"]),
        *(_n(row["solved_after"][f"{share:g}"]) for share in SHARES),
        _n(row["worst"]),
        _n(row["evaluations"]),
        _share(row["fallback"]),
        f"{row['compiling']:.1f}",
    )


def _n(value: float | None) -> str:
    return "\N{EN DASH}" if value is None else number(value)


def _share(value: float | None) -> str:
    return "\N{EN DASH}" if value is None else f"{value:.1%}"


def _count(value: int | None, rate: float | None) -> str:
    if rate is None:
        return "\N{EN DASH}"
    return "never" if value is None else f"{value:,}"
