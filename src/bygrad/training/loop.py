"""Meta-training: learn an optimizer for a problem family by gradient descent on what it achieves."""

import contextlib
import dataclasses
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from .._core import trees
from ..metagrads import Estimator, Replay
from ..optimizers import Learned, Optimizer
from ..problems import ProblemFamily, check_family, describe_family
from ..unroll import Windows, loss_curves
from . import checkpoint
from .events import Event, Log, RolledBack, Stepped, Validated, Warned, Watcher

AnyOptimizer = TypeVar("AnyOptimizer", bound=Optimizer)

MAX_ROLLBACKS = 10
"""After so many returns to a good state, going on is hopeless: the meta-learning-rate is then 1,000 times smaller."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that decides what meta-training does.

    **Arguments:** `horizon`: inner steps of a run. `truncation`: inner steps of a meta-step, a divisor of the horizon.
    `instances`: problem instances of a meta-step. `meta_steps`: how many. `meta_learning_rate`: Adam's, at the start;
    it falls to zero along a cosine. The usable range for an LSTM is 1e-3 to 3e-2. `clip`: largest norm of the
    meta-gradient. `estimator`: of the meta-gradient. `validate_every`: meta-steps between validations, which are also
    the points to roll back to and to resume from. `validation_runs`: held-out instances of a validation.
    `final_window`: how many last losses a final loss is the mean of. `select`: what the kept optimizer is best in.
    `seed`: of everything random.
    """

    horizon: int = 100
    truncation: int = 20
    instances: int = 4
    meta_steps: int = 1000
    meta_learning_rate: float = 1e-2
    clip: float = 1.0
    estimator: Estimator = dataclasses.field(default_factory=Replay)
    validate_every: int = 50
    validation_runs: int = 16
    final_window: int = 1
    select: Literal["area", "final"] = "area"
    seed: int = 0

    def __post_init__(self) -> None:
        positive = ("meta_steps", "meta_learning_rate", "clip", "validate_every", "validation_runs", "final_window")
        for name in positive:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}: nothing would be learned. Give a positive number.")
        if self.final_window > self.horizon:
            raise ValueError(
                f"final_window is {self.final_window}, longer than the horizon of {self.horizon} steps, so the final"
                " loss is not defined. Choose at most the horizon."
            )


@dataclasses.dataclass(frozen=True)
class MetaTrained(Generic[AnyOptimizer]):
    """What came out: the optimizer that validated best, its scores, and the events on the way."""

    optimizer: AnyOptimizer
    best: Validated
    log: Log


