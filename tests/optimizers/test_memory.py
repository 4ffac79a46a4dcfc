"""NTM-BFGS: steps in NumPy, windows against matrices, and that the structure can express BFGS exactly."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bygrad.optimizers import LEARNED, Matrix, MemoryLSTM, Scaled, Window, from_portable, to_portable

from .test_global_lstm import cells_in_numpy

pytestmark = pytest.mark.core


@pytest.fixture(scope="module")
def optimizer() -> MemoryLSTM:
    """With heads that all do something."""
    untrained = MemoryLSTM(jax.random.key(0), (4, 3), Scaled(), averaged=1, read_heads=2, write_heads=3)
    heads = jax.random.normal(jax.random.key(1), untrained.heads.shape)
    return eqx.tree_at(lambda it: (it.heads, it.heads_bias), untrained, (heads, 0.1 * heads[:, 0]))


def test_steps_are_those_of_numpy(optimizer):
    grads = jnp.array([0.5, -1.0, 2.0, -0.1])
    state = optimizer.init(grads)
    cells, query, memory = np.zeros((14, 4)), np.zeros((2, 4)), np.eye(4)
    head, heads = np.asarray(optimizer.head, float), np.asarray(optimizer.heads, float)
    for factor in (1.0, -2.0, 0.5, 0.7):
        updates, state = optimizer.update(factor * grads, state)
        reading = query @ memory.T
        seen = np.concatenate([factor * np.asarray(grads, float)[None], reading])
        top, cells = cells_in_numpy(optimizer.layers, seen, cells, averaged=1)
        said = heads @ top + np.asarray(optimizer.heads_bias, float)[:, None]
        query, a, b = said[:2], said[2:5], said[5:]
        memory = memory + sum(np.outer(a[w], b[w]) for w in range(3)) / 4
        np.testing.assert_allclose(updates, 0.1 * (head @ top + float(optimizer.head_bias)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(state.memory, memory, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state.query, query, rtol=1e-4, atol=1e-5)


def test_a_window_that_forgets_nothing_is_the_matrix(optimizer):
    windowed = eqx.tree_at(lambda it: it.memory, optimizer, Window(5), is_leaf=lambda it: isinstance(it, Matrix))
    grads = jnp.array([0.5, -1.0, 2.0, -0.1])
    states = [it.init(grads) for it in (optimizer, windowed)]
    for factor in (1.0, -2.0, 0.5, 0.7):
        (ours, states[0]), (theirs, states[1]) = (
            it.update(factor * grads, state) for it, state in zip((optimizer, windowed), states, strict=True)
        )
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_a_window_forgets_the_oldest_products():
    window, rng = Window(2), np.random.default_rng(0)
    memory = window.start(3, 1, jnp.float32)
    pairs = rng.standard_normal((4, 2, 1, 3)).astype(np.float32)
    for a, b in pairs:
        memory = window.write(memory, jnp.asarray(a), jnp.asarray(b))
    expected = np.eye(3) + sum(np.outer(a, b) for a, b in pairs[-2:]) / 3
    vectors = rng.standard_normal((2, 3)).astype(np.float32)
    np.testing.assert_allclose(window.read(memory, jnp.asarray(vectors)), vectors @ expected.T, rtol=1e-5)


def test_the_untrained_memory_is_the_identity():
    untrained = MemoryLSTM(jax.random.key(0), (4, 3))
    state = untrained.init(jnp.zeros(3))
    for _ in range(2):
        _, state = untrained.update(jnp.ones(3), state)
    np.testing.assert_array_equal(state.memory, np.eye(3))
    assert np.any(state.query != 0)


def bfgs_in_numpy(hessian: np.ndarray, start: np.ndarray, steps: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Points and inverse Hessians of BFGS with exact line searches on a quadratic."""
    point, inverse, course = start, np.eye(len(start)), []
    for _ in range(steps):
        grad = hessian @ point
        direction = -inverse @ grad
        s = -(grad @ direction) / (direction @ hessian @ direction) * direction
        y = hessian @ s
        left = np.eye(len(s)) - np.outer(s, y) / (s @ y)
        inverse = left @ inverse @ left.T + np.outer(s, s) / (s @ y)
        point = point + s
        course.append((point, inverse))
    return course


@pytest.mark.parametrize("memory", [Matrix(), Window(4)], ids=["NTM-BFGS", "NTM-L-BFGS"])
def test_one_read_head_three_write_heads_and_two_averages_express_bfgs(memory):
    r"""Nothing but these: reads of one vector at a time, three products, and two means over coordinates; all the rest
    is done by each coordinate with what it knows: its own entries and the means.

    $H' = H + (1 + y^\top H y / s^\top y) s s^\top / s^\top y - (H y s^\top + s (H y)^\top) / s^\top y$.
    """
    rng, n, steps = np.random.default_rng(0), 5, 4
    root = rng.standard_normal((n, n))
    hessian, start = root @ root.T / n + np.eye(n), rng.standard_normal(n)
    course = bfgs_in_numpy(hessian, start, steps)

    with jax.enable_x64(True):
        point, kept = jnp.asarray(start), memory.start(n, 3, jnp.float64)
        for expected, inverse in course:
            grad = jnp.asarray(hessian) @ point
            direction = -memory.read(kept, grad[None])[0]
            # The line search is the problem's affair.
            step = -(grad @ direction) / (direction @ jnp.asarray(hessian) @ direction)
            s, y = step * direction, jnp.asarray(hessian) @ (step * direction)
            reading = memory.read(kept, y[None])[0]
            sy, yhy = jnp.mean(s * y), jnp.mean(y * reading)  # the two averages: 1/n of the products
            # The memory divides by n, and so do the means: the two cancel but for the share of each.
            a = jnp.stack([(1 + yhy / sy) * s / sy, -reading / sy, -s / sy])
            b = jnp.stack([s, s, reading])
            kept = memory.write(kept, a, b)
            point = point + s
            np.testing.assert_allclose(point, expected, rtol=1e-9)
            np.testing.assert_allclose(memory.read(kept, jnp.eye(n)).T, inverse, rtol=1e-8, atol=1e-10)


def test_kinds_of_memory_come_back_from_a_file(optimizer):
    for kind in (Matrix(), Window(7)):
        kept = eqx.tree_at(lambda it: it.memory, optimizer, kind, is_leaf=lambda it: isinstance(it, Matrix))
        assert eqx.tree_equal(from_portable(to_portable(kept), LEARNED), kept)


def test_what_cannot_remember_is_refused():
    with pytest.raises(ValueError, match="steps is 0"):
        Window(0)
    with pytest.raises(ValueError, match="read_heads=1, write_heads=0"):
        MemoryLSTM(jax.random.key(0), write_heads=0)
    config = to_portable(MemoryLSTM(jax.random.key(0), (2,))).config
    with pytest.raises(ValueError, match="Unknown memory 'Tape'"):
        MemoryLSTM.from_config(config | {"memory": {"name": "Tape"}})
