"""Families by name, and a user's own from a file."""

import dataclasses
import difflib
import functools
import hashlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from .attention import CharacterModel
from .ball_and_stick import BallAndStick
from .base import ProblemFamily
from .classifier import Activation
from .control import QuadrotorControl
from .convnet import ConvClassifier, with_labels
from .data import ImageData, load_images
from .data.split import Split, part_of
from .dispatch import EconomicDispatch
from .lennard_jones import LennardJones
from .mlp import MLPClassifier
from .oscillation import DampedOscillation
from .pharmacokinetics import OralDose
from .portfolio import MeanVariance
from .quadratic import Quadratic
from .random_start import RandomStart
from .sparse_coding import SparseCoding
from .style import StyleTransfer

Builder: TypeAlias = Callable[[str, Split], ProblemFamily]
"""Builds a family from the names of data sources and a split; families without data look at neither."""


def _first_fitting(
    data: str, shapes: Sequence[tuple[int, ...]], needed: str, remedy: str, classes: int | None = None
) -> ImageData:
    """Return the first of the sources whose images have one of `shapes`, and are of so many `classes` if that is given:
    a family would learn on others as well, and be held against figures that are not theirs."""
    found, others = _search(data, shapes, classes)
    if found is not None:
        return found
    told = [f"{it.name} holds images of shape {it.x_train.shape[1:]} in {it.classes} classes" for it in others]
    raise ValueError(
        f"{'; '.join(told)}, and so is not {needed}. Give --data (or data=) {remedy}; of several sources with commas"
        " between them, the first that fits is taken. For other images, make a family in a file of your own."
    )


def _search(
    data: str, shapes: Sequence[tuple[int, ...]], classes: int | None
) -> tuple[ImageData | None, list[ImageData]]:
    """Return the first of the sources that fits, and those before it, which do not."""
    others = []
    for source in _sources(data):
        images = load_images(source)
        shape = images.x_train.shape[1:]
        if (shape[:2] if shape[2:] == (1,) else shape) in shapes and classes in (None, images.classes):
            return images, others
        others.append(images)
    return None, others


def _sources(data: str) -> list[str]:
    """Return the parts between commas, unless there is a file of the whole name."""
    whole = os.path.exists(os.path.expanduser(data))
    return [data] if whole else [part.strip() for part in data.split(",")]


def mnist_images(data: str) -> ImageData:
    """Return images like MNIST's from the first source that has them; `ValueError` if none has."""
    return _first_fitting(data, [(28, 28)], "MNIST, which has (28, 28)", "mnist, which comes with the package")


def digit_images(data: str) -> ImageData:
    """Return digits from the first source that has them, of 8 x 8 pixels, to which those of 28 x 28 are averaged;
    `ValueError` if none has."""
    needed = "a set of digits, which has (28, 28) or (8, 8)"
    return _first_fitting(data, [(28, 28), (8, 8)], needed, "mnist, which comes with the package").shrunk(8)


CIFAR_SHAPES, CIFAR_CLASSES = [(32, 32, 3)], 10


def cifar_images_if_given(data: str) -> ImageData | None:
    """Return images like CIFAR-10's from the first source that has them, or None."""
    return _search(data, CIFAR_SHAPES, CIFAR_CLASSES)[0]


def _cifar(data: str, split: Split, labels: Sequence[int], pixels: int) -> ProblemFamily:
    images = _first_fitting(
        data,
        CIFAR_SHAPES,
        "CIFAR-10, which has (32, 32, 3) in 10 and does not come with the package, as it has no license to pass on",
        "a folder of its binary files, an npz file, or hf:uoft-cs/cifar10, which downloads it",
        classes=CIFAR_CLASSES,
    )
    return ConvClassifier.from_data(with_labels(images, labels).shrunk(pixels), split)


def _mnist(data: str, split: Split, **options: Any) -> MLPClassifier:
    return MLPClassifier.from_data(mnist_images(data), split, **options)


DIGITS = 1_400
"""Images that the family `digits` trains on."""


def _small_digits(data: str) -> ImageData:
    """Return digits of 8 x 8 pixels, as many as the well-known set of that size has to train on."""
    images = digit_images(data)
    return dataclasses.replace(images, x_train=images.x_train[:DIGITS], y_train=images.y_train[:DIGITS])