class _Learner(eqx.Module):
    """All that a checkpoint must hold; arrays only, beside the optimizer's static configuration."""

    optimizer: Optimizer
    meta_state: PyTree
    inner: PyTree
    step: Array
    rate: Array
    rollbacks: Array
    good: tuple[Optimizer, PyTree]
    best: Optimizer
    best_scores: Float[Array, " 3"]  # step, area, final


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
    been no interruption. `watch`: is called with every event.

    **Returns:** the optimizer that validated best, with the log.

    **Raises:** `TypeError`, `ValueError`: the family or the recipe cannot work (before anything is trained).
    `FileExistsError`: the folder holds a meta-training and `resume` is off. `CheckpointError`: the checkpoint does not
    fit. `KeyboardInterrupt`: after Ctrl-C, when everything is saved. `FloatingPointError`: meta-training is not finite
    whatever the meta-learning-rate; the best optimizer so far is in the checkpoint.
    """
    recipe = Recipe() if recipe is None else recipe
    check_family(family, jax.random.key(recipe.seed))
    return _MetaTraining(optimizer, family, recipe, None if folder is None else Path(folder), watch).run(resume)


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
        self.recipe, self.watch, self.folder = recipe, watch, folder
        self.windows = Windows(family, recipe.horizon, recipe.truncation, recipe.instances)
        self.train_key, self.validation_key = jax.random.split(jax.random.key(recipe.seed))
        self.meta_optimizer = optax.chain(optax.clip_by_global_norm(recipe.clip), optax.scale_by_adam())
        self.optimizer = optimizer
        self.log = Log(None if folder is None else folder / "log.jsonl")
        self.seconds_before, self.started = 0.0, time.perf_counter()
        self._step = eqx.filter_jit(self._meta_step)
        self._begin = eqx.filter_jit(recipe.estimator.init)
        self._curves = eqx.filter_jit(loss_curves)

    @property
    def seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.started

    @property
    def checkpoint(self) -> Path | None:
        return None if self.folder is None else self.folder / "checkpoint.safetensors"

    def run(self, resume: bool) -> MetaTrained[AnyOptimizer]:
        learner = self._restore() if resume else self._fresh()
        with _interruptible() as interrupted:
            while int(learner.step) < self.recipe.meta_steps:
                # Validation belongs to the step that follows it, so that a run resumed there validates once.
                if int(learner.step) % self.recipe.validate_every == 0 and not self._validated(int(learner.step)):
                    learner = self._validate(learner)
                    self._save(learner)
                learner = self._advance(learner)
                if interrupted():
                    self._save(learner)
                    raise KeyboardInterrupt
            if not self._validated(int(learner.step)):
                learner = self._validate(learner)
                self._save(learner)
        self._warn_if_nothing_was_learned(learner)
        step, area, final = (float(score) for score in learner.best_scores)
        best = Validated(int(step), area, final, True, self.seconds)
        return MetaTrained(learner.best, best, self.log)  # pyright: ignore[reportReturnType]

    def _tell(self, event: Event) -> None:
        self.log.add(event)
        if self.watch is not None:
            self.watch(event)

    def _fresh(self) -> _Learner:
        if self.folder is not None:
            if self.checkpoint is not None and self.checkpoint.exists():
                raise FileExistsError(
                    f"{self.folder} already holds a meta-training, which a new one would overwrite. Go on with it"
                    " (resume=True, --resume) or choose another folder."
                )
            self.folder.mkdir(parents=True, exist_ok=True)
            if self.log.path is not None:
                self.log.path.unlink(missing_ok=True)
        meta_state = self.meta_optimizer.init(_theta(self.optimizer))
        return _Learner(
            optimizer=self.optimizer,
            meta_state=meta_state,
            inner=self._begin(self.optimizer, self.windows, self.train_key),
            step=jnp.zeros((), jnp.int32),
            rate=jnp.ones(()),
            rollbacks=jnp.zeros((), jnp.int32),
            good=(self.optimizer, meta_state),
            best=self.optimizer,
            best_scores=jnp.array([0.0, jnp.inf, jnp.inf]),
        )

    def _restore(self) -> _Learner:
        if self.checkpoint is None or not self.checkpoint.exists():
            raise FileNotFoundError(
                f"There is no checkpoint in {self.folder}, so there is nothing to resume. Start without resume, or name"
                " the folder of an earlier run."
            )
        info = checkpoint.read_info(self.checkpoint)
        if info["recipe"] != (mine := self._identity()):
            changed = [name for name in mine if info["recipe"].get(name) != mine[name]] or ["recipe"]
            pairs = ", ".join(f"{name} was {info['recipe'].get(name)}, is {mine.get(name)}" for name in changed)
            raise checkpoint.CheckpointError(
                f"The checkpoint in {self.folder} was made with another recipe ({pairs}), so resuming would give"
                " neither result. Resume with the same settings, or start in another folder."
            )
        # A fresh learner, made without touching the folder, gives structure, shapes and dtypes.
        folder, self.folder = self.folder, None
        example = self._fresh()
        self.folder = folder
        learner = checkpoint.restore(self.checkpoint, eqx.filter(example, eqx.is_array))
        learner = eqx.combine(learner, example)
        self.seconds_before, self.started = info["seconds"], time.perf_counter()
        self.log.rewind(int(learner.step), info["seconds"])
        return learner

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a checkpoint to go on: the recipe, the family and the optimizer's configuration."""
        optimizer = {"name": type(self.optimizer).__name__}
        if isinstance(self.optimizer, Learned):
            optimizer |= self.optimizer.config
        return describe(self.recipe) | {"family": describe_family(self.windows.family), "optimizer": optimizer}

    def _save(self, learner: _Learner) -> None:
        if self.checkpoint is not None:
            info = {"recipe": self._identity(), "seconds": self.seconds}
            checkpoint.save(self.checkpoint, eqx.filter(learner, eqx.is_array), info)

    def _meta_step(self, learner: _Learner, windows: Windows) -> tuple[_Learner, dict[str, Array]]:
        """Advance by one meta-step. Compiled once; nothing in it depends on values that change."""
        estimate, inner = self.recipe.estimator.estimate(learner.optimizer, windows, learner.inner)
        directions, meta_state = self.meta_optimizer.update(estimate.gradient, learner.meta_state)
        progress = jnp.minimum(learner.step / self.recipe.meta_steps, 1.0)
        rate = learner.rate * self.recipe.meta_learning_rate * 0.5 * (1 + jnp.cos(jnp.pi * progress))
        optimizer = eqx.apply_updates(learner.optimizer, jax.tree.map(lambda d: -rate * d, directions))
        norm = trees.global_norm(estimate.gradient)
        metrics = {"loss": estimate.loss, "norm": norm, "rate": rate}
        metrics["finite"] = jnp.isfinite(estimate.loss) & jnp.isfinite(norm) & trees.all_finite(_theta(optimizer))
        moved = eqx.tree_at(
            lambda it: (it.optimizer, it.meta_state, it.inner, it.step),
            learner,
            (optimizer, meta_state, inner, learner.step + 1),
        )
        return moved, metrics

    def _advance(self, learner: _Learner) -> _Learner:
        moved, metrics = self._step(learner, self.windows)
        step, loss, norm = int(moved.step), float(metrics["loss"]), float(metrics["norm"])
        if not metrics["finite"]:
            what = f"the meta-loss was {loss}" if not np.isfinite(loss) else f"the meta-gradient's norm was {norm}"
            return self._roll_back(learner, step, what)
        self._tell(Stepped(step, loss, norm, float(metrics["rate"]), self.seconds))
        return moved

    def _roll_back(self, learner: _Learner, step: int, what: str) -> _Learner:
        rollbacks, rate = int(learner.rollbacks) + 1, float(learner.rate) / 2
        if rollbacks > MAX_ROLLBACKS:
            self._save(learner)
            raise FloatingPointError(
                f"Meta-training stopped at meta-step {step}: {what}, for the {rollbacks}th time, although the"
                " meta-learning-rate was halved each time. The best optimizer so far is kept. The problem itself"
                " probably leaves its domain under small steps: check its loss for divisions, logarithms and roots, or"
                " lower the optimizer's output_scale."
            )
        self._tell(RolledBack(step, f"{what}: back to the last validated state with half the rate", rate, self.seconds))
        optimizer, meta_state = learner.good
        key = jax.random.fold_in(self.train_key, rollbacks)
        return eqx.tree_at(
            lambda it: (it.optimizer, it.meta_state, it.inner, it.step, it.rate, it.rollbacks),
            learner,
            (
                optimizer,
                meta_state,
                self._begin(optimizer, self.windows, key),
                jnp.asarray(step, jnp.int32),
                jnp.asarray(rate, learner.rate.dtype),
                jnp.asarray(rollbacks, jnp.int32),
            ),
        )

    def _validated(self, step: int) -> bool:
        return any(event.step == step for event in self.log.of(Validated))

    def _validate(self, learner: _Learner) -> _Learner:
        keys = jax.random.split(self.validation_key, self.recipe.validation_runs)
        curves = np.asarray(self._curves(learner.optimizer, self.windows.family, keys, self.recipe.horizon))
        area = float(np.mean(np.sum(curves[:, :-1], axis=1)))
        final = float(np.mean(curves[:, -self.recipe.final_window :]))
        if not np.isfinite(area + final) and int(learner.step) > 0:
            return self._roll_back(learner, int(learner.step), f"validation gave an area of {area}")
        scores = {"area": area, "final": final}
        index = {"area": 1, "final": 2}[self.recipe.select]
        best = scores[self.recipe.select] < float(learner.best_scores[index])
        self._tell(Validated(int(learner.step), area, final, best, self.seconds))
        learner = eqx.tree_at(lambda it: it.good, learner, (learner.optimizer, learner.meta_state))
        if best:
            new = jnp.array([float(learner.step), area, final], learner.best_scores.dtype)
            learner = eqx.tree_at(lambda it: (it.best, it.best_scores), learner, (learner.optimizer, new))
        return learner

    def _warn_if_nothing_was_learned(self, learner: _Learner) -> None:
        measure = self.recipe.select
        before = getattr(self.log.of(Validated)[0], measure)
        after = float(learner.best_scores[1 if measure == "area" else 2])
        if not after < 0.98 * before:
            self._tell(
                Warned(
                    int(learner.step),
                    f"Meta-training did not improve the {measure} on held-out instances (from {before:.4g} to"
                    f" {after:.4g}), so the optimizer is as good as untrained. Try a meta-learning-rate 3 times larger"
                    " or smaller (1e-3 to 3e-2 works for LSTMs), more meta-steps, an output_scale nearer to the size of"
                    " useful steps, or a longer truncation.",
                    self.seconds,
                )
            )


def describe(recipe: Recipe) -> dict[str, Any]:
    """Write a recipe as JSON values."""
    fields = {field.name: getattr(recipe, field.name) for field in dataclasses.fields(recipe)}
    estimator = recipe.estimator
    static = {field.name: getattr(estimator, field.name) for field in dataclasses.fields(estimator)}
    fields["estimator"] = {"name": type(estimator).__name__, **static}
    return fields


def _theta(optimizer: Optimizer) -> PyTree:
    return eqx.filter(optimizer, eqx.is_inexact_array)


@contextlib.contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a request that is honoured between two meta-steps; a second one interrupts at once."""
    asked = False

    def ask(number: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    try:
        previous = signal.signal(signal.SIGINT, ask)
    except ValueError:  # not the main thread: there are no signals to catch
        yield lambda: False
        return
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, previous)
