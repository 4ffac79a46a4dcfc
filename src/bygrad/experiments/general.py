"""A controller for networks in general: meta-trained on a mixture, chosen on architectures that it has not seen."""

import dataclasses
import json
from typing import Any

import equinox as eqx
import numpy as np

from .._core.definitions import POWER_SCALE
from .._core.draws import key_of
from ..deploy.jax import export
from ..evaluation import Sheet, area, final, loss_of, run_curves, strict_json
from ..metagrads import NRES, Members
from ..optimizers import Adam, Controller, Optimizer, declare
from ..problems import CharacterModel, Mixture, MLPClassifier, ProblemFamily, Quadratic, describe_family
from ..problems.catalogue import digit_images
from ..problems.data import ImageData
from ..training import Recipe, describe
from ..workflows.folder import Kept
from ..workflows.work import train_seeds
from .declaration import Budget
from .small_networks import convolutional, perceptron
from .study import Study, Task

SEEDS: dict[Budget, int] = {"quick": 1, "paper": 3}
"""How many controllers are meta-trained, to choose one of."""
RECIPE = Recipe(
    horizon=800,
    shortest=100,
    truncation=20,
    instances=8,
    meta_steps=450,
    meta_learning_rate=2e-3,
    clip=1.0,
    estimator=Members(NRES(sigma=0.02, robust=True)),
    validate_every=50,
    validation_runs=8,
    final_window=20,
    meta_b2=0.99,
    warmup=20,
)
RECIPES: dict[Budget, Recipe] = {
    "quick": dataclasses.replace(RECIPE, meta_steps=100, validate_every=50),
    "paper": RECIPE,
}


def characters(width: int, window: int, *, batch: int) -> CharacterModel:
    """A transformer on the text that comes with the package."""
    return dataclasses.replace(CharacterModel.embedded("train", batch=batch), width=width, window=window)


def enlarged(images: ImageData, times: int) -> ImageData:
    """Images of so many times the height and width, every pixel as often in both."""
    pixels = {name: getattr(images, name).repeat(times, 1).repeat(times, 2) for name in ("x_train", "x_test")}
    return dataclasses.replace(images, **pixels)


def inverted(images: ImageData) -> ImageData:
    """Images with light for dark, so that most inputs of a network are large instead of zero."""
    return dataclasses.replace(images, x_train=255 - images.x_train, x_test=255 - images.x_test)


def wide(images: ImageData, **options: Any) -> MLPClassifier:
    """A perceptron on all pixels of images, changed by options of `MLPClassifier`."""
    base: dict[str, Any] = {"hidden": 32, "activation": "relu", "scale": 0.05, "batch": 64}
    return MLPClassifier.from_data(images, "train", **(base | options))


def start(seed: int) -> Controller:
    """Return what is meta-trained: an Adam with steps in proportion to 1 / R, where R is the reach.

    Where R is far larger than elsewhere, the steps that suit all other problems end a run in its first updates, in
    saturated units, from where there is no meta-gradient: a power that began at 0 would never be learned.
    """
    controller = Controller(key_of(seed), reach=True)
    return eqx.tree_at(lambda it: it.powers, controller, controller.powers.at[2].set(-1 / POWER_SCALE))


def mixture(data: str = "mnist") -> Mixture:
    """What the controller is meta-trained on: depths 0 to 5, activations, widths, scales, sizes of batches and images,
    light images and dark ones, convolution, attention, and quadratics; weighted so that their mean losses are alike."""
    images = digit_images(data)
    return Mixture(
        (
            perceptron(images, layers=0, hidden=1, activation="relu", scale=0.01),
            perceptron(images, layers=1, hidden=32, activation="relu", scale=0.1),
            perceptron(images, layers=1, hidden=48, activation="sigmoid", scale=0.2, batch=128),
            perceptron(images, layers=1, hidden=24, activation="gelu", scale=0.6, batch=256),
            perceptron(images, layers=2, hidden=24, activation="tanh", scale=0.2, batch=32),
            perceptron(images, layers=2, hidden=16, activation="sigmoid", scale=0.5),
            perceptron(images, layers=3, hidden=24, activation="gelu", scale=0.2),
            perceptron(images, layers=3, hidden=32, activation="relu", scale=0.3, batch=32),
            perceptron(images, layers=4, hidden=20, activation="relu", scale=0.3),
            perceptron(images, layers=5, hidden=24, activation="tanh", scale=0.25),
            convolutional(images, channels=(8,), batch=32),
            perceptron(images, hidden=128, activation="relu", scale=0.1, batch=16),
            wide(enlarged(images, 2)),
            perceptron(inverted(images), layers=2, hidden=24, activation="relu", scale=0.15),
            wide(inverted(enlarged(images, 2)), activation="tanh"),
            wide(inverted(enlarged(images, 4))),
            characters(16, 8, batch=8),
            characters(32, 8, batch=8),
            Quadratic(10),
        ),
        weights=(*[1.0] * 16, 0.15, 0.15, 1.0),
    )


