"""What an experiment is: a declaration of what to learn, on what, and what to compare it with."""

import dataclasses
from collections.abc import Callable
from typing import Literal

from .._core.types import PRNGKeyArray
from ..evaluation import Protocol
from ..metagrads import Estimator
from ..optimizers import Optimizer
from ..training import Recipe
from .pictures import Illustrate

Budget = Literal["quick", "paper"]


@dataclasses.dataclass(frozen=True)
class Level:
    """A figure to reach: `measure` of a setting, and the value to reach. The paper's own is that of its figure.

    `reach` is None where the paper's claim is a failure: then what happens is reported and not judged. `relative`:
    whether these figures are shares of the best tuned baseline's. `curve`: of the paper's figure, which is its own.
    """

    what: str
    measure: Literal["final", "area"]
    reach: float | None
    relative: bool = False
    curve: str = "LSTM"


@dataclasses.dataclass(frozen=True)
class Setting:
    """A family and a horizon to compare optimizers on.

    `family`: its name in `bygrad.problems.FAMILIES`. `figure`: the paper's figure that shows it.
    """

    name: str
    title: str
    family: str
    horizon: int
    final_window: int
    figure: str | None = None
    levels: tuple[Level, ...] = ()


@dataclasses.dataclass(frozen=True)
class Experiment:
    """An optimizer to learn, and the settings to test it in; the first one is the one it is trained on, unless
    `train_on` names another family.

    `optimizer` builds the untrained one. `recipes`: how to train it, by budget. `protocols`: how to compare, by budget;
    horizon and final window come from the setting. `quick` tests in the first setting only. `illustrate` makes pictures
    of runs, for problems that have any. `estimator` builds that of the recipes where it holds a teacher, whose arrays
    no declaration may hold: importing it would start JAX, before a user has told it of hosts or devices. `label`: of
    the optimizer, in tables and figures.
    """

    name: str
    title: str
    optimizer: Callable[[PRNGKeyArray], Optimizer]
    recipes: dict[Budget, Recipe]
    protocols: dict[Budget, Protocol]
    settings: tuple[Setting, ...]
    train_on: str | None = None
    illustrate: Illustrate | None = None
    estimator: Callable[[], Estimator] | None = None
    label: str = "LSTM"

    def recipe(self, budget: Budget) -> Recipe:
        """How to train within a budget."""
        recipe = self.recipes[budget]
        return recipe if self.estimator is None else dataclasses.replace(recipe, estimator=self.estimator())

    @property
    def training_family(self) -> str:
        """The name of the family that the optimizer is trained on."""
        return self.train_on or self.settings[0].family

    def settings_of(self, budget: Budget) -> tuple[Setting, ...]:
        """The settings that a budget covers."""
        return self.settings[:1] if budget == "quick" else self.settings
