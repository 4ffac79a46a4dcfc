"""Learning an optimizer for one family within a time budget, with the evidence that it is worth using."""

import contextlib
import dataclasses
import functools
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from .._core.draws import key_of
from .._core.files import read_json, write_text_atomically
from .._core.times import parse_seconds
from ..artifacts import load as load_artifact
from ..artifacts import own_name
from ..deploy.jax import export, load
from ..evaluation import (
    Protocol,
    Tuning,
    area,
    curves_side_by_side,
    final,
    run_curves,
    strict_json,
    tuned_levels,
    write_report,
)
from ..optimizers import HAND_DESIGNED, AdamWCosine, Baselines, Controller, Optimizer, declare, dials_of, turned
from ..problems import HeldOut, ProblemFamily, check_family, describe_family, halved, hold_out
from ..problems.base import FAMILY_CHANGED, digest_family
from ..training import (
    Event,
    MetaTrained,
    PatternSearch,
    Recipe,
    Stepped,
    Validated,
    is_begun,
    meta_train,
    validation_keys,
)
from .display import Display
from .evaluating import evaluate, tune
from .folder import Kept, claim, leaving_nothing, reported, seconds_kept
from .plan import WORTH_TRYING, Objective, choose_recipe, measure_of, pace_of, protocol_of
from .work import METATRAINING, meta_training_results, train, trained_on
from .worth import rows_of, sentences, worth_of

RIVALS: Baselines = {name: HAND_DESIGNED[name] for name in ("Nesterov", "Adam", "AdamWCosine")}
"""What is tuned to compare with: the best of the hand-designed ones on networks, with and without a schedule."""


def _decaying(weight_decay: float) -> AdamWCosine:
    return AdamWCosine(weight_decay=jnp.asarray(weight_decay))


HELD_OUT_RIVALS: Baselines = {
    **RIVALS,
    **{f"AdamWCosine, decay {decay:g}": functools.partial(_decaying, decay) for decay in (0.1, 0.3, 1.0)},
}
"""The same where held-out loss counts, for which a weight decay of 0.01, that of the others, may be far too little."""

PRETRAINED = "general/controller"
"""What is started from where it does better than the tuned ones."""

SEARCH_RUNS = 16
"""Runs that two settings of the dials are compared on. Others are drawn for every round, so that none is learned by
heart."""
SEARCH_SHARE = 0.5
"""Part of the time in which dials are turned, at most. On small problems none of them helps any more before that."""

PILOT_STEPS = 6
START_BRANCH, ROUNDS_BRANCH, KEPT_BRANCH = 2**31 + 1, 2**31 + 2, 2**31 + 3
"""Of the key of the runs that are compared: smaller numbers are what the runs themselves go by."""


@dataclasses.dataclass(frozen=True)
class Specialized:
    """What came out: the optimizer, where it is kept, and the results of the report beside it."""

    optimizer: Optimizer
    path: Path
    results: dict[str, Any]

    @property
    def kept(self) -> Literal["learned", "start"]:
        """Which the optimizer is: what was learned, or the start where that was no better."""
        return self.results["specialization"]["kept"]

    @property
    def report(self) -> Path:
        """The page that holds it against the tuned baselines."""
        return self.path.with_name("report.html")