def held_out(data: str = "mnist") -> dict[str, ProblemFamily]:
    """Architectures that the mixture has none of: the seed is chosen on them."""
    images = digit_images(data)
    return {
        "1 x 96 gelu": perceptron(images, hidden=96, activation="gelu", scale=0.2),
        "2 x 40 relu": perceptron(images, layers=2, hidden=40, activation="relu", scale=0.15),
        "24 x 24 pixels": wide(enlarged(images, 3), hidden=40, batch=128),
        "24 x 24 pixels, inverted": wide(inverted(enlarged(images, 3)), hidden=40, activation="gelu"),
        "4 x 32 elu": perceptron(images, layers=4, hidden=32, activation="elu", scale=0.2),
        "convolutional, 6-6": convolutional(images, channels=(6, 6), batch=48),
        "characters, width 24": characters(24, 12, batch=12),
    }


def _carry_out(task: Task) -> dict[str, Any]:
    """Meta-train a controller from every seed, choose one on held-out architectures, and keep it in the folder.

    Leaves there `controller.safetensors`, with the recipe and the scores of all seeds in its manifest, and a folder for
    every seed.
    """
    seeds, recipe = list(range(task.seed, task.seed + SEEDS[task.budget])), RECIPES[task.budget]
    task.claim(GENERAL, recipe=describe(recipe))
    family, optimizers = mixture(task.data), {}
    kept = Kept(task.folder / "judged.json")
    trainings = train_seeds(start, family, recipe, seeds, task.folder, task.display, name="general/controller")
    for seed, trained in trainings:
        optimizers[seed] = trained.optimizer
        if str(seed) not in kept:
            kept[str(seed)] = judge(trained.optimizer, task.data, RECIPE.horizon // 2)
        task.display.say(f"seed {seed}: best at meta-step {trained.best.step}, {json.dumps(kept[str(seed)])}")
    scores = {str(seed): _ratios_of(kept[str(seed)]) for seed in seeds}
    chosen = min(seeds, key=lambda seed: mean_ratio(scores[str(seed)]))
    export(
        optimizers[chosen],
        task.folder / "controller.safetensors",
        name="general/controller",
        training={
            "command": f"bygrad reproduce general --budget {task.budget} --seed {task.seed}",
            "mixture": [describe_family(member) for member in family.members],
            "recipe": describe(recipe),
            "seeds": seeds,
            "chosen_seed": chosen,
        },
        validation=strict_json({"relative_to": "Adam(3e-3, b2=0.99)", "held_out": scores}),
    )
    rows = [
        (seed, name, f"{ratios['area']:.3f}", f"{ratios['final']:.3f}")
        for seed, by_name in scores.items()
        for name, ratios in by_name.items()
    ]
    statement = (
        f"Controllers of {len(scores)} seeds on architectures that none was meta-trained on, untuned, over"
        f" {RECIPE.horizon // 2} steps. Ratios to Adam(3e-3, b2=0.99): below 1 is better. Seed"
        f" {chosen} is kept, and was chosen by these numbers."
    )
    headings = ("seed", "held-out architecture", "area", "final loss")
    sheet = Sheet("Held-out architectures", headings, tuple(rows), 2)
    return task.finish(GENERAL, {"scores": scores, "chosen": chosen}, statement, [sheet])


def judge(optimizer: Optimizer, data: str, horizon: int, runs: int = 16) -> dict[str, dict[str, float]]:
    """Hold an optimizer against Adam(3e-3, b2=0.99), on every held-out architecture: ratios of mean area and of
    mean final loss."""
    ratios = {}
    for name, family in held_out(data).items():
        curves = [
            run_curves(declare(it, horizon), family, key_of(0x9E4), horizon=horizon, runs=runs, chunk=runs)[0]
            for it in (optimizer, Adam(3e-3, b2=0.99))  # pyright: ignore[reportArgumentType]
        ]
        areas, finals = ([float(np.mean(measure(it))) for it in curves] for measure in (area, lambda c: final(c, 20)))
        ratios[name] = {"area": areas[0] / areas[1], "final": finals[0] / finals[1]}
    return ratios


def _ratios_of(kept: dict[str, dict[str, float | None]]) -> dict[str, dict[str, float]]:
    """Read what `judge` has returned, and `Kept` may have written: in JSON nothing is infinite."""
    return {name: {measure: loss_of(it) for measure, it in ratios.items()} for name, ratios in kept.items()}


def mean_ratio(scores: dict[str, dict[str, float]]) -> float:
    """Return the geometric mean of all ratios of a seed; infinite if one is not a number."""
    values = np.array([value for row in scores.values() for value in row.values()])
    return float(np.exp(np.mean(np.log(values)))) if np.all(np.isfinite(values)) else float("inf")


GENERAL = Study("general", "A controller for networks in general, meta-trained on a mixture", _carry_out)
