"""The problems of the transfer benchmark, a row for each way in which they differ from those learned on."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, Literal

from .._core.types import Instance, Params, PRNGKeyArray, Scalar
from ..problems import CharacterModel, MLPClassifier, ProblemFamily
from ..problems.catalogue import cifar_images_if_given, mnist_images
from ..problems.data import ImageData
from ..problems.structured import Modelled
from .declaration import Budget
from .small_networks import Split, convolutional, perceptron


@dataclasses.dataclass(frozen=True)
class Row:
    """A problem that differs in one respect, `axis`, from the base: a 64-32-10 ReLU perceptron on digits of 8 x 8
    pixels, in minibatches of 64.

    `build` makes its family over a split of the images. `horizon`: times the budget's. `one_by_one`: see `run_grid`.
    `source`: the images, of which CIFAR-10's do not come with the package: rows on them are run where they are given.
    `in_mixture`: `general/controller` learned on problems of this kind, if not on this one.
    """

    name: str
    axis: str
    build: Callable[[ImageData, Split], ProblemFamily]
    horizon: float = 1.0
    one_by_one: bool = False
    full_only: bool = False
    source: Literal["mnist", "cifar10"] = "mnist"
    in_mixture: bool = False


class LossTimes(Modelled):
    """The problems of another family, with all losses times a constant."""

    family: Modelled
    factor: float

    def sample(self, key: PRNGKeyArray) -> Instance:
        return self.family.sample(key)

    def init(self, instance: Instance, key: PRNGKeyArray) -> Params:
        return self.family.init(instance, key)

    def outputs(self, params: Params, instance: Instance, key: PRNGKeyArray | None) -> Params:
        return self.family.outputs(params, instance, key)

    def output_loss(self, outputs: Params, instance: Instance, key: PRNGKeyArray | None) -> Scalar:
        return self.factor * self.family.output_loss(outputs, instance, key)


def _changed(**options: Any) -> Callable[[ImageData, Split], ProblemFamily]:
    return lambda images, split: perceptron(images, split, **options)


def _times(factor: float) -> Callable[[ImageData, Split], ProblemFamily]:
    return lambda images, split: LossTimes(perceptron(images, split), factor)


def _characters(images: ImageData, split: Split) -> ProblemFamily:
    return CharacterModel.embedded(split)


def _whole_images(images: ImageData, split: Split) -> ProblemFamily:
    return MLPClassifier.from_data(images, split, hidden=32, activation="relu", scale=0.05, batch=64)


ROWS = (
    Row("base", "none: a family like those learned on", _changed(), in_mixture=True),
    Row("tanh", "activation", _changed(activation="tanh"), in_mixture=True),
    Row("sigmoid", "activation", _changed(activation="sigmoid"), in_mixture=True),
    Row("gelu", "activation", _changed(activation="gelu"), in_mixture=True),
    Row("silu", "activation", _changed(activation="silu")),
    Row("128 units", "width", _changed(hidden=128), in_mixture=True),
    Row("4 layers", "depth", _changed(layers=4, scale=0.2), in_mixture=True),
    Row("8 layers", "depth", _changed(layers=8, scale=0.25)),
    Row("convolution", "architecture", convolutional, one_by_one=True, in_mixture=True),
    Row("attention", "architecture and data: characters", _characters, in_mixture=True),
    Row("MNIST", "data: 28 x 28 pixels", _whole_images),
    Row("CIFAR-10", "data: 32 x 32 pixels in colour", _whole_images, full_only=True, source="cifar10"),
    Row("batch 8", "batch size", _changed(batch=8)),
    Row("batch 512", "batch size", _changed(batch=512), full_only=True),
    Row("start x 1/4", "initial scale", _changed(scale=0.15 / 4)),
    Row("start x 4", "initial scale", _changed(scale=0.15 * 4)),
    Row("horizon x 1/4", "horizon", _changed(), 0.25),
    Row("horizon x 4", "horizon", _changed(), 4.0),
    Row("horizon x 25", "horizon", _changed(), 25.0, full_only=True),
    Row("loss x 1000", "loss scale", _times(1e3)),
    Row("loss / 1000", "loss scale", _times(1e-3)),
)


@dataclasses.dataclass(frozen=True)
class Effort:
    """What a budget spends on a row: steps of a run, and runs to tune a baseline on and to report."""

    horizon: int
    tuning_runs: int
    runs: int
    rows: tuple[Row, ...]


EFFORTS: dict[Budget, Effort] = {
    "quick": Effort(200, 2, 4, tuple(row for row in ROWS if not row.full_only)),
    "paper": Effort(400, 8, 16, ROWS),
}


def images_of(rows: Iterable[Row], data: str) -> dict[str, ImageData]:
    """Load the images of the rows by source; CIFAR-10's only where `data` names them."""
    images = {"mnist": mnist_images(data)}
    if any(row.source == "cifar10" for row in rows) and (found := cifar_images_if_given(data)) is not None:
        images["cifar10"] = found
    return images
