"""A trained optimizer in a file does what it did before, or it does not load."""

import importlib.metadata
from pathlib import Path
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bygrad
from bygrad.artifacts import Artifact, ArtifactError, Trajectory, shipped_names
from bygrad.artifacts import load as load_artifact
from bygrad.artifacts import save as save_artifact
from bygrad.deploy.jax import identify, versions
from bygrad.optimizers import (
    BASELINES,
    LEARNED,
    LSTM,
    Adam,
    Controller,
    LogSign,
    Optimizer,
    Partition,
    Preprocessor,
    Scaled,
)
from bygrad.problems import Mixture, ProblemFamily

pytestmark = pytest.mark.core

ABOUT = {"name": "test/one", "training": {"family": "Quadratic"}, "validation": {"area": 1.5}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    bygrad.export(LSTM(jax.random.key(0), (4, 3)), tmp_path / "one.safetensors", **ABOUT)
    return tmp_path / "one.safetensors"


@eqx.filter_jit
def updates(optimizer: Optimizer) -> list[object]:
    params = {"scalar": jnp.float32(1.0), "vector": jnp.linspace(-1, 1, 5)}
    state, results = optimizer.init(params), []
    for factor in (1.0, -0.5, 1e-6):
        update, state = optimizer.update(jax.tree.map(lambda leaf, factor=factor: factor * leaf, params), state, params)
        results.append(update)
    return results


FOR_ALL = ("LSTM", "Partition")
"""Of layers, and of parts: what else there is travels by the same lines."""


@pytest.mark.parametrize(
    "name", [name if name in FOR_ALL else pytest.param(name, marks=pytest.mark.slow) for name in LEARNED]
)
def test_the_same_updates_bit_for_bit(name, tmp_path):
    optimizer = LEARNED[name](jax.random.key(1))
    bygrad.export(optimizer, tmp_path / "it.safetensors", **ABOUT)
    loaded = bygrad.load(tmp_path / "it.safetensors")
    assert jax.tree.structure(loaded) == jax.tree.structure(optimizer)
    for ours, theirs in zip(jax.tree.leaves(updates(loaded)), jax.tree.leaves(updates(optimizer)), strict=True):
        assert ours.dtype == theirs.dtype
        assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()


def test_the_configuration_travels_too(tmp_path):
    optimizer = LSTM(jax.random.key(1), (3,), Scaled(0.25), output_scale=2.0)
    bygrad.export(optimizer, tmp_path / "it.safetensors", **ABOUT)
    loaded = bygrad.load(str(tmp_path / "it.safetensors"))
    assert loaded.config == optimizer.config
    for ours, theirs in zip(jax.tree.leaves(updates(loaded)), jax.tree.leaves(updates(optimizer)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_what_was_said_about_it_is_kept(path):
    manifest = load_artifact(path).manifest
    assert (manifest.name, manifest.optimizer, manifest.features) == ("test/one", "LSTM", LSTM.feature_version)
    assert (dict(manifest.training), dict(manifest.validation)) == (ABOUT["training"], ABOUT["validation"])
    assert manifest.versions["bygrad"] == bygrad.__version__
    assert manifest.versions["jax"] == jax.__version__


@pytest.mark.parametrize("name", shipped_names())
def test_a_file_is_of_its_own_precision_where_jax_is_of_another(name):
    params, digest = {"conv/weight": jnp.ones((4, 3)), "b": jnp.zeros(3)}, identify(bygrad.load(name))["digest"]
    with jax.enable_x64(True):
        optimizer = bygrad.load(name)
        assert identify(optimizer)["digest"] == digest
        state = jax.eval_shape(optimizer.init, params)
        updates, after = jax.eval_shape(optimizer.update, params, state, params, key=jax.random.key(0))
        assert jax.tree.map(lambda leaf: leaf.dtype, after) == jax.tree.map(lambda leaf: leaf.dtype, state)
        assert np.float64 not in [leaf.dtype for leaf in jax.tree.leaves((optimizer, state, updates))]


def test_a_source_tree_that_is_not_installed_knows_its_version(monkeypatch):
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: real({"bygrad": "absent!"}.get(name, name)))
    assert versions()["bygrad"] == bygrad.__version__


def test_an_unknown_name_is_refused():
    with pytest.raises(ArtifactError, match="'paper/nothing' is neither a file nor the name") as caught:
        bygrad.load("paper/nothing")
    assert all(name in str(caught.value) for name in shipped_names())


def test_a_tampered_file_is_refused(path):
    data = path.read_bytes()
    for place in (8 + 40, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(ArtifactError, match=path.name):
            bygrad.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": "GRU"}, "is a 'GRU', which this version of bygrad does not have"),
        ({"features": 99}, "trained with version 99 of LSTM's features"),
        ({"config": {"layers": [4, 4]}}, "is not one of LSTM"),
        ({"optimizer": "Partition", "config": {"parts": [], "rules": []}}, "is not one of Partition .AttributeError"),
    ],
    ids=["class", "features", "config", "kind"],
)
def test_a_whole_file_that_this_version_cannot_rebuild_is_refused(path, change, message):
    artifact = load_artifact(path)
    fields = {name: getattr(artifact.manifest, name) for name in type(artifact.manifest).__dataclass_fields__}
    save_artifact(path, Artifact(type(artifact.manifest)(**{**fields, **change}), artifact.tensors))
    with pytest.raises(ArtifactError, match=message) as caught:
        bygrad.load(path)
    assert str(caught.value).startswith(str(path))


def test_what_takes_no_finite_step_is_not_written(tmp_path):
    broken = eqx.tree_at(lambda it: it.head_bias, LSTM(jax.random.key(0), (2,)), jnp.nan)
    with pytest.raises(ValueError, match=r"The updates of this LSTM are not finite.*Nothing was written"):
        bygrad.export(broken, tmp_path / "broken.safetensors", name="mine/broken", training={}, validation={})
    assert not list(tmp_path.iterdir())


def test_what_could_not_be_read_again_is_not_written(tmp_path):
    class Raw(Preprocessor):
        features = 1

        def __call__(self, grads):
            return grads[None]

    with pytest.raises(ValueError, match=r"could be written, but never read again \(.*Raw.*bygrad's own classes"):
        bygrad.export(LSTM(jax.random.key(0), (4, 3), Raw()), tmp_path / "raw.safetensors", **ABOUT)
    assert not list(tmp_path.iterdir())


class Others:
    """Classes of somebody's own, who took names of bygrad's."""

    class LogSign(Preprocessor):
        features: ClassVar[int] = 2
        p: float = eqx.field(static=True, default=10.0)

        def __call__(self, grads):
            return jnp.stack([jnp.sign(grads), jnp.tanh(100 * grads)])

    class Adam(Adam):
        pass

    class LSTM(LSTM):
        pass


@pytest.mark.parametrize(
    "build",
    [
        lambda: LSTM(jax.random.key(0), (2,), Others.LogSign()),
        lambda: Others.LSTM(jax.random.key(0), (2,)),
        lambda: Partition(parts={"a": LSTM(jax.random.key(0), (2,), Others.LogSign())}, rules=(("*", "a"),)),
        lambda: Partition(parts={"a": Others.Adam()}, rules=(("*", "a"),)),
    ],
    ids=["a preprocessor", "a rule", "of a part", "a part"],
)
def test_what_has_a_name_of_bygrads_is_not_taken_for_it(build, tmp_path):
    with pytest.raises(ValueError, match=r"never read again \(another would be read in its place.*bygrad's own"):
        bygrad.export(build(), tmp_path / "it.safetensors", **ABOUT)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "build",
    [
        lambda: Controller(jax.random.key(0), 4).with_depth(7),
        lambda: Partition(parts={"a": Controller(jax.random.key(0), 4).with_depth(7)}, rules=(("*", "a"),)),
        lambda: LSTM(jax.random.key(0), (2,), LogSign(5.0), state_dtype="bfloat16"),
        lambda: Partition(parts={name: kind() for name, kind in BASELINES.items()}, rules=(("*", "Adam"),)),
    ],
    ids=["depth", "depth of a part", "LSTM", "baselines"],
)
def test_what_is_not_default_is_given_back(build, tmp_path):
    optimizer = build()
    bygrad.export(optimizer, tmp_path / "it.safetensors", **ABOUT)
    assert bygrad.load(tmp_path / "it.safetensors").config == optimizer.config


