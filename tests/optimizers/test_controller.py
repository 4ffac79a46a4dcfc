"""The controller: its equations written again in NumPy, Adam where it starts, and what it promises of its inputs."""

import dataclasses
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bygrad._core.definitions import FEWEST, HORIZON_PARTS, SAMPLE, TIME_SCALES
from bygrad.optimizers import Adam, AdamW, AdamWCosine, Controller, Optimizer, declare, parameter_count
from bygrad.optimizers.controller import as_matrix, log_reaches, sample, strides, time_features

SHAPES = {"bias": (3,), "head": (3, 5), "kernel": (3, 2, 2, 2), "long": (1100,), "scalar": (), "weight": (70, 40)}
MATRICES = {"bias": (3, 1), "head": (3, 5), "kernel": (3, 8), "long": (1100, 1), "scalar": (1, 1), "weight": (70, 40)}
SEEN = dict.fromkeys(SHAPES, (1, 1)) | {"long": (3, 1), "weight": (3, 3)}
"""Tensors, each as a matrix, and how far apart the rows and the columns of the grid lie that the features see."""


def random_trees(count: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [
        {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()} for _ in range(count)
    ]


def trained(seed: int = 0, horizon: int = 20, reach: bool = True) -> Controller:
    """A controller with meta-parameters that are zero nowhere."""
    optimizer = Controller(jax.random.key(seed), hidden=5, learning_rate=0.01, reach=reach)
    arrays, static = eqx.partition(optimizer, eqx.is_inexact_array)
    leaves, structure = jax.tree.flatten(arrays)
    rng = np.random.default_rng(seed)
    moved = [leaf + 0.3 * rng.standard_normal(leaf.shape).astype(np.float32) for leaf in leaves]
    return declare(eqx.combine(jax.tree.unflatten(structure, moved), static), horizon)


def run(optimizer: Optimizer, trees: list, params: dict) -> tuple[list, object]:
    update, state, updates = eqx.filter_jit(optimizer.update), optimizer.init(params), []
    for grads in trees:
        step, state = update(grads, state, params)
        updates.append(step)
    return updates, state


def reach_of(grid: np.ndarray, rows: int) -> float:
    """The mean square of a sum over so many rows: pair by pair, of all pairs of rows that the grid has."""
    seen = len(grid)
    pairs = [np.mean(grid[i] * grid[j]) for i in range(seen) for j in range(i)]
    return rows * np.mean(grid**2) + rows * (rows - 1) * max(0.0, np.mean(pairs) if pairs else 0.0)


class Reference:
    """The docstring of `Controller`, tensor by tensor and in float64."""

    def __init__(self, optimizer: Controller, params: dict[str, np.ndarray]):
        self.theta = {
            field.name: np.asarray(value, np.float64)
            for field in dataclasses.fields(optimizer)
            if eqx.is_inexact_array(value := getattr(optimizer, field.name))
        }
        self.rate, self.horizon, self.count = optimizer.learning_rate, int(optimizer.horizon), 0
        self.memory = {name: [np.zeros(leaf.shape), np.zeros(leaf.shape), 0.0] for name, leaf in params.items()}

    def update(self, grads: dict[str, np.ndarray], params: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        theta = self.theta
        time = min(self.count, self.horizon)
        self.count += 1
        tau = np.array(
            [math.tanh(time / scale - 1) for scale in TIME_SCALES]
            + [math.tanh(8 * (time / self.horizon - part)) for part in HORIZON_PARTS]
        )
        b1, b2 = 1 / (1 + np.exp(-theta["decays"]))
        depth = max(1, sum(grad.ndim > 1 for grad in grads.values()))
        updates = {}
        for name, grad in grads.items():
            g, p = grad.astype(np.float64), params[name].astype(np.float64)
            m, v, peak = self.memory[name]
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
            corrected = m / (1 - b1**self.count)
            d = np.sqrt(v / (1 - b2**self.count)) + 1e-8
            n, q = corrected / d, g / d
            down, across = SEEN[name]
            matrix = lambda x: x.reshape(MATRICES[name])  # noqa: B023, E731
            seen = lambda x: matrix(x)[::down, ::across]  # noqa: B023, E731
            rms = lambda x: np.sqrt(np.mean(seen(x) ** 2))  # noqa: B023, E731
            peak = max(peak, rms(g))
            reach = 32.0
            if g.ndim > 1:
                rows, columns = MATRICES[name]
                reach = np.sqrt(1 + max(reach_of(seen(n), rows), reach_of(seen(n).T, columns)))
            features = np.array(
                [
                    rms(n),
                    rms(q),
                    np.mean(seen(n * q)) / (rms(n) * rms(q)),
                    np.log(rms(g) / peak) / 4,
                    np.log10(rms(p) ** 2 + 1e-8) / 4,
                    np.log(rms(corrected) / rms(g)),
                    g.ndim / 2,
                    np.log(reach / 32) / 4,
                ]
            )[: theta["inputs"].shape[1]]
            hidden = np.tanh(theta["inputs"] @ features + theta["times"] @ tau + theta["bias"])
            o = theta["head"] @ hidden + theta["head_times"] @ tau + theta["head_bias"]
            size = g.size if g.ndim > 1 else 1024
            logs = np.log([depth / 2, size / 1024, reach / 32])
            o[2] += 4 * theta["powers"] @ logs[: theta["powers"].size]
            decayed = max(0.0, theta.get("weight_decay", 0.0)) * p
            updates[name] = -self.rate * np.exp(o[2]) * ((1 + o[0]) * n + o[1] * q + decayed)
            self.memory[name] = [m, v, peak]
        return updates


@pytest.mark.parametrize(("reach", "weight_decay"), [(False, None), (True, 2.0), (True, -2.0)])
def test_updates_are_those_of_the_equations(reach, weight_decay):
    params, *trees = random_trees(6)
    trees[3] = {name: 0.01 * leaf for name, leaf in trees[3].items()}
    optimizer = trained(horizon=4, reach=reach)  # the last step is beyond it
    if weight_decay is not None:
        optimizer = optimizer.decaying(weight_decay)
    updates, state = run(optimizer, trees, params)
    reference = Reference(optimizer, params)
    for grads, update in zip(trees, updates, strict=True):
        expected = reference.update(grads, params)
        for name, leaf in update.items():
            # Where weight decay cancels a step of a hundredth, what is left has the rounding of both.
            np.testing.assert_allclose(leaf, expected[name], rtol=2e-4, atol=1e-6, err_msg=name)
    peaks = [reference.memory[name][2] for name in sorted(SHAPES)]
    np.testing.assert_allclose(state.peak, peaks, rtol=1e-5)


@pytest.mark.parametrize("sign", [1, -1])
def test_no_exponent_makes_an_update_overflow_or_vanish(sign):
    params, *trees = random_trees(3)
    untrained, biases = Controller(jax.random.key(0)), (jnp.array([0.0, 0.0, sign * size]) for size in (10, 100))
    far, farther = (run(eqx.tree_at(lambda it: it.head_bias, untrained, bias), trees, params)[0] for bias in biases)
    for ours, theirs in zip(jax.tree.leaves(farther), jax.tree.leaves(far), strict=True):
        assert np.all(np.isfinite(ours)) and np.all(ours != 0)
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_an_untrained_controller_is_adam():
    params, *trees = random_trees(5)
    updates, _ = run(Controller(jax.random.key(0)), trees, params)
    expected, _ = run(Adam(3e-3, 0.9, 0.99), trees, params)
    for ours, theirs in zip(jax.tree.leaves(updates), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-8)


def test_an_untrained_controller_can_fall_along_a_cosine():
    horizon = 40
    params, *trees = random_trees(horizon + 1)
    falling = Controller(jax.random.key(0), b2=0.999, horizon=horizon, weight_decay=0.5).fall()
    updates, constants, expected = (
        run(optimizer, trees, params)[0]
        for optimizer in (falling, AdamW(3e-3, weight_decay=0.5), AdamWCosine(3e-3, weight_decay=0.5, horizon=horizon))
    )
    for ours, constant, theirs in zip(*map(jax.tree.leaves, (updates, constants, expected)), strict=True):
        assert np.all(np.abs(ours - theirs) <= 2e-3 * np.abs(constant) + 1e-7)  # what is left where both cancel


def test_its_steps_can_be_made_larger_and_smaller():
    params, grads = random_trees(2)
    for factor in (0.5, 3.0):
        ours, expected = (run(optimizer, [grads], params)[0] for optimizer in (trained().scaled(factor), trained()))
        for step, one in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(step, factor * np.asarray(one), rtol=1e-5)
    for factor in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="leaves no step to take"):
            trained().scaled(factor)


def test_it_has_the_size_that_it_says():
    optimizer = Controller(jax.random.key(0), reach=True)
    assert parameter_count(optimizer) == 542
    assert parameter_count(optimizer.decaying(0.1)) == 543
    assert parameter_count(Controller(jax.random.key(0))) == 525
    params = {"weight": jnp.zeros((300, 400)), "bias": jnp.zeros(400)}
    state = jax.eval_shape(optimizer.init, params)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    assert size <= 8.1 * 120_400


def test_a_configuration_says_whether_weights_decay_or_from_what_on():
    optimizer = Controller(jax.random.key(0), weight_decay=0.3)
    assert Controller.from_config(optimizer.config).weight_decay == 0.0
    assert Controller.from_config(optimizer.config | {"weight_decay": 1.0}).weight_decay == 1.0
    older = {name: value for name, value in Controller(jax.random.key(0)).config.items() if name != "weight_decay"}
    for config in (older, older | {"weight_decay": False}):
        assert Controller.from_config(config).weight_decay is None
    with pytest.raises(ValueError, match="weights would not decay"):
        Controller.from_config(older | {"weight_decay": -1.0})


def test_steps_are_in_proportion_to_a_power_of_the_depth():
    rng = np.random.default_rng(0)
    matrix, bias = rng.standard_normal((3, 4)).astype(np.float32), rng.standard_normal(4).astype(np.float32)
    optimizer = trained()

    def first(depth: int) -> np.ndarray:
        tree = {"biases": [bias] * 3, "matrices": [matrix] * depth}
        return np.asarray(run(optimizer, [tree], tree)[0][0]["biases"][0])

    power = 4 * float(optimizer.powers[0])
    assert abs(power) > 0.1
    np.testing.assert_allclose(first(0), first(1), rtol=1e-5)
    for depth in (2, 9):
        np.testing.assert_allclose(first(depth), depth**power * first(1), rtol=1e-4)


def test_steps_are_in_proportion_to_a_power_of_the_size():
    rng = np.random.default_rng(0)
    row, optimizer = rng.standard_normal(8).astype(np.float32), trained(reach=False)  # the reach differs

    def first(*shape: int) -> np.ndarray:  # of tensors that look the same but for how many entries they have
        tree = {"tensor": np.broadcast_to(row, (*shape, 8)).copy()}
        return np.asarray(run(optimizer, [tree], tree)[0][0]["tensor"]).reshape(-1, 8)[0]

    power = 4 * float(optimizer.powers[1])
    assert abs(power) > 0.1
    np.testing.assert_allclose(first(30), 30**power * first(1), rtol=1e-4)


@pytest.mark.parametrize("scale", [1e2, 1e6])
def test_the_scale_of_the_loss_makes_no_difference(scale):
    params, *trees = random_trees(4)
    updates, _ = run(trained(), trees, params)
    scaled, _ = run(trained(), [{name: scale * leaf for name, leaf in grads.items()} for grads in trees], params)
    for ours, theirs in zip(jax.tree.leaves(updates), jax.tree.leaves(scaled), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-7)


def test_another_horizon_is_another_run_and_the_same_program():
    params, *trees = random_trees(3)
    traces = []

    @eqx.filter_jit
    def second(optimizer, params, grads):
        traces.append(1)
        _, state = optimizer.update(grads, optimizer.init(params), params)
        return optimizer.update(grads, state, params)

    short, _ = second(trained(horizon=2), params, trees[0])
    long, state = second(trained(horizon=200), params, trees[0])
    assert len(traces) == 1
    assert int(state.horizon) == 200
    assert not np.allclose(short["weight"], long["weight"], rtol=1e-2)
    with pytest.raises(ValueError, match=r"The horizon is 0, but it counts the steps of a run"):
        trained(horizon=0)


def test_beyond_the_horizon_time_stands_still():
    at_end, beyond = (time_features(jnp.int32(count), jnp.int32(50)) for count in (50, 5_000))
    np.testing.assert_array_equal(at_end, beyond)
    before = time_features(jnp.int32(49), jnp.int32(50))
    assert np.any(before != at_end)


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(shape=st.lists(st.integers(0, 40), max_size=3).map(tuple) | st.tuples(*[st.integers(1, 5_000)] * 2))
@example(shape=(1024, 1024))
@example(shape=(512, 2))
@example(shape=(3, 3, 64, 128))
def test_a_sample_is_small_and_a_grid_of_the_whole(shape):
    rows, columns = as_matrix(shape)
    assert rows * columns == math.prod(shape)
    chosen = np.asarray(sample(jnp.zeros(shape)))
    down, across = strides(rows, columns)
    assert chosen.shape == (len(range(0, rows, down)), len(range(0, columns, across)))
    assert chosen.size <= SAMPLE
    assert chosen.size > SAMPLE / 5 or chosen.size == math.prod(shape)
    assert chosen.shape[1] >= min(columns, FEWEST) / 2


@pytest.mark.parametrize(("shape", "other"), [((3, 3, 8, 16), (16, 8, 3, 3)), ((5, 5, 2, 6), (6, 2, 5, 5))], ids=str)
def test_kernels_are_matrices_of_inputs_by_outputs_in_both_orders(shape, other):
    """Those of JAX have the outputs last, and those of PyTorch first."""
    assert as_matrix(shape) == (math.prod(shape[:-1]), shape[-1])
    assert as_matrix(other) == (other[0], math.prod(other[1:]))


def test_the_reach_of_a_tensor_is_how_far_a_step_moves_its_outputs():
    rng = np.random.default_rng(0)
    signs = np.sign(rng.standard_normal((3000, 200))).astype(np.float32)
    one_sign_a_column = np.broadcast_to(signs[0], signs.shape)

    def reach(n: np.ndarray) -> float:
        leaf = jnp.asarray(n)
        seen = sample(leaf)
        return 32 * float(jnp.exp(log_reaches(jnp.ravel(seen), jnp.mean(seen**2)[None], [leaf])[0]))

    np.testing.assert_allclose(reach(one_sign_a_column), 3000, rtol=1e-4)
    np.testing.assert_allclose(reach(one_sign_a_column.T), 3000, rtol=1e-4)
    half = np.where(rng.random(signs.shape) < 0.75, one_sign_a_column, -one_sign_a_column)  # means of 1/2
    np.testing.assert_allclose(reach(half), np.sqrt(np.mean(half.sum(0) ** 2)), rtol=0.2)
    assert reach(signs) < 400  # its root is 55; a sample of a few rows would see 3000 / 5 without the correction
    np.testing.assert_allclose(reach(np.zeros((30, 20), np.float32)), 1, rtol=1e-5)


@pytest.mark.parametrize("shape", [(40, 12), (12, 40)], ids=str)
def test_steps_are_in_proportion_to_a_power_of_the_reach(shape):
    power, untrained = -0.7, Controller(jax.random.key(0), reach=True)
    optimizer = eqx.tree_at(lambda it: it.powers, untrained, jnp.array([0.0, 0.0, power / 4]))
    tree = {"tensor": np.ones(shape, np.float32)}
    update = np.asarray(run(optimizer, [tree], tree)[0][0]["tensor"])
    np.testing.assert_allclose(update, -3e-3 * (np.sqrt(1 + 40**2) / 32) ** power, rtol=1e-3)


def test_the_gradient_of_the_meta_parameters_is_finite_where_nothing_moves():
    optimizer, params = trained(), {"weight": jnp.zeros((2, 3)), "bias": jnp.zeros(3)}

    @eqx.filter_jit
    @eqx.filter_grad
    def slope(optimizer, grads):
        _, state = optimizer.update(grads, optimizer.init(params), params)
        updates, _ = optimizer.update(grads, state, params)
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(updates))

    for grads in (params, {"weight": jnp.zeros((2, 3)), "bias": jnp.array([1.0, 0.0, 0.0])}):
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(slope(optimizer, grads)))


def test_what_cannot_work_is_refused():
    optimizer, params = Controller(jax.random.key(0)), jnp.ones(2)
    with pytest.raises(ValueError, match=r"called without params.*Call update\(grads, state, params\)"):
        optimizer.update(params, optimizer.init(params))
    with pytest.raises(ValueError, match="hidden is 0"):
        Controller(jax.random.key(0), hidden=0)
    with pytest.raises(ValueError, match=r"b2=1.0 are not an Adam to start as"):
        Controller(jax.random.key(0), b2=1.0)
    for decay in (-0.1, np.nan, np.inf):
        with pytest.raises(ValueError, match=r"weights would not decay.*None for a rule without"):
            Controller(jax.random.key(0), weight_decay=decay)
