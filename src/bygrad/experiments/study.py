"""What an experiment is that does not fit `Experiment`: more than one learned optimizer, or something else to show."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .declaration import Budget, Experiment
from .display import Display
from .reproduce import reproduce


@dataclasses.dataclass(frozen=True)
class Task:
    """How to carry a study out: the arguments of `bygrad reproduce`. `artifacts`: of studies that test trained ones.
    `families`: to compare on, of studies that have several; none stands for all."""

    budget: Budget
    folder: Path
    display: Display
    resume: bool = False
    seed: int = 0
    data: str = "mnist"
    command: str = ""
    artifacts: tuple[str, ...] = ("general/controller",)
    families: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Study:
    """Something to find out. `carry_out` does it in the task's folder, resumes what it finds there, writes a report and
    returns the report's results."""

    name: str
    title: str
    carry_out: Callable[[Task], dict[str, Any]]


def carry_out(experiment: Experiment | Study, task: Task) -> dict[str, Any]:
    """Carry out an experiment or a study and return the results of its report."""
    if isinstance(experiment, Study):
        return experiment.carry_out(task)
    return reproduce(
        experiment,
        task.budget,
        task.folder,
        task.display,
        resume=task.resume,
        seed=task.seed,
        data=task.data,
        command=task.command,
    )
