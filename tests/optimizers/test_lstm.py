"""The LSTM of the paper: its size, its arithmetic against plain NumPy, its derivatives, and how it begins."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bygrad.metagrads import Replay
from bygrad.optimizers import LSTM, LogSign, Optimizer, Scaled, base, parameter_count, to_portable
from bygrad.optimizers.lstm import Cell, _tanh
from bygrad.problems import MLPClassifier, ProblemFamily, Quadratic
from bygrad.unroll import Windows, loss_curves, replay_coordinates


def perceptron() -> MLPClassifier:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (20, 12), dtype=np.uint8), rng.integers(0, 3, 20, dtype=np.int32)
    return MLPClassifier(jnp.asarray(images), jnp.asarray(labels), classes=3, hidden=4, batch=10)


def gradients(steps: int, coordinates: int, seed: int = 0) -> np.ndarray:
    """Gradients of all sizes and both signs, a few of them zero."""
    rng = np.random.default_rng(seed)
    grads = rng.choice([-1, 1], (steps, coordinates)) * np.exp(rng.uniform(-14, 4, (steps, coordinates)))
    return np.where(rng.random(grads.shape) < 0.1, 0, grads)


class NumpyLSTM:
    """Equations (1) to (6) of Graves (2013) without peepholes, a coordinate at a time."""

    def __init__(self, optimizer: LSTM):
        portable = to_portable(optimizer)
        self.tensors = {name: tensor.astype(np.float64) for name, tensor in portable.tensors.items()}
        self.preprocess = portable.config["preprocess"]
        self.scale = portable.config["output_scale"]
        self.units = portable.config["layers"]

    def inputs(self, g: float) -> np.ndarray:
        if self.preprocess["name"] == "Scaled":
            return np.array([self.preprocess["scale"] * g])
        p = self.preprocess["p"]
        return np.array([np.log(abs(g)) / p, np.sign(g)] if abs(g) >= np.exp(-p) else [-1, np.exp(p) * g])

    def run(self, grads: np.ndarray) -> np.ndarray:
        """Updates `[steps]` for the gradients `[steps]` of one coordinate."""
        h, c = ([np.zeros(n) for n in self.units] for _ in range(2))
        updates = []
        for g in grads:
            x = self.inputs(g)
            for layer, n in enumerate(self.units):
                weight, bias = self.tensors[f"layers/{layer}/weight"], self.tensors[f"layers/{layer}/bias"]
                z = weight[:, : len(x)] @ x + weight[:, len(x) :] @ h[layer] + bias
                i, f, o = (1 / (1 + np.exp(-part)) for part in (z[:n], z[2 * n : 3 * n] + 1, z[3 * n :]))
                c[layer] = f * c[layer] + i * np.tanh(z[n : 2 * n])
                h[layer] = x = o * np.tanh(c[layer])
            updates.append(self.scale * (self.tensors["head"] @ x + self.tensors["head_bias"]))
        return np.array(updates)


@eqx.filter_jit
def build(*arguments: object, **options: object) -> LSTM:
    return LSTM(jax.random.key(0), *arguments, **options)


@eqx.filter_jit
def run(optimizer: LSTM, grads: jax.Array) -> jax.Array:
    def body(state, grad):
        update, state = optimizer.step(grad, state)
        return state, update

    return jax.lax.scan(body, optimizer.start(grads.shape[1:]), grads)[1]


@pytest.mark.core
@pytest.mark.parametrize(("preprocess", "count"), [(None, 5_141), (Scaled(), 5_061)], ids=["LogSign", "Scaled"])
def test_the_number_of_meta_parameters_is_that_of_the_paper(preprocess, count):
    optimizer = build(preprocess=preprocess)
    assert parameter_count(optimizer) == count
    assert sum(leaf.size for leaf in jax.tree.leaves(optimizer.start(()))) == 80


@pytest.mark.core
@pytest.mark.parametrize(
    ("layers", "preprocess"),
    [
        ((20, 20), LogSign()),
        *(pytest.param(*it, marks=pytest.mark.slow) for it in (((3,), LogSign(5.0)), ((20, 20), Scaled(0.5)))),
        ((4, 2, 3), LogSign()),
    ],
    ids=str,
)
@pytest.mark.parametrize(("x64", "tolerance"), [(True, 1e-10), (False, 1e-5)], ids=["float64", "float32"])
def test_twenty_steps_equal_plain_numpy(layers, preprocess, x64, tolerance):
    grads = gradients(20, 5)
    with jax.enable_x64(x64):
        optimizer = build(layers, preprocess, output_scale=0.7, initial_step=1.0)
        # The head has a bias, and so have the gates: otherwise nothing would notice if they were left out.
        biased = [cell.bias + np.linspace(-0.1, 0.1, cell.bias.size) for cell in optimizer.layers]
        optimizer = eqx.tree_at(lambda it: [cell.bias for cell in it.layers], optimizer, biased)
        updates = run(optimizer, jnp.asarray(grads, optimizer.dtype))
        assert updates.dtype == (jnp.float64 if x64 else jnp.float32)
    reference = NumpyLSTM(optimizer)
    expected = np.stack([reference.run(column) for column in grads.T], axis=1)
    assert np.linalg.norm(np.subtract(updates, expected)) <= tolerance * np.linalg.norm(expected)


@pytest.mark.core
def test_any_arrangement_of_coordinates_gives_the_same_updates():
    optimizer = build((5, 4))
    flat = jnp.asarray(gradients(6, 24), jnp.float32)
    together = run(optimizer, flat)
    np.testing.assert_allclose(run(optimizer, flat.reshape(6, 2, 3, 4)).reshape(6, -1), together, rtol=1e-6, atol=1e-8)
    for i in range(3):  # 0-d coordinates
        np.testing.assert_allclose(run(optimizer, flat[:, i]), together[:, i], rtol=1e-6, atol=1e-8)


@pytest.mark.core
def test_tanh_of_the_gates_is_accurate_and_never_above_one():
    x = np.concatenate([np.linspace(0, 12, 1_000_001), np.geomspace(1e-30, 1, 100_001)]).astype(np.float32)
    ours = (jitted := jax.jit(_tanh))(jnp.asarray(x))
    np.testing.assert_allclose(ours, np.tanh(x.astype(np.float64)), rtol=5e-7)
    assert ours.max() < 1
    np.testing.assert_array_equal(jitted(-jnp.asarray(x)), -ours)
    np.testing.assert_allclose(jitted(jnp.array([np.nan, np.inf, 0])), [np.nan, 1, 0], rtol=5e-7)


def written_out(weight: jax.Array, bias: jax.Array, inputs: jax.Array, c: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A layer's step by its definition."""
    i, g, f, o = jnp.split(weight @ inputs + bias[:, None], 4)
    c = jax.nn.sigmoid(f + 1) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


