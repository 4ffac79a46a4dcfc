"""A curriculum of horizons, Chen et al. (2020), section 3.1: learn on short runs first, be judged by longer ones."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

import equinox as eqx
import jax
import numpy as np

from .._core.draws import key_of
from .._core.files import read_json, write_text_atomically
from .._core.sizes import is_whole
from .._core.threads import in_thread
from ..optimizers import Optimizer
from ..problems import ProblemFamily
from ..unroll import compiled_loss_curves
from .events import Watcher
from .folder import is_begun
from .loop import identity_of, meta_train
from .recipe import Recipe, plain

AnyOptimizer = TypeVar("AnyOptimizer", bound=Optimizer)


@dataclasses.dataclass(frozen=True)
class Curriculum:
    """Stages of growing horizons; the last horizon is one to be judged by only.

    Stage $i$ trains for `horizons[i]` steps, in rounds of one `meta_train` each, and every round is judged by runs of
    `horizons[i + 1]` steps. When `patience` rounds have brought nothing, or after `rounds` of them, the best optimizer
    goes on to the next stage.

    **Arguments:** `recipe`: of a round; its horizon is replaced, its meta-steps are at least enough for every instance
    to see a whole run, it is validated at its start and its end alone (so that a kill costs the round), and what it
    has `before` comes before the first round alone. `horizons`: growing multiples of
    the truncation, at least two. `rounds`, `patience`: see above. `runs`: held-out instances to judge by. `late`: the
    part of a run, at its end, whose mean loss counts.
    """

    recipe: Recipe
    horizons: tuple[int, ...] = (100, 200, 500, 1000, 2000, 3000)
    rounds: int = 10
    patience: int = 3
    runs: int = 4
    late: float = 0.1

    def __post_init__(self) -> None:
        counts = (*self.horizons, self.rounds, self.patience, self.runs)
        if odd := [it for it in counts if not is_whole(it)]:
            raise TypeError(
                f"{odd[0]!r} is no whole number, but horizons count steps, and rounds, patience and runs what they are"
                " called; a later stage would stop at it. Give whole numbers: 1000, not 1e3."
            )
        growing = all(a < b for a, b in zip(self.horizons, self.horizons[1:], strict=False))
        if len(self.horizons) < 2 or not growing or any(it % self.recipe.truncation for it in self.horizons[:-1]):
            raise ValueError(
                f"horizons is {self.horizons}, but a curriculum needs at least two, growing, and multiples of the"
                f" truncation of {self.recipe.truncation}; the last is to be judged by, not trained on."
            )
        if self.rounds < 1 or self.patience < 1 or self.runs < 1 or not 0 < self.late <= 1:
            raise ValueError(
                f"rounds={self.rounds}, patience={self.patience}, runs={self.runs}, late={self.late}: give numbers of"
                " at least 1 and a part of a run in (0, 1], or no optimizer could be judged."
            )

    def recipe_of(self, stage: int, round_: int) -> Recipe:
        """The recipe of a round of a stage."""
        horizon = self.horizons[stage]
        meta_steps = max(self.recipe.meta_steps, 2 * horizon // self.recipe.truncation)
        seed = self.recipe.seed + 1 + stage * self.rounds + round_
        before = self.recipe.before if (stage, round_) == (0, 1) else None
        return dataclasses.replace(
            self.recipe, horizon=horizon, meta_steps=meta_steps, validate_every=meta_steps, seed=seed, before=before
        )


@dataclasses.dataclass(frozen=True)
class Round:
    """What a round brought: the late loss of runs of the next stage's horizon, and whether it is the stage's best."""

    stage: int
    round: int
    horizon: int
    judged_by: int
    loss: float
    best: bool


@dataclasses.dataclass(frozen=True)
class Graduated(Generic[AnyOptimizer]):
    """What came out: the best optimizer of the last stage, and the course of all rounds."""

    optimizer: AnyOptimizer
    rounds: tuple[Round, ...]


def learn_by_curriculum(
    optimizer: AnyOptimizer,
    family: ProblemFamily,
    curriculum: Curriculum,
    *,
    folder: Path | str | None = None,
    resume: bool = False,
    watch: Watcher | None = None,
    tell: Callable[[Round], None] | None = None,
) -> Graduated[AnyOptimizer]:
    """Meta-train `optimizer` through the stages of a curriculum.

    Round 0 of a stage judges what comes into it; an optimizer that diverges is judged infinitely bad, and the first
    that does not is then the best.

    **Arguments:** `folder`, `resume`, `watch`: as for `meta_train`; each round has a folder of its own in `folder`, and
    a resumed curriculum repeats nothing that was done. `tell`: is called with every round.

    **Raises:** as `meta_train`; `FileExistsError` if the folder holds a curriculum and `resume` is off,
    `FileNotFoundError` if it holds none and `resume` is on; `ValueError` if it holds another one, or before anything is
    learned if the estimator cannot do with one of the horizons; `NotImplementedError` where the program runs as several
    processes.
    """
    if jax.process_count() > 1:
        raise NotImplementedError(
            f"A curriculum decides after every round whether to go on, and {jax.process_count()} processes would decide"
            " each for itself and wait for each other for ever. Run it as one process, on all of its devices, or call"
            " meta_train stage by stage."
        )
    for stage in range(len(curriculum.horizons) - 1):  # a later stage may ask for what the estimator does not do
        recipe = curriculum.recipe_of(stage, 1)
        eqx.filter_eval_shape(recipe.estimator.init, optimizer, recipe.windows(family), key_of(0))
    identity = {"curriculum": plain(vars(curriculum)), **identity_of(optimizer, family)}
    if resume and folder is None:
        raise ValueError("resume is on, but no folder is given, so there is nothing to go on with. Name the folder.")
    book = _Book.open(None if folder is None else Path(folder), json.loads(json.dumps(identity)), resume)
    keys = jax.random.split(key_of(curriculum.recipe.seed), curriculum.runs)
    course: list[Round] = []

    def judge(optimizer: AnyOptimizer, stage: int, number: int, best: float) -> Round:
        steps = curriculum.horizons[stage + 1]
        loss = book.loss_of(stage, number)
        if loss is None:
            # Ctrl-C does not wait for it, nor for its compiler.
            curves = in_thread(lambda: np.asarray(compiled_loss_curves(optimizer, family, keys, steps)))
            late = curves[:, -max(1, round(curriculum.late * steps)) :]
            loss = float(np.mean(late)) if np.all(np.isfinite(late)) else np.inf
            book.enter(stage, number, loss)
        result = Round(stage, number, curriculum.horizons[stage], steps, loss, loss < best)
        course.append(result)
        if tell is not None:
            tell(result)
        return result

    for stage in range(len(curriculum.horizons) - 1):
        best, current = judge(optimizer, stage, 0, np.inf).loss, optimizer
        idle = 0
        for number in range(1, curriculum.rounds + 1):
            place = book.folder_of(stage, number)
            current = meta_train(
                current,
                family,
                curriculum.recipe_of(stage, number),
                folder=place,
                resume=resume and place is not None and is_begun(place),
                watch=watch,
            ).optimizer
            result = judge(current, stage, number, best)
            if result.best:
                best, optimizer, idle = result.loss, current, 0
            elif (idle := idle + 1) >= curriculum.patience:
                break
    return Graduated(optimizer, tuple(course))


class _Book:
    """The losses of the rounds that are done, on disk where there is a folder: judging takes long."""

    def __init__(self, folder: Path | None, identity: dict[str, Any], losses: dict[str, float]):
        self.folder, self.identity, self.losses = folder, identity, losses

    @classmethod
    def open(cls, folder: Path | None, identity: dict[str, Any], resume: bool) -> "_Book":
        path = None if folder is None else folder / "curriculum.json"
        if path is None or not path.exists():
            if resume:
                raise FileNotFoundError(
                    f"There is no curriculum in {folder}, so there is nothing to resume. Start without resume, or name"
                    " the folder of an earlier run."
                )
            book = cls(folder, identity, {})
            book.keep()  # so that it can be resumed, whatever happens to the first judgement
            return book
        if not resume:
            raise FileExistsError(
                f"{folder} already holds a curriculum, which a new one would overwrite. Go on with it (resume=True) or"
                " choose another folder."
            )
        found = read_json(path)
        losses = {name: float(loss) for name, loss in found.pop("losses").items()}
        # Older files say nothing of the family and the optimizer.
        if other := [
            name for name in sorted(found | identity) if found.get(name, identity.get(name)) != identity[name]
        ]:
            raise ValueError(
                f"The curriculum in {folder} is another one ({', '.join(other)} differ), so resuming would give neither"
                " result. Resume with the same settings, or start in another folder."
            )
        return cls(folder, identity, losses)

    def folder_of(self, stage: int, number: int) -> Path | None:
        return None if self.folder is None else self.folder / f"stage-{stage}" / f"round-{number}"

    def loss_of(self, stage: int, number: int) -> float | None:
        return self.losses.get(f"{stage}/{number}")

    def enter(self, stage: int, number: int, loss: float) -> None:
        self.losses[f"{stage}/{number}"] = loss
        self.keep()

    def keep(self) -> None:
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            # JSON has no infinity: as a word, which `float` reads back.
            losses = {name: loss if np.isfinite(loss) else "inf" for name, loss in self.losses.items()}
            text = json.dumps({**self.identity, "losses": losses}, indent=1)
            write_text_atomically(self.folder / "curriculum.json", text)
