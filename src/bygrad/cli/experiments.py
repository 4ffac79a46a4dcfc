"""Commands that carry out experiments, specialize optimizers and compare them."""

from pathlib import Path
from typing import Annotated, Literal

from rich.console import Console
from rich.markup import escape
from tyro.conf import Positional, arg

from .options import Data, Families, Folder, Json, Resume, Seed, label_of
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
    budget: Annotated[
        Literal["quick", "paper"], arg(help="quick: minutes, a first look; paper: what is in the documentation.")
    ] = "quick",
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
    """Carry out an experiment, of the paper or ours: tune baselines, meta-train, compare, report."""
    from ..experiments import EXPERIMENTS, STUDIES, Experiment, Task, carry_out
    from ..problems.catalogue import takes_data

    experiment = known(EXPERIMENTS | STUDIES, name, "experiment")
    if families and name != "thousands":
        raise ValueError(f"--families chooses among those of `thousands`, but this is {name!r}. Leave it out.")
    if artifacts != TESTED and name not in ("transfer", "all"):
        raise ValueError(f"--artifacts names what `transfer` tests, but this is {name!r}. Leave it out.")
    if data != "mnist":
        used: list[str] = [] if name == "thousands" else ["mnist"]  # all other studies have images
        if isinstance(experiment, Experiment):
            used = [experiment.training_family, *(setting.family for setting in experiment.settings)]
        if not any(map(takes_data, used)):
            raise ValueError(f"--data names images, but {name} has none, so they would not be used. Leave it out.")
    folder = out or Path("runs") / f"{name}-{budget}"
    require_results(json, folder)
    with progress() as display:
        task = Task(budget, folder, display, resume, seed, data, command_line(), artifacts, families)
        results = carry_out(experiment, task)
    finish(results, folder, json)


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
    artifacts: Positional[
        Annotated[
            tuple[str, ...],
            arg(
                help="Trained optimizers: shipped artifacts by name, or files.",
                help_behavior_hint="(one or more)",
                metavar="ARTIFACT [ARTIFACT ...]",
            ),
        ]
    ],
    family: Families,
    baselines: Annotated[
        tuple[str, ...],
        arg(
            help="Hand-designed optimizers to tune and compare with, as `bygrad list` names them.",
            help_behavior_hint="(default: SGD, Nesterov, RMSprop, Adam and AdamW)",
        ),
    ] = (),
    runs: Annotated[int, arg(help="Fresh instances for every optimizer.")] = 128,
    tuning_runs: Annotated[int, arg(help="Instances that every learning rate of a baseline is tried on.")] = 8,
    horizon: Annotated[int, arg(help="Steps of a run.")] = 100,
    split: Annotated[
        Literal["test", "train"],
        arg(help="Split to compare on, of a family that has data; baselines are tuned on that of training."),
    ] = "test",
    out: Folder = None,
    resume: Resume = False,
    seed: Seed = 0,
    data: Data = "mnist",
    json: Json = None,
) -> None:
    """Compare trained optimizers with equally tuned baselines on fresh instances of a family."""
    from ..evaluation import Protocol
    from ..optimizers import BASELINES, PAPER_BASELINES
    from ..workflows import evaluate_to_folder

    folder = out or Path("runs") / f"evaluate-{label_of(family)}"
    require_results(json, folder)
    chosen = {name: known(BASELINES, name, "hand-designed optimizer") for name in baselines} or PAPER_BASELINES
    window = max(1, horizon // 20)
    protocol = Protocol(horizon, runs=runs, tuning_runs=tuning_runs, final_window=window, seed=seed, chunk=4)
    with progress() as display:
        results = evaluate_to_folder(
            artifacts,
            family,
            protocol,
            folder,
            display,
            baselines=chosen,
            split=split,
            data=data,
            resume=resume,
            command=command_line(),
        )
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
