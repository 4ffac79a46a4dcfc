"""LSTM+GAC: the step in NumPy, what it shares, and what it is without communication."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bygrad.optimizers import LSTM, GlobalLSTM, Scaled


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def cells_in_numpy(layers, x: np.ndarray, state: np.ndarray, averaged: int) -> tuple[np.ndarray, np.ndarray]:
    """A step of every layer in float64, as written in the paper: input, candidate, forget and output gate."""
    rows, start = [], 0
    for cell in layers:
        units = cell.bias.shape[0] // 4
        h, c = state[start : start + units], state[start + units : start + 2 * units]
        start += 2 * units
        pre = np.asarray(cell.weight, float) @ np.concatenate([x, h]) + np.asarray(cell.bias, float)[:, None]
        i, g, f, o = np.split(pre, 4)
        c = sigmoid(f + 1) * c + sigmoid(i) * np.tanh(g)
        x = sigmoid(o) * np.tanh(c)
        x[:averaged] = x[:averaged].mean(axis=1, keepdims=True)
        rows += [x, c]
    return x, np.concatenate(rows)


@pytest.fixture(scope="module")
def optimizer() -> GlobalLSTM:
    return GlobalLSTM(jax.random.key(0), (4, 3), Scaled(), averaged=2)


def test_steps_are_those_of_numpy(optimizer):
    grads = {"a": jnp.array([[0.5, -1.0]]), "b": jnp.array([2.0, -0.1, 0.3])}
    state, reference = optimizer.init(grads), np.zeros((14, 5))
    for factor in (1.0, -2.0, 0.5):
        updates, state = optimizer.update(jax.tree.map(lambda leaf, factor=factor: factor * leaf, grads), state)
        seen = factor * np.array([[0.5, -1.0, 2.0, -0.1, 0.3]])
        top, reference = cells_in_numpy(optimizer.layers, seen, reference, averaged=2)
        expected = 0.1 * (np.asarray(optimizer.head, float) @ top + float(optimizer.head_bias))
        np.testing.assert_allclose(np.concatenate([updates["a"][0], updates["b"]]), expected, rtol=2e-5, atol=1e-7)
    np.testing.assert_allclose(state, reference, rtol=2e-5, atol=1e-6)


def test_outputs_are_shared_over_all_arrays_and_memories_are_not(optimizer):
    grads = {"a": jnp.array([0.5, -1.0]), "b": jnp.array([2.0])}
    _, state = optimizer.update(grads, optimizer.init(grads))
    for start in (0, 8):  # the outputs of each layer
        shared, own = state[start : start + 2], state[start + 2]
        np.testing.assert_array_equal(shared, jnp.broadcast_to(shared[:, :1], shared.shape))
        assert len(set(np.asarray(own).tolist())) == 3
    assert len(set(np.asarray(state[4]).tolist())) == 3  # a cell whose output is averaged


def test_a_coordinate_hears_of_the_others(optimizer):
    """One step later, as the paper's cells of the first layer do, the second layer has heard."""
    start = optimizer.init(jnp.zeros(3))
    alone, _ = optimizer.update(jnp.array([1.0, 0.0, 0.0]), start)
    among, _ = optimizer.update(jnp.array([1.0, 5.0, 5.0]), start)
    assert abs(float(alone[0] - among[0])) > 1e-5


def test_without_averaging_it_is_an_lstm():
    """The same key draws the same weights; only the fit of the head rounds differently."""
    plain, silent = LSTM(jax.random.key(3), (4, 3)), GlobalLSTM(jax.random.key(3), (4, 3), averaged=0)
    params = {"a": jnp.array([0.5, -1.0]), "b": jnp.array([[2.0]])}
    (ours, _), (theirs, _) = (it.update(params, it.init(params)) for it in (silent, plain))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)


def test_the_order_of_coordinates_makes_no_difference(optimizer):
    grads, order = jnp.array([0.5, -1.0, 2.0, 0.1]), np.array([2, 0, 3, 1])

    @eqx.filter_jit
    def run(grads):
        first, state = optimizer.update(grads, optimizer.init(grads))
        return optimizer.update(-grads, state)[0] + first

    np.testing.assert_allclose(run(grads)[order], run(grads[order]), rtol=1e-5)


@pytest.mark.parametrize("averaged", [-1, 4])
def test_more_averages_than_units_are_refused(averaged):
    with pytest.raises(ValueError, match=f"averaged is {averaged}, but the layers have 4, 3 units"):
        GlobalLSTM(jax.random.key(0), (4, 3), averaged=averaged)


def test_a_quarter_is_averaged_by_default():
    skeleton = eqx.filter_eval_shape(GlobalLSTM, jax.random.key(0))
    assert skeleton.averaged == 5
    with pytest.raises(ValueError, match="at least one layer"):
        GlobalLSTM(jax.random.key(0), ())
