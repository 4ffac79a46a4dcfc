"""The perceptron against plain NumPy, its minibatches, and the sizes in the paper."""

import subprocess
import sys
from typing import get_args

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from bygrad.problems import FAMILIES, ImageData, MLPClassifier, RandomStart, describe_family, find_family
from bygrad.problems.classifier import Activation

ACTIVATIONS = {
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
    "gelu": lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "elu": lambda x: np.where(x > 0, x, np.exp(np.minimum(x, 0)) - 1),
    "silu": lambda x: x / (1 + np.exp(-x)),
}


def tiny(**fields: object) -> MLPClassifier:
    """A network on 20 random images of 12 pixels with 3 classes; large weights, so that no unit is idle."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (20, 12), dtype=np.uint8), rng.integers(0, 3, 20, dtype=np.int32)
    return MLPClassifier(jnp.asarray(images), jnp.asarray(labels), **{"classes": 3, "hidden": 5, "scale": 1.0} | fields)


def numpy_loss(family: MLPClassifier, params: list[dict[str, np.ndarray]]) -> np.ndarray:
    """Cross-entropy of every image."""
    x = np.asarray(family.images) / 255
    for layer in params[:-1]:
        x = ACTIVATIONS[family.activation](x @ layer["weight"] + layer["bias"])
    logits = x @ params[-1]["weight"] + params[-1]["bias"]
    logits = logits - logits.max(axis=1, keepdims=True)
    likelihood = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return -np.log(likelihood[np.arange(len(logits)), np.asarray(family.labels)])


def test_every_activation_has_a_reference():
    assert set(ACTIVATIONS) == set(get_args(Activation))


@pytest.mark.parametrize(
    ("activation", "layers"), [*((activation, 1) for activation in ACTIVATIONS), ("sigmoid", 0), ("sigmoid", 2)]
)
def test_loss_and_gradient(activation, layers):
    family = tiny(activation=activation, layers=layers)
    with jax.enable_x64(True):
        params = family.init((), jax.random.key(0))
        assert len(params) == layers + 1
        value, grads = jax.value_and_grad(family.loss)(params, (), None)
        flat, unravel = jax.flatten_util.ravel_pytree(params)
        slope = jax.flatten_util.ravel_pytree(grads)[0]

        def reference(flat: jax.Array) -> float:
            return numpy_loss(family, jax.tree.map(np.asarray, unravel(flat))).mean()

        np.testing.assert_allclose(value, reference(flat), rtol=1e-12)
        for direction in np.random.default_rng(1).standard_normal((3, flat.size)):
            ahead, behind = (reference(flat + h * direction) for h in (1e-6, -1e-6))
            np.testing.assert_allclose(slope @ direction, (ahead - behind) / 2e-6, rtol=1e-6, atol=1e-8)


def test_minibatches_come_with_replacement_from_all_images():
    family = tiny(batch=20)
    params = family.init((), jax.random.key(0))
    per_image = numpy_loss(family, jax.tree.map(np.asarray, params))
    keys = jax.random.split(jax.random.key(1), 4000)
    losses = np.asarray(jax.vmap(lambda key: family.loss(params, (), key))(keys))
    assert abs(losses.mean() - per_image.mean()) < 4 * losses.std() / len(losses) ** 0.5
    # Without replacement, 20 of 20 images would always give the same loss.
    variance = per_image.var() / family.batch
    squares = (losses - losses.mean()) ** 2
    assert abs(squares.mean() - variance) < 4 * squares.std() / len(losses) ** 0.5


def test_the_key_decides_the_minibatch():
    family = tiny(batch=2)
    params = family.init((), jax.random.key(0))
    losses = [family.loss(params, (), jax.random.key(seed)) for seed in range(10)]
    assert [family.loss(params, (), jax.random.key(seed)) for seed in range(10)] == losses
    assert len({float(loss) for loss in losses}) > 5


PAPERS = {
    "mnist": 15_910,
    "mnist-40-units": 31_810,
    "mnist-2-layers": 16_330,
    "mnist-2-layers-wide": 16_330,
    "mnist-relu": 15_910,
}


@pytest.mark.parametrize(("name", "count"), PAPERS.items())
def test_the_networks_of_the_paper(name, count):
    family = find_family(name)
    assert isinstance(family, MLPClassifier)
    assert family.batch == 128
    assert family.activation == ("relu" if name == "mnist-relu" else "sigmoid")
    params = family.init((), jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count
    scale = 0.05 if name.endswith("-wide") else 0.01
    for leaf in jax.tree.leaves(params):  # biases as well as weights
        assert abs(np.std(leaf) / scale - 1) < 5 / (2 * leaf.size) ** 0.5
    # Networks that start near zero know nothing yet.
    np.testing.assert_allclose(family.loss(params, (), None), np.log(10), atol=0.05)


def test_any_start_is_the_papers_network_begun_elsewhere():
    assert {name for name in FAMILIES if name.startswith("mnist")} == {*PAPERS, "mnist-any-start"}
    family = find_family("mnist-any-start")
    assert isinstance(family, RandomStart) and (family.low, family.high) == (0.01, 10)
    assert describe_family(family.family) == describe_family(find_family("mnist"))


def test_the_split_chooses_the_images():
    rng = np.random.default_rng(0)
    images = {name: rng.integers(0, 256, (n, 2, 3), dtype=np.uint8) for name, n in (("x_train", 4), ("x_test", 3))}
    labels = {"y_train": np.array([0, 1, 2, 0], np.int32), "y_test": np.array([1, 4, 0], np.int32)}
    data = ImageData(name="five classes", **images, **labels)
    for split in ("train", "test"):
        family = MLPClassifier.from_data(data, split, hidden=7, layers=2, activation="tanh", scale=0.5, batch=3)
        np.testing.assert_array_equal(family.images, images[f"x_{split}"].reshape(-1, 6))
        np.testing.assert_array_equal(family.labels, labels[f"y_{split}"])
        assert (family.classes, family.hidden, family.layers, family.batch) == (5, 7, 2, 3)


MISFITS = """
import jax.numpy as jnp
from bygrad.problems import MLPClassifier