@pytest.mark.core
@pytest.mark.parametrize(("x64", "tolerance"), [(True, 1e-12), (False, 1e-5)], ids=["float64", "float32"])
@pytest.mark.parametrize(("features", "units"), [(2, 1), (3, 4)])
def test_derivatives_of_a_layer_are_those_of_its_definition(features, units, x64, tolerance):
    def derivatives(step: Callable[..., Any], at: tuple, along: tuple, cots: tuple) -> tuple:
        """In both modes, and the second, along the same directions."""
        first, pull = jax.vjp(step, *at)
        slope = lambda *it: jax.jvp(step, it, along)[1]  # noqa: E731
        return first, pull(cots), slope(*at), jax.vjp(slope, *at)[1](cots)

    with jax.enable_x64(x64):
        cell, draw = Cell(features, units, jax.random.key(0)), np.random.default_rng(2).standard_normal
        shapes = [cell.weight.shape, cell.bias.shape, (features + units, 5), (units, 5)]
        at, along = (tuple(jnp.asarray(draw(shape), cell.bias.dtype) for shape in shapes) for _ in range(2))
        cots = tuple(jnp.asarray(draw((units, 5)), cell.bias.dtype) for _ in range(2))

        def step(weight: jax.Array, bias: jax.Array, *rest: jax.Array) -> tuple[jax.Array, jax.Array]:
            return eqx.tree_at(lambda it: (it.weight, it.bias), cell, (weight, bias))(*rest)

        ours, theirs = (jax.jit(functools.partial(derivatives, it))(at, along, cots) for it in (step, written_out))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert np.linalg.norm(b) > 0
        assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b)


@pytest.mark.parametrize(
    ("family", "preprocess"),
    [pytest.param(Quadratic(), Scaled(), marks=pytest.mark.slow), (perceptron(), LogSign())],
    ids=["quadratic", "perceptron"],
)
def test_an_untrained_optimizer_descends_and_has_a_meta_gradient_everywhere(family, preprocess):
    @eqx.filter_jit
    def begin(key: jax.Array, family: ProblemFamily) -> tuple[Optimizer, jax.Array]:
        optimizer, windows = LSTM(key, preprocess=preprocess), Windows(family, horizon=10, truncation=10, instances=4)
        estimate, _ = Replay().estimate(optimizer, windows, Replay().init(optimizer, windows, key))
        return estimate.gradient, loss_curves(optimizer, family, jax.random.split(key, 8), 50)

    for seed in range(5):
        gradient, curves = begin(jax.random.key(seed), family)
        assert np.all(np.isfinite(curves))
        assert np.mean(curves[:, -5:]) < np.mean(curves[:, 0])
        for name, leaf in to_portable(gradient).tensors.items():
            assert np.all(np.isfinite(leaf)), name
            assert np.any(leaf != 0), name


