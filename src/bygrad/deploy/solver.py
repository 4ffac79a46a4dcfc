"""Learned solvers as files: the same self-verifying artifacts as learned optimizers."""

import dataclasses
import hashlib
import os
import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._core import trees
from .._core.draws import key_of
from .._core.remarks import remark
from ..artifacts import SOLVER, Artifact, ArtifactError, Manifest, describe, own_name
from ..artifacts import load as load_artifact
from ..artifacts import save as save_artifact
from ..problems import ProblemFamily, describe_family, file_of_family, find_family
from ..problems.base import check_is_family
from ..solvers import (
    ADMM,
    LBFGS,
    Card,
    CostLimit,
    Damping,
    GainRatio,
    LearnedDamping,
    LearnedDoubt,
    LearnedRestart,
    LearnedSchedule,
    LearnedSolver,
    LearnedStart,
    LearnedWarmStart,
    LevenbergMarquardt,
    Method,
    ProximalGradient,
    TrustRegion,
    Usual,
    Whitening,
)
from ..solvers.base import check_part
from ..solvers.drift import alarm, tally
from ..solvers.fit import Reader, learned_parts
from .jax import versions

FEATURES = 1
"""Version of what the networks see: raised when old ones would mean something else."""

_ARRAY = re.compile(r"\w+\[[\d, ]*\]")
"""How `describe_family` writes an array."""

_NOT_NUMBERS = ("warm", "schedule", "reduced", "bound")

_PARTS = LearnedStart, LearnedDoubt, CostLimit, LearnedRestart, LearnedDamping, LearnedWarmStart, LearnedSchedule

_METHODS: dict[str, type[Any]] = {"ADMM": ADMM, "LBFGS": LBFGS, "ProximalGradient": ProximalGradient}

_RULES: dict[str, type[Damping]] = {"GainRatio": GainRatio, "TrustRegion": TrustRegion}


def save_solver(
    solver: LearnedSolver, path: str | os.PathLike[str], *, family: str = "", name: str = "", new: bool = False
) -> Artifact:
    """Write a learned solver to a file and return it as an artifact. A file that is there already is overwritten.

    **Arguments:** `family`: how `find_family` finds the family: a name, or path/to/file.py:Class. It is written down
    with the SHA-256 of the file, since a solver belongs to one family. `name`: what the artifact calls itself. `new`:
    raise `FileExistsError` rather than overwrite.

    **Raises:** `TypeError` for a method or a part that is not bygrad's own: a file holds no code.
    """
    check_part("solver", solver, LearnedSolver)
    card = solver.card
    networks = learned_parts(solver)
    tensors = {
        f"{part}/{leaf}": np.array(value)
        for part, network in networks.items()
        if network is not None
        for leaf, value in trees.named_leaves(eqx.filter(network, eqx.is_array)).items()
    }
    if solver.usual is not None:
        tensors |= {f"usual/{name}": value for name, value in vars(solver.usual).items()}
    config = {
        "family": family,
        "family_sha256": _sha256(family),
        "method": _describe(solver.method),
        "classical": _describe(solver.classical),
        "dtype": solver.dtype,
        "starts": solver.starts,
        "classical_starts": solver.classical_starts,
        **{part: _sizes(network) for part, network in networks.items()},
    }
    manifest = Manifest(
        name=name or own_name(type(solver.family).__name__),
        optimizer=SOLVER,
        config=config,
        features=FEATURES,
        tensors=describe(tensors),
        training={"family": describe_family(solver.family)},
        validation={} if card is None else dataclasses.asdict(card),
        versions=versions(),
    )
    artifact = Artifact(manifest, tensors)
    save_artifact(path, artifact, new=new)
    return artifact