def specialize(
    family: ProblemFamily,
    budget: str | float = "90s",
    *,
    objective: Objective = "training",
    held_out: int | None = None,
    horizon: int = 400,
    pretrained: str | None = PRETRAINED,
    folder: Path | str = "runs/specialize",
    resume: bool = False,
    seed: int = 0,
    runs: int = 64,
    display: Display | None = None,
    command: str = "",
) -> Specialized:
    """Learn an optimizer for `family` in the time given, and say what it is worth.

    Tunes the hand-designed baselines on held-out instances; starts from the best of three controllers, the tuned Adam,
    the tuned AdamW with a cosine, and the pretrained one, with a weight decay to learn where held-out data judges;
    turns the few dials that change a controller as a whole (`bygrad.optimizers.turned`) for as long as that helps, or
    half of the budget; meta-trains it with noise-reuse evolution strategies for the rest, keeping what is best on
    held-out instances; and compares on fresh ones, in steps and in seconds, in these with L-BFGS too. If what was
    learned is no better there than where it started, the start is what is returned, and said to be
    (`Specialized.kept`; a Python warning where there is no `display`). All settings are chosen here.

    What learns is a `Controller` in any case: a small network for every tensor steers Adam's arithmetic, with Adam's
    memory and at 1.1 to 1.4 times the time of its training step. Rules with a network for every param (`MLPRule`,
    `STAR`, `Celo2`) are not tried: their update costs 14 to 24 times Adam's at a million params
    (`benchmarks/records/rules.json`). `meta_train` takes them; `docs/rules.md` has a recipe.

    **Arguments:** `budget`: time for dials and meta-training, compilation included: seconds, or text as `90s`, `10m`,
    `1h`; tuning and comparing come on top, and 20 meta-steps where it leaves no time for so many, which is said.
    `objective`: `"validation"` learns from held-out data, late in runs above all, and chooses by the loss on them at
    the end; `"training"` learns and chooses by the mean over runs. `held_out`: how many of the last images or
    characters are kept from training for it (`bygrad.problems.hold_out`), a fifth by default: the first half of them is
    learned and tuned from, and all are compared by the other half, which nothing has seen. Other families have a
    `held_out_loss` of their own, or none. `horizon`: steps of a run. `pretrained`: a controller that may be started
    from, an artifact's name or file; `None` starts as a tuned one in any case. `folder`: for `optimizer.safetensors`,
    `report.html`, `results.json` and `metatraining/`. `resume`: go on with what an interrupted call left there, or
    return what a finished one did, as it is. `runs`: fresh instances to compare on.

    **Raises:** `ValueError`: the budget, the objective, the family or `pretrained` cannot work, or the folder holds
    something else. `FileExistsError`: the folder is in use and `resume` is off.
    """
    seconds = parse_seconds(budget)
    if objective not in get_args(Objective):
        raise ValueError(
            f"objective is {objective!r}, by which nothing can be judged. Choose 'training' or 'validation'."
        )
    if pretrained is not None:
        _pretrained(pretrained)  # refused before anything is written
    folder = Path(folder)
    if objective == "validation":
        family = hold_out(family, held_out)
    elif held_out is not None:
        raise ValueError(
            f"held_out is {held_out}, but the objective is the training loss, so nothing would be judged by what is"
            " held out. Choose the validation objective, or leave held_out (--held-out) away."
        )
    problems = judged = family
    if objective == "validation":
        problems, judged = (HeldOut(half) for half in halved(family))
    check_family(problems, key_of(seed))
    identity = {"family": describe_family(family), "objective": objective, "horizon": horizon, "runs": runs}
    identity |= {"seed": seed, "budget": seconds, "pretrained": pretrained, "judged": describe_family(judged)}
    protocol = protocol_of(horizon, runs, seed)
    with leaving_nothing(folder), contextlib.ExitStack() as shown:
        claim(folder, {"experiment": "specialize", **identity}, resume)
        display = shown.enter_context(Display(Console(quiet=True))) if display is None else display
        return _Specialization(
            family, problems, judged, seconds, objective, pretrained, folder, protocol, display, command
        ).run()


def _pretrained(name: str) -> Controller:
    optimizer = load(name)
    if not isinstance(optimizer, Controller):
        raise ValueError(
            f"{name} is a trained {type(optimizer).__name__}, but only a Controller can be started from here: the"
            " estimator's settings are chosen for one. Give a controller, or None (--pretrained none) to start as a"
            " tuned Adam."
        )
    return optimizer