@pytest.mark.parametrize(
    "rules",
    [
        (("conv[[]0]/w", "a"), ("head/b", "b")),  # as `Partition.by` makes them
        (("*/w", "a"), ("[!h]*/?", "a"), ("*b", "b")),
        (("*conv*weight", "a"), ("*", "b")),
    ],
    ids=["paths", "patterns", "the rest"],
)
def test_a_partition_is_written_and_verified_with_an_array_for_each_part(rules, tmp_path):
    parts = {"a": LSTM(jax.random.key(0), (2,)), "b": LSTM(jax.random.key(1), (2,))}
    path = tmp_path / "it.safetensors"
    artifact = bygrad.export(Partition(parts=parts, rules=rules), path, **ABOUT)
    golden = Trajectory.from_fields(artifact.manifest.trajectory)
    read = bygrad.load(path)
    assert set(map(read.part_of, golden.steps[0].params)) == {"a", "b"}
    assert bygrad.deploy.verify(path)[0].deviation == 0


@pytest.mark.parametrize(
    "training", [{"recipe": "300 meta-steps"}, {"recipe": None, "gradient_scale": [1, 2]}], ids=str
)
def test_what_is_said_of_the_training_may_be_anything(training, tmp_path):
    about = ABOUT | {"training": training}
    bygrad.export(LSTM(jax.random.key(0), (4, 3)), tmp_path / "one.safetensors", **about)
    state = bygrad.deploy.optax(tmp_path / "one.safetensors", guard=Adam()).init(jnp.ones(3))
    envelope = state.optimizer.envelope
    assert envelope.horizon is envelope.gradient_scale is None


