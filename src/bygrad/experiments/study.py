"""What an experiment is that does not fit `Experiment`: more than one learned optimizer, or something else to show."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .._core.files import write_text_atomically
from ..deploy.jax import versions
from ..evaluation import Picture, Protocol, Sheet, strict_json, write_page, write_report
from ..optimizers import PAPER_BASELINES, Baselines, Optimizer
from ..problems import ProblemFamily, find_family
from ..problems.catalogue import takes_data
from ..problems.data.split import Split
from ..workflows.display import Display
from ..workflows.evaluating import evaluate
from ..workflows.folder import claim, reported
from ..workflows.work import machine, slug
from .declaration import Budget, Experiment


@dataclasses.dataclass(frozen=True)
class Task:
    """How to carry an experiment or a study out: the arguments of `bygrad reproduce`. `artifacts`: of studies that test
    trained ones. `families`: to compare on, of studies that have several; none stands for all. `data`: as in
    `find_family`."""

    budget: Budget
    folder: Path
    display: Display
    resume: bool = False
    seed: int = 0
    data: str = "mnist"
    command: str = ""
    artifacts: tuple[str, ...] = ("general/controller",)
    families: tuple[str, ...] = ()

    def family(self, name: str, split: Split = "train") -> ProblemFamily:
        """Return a family by name, on the task's data where it takes any: some experiments have families of both kinds,
        and `all` carries out experiments of both."""
        return find_family(name, data=self.data if takes_data(name) else "mnist", split=split)

    def claim(self, study: "Experiment | Study", **more: Any) -> None:
        """Write down what the folder is for, or check that it is for this; `more`: what decides besides the task."""
        identity = {"experiment": study.name, "budget": self.budget, "seed": self.seed, "data": self.data}
        claim(self.folder, identity | more, self.resume)

    def compare(
        self,
        setting: str,
        learned: Mapping[str, Optimizer],
        family: ProblemFamily,
        tuning_family: ProblemFamily,
        protocol: Protocol,
        title: str,
        baselines: Baselines = PAPER_BASELINES,
    ) -> dict[str, Any]:
        """Compare with tuned baselines and report in a folder of the setting's own, or read what an interrupted run has
        found there."""
        folder = self.folder / slug(setting)
        if (results := reported(folder)) is None:
            options: dict[str, Any] = {"title": title, "command": self.command, "baselines": baselines}
            results = strict_json(evaluate(learned, family, tuning_family, protocol, self.display, **options))
            write_report(results, folder)
        return results

    def finish(
        self, study: "Study", results: Mapping[str, Any], statement: str, parts: Sequence[Picture | Sheet]
    ) -> dict[str, Any]:
        """Write `results.json` and the page, and return the results with what those of every study say."""
        around = {"versions": versions(), "machine": machine(), "command": self.command}
        whole = {"experiment": study.name, "title": study.title, **results, **around}
        write_text_atomically(self.folder / "results.json", json.dumps(strict_json(whole), indent=1))
        write_page(self.folder, whole["title"], f"{statement} {self.command}", parts)
        return whole


@dataclasses.dataclass(frozen=True)
class Study:
    """Something to find out. `carry_out` does it in the task's folder, resumes what it finds there, writes a report and
    returns the report's results."""

    name: str
    title: str
    carry_out: Callable[[Task], dict[str, Any]]