def _digits(data: str, split: Split, activation: Activation = "relu") -> ProblemFamily:
    return MLPClassifier.from_data(_small_digits(data), split, hidden=32, activation=activation, scale=0.1, batch=64)


def _convolutional_digits(data: str, split: Split) -> ProblemFamily:
    return ConvClassifier.from_data(
        _small_digits(data), split, channels=(8, 8), kernel=3, hidden=16, scale=0.1, batch=64
    )


CIFAR_LABELS: dict[str, Sequence[int]] = {
    "cifar10": range(10),
    "cifar5": range(5),
    "cifar5-held-out": range(5, 10),
    "cifar2": range(2),
    "cifar2-held-out": range(2, 10),
}
"""The labels of each family of CIFAR-10; with `-16` after the name, its images have 16 x 16 pixels."""

FAMILIES: dict[str, Builder] = {
    "quadratic": lambda data, split: Quadratic(),
    "quadratic-gaussian": lambda data, split: Quadratic(distribution="gaussian"),
    "digits": _digits,
    **{f"digits-{name}": functools.partial(_digits, activation=name) for name in ("sigmoid", "tanh", "gelu")},
    "digits-conv": _convolutional_digits,
    "mnist": _mnist,
    "mnist-any-start": lambda data, split: RandomStart(_mnist(data, split)),
    "mnist-40-units": functools.partial(_mnist, hidden=40),
    "mnist-2-layers": functools.partial(_mnist, layers=2),
    "mnist-2-layers-wide": functools.partial(_mnist, layers=2, scale=0.05),
    "mnist-relu": functools.partial(_mnist, activation="relu"),
    "characters": lambda data, split: CharacterModel.embedded(split),
    "style": lambda data, split: StyleTransfer.embedded(split),
    "style-32": lambda data, split: StyleTransfer.embedded(split, 32),
    "style-128-new": lambda data, split: StyleTransfer.embedded(split, 128, "houses_at_auvers"),
    **{name: functools.partial(_cifar, labels=labels, pixels=32) for name, labels in CIFAR_LABELS.items()},
    **{f"{name}-16": functools.partial(_cifar, labels=labels, pixels=16) for name, labels in CIFAR_LABELS.items()},
    "oscillation": lambda data, split: DampedOscillation(),
    "oral-dose": lambda data, split: OralDose(),
    "ball-and-stick": lambda data, split: BallAndStick.embedded(),
    "lennard-jones": lambda data, split: LennardJones(),
    "quadrotor": lambda data, split: QuadrotorControl.build(),
    "dispatch": lambda data, split: EconomicDispatch.embedded(),
    "patches": lambda data, split: SparseCoding.embedded(split),
    "portfolio": lambda data, split: MeanVariance.simulated(seed=part_of(split, train=0, test=1)),
}
"""The families that bygrad brings, by name. Those of CIFAR-10 need `data`; the held-out labels are all the others.

With weights five times as wide as in the paper's code (`mnist-2-layers-wide`), Nesterov's method ends where it does in
the paper's figure of two layers; with those of the code it does not.
"""


_OF_IMAGES = "digits", "mnist", "cifar"
"""How the names of those begin that take images from `data`."""


def takes_data(name: str) -> bool:
    """Whether a family of the package takes its images from the `data` that are named; others bring or draw theirs."""
    return name in FAMILIES and name.startswith(_OF_IMAGES)


_OWN = "Your own is path/to/file.py:Class."