@dataclasses.dataclass(frozen=True)
class _Specialization:
    """One that is under way. `problems`: the family, by the loss that counts; `judged`: by that of the comparison; the
    rest as `specialize` was given it."""

    family: ProblemFamily
    problems: ProblemFamily
    judged: ProblemFamily
    seconds: float
    objective: Objective
    pretrained: str | None
    folder: Path
    protocol: Protocol
    display: Display
    command: str

    @property
    def name(self) -> str:
        return type(self.family).__name__

    @property
    def path(self) -> Path:
        return self.folder / "optimizer.safetensors"

    @property
    def rivals(self) -> Baselines:
        return HELD_OUT_RIVALS if self.objective == "validation" else RIVALS

    def run(self) -> Specialized:
        """Tune the baselines, choose a start, learn, compare; keep the better of what was learned and the start. Or
        return what is finished."""
        protocol, folder, display = self.protocol, self.folder, self.display
        self._tell_if_changed()
        if self.path.exists() and (results := reported(folder)) is not None:
            display.say(f"{folder} is finished: nothing is done again")
            return self._specialized(results)
        tunings, tuning_seconds = tune(self.problems, protocol, folder, display, self.rivals)
        recipe = choose_recipe(protocol.horizon, self.seconds, protocol.seed, self.objective, self.problems)
        started, whole = time.perf_counter(), not (folder / "levels.json").exists()
        levels = self._levels(tunings, recipe)
        start, origin = self._start(tunings)
        choice_seconds = seconds_kept(folder, "start", time.perf_counter() - started if whole else None)
        if tuning_seconds is not None:  # the choice of a start is a part of it
            tuning_seconds = None if choice_seconds is None else tuning_seconds + choice_seconds
        begun, turns, before = self._turned(start)
        recipe, pilot = self._paced(recipe, begun, origin, self.seconds - before)
        trained = self._trained(begun, recipe, levels, before + pilot)
        spent = trained.log.events[-1].seconds + before + pilot

        started = time.perf_counter()
        dialed = {"Dials": begun} if turns else {}
        results = evaluate(
            {"Controller": trained.optimizer, **dialed, "Start": start},
            self.judged,
            self.problems,
            protocol,
            display,
            title=f"{self.name}, {protocol.horizon} steps, specialized in {self.seconds:.0f} s",
            command=self.command,
            tunings=tunings,
            baselines=self.rivals,
        )
        rows = results["optimizers"]
        rows["start"] |= {"label": f"the start ({origin})", "note": "What the controller is before it learns."}
        if dialed:
            rows["dials"] |= {
                "label": "its dials alone",
                "note": f"The start, with what {before:.0f} s of search chose.",
            }
        candidates = {"what was learned": trained.optimizer, "the start": start}
        learned, unlearned = (self._judge(it, KEPT_BRANCH, what=f"trying {name}") for name, it in candidates.items())
        better = learned < unlearned
        if not better:
            display.warn("what was learned is no better than its start on held-out instances: the start is kept")
            rows["controller"]["note"] = "No better than its start on held-out instances: the start is what was kept."
        kept, row = (trained.optimizer, rows["controller"]) if better else (start, rows["start"])
        kept = declare(kept, protocol.horizon)  # see `choose_recipe`
        spent_on_it = spent if better else None
        worth = worth_of(kept, row, rows, self.rivals, self.judged, protocol, spent_on_it, display.phase)
        evaluation_seconds = time.perf_counter() - started
        results["meta_training"] = meta_training_results(trained, recipe, levels)
        results["seconds"] = {"tuning": tuning_seconds, "meta_training": spent, "evaluation": evaluation_seconds}
        turns = turns if better else {}  # of what is kept
        done = {"objective": self.objective, "kept": "learned" if better else "start", "dials": turns}
        results["specialization"] = worth | done
        results["levels"] = rows_of(worth)
        training = load_artifact(self.path).manifest.training
        if not better:  # the gradients that a guard expects are those that the kept one meets
            training |= trained_on(kept, self.problems, recipe, display.phase)
        training |= {"start": origin, "dials": turns, "objective": self.objective, "seconds": spent}
        self._keep(kept, training, results)
        return self._specialized(results)

    def _specialized(self, results: dict[str, Any]) -> Specialized:
        """Say what is kept in the folder is worth, and return it."""
        for line in sentences(results["specialization"]):
            self.display.say(line, "bold")
        return Specialized(declare(load(self.path), self.protocol.horizon), self.path, results)

    def _tell_if_changed(self) -> None:
        """Warn where the family is no longer the one that an interrupted run has begun with."""
        begun_with, digest = self.folder / "family.sha256", digest_family(self.family)
        if begun_with.exists() and begun_with.read_text() != digest:
            self.display.warn(FAMILY_CHANGED.format(self.name, self.folder))
        write_text_atomically(begun_with, digest)

    def _levels(self, tunings: dict[str, Tuning], recipe: Recipe) -> dict[str, float]:
        """Return what the tuned baselines reach in the runs of the validations, and say it."""
        alike = dataclasses.replace(self.protocol, horizon=recipe.horizon, final_window=recipe.final_window)
        kept = Kept(self.folder / "levels.json")
        keys, watch = validation_keys(recipe), self.display.phase
        levels = tuned_levels(tunings, self.problems, keys, recipe.select, alike, watch, kept, self.rivals)
        self.display.tuned(recipe.select, levels)
        return levels

    def _start(self, tunings: dict[str, Tuning]) -> tuple[Controller, str]:
        """Return the best of the tuned Adam and the tuned AdamW with a cosine, as controllers, and the pretrained one;
        and which it is."""
        key, measure = key_of(self.protocol.seed), measure_of(self.objective)
        cosines = [name for name in tunings if isinstance(self.rivals[name](), AdamWCosine)]
        cosine = min(cosines, key=lambda name: np.min(getattr(tunings[name], measure)))
        constant, height = (getattr(tunings[name], f"best_{measure}") for name in ("Adam", cosine))
        given = {} if self.pretrained is None else {self.pretrained: _pretrained(self.pretrained)}
        reach = any(it.reach for it in given.values())  # what there is to learn is the same for all
        adam = Controller(key, learning_rate=constant, reach=reach)
        falling = Controller(key, learning_rate=height, b2=0.999, reach=reach).fall()
        told = f"tuned Adam with a cosine, {height:.2g}"
        if self.objective == "validation":
            decay = float(self.rivals[cosine]().weight_decay)  # pyright: ignore[reportAttributeAccessIssue]
            adam, falling, told = adam.decaying(0.0), falling.decaying(decay), f"{told}, and decay {decay:g}"
            given = {name: it.decaying(0.0) if it.weight_decay is None else it for name, it in given.items()}
        candidates = {f"tuned Adam, {constant:.2g}": adam, told: falling, **given}
        candidates = {name: declare(it, self.protocol.horizon) for name, it in candidates.items()}
        best = min(candidates, key=lambda name: self._judge(candidates[name], START_BRANCH, what=f"trying {name}"))
        return candidates[best], best

    def _judge(self, optimizer: Optimizer, branch: int, what: str) -> float:
        """Measure what decides, on instances that are used for nothing else (a `branch` of the key for every question):
        those of the report, and the data that it judges by, would flatter what is chosen on them. `what`: is told of it
        meanwhile."""
        protocol, key = self.protocol, jax.random.fold_in(self.protocol.keys[1], branch)
        options = {"horizon": protocol.horizon, "runs": protocol.runs, "chunk": protocol.chunk}
        tick = functools.partial(self.display.phase, what)
        tick(0, protocol.runs)
        curves, _ = run_curves(optimizer, self.problems, key, **options, tick=tick)
        mean = float(np.mean(self._measured(curves)))
        return mean if math.isfinite(mean) else math.inf

    def _measured(self, curves: np.ndarray) -> np.ndarray:
        """Return what counts of each run: `[runs, horizon + 1]` to `[runs]`."""
        is_area = measure_of(self.objective) == "area"
        return area(curves) if is_area else final(curves, self.protocol.final_window)

    def _turned(self, start: Controller) -> tuple[Controller, dict[str, float], float]:
        """Turn the dials of a controller until none helps, or for a part of the time; or read how they were turned.

        **Returns:** the controller, how its dials are turned, and the seconds that this took.
        """
        path = self.folder / "search.json"
        search, spent, began = PatternSearch.begin(dials_of(start)), 0.0, time.perf_counter()
        if path.exists():
            kept = read_json(path, "Delete it and resume: dials are turned anew.")
            search, spent = PatternSearch(**kept["search"]), kept["seconds"]
        limit, rounds = SEARCH_SHARE * self.seconds, jax.random.fold_in(self.protocol.keys[1], ROUNDS_BRANCH)

        def clock() -> float:
            return spent + time.perf_counter() - began

        while clock() < limit and not search.is_over:
            keys = jax.random.split(jax.random.fold_in(rounds, search.rounds), SEARCH_RUNS)

            def judge(turns: Mapping[str, float], keys: Any = keys) -> np.ndarray:
                self.display.phase("turning dials", min(round(clock()), round(limit)), round(limit), "s")
                curves = curves_side_by_side(turned(start, turns), self.problems, keys, self.protocol.horizon)
                return self._measured(curves)

            search.round(judge, lambda: clock() < limit)
            write_text_atomically(path, json.dumps({"search": dataclasses.asdict(search), "seconds": clock()}))
        turns = {name: turn for name, turn in search.turned.items() if turn}
        told = ", ".join(f"{name.replace('_', ' ')} {turn:+.3g}" for name, turn in turns.items())
        self.display.say(f"dials turned in {clock():.0f} s: {told or 'none'}")
        return turned(start, turns), turns, clock()

    def _paced(self, recipe: Recipe, start: Controller, origin: str, left: float) -> tuple[Recipe, float]:
        """Compile, see how long a meta-step takes, and set validations at regular times in what is `left` of the time;
        or read what was set before.

        **Returns:** the recipe, and the seconds that this took.
        """
        path = self.folder / "pace.json"
        if path.exists():
            pace = read_json(path, "Delete it and the folder metatraining beside it, and resume: learning begins anew.")
            return dataclasses.replace(recipe, **pace["recipe"]), pace["pilot"]
        began, tick = time.perf_counter(), functools.partial(self.display.phase, "compiling, and timing meta-steps")

        def watch(event: Event) -> None:
            if isinstance(event, Stepped):
                tick(event.step, PILOT_STEPS)

        tick(0, PILOT_STEPS)
        few = dataclasses.replace(recipe, meta_steps=PILOT_STEPS, seconds=None)
        log = meta_train(start, self.problems, few, watch=watch).log
        times = [event.seconds for event in log.of(Stepped)]
        if len(times) < 3:
            raise FloatingPointError(
                f"Only {len(times)} of the first {PILOT_STEPS} meta-steps were finite: too little to learn from."
                " The loss probably leaves its domain on the way: check it for divisions, logarithms and roots, or"
                " choose a shorter horizon (--horizon)."
            )
        step, first, *others = (times[-1] - times[1]) / (len(times) - 2), *log.of(Validated)
        # One that is refused, as it is far worse than the start, says nothing of time.
        validation = others[-1].seconds - times[-1] if others else first.seconds
        pilot = time.perf_counter() - began
        pace = pace_of(recipe, left - pilot, step, validation, origin == self.pretrained)
        if pace["seconds"] is None:
            spent, more = self.seconds - left + pilot, WORTH_TRYING * step + 2 * validation
            self.display.warn(
                f"{self.seconds:g} s are too few here: dials, compiling and measuring took {spent:.1f} s, which"
                f" leaves less than it takes to learn anything. {WORTH_TRYING} meta-steps are taken all the same, for"
                f" about {more:.2g} s more, and may come to nothing. Give a longer budget (--budget),"
                f" {self._enough(spent)} or more, and another folder (--out)"
            )
        write_text_atomically(path, json.dumps({"recipe": pace, "pilot": pilot}))
        return dataclasses.replace(recipe, **pace), pilot

    def _trained(
        self, start: Controller, recipe: Recipe, levels: dict[str, float], pilot: float
    ) -> MetaTrained[Controller]:
        """Meta-train for the rest of the budget, or go on with what is begun; warn where few meta-steps fitted."""
        name, resume = own_name(self.name), is_begun(self.folder / METATRAINING)
        trained = train(
            start, self.problems, recipe, self.folder, self.display, name=name, resume=resume, levels=levels
        )
        if (steps := len(trained.log.of(Stepped))) < WORTH_TRYING:  # compiled anew by who resumed, or much slower
            self.display.warn(
                f"{steps} meta-steps fitted into the {self.seconds:.0f} s, as dials, compiling and measuring took"
                f" {pilot:.0f} s: too few to learn from. Give a longer budget (--budget), {self._enough(pilot)} or more"
                " here"
            )
        return trained

    @staticmethod
    def _enough(spent: float) -> str:
        """A budget for what takes `spent` seconds before it learns."""
        return f"{3 * spent + 60:.0f}s"

    def _keep(self, optimizer: Optimizer, training: dict[str, Any], results: dict[str, Any]) -> None:
        """Write the optimizer, with what its artifact says of `training`, and then the report, by which what is
        finished is known."""
        export(
            optimizer,
            self.path,
            name=own_name(self.name),
            training=training,
            validation=strict_json(results["specialization"]),
        )
        write_report(results, self.folder)
