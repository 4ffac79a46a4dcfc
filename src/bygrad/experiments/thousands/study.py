"""The study: measures every solver on every family, keeps what is measured, and writes the report."""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import PyTree

from ..._core import trees
from ..._core.draws import key_of
from ..._core.files import read_json, write_arrays_atomically, write_text_atomically
from ...deploy.jax import load
from ...deploy.solver import load_solver, save_solver
from ...evaluation import strict_json
from ...optimizers import LSTM, Optimizer
from ...solvers import Flat, LearnedSolver, learn
from ...solvers.base import certified
from ...training import Recipe
from ...workflows.folder import claim
from ...workflows.work import slug, train_or_read
from ..declaration import Budget
from ..study import Study, Task
from . import ours
from .families import CASES, Case, draw
from .judge import Kind, assess, kind_of
from .measure import Cell, Row, circumstances, kept, measure
from .report import write
from .results import Block, learned_label, results_of
from .rival import Build, Outcome, Rival, Run
from .rivals import RIVALS


@dataclasses.dataclass(frozen=True)
class Effort:
    """What a budget spends.

    **Arguments:** `rows`: instances of a set; `loops`: how many of them solvers get that take one after the other.
    `singles`: instances that are timed alone. `past`: solved ones to start from. `seconds`, `seeds`: of learning, for
    each family (times its patience) and each seed. `heldout`: instances that `learn` compares on. `meta_steps`,
    `horizon`: of the paper's optimizer; with 0 meta-steps it is the one for quadratics that comes with the package.
    `sequences`, `steps`: of the sequences.
    """

    rows: int
    loops: int
    singles: int
    past: int
    seconds: float
    seeds: int
    heldout: int
    meta_steps: int
    horizon: int
    sequences: int
    steps: int


EFFORTS: dict[Budget, Effort] = {
    "quick": Effort(256, 16, 3, 256, 3.0, 1, 128, 0, 40, 16, 8),
    "paper": Effort(2048, 128, 15, 2048, 60.0, 3, 1000, 200, 200, 64, 32),
}


SHIPPED = "paper/quadratic"


def _carry_out(task: Task) -> dict[str, Any]:
    names = [case.name for case in CASES]
    unknown = [name for name in task.families if name not in names]
    if unknown:
        raise ValueError(f"No family of this study is called {unknown[0]!r}. Known: {', '.join(names)}.")
    asked = {*(task.families or names), *(_finished(task.folder) if task.resume else ())}
    return compare(task, EFFORTS[task.budget], [case for case in CASES if case.name in asked])


def _finished(folder: Path) -> list[str]:
    """Return the families that the report in a folder tells of, which go on being a part of it."""
    path = folder / "results.json"
    return list(read_json(path)["families"]) if path.exists() else []


def compare(task: Task, effort: Effort, cases: Sequence[Case]) -> dict[str, Any]:
    """Measure all solvers on some families in the task's folder; what is there already is not measured again.

    What cannot run (a package that is not installed, an error) is a row that says why, and is tried again on resuming.
    """
    identity = {"experiment": THOUSANDS.name, "budget": task.budget, "seed": task.seed}
    claim(task.folder, identity | {"effort": dataclasses.asdict(effort)}, task.resume)
    path = task.folder / "circumstances.json"
    now = circumstances()
    around = read_json(path) if path.exists() else now
    if different := [key for key in ("machine", "usable_cores") if around[key] != now[key]]:
        task.display.say(
            f"What is in {task.folder} was measured elsewhere ({', '.join(str(around[key]) for key in different)}), and"
            " times of two machines cannot be compared. Measure everything on one, in another folder.",
            "yellow",
        )
        around["also_measured_on"] = {key: now[key] for key in ("machine", "usable_cores")}
    if now["busy"] and not around["busy"]:  # what is measured now counts as well
        around |= {key: now[key] for key in ("busy", "load_at_start")}
    write_text_atomically(path, json.dumps(around))
    if around["busy"]:
        task.display.say(
            f"The load average is {around['load_at_start']:.1f}: the machine has other work, so the times that follow"
            " say little. Run this again when it is idle.",
            "yellow",
        )
    blocks: list[Block] = []
    problems: dict[str, str] = {}
    results: dict[str, Any] = {}
    for case in cases:
        task.display.say(case.title, "bold")
        try:
            blocks.append(_Comparison(task, effort, case).block())
        except Exception as error:
            problems[case.name] = f"{type(error).__name__}: {error}"
            task.display.say(f"{case.name} was not compared: {error}", "yellow")
        results = results_of(blocks, problems, around, task, dataclasses.asdict(effort))
        write_text_atomically(task.folder / "results.json", json.dumps(strict_json(results), indent=1))
        if case is not cases[-1]:  # after every family: the next takes minutes
            with contextlib.suppress(ImportError):  # what draws is not installed; that is told at the end
                write(task.folder, results)
    write(task.folder, results)
    return results