def load_solver(path: str | os.PathLike[str], family: ProblemFamily | str | None = None) -> LearnedSolver:
    """Return the learned solver in a file.

    **Arguments:** `family`: the family, or where to find it. Default: where the file says, but only if that is a family
    of bygrad's own or the very file, byte for byte, that the solver was learned for. So an artifact cannot make other
    code run.

    **Raises:** `ArtifactError` for a file that is damaged, holds something else, or whose family has changed: it is
    another class, or has arrays of other shapes. Other fields that differ, a level of noise say, are a `UserWarning`.
    """
    if family is not None and not isinstance(family, str):
        check_is_family(family)
    if not os.path.exists(path):
        raise ArtifactError(
            f"there is no file {path}", "No solver was loaded", "Check the path; `bygrad learn` writes such files"
        )
    artifact = load_artifact(path)
    manifest = artifact.manifest
    config: dict[str, Any] = {"doubt": None, "restart": None} | manifest.config  # files that are older
    if manifest.optimizer != SOLVER or manifest.features != FEATURES:
        raise ArtifactError(
            f"{path}: it holds {manifest.optimizer}, features {manifest.features}, not {SOLVER}, features {FEATURES}",
            "There is no solver in it that this bygrad can use",
            "Give a file that `bygrad learn` wrote with this version, or learn again",
        )
    found = family if isinstance(family, ProblemFamily) else _family(path, family, config)
    learned = manifest.training.get("family")
    _compare(path, learned if isinstance(learned, dict) else {}, found)
    try:
        start, doubt, restart, damping, warm, schedule = (
            _read(part, config, artifact.tensors)
            for part in ("start", "doubt", "restart", "damping", "warm", "schedule")
        )
        method, classical = _method(config["method"]), _method(config["classical"])
        if damping is not None:
            assert isinstance(method, LevenbergMarquardt)
            method = dataclasses.replace(method, damping=damping)
        elif isinstance(method, ADMM) and warm is not None:
            method = dataclasses.replace(method, warm=warm)
        elif isinstance(method, ProximalGradient) and schedule is not None:
            method = dataclasses.replace(method, schedule=schedule)
        elif config["method"] == config["classical"]:
            method = classical
        card = Card(**manifest.validation) if manifest.validation else None
        counts = config["starts"], config["classical_starts"]
        usual = None
        if "usual/mean" in artifact.tensors:
            mean, spread = (artifact.tensors[f"usual/{name}"] for name in ("mean", "spread"))
            # Older files do not say what may be infinite.
            usual = Usual(mean, spread, artifact.tensors.get("usual/infinite", np.zeros_like(mean)))
        solver = LearnedSolver(found, method, classical, start, *counts, card, config["dtype"], usual, doubt, restart)
        if card is not None:  # it must be fit for what reads it
            solver.report()
            alarm(card, [tally(card, {}, 1)])
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, AssertionError) as error:
        raise ArtifactError(
            f"{path}: its configuration does not describe a solver ({type(error).__name__}: {error})",
            "The solver cannot be rebuilt",
            "Learn again, or load it with the bygrad that wrote it",
        ) from error
    return solver


def _describe(method: Method) -> dict[str, Any]:
    """Write a method's numbers down; arrays that `prepare` makes again are left out."""
    rule = None
    if type(method) is LevenbergMarquardt:
        rule = method.damping.base if isinstance(method.damping, LearnedDamping) else method.damping
        if type(rule) not in _RULES.values():
            raise _holds_code(rule)
        numbers = {name: getattr(rule, name) for name in _numbers_of(rule)}
        numbers |= {"tol": method.tol, "max_steps": method.max_steps}
    else:
        if type(method) not in _METHODS.values():
            raise _holds_code(method)
        numbers = {name: getattr(method, name) for name in _numbers_of(method)}
    described = {name: value if isinstance(value, bool | int) else float(value) for name, value in numbers.items()}
    return {"name": type(method).__name__} | ({} if rule is None else {"damping": type(rule).__name__}) | described


def _numbers_of(it: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(it) if field.name not in _NOT_NUMBERS]


def _holds_code(it: Any) -> TypeError:
    known = ", ".join(sorted({"LevenbergMarquardt", *_METHODS}))
    return TypeError(
        f"{type(it).__name__} holds more than numbers (a proposal is code), so no file could give it back. Save solvers"
        f" with bygrad's own {known}; keep what a proposal of your own has learned with equinox.tree_serialise_leaves."
    )


def _method(described: dict[str, Any]) -> Method:
    numbers = {name: value for name, value in described.items() if name != "name"}
    if described["name"] == "LevenbergMarquardt":
        return LevenbergMarquardt(damping=_rule(described), tol=numbers["tol"], max_steps=numbers["max_steps"])
    return _METHODS[described["name"]](**numbers)


def _rule(described: dict[str, Any]) -> Damping:
    """Return the classical damping rule of a method; files that are older do not name it."""
    rule = _RULES[described.get("damping", "GainRatio")]
    return rule(**{name: described[name] for name in _numbers_of(rule)})


