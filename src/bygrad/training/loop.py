"""Meta-training: learn an optimizer for a problem family by gradient descent on what it achieves."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray, Shaped

from .._core.draws import key_of
from .._core.hosts import LostProcessError, first_line
from .._core.memory import bytes_available
from .._core.remarks import remark
from .._core.threads import Threads, awaited, in_thread, interruptible
from ..optimizers import Learned, Optimizer, declare
from ..problems import ProblemFamily, check_family, describe_family, is_held_out
from ..problems.base import FAMILY_CHANGED, describe_module, digest_family, digest_rule
from . import advice
from .devices import Devices, least
from .events import Event, Log, Planned, RolledBack, Stepped, Validated, Warned, Watcher
from .folder import BEFORE, CHECKPOINT, LOCK, LOG, Folder, has, refuse_another
from .learner import Learner, Pace, Report, advance, begin, bytes_of_meta_step, curves, settled
from .recipe import Recipe, describe

AnyOptimizer = TypeVar("AnyOptimizer", bound=Optimizer)

MAX_ROLLBACKS = 10
"""After so many returns to a good state, going on is hopeless: the meta-learning-rate is then 1,000 times smaller."""
ROLLBACK_BRANCH = 2**31 + 0xBAC
"""Branch of the key of a training that the inner problems after its rollbacks are drawn from, counted from here. Lower
numbers are its first instances'."""
ANOTHER_START = (
    "The {} that is given differs from the one that the meta-training in {} began with, in its numbers or in the file"
    " of its class. What goes on is what is in the folder; to train the one that is given, choose another folder."
)
MEASURES = ("area", "final")
"""What a validation gives, in the order in which a `Learner` keeps scores."""


@dataclasses.dataclass(frozen=True)
class MetaTrained(Generic[AnyOptimizer]):
    """What came out: the optimizer that was kept (the best, or the last), its scores, and the events on the way."""

    optimizer: AnyOptimizer
    best: Validated
    log: Log


def meta_train(
    optimizer: AnyOptimizer,
    family: ProblemFamily,
    recipe: Recipe | None = None,
    *,
    folder: Path | str | None = None,
    resume: bool = False,
    watch: Watcher | None = None,
) -> MetaTrained[AnyOptimizer]:
    """Meta-train `optimizer` on `family`.

    **Arguments:** `folder`: where to keep the checkpoint and the log (`log.jsonl`); without one nothing is written.
    `resume`: go on from the folder's checkpoint, to the same result, bit for bit on the same machine, as if there had
    been no interruption; where the family's file or data changed in between, that is warned of, and what stopped before
    its first checkpoint begins anew. `watch`: is called with every event; without, what is to be warned of is a Python
    warning. An exception of its own at a meta-step ends this, when everything is saved.

    All devices are used, and where the program runs as several processes (`jax.distributed.initialize`, before
    anything else), those of all processes; each must make the same call. The instances are divided among them; the
    result is that of one device, up to rounding. Process 0 alone reads and writes `folder` and calls `watch`. A
    checkpoint resumes on any number of devices and processes.

    **Returns:** the optimizer that validated best, or the last where the recipe keeps that, with the log.

    **Raises:** `TypeError`, `ValueError`: the family or the recipe cannot work (before anything is trained).
    `FileExistsError`: the folder holds a meta-training and `resume` is off, or another process is at work in it.
    `OSError`: the folder cannot be written to, or no longer; it holds the last checkpoint then. `CheckpointError`: the
    checkpoint does not fit. `KeyboardInterrupt`: after Ctrl-C, when everything is saved. `FloatingPointError`:
    meta-training is not finite whatever the meta-learning-rate; `best_of` reads the best optimizer so far.
    `LostProcessError`: another process is gone; the folder holds the last checkpoint.
    """
    if resume and folder is None:
        raise ValueError("resume is on, but no folder is given, so there is nothing to go on with. Name the folder.")
    recipe = Recipe() if recipe is None else recipe
    if not isinstance(recipe, Recipe):
        raise TypeError(
            f"meta_train was given {recipe!r:.80}, which says nothing of how to learn. Give a Recipe; a Curriculum is"
            " for bygrad.training.learn_by_curriculum."
        )
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"meta_train was given {optimizer!r:.80}, which is no optimizer of this package and has nothing to learn."
            " Give an instance of one, bygrad.LSTM(jax.random.key(0)), say; docs/rules.md tells how to write a rule."
        )
    if not any(map(eqx.is_inexact_array, jax.tree.leaves(optimizer))):
        raise ValueError(
            f"{type(optimizer).__name__} holds no array of floating-point numbers, so that there is nothing to learn."
            " Make what shall be learned an array, and not a static field."
        )
    check_family(family, key_of(recipe.seed))
    folder = None if folder is None else Path(folder)
    if recipe.before is not None and not (resume and has(folder, CHECKPOINT)):
        _MetaTraining(optimizer, family, recipe, None, None).refuse_what_cannot_work()  # before hours are spent on it
        refuse_another(folder)
        first = dataclasses.replace(recipe.before, seed=recipe.seed)
        place = None if folder is None else folder / BEFORE
        optimizer = meta_train(optimizer, family, first, folder=place, resume=resume, watch=watch).optimizer
        resume = False
    elif resume and (has(folder, LOG) or has(folder, LOCK)) and not has(folder, CHECKPOINT):
        resume = False
    return _MetaTraining(optimizer, family, recipe, folder, watch).run(resume)


