"""Commands that learn optimizers and compare them."""

import inspect
from pathlib import Path
from typing import Annotated, Any, Literal

from rich.console import Console
from rich.markup import escape
from tyro.conf import Positional, arg

from .job import join_job
from .options import Artifact, Data, Families, Folder, Hosts, Json, Resume, Seed
from .terminal import command_line, finish, known, progress, require_figures


def list_names() -> None:
    """List experiments, families, optimizers and the trained artifacts that come with the package."""
    from ..artifacts import shipped_names
    from ..experiments import EXPERIMENTS, STUDIES
    from ..optimizers import HAND_DESIGNED, LEARNED
    from ..problems import FAMILIES

    console = Console()
    groups = {
        "experiments": [f"{name}: {it.title}" for name, it in (EXPERIMENTS | STUDIES).items()],
        "families": list(FAMILIES),
        "learned optimizers": list(LEARNED),
        "hand-designed optimizers": list(HAND_DESIGNED),
        "artifacts": shipped_names(),
    }
    for title, entries in groups.items():
        console.print(f"[bold]{title}[/bold]")
        for entry in entries:
            console.print(f"  {escape(entry)}", highlight=False)


def reproduce(
    name: Positional[Annotated[str, arg(help="An experiment (see `bygrad list`), or all.", metavar="NAME")]],
    budget: Annotated[Literal["quick", "paper"], arg(help="Two minutes, or the paper's levels.")] = "quick",
    out: Folder = None,
    resume: Resume = False,
    seed: Seed = 0,
    data: Data = "mnist",
    artifacts: Annotated[tuple[str, ...], arg(help="Trained optimizers to test, for `transfer`: names or files.")] = (
        "general/controller",
    ),
    families: Annotated[tuple[str, ...], arg(help="Families to compare on, for `thousands`; none: all.")] = (),
    json: Json = None,
) -> None:
    """Carry out an experiment of the paper: tune baselines, meta-train, compare, report."""
    from ..experiments import EXPERIMENTS, STUDIES, Task, carry_out

    experiment = known(EXPERIMENTS | STUDIES, name, "experiment")
    if families and name != "thousands":
        raise ValueError(f"--families chooses among those of `thousands`, but this is {name!r}. Leave it out.")
    require_figures()
    folder = out or Path("runs") / f"{name}-{budget}"
    with progress() as display:
        task = Task(budget, folder, display, resume, seed, data, command_line(), artifacts, families)
        results = carry_out(experiment, task)
    finish(results, folder, json)


