"""Dials of a controller: each changes what it says, and turns add up."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bygrad.optimizers import Adam, Controller, Optimizer, dials_of, turned

SHAPES = {"bias": (3,), "head": (3, 5), "kernel": (3, 2, 2, 2), "long": (500,), "scalar": (), "weight": (20, 20)}


def random_trees(count: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [
        {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()} for _ in range(count)
    ]


def updates_along(optimizer: Optimizer, grads, params):
    """Return the update at every step."""
    params, step = jax.tree.map(jnp.asarray, params), eqx.filter_jit(optimizer.update)
    state, updates = optimizer.init(params), []
    for grad in grads:
        update, state = step(jax.tree.map(jnp.asarray, grad), state, params)
        updates.append(jax.tree.map(np.asarray, update))
    return updates


def test_dials_add_up():
    controller = Controller(jax.random.key(0), reach=True, weight_decay=0.1)
    assert set(dials_of(controller)) == {*dials_of(Controller(jax.random.key(0))), "reaches", "decay"}
    turns = {name: 0.3 * (1 + i) * (-1) ** i for i, name in enumerate(dials_of(controller))}
    one_by_one = controller
    for name, turn in turns.items():
        one_by_one = turned(turned(one_by_one, {name: 0.4 * turn}), {name: 0.6 * turn})
    for ours, theirs in zip(jax.tree.leaves(one_by_one), jax.tree.leaves(turned(controller, turns)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    for ours, theirs in zip(jax.tree.leaves(turned(controller, {})), jax.tree.leaves(controller), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(ValueError, match=r"^speed: no dial of this controller.* size, decay, gradient"):
        turned(controller, {"speed": 1.0, "size": 1.0})
    with pytest.raises(ValueError, match=r"^reaches: no dial"):
        turned(Controller(jax.random.key(0)), {"reaches": 1.0})
    assert float(turned(controller, {"decay": 2.0}).weight_decay) == pytest.approx(0.3)


def test_dials_change_what_they_say():
    horizon = 40
    params, *trees = random_trees(horizon + 1)
    plain = Controller(jax.random.key(0), horizon=horizon, reach=True)
    part = np.arange(horizon) / horizon
    schedules = {
        "size": np.full(horizon, np.sqrt(2)),
        "tilt": 2 ** (part - 0.5),
        "fall": (0.5 * (1 + np.cos(np.pi * part))) ** (1 / 3),
        "start": np.exp(0.2 * np.tanh(8 * (part - 1 / 8))),
    }
    usual = updates_along(plain, trees, params)
    for name, factors in schedules.items():
        changed = updates_along(turned(plain, {name: 1.0}), trees, params)
        for factor, ours, theirs in zip(factors, changed, usual, strict=True):
            for key in SHAPES:
                error = 4e-2 if name == "fall" else 5e-3  # of the height of the schedule, at its very end
                assert np.all(np.abs(ours[key] - factor * theirs[key]) <= error * np.abs(theirs[key])), name

    # The decays of Adam; and of the first step, whose direction is the same for n and q, the share of each.
    memory = turned(plain, {"memory": 1.0, "square_memory": -1.0})
    b1, b2 = (1 / (1 + np.exp(-(np.log(b / (1 - b)) + up))) for b, up in ((0.9, 0.5), (0.99, -0.7)))
    adam = updates_along(Adam(3e-3, b1, b2), trees, params)
    for ours, theirs in zip(updates_along(memory, trees, params), adam, strict=True):
        np.testing.assert_allclose(ours["weight"], theirs["weight"], rtol=1e-3, atol=1e-7)
    for name in ("mean", "gradient"):
        first = updates_along(turned(plain, {name: 1.0}), trees[:1], params)[0]
        np.testing.assert_allclose(first["weight"], 1.2 * usual[0]["weight"], rtol=1e-4)
    last = updates_along(turned(plain, {"gradient": 1.0}), trees, params)[-1]
    mean = usual[-1]["long"]
    square = np.zeros_like(mean)
    for tree in trees:
        square = 0.99 * square + 0.01 * tree["long"] ** 2
    bare = -3e-3 * trees[-1]["long"] / np.sqrt(square / (1 - 0.99**horizon))
    np.testing.assert_allclose(last["long"], mean + 0.2 * bare, rtol=1e-3, atol=1e-6)

    layers = updates_along(turned(plain, {"layers": 1.0}), trees[:1], params)[0]
    for key, shape in SHAPES.items():
        size = math.prod(shape) / 1024 if len(shape) > 1 else 1.0
        np.testing.assert_allclose(layers[key], size ** (4 * 0.03) * usual[0][key], rtol=1e-4)
    n = {key: -usual[0][key] / 3e-3 for key in SHAPES}
    reaches = updates_along(turned(plain, {"reaches": 1.0}), trees[:1], params)[0]
    head = n["head"]  # of a few numbers, sums whose squares are below what independent ones have count as those
    along = [max(np.mean(np.sum(head, axis) ** 2), head.shape[axis] * np.mean(head**2)) for axis in (0, 1)]
    reach = np.sqrt(1 + max(along))
    np.testing.assert_allclose(reaches["head"], (reach / 32) ** (4 * 0.03) * usual[0]["head"], rtol=1e-3)
    np.testing.assert_allclose(reaches["bias"], usual[0]["bias"], rtol=1e-6)
