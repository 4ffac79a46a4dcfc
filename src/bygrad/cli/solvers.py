"""Commands on problems that are solved thousands of times."""

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from .._core.hosts import place_in_job
from .._core.remarks import visible
from .options import Families, Resume, Seed
from .terminal import progress


def learn(
    family: Positional[Families],
    out: Annotated[Path, arg(help="File for the solver.", metavar="FILE", aliases=["-o"])],
    budget: Annotated[str, arg(help="Time for all of it: seconds, or as 60s, 10m, 1h.", metavar="TIME")] = "60s",
    tol: Annotated[
        float, arg(help="Solved: at most this share above the best known cost; if convex, certified to be so.")
    ] = 1e-3,
    instances: Annotated[
        Path | None,
        arg(help="npy or npz file of past instances to learn from; default: the family's own draws.", metavar="FILE"),
    ] = None,
    heldout: Annotated[
        int, arg(help="Instances to compare on; 1,150 bound the share of failures, and the steps of 99 in 100.")
    ] = 1150,
    dtype: Annotated[
        Literal["float32", "float64"],
        arg(help="Precision of the solver; float32 takes half the time and serves convex problems down to --tol 1e-4."),
    ] = "float64",
    seed: Seed = 0,
) -> None:
    """Learn a solver for problems that are solved thousands of times, and say whether it pays."""
    from ..workflows import learn_to_file

    with progress() as display:
        solver = learn_to_file(
            family, budget, tol, out, display, data=instances, heldout=heldout, seed=seed, dtype=dtype
        )
    print(solver.report())
    print(f"solver: {out}")


def solve(
    solver: Positional[
        Annotated[str, arg(help="A file of `bygrad learn`, or a family to solve classically.", metavar="SOLVER")]
    ],
    instances: Positional[
        Annotated[
            Path,
            arg(
                help="npy file, one instance a row; or npz, where an instance has several arrays, each under its path."
                " Both may be larger than memory, unless the npz is compressed.",
                metavar="INSTANCES",
            ),
        ]
    ],
    out: Annotated[Path, arg(help="npz file for the results.", metavar="FILE", aliases=["-o"])],
    family: Annotated[str | None, arg(help="The solver's family, where it has moved.", metavar="NAME")] = None,
    tol: Annotated[float | None, arg(help="Tolerance of the classical method; a learned solver has its own.")] = None,
    max_steps: Annotated[
        int | None, arg(help="Steps after which the classical method gives an instance up; each method has a default.")
    ] = None,
    starts: Annotated[int | None, arg(help="Starts for each instance, by the classical method.")] = None,
    dtype: Annotated[
        Literal["float32", "float64"] | None, arg(help="Precision of the classical method; default: float64.")
    ] = None,
    x0: Annotated[
        Path | None,
        arg(
            help="Params to start from: results of `bygrad solve`, with the multipliers of quadratic programs, or npy;"
            " one row for each instance, or one for all.",
            metavar="FILE",
        ),
    ] = None,
    guard: Annotated[
        Literal["certificate", "best_of_two"] | None,
        arg(help="What a learned solver is held to: its stopping rules (if not given), or the classical one's cost."),
    ] = None,
    seed: Seed = 0,
    batch: Annotated[int | None, arg(help="Instances that are worked on at once; more on an accelerator.")] = None,
    block: Annotated[
        int | None, arg(help="Instances that are read and kept at a time; default: what takes about 20 seconds.")
    ] = None,
    hosts: Annotated[
        str | None,
        arg(
            help="Share the work with other processes in one folder: auto (SLURM, Open MPI), or how many there are and"
            " which one this is, from 0.",
            metavar="COUNT,INDEX",
        ),
    ] = None,
    resume: Resume = False,
) -> None:
    """Solve every instance of a file, alone or with other processes (--hosts); after a kill, --resume goes on."""
    index, count = place_in_job(hosts)
    from ..deploy.solver import load_solver
    from ..problems import file_of_family, find_family
    from ..solvers import STATUS
    from ..workflows import solve_file

    is_solver = Path(solver).is_file() and file_of_family(solver) is None
    if family is not None and not is_solver:
        raise ValueError(
            f"--family {family} says where the family of a learned solver is, and {solver} is no file of one, so it is"
            " not known which family is meant. Leave one of them out."
        )
    loaded = load_solver(solver, family) if is_solver else find_family(solver)
    with progress() as display:
        done = solve_file(
            loaded,
            instances,
            out,
            display,
            resume=resume,
            tol=tol,
            max_steps=max_steps,
            starts=starts,
            dtype=dtype,
            x0=x0,
            guard=guard,
            seed=seed,
            batch=batch,
            block=block,
            place=(index, count),
        )
        here = "" if count == 1 else f" in process {index}"
        display.say(
            f"{done['solved']} of {done['rows']} solved in {done['seconds']:.1f} s, {done['rate']:.0f} a second{here}"
        )
        for code, count in done["status"].items():
            if count and code <= 0:
                display.say(f"{count} not solved: {STATUS[code]}", "yellow")
        for warning in done["warnings"]:
            display.say(warning, "yellow")
        if index == 0:
            display.say(f"results: {out}")


def report(
    solver: Positional[Annotated[Path, arg(help="A file of `bygrad learn`.", metavar="SOLVER")]],
    family: Annotated[str | None, arg(help="The solver's family, where it has moved.", metavar="NAME")] = None,
) -> None:
    """Say what a learned solver is worth and what is proven about it."""
    from ..deploy.solver import load_solver

    print(visible(load_solver(solver, family).report()))