@pytest.mark.core
@pytest.mark.parametrize(("step", "scale"), [(0.1, 1.0), (0.5, 0.2)])
def test_the_initial_step_is_the_size_of_the_steps_against_the_gradient(step, scale):
    grads = np.tile([[1.0, -1.0, 0.01, -0.01]], (16, 1))
    updates = run(build(output_scale=scale, initial_step=step), jnp.asarray(grads, jnp.float32))
    projected = -np.asarray(updates[-1]) * np.sign(grads[-1]) / (scale * step)
    assert np.all(np.abs(projected - 1) < 0.5), projected


@pytest.mark.core
@pytest.mark.parametrize(
    ("shape", "state_dtype"),
    [
        *(
            pytest.param(*it, marks=pytest.mark.slow)
            for it in (((20,), "bfloat16"), ((3, 5), None), ((2, 2, 9), None), ((21,), None))
        ),
        ((3, 5), "bfloat16"),
    ],
    ids=str,
)
def test_large_arrays_are_updated_in_blocks_alike(monkeypatch, shape, state_dtype):
    monkeypatch.setattr(base, "STEP_BLOCK", 8)
    optimizer = build((5, 4), state_dtype=state_dtype)
    grads = jnp.asarray(gradients(1, int(np.prod(shape)))[0].reshape(shape), jnp.float32)
    state = (0.5 * jax.random.normal(jax.random.key(1), (18, *shape))).astype(optimizer.start(()).dtype)
    updates, new = eqx.filter_jit(optimizer.update)(grads, state)
    expected, expected_new = optimizer.step(grads, state)
    np.testing.assert_allclose(updates, expected, rtol=1e-5, atol=1e-7)
    assert new.dtype == expected_new.dtype
    np.testing.assert_allclose(np.float32(new), np.float32(expected_new), rtol=1e-2, atol=1e-6)


def test_a_state_in_half_precision_changes_updates_little_and_the_replay_follows():
    grads, cots = (jnp.asarray(gradients(20, 16, seed), jnp.float32) for seed in (0, 1))
    full = build((8, 8))
    half = full.with_state_dtype("bfloat16")
    assert half.config == full.config | {"state_dtype": "bfloat16"}
    for one, other in zip(jax.tree.leaves(half), jax.tree.leaves(full), strict=True):
        np.testing.assert_array_equal(one, other)
    assert half.start((3,)).dtype == jnp.bfloat16
    ours, theirs = run(half, grads), run(full, grads)
    # bfloat16 keeps 8 bits: each step may move the state by 0.4 %.
    assert 0 < np.linalg.norm(ours - theirs) < 0.02 * np.linalg.norm(theirs)
    for one, other in zip(
        jax.tree.leaves(replay_coordinates(half, grads, half.start((16,)), cots)),
        jax.tree.leaves(replay_coordinates(full, grads, full.start((16,)), cots)),
        strict=True,
    ):
        assert np.linalg.norm(one - other) < 0.1 * np.linalg.norm(other)


@pytest.mark.core
def test_a_state_dtype_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="Choose one of None, 'bfloat16'"):
        LSTM(jax.random.key(0), state_dtype="int8")


@pytest.mark.core
def test_units_begin_with_memories_from_one_step_to_the_given_number():
    untouched, optimizer = (LSTM(jax.random.key(0), layers=(5, 3), memory=memory) for memory in (None, 81))
    for plain, cell in zip(untouched.layers, optimizer.layers, strict=True):
        assert jnp.array_equal(plain.weight, cell.weight)
        inputs, started = jnp.zeros((cell.weight.shape[1], 1)), jnp.ones((cell.units, 1))
        _, left = cell(inputs, started)  # nothing comes in, so that what is left was kept by the forget gate
        steps = np.geomspace(1, 81, cell.units)
        np.testing.assert_allclose(left[:, 0], steps / (steps + 1), rtol=1e-5)


@pytest.mark.core
def test_a_memory_of_no_step_is_refused():
    with pytest.raises(ValueError, match="memory is 0, but a unit remembers for one step or more"):
        LSTM(jax.random.key(0), memory=0)


@pytest.mark.core
@pytest.mark.parametrize("layers", [(), (0,), (20, 0)], ids=str)
def test_layers_without_units_are_refused(layers):
    with pytest.raises(ValueError, match="at least one layer of one unit"):
        LSTM(jax.random.key(0), layers)
