"""Learned optimizers as named arrays and JSON values: they come back the same, and nothing else comes back."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

from bygrad.optimizers import LEARNED, LSTM, Adam, LogSign, Optimizer, Portable, Scaled, from_portable, to_portable


@pytest.fixture(scope="module")
def portable() -> Portable:
    return to_portable(LSTM(jax.random.key(3), (4, 3)))


@pytest.mark.parametrize("kind", LEARNED.values())
def test_a_configuration_and_a_key_make_the_same_optimizer(kind):
    optimizer = kind(jax.random.key(7))
    config = json.loads(json.dumps(optimizer.config))
    assert eqx.tree_equal(kind.from_config(config, jax.random.key(7)), optimizer)


@pytest.mark.parametrize(
    "build",
    [
        lambda: LSTM(jax.random.key(1), (3,), Scaled(0.25), output_scale=2.0),
        lambda: LSTM(jax.random.key(2), (2, 3, 4), LogSign(7.0), output_scale=1e-3),
    ],
    ids=["Scaled", "LogSign"],
)
def test_the_configuration_is_json_and_decides_what_it_does(build):
    optimizer = build()
    taken = to_portable(optimizer)
    assert taken.name == "LSTM"
    assert taken.features == LSTM.feature_version
    config = json.loads(json.dumps(taken.config))
    back = from_portable(taken._replace(config=config), LEARNED)
    grads = jnp.linspace(-1, 1, 5)
    ours, theirs = (it.update(grads, it.init(grads))[0] for it in (back, optimizer))
    np.testing.assert_array_equal(ours, theirs)


def test_an_optimizer_that_is_not_learned_is_refused():
    with pytest.raises(TypeError, match="Adam is not a learned optimizer"):
        to_portable(Adam())


def test_a_rule_from_outside_is_refused_whether_it_was_learned_or_not():
    class Mine(Optimizer):
        log_rate: Array = eqx.field(default_factory=lambda: jnp.log(1e-2))

        def init(self, params):
            return ()

        def update(self, grads, state, params=None, *, value=None, key=None):
            return jax.tree.map(lambda grad: -jnp.exp(self.log_rate) * grad, grads), state

    with pytest.raises(TypeError, match=r"Mine .* holds no code.*equinox\.tree_serialise_leaves"):
        to_portable(Mine())


def test_an_unknown_class_is_refused(portable):
    with pytest.raises(ValueError, match=r"is a 'GRU', which this version of bygrad does not have \(it has LSTM, "):
        from_portable(portable._replace(name="GRU"), LEARNED)


@pytest.mark.parametrize("version", [0, 2])
def test_another_version_of_the_features_is_refused(portable, version):
    with pytest.raises(ValueError, match=f"trained with version {version} of LSTM's features, .* computes version 1"):
        from_portable(portable._replace(features=version), LEARNED)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.pop("head"), "head stand"),
        (lambda t: t.update(extra=np.zeros(1, np.float32)), "extra stand"),
        (lambda t: t.update(tail=t.pop("head")), "head, tail stand"),
        (lambda t: t.update({"layers/0/bias": t["layers/1/bias"]}), r"layers/0/bias is float32\[12\].*float32\[16\]"),
        (lambda t: t.update(head=t["head"][None]), r"head is float32\[1, 3\].*needs float32\[3\]"),
        (lambda t: t.update(head=np.zeros(3, np.int32)), r"head is int32\[3\].*needs float32\[3\]"),
    ],
    ids=["missing", "extra", "renamed", "swapped", "reshaped", "integer"],
)
def test_other_tensors_are_refused_by_name(portable, change, named):
    tensors = dict(portable.tensors)
    change(tensors)
    with pytest.raises(ValueError, match=named):
        from_portable(portable._replace(tensors=tensors), LEARNED)


@pytest.mark.parametrize(
    "change",
    [
        {"preprocess": {"name": "Square"}},
        {"preprocess": {"name": "LogSign", "p": -1.0}},
        {"preprocess": {"name": "LogSign", "q": 1.0}},
        {"preprocess": {}},
        {"layers": []},
        {"layers": [0]},
        {"layers": 4},
        {"output_scale": "large"},
        {"peepholes": True},
    ],
    ids=str,
)
def test_a_configuration_that_does_not_exist_is_refused(portable, change):
    with pytest.raises(ValueError, match="is not one of LSTM"):
        from_portable(portable._replace(config=portable.config | change), LEARNED)


@pytest.mark.parametrize("name", ["RNNprop", "MLPRule", "Celo2", "STAR"])
def test_a_setting_that_left_no_trace_in_the_tensors_is_not_guessed(name):
    whole = to_portable(LEARNED[name](jax.random.key(0)))
    for key in whole.config:
        config = {other: value for other, value in whole.config.items() if other != key}
        with pytest.raises(ValueError, match=f"is not one of {name} .*{key}"):
            from_portable(whole._replace(config=config), LEARNED)


@pytest.mark.parametrize("added", ["state_dtype", "weight_decay"])
def test_settings_that_older_files_lack_are_what_they_were(added):
    for name in ("LSTM", "Controller"):
        whole = to_portable(LEARNED[name](jax.random.key(0)))
        config = {key: value for key, value in whole.config.items() if key != added}
        assert to_portable(from_portable(whole._replace(config=config), LEARNED)).config == whole.config


@pytest.mark.parametrize("where", [{"layers": [2] * 101}, {"parts": {"a": {"config": {"hidden": [2] * 10_000}}}}])
def test_a_configuration_that_would_take_hours_to_build_is_refused_at_once(portable, where):
    with pytest.raises(ValueError, match=r"a list of (101|10,000) numbers, and no rule has more than 100 layers"):
        from_portable(portable._replace(config=portable.config | where), LEARNED)


def test_an_error_is_no_longer_than_one_can_read(portable):
    with pytest.raises(ValueError, match="is not one of LSTM") as caught:
        from_portable(portable._replace(config=portable.config | {"preprocess": {"name": "x" * 10_000}}), LEARNED)
    assert len(str(caught.value)) < 1_000


@pytest.mark.parametrize("key", ["layers", "preprocess", "output_scale"])
def test_a_configuration_that_lacks_something_is_refused(portable, key):
    config = {name: value for name, value in portable.config.items() if name != key}
    with pytest.raises(ValueError, match=f"is not one of LSTM .KeyError: '{key}'"):
        from_portable(portable._replace(config=config), LEARNED)
