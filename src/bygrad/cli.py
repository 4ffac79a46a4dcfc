"""The command `bygrad`. Everything heavy is imported where it is used, so that help and mistakes answer at once."""

import os
import shlex
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import platformdirs
import tyro
from rich.console import Console
from tyro.conf import Positional, arg

from ._core.hosts import INCOMPLETE, LastWords, LostProcessError, join, parse_hosts

Families = Annotated[str, arg(help="A family by name (see `bygrad list`), or path/to/file.py:Class.", metavar="NAME")]
Data = Annotated[
    str,
    arg(help="Images for the families that need them: mnist (carried by the package), a local file, hf:ylecun/mnist."),
]
Folder = Annotated[Path | None, arg(help="Folder for everything that is written.", metavar="DIR")]
Resume = Annotated[bool, arg(help="Go on with what an interrupted run left in the folder.")]
Json = Annotated[Path | None, arg(help="Write the results to this file as well.", metavar="FILE")]
Seed = Annotated[int, arg(help="Seed of everything random.")]
Hosts = Annotated[
    str | None,
    arg(
        help="Place in a job of several processes: auto (SLURM, Open MPI, Kubernetes, TPU), or where process 0 listens,"
        " how many there are and which one this is, from 0.",
        metavar="ADDRESS:PORT,COUNT,INDEX",
    ),
]


def main(arguments: list[str] | None = None) -> None:
    """Run the command; exits with 0, with 2 after an error of the user's, with 130 after Ctrl-C.

    A job of several processes that lost one exits with 75: try again, with --resume.
    """
    commands: dict[str, Callable[..., Any]] = {
        "list": list_names,
        "reproduce": reproduce,
        "train": train,
        "specialize": specialize,
        "evaluate": evaluate,
        "inspect": inspect,
        "verify": verify,
        "push": push,
        "pull": pull,
        "stylize": stylize,
        "learn": learn,
        "solve": solve,
        "report": report,
    }
    _keep_compiled_programs()
    try:
        tyro.extras.subcommand_cli_from_dict(
            commands,
            prog="bygrad",
            description="Optimizers learned by gradient descent: learn one for the problems you solve again and again.",
            args=arguments,
        )
    except KeyboardInterrupt:
        Console(stderr=True).print(
            "Interrupted. What was done is saved: the same command with --resume goes on with it."
        )
        sys.exit(130)
    except LostProcessError as error:
        _refuse(error)
        _leave(INCOMPLETE)
    except (ValueError, TypeError, ImportError, OSError, MemoryError, FloatingPointError) as error:
        if os.environ.get("BYGRAD_TRACEBACK"):
            raise
        _refuse(error)
        _leave(2)
    except Exception:
        if _last_words is None:
            raise
        traceback.print_exc()
        _leave(1)
    finally:
        if _last_words is not None:
            _last_words.withhold()


def _refuse(error: Exception) -> None:
    Console(stderr=True).print(f"[red]bygrad:[/red] {_escape(str(error))}", soft_wrap=True, highlight=False)


_last_words: LastWords | None = None
"""Of this process, where it belongs to a job of several."""


def _leave(status: int) -> NoReturn:
    """End with a status; in a job of several processes at once, as JAX would first wait for those that cannot come."""
    if _last_words is None:
        sys.exit(status)
    _last_words.withhold()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _join(hosts: str, folder: Path) -> None:
    global _last_words
    parse_hosts(hosts)
    _last_words = LastWords(
        "bygrad: this process ended in the middle of its work: it was killed, or the runtime ended it because another"
        " process of the job was lost (the lines above say so then). The job cannot go on without it. The same command"
        f" with --resume goes on from the last checkpoint in {folder}, on any number of devices and processes."
    )
    join(hosts)


