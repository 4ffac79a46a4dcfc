"""Commands that learn optimizers and compare them."""

import dataclasses
import shlex
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal

from rich.console import Console
from rich.markup import escape
from tyro.conf import Positional, arg

from .job import join_job
from .options import Artifact, Data, Families, Folder, Hosts, Json, Resume, Seed, label_of
from .terminal import command_line, finish, known, progress, require_results

TESTED = ("general/controller",)
"""The trained optimizers that `transfer` tests unless it is told others."""


def list_names() -> None:
    """List experiments, families, optimizers, estimators and the trained artifacts that come with the package."""
    from ..artifacts import shipped_names
    from ..experiments import EXPERIMENTS, STUDIES
    from ..metagrads import ESTIMATORS
    from ..optimizers import BASELINES, LEARNED
    from ..problems import FAMILIES

    console = Console()
    groups = {
        "experiments": [f"{name}: {it.title}" for name, it in (EXPERIMENTS | STUDIES).items()],
        "families": list(FAMILIES),
        "learned optimizers": list(LEARNED),
        "hand-designed optimizers": list(BASELINES),
        "estimators": list(ESTIMATORS),
        "artifacts": shipped_names(),
    }
    for title, entries in groups.items():
        console.print(f"[bold]{title}[/bold]")
        for entry in entries:
            console.print(f"  {escape(entry)}", highlight=False, soft_wrap=True)


def reproduce(
    name: Positional[Annotated[str, arg(help="An experiment (see `bygrad list`), or all.", metavar="NAME")]],
    budget: Annotated[Literal["quick", "paper"], arg(help="Two minutes, or the paper's levels.")] = "quick",
    out: Folder = None,
    resume: Resume = False,
    seed: Seed = 0,
    data: Data = "mnist",
    artifacts: Annotated[
        tuple[str, ...],
        arg(
            help="Trained optimizers to test, for `transfer`: names or files. With --resume, others than before: the"
            " baselines are not run again."
        ),
    ] = TESTED,
    families: Annotated[tuple[str, ...], arg(help="Families to compare on, for `thousands`; none: all.")] = (),
    json: Json = None,
) -> None:
    """Carry out an experiment of the paper: tune baselines, meta-train, compare, report."""
    from ..experiments import EXPERIMENTS, STUDIES, Task, carry_out

    experiment = known(EXPERIMENTS | STUDIES, name, "experiment")
    if families and name != "thousands":
        raise ValueError(f"--families chooses among those of `thousands`, but this is {name!r}. Leave it out.")
    if artifacts != TESTED and name not in ("transfer", "all"):
        raise ValueError(f"--artifacts names what `transfer` tests, but this is {name!r}. Leave it out.")
    folder = out or Path("runs") / f"{name}-{budget}"
    require_results(json, folder)
    with progress() as display:
        task = Task(budget, folder, display, resume, seed, data, command_line(), artifacts, families)
        results = carry_out(experiment, task)
    finish(results, folder, json)


