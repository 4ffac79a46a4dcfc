"""Optimizers side by side: every part sees its own, and nothing else changes."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bygrad.metagrads import Replay
from bygrad.optimizers import (
    LEARNED,
    LSTM,
    SGD,
    Adam,
    AdamWCosine,
    Controller,
    Lion,
    LogSign,
    Partition,
    declare,
    from_portable,
    to_portable,
)
from bygrad.problems import MLPClassifier
from bygrad.unroll import Windows, begin, cotangents, replay, rollout

RULES = (("*bias", "biases"), ("*", "rest"))


@pytest.fixture(scope="module")
def lstm() -> LSTM:
    return LSTM(jax.random.key(0), (4, 3))


@pytest.fixture(scope="module")
def family() -> MLPClassifier:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (20, 6), dtype=np.uint8), rng.integers(0, 3, 20, dtype=np.int32)
    return MLPClassifier(jnp.asarray(images), jnp.asarray(labels), 3, hidden=4, scale=1.0, batch=5)


def test_every_part_updates_its_own_as_it_would_alone(lstm):
    params = [{"weight": jnp.ones((2, 3)), "bias": jnp.zeros(3)}, {"weight": jnp.ones((3, 1)), "bias": jnp.zeros(1)}]
    partition = Partition(parts={"biases": Adam(0.1), "rest": lstm}, rules=RULES)
    state = partition.init(params)
    alone = {
        "bias": (Adam(0.1), [layer["bias"] for layer in params]),
        "weight": (lstm, [it["weight"] for it in params]),
    }
    states = {name: optimizer.init(own) for name, (optimizer, own) in alone.items()}
    for factor in (1.0, -0.5, 2.0):
        grads = jax.tree.map(lambda leaf, factor=factor: factor * (1 + leaf), params)
        updates, state = partition.update(grads, state, params)
        assert jax.tree.structure(updates) == jax.tree.structure(params)
        for name, (optimizer, _) in alone.items():
            own, states[name] = optimizer.update([layer[name] for layer in grads], states[name])
            for ours, theirs in zip([layer[name] for layer in updates], own, strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_a_horizon_is_declared_to_every_part():
    parts = {"convolutions": Controller(jax.random.key(0)).fall(), "rest": AdamWCosine()}
    params, ends = {"conv": {"weight": jnp.ones(3)}, "dense": jnp.ones(2)}, []
    for horizon in (7, 70):
        optimizer = declare(Partition(parts=parts), horizon)
        assert [int(part.horizon) for part in optimizer.parts.values()] == [horizon, horizon]
        state = optimizer.init(params)
        for _ in range(3):
            updates, state = optimizer.update(params, state, params)
        ends.append(updates)
    for short, long in zip(*map(jax.tree.leaves, ends), strict=True):
        assert np.all(np.abs(short) < 0.95 * np.abs(long))  # further down the cosine


def test_the_first_pattern_that_fits_decides():
    partition = Partition(parts={"a": SGD(), "b": SGD()}, rules=(("0/*", "a"), ("*weight", "b"), ("*", "a")))
    assert [partition.part_of(path) for path in ("0/weight", "1/weight", "1/bias", "")] == ["a", "b", "a", "a"]


def test_a_function_becomes_rules_that_are_json(lstm):
    params = {"x[0]*": jnp.zeros(2), "x0y": jnp.zeros(2), "y?": [jnp.zeros(1)]}
    partition = Partition.by(lambda path: "x" if "[" in path else "rest", {"x": lstm, "rest": lstm}, params)
    assert {path: partition.part_of(path) for path in ("x[0]*", "x0y", "y?/0")} == {
        "x[0]*": "x",
        "x0y": "rest",
        "y?/0": "rest",
    }
    with pytest.raises(ValueError, match="No pattern fits the path 'z'"):
        partition.part_of("z")
    assert Partition.from_config(json.loads(json.dumps(partition.config))).rules == partition.rules


def test_a_rule_without_a_part_and_a_path_without_a_rule_are_refused():
    with pytest.raises(ValueError, match=r"assign params to 'dense', but the parts are 'rest'"):
        Partition(parts={"rest": SGD()}, rules=(("*", "dense"),))
    with pytest.raises(ValueError, match=r"No pattern fits the path 'b' \(patterns: 'a'\).*End the rules"):
        Partition(parts={"rest": SGD()}, rules=(("a", "rest"),)).init({"a": jnp.zeros(1), "b": jnp.zeros(1)})


def test_parts_of_all_kinds_come_back_from_an_artifact_nested_ones_too(lstm):
    inner = Partition(parts={"biases": Lion(0.3), "rest": lstm}, rules=RULES)
    scaled = LSTM(jax.random.key(1), (2,), LogSign(7.0), output_scale=0.5)
    outer = Partition(parts={"first": inner, "others": scaled}, rules=(("0/*", "first"), ("*", "others")))
    taken = to_portable(outer)
    back = from_portable(taken._replace(config=json.loads(json.dumps(taken.config))), LEARNED)
    assert eqx.tree_equal(back, outer)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "GRU"}, "Part 'rest' is a 'GRU'.*Upgrade bygrad, or use"),
        ({"features": 99}, "Part 'rest' was trained with version 99.* Use the bygrad it was written with"),
    ],
)
def test_a_part_that_this_version_cannot_rebuild_is_refused(lstm, change, message):
    taken = to_portable(Partition(parts={"rest": lstm}, rules=(("*", "rest"),)))
    taken.config["parts"]["rest"] |= change
    with pytest.raises(ValueError, match=message):
        from_portable(taken, LEARNED)


@pytest.mark.slow
def test_equal_parts_are_one_optimizer_and_share_its_meta_gradient(lstm, family):
    """Two copies of an LSTM do what one does; the gradient of the one is the sum of theirs."""
    both = Partition(parts={"biases": lstm, "rest": lstm}, rules=RULES)
    keys = jax.random.split(jax.random.key(0), 2)

    @eqx.filter_jit
    def run(optimizer):
        end, trajectory = rollout(optimizer, family, begin(optimizer, family, keys), 3)
        return end.params, replay(optimizer, trajectory, cotangents(trajectory))

    (ours, gradients), (theirs, gradient) = run(both), run(lstm)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    total = jax.tree.map(jnp.add, gradients.parts["biases"], gradients.parts["rest"])
    for a, b in zip(jax.tree.leaves(total), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)


@pytest.mark.slow
def test_subsampling_the_coordinates_of_the_parts_is_unbiased(lstm, family):
    optimizer = Partition(parts={"biases": Adam(0.1), "rest": lstm}, rules=RULES)
    windows = Windows(family, horizon=2, truncation=2, instances=2)
    state = windows.begin(optimizer, jax.random.key(0))

    def flat(estimator, keys):
        estimate, _ = estimator.estimate(optimizer, windows, eqx.tree_at(lambda it: it.key, state, keys))
        return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(estimate.gradient)])

    # Keys decide the minibatches as well: each draw is compared with the exact gradient for its own.
    keys = jax.vmap(lambda key: jax.random.split(key, 2))(jax.random.split(jax.random.key(1), 600))
    errors = eqx.filter_jit(jax.vmap(lambda keys: flat(Replay(0.4), keys) - flat(Replay(), keys)))(keys)
    errors = np.asarray(errors, np.float64)
    scale = errors.std(axis=0, ddof=1) / len(errors) ** 0.5
    assert np.max(np.abs(errors[:, 3:])) > 0
    np.testing.assert_array_equal(errors[:, :3], 0)  # Adam's three are exact: its coordinates are not sampled
    assert np.max(np.abs(errors.mean(axis=0)[3:]) / np.maximum(scale[3:], 1e-9)) < 4.5