def list_names() -> None:
    """List experiments, families, optimizers and the trained artifacts that come with the package."""
    from .artifacts import shipped_names
    from .experiments import EXPERIMENTS, STUDIES
    from .optimizers import HAND_DESIGNED, LEARNED
    from .problems import FAMILIES

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
            console.print(f"  {_escape(entry)}", highlight=False)


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
    json: Json = None,
) -> None:
    """Carry out an experiment of the paper: tune baselines, meta-train, compare, report."""
    from .experiments import EXPERIMENTS, STUDIES, Task, carry_out

    experiment = _known(EXPERIMENTS | STUDIES, name, "experiment")
    folder = out or Path("runs") / f"{name}-{budget}"
    with _display() as display:
        results = carry_out(experiment, Task(budget, folder, display, resume, seed, data, _command(), artifacts))
    _finish(results, folder, json)


def train(
    family: Families,
    optimizer: Annotated[str, arg(help="A learned optimizer (see `bygrad list`).")] = "LSTM",
    preprocess: Annotated[str, arg(help="How it sees gradients: LogSign or Scaled.")] = "LogSign",
    output_scale: Annotated[float, arg(help="Factor on its updates: about the size of a useful step.")] = 0.1,
    horizon: Annotated[int, arg(help="Inner steps of a run.")] = 100,
    truncation: Annotated[int, arg(help="Inner steps of a meta-step; divides the horizon.")] = 20,
    instances: Annotated[int, arg(help="Problem instances of a meta-step.")] = 8,
    meta_steps: Annotated[int, arg(help="Meta-steps.")] = 1000,
    meta_learning_rate: Annotated[float, arg(help="Adam's, at the start; falls to 0 along a cosine.")] = 5e-3,
    coordinates: Annotated[float, arg(help="Part of the coordinates to replay; 1 is exact.")] = 1.0,
    segment: Annotated[int, arg(help="Steps to keep in memory at a time, for long windows; 0 keeps all.")] = 0,
    state_dtype: Annotated[
        Literal["float32", "bfloat16"], arg(help="What the optimizer's state is kept in; bfloat16 takes half.")
    ] = "float32",
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
        _join(hosts, folder)  # before JAX computes anything

    import jax

    from .experiments import train as carry_out
    from .metagrads import Replay
    from .optimizers import LEARNED, LSTM, PREPROCESSORS
    from .problems import find_family
    from .training import Recipe

    _known(LEARNED, optimizer, "learned optimizer")
    untrained = LSTM(
        jax.random.key(seed),
        preprocess=_known(PREPROCESSORS, preprocess, "preprocessor")(),
        output_scale=output_scale,
        state_dtype=None if state_dtype == "float32" else state_dtype,
    )
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
    with _display(quiet=jax.process_index() > 0) as display:
        trained = carry_out(untrained, problems, recipe, folder, display, name=f"mine/{label}", resume=resume)
        display.say(
            f"best at meta-step {trained.best.step}: area {trained.best.area:.4g}, final {trained.best.final:.4g}"
        )
        display.say(f"optimizer: {folder / 'optimizer.safetensors'}")
        display.say(f"compare it: bygrad evaluate {folder / 'optimizer.safetensors'} --family {family}")


def specialize(
    family: Positional[Families],
    budget: Annotated[str, arg(help="Time for meta-training: seconds, or as 90s, 10m, 1h.", metavar="TIME")] = "90s",
    objective: Annotated[
        Literal["training", "validation"], arg(help="What counts: the training loss, or the loss on held-out data.")
    ] = "training",
    horizon: Annotated[int, arg(help="Steps of a run.")] = 400,
    out: Folder = None,
    resume: Resume = False,
    seed: Seed = 0,
    data: Data = "mnist",
    json: Json = None,
) -> None:
    """Learn an optimizer for a family of problems in the time given, and say what it is worth."""
    from .experiments import specialize as carry_out
    from .problems import find_family

    label = family.rpartition(":")[2].lower()
    folder = out or Path("runs") / f"specialize-{label}"
    problems = find_family(family, data=data, split="train")
    with _display() as display:
        done = carry_out(
            problems,
            budget,
            objective=objective,
            horizon=horizon,
            folder=folder,
            resume=resume,
            seed=seed,
            display=display,
            command=_command(),
        )
    _finish(done.results, folder, json)
    Console().print(f"optimizer: {done.path}", highlight=False, soft_wrap=True)


def evaluate(
    artifact: Positional[Annotated[str, arg(help="A shipped artifact by name, or a file.", metavar="ARTIFACT")]],
    family: Families,
    runs: Annotated[int, arg(help="Fresh instances for every optimizer.")] = 128,
    horizon: Annotated[int, arg(help="Steps of a run.")] = 100,
    out: Folder = None,
    seed: Seed = 0,
    data: Data = "mnist",
    json: Json = None,
) -> None:
    """Compare a trained optimizer with equally tuned baselines on fresh instances of a family."""
    from .deploy.jax import load
    from .evaluation import Protocol, write_report
    from .experiments import evaluate as carry_out
    from .problems import find_family

    optimizer = load(artifact)
    label = family.rpartition(":")[2].lower()
    folder = out or Path("runs") / f"evaluate-{label}"
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(
            f"{folder} already exists, and the report in it would be overwritten. Choose another --out."
        )
    protocol = Protocol(horizon, runs=runs, final_window=max(1, horizon // 20), seed=seed, chunk=4)
    with _display() as display:
        results = carry_out(
            {type(optimizer).__name__: optimizer},
            find_family(family, data=data, split="test"),
            find_family(family, data=data, split="train"),
            protocol,
            display,
            title=f"{artifact} on {family}",
            command=_command(),
        )
    write_report(results, folder)
    _finish(results, folder, json)


def inspect(
    artifact: Positional[Annotated[str, arg(help="A shipped artifact by name, or a file.", metavar="ARTIFACT")]],
) -> None:
    """Check an artifact and print what it says about itself, but for the numbers of its golden trajectory."""
    import json

    from .artifacts import find, load

    fields = json.loads(load(find(artifact)).manifest.to_json())
    if "trajectory" in fields:
        fields["trajectory"] = {"steps": len(fields["trajectory"].get("steps", ()))}
    Console().print_json(data=fields)


def verify(
    artifact: Positional[Annotated[str, arg(help="A shipped artifact by name, or a file.", metavar="ARTIFACT")]],
) -> None:
    """Check every byte of an artifact, and replay its golden trajectory in JAX and in PyTorch."""
    from .deploy import verify as replay

    console = Console(highlight=False, soft_wrap=True)
    for done in replay(artifact):
        off = done.remark if done.deviation is None else f"off by {done.deviation:.1e} of the largest update"
        console.print(f"{done.framework}: {_escape(off)}")
    console.print("The file is whole, and nothing that was replayed differs.")


def push(
    artifact: Positional[Annotated[str, arg(help="A shipped artifact by name, or a file.", metavar="ARTIFACT")]],
    repo: Positional[Annotated[str, arg(help="Repository on the Hugging Face Hub.", metavar="OWNER/NAME")]],
    revision: Annotated[str, arg(help="Branch to commit to.")] = "main",
    private: Annotated[bool, arg(help="Hide the repository, if it is new.")] = False,
) -> None:
    """Upload an artifact with a model card to the Hugging Face Hub, and print the commit to pull it by."""
    from .deploy import hub

    commit = hub.push(artifact, repo, revision=revision, private=private)
    Console(highlight=False, soft_wrap=True).print(f"bygrad pull {_escape(repo)} --revision {commit}")


def pull(
    repo: Positional[Annotated[str, arg(help="Repository on the Hugging Face Hub.", metavar="OWNER/NAME")]],
    revision: Annotated[str, arg(help="The 40 digits of a commit: what a branch means can change.", metavar="COMMIT")],
    out: Annotated[Path, arg(help="File to write; nothing is overwritten.", metavar="FILE")] = Path(
        "optimizer.safetensors"
    ),
) -> None:
    """Download a trained optimizer from the Hugging Face Hub, by commit, and verify it."""
    from .deploy import hub

    artifact = hub.pull(repo, revision=revision, out=out)
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{artifact.manifest.name}, a {artifact.manifest.optimizer}: {_escape(str(out))}")


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
    from .deploy.jax import load
    from .experiments import stylize as carry_out

    optimizer = load(artifact)
    with _display() as display:
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


def learn(
    family: Positional[Families],
    out: Annotated[Path, arg(help="File for the solver.", metavar="FILE", aliases=["-o"])],
    budget: Annotated[str, arg(help="Time for all of it: 60s, 5min, 1h.")] = "60s",
    tol: Annotated[float, arg(help="Solved: the cost is within this factor of the best known.")] = 1e-3,
    instances: Annotated[Path | None, arg(help="npy file of past instances; default: the family's own draws.")] = None,
    dtype: Annotated[
        Literal["float32", "float64"],
        arg(help="Precision of the solver; float32 takes half the time and serves convex problems down to --tol 1e-4."),
    ] = "float64",
    seed: Seed = 0,
) -> None:
    """Learn a solver for problems that are solved thousands of times, and say whether it pays."""
    from .experiments import learn_to_file

    with _display() as display:
        solver = learn_to_file(family, budget, tol, out, display, data=instances, seed=seed, dtype=dtype)
    print(solver.report())
    print(f"solver: {out}")


def solve(
    solver: Positional[Annotated[str, arg(help="A file of `bygrad learn`, or a family to solve classically.")]],
    instances: Positional[Annotated[Path, arg(help="npy file, one instance a row; may be larger than memory.")]],
    out: Annotated[Path, arg(help="npz file for the results.", metavar="FILE", aliases=["-o"])],
    family: Annotated[str | None, arg(help="The solver's family, where it has moved.", metavar="NAME")] = None,
    resume: Resume = False,
) -> None:
    """Solve every instance of a file; after a kill, --resume goes on."""
    from .deploy.solver import load_solver
    from .experiments import solve_file
    from .problems import find_family

    loaded = load_solver(solver, family) if Path(solver).is_file() else find_family(solver)
    with _display() as display:
        done = solve_file(loaded, instances, out, display, resume=resume)
        display.say(
            f"{done['solved']} of {done['rows']} solved in {done['seconds']:.1f} s, {done['rate']:.0f} a second"
        )
        for warning in done["warnings"]:
            display.say(warning, "yellow")
        display.say(f"results: {out}")


def report(
    solver: Positional[Annotated[Path, arg(help="A file of `bygrad learn`.")]],
    family: Annotated[str | None, arg(help="The solver's family, where it has moved.", metavar="NAME")] = None,
) -> None:
    """Say what a learned solver is worth and what is proven about it."""
    from .deploy.solver import load_solver

    print(load_solver(solver, family).report())


def _keep_compiled_programs() -> None:
    """Keep what JAX compiles in the user's cache folder, unless the user has chosen another: read when JAX loads."""
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(platformdirs.user_cache_path("bygrad") / "compiled"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")


def _display(quiet: bool = False) -> Any:
    from .experiments import Display

    return Display(Console(quiet=quiet))


def _finish(results: dict[str, Any], folder: Path, file: Path | None) -> None:
    import json

    from ._core.files import write_text_atomically
    from .evaluation import results_table, strict_json

    console = Console()
    if results.get("optimizers"):
        console.print(results_table(results))
    for level in results.get("levels", ()):
        verdict = {None: "reported", True: "reached", False: "NOT reached"}[level["reached"]]
        paper, reach = (("-" if level[key] is None else f"{level[key]:g}") for key in ("paper", "reach"))
        ours, low, high = (float("inf") if level[key] is None else level[key] for key in ("ours", "low", "high"))
        console.print(
            f"{level['what']}: {ours:.4g} [{low:.4g}, {high:.4g}]; paper {paper}, to reach {reach}: {verdict}",
            highlight=False,
            soft_wrap=True,
        )
    if file is not None:
        write_text_atomically(file, json.dumps(strict_json(results), indent=1))
    console.print(f"report: {folder / 'report.html'}", highlight=False, soft_wrap=True)


def _known(table: dict[str, Any], name: str, kind: str) -> Any:
    import difflib

    if name not in table:
        close = difflib.get_close_matches(name, table, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"There is no {kind} {name!r}.{hint} Known: {', '.join(table)}.")
    return table[name]


def _command() -> str:
    return shlex.join(["bygrad", *sys.argv[1:]])


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


if __name__ == "__main__":
    main()
