"""The command that meta-trains an optimizer, with every setting of it."""

import dataclasses
import shlex
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import arg

from .job import join_job
from .options import Data, Families, Folder, Hosts, Resume, Seed, label_of
from .terminal import known, progress


@dataclasses.dataclass(frozen=True)
class Learned:
    """What is trained. The fields that are `None` are as in its own configuration."""

    optimizer: Annotated[str, arg(help="A learned optimizer (see `bygrad list`).")] = "LSTM"
    config: Annotated[
        str | None,
        arg(
            help='What is to differ from its own configuration: {"layers": [8]}. The names are those that `bygrad'
            " inspect` shows of a trained one.",
            metavar="JSON",
        ),
    ] = None
    preprocess: Annotated[str | None, arg(help="How an LSTM sees gradients: LogSign (if not given) or Scaled.")] = None
    output_scale: Annotated[
        float | None, arg(help="Factor on an LSTM's updates: about the size of a useful step; if not given, 0.1.")
    ] = None
    state_dtype: Annotated[
        Literal["float32", "bfloat16"] | None, arg(help="What an LSTM's state is kept in; bfloat16 takes half.")
    ] = None

    def build(self, seed: int) -> Any:
        """Build it untrained, from what differs from its own configuration, given as options and as JSON."""
        import json

        import equinox as eqx

        from .._core.draws import check_seed, key_of
        from ..optimizers import LEARNED, PREPROCESSORS

        if self.preprocess is not None:
            known(PREPROCESSORS, self.preprocess, "preprocessor")
        check_seed(seed)
        if "/" in self.optimizer or self.optimizer.endswith((".py", ".safetensors")):
            raise ValueError(
                f"--optimizer {self.optimizer} looks like a file, but the command begins with untrained rules of its"
                " own. In Python any rule can be trained, and a trained one further:"
                " bygrad.meta_train(bygrad.load(FILE), family, recipe)."
            )
        kind = known(LEARNED, self.optimizer, "learned optimizer")
        own = eqx.filter_eval_shape(kind, key_of(seed)).config
        options = {
            "preprocess": None if self.preprocess is None else {"name": self.preprocess},
            "output_scale": self.output_scale,
            "state_dtype": self.state_dtype,
        }
        given = _fitting(options, self.optimizer, own, "--optimizer, such as LSTM")
        try:
            changed = {} if self.config is None else dict(json.loads(self.config))
            if strange := [it for it in changed if it not in own or it in given]:
                raise ValueError(f"{', '.join(strange)}: unknown, or given as an option as well")
            return kind.from_config(own | given | changed, key_of(seed))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"{self.optimizer} cannot have the configuration {self.config or given} ({error}), so there is nothing"
                f" to train. Give JSON with names and values like its own: {json.dumps(own)}."
            ) from error


