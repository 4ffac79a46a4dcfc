"""The convolutional network against plain NumPy, its size in the paper, and label subsets."""

from collections.abc import Callable

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bygrad.optimizers import SGD, Partition
from bygrad.problems import ConvClassifier, with_labels
from bygrad.problems.convnet import pool
from bygrad.problems.convolution import convolve, from_blocks, in_blocks

RELU_AND_SIGMOID = {"relu": lambda x: np.maximum(x, 0), "sigmoid": lambda x: 1 / (1 + np.exp(-x))}


def tiny(**fields: object) -> ConvClassifier:
    """Two blocks on random images with odd sides; weights of order one, so that no unit is idle."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (9, 7, 6, 2), dtype=np.uint8), rng.integers(0, 3, 9, dtype=np.int32)
    small = {"classes": 3, "channels": (3, 2), "kernel": 3, "hidden": 4, "scale": 0.5, "batch": 4}
    return ConvClassifier(jnp.asarray(images), jnp.asarray(labels), **small | fields)


def numpy_normalize(x: np.ndarray) -> np.ndarray:
    places = tuple(range(x.ndim - 1))
    return (x - x.mean(places)) / np.sqrt(x.var(places) + 1e-3)


def numpy_pool(x: np.ndarray) -> np.ndarray:
    _, height, width, _ = x.shape
    rows = [x[:, i : i + 2].max(axis=1) for i in range(0, height, 2)]
    return np.stack([np.stack(rows, 1)[:, :, j : j + 2].max(axis=2) for j in range(0, width, 2)], 2)


def numpy_loss(family: ConvClassifier, params: dict, chosen: np.ndarray) -> float:
    activation = RELU_AND_SIGMOID[family.activation]
    x, margin = np.asarray(family.images)[chosen] / 255, family.kernel // 2
    for i in range(len(family.channels)):
        layer, (_, height, width, _) = params[f"conv{i}"], x.shape
        padded = np.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
        places = [(a, b) for a in range(family.kernel) for b in range(family.kernel)]
        x = sum(padded[:, a : a + height, b : b + width] @ layer["weight"][a, b] for a, b in places)
        x = numpy_pool(activation(numpy_normalize(x + layer["bias"]) + layer["shift"]))
    hidden, output = params["hidden"], params["output"]
    x = numpy_normalize(x.reshape(len(x), -1) @ hidden["weight"] + hidden["bias"])
    logits = activation(x + hidden["shift"]) @ output["weight"] + output["bias"]
    logits = logits - logits.max(axis=1, keepdims=True)
    likelihood = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return -np.log(likelihood[np.arange(len(logits)), np.asarray(family.labels)[chosen]]).mean()


@pytest.mark.parametrize(("activation", "batch"), [("relu", 4), ("sigmoid", 18)])  # one block of images, and two
def test_loss_and_gradient(activation, batch):
    family, key = tiny(activation=activation, batch=batch), jax.random.key(3)
    with jax.enable_x64(True):
        chosen = np.asarray(jax.random.randint(key, (family.batch,), 0, 9))
        params = family.init((), jax.random.key(0))
        value, grads = jax.jit(jax.value_and_grad(family.loss))(params, (), key)
        flat, unravel = jax.flatten_util.ravel_pytree(params)
        slope = jax.flatten_util.ravel_pytree(grads)[0]

        def reference(flat: jax.Array) -> float:
            return numpy_loss(family, jax.tree.map(np.asarray, unravel(flat)), chosen)

        np.testing.assert_allclose(value, reference(flat), rtol=1e-10)
        for direction in np.random.default_rng(1).standard_normal((2, flat.size)):
            ahead, behind = (reference(flat + h * direction) for h in (1e-6, -1e-6))
            np.testing.assert_allclose(slope @ direction, (ahead - behind) / 2e-6, rtol=1e-5, atol=1e-7)
    # Batch norm takes away whatever is constant over the minibatch.
    for layer in ("conv0", "conv1", "hidden"):
        assert np.abs(grads[layer]["bias"]).max() < 1e-12
        assert np.abs(grads[layer]["shift"]).max() > 1e-4


def test_the_network_of_the_paper(patches):
    family = ConvClassifier.from_data(patches(), batch=8)
    params = family.init((), jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 22_682
    for leaf in jax.tree.leaves(params):  # biases and shifts as well as weights
        assert abs(np.std(leaf) / 0.01 - 1) < 6 / (2 * leaf.size) ** 0.5


def test_a_partition_finds_the_convolutions():
    params = jax.eval_shape(tiny().init, (), jax.random.key(0))
    divided = Partition(parts={name: SGD(0.1) for name in ("convolutions", "rest")}).divide(params)
    assert set(divided["convolutions"]) == {"conv0/weight", "conv1/weight"}
    rest = {"hidden/weight", "hidden/bias", "hidden/shift", "output/weight", "output/bias"}
    assert set(divided["rest"]) == rest | {f"conv{i}/{name}" for i in (0, 1) for name in ("bias", "shift")}


@pytest.mark.core
@pytest.mark.parametrize(
    ("images", "sides", "channels", "kernel"),
    [pytest.param(32, (6, 5), (2, 3), 5, marks=pytest.mark.slow), (3, (1, 4), (3, 1), 3)],
)  # two blocks of 16, and one with fewer rows than the kernel
def test_convolution_has_the_derivatives_of_another(images, sides, channels, kernel):
    """To the second order, in both orders of the modes; by hand they are only of the first."""
    inputs, outputs = channels
    rng = np.random.default_rng(0)
    shapes = (images, *sides, inputs), (kernel, kernel, inputs, outputs), (images, *sides, outputs)
    drawn = [rng.standard_normal(shape) for shape in shapes]

    def ours(x: jax.Array, weights: jax.Array) -> jax.Array:
        return from_blocks(convolve(in_blocks(x), weights))

    def theirs(x: jax.Array, weights: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(x, weights, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def derivatives(function: Callable[..., jax.Array]) -> tuple[jax.Array, ...]:
        function = jax.jit(function)

        def loss(x: jax.Array, weights: jax.Array) -> jax.Array:
            return jnp.sum(cots * jnp.sin(function(x, weights)))

        def size(x: jax.Array, weights: jax.Array) -> jax.Array:
            return sum(jnp.sum(jnp.square(leaf)) for leaf in jax.grad(loss, (0, 1))(x, weights))

        _, along = jax.jvp(jax.grad(loss, (0, 1)), (x, weights), (x, weights))
        first, again = jax.grad(loss, (0, 1))(x, weights), jax.grad(size, (0, 1))(x, weights)
        return function(x, weights), *first, *along, *again

    with jax.enable_x64(True):
        x, weights, cots = map(jnp.asarray, drawn)
        for got, expected in zip(derivatives(ours), derivatives(theirs), strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.core
@pytest.mark.parametrize("values", [2, None], ids=["ties", "no ties"])
@pytest.mark.parametrize("shape", [(2, 4, 6, 1), (1, 5, 3, 2), (1, 1, 1, 1)], ids=str)
def test_pooling(shape, values):
    """Every square passes its gradient on to its largest entries, in equal parts."""
    rng = np.random.default_rng(0)
    x = (rng.standard_normal(shape) if values is None else rng.integers(values, size=shape)).astype(np.float32)
    largest, pull = jax.vjp(pool, in_blocks(jnp.asarray(x)))
    np.testing.assert_array_equal(from_blocks(largest), numpy_pool(x))
    cots = rng.standard_normal(numpy_pool(x).shape).astype(np.float32)
    expected = np.zeros_like(x)
    for n, row, column, channel in np.ndindex(cots.shape):
        here = n, slice(2 * row, 2 * row + 2), slice(2 * column, 2 * column + 2), channel
        winners = x[here] == x[here].max()
        expected[here] = winners * cots[n, row, column, channel] / winners.sum()
    np.testing.assert_allclose(from_blocks(pull(in_blocks(jnp.asarray(cots)))[0]), expected, rtol=1e-6)


@pytest.mark.slow
def test_products_with_the_hessian_are_the_same_in_both_orders_of_the_modes():
    family, key = tiny(channels=(3,)), jax.random.key(0)  # one block: of convolutions by themselves, see above
    params = family.init((), key)
    along = jax.tree.map(lambda leaf: jnp.cos(jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape), params)

    def gradient(params: object) -> object:
        return jax.grad(family.loss)(params, (), key)

    def slope(params: object) -> jax.Array:
        return jax.flatten_util.ravel_pytree(gradient(params))[0] @ jax.flatten_util.ravel_pytree(along)[0]

    _, forward = jax.jit(lambda params: jax.jvp(gradient, (params,), (along,)))(params)
    for ours, theirs in zip(jax.tree.leaves(forward), jax.tree.leaves(jax.jit(jax.grad(slope))(params)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.core
@pytest.mark.parametrize(("images", "blocks"), [(1, 1), (16, 1), (18, 2), (17, 17), (64, 4)])
def test_blocks(images, blocks):
    x = np.random.default_rng(0).standard_normal((images, 2, 3, 4)).astype(np.float32)
    assert in_blocks(jnp.asarray(x)).shape == (blocks, 4, 2, 3, images // blocks)
    np.testing.assert_array_equal(from_blocks(in_blocks(jnp.asarray(x))), x)


def test_the_split_chooses_the_images(patches):
    data = patches(classes=3)
    for split in ("train", "test"):
        family = ConvClassifier.from_data(data, split, channels=[4], kernel=3, hidden=5)
        np.testing.assert_array_equal(family.images, getattr(data, f"x_{split}"))
        assert (family.classes, family.channels, family.shapes["hidden"]["weight"]) == (3, (4,), (16 * 16 * 4, 5))


@given(labels=st.lists(st.integers(0, 5), min_size=2, max_size=6, unique=True))
def test_a_subset_holds_its_classes_and_no_others(patches, labels):
    data = patches(size=8, classes=6)
    subset = with_labels(data, labels)
    assert subset.classes == len(labels)
    for split in ("train", "test"):
        images, found = getattr(data, f"x_{split}"), getattr(data, f"y_{split}")
        for new, old in enumerate(labels):
            kept = getattr(subset, f"x_{split}")[getattr(subset, f"y_{split}") == new]
            np.testing.assert_array_equal(kept, images[found == old])
        assert len(getattr(subset, f"x_{split}")) == np.isin(found, labels).sum()


@pytest.mark.parametrize("labels", [(0,), (0, 3), (-1, 0), (1, 1), (0, 1, 1)], ids=str)
def test_a_subset_that_does_not_exist_is_refused(patches, labels):
    with pytest.raises(ValueError, match="has classes 0 to 2"):
        with_labels(patches(size=8, classes=3), labels)


def test_there_is_no_objective_without_noise():
    with pytest.raises(ValueError, match="batch norm depends on the minibatch"):
        tiny().loss({}, (), None)


@pytest.mark.parametrize(
    "fields",
    [
        {"activation": "sine"},
        {"channels": ()},
        {"kernel": 4},
        {"kernel": -1},
        {"hidden": 0},
        {"batch": 1},
        {"scale": -0.1},
    ],
    ids=str,
)
def test_what_does_not_exist_is_refused(fields):
    with pytest.raises((ValueError, TypeError), match=next(iter(fields))):
        tiny(**fields)


def test_held_out_images_are_not_trained_on():
    family, key = tiny(held_out=4), jax.random.key(5)
    params = family.init((), jax.random.key(0))
    for start, end, loss in ((0, 5, family.loss), (5, 9, family.held_out_loss)):
        chosen = np.asarray(jax.random.randint(key, (family.batch,), start, end))
        expected = numpy_loss(family, jax.tree.map(np.asarray, params), chosen)
        np.testing.assert_allclose(loss(params, (), key), expected, rtol=1e-4)
    with pytest.raises(ValueError, match="some must be left to train on"):
        tiny(held_out=9)
    with pytest.raises(NotImplementedError):
        tiny().held_out_loss(params, (), key)