class _Comparison:
    """One family: its sets of instances, what was learned on it, and its rows."""

    def __init__(self, task: Task, effort: Effort, case: Case):
        self.task, self.effort, self.case, self.aim = task, effort, case, case.tolerances[case.aim]
        family = case.build()
        fresh = family if case.fresh is None else case.fresh()
        seed = 1_000 * (task.seed + 1)  # apart from those that `learn` draws
        self.sets: dict[str, PyTree] = {
            "held out": draw(fresh, effort.rows, seed),
            "shifted": draw(case.shifted(), effort.rows, seed + 1),
        }
        if case.sequence is not None:
            self.sets["sequence"] = case.sequence(family, effort.sequences, effort.steps, seed + 2)
        first = trees.rows(self.sets["held out"], 0)
        self.flat = Flat.of(family, first)
        self.kind: Kind = kind_of(self.flat, first)
        self.rivals = [it for it in RIVALS if it.suits(family)]
        self.built: dict[str, Build] = {}
        self.known = {name: self._known(name, instances) for name, instances in self.sets.items()}
        past = draw(family, effort.past, seed + 3)
        # Of what was measured before, neither is needed again.
        self.past = functools.cache(lambda: ours.Past.of(self.flat, past))
        self.costly = functools.cache(lambda: self._where_costly(past))
        self.solvers = [self._attempt("learn", lambda s=s: self._learned(s)) for s in range(effort.seeds)]
        self.lstm = self._attempt("the paper's optimizer", self._trained)

    def _attempt(self, what: str, make: Callable[[], Any]) -> Any:
        """Make something that rows need; what fails, fails those rows alone."""
        try:
            return make()
        except Exception as error:
            self.task.display.say(f"{self.case.name}, {what}: {type(error).__name__}: {error}", "yellow")
            return f"{type(error).__name__}: {error}"

    def _place(self, *names: str) -> Path:
        return self.task.folder.joinpath(*names[:-1], f"{self.case.name}-{names[-1]}")

    def _known(self, name: str, instances: PyTree) -> np.ndarray:
        path = self._place("references", f"{name.replace(' ', '-')}.npz")
        if not path.exists():
            self.task.display.phase(f"{self.case.name}: best known costs", 0, 1, name)
            found = ours.reference(self.flat, instances, self.task.seed)
            if self.kind == "gap":  # the bounds below the minimum that are proven
                cost = found.cost - found.error * np.abs(found.cost)
                cost = np.where(np.isfinite(cost), cost, -np.inf)
            else:
                # Where even the reference violates constraints, perhaps no point is feasible, and nothing is known.
                cost = np.where(found.error <= self.case.tolerances[2], found.cost, np.nan)
                cost = cost if self.case.minimum is None else np.minimum(cost, self.case.minimum)
            write_arrays_atomically(path, {"cost": cost})
        with np.load(path, allow_pickle=False) as file:
            return file["cost"]

    def _learned(self, number: int) -> LearnedSolver:
        path = self._place("learned", f"{number}.safetensors")
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            solver = learn(
                self.flat.family,
                budget=self.effort.seconds * self.case.patience,
                tol=self.aim,
                heldout=self.effort.heldout,
                dtype=self.case.dtype,
                seed=self.task.seed + number,
                watch=lambda what, done, of: self.task.display.phase(f"{self.case.name}: {what}", done, of),
            )
            save_solver(solver, path, name=f"thousands/{self.case.name}")
            assert solver.card is not None
            self.task.display.say(f"{self.case.name}, seed {number}: {solver.card.kept}")
        return load_solver(path, self.flat.family)

    def _where_costly(self, past: PyTree) -> LearnedSolver:
        first = self.solvers[0]
        if not isinstance(first, LearnedSolver):
            raise ValueError(first)
        return ours.where_costly(first, past, self.aim, self.task.seed)

    def _trained(self) -> Optimizer:
        if not self.effort.meta_steps:
            return load(SHIPPED)
        folder = self._place("lstm", "lstm")
        path = folder / "optimizer.safetensors"
        if not path.exists():
            horizon = self.effort.horizon
            recipe = Recipe(
                horizon,
                truncation=max(n for n in range(1, 21) if horizon % n == 0),
                instances=16,
                meta_steps=self.effort.meta_steps,
                meta_learning_rate=3e-3,
                validate_every=max(1, self.effort.meta_steps // 4),
                seed=self.task.seed,
            )
            optimizer, name = LSTM(key_of(self.task.seed)), f"thousands/{self.case.name}"
            train_or_read(optimizer, self.flat.family, recipe, folder, self.task.display, name=name)
        return load(path)

    def block(self) -> Block:
        """Measure all rows on all sets at all tolerances."""
        cells: dict[tuple[str, float, str], Cell] = {}
        rows: dict[tuple[str, float], list[Row]] = {}
        total = len(self.sets) * len(self.case.tolerances)
        for name, instances in self.sets.items():
            for tol in self.case.tolerances:
                measured: list[Row] = []
                for row in self._rows(name, tol, cells):
                    path = self._place("cells", f"{slug(name)}-{tol:g}-{slug(row.name)}.npz")
                    self.task.display.phase(f"{self.case.name}: {row.name}", len(rows), total, f"{name}, to {tol:g}")
                    try:
                        if row.problem is None:
                            cells[name, tol, row.name] = self._cell(path, row, name, instances)
                        measured.append(row)
                    except Exception as error:
                        problem = f"{type(error).__name__}: {error}"
                        self.task.display.say(f"{self.case.name}, {row.name}: {problem}", "yellow")
                        measured.append(dataclasses.replace(row, problem=problem))
                rows[name, tol] = measured
        solvers = {seed: it for seed, it in enumerate(self.solvers) if isinstance(it, LearnedSolver)}
        cards = {seed: it.card for seed, it in solvers.items() if it.card is not None}
        picked = {name: self.picked(name) for name in self.sets}
        return Block(self.case, self.kind, self.known, picked, rows, cells, cards)

    def _cell(self, path: Path, row: Row, name: str, instances: PyTree) -> Cell:
        if not path.exists():
            if row.loops:
                instances = trees.rows(instances, self.picked(name))
            worth = lambda some, x: assess(self.flat, some, x)  # noqa: E731
            write_arrays_atomically(path, measure(row, instances, worth, self.effort.singles)._asdict())
        return kept(path)

    def picked(self, name: str) -> np.ndarray:
        """Return which instances of a set solvers get that loop: of sequences the first ones, each from beginning to
        end."""
        if name != "sequence":
            return np.arange(min(self.effort.loops, len(self.known[name])))
        steps, sequences = self.effort.steps, self.effort.sequences
        order = np.arange(steps * sequences).reshape(steps, sequences).T
        return order[: max(1, self.effort.loops // steps)].ravel()

    def _lazily(self, rival: Rival, tol: float) -> Row:
        """Build a rival when it is first run, once for all tolerances, so that an error is one of its own rows."""
        runs: list[Run] = []

        def build() -> Build:
            if rival.name not in self.built:
                self.built[rival.name] = rival.build(self.flat)
            return self.built[rival.name]

        def run(ready: PyTree) -> Outcome:
            if not runs:
                runs.append(build().at(tol))
            return runs[0](ready)

        ready = lambda instances: build().ready(instances)  # noqa: E731
        return Row(rival.name, rival.group, run, rival.loops, rival.missing, ready=ready)

    def _rows(self, name: str, tol: float, cells: dict[tuple[str, float, str], Cell]) -> Iterator[Row]:
        """Yield the rows of a set at a tolerance. The multistart comes last: its starts depend on cells before."""
        factor = tol / self.aim
        for rival in self.rivals:
            yield self._lazily(rival, tol)
        yield Row("batched", "batched", ours.batched(self.flat, tol, self.case.dtype))
        yield from self._tuned_rows(name, factor)
        for number, solver in enumerate(self.solvers):
            label = learned_label(number)
            if isinstance(solver, LearnedSolver) and solver.card is not None:
                yield Row(label, "learned", ours.learned(solver, factor), note=solver.card.kept)
            else:
                yield Row(label, "learned", None, problem=str(solver))
        yield self._paper_row(name, tol)
        first = self.solvers[0]
        if not certified(self.flat.family) and isinstance(first, LearnedSolver):
            here = {row: cell.wall for (at, close, row), cell in cells.items() if (at, close) == (name, tol)}
            times = [wall for row, wall in here.items() if row.startswith("learned")]
            starts = round(np.median(times) / here["tuned"]) if times and "tuned" in here else 1
            starts = min(max(starts, 1), ours.REFERENCE_STARTS)
            if starts not in (1, ours.tuned(first).starts):
                run = ours.learned(ours.with_starts(first, starts), factor)
                yield Row("multistart, equal time", "multistart", run, note=f"{starts} starts, as long as learned")

    def _tuned_rows(self, name: str, factor: float) -> Iterator[Row]:
        """Yield the rows of the tuned classical solver: from one start, from several, and from known solutions."""
        first = self.solvers[0]
        if not isinstance(first, LearnedSolver):
            yield Row("tuned", "tuned", None, problem=str(first))
            return
        yield Row("tuned", "tuned", ours.learned(ours.with_starts(first, 1), factor), note="on 20 instances")
        classical = ours.tuned(first)
        if classical.starts > 1:
            note = f"{classical.starts} starts, as tuned"
            yield Row("multistart", "multistart", ours.learned(classical, factor), note=note)
            note = f"up to {ours.MOST} starts"
            costly = lambda: ours.learned(self.costly(), factor)  # noqa: E731
            yield _made_when_run("multistart where costs are high", "multistart", costly, note)
        nearest = lambda: ours.nearest(self.flat, first, self.past(), factor)  # noqa: E731
        note = f"of {self.effort.past} solved ones"
        yield _made_when_run("nearest neighbour's solution", "warm", nearest, note)
        if name == "sequence":
            yield Row("previous solution", "warm", ours.previous(self.flat, first, self.effort.sequences, factor))

    def _paper_row(self, name: str, tol: float) -> Row:
        if not isinstance(self.lstm, Optimizer):
            return Row("the paper's LSTM", "paper", None, problem=str(self.lstm))
        known = self.sets[name], self.known[name]
        run = ours.paper(self.lstm, self.flat, self.kind, known, tol, self.effort.horizon)
        note = "stops at the best known cost" + ("" if self.effort.meta_steps else f"; {SHIPPED}, as shipped")
        return Row("the paper's LSTM", "paper", run, note=note)


def _made_when_run(name: str, group: str, make: Callable[[], Run], note: str) -> Row:
    """Return a row of a solver that is made when it is first run, and off the clock."""
    made = functools.cache(make)

    def ready(instances: PyTree) -> PyTree:
        made()
        return instances

    return Row(name, group, lambda instances: made()(instances), note=note, ready=ready)


THOUSANDS = Study(
    "thousands",
    "Families of problems solved thousands of times: what batching, tuning and learning are worth",
    _carry_out,
)
