"""Style transfer: VGG16 against plain NumPy, Gatys' loss against its formula, sizes, starts, and what is refused."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bygrad.problems import VGG16, StyleTransfer
from bygrad.problems.data.pictures import load_painting, load_photographs
from bygrad.problems.style import CONTENT_LAYER, STYLE_LAYERS, gram
from bygrad.problems.vgg import BLOCKS

Layers = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def network() -> VGG16:
    return VGG16.load()


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def family(network: VGG16, picture: np.ndarray) -> StyleTransfer:
    return StyleTransfer.of(np.stack([picture, picture[::-1]]), load_painting("great_wave", 16), "wave", network)


@eqx.filter_jit
def value_and_grad(family: StyleTransfer, image: jax.Array, instance: dict) -> tuple[jax.Array, jax.Array]:
    return jax.value_and_grad(family.loss)(image, instance, None)


def numpy_features(network: VGG16, image: np.ndarray) -> Layers:
    """Convolve by shifting: padding of one, float64."""
    x = (image / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    features = {}
    for number, block in enumerate(BLOCKS):
        if number:
            x = x.reshape(x.shape[0] // 2, 2, x.shape[1] // 2, 2, -1).max(axis=(1, 3))
        for layer in block:
            height, width, _ = x.shape
            padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
            weight = np.asarray(network.weights[layer], np.float64)
            places = [(i, j) for i in range(3) for j in range(3)]
            x = sum(padded[i : i + height, j : j + width] @ weight[i, j] for i, j in places)
            x = features[layer] = np.maximum(x + np.asarray(network.biases[layer], np.float64), 0)
    return features


def numpy_loss(family: StyleTransfer, image: np.ndarray, photograph: np.ndarray, painting: np.ndarray) -> float:
    ours, content, style = (numpy_features(family.network, it) for it in (image, photograph, painting))

    def relative(a: np.ndarray, b: np.ndarray) -> float:
        return ((a - b) ** 2).sum() / (b**2).sum()

    def moments(x: np.ndarray) -> np.ndarray:
        return np.einsum("hwi,hwj->ij", x, x) / (x.shape[0] * x.shape[1])

    total = 0.3 * relative(ours[CONTENT_LAYER], content[CONTENT_LAYER])
    total += sum(relative(moments(ours[layer]), moments(style[layer])) for layer in STYLE_LAYERS) / 4
    total += 5 * sum(((np.diff(image, axis=axis) / 255) ** 2).mean() for axis in (0, 1))
    return image.shape[0] * image.shape[1] * total


def test_features_are_those_of_the_network(network, picture):
    expected = numpy_features(network, picture.astype(float))
    found = network(jnp.asarray(picture, jnp.float32))
    assert list(found) == [layer for block in BLOCKS for layer in block]
    for layer, value in expected.items():
        np.testing.assert_allclose(found[layer], value, rtol=1e-3, atol=1e-4 * value.max())


def test_loss_is_gatys(family, picture):
    image = np.random.default_rng(1).uniform(0, 255, picture.shape)
    instance = family.content(jnp.asarray(picture))
    value, slope = value_and_grad(family, jnp.asarray(image, jnp.float32), instance)
    painting = load_painting("great_wave", 16).astype(float)

    def reference(image: np.ndarray) -> float:
        return numpy_loss(family, image, picture.astype(float), painting)

    np.testing.assert_allclose(value, reference(image), rtol=1e-4)
    # Along the gradient itself, where rounding of float32 matters least.
    direction = np.asarray(slope, float) / np.linalg.norm(slope)
    rise = (reference(image + 0.01 * direction) - reference(image - 0.01 * direction)) / 0.02
    np.testing.assert_allclose(rise, np.linalg.norm(slope), rtol=1e-3)


def test_content_and_style_are_met_by_the_pictures_themselves(family, network, picture):
    painting = load_painting("great_wave", 16)
    itself = StyleTransfer.of(painting[None], painting, network=network)
    image = jnp.asarray(painting, jnp.float32)
    loss = itself.loss(image, itself.content(jnp.asarray(painting)), None)
    rough = sum(np.mean((np.diff(painting.astype(float), axis=axis) / 255) ** 2) for axis in (0, 1))
    np.testing.assert_allclose(loss, 16 * 16 * 5 * rough, rtol=1e-4)


@pytest.mark.slow
def test_the_gradient_at_a_pixel_does_not_depend_on_the_size(network):
    """A picture that repeats itself has, away from its border, the same gradient as a smaller one."""
    tile = load_photographs("test")[0, :32, :32]
    image = np.random.default_rng(0).uniform(0, 255, (32, 32, 3))
    sizes = []
    for times in (1, 2):
        repeat = (times, times, 1)
        family = StyleTransfer.of(np.tile(tile, repeat)[None], load_painting("great_wave", 32), network=network)
        instance = family.content(family.photographs[0])
        _, grads = value_and_grad(family, jnp.asarray(np.tile(image, repeat), jnp.float32), instance)
        sizes.append(float(jnp.sqrt(jnp.mean(jnp.square(grads)))))
    assert abs(sizes[1] / sizes[0] - 1) < 0.15


def test_instances_are_photographs_and_starts_are_noise(family):
    instances = [family.sample(jax.random.key(seed)) for seed in range(12)]
    tops = {int(instance["photograph"][0, 0, 0]) for instance in instances}
    assert tops == {int(photograph[0, 0, 0]) for photograph in family.photographs}
    start = family.init(instances[0], jax.random.key(0))
    assert start.shape == family.photographs.shape[1:]
    assert abs(float(jnp.mean(start)) - 127.5) < 4 * 32 / start.size**0.5
    assert abs(float(jnp.std(start)) / 32 - 1) < 4 / (2 * start.size) ** 0.5


def test_a_black_picture_has_finite_losses_and_gradients(network):
    blind = jax.tree.map(jnp.zeros_like, network)  # no features at all: every target is zero
    black = np.zeros((2, 16, 24, 3), np.uint8)
    family = StyleTransfer.of(black, black[0], "wave", blind)
    value, grads = value_and_grad(family, jnp.zeros((16, 24, 3)), family.content(family.photographs[0]))
    assert float(value) == 0 and bool(jnp.all(jnp.isfinite(grads)))


def test_gram_ignores_where_things_are():
    features = jax.random.normal(jax.random.key(0), (4, 6, 5))
    moved = jax.random.permutation(jax.random.key(1), features.reshape(24, 5)).reshape(6, 4, 5)
    expected = np.einsum("hwi,hwj->ij", features, features) / 24
    np.testing.assert_allclose(gram(features), expected, atol=1e-6)
    np.testing.assert_allclose(gram(moved), expected, atol=1e-6)


def test_sides_that_the_network_cannot_halve_are_refused(network):
    with pytest.raises(ValueError, match=r"12 x 16 pixels.*multiples of 8"):
        StyleTransfer.of(np.zeros((1, 16, 12, 3), np.uint8), load_painting("great_wave", 16), network=network)
    with pytest.raises(ValueError, match=r"The image is 16 x 12 pixels.*multiples of 8"):
        StyleTransfer.of(np.zeros((1, 16, 16, 3), np.uint8), np.zeros((12, 16, 3), np.uint8), network=network)
