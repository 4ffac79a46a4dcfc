"""Everything that decides what a meta-training does."""

import dataclasses
import math
import numbers
from typing import Any, Literal

import equinox as eqx

from .._core.draws import check_seed
from .._core.sizes import LARGEST, is_whole
from ..metagrads import Estimator, Replay
from ..problems import ProblemFamily
from ..problems.base import leaf_in_words
from ..unroll import Windows


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that decides what meta-training does.

    **Arguments:** `horizon`: inner steps of a run. `truncation`: inner steps of a meta-step, a divisor of the horizon.
    `instances`: problem instances of a meta-step. `meta_steps`: how many. `meta_learning_rate`: Adam's, at the start;
    it falls to zero along a cosine. The usable range for an LSTM is 1e-3 to 3e-2. `clip`: largest norm of the
    meta-gradient. `estimator`: of the meta-gradient. `validate_every`: meta-steps between validations, which are also
    the points to roll back to and to resume from. `validation_runs`: held-out instances of a validation.
    `final_window`: how many last losses a final loss is the mean of. `select`: what the kept optimizer is best in.
    `keep`: `"last"` keeps the last one instead, for a meta-loss with little noise, such as an imitation's, where a few
    validation runs tell less than the falling meta-learning-rate does. `seed`: of everything random. `shortest`: where
    it is given, runs have horizons of their own, from it to `horizon` (`bygrad.unroll.Windows`); validation is at the
    longest. `meta_b2`: decay of Adam's second moment on the meta level; 0.99 for the noisy meta-gradients of evolution
    strategies. `warmup`: meta-steps over which the meta-learning-rate rises in proportion. `seconds`: where it is
    given, meta-training ends after that time if it has not before, and the cosine with it; what comes out then depends
    on how fast the machine is. `before`: what is carried out first, with the same seed, in a folder of its own,
    `before`; this begins with the optimizer that it kept.
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
    keep: Literal["best", "last"] = "best"
    seed: int = 0
    shortest: int | None = None
    meta_b2: float = 0.999
    warmup: int = 0
    seconds: float | None = None
    before: "Recipe | None" = None

    def __post_init__(self) -> None:
        if not isinstance(self.estimator, Estimator):
            raise TypeError(
                f"estimator is {self.estimator!r}, which is no estimator of meta-gradients. Give an instance of one:"
                " Replay(), NRES(sigma=0.02, robust=True)."
            )
        if self.before is not None and not isinstance(self.before, Recipe):
            raise TypeError(f"before is {self.before!r}, which cannot be carried out first. Give a Recipe, or None.")
        counts = ("horizon", "truncation", "instances", "meta_steps", "validate_every", "validation_runs")
        for name in (*counts, "final_window", "shortest", "warmup", "seed"):
            value = getattr(self, name)
            if name == "shortest" and value is None:
                continue
            if not is_whole(value):
                raise TypeError(f"{name} is {value!r}, which is no whole number. Give one.")
            object.__setattr__(self, name, int(value))  # Equinox warns of NumPy's, among static fields
        check_seed(self.seed)
        for name in ("meta_learning_rate", "clip", "meta_b2", "seconds"):
            value = getattr(self, name)
            unlimited = name == "seconds" and value is None
            if not unlimited and (isinstance(value, bool) or not isinstance(value, numbers.Real)):
                raise TypeError(f"{name} is {value!r}, which is no number. Give one.")
        for name in (*counts, "final_window", "meta_learning_rate", "clip"):
            if not getattr(self, name) > 0 or (name == "meta_learning_rate" and math.isinf(self.meta_learning_rate)):
                raise ValueError(f"{name} is {getattr(self, name)}: nothing would be learned. Give a positive number.")
        for name in (*counts, "final_window"):
            if getattr(self, name) > LARGEST:
                raise ValueError(f"{name} is {getattr(self, name)}, which nothing counts to. Give at most {LARGEST:,}.")
        if not 0 < self.meta_b2 < 1 or self.warmup < 0 or (self.seconds is not None and not self.seconds > 0):
            raise ValueError(
                f"meta_b2={self.meta_b2}, warmup={self.warmup}, seconds={self.seconds}: the decay must lie between 0"
                " and 1, the warm-up be 0 or more meta-steps, and the time be positive, or nothing is learned."
            )
        if self.select not in ("area", "final"):
            raise ValueError(f"select is {self.select!r}, which is not measured. Choose 'area' or 'final'.")
        if self.keep not in ("best", "last"):
            raise ValueError(f"keep is {self.keep!r}, which names no optimizer. Choose 'best' or 'last'.")
        if self.final_window > self.horizon:
            raise ValueError(
                f"final_window is {self.final_window}, longer than the horizon of {self.horizon} steps, so the final"
                " loss is not defined. Choose at most the horizon."
            )

    def windows(self, family: ProblemFamily) -> Windows:
        """Return where meta-training stands on its inner problems."""
        return Windows(family, self.horizon, self.truncation, self.instances, self.shortest)


def describe(recipe: Recipe) -> dict[str, Any]:
    """Write a recipe as JSON values; without what says nothing and older files do not have."""
    fields = {field.name: getattr(recipe, field.name) for field in dataclasses.fields(recipe)}
    for name, silent in {"before": None, "keep": "best"}.items():
        if fields[name] == silent:
            del fields[name]
    return {name: plain(value) for name, value in fields.items()}


def plain(value: Any) -> Any:
    """Write an estimator, and whatever it is made of, as JSON values; a function by its name."""
    if isinstance(value, Recipe):
        return describe(value)
    if isinstance(value, eqx.Module):
        fields = {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"name": type(value).__name__, **fields}
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, int | float | str | None):
        return value
    return value.tolist() if eqx.is_array(value) else leaf_in_words(value)