def train(
    family: Families,
    optimizer: Annotated[str, arg(help="A learned optimizer (see `bygrad list`).")] = "LSTM",
    preprocess: Annotated[str | None, arg(help="How an LSTM sees gradients: LogSign (if not given) or Scaled.")] = None,
    output_scale: Annotated[
        float | None, arg(help="Factor on an LSTM's updates: about the size of a useful step; if not given, 0.1.")
    ] = None,
    horizon: Annotated[int, arg(help="Inner steps of a run.")] = 100,
    truncation: Annotated[int, arg(help="Inner steps of a meta-step; divides the horizon.")] = 20,
    instances: Annotated[int, arg(help="Problem instances of a meta-step.")] = 8,
    meta_steps: Annotated[int, arg(help="Meta-steps.")] = 1000,
    meta_learning_rate: Annotated[float, arg(help="Adam's, at the start; falls to 0 along a cosine.")] = 5e-3,
    coordinates: Annotated[float, arg(help="Part of the coordinates to replay; 1 is exact.")] = 1.0,
    segment: Annotated[int, arg(help="Steps to keep in memory at a time, for long windows; 0 keeps all.")] = 0,
    state_dtype: Annotated[
        Literal["float32", "bfloat16"] | None, arg(help="What an LSTM's state is kept in; bfloat16 takes half.")
    ] = None,
    out: Folder = None,
    resume: Resume = False,
    seed: Seed = 0,
    data: Data = "mnist",
    hosts: Hosts = None,
) -> None:
    """Learn an optimizer for a family of problems, on all devices of this machine, or of several (--hosts)."""
    label = family.rpartition(":")[2].lower()
    folder = out or Path("runs") / f"train-{label}"
    if hosts is not None:
        join_job(hosts, folder)  # before JAX computes anything

    import jax

    from ..experiments import refuse_used
    from ..experiments import train as carry_out
    from ..metagrads import Replay
    from ..optimizers import LEARNED, PREPROCESSORS
    from ..problems import find_family
    from ..training import Recipe

    kind = known(LEARNED, optimizer, "learned optimizer")
    options = {
        "preprocess": None if preprocess is None else known(PREPROCESSORS, preprocess, "preprocessor")(),
        "output_scale": output_scale,
        "state_dtype": state_dtype,
    }
    untrained = kind(jax.random.key(seed), **_options_of(kind, options))
    recipe = Recipe(
        horizon=horizon,
        truncation=truncation,
        instances=instances,
        meta_steps=meta_steps,
        meta_learning_rate=meta_learning_rate,
        clip=0.1,
        estimator=Replay(coordinates, segment),
        validate_every=max(1, meta_steps // 20),
        final_window=max(1, horizon // 20),
        seed=seed,
    )
    problems = find_family(family, data=data, split="train")
    if not resume:
        refuse_used(folder)
    with progress(quiet=jax.process_index() > 0) as display:
        trained = carry_out(untrained, problems, recipe, folder, display, name=f"mine/{label}", resume=resume)
        display.say(
            f"best at meta-step {trained.best.step}: area {trained.best.area:.4g}, final {trained.best.final:.4g}"
        )
        display.say(f"optimizer: {folder / 'optimizer.safetensors'}")
        display.say(f"compare it: bygrad evaluate {folder / 'optimizer.safetensors'} --family {family}")


def _options_of(kind: type, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that were given, or say which of them this kind of optimizer does not have."""
    given = {name: value for name, value in options.items() if value is not None}
    has = inspect.signature(kind.__init__).parameters
    if strange := [f"--{name.replace('_', '-')}" for name in given if name not in has]:
        raise ValueError(
            f"{kind.__name__} has no {' or '.join(strange)}: it would be trained without. Leave the option out, or"
            " choose another --optimizer, such as LSTM."
        )
    return given


def specialize(
    family: Positional[Families],
    budget: Annotated[str, arg(help="Time for meta-training: seconds, or as 90s, 10m, 1h.", metavar="TIME")] = "90s",
    objective: Annotated[
        Literal["training", "validation"], arg(help="What counts: the training loss, or the loss on held-out data.")
    ] = "training",
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
    from ..experiments import specialize as carry_out
    from ..problems import find_family

    require_figures()
    label = family.rpartition(":")[2].lower()
    folder = out or Path("runs") / f"specialize-{label}"
    problems = find_family(family, data=data, split="train")
    with progress() as display:
        done = carry_out(
            problems,
            budget,
            objective=objective,
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
    out: Folder = None,
    seed: Seed = 0,
    data: Data = "mnist",
    json: Json = None,
) -> None:
    """Compare a trained optimizer with equally tuned baselines on fresh instances of a family."""
    from ..deploy.jax import load
    from ..evaluation import Protocol, write_report
    from ..experiments import evaluate as carry_out
    from ..problems import find_family

    require_figures()
    optimizer = load(artifact)
    label = family.rpartition(":")[2].lower()
    folder = out or Path("runs") / f"evaluate-{label}"
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(
            f"{folder} already exists, and the report in it would be overwritten. Choose another --out."
        )
    protocol = Protocol(horizon, runs=runs, final_window=max(1, horizon // 20), seed=seed, chunk=4)
    with progress() as display:
        results = carry_out(
            {type(optimizer).__name__: optimizer},
            find_family(family, data=data, split="test"),
            find_family(family, data=data, split="train"),
            protocol,
            display,
            title=f"{artifact} on {family}",
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
    from ..experiments import stylize as carry_out

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