def validation_keys(recipe: Recipe) -> Shaped[PRNGKeyArray, " runs"]:
    """Return the keys of the runs that every validation is on."""
    _, key = jax.random.split(key_of(recipe.seed))
    return jax.random.split(key, recipe.validation_runs)


def identity_of(optimizer: Optimizer, family: ProblemFamily) -> dict[str, Any]:
    """Write the family and the optimizer's configuration, which stay the same where a meta-training goes on."""
    config = optimizer.config if isinstance(optimizer, Learned) else describe_module(optimizer)
    identity = {"family": describe_family(family), "optimizer": {"name": type(optimizer).__name__, **config}}
    # What a configuration leaves out, as it belongs to the network, and what older checkpoints do not have.
    return identity | ({"depth": depth} if (depth := getattr(optimizer, "depth", None)) is not None else {})


def _warn(event: Event) -> None:
    """What a program that watches nothing must hear of all the same."""
    if isinstance(event, Warned):
        remark(event.message)


def _is_validated(learner: Learner) -> bool:
    return int(learner.validated) == int(learner.step)


class _MetaTraining(Generic[AnyOptimizer]):
    """One meta-training under way."""

    def __init__(
        self,
        optimizer: AnyOptimizer,
        family: ProblemFamily,
        recipe: Recipe,
        folder: Path | None,
        watch: Watcher | None,
    ):
        self.recipe, self.devices = recipe, Devices.sharing(recipe.instances)
        self.folder = Folder(folder, self.devices)
        self.watch = (_warn if watch is None else watch) if self.devices.lead else None
        if recipe.seconds is not None and jax.process_count() > 1:
            raise ValueError(
                f"The recipe ends after {recipe.seconds:g} s, but {jax.process_count()} processes have as many clocks,"
                " and would not take the same steps. Give meta_steps alone."
            )
        if is_held_out(family) and recipe.estimator.differentiates:
            raise ValueError(
                f"{type(recipe.estimator).__name__} follows the derivatives of the losses, but those of HeldOut are of"
                " the training loss and not of the held-out loss that counts, so the meta-gradients would be wrong. Use"
                " an estimator that needs losses alone, such as NRES(robust=True), or train on the family inside."
            )
        # For those that keep their horizon in themselves; those that keep it in their state get every run's own.
        self.optimizer = optimizer = settled(declare(optimizer, recipe.horizon))
        self.windows = recipe.windows(family)
        if self.devices.count > 1:  # each has all of it; of one device, it is there already
            arrays = filter(eqx.is_array, jax.tree.leaves(family))
            self._afford({"the family's data on each device": sum(it.size * it.dtype.itemsize for it in arrays)})
        train_key, _ = jax.random.split(key_of(recipe.seed))
        self.windows, pace, self.optimizer, self.train_key, self.validation_keys = self.devices.place(
            (self.windows, Pace.of(recipe), optimizer, train_key, validation_keys(recipe))
        )
        self.constant = (self.windows, recipe.estimator, pace, self.devices)
        self.seconds_before, self.started = 0.0, time.perf_counter()

    @property
    def seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.started

    @property
    def _spent(self) -> float:
        """The part of the time that is over; 0 where the time does not decide."""
        return 0.0 if self.recipe.seconds is None else self.seconds / self.recipe.seconds

    def _goes_on(self, learner: Learner) -> bool:
        return int(learner.step) < self.recipe.meta_steps and self._spent < 1

    def refuse_what_cannot_work(self) -> None:
        """Have the estimator see the shapes of a meta-step, so that it raises what it would raise when that begins."""
        windows, estimator, _, train_key = self._rest

        def meta_step(optimizer: Optimizer, key: PRNGKeyArray) -> Any:
            return estimator.estimate(optimizer, windows, estimator.init(optimizer, windows, key))[0]

        eqx.filter_eval_shape(meta_step, self.optimizer, train_key)

    def run(self, resume: bool) -> MetaTrained[AnyOptimizer]:
        try:
            with self.folder.held(resume):
                return self._run(resume)
        except jax.errors.JaxRuntimeError as error:
            if jax.process_count() == 1 or "RESOURCE_EXHAUSTED" in str(error):
                raise
            raise LostProcessError(
                f"Meta-training stopped: another of its {jax.process_count()} processes ended or cannot be reached"
                f" ({first_line(error)}), and no meta-step can be taken without its instances. {self.folder.kept()}"
            ) from error

    def _run(self, resume: bool) -> MetaTrained[AnyOptimizer]:
        learner = self._restore() if resume else self._fresh()
        if self._goes_on(learner) or not _is_validated(learner):  # what is finished is only read
            self._plan(learner)
        self._warn(learner, advice.of_idle_devices(self.devices, self.recipe.instances))
        with interruptible() as interrupted:
            if not resume:
                self._save(learner)  # so that the folder can be resumed, whatever happens to the first validation
            while self._goes_on(learner):
                # Validation belongs to the step that follows it, so that a run resumed there validates once.
                if int(learner.step) % self.recipe.validate_every == 0 and not _is_validated(learner):
                    learner = self._validate_and_save(learner, interrupted)
                learner, asked = self._advance(learner, interrupted)
                if asked:
                    self._save(learner)
                    raise KeyboardInterrupt
            if not _is_validated(learner):
                learner = self._validate_and_save(learner, interrupted)
        self._warn(learner, self._of_what_was_learned(learner))
        step, area, final = (float(score) for score in learner.best_scores)
        best = Validated(int(step), area, final, True, self.seconds)
        return MetaTrained(self.devices.alone(learner.best), best, self.folder.log)  # pyright: ignore[reportReturnType]

    def _tell(self, event: Event) -> None:
        self.folder.log.add(event)
        if self.watch is not None:
            self.watch(event)

    def _fresh(self) -> Learner:
        refuse_another(self.folder.path)
        rest = self._rest
        self._afford({"the inner problems": in_thread(begin.bytes_more, self.optimizer, *rest)})
        learner = in_thread(Learner.fresh, self.optimizer, *rest)
        self.folder.begin()
        return learner

    @property
    def _rest(self) -> tuple[Any, ...]:
        """What the first inner problems are drawn from, beside the optimizer."""
        return self.windows, self.recipe.estimator, self.devices, self.train_key

    def _restore(self) -> Learner:
        saved = self.folder.read(self._identity())
        example = Learner.example(self.optimizer, *self._rest)
        arrays = eqx.filter(example, lambda leaf: eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct))
        read = saved.arrays(arrays)
        inner = self.devices.load(read.inner, self.recipe.estimator.axes(example.optimizer, example.inner))
        rest = self.devices.load(eqx.tree_at(lambda it: it.inner, read, None))
        learner = eqx.combine(rest.with_inner(inner), example)
        self.seconds_before, self.started = saved.info["seconds"], time.perf_counter()
        self.folder.go_on(int(learner.step), saved.info["seconds"])
        # Not an error: data may differ in a last digit.
        if saved.info.get("family_digest", self._digest) != self._digest:
            self._warn(learner, FAMILY_CHANGED.format(type(self.windows.family).__name__, self.folder.path))
        if self._start != saved.info.get("start", self._start):
            self._warn(learner, ANOTHER_START.format(type(self.optimizer).__name__, self.folder.path))
        return learner

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a checkpoint to go on: the recipe, the family and the optimizer's configuration."""
        return describe(self.recipe) | identity_of(self.optimizer, self.windows.family)

    @functools.cached_property
    def _digest(self) -> str:
        return digest_family(self.windows.family)

    @functools.cached_property
    def _start(self) -> str | None:
        """What tells the optimizer that is given from others of its kind: its arrays, and the file of an own rule. Of
        what another stage came before, only that stage's is known to who resumes."""
        return None if self.recipe.before is not None else digest_rule(self.optimizer)

    def _save(self, learner: Learner) -> None:
        info = {"recipe": self._identity(), "seconds": self.seconds}
        info |= {"family_digest": self._digest, "start": self._start}
        self.folder.save(int(learner.step), eqx.filter(learner, eqx.is_array), info)

    def _advance(self, learner: Learner, interrupted: Callable[[], bool]) -> tuple[Learner, bool]:
        """Take a meta-step; say as well whether to stop after it, on which all processes agree."""
        moved, report = advance(self.constant, learner, self.devices.flag(interrupted()), self._spent)
        learner = self._judge(moved, report)
        return learner, interrupted() if report.asked is None else float(report.asked) > 0

    def _judge(self, moved: Learner, report: Report) -> Learner:
        step, report = jax.device_get((moved.step, report))  # at once: each by itself would wait for the device
        step, loss, norm = int(step), float(report.loss), float(report.norm)
        if not report.finite:
            what = f"the meta-loss was {loss}" if not np.isfinite(loss) else f"the meta-gradient's norm was {norm}"
            if np.isfinite(loss + norm):
                what = f"a step with a meta-learning-rate of {float(report.rate):.3g} left no finite meta-parameters"
            if report.lost is not None and float(report.lost) == 1:
                what = self.recipe.estimator.when_all_are_lost
            return self._roll_back(moved, step, what)
        # What nothing can be said of, such as the noise of a single meta-gradient, is not a number.
        told = (report.signal_to_noise, report.clipped, report.lost)
        more = (None if it is None or np.isnan(it) else float(it) for it in told)
        try:
            self._tell(Stepped(step, loss, norm, float(report.rate), self.seconds, *more))
        except Exception:
            # What watches may end it. Of several processes the others know nothing of that, and would not save.
            if jax.process_count() == 1:
                self._save(moved)
            raise
        return moved

    def _roll_back(self, learner: Learner, step: int, what: str) -> Learner:
        rollbacks, rate = int(learner.rollbacks) + 1, float(learner.rate) / 2
        optimizer, meta_state = learner.good
        key = jax.random.fold_in(self.train_key, ROLLBACK_BRANCH + rollbacks)
        inner = begin(optimizer, self.windows, self.recipe.estimator, self.devices, key)
        numbers = (
            jnp.asarray(step, jnp.int32),
            jnp.asarray(rate, learner.rate.dtype),
            jnp.asarray(rollbacks, jnp.int32),
        )
        restored = eqx.tree_at(
            lambda it: (it.optimizer, it.meta_state, it.inner, it.step, it.rate, it.rollbacks),
            learner,
            (optimizer, meta_state, inner, *self.devices.place(numbers)),
        )
        if rollbacks > MAX_ROLLBACKS:
            self._save(restored)
            kept = ""
            if self.folder.saved is not None and np.isfinite(float(restored.best_scores[1])):
                kept = " bygrad.training.best_of has the best optimizer so far, from the folder."
            raise FloatingPointError(
                f"Meta-training stopped at meta-step {step}: {what}, for the {rollbacks}th time, although the"
                f" meta-learning-rate was halved each time.{kept} The problem itself probably leaves its domain under"
                " small steps: check its loss for divisions, logarithms and roots, or lower the optimizer's"
                " output_scale."
            )
        self._tell(RolledBack(step, f"{what}: back to the last validated state with half the rate", rate, self.seconds))
        return restored

    def _validation(self, learner: Learner) -> tuple[Any, ...]:
        return learner.optimizer, self.windows.family, self.validation_keys, self.recipe.horizon, self.devices

    def _plan(self, learner: Learner) -> None:
        """Compile everything and say how much memory it will take; refuse what cannot fit before anything is lost."""
        started = time.perf_counter()
        validation = self._validation(learner)

        def of_validation() -> tuple[int, int]:
            return curves.bytes_needed(*validation), curves.bytes_more(*validation)

        with Threads(2) as pool:  # side by side: XLA compiles much of a program on a single core
            meta_step, validating = pool.submit(bytes_of_meta_step, self.constant, learner), pool.submit(of_validation)
            needs: dict[advice.Part, tuple[int, int]] = {
                "a meta-step": awaited(meta_step),
                "a validation": awaited(validating),
            }
        compile_seconds = time.perf_counter() - started
        available = self._afford({part: more for part, (_, more) in needs.items()}, learner.inner)
        sizes = needs["a meta-step"][0], needs["a validation"][0], available
        ends = self.recipe.meta_steps, self.recipe.seconds
        self._tell(Planned(int(learner.step), *sizes, compile_seconds, self.seconds, *ends))

    def _afford(self, needs: Mapping[advice.Part, int], inner: Any = None) -> int:
        """Refuse to begin where a need, in bytes that are not there yet, is more than is free; return what is."""
        available = least(bytes_available(self.devices.local))
        advice.refuse_what_cannot_fit(needs, available, self.recipe, self.optimizer, self.windows.family, inner)
        return available

    def _validate_and_save(self, learner: Learner, interrupted: Callable[[], bool]) -> Learner:
        learner = self._validate(learner, interrupted)
        self._save(learner)
        if jax.process_count() == 1 and interrupted():  # several would not agree here on whether to stop
            raise KeyboardInterrupt
        return learner

    def _validation_losses(self, learner: Learner, interrupted: Callable[[], bool]) -> np.ndarray:
        def losses() -> np.ndarray:
            return np.asarray(curves(*self._validation(learner)))

        if jax.process_count() > 1:
            return losses()
        try:
            return in_thread(losses, asked=interrupted)
        except KeyboardInterrupt:
            self._save(learner)  # who resumes validates
            raise

    def _validate(self, learner: Learner, interrupted: Callable[[], bool]) -> Learner:
        losses = self._validation_losses(learner, interrupted)
        area = float(np.mean(np.sum(losses[:, :-1], axis=1)))
        final = float(np.mean(losses[:, -self.recipe.final_window :]))
        finite = bool(np.isfinite(area + final))
        score = {"area": area, "final": final}[self.recipe.select]
        measure = MEASURES.index(self.recipe.select)
        kept, at_the_start = float(learner.best_scores[1 + measure]), float(learner.start_scores[measure])
        # What is kept may be the last and not the best, and losses that double with every validation end anywhere.
        earlier = [getattr(event, self.recipe.select) for event in self.folder.log.of(Validated) if event.best]
        lowest = min([kept, *earlier])
        # Of what diverges at first, the start is the first that was finite, and so the best by then.
        first = next((it for it in (at_the_start, *earlier) if np.isfinite(it)), np.inf)
        # Before any has been finite, there is nothing better to go back to: what diverges at first may be on its way.
        if not finite and np.isfinite(lowest):
            return self._refuse(learner, f"validation gave an area of {area}")
        # Where nothing is left of what it had, meta-training seldom comes back from.
        if score > first and score - lowest > abs(lowest):
            what = f"validation gave {self.recipe.select} {score:.4g}, worse than at the start and than twice the best"
            return self._refuse(learner, what)
        best = finite and (score < lowest or self.recipe.keep == "last")
        self._tell(Validated(int(learner.step), area, final, best, self.seconds))
        scores = self.devices.place(jnp.array([float(learner.step), area, final], learner.best_scores.dtype))
        start = scores[1:] if int(learner.validated) < 0 else learner.start_scores
        learner = eqx.tree_at(
            lambda it: (it.good, it.start_scores, it.validated),
            learner,
            ((learner.optimizer, learner.meta_state), start, learner.step),
        )
        if best:
            learner = eqx.tree_at(lambda it: (it.best, it.best_scores), learner, (learner.optimizer, scores))
        return learner

    def _refuse(self, learner: Learner, what: str) -> Learner:
        """Go back after a validation; the step counts as validated, or who resumes there would validate once more."""
        restored = self._roll_back(learner, int(learner.step), what)
        return eqx.tree_at(lambda it: it.validated, restored, learner.step)

    def _warn(self, learner: Learner, message: str | None) -> None:
        if message is not None:
            self._tell(Warned(int(learner.step), message, self.seconds))

    def _of_what_was_learned(self, learner: Learner) -> str | None:
        at = MEASURES.index(self.recipe.select)
        before, after = float(learner.start_scores[at]), float(learner.best_scores[1 + at])
        return advice.of_what_was_learned(self.optimizer, self.recipe, int(learner.step), before, after)
