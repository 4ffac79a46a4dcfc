"""What the measured cells say: of every solver, the three gains, break-even numbers and levels."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...evaluation import level_row
from ...solvers import Card
from ..study import Task
from .families import Case, Goal
from .judge import MARGIN, Kind, break_even, excess, gain, profile, time_to_solve
from .measure import Cell, Row

CLASSICAL = ("batched", "tuned", "multistart", "warm")
OTHERS = ("compiled", "peer")
"""Groups of others' compiled solvers, of small programs or by `vmap`."""
SHARES = (0.5, 0.9, 0.99, 1.0)
Results = Mapping[str, Any]
"""What `results_of` returns, JSON values."""


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
    cards: dict[int, Card]


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
        "learning": [
            {"seed": seed, "kept": it.kept, "pays": it.pays, "seconds": dict(it.seconds)}
            for seed, it in block.cards.items()
        ],
    }
    found["gains"] = {f"{tol:g}": gains_of(sets["held out"][f"{tol:g}"], block.cards) for tol in case.tolerances}
    found["break_even"] = {
        f"{tol:g}": break_even_of(sets["held out"][f"{tol:g}"], block.cards) for tol in case.tolerances
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


def learned_label(seed: int) -> str:
    """Name the row of what was learned with a seed."""
    return f"learned, seed {seed}"


def median_seed(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return the learned row with the middle throughput; of two, the slower."""
    ran = sorted(
        (it for it in rows if it["group"] == "learned" and "throughput" in it), key=lambda it: it["throughput"]
    )
    return dict(ran[(len(ran) - 1) // 2]) if ran else None


def _card(row: Mapping[str, Any], cards: Mapping[int, Card]) -> Card:
    """Return the card of a learned row."""
    return next(card for seed, card in cards.items() if learned_label(seed) == row["name"])


def gains_of(rows: Sequence[Mapping[str, Any]], cards: Mapping[int, Card]) -> dict[str, Any]:
    """Return what batching, tuning and learning are worth, each by itself, and with what success.

    Batching: the batched core over the fastest of what users run. Tuning: over that core, with one start. Learning: the
    median seed over the fastest classical row, of however many starts, that solves as much; None where nothing learned
    was kept, as that row is a classical one then. `lower` says which of the factors comes with less success than that
    of what it is over.
    """
    learned = median_seed(rows)
    if learned is not None and not _card(learned, cards).pays:
        learned = None
    rival = None if learned is None else fastest(rows, CLASSICAL, learned)
    users, others, core, tuned = (fastest(rows, it) for it in (("users",), OTHERS, ("batched",), ("tuned",)))
    pairs = {"batching": (core, users), "tuning": (tuned, core), "learning": (learned, rival)}
    stages = {
        "users": users,
        "others": others,
        "batched": core,
        "tuned": tuned,
        "best classical": rival,
        "learned": learned,
    }
    return {
        **{step: gain(_rate(after), _rate(before)) for step, (after, before) in pairs.items()},
        "lower": [step for step, (after, before) in pairs.items() if falls_short(after, before)],
        "throughput": {name: _rate(row) for name, row in stages.items()},
        "success": {name: None if row is None else row["success"] for name, row in stages.items()},
        "names": {name: None if row is None else row["name"] for name, row in stages.items()},
    }


def _rate(row: Mapping[str, Any] | None) -> float | None:
    return None if row is None else row["throughput"]


def break_even_of(rows: Sequence[Mapping[str, Any]], cards: Mapping[int, Card]) -> dict[str, Any]:
    """Return how many instances repay tuning, learning, their comparison and compilation, against five rivals; nothing
    where nothing learned was kept."""
    ours = median_seed(rows)
    if ours is None or not (card := _card(ours, cards)).pays:
        return {}
    # Later seeds find the programs that the first one compiled.
    compiling = max(row["compiling"] for row in rows if row["group"] == "learned" and "compiling" in row)
    spent = sum(card.seconds.values()) + compiling
    groups = {"users": ("users",), "others": OTHERS, "batched": ("batched",), "tuned": ("tuned",)}
    groups |= {"best classical": CLASSICAL}
    rivals = {name: fastest(rows, group, ours) for name, group in groups.items()}
    counts = {
        name: None if row is None else break_even(spent, 1 / row["throughput"], 1 / ours["throughput"])
        for name, row in rivals.items()
    }
    return {"seconds": spent, "instances": counts}


def _level(family: Mapping[str, Any], case: Case, goal: Goal) -> dict[str, Any]:
    tol = f"{case.tolerances[goal.tolerance]:g}"
    rows, learned = family["sets"]["held out"][tol], median_seed(family["sets"]["held out"][tol])
    rows = [row for row in rows if row["group"] != "learned"] + ([] if learned is None else [learned])
    ours = fastest(rows, _groups(goal.ours))
    rival = None if ours is None else fastest(rows, _groups(goal.against), ours)
    ratio = gain(_rate(ours), _rate(rival))
    said = ""
    if ours is not None and rival is not None:
        said = f" ({ours['name']} {ours['success']:.1%}, {rival['name']} {rival['success']:.1%} solved)"
    what = f"{case.name} to {tol}: {goal.what}, ratio of throughputs{said}"
    level = level_row(what, goal.reach, ratio, at_least=True)
    # Speed that costs success reaches nothing.
    return level | {"reached": level["reached"] and not falls_short(ours, rival)}


def _groups(text: str) -> tuple[str, ...]:
    parts = text.split(" or ")
    return tuple(group for part in parts for group in (CLASSICAL if part == "classical" else (part,)))