def train(
    family: Families,
    optimizer: Annotated[str, arg(help="A learned optimizer (see `bygrad list`).")] = "LSTM",
    config: Annotated[
        str | None,
        arg(
            help='What is to differ from its own configuration: {"layers": [8]}. The names are those that `bygrad'
            " inspect` shows of a trained one.",
            metavar="JSON",
        ),
    ] = None,
    preprocess: Annotated[str | None, arg(help="How an LSTM sees gradients: LogSign (if not given) or Scaled.")] = None,
    output_scale: Annotated[
        float | None, arg(help="Factor on an LSTM's updates: about the size of a useful step; if not given, 0.1.")
    ] = None,
    state_dtype: Annotated[
        Literal["float32", "bfloat16"] | None, arg(help="What an LSTM's state is kept in; bfloat16 takes half.")
    ] = None,
    horizon: Annotated[int, arg(help="Inner steps of a run.")] = 100,
    truncation: Annotated[int, arg(help="Inner steps of a meta-step; divides the horizon.")] = 20,
    instances: Annotated[int, arg(help="Problem instances of a meta-step.")] = 8,
    meta_steps: Annotated[int, arg(help="Meta-steps.")] = 1000,
    seconds: Annotated[
        str | None, arg(help="Time to end after, if it is over sooner: seconds, or as 90s, 10m, 1h.", metavar="TIME")
    ] = None,
    meta_learning_rate: Annotated[float, arg(help="Adam's, at the start; falls to 0 along a cosine.")] = 5e-3,
    meta_b2: Annotated[float, arg(help="Decay of its second moment; 0.99 for evolution strategies.")] = 0.999,
    warmup: Annotated[int, arg(help="Meta-steps over which the meta-learning-rate rises.")] = 0,
    clip: Annotated[float, arg(help="Largest norm of the meta-gradient.")] = 0.1,
    validate_every: Annotated[
        int | None, arg(help="Meta-steps between validations; if not given, a twentieth of all meta-steps.")
    ] = None,
    validation_runs: Annotated[int, arg(help="Held-out instances of a validation.")] = 16,
    select: Annotated[
        Literal["area", "final"], arg(help="What the kept optimizer is best in: losses over a run, or at its end.")
    ] = "area",
    keep: Annotated[
        Literal["best", "last"],
        arg(help="Which optimizer to keep; the last, where validations are too few to tell, as of a Clone."),
    ] = "best",
    estimator: Annotated[str, arg(help="How the meta-gradient is estimated (see `bygrad list`).")] = "Replay",
    coordinates: Annotated[
        float | None, arg(help="For Replay: part of the coordinates to replay; if not given, 1, which is exact.")
    ] = None,
    segment: Annotated[
        int | None,
        arg(
            help="For Replay: steps to keep in memory at a time; if not given, all. Saves memory with a --truncation"
            " above 100, near 5 times its square root; more memory is needed below, for an LSTM."
        ),
    ] = None,
    second_derivatives: Annotated[bool, arg(help="For Backprop: differentiate gradients as well.")] = False,
    sigma: Annotated[
        float | None,
        arg(help="For evolution strategies and Blend: how far meta-parameters are varied; if not given, 0.02."),
    ] = None,
    robust: Annotated[bool, arg(help="For evolution strategies: let no run that diverges decide a meta-step.")] = False,
    log: Annotated[
        bool, arg(help="For evolution strategies: compare logarithms of losses, which must not be negative.")
    ] = False,
    largest: Annotated[
        float | None,
        arg(help="For evolution strategies: where half the difference of a pair is cut; --robust cuts at 3 medians."),
    ] = None,
    late: Annotated[
        float | None,
        arg(help="For evolution strategies: by what power of time late losses of a run count for more; 3, say."),
    ] = None,
    per_member: Annotated[
        bool, arg(help="For a Mixture: estimate the meta-gradient of each member apart, so that each counts alike.")
    ] = False,
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

    from .._core.times import parse_seconds
    from ..artifacts import own_name
    from ..metagrads import Members
    from ..optimizers import PREPROCESSORS
    from ..problems import find_family
    from ..training import Recipe
    from ..workflows import may_resume, refuse_used
    from ..workflows import train as carry_out

    if preprocess is not None:
        known(PREPROCESSORS, preprocess, "preprocessor")
    options = {
        "preprocess": None if preprocess is None else {"name": preprocess},
        "output_scale": output_scale,
        "state_dtype": state_dtype,
    }
    untrained = _build_optimizer(optimizer, options, config, seed)
    settings = {
        "coordinates": coordinates,
        "segment": segment,
        "second_derivatives": second_derivatives or None,
        "sigma": sigma,
        "robust": robust or None,
        "log": log or None,
        "largest": largest,
        "late": late,
    }
    estimates = _build_estimator(estimator, settings)
    if coordinates is not None and coordinates < 1 and not _is_coordinatewise(untrained):
        raise ValueError(
            f"{optimizer} does not treat coordinates one by one, so all of them would be replayed in spite of"
            f" --coordinates {coordinates}. Leave the option out, or choose another --optimizer, such as LSTM."
        )
    recipe = Recipe(
        horizon=horizon,
        truncation=truncation,
        instances=instances,
        meta_steps=meta_steps,
        meta_learning_rate=meta_learning_rate,
        clip=clip,
        estimator=Members(estimates) if per_member else estimates,
        validate_every=max(1, meta_steps // 20) if validate_every is None else validate_every,
        validation_runs=validation_runs,
        final_window=max(1, horizon // 20),
        select=select,
        keep=keep,
        seed=seed,
        meta_b2=meta_b2,
        warmup=warmup,
        seconds=None if seconds is None else parse_seconds(seconds),
    )
    problems = find_family(family, data=data, split="train")
    if not resume:
        refuse_used(folder)
    with progress(quiet=jax.process_index() > 0) as display:
        resume = resume and may_resume(folder, display)
        trained = carry_out(untrained, problems, recipe, folder, display, name=own_name(label), resume=resume)
        display.say(
            f"{keep} at meta-step {trained.best.step}: area {trained.best.area:.4g}, final {trained.best.final:.4g}"
        )
        artifact = str(folder / "optimizer.safetensors")
        display.say(f"optimizer: {artifact}")
        compare = ["bygrad", "evaluate", artifact, "--family", family, "--horizon", str(horizon)]
        compare += ["--data", data] if data != "mnist" else []
        display.say(f"compare it: {shlex.join(compare)}")


def _build_optimizer(name: str, options: dict[str, Any], config: str | None, seed: int) -> Any:
    """Build an untrained optimizer from what differs from its own configuration, given as options and as JSON."""
    import json

    import equinox as eqx
    import jax

    from .._core.draws import check_seed
    from ..optimizers import LEARNED

    check_seed(seed)
    kind = known(LEARNED, name, "learned optimizer")
    own = eqx.filter_eval_shape(kind, jax.random.key(seed)).config
    given = _fitting(options, name, own, "--optimizer, such as LSTM")
    try:
        changed = {} if config is None else dict(json.loads(config))
        if strange := [it for it in changed if it not in own or it in given]:
            raise ValueError(f"{', '.join(strange)}: unknown, or given as an option as well")
        return kind.from_config(own | given | changed, jax.random.key(seed))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{name} cannot have the configuration {config or given} ({error}), so there is nothing to train. Give JSON"
            f" with names and values like its own: {json.dumps(own)}."
        ) from error


def _build_estimator(name: str, options: dict[str, Any]) -> Any:
    """Build an estimator of meta-gradients with the options that were given."""
    from ..metagrads import ESTIMATORS

    kind = known(ESTIMATORS, name, "estimator")
    fields = [field.name for field in dataclasses.fields(kind)]
    return kind(**_fitting(options, name, fields, "--estimator (bygrad train --help says which have it)"))


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


def specialize(
    family: Positional[Families],
    budget: Annotated[str, arg(help="Time for meta-training: seconds, or as 90s, 10m, 1h.", metavar="TIME")] = "90s",
    objective: Annotated[
        Literal["training", "validation"], arg(help="What counts: the training loss, or the loss on held-out data.")
    ] = "training",
    held_out: Annotated[
        int | None,
        arg(help="For validation: how many of the last images (or characters) to keep from training; else a fifth."),
    ] = None,
    horizon: Annotated[int, arg(help="Steps of a run.")] = 400,
    pretrained: Annotated[
        str, arg(help="Controller to start from where it does better than a tuned Adam; none: always from that.")
    ] = "general/controller",
    out: Folder = None,
    resume: Resume = False,
    seed: Seed = 0,
    data: Data = "mnist",
    json: Json = None,
) -> None:
    """Learn an optimizer for a family of problems in the time given, and say what it is worth."""
    from ..problems import find_family
    from ..workflows import specialize as carry_out

    label = label_of(family)
    folder = out or Path("runs") / f"specialize-{label}"
    require_results(json, folder)
    problems = find_family(family, data=data, split="train")
    with progress() as display:
        done = carry_out(
            problems,
            budget,
            objective=objective,
            held_out=held_out,
            horizon=horizon,
            pretrained=None if pretrained == "none" else pretrained,
            folder=folder,
            resume=resume,
            seed=seed,
            display=display,
            command=command_line(),
        )
    finish(done.results, folder, json)
    Console().print(f"optimizer: {done.path}", highlight=False, soft_wrap=True)


def evaluate(
    artifact: Artifact,
    family: Families,
    runs: Annotated[int, arg(help="Fresh instances for every optimizer.")] = 128,
    horizon: Annotated[int, arg(help="Steps of a run.")] = 100,
    split: Annotated[
        Literal["test", "train"],
        arg(help="Split to compare on, of a family that has data; baselines are tuned on that of training."),
    ] = "test",
    out: Folder = None,
    seed: Seed = 0,
    data: Data = "mnist",
    json: Json = None,
) -> None:
    """Compare a trained optimizer with equally tuned baselines on fresh instances of a family."""
    from ..deploy.jax import load
    from ..evaluation import Protocol, write_report
    from ..optimizers import PAPER_BASELINES
    from ..problems import find_family
    from ..workflows import evaluate as carry_out
    from ..workflows import refuse_used

    label = label_of(family)
    folder = out or Path("runs") / f"evaluate-{label}"
    require_results(json, folder)
    optimizer = load(artifact)
    name = type(optimizer).__name__
    refuse_used(folder, resumable=False)
    protocol = Protocol(horizon, runs=runs, final_window=max(1, horizon // 20), seed=seed, chunk=4)
    with progress() as display:
        results = carry_out(
            {f"{name} (given)" if name in PAPER_BASELINES else name: optimizer},
            find_family(family, data=data, split=split),
            find_family(family, data=data, split="train"),
            protocol,
            display,
            title=f"{artifact} on {family}{' (training split)' if split == 'train' else ''}",
            command=command_line(),
        )
    write_report(results, folder)
    finish(results, folder, json)


def stylize(
    content: Positional[Annotated[Path, arg(help="The picture to paint.", metavar="CONTENT")]],
    style: Positional[Annotated[Path, arg(help="A picture in the style to paint it in.", metavar="STYLE")]],
    out: Annotated[Path, arg(help="The picture to write.", metavar="FILE", aliases=["-o"])],
    size: Annotated[int, arg(help="Pixels of the longer side.")] = 128,
    artifact: Annotated[str, arg(help="A shipped artifact by name, or a file.")] = "paper/style",
    steps: Annotated[int, arg(help="Updates; the shipped optimizer was trained for 128.")] = 128,
    seed: Seed = 0,
) -> None:
    """Paint a picture in the style of another, with a learned optimizer."""
    from ..deploy.jax import load
    from ..workflows import stylize as carry_out

    optimizer = load(artifact)
    with progress() as display:
        loss = carry_out(
            content,
            style,
            out,
            optimizer,
            size=size,
            steps=steps,
            seed=seed,
            tick=lambda done, loss: display.phase("painting", done, steps, f"loss {loss:.4g}"),
        )
    Console().print(f"loss {loss:.4g}: {out}", highlight=False, soft_wrap=True)