class Slope(ProblemFamily):
    rows: int = 2
    steep: float = 0.25

    def sample(self, key):
        return ()

    def init(self, instance, key):
        return {"a": jnp.zeros(3), "b": jnp.zeros((self.rows, 3))}

    def loss(self, params, instance, key):
        return self.steep * sum(jnp.sum(leaf) for leaf in params.values())


def test_what_it_was_trained_on_gives_a_guard_its_limits(tmp_path):
    """Nine params, whose gradients are all the same."""
    optimizer = LSTM(jax.random.key(0), (3,))
    training = bygrad.trained_on(optimizer, Slope(), bygrad.Recipe(horizon=5))
    path = tmp_path / "it.safetensors"
    bygrad.export(optimizer, path, name="test/one", training=training, validation={})
    envelope = bygrad.Envelope.from_training(load_artifact(path).manifest.training)
    assert (envelope.parameter_count, envelope.gradient_scale, envelope.horizon) == (9, (0.25, 0.25), 5)
    assert "Slope" in str(training["family"])


def test_what_was_trained_on_a_mixture_is_within_its_limits_on_each_member(tmp_path):
    optimizer, mixture = LSTM(jax.random.key(0), (3,)), Mixture((Slope(), Slope(1000, 4.0)), (1.0, 3.0))
    training = bygrad.trained_on(optimizer, mixture, bygrad.Recipe(horizon=5))
    bygrad.export(optimizer, tmp_path / "it.safetensors", name="test/one", training=training, validation={})
    envelope = bygrad.Envelope.from_training(load_artifact(tmp_path / "it.safetensors").manifest.training)
    assert (envelope.parameter_count, envelope.gradient_scale) == ((9, 3003), (0.25, 4.0))
    inside = [envelope.check(jnp.zeros(size)) for size in (1, 9, 300, 30_000, 31_000)]
    assert inside == [True, True, True, True, False]
    with pytest.raises(ValueError, match="has 31,000 params, and the optimizer was trained on 9 to 3,003,"):
        bygrad.Envelope(envelope.parameter_count, action="refuse").check(jnp.zeros(31_000))


def test_only_learned_optimizers_are_exported(tmp_path):
    with pytest.raises(TypeError, match="Adam is not a learned optimizer"):
        bygrad.export(Adam(), tmp_path / "adam.safetensors", **ABOUT)
    assert not list(tmp_path.iterdir())
