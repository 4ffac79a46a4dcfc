"""A controller for networks in general: meta-trained on a mixture, chosen on architectures that it has not seen."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._core.files import write_text_atomically
from ..deploy.jax import export
from ..evaluation import area, final, run_curves
from ..metagrads import NRES, Members
from ..optimizers import Adam, Controller, Optimizer, declare
from ..problems import Mixture, MLPClassifier, ProblemFamily, Quadratic, describe_family, load_images
from ..problems.data import shrink
from ..problems.mlp import Activation
from ..training import Recipe, describe
from .display import Display
from .work import train

SEEDS = (0,)
PIXELS = 8

RECIPE = Recipe(
    horizon=800,
    shortest=100,
    truncation=20,
    instances=8,
    meta_steps=300,
    meta_learning_rate=1e-3,
    clip=1.0,
    estimator=Members(NRES(sigma=0.02, robust=True)),
    validate_every=100,
    validation_runs=8,
    final_window=20,
    meta_b2=0.99,
    warmup=20,
)


def digits(
    layers: int,
    hidden: int,
    activation: Activation,
    *,
    scale: float = 0.2,
    batch: int = 64,
    data: str = "mnist",
    pixels: int = PIXELS,
) -> MLPClassifier:
    """A perceptron on the training images, averaged to `pixels` x `pixels`."""
    loaded = load_images(data)
    images = shrink(loaded.x_train.reshape(len(loaded.x_train), 28, 28), pixels)
    return MLPClassifier(
        jnp.asarray(images.reshape(len(images), -1)),
        jnp.asarray(loaded.y_train),
        hidden=hidden,
        layers=layers,
        activation=activation,
        scale=scale,
        batch=batch,
    )


def mixture(data: str = "mnist") -> Mixture:
    """What the controller is meta-trained on: depths 0 to 4, activations, widths, batch sizes, and quadratics."""
    return Mixture(
        (
            digits(1, 32, "relu", data=data, scale=0.1),
            digits(2, 24, "tanh", data=data, batch=32),
            digits(3, 24, "gelu", data=data),
            digits(4, 20, "relu", data=data, scale=0.3),
            digits(1, 48, "sigmoid", data=data, batch=128),
            digits(0, 1, "relu", data=data, scale=0.01),
            Quadratic(10),
        ),
        weights=(1, 1, 1, 1, 1, 1, 0.3),
    )


def held_out(data: str = "mnist") -> dict[str, ProblemFamily]:
    """Architectures that the mixture has none of: the seed is chosen on them."""
    return {
        "1 x 96 gelu": digits(1, 96, "gelu", data=data),
        "2 x 40 relu": digits(2, 40, "relu", data=data, scale=0.15),
        "4 x 32 elu": digits(4, 32, "elu", data=data),
    }


def general(
    folder: Path,
    display: Display,
    *,
    resume: bool = False,
    data: str = "mnist",
    seeds: tuple[int, ...] = SEEDS,
    recipe: Recipe = RECIPE,
) -> dict[str, Any]:
    """Meta-train a controller from every seed, choose one on held-out architectures, and keep it in `folder`.

    Leaves there `controller.safetensors`, with the recipe and the scores of all seeds in its manifest, and a folder for
    every seed. Returns the scores.
    """
    if folder.exists() and any(folder.iterdir()) and not resume:
        raise FileExistsError(
            f"{folder} already exists, and what is in it would be overwritten. Go on with it (--resume) or choose"
            " another folder (--out)."
        )
    family, scores, optimizers = mixture(data), {}, {}
    for seed in seeds:
        part = folder / f"seed-{seed}"
        trained = train(
            Controller(jax.random.key(seed)),
            family,
            dataclasses.replace(recipe, seed=seed),
            part,
            display,
            name=f"general/controller-{seed}",
            resume=resume and (part / "metatraining" / "checkpoint.safetensors").exists(),
        )
        optimizers[seed] = trained.optimizer
        scores[str(seed)] = judge(trained.optimizer, data, recipe.horizon // 2)
        display.say(f"seed {seed}: best at meta-step {trained.best.step}, {json.dumps(scores[str(seed)])}")
    chosen = min(seeds, key=lambda seed: mean_ratio(scores[str(seed)]))
    export(
        optimizers[chosen],
        folder / "controller.safetensors",
        name="general/controller",
        training={
            "command": "bygrad reproduce general",
            "mixture": [describe_family(member) for member in family.members],
            "recipe": describe(recipe),
            "seeds": list(seeds),
            "chosen_seed": chosen,
        },
        validation={"relative_to": "Adam(3e-3, b2=0.99), the start", "held_out": scores},
    )
    write_text_atomically(folder / "scores.json", json.dumps(scores, indent=1))
    return {"scores": scores, "chosen": chosen}


def judge(optimizer: Optimizer, data: str, horizon: int, runs: int = 16) -> dict[str, dict[str, float]]:
    """Hold an optimizer against the Adam that it started as, on every held-out architecture: ratios of mean area and of
    mean final loss."""
    ratios = {}
    for name, family in held_out(data).items():
        curves = [
            run_curves(declare(it, horizon), family, jax.random.key(0x9E4), horizon=horizon, runs=runs, chunk=runs)[0]
            for it in (optimizer, Adam(3e-3, b2=0.99))  # pyright: ignore[reportArgumentType]
        ]
        areas, finals = ([float(np.mean(measure(it))) for it in curves] for measure in (area, lambda c: final(c, 20)))
        ratios[name] = {"area": areas[0] / areas[1], "final": finals[0] / finals[1]}
    return ratios


def mean_ratio(scores: dict[str, dict[str, float]]) -> float:
    """Return the geometric mean of all ratios of a seed; infinite if one is not a number."""
    values = np.array([value for row in scores.values() for value in row.values()])
    return float(np.exp(np.mean(np.log(values)))) if np.all(np.isfinite(values)) else float("inf")