@dataclasses.dataclass(frozen=True)
class Estimated:
    """How the meta-gradient is estimated. The fields that are `None` are as the estimator has them."""

    estimator: Annotated[str, arg(help="How the meta-gradient is estimated (see `bygrad list`).")] = "Replay"
    coordinates: Annotated[
        float | None, arg(help="For Replay: part of the coordinates to replay; if not given, 1, which is exact.")
    ] = None
    segment: Annotated[
        int | None,
        arg(
            help="For Replay: steps to keep in memory at a time; if not given, all. Saves memory with a --truncation"
            " above 100, near 5 times its square root; more memory is needed below, for an LSTM."
        ),
    ] = None
    second_derivatives: Annotated[bool, arg(help="For Backprop: differentiate gradients as well.")] = False
    sigma: Annotated[
        float | None,
        arg(help="For evolution strategies and Blend: how far meta-parameters are varied; if not given, 0.02."),
    ] = None
    robust: Annotated[bool, arg(help="For evolution strategies: let no run that diverges decide a meta-step.")] = False
    log: Annotated[
        bool, arg(help="For evolution strategies: compare logarithms of losses, which must not be negative.")
    ] = False
    largest: Annotated[
        float | None,
        arg(help="For evolution strategies: where half the difference of a pair is cut; --robust cuts at 3 medians."),
    ] = None
    late: Annotated[
        float | None,
        arg(help="For evolution strategies: by what power of time late losses of a run count for more; 3, say."),
    ] = None
    per_member: Annotated[
        bool, arg(help="For a Mixture: estimate the meta-gradient of each member apart, so that each counts alike.")
    ] = False

    def build(self, untrained: Any) -> Any:
        """Build the estimator, where it fits the optimizer that is to be trained."""
        from ..metagrads import ESTIMATORS, Members

        kind = known(ESTIMATORS, self.estimator, "estimator")
        fields = [field.name for field in dataclasses.fields(kind)]
        options = {
            "coordinates": self.coordinates,
            "segment": self.segment,
            "second_derivatives": self.second_derivatives or None,
            "sigma": self.sigma,
            "robust": self.robust or None,
            "log": self.log or None,
            "largest": self.largest,
            "late": self.late,
        }
        others = "--estimator (bygrad train --help says which have it)"
        estimator = kind(**_fitting(options, self.estimator, fields, others))
        if self.coordinates is not None and self.coordinates < 1 and not _is_coordinatewise(untrained):
            raise ValueError(
                f"{type(untrained).__name__} does not treat coordinates one by one, so all of them would be replayed in"
                f" spite of --coordinates {self.coordinates}. Leave the option out, or choose another --optimizer, such"
                " as LSTM."
            )
        return Members(estimator) if self.per_member else estimator


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Everything else of a `bygrad.training.Recipe`, for the command line."""

    horizon: Annotated[int, arg(help="Inner steps of a run.")] = 100
    truncation: Annotated[int, arg(help="Inner steps of a meta-step; divides the horizon.")] = 20
    instances: Annotated[int, arg(help="Problem instances of a meta-step.")] = 8
    meta_steps: Annotated[int, arg(help="Meta-steps.")] = 1000
    seconds: Annotated[
        str | None, arg(help="Time to end after, if it is over sooner: seconds, or as 90s, 10m, 1h.", metavar="TIME")
    ] = None
    meta_learning_rate: Annotated[float, arg(help="Adam's, at the start; falls to 0 along a cosine.")] = 5e-3
    meta_b2: Annotated[float, arg(help="Decay of its second moment; 0.99 for evolution strategies.")] = 0.999
    warmup: Annotated[int, arg(help="Meta-steps over which the meta-learning-rate rises.")] = 0
    clip: Annotated[float, arg(help="Largest norm of the meta-gradient.")] = 0.1
    validate_every: Annotated[
        int | None, arg(help="Meta-steps between validations; if not given, a twentieth of all meta-steps.")
    ] = None
    validation_runs: Annotated[int, arg(help="Held-out instances of a validation.")] = 16
    select: Annotated[
        Literal["area", "final"], arg(help="What the kept optimizer is best in: losses over a run, or at its end.")
    ] = "area"
    keep: Annotated[
        Literal["best", "last"],
        arg(help="Which optimizer to keep; the last, where validations are too few to tell."),
    ] = "best"

    def build(self, estimator: Any, seed: int) -> Any:
        """Build the recipe."""
        from .._core.times import parse_seconds
        from ..training import Recipe

        every = max(1, self.meta_steps // 20) if self.validate_every is None else self.validate_every
        given = dataclasses.asdict(self) | {
            "validate_every": every,
            "seconds": None if self.seconds is None else parse_seconds(self.seconds),
        }
        return Recipe(**given, estimator=estimator, final_window=max(1, self.horizon // 20), seed=seed)


def train(
    family: Families,
    learned: Annotated[Learned, arg(name="")] = Learned(),
    schedule: Annotated[Schedule, arg(name="")] = Schedule(),
    estimated: Annotated[Estimated, arg(name="")] = Estimated(),
    out: Folder = None,
    resume: Resume = False,
    seed: Seed = 0,
    data: Data = "mnist",
    hosts: Hosts = None,
) -> None:
    """Learn an optimizer for a family of problems, on all devices of this machine, or of several (--hosts)."""
    label = label_of(family)
    folder = out or Path("runs") / f"train-{label}"
    join_job(hosts, folder)  # before JAX computes anything

    import jax

    from ..artifacts import own_name
    from ..problems import find_family
    from ..workflows import may_resume, refuse_used
    from ..workflows import train as carry_out

    untrained = learned.build(seed)
    recipe = schedule.build(estimated.build(untrained), seed)
    problems = find_family(family, data=data, split="train")
    if not resume:
        refuse_used(folder)
    with progress(quiet=jax.process_index() > 0) as display:
        resume = resume and may_resume(folder, display)
        trained = carry_out(untrained, problems, recipe, folder, display, name=own_name(label), resume=resume)
        best, artifact = trained.best, str(folder / "optimizer.safetensors")
        display.say(f"{recipe.keep} at meta-step {best.step}: area {best.area:.4g}, final {best.final:.4g}")
        display.say(f"optimizer: {artifact}")
        compare = ["bygrad", "evaluate", artifact, "--family", family, "--horizon", str(recipe.horizon)]
        compare += ["--data", data] if data != "mnist" else []
        display.say(f"compare it: {shlex.join(compare)}")


def _is_coordinatewise(optimizer: Any) -> bool:
    """Whether an optimizer, or a part of it, treats coordinates one by one, so that some of them can be replayed."""
    from ..optimizers import Coordinatewise, Partition

    if isinstance(optimizer, Partition):
        return any(map(_is_coordinatewise, optimizer.parts.values()))
    return isinstance(optimizer, Coordinatewise)


def _fitting(options: dict[str, Any], name: str, has: Collection[str], others: str) -> dict[str, Any]:
    """Return the options that were given, or say which of them that which goes by this name does not have."""
    given = {option: value for option, value in options.items() if value is not None}
    if strange := [f"--{option.replace('_', '-')}" for option in given if option not in has]:
        raise ValueError(
            f"{name} has no {' or '.join(strange)}: it would be trained without. Leave the option out, or choose"
            f" another {others}."
        )
    return given
