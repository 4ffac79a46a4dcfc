"""What `bygrad evaluate` does: tune baselines and compare, in a folder from which an interrupted comparison goes on."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from .._core.draws import key_of
from ..deploy.jax import identify, load, versions
from ..evaluation import (
    CONVENTION,
    Protocol,
    Tuning,
    compare,
    no_objective,
    refuse_one_name,
    strict_json,
    tune_baselines,
    write_report,
)
from ..optimizers import BASELINES, PAPER_BASELINES, Baselines, Optimizer
from ..problems import ProblemFamily, check_family, describe_family, find_family
from ..problems.base import digest_family
from .display import Display
from .folder import Kept, claim, leaving_nothing, reported, seconds_kept
from .work import machine


def tune(
    family: ProblemFamily,
    protocol: Protocol,
    folder: Path,
    display: Display,
    baselines: Baselines = PAPER_BASELINES,
) -> tuple[dict[str, Tuning], float | None]:
    """Tune the baselines, but for those that an interrupted run has in the folder.

    **Returns:** the tunings, and the seconds, those of the run that tuned them; `None` where tuning itself was
    interrupted, as then nobody knows how long all took.
    """
    kept = Kept(folder / "tuning.json")
    whole, started = not kept, time.perf_counter()
    tunings = tune_baselines(family, protocol, baselines, display.phase, kept)
    return tunings, seconds_kept(folder, "tuning", time.perf_counter() - started if whole else None)


def evaluate(
    learned: Mapping[str, Optimizer],
    family: ProblemFamily,
    tuning_family: ProblemFamily,
    protocol: Protocol,
    display: Display,
    *,
    title: str,
    command: str,
    tunings: Mapping[str, Tuning] | None = None,
    baselines: Baselines = PAPER_BASELINES,
    experiment: str | None = None,
    folder: Path | None = None,
    teacher: Optimizer | None = None,
) -> dict[str, Any]:
    """Tune the `baselines` (unless `tunings` are given), compare, and return the results of a report.

    **Arguments:** `tunings`: of baselines that are tuned already; who did it knows how long it took. `folder`: where
    what is found is kept as it comes, and what an interrupted evaluation has found there is read. `teacher`: what the
    learned one imitated (`compare`).
    """
    refuse_one_name([*learned, *(baselines if tunings is None else tunings)])
    check_family(family, key_of(protocol.seed))
    configuration = {"family": describe_family(family), "protocol": dataclasses.asdict(protocol)}
    configuration["optimizers"] = {name: identify(optimizer) for name, optimizer in learned.items()}
    started, tuning = time.perf_counter(), None
    if tunings is None and folder is not None:
        tunings, tuning = tune(tuning_family, protocol, folder, display, baselines)
    elif tunings is None:
        tunings = tune_baselines(tuning_family, protocol, baselines, display.phase)
        tuning = time.perf_counter() - started
    kept = None if folder is None else Kept(folder / "optimizers.json")
    whole, tuned = not kept, time.perf_counter()
    classes = {**BASELINES, **baselines}
    optimizers = compare(learned, tunings, family, protocol, display.phase, kept, classes, teacher)
    notes, asked = [], protocol.second_order_runs and "lbfgs" not in optimizers
    if asked and (reason := no_objective(family)):
        notes = [f"L-BFGS is left out: {type(family).__name__} gives no objective without noise. With no key, {reason}"]
    return {
        "experiment": experiment or type(family).__name__,
        "title": title,
        "convention": CONVENTION,
        "horizon": protocol.horizon,
        "runs": protocol.runs,
        "seed": protocol.seed,
        "optimizers": optimizers,
        "notes": notes,
        "meta_training": None,
        "configuration": configuration,
        "versions": versions(),
        "machine": machine(),
        "command": command,
        # Of an evaluation that was interrupted nobody knows how long it took.
        "seconds": {"tuning": tuning, "evaluation": time.perf_counter() - tuned if whole else None},
    }


def evaluate_to_folder(
    artifacts: Sequence[str],
    family: str,
    protocol: Protocol,
    folder: Path,
    display: Display,
    *,
    baselines: Baselines = PAPER_BASELINES,
    split: Literal["train", "test"] = "test",
    data: str = "mnist",
    resume: bool = False,
    command: str = "",
) -> dict[str, Any]:
    """Compare trained optimizers, names or files, on a family by name; write a report and return its results.

    One goes by its class in the report, several by what they are called here.

    **Arguments:** `split`: to compare on; baselines are tuned on that of training. `resume`: go on with what an
    interrupted call left in `folder`, or return what a finished one has reported there.

    **Raises:** before anything is tuned, `ValueError` for no artifact or two of one name, or where `folder` holds
    something else; what `load` and `find_family` raise; `FileExistsError` where `folder` is in use and `resume` is off.
    """
    if not artifacts:
        raise ValueError("No trained optimizer is named, so there is nothing to evaluate. Name one or more.")
    loaded = {artifact: load(artifact) for artifact in artifacts}
    if len(loaded) < len(artifacts):
        raise ValueError(
            f"One of {', '.join(artifacts)} is named twice, and would be compared with itself. Name it once."
        )
    learned = {_label(name, optimizer, len(loaded)): optimizer for name, optimizer in loaded.items()}
    test, train = (find_family(family, data=data, split=it) for it in (split, "train"))
    identity = {
        "experiment": "evaluate",
        "optimizers": {name: identify(optimizer) for name, optimizer in learned.items()},
        "baselines": list(baselines),
        "families": [describe_family(it) | {"digest": digest_family(it)} for it in (test, train)],
        "protocol": dataclasses.asdict(protocol),
    }
    with leaving_nothing(folder):
        claim(folder, identity, resume)
        if (results := reported(folder)) is None:
            title = f"{', '.join(artifacts)} on {family}{' (training split)' if split == 'train' else ''}"
            options: dict[str, Any] = {"title": title, "command": command, "baselines": baselines, "folder": folder}
            results = strict_json(evaluate(learned, test, train, protocol, display, **options))
            write_report(results, folder)
    return results


def _label(artifact: str, optimizer: Optimizer, count: int) -> str:
    """Return a name that is none of a baseline's."""
    if count > 1:
        return artifact.removesuffix(".safetensors")
    name = type(optimizer).__name__
    return f"{name} (given)" if name in BASELINES else name