def _sizes(network: Any) -> dict[str, Any] | None:
    """Say what sizes a part has, for `_blank`; a limit of the cost has none."""
    if network is None:
        return None
    if type(network) not in _PARTS:
        raise _holds_code(network)
    if isinstance(network, LearnedSchedule):
        momenta = network.momenta is not None
        return {"steps": len(network.rows), "metric": list(network.metric.shape), "momenta": momenta}
    if not isinstance(network, Reader):
        return {}
    sizes = {"inputs": network.whitening.instance_mean.size, "params": network.whitening.params_mean.size}
    if isinstance(network, LearnedStart):
        sizes["proposals"] = network.proposals
    elif isinstance(network, LearnedDamping):
        sizes["steps"] = network.steps
    elif isinstance(network, LearnedWarmStart):
        sizes |= {"size": network.size, "thresholds": network.threshold is not None}
    return sizes


def _blank(part: str, sizes: dict[str, Any], method: dict[str, Any]) -> Any:
    """Make a part of these sizes that has learned nothing."""
    if part == "schedule":
        tables = jnp.zeros((sizes["steps"], 3)), jnp.zeros(sizes["metric"])
        # Files that are older have no momenta.
        return LearnedSchedule(*tables, tables[1] if sizes.get("momenta", False) else None)
    if part == "doubt" and not sizes:
        return CostLimit(jnp.zeros(()))
    inputs, params, key = jnp.zeros(sizes["inputs"]), jnp.zeros(sizes["params"]), key_of(0)
    whitening = Whitening(inputs, inputs, params, params)
    if part == "start":
        return LearnedStart.untrained(whitening, sizes["proposals"], key)
    if part == "doubt":
        return LearnedDoubt.blank(whitening, jnp.zeros((2, 2)), key)
    if part == "restart":
        return LearnedRestart.untrained(whitening, key)
    if part == "warm":
        # Files that are older have no thresholds.
        return LearnedWarmStart.blank(whitening, sizes["size"], key, sizes.get("thresholds", False))
    return LearnedDamping.untrained(whitening, _rule(method), key, sizes["steps"])


def _read(part: str, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> Any:
    """Return a part with its tensors, or None where it was not learned; a name or a shape that does not fit is an
    error.

    Nothing is made before its tensors are there: no size that a file speaks of is taken on its word.
    """
    if (sizes := config[part]) is None:
        return None
    blank = eqx.filter_eval_shape(lambda: _blank(part, sizes, config["method"]))
    arrays, static = eqx.partition(blank, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))

    def tensor(name: str, leaf: Any) -> Any:
        value = tensors[f"{part}/{name}"]
        if value.shape != leaf.shape:
            raise ValueError(f"tensor {part}/{name} is {list(value.shape)} and should be {list(leaf.shape)}")
        return jnp.asarray(value)

    return eqx.combine(trees.replace_leaves(arrays, tensor), static)


def _sha256(family: str) -> str:
    named = file_of_family(family)
    return hashlib.sha256(named[0].read_bytes()).hexdigest() if named is not None and named[0].is_file() else ""


def _family(path: Any, family: str | None, config: dict[str, Any]) -> ProblemFamily:
    name = family or config.get("family")
    if not name or not isinstance(name, str):
        raise ArtifactError(
            f"{path}: it does not say where its family is", "It cannot be used alone", "Give the family"
        )
    elsewhere = family is None and file_of_family(name) is not None
    if elsewhere and (not (found := _sha256(name)) or found != config.get("family_sha256")):
        raise ArtifactError(
            f"{path}: its family {name} is not there, or is not the file that the solver was learned for",
            "A learned solver belongs to one family, and code is not run on a file's word",
            "Name the family yourself (--family path/to/file.py:Class) if it is the same one, or learn again",
        )
    return find_family(name)


def _compare(path: Any, learned: dict[str, Any], family: ProblemFamily) -> None:
    """Hold a family against the description of the one that a solver was learned for; an old file may have none."""
    found = describe_family(family)
    # The precision of a family's arrays hangs on where it was built.
    plain = lambda value: re.sub(r"float(32|64)(?=\[)", "float", value) if isinstance(value, str) else value  # noqa: E731
    different = [it for it in learned | found if plain(learned.get(it)) != plain(found.get(it))] if learned else []
    if not different:
        return
    if "name" in different:
        different = ["name"]
    said = "; ".join(f"{it} was {learned.get(it, 'absent')}, is {found.get(it, 'absent')}" for it in different)
    if any(it == "name" or _ARRAY.fullmatch(str(learned.get(it))) for it in different):
        raise ArtifactError(
            f"{path}: it was learned for another family: {said}",
            "A learned solver belongs to one family, and its card says nothing about others",
            "Give the family that it was learned for, or learn again",
        )
    remark(
        f"{path}: the solver was learned for a family that differs: {said}. Successes still are proven or local minima,"
        " but the card may not hold. Give the family that it was learned for, or learn again."
    )
