"""One page of what was measured on families that are solved thousands of times: tables and figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...evaluation import LEVEL_HEADINGS, Picture, Sheet, level_cells, write_page
from ...evaluation.figures import gains as draw_gains
from ...evaluation.figures import profiles
from ...evaluation.report import number
from .judge import MARGIN
from .results import SHARES, Results, median_seed

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
_COLOURS = {
    "users": ("sgd", "adamw"),
    "peer": ("nesterov",),
    "batched": ("adam",),
    "tuned": ("lbfgs",),
    "multistart": ("rmsprop",),
    "learned": ("lstm",),
}
"""Names of optimizers whose colours the figures have."""


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
        " each core. Instances are held out: nothing was tuned or trained on them. Shares that are solved count as"
        f" equal within {MARGIN:g}, and are compared on the {results['effort']['loops']} instances that solvers get"
        " that loop."
    )
    if elsewhere := around.get("also_measured_on"):
        statement += f" A part was measured on {elsewhere['machine']}: times of two machines cannot be compared."
    statement += f" {results['command']}"
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
    rivals = ("users' best", "others' compiled", "batched", "tuned", "best classical")
    caption = (
        "What each step multiplies the throughput by, at the medium tolerance: batching the classical method (against"
        " the fastest of what users run), tuning it on 20 instances, and learning inside it (against the fastest"
        " classical row, of however many starts, that solves as much, or as much as any of them). Below 1 is a loss;"
        " nothing is shown where nothing learned was kept."
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