def find_family(name: str, *, data: str = "mnist", split: Split = "train") -> ProblemFamily:
    """Return a family by name, or the one that `path/to/file.py:Class` names, built without arguments.

    Where the file has one family class, `path/to/file.py` names it.

    **Arguments:** `data`: where images come from, as in `load_images`; of several sources with commas between them, a
    family takes the first whose images are of the shape that it needs.

    **Raises:** `ValueError` for an unknown name, with the known ones, and for data that do not fit or are not used;
    `FileNotFoundError`, `ValueError` or `TypeError` for a file that is not there, has no such class, or whose class is
    not a family.
    """
    if (named := file_of_family(name)) is not None:
        if data != "mnist":
            raise ValueError(
                f"A family of your own brings its data itself, so {data} would not be used for {name}. Leave data"
                " (--data) out, and let the file read it: bygrad.problems.load_images."
            )
        return _load(*named)
    if name in FAMILIES:
        if data != "mnist" and not takes_data(name):
            raise ValueError(
                f"The family {name} brings its data itself or draws them, so {data} would not be used. Leave data"
                f" (--data) out; families whose names begin with {', '.join(_OF_IMAGES)} take images."
            )
        return FAMILIES[name](data, split)
    path = Path(name).expanduser()
    if path.is_file():
        raise ValueError(f"{path} is not a Python file, so there is no family in it. {_OWN}")
    if path.suffix or len(path.parts) > 1:
        raise FileNotFoundError(f"There is no file {path}, and no family of that name. Check the path. {_OWN}")
    close = difflib.get_close_matches(name, FAMILIES, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(
        f"There is no family {name!r}, so there is nothing to optimize.{hint} Known families:"
        f" {', '.join(FAMILIES)}. {_OWN}"
    )


def file_of_family(name: str) -> tuple[Path, str] | None:
    """Return the file that a family's name says it is in, and its class, empty if not named; None for other names."""
    file, attribute = name, ""
    if not name.endswith(".py"):
        file, _, attribute = name.rpartition(":")
    return (Path(file).expanduser(), attribute) if file.endswith(".py") else None


def _load(path: Path, attribute: str) -> ProblemFamily:
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no file {path}, so the family {attribute or 'in it'} cannot be read. Check the path."
        )
    name = f"bygrad_user_{path.stem}"
    there = sys.modules.get(name)
    if there is not None and there.__file__ != str(path.resolve()):  # files of one name in two folders are two modules
        name += f"_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} cannot be imported as Python. Give a .py file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up names there, for annotations that are text
    folder = str(path.absolute().parent)
    sys.path.insert(0, folder)  # as `python mine.py` does, so that the file may import others beside it
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a script that ends would end the command, as if all was well
        del sys.modules[spec.name]
        raise ValueError(
            f"Importing {path} raised {type(error).__name__}: {error}. Mend the file; `python {path}` shows where. What"
            " only a script does (its arguments, its exit) belongs under `if __name__ == '__main__':`."
        ) from error
    finally:
        sys.path.remove(folder)
    classes = {key: it for key, it in vars(module).items() if _is_family(it) and it.__module__ == module.__name__}
    # One that lacks a method is what others are built on, or else what its author believes to be whole.
    families = [key for key, it in classes.items() if not inspect.isabstract(it)] or list(classes)
    if not attribute and len(families) > 1:
        raise ValueError(
            f"{path} has several families, so it does not say which is meant. Give one of"
            f" {', '.join(f'{path}:{family}' for family in families)}."
        )
    attribute = attribute or "".join(families)
    found = getattr(module, attribute, None)
    if found is None:
        known = f"it has {', '.join(families)}" if families else "it has none: subclass bygrad.ProblemFamily"
        raise ValueError(f"{path} has no family {repr(attribute) if attribute else 'class'}; {known}.")
    if isinstance(found, ProblemFamily):
        return found
    if not _is_family(found):
        raise TypeError(
            f"{attribute} in {path} is not a ProblemFamily, so it cannot be sampled. Subclass bygrad.ProblemFamily and"
            " write `sample`, `init` and `loss`."
        )
    if inspect.isabstract(found):
        raise TypeError(
            f"{attribute} in {path} has no {', '.join(sorted(found.__abstractmethods__))}, so it is not a whole family."
            " Write what is missing."
        )
    try:
        return found()
    except TypeError as error:
        raise TypeError(
            f"{attribute}() raised {error}: a family that is named on the command line is built without arguments. Give"
            " its fields defaults, or name an instance in the file instead of the class."
        ) from error
    except Exception as error:
        raise ValueError(
            f"{attribute}() in {path} raised {type(error).__name__}: {error}. So there is no family to optimize: see to"
            " what its fields are read from (files, the environment)."
        ) from error


def _is_family(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, ProblemFamily) and value is not ProblemFamily