pixels, labels = jnp.zeros((3, 4), jnp.uint8), jnp.arange(3)
given = (pixels / 255, labels), (pixels, labels[:2]), (pixels, jnp.eye(3, dtype=int)), (pixels, 9 - 5 * labels)
given += ((pixels.reshape(3, 2, 2), labels),)
for images, classes in given:
    try:
        MLPClassifier(images, classes)
    except ValueError as error:
        print(str(error).partition(":")[0])
"""


@pytest.mark.slow
def test_every_image_is_bytes_and_has_a_label():
    """What no type checker has seen: here, one would come before the check."""
    done = subprocess.run([sys.executable, "-c", MISFITS], capture_output=True, text=True, timeout=100)
    assert done.stdout.splitlines() == [
        "There are images float32[3, 4] and labels [3]",
        "There are images uint8[3, 4] and labels [2]",
        "There are images uint8[3, 4] and labels [3, 3]",
        "Labels go from -1 to 9, but the network has 10 classes, 0 to 9",
        "There are images of shape [3, 2, 2], but a perceptron takes each as a row of pixels. Give"
        " images.reshape(len(images), -1), or build the family by MLPClassifier.from_data.",
    ]


@pytest.mark.parametrize("labels", [[0, 1, 3], [0, -1, 1]])
def test_every_label_has_a_class(labels):
    with pytest.raises(ValueError, match="has 3 classes, 0 to 2"):
        MLPClassifier(jnp.zeros((3, 4), jnp.uint8), jnp.array(labels), classes=3)


@pytest.mark.parametrize(
    "fields", [{"activation": "sine"}, {"hidden": 0}, {"layers": -1}, {"batch": 0}, {"scale": float("nan")}], ids=str
)
def test_what_does_not_exist_is_refused(fields):
    with pytest.raises((ValueError, TypeError), match=next(iter(fields))):
        tiny(**fields)
