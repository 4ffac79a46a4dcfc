"""NTM-BFGS: steps in NumPy, windows against matrices, and that the structure can express BFGS exactly."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bygrad.optimizers import LEARNED, Matrix, MemoryLSTM, Scaled, Window, from_portable, to_portable

from .test_global_lstm import cells_in_numpy


@pytest.fixture(scope="module")
def optimizer() -> MemoryLSTM:
    """With heads that all do something."""
    untrained = MemoryLSTM(jax.random.key(0), (4, 3), Scaled(), averaged=1, read_heads=2, write_heads=3)
    heads = jax.random.normal(jax.random.key(1), untrained.heads.shape)
    return eqx.tree_at(lambda it: (it.heads, it.heads_bias), untrained, (heads, 0.1 * heads[:, 0]))


@pytest.mark.core
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


@pytest.mark.core
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
    """Points and the inverse Hessians that led to them, of BFGS with unit steps on a quadratic."""
    point, inverse, course = start, np.eye(len(start)), []
    for _ in range(steps):
        s = -inverse @ (hessian @ point)
        y = hessian @ s
        point = point + s
        course.append((point, inverse))
        left = np.eye(len(s)) - np.outer(s, y) / (s @ y)
        inverse = left @ inverse @ left.T + np.outer(s, s) / (s @ y)
    return course


def bfgs_cells(layers: object, inputs: jax.Array, cells: jax.Array, averaged: object) -> tuple[jax.Array, jax.Array]:
    r"""What cells would have to do for BFGS with unit steps, in place of `run_cells`: a step to ask, a step to move.

    With $s$ the last update, $y$ the change of the gradient $g$ that it made, and $H$ the memory: the first step asks
    for $Hg$, and averages $sy$ and $sg$. The second has it, knows $Hy = Hg + s$ since $s = -H(g - y)$, averages $yHy$
    and $gHy$, writes

    $H' = H + (1 + y^\top H y / s^\top y) s s^\top / s^\top y - (H y s^\top + s (H y)^\top) / s^\top y$,

    and moves by $-H'g$. Both are done by each coordinate with its own entries and the two averages.
    """
    (grad, reading), (s, before, sy, sg, moves, *_) = inputs, cells

    def products(grad, reading, s, before, moves):
        y, hy = grad - before, reading + s
        return jnp.where(moves, jnp.stack([y * hy, grad * hy]), jnp.stack([s * y, s * grad]))

    def one(grad, reading, s, before, sy, sg, moves, first, second):
        hy, nothing = reading + s, jnp.zeros(())
        # The memory divides by n, and so do the averages: the two cancel but for the share of each. Before anything has
        # moved, there is nothing to write.
        share = jnp.where(sy > 0, 1 / jnp.where(sy > 0, sy, 1), 0)
        a = jnp.stack([(1 + first * share) * share * s, -share * hy, -share * s])
        b = jnp.stack([s, s, hy])
        update = -(reading + a @ jnp.stack([sg, sg, second]))
        move = jnp.concatenate([jnp.stack([update, nothing]), a, b]), jnp.stack([update, grad, sy, sg, nothing])
        ask = jnp.stack([nothing, grad, *[nothing] * 6]), jnp.stack([s, before, first, second, nothing + 1])
        return jax.tree.map(lambda yes, no: jnp.where(moves, yes, no), move, ask)

    own = grad, reading, s, before, moves
    first, second = jnp.mean(jax.vmap(products, out_axes=1)(*own), axis=1)
    said, kept = jax.vmap(one, (*[0] * 7, None, None), 1)(grad, reading, s, before, sy, sg, moves, first, second)
    return said, cells.at[:5].set(kept)


@pytest.mark.parametrize("memory", [Matrix(), Window(8)], ids=["NTM-BFGS", "NTM-L-BFGS"])
def test_one_read_head_three_write_heads_and_two_averages_express_bfgs(memory, monkeypatch):
    """In two steps for each of BFGS: the optimizer's own reads, writes and their timing, with cells that are exact."""
    rng, n, steps = np.random.default_rng(0), 5, 4
    root = rng.standard_normal((n, n))
    hessian, start = root @ root.T / n + 0.5 * np.eye(n), rng.standard_normal(n)
    with jax.enable_x64(True):
        optimizer = MemoryLSTM(jax.random.key(0), (8,), Scaled(), output_scale=1.0, averaged=2, memory=memory)
        heads = optimizer.head, optimizer.head_bias, optimizer.heads, optimizer.heads_bias
        rows = jnp.eye(8)
        exact = rows[0], jnp.zeros(()), rows[1:], jnp.zeros(7)
        assert [it.shape for it in exact] == [it.shape for it in heads]  # one read head, three write heads
        optimizer = eqx.tree_at(lambda it: (it.head, it.head_bias, it.heads, it.heads_bias), optimizer, exact)
        monkeypatch.setattr("bygrad.optimizers.memory.run_cells", bfgs_cells)
        point, state = jnp.asarray(start), optimizer.init(jnp.asarray(start))
        for expected, inverse in bfgs_in_numpy(hessian, start, steps):
            for _ in range(2):
                updates, state = optimizer.update(jnp.asarray(hessian) @ point, state)
                point = point + updates
            np.testing.assert_allclose(point, expected, rtol=1e-9)
            np.testing.assert_allclose(memory.read(state.memory, jnp.eye(n)).T, inverse, rtol=1e-8, atol=1e-10)


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
