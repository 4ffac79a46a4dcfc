"""The envelope: what an artifact says of its training, held against a problem, a gradient and a run."""

import subprocess
import sys
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bygrad.artifacts import find, load
from bygrad.optimizers import SGD, Envelope, Guard

LEARNED, FALLBACK = SGD(1.0), SGD(0.5)


def updates(envelope: Envelope, grads: list[float], params: jax.Array | None = None) -> tuple[list[float], dict]:
    params = jnp.ones(8) if params is None else params
    guard = Guard(LEARNED, FALLBACK, envelope=envelope)
    state, sizes = guard.init(params), []
    for grad in grads:
        step, state = guard.update(jnp.full(params.shape, grad), state)
        sizes.append(float(-step[0] / grad))
    return sizes, guard.report(state)


def test_it_is_read_from_an_artifact():
    envelope = Envelope.from_training(load(find("paper/mnist")).manifest.training)
    assert (envelope.parameter_count, envelope.horizon) == (15910, 100)
    low, high = envelope.gradient_scale
    assert 0 < low < 1e-8 < 1e-3 < high
    assert envelope.check([jnp.zeros((784, 20)), jnp.zeros(230)]) and not envelope.check([jnp.zeros(1000)])
    assert Envelope.from_training({}).check(jnp.zeros(3))


@pytest.mark.parametrize(
    "training",
    [
        *({"recipe": {"horizon": it}} for it in (10**12, 10**400, 0, -5, True, 2.5, "2")),
        *({"parameter_count": it} for it in (10**400, 0, -5, True, 2.5, [8], [9, 8], [0, 8], [8, 10**400], "88")),
        *(
            {"gradient_scale": {"0.01": low, "0.99": high}}
            for low, high in ((0, 1), (-1, 1), (2, 1), (1e-9, 10**400), (1e-9, 1e39), (True, 1), (None, 1), ("0", 1))
        ),
    ],
    ids=lambda training: f"{training}"[:60],
)
def test_what_is_no_size_is_not_known(training):
    envelope = Envelope.from_training(training)
    assert envelope.parameter_count is envelope.gradient_scale is envelope.horizon is None
    assert updates(envelope, [0.1])[0] == pytest.approx([1.0])


def test_sizes_of_a_mixture_and_of_a_large_network_are_known():
    training = {"parameter_count": [8, 7 * 10**9], "gradient_scale": {"0.01": 1e-9, "0.99": 1}}
    envelope = Envelope.from_training(training)
    assert (envelope.parameter_count, envelope.gradient_scale) == ((8, 7 * 10**9), (1e-9, 1))


def test_a_run_that_is_too_long_is_handed_over():
    sizes, report = updates(Envelope(horizon=2), [0.1] * 4)
    np.testing.assert_allclose(sizes, [1.0, 1.0, 0.5, 0.5])
    assert report["outside"] == 2 and report["envelope"].startswith("The run is longer")


def test_gradients_of_strange_sizes_are_handed_over_once_there_are_many():
    envelope = Envelope(gradient_scale=(0.01, 1.0))
    sizes, report = updates(envelope, [0.1, 10.0, 0.1, 0.1] + [10.0] * 10)
    assert sizes[:6] == pytest.approx([1.0] * 6) and sizes[-2:] == pytest.approx([0.5] * 2)
    assert report["envelope"].startswith("Most gradients")
    assert updates(envelope, [1e-5] * 12)[0][-1] == pytest.approx(0.5)
    inside = updates(envelope, [0.5] * 12)[1]
    assert inside["outside"] == 0 and inside["envelope"].startswith("The run was never outside")


def test_too_many_params_are_handed_over_or_refused_or_warned_of():
    with pytest.warns(UserWarning, match="far more or far fewer params.* There the fallback alone moves the params"):
        sizes, report = updates(Envelope(parameter_count=8), [0.1], jnp.ones(100))
    assert sizes == pytest.approx([0.5]) and report["envelope"].startswith("There are far more or far fewer")
    with pytest.raises(ValueError, match=r"has 100 params.*trained on 8.*nothing is known.*Train one for this size"):
        updates(Envelope(parameter_count=8, action="refuse"), [0.1], jnp.ones(100))
    with pytest.warns(UserWarning, match="has 100 params"):
        sizes, _ = updates(Envelope(parameter_count=8, action="warn"), [0.1], jnp.ones(100))
    assert sizes == pytest.approx([1.0])


def test_in_a_compiled_update_it_warns_once_or_raises():
    def steps(envelope: Envelope, count: int) -> None:
        guard = Guard(LEARNED, FALLBACK, envelope=envelope)
        update, state = eqx.filter_jit(guard.update), guard.init(jnp.ones(8))
        for _ in range(count):
            _, state = jax.block_until_ready(update(jnp.ones(8), state, jnp.ones(8), value=1.0))
        jax.effects_barrier()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        steps(Envelope(horizon=2, action="warn"), 5)
    assert ["The run is longer" in str(it.message) for it in caught] == [True]
    steps(Envelope(horizon=2, action="refuse"), 2)
    with pytest.raises(Exception, match="told to refuse that"):
        steps(Envelope(horizon=2, action="refuse"), 3)


REFUSED = """
for given in (dict(action="fallback"), dict(factor=0.5), dict(factor=float("nan"))):
    try:
        Envelope(horizon=2, **given)
    except ValueError as refused:
        print(refused)
"""


@pytest.mark.parametrize("where", ["optimizers", pytest.param("deploy.torch_rules.envelope", marks=pytest.mark.slow)])
def test_what_nothing_would_come_of_is_refused(where):
    pytest.importorskip("torch" if "torch" in where else "jax")
    # In a process of its own, since here the types are checked first.
    script = f"from bygrad.{where} import Envelope\n{REFUSED}"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert not ended.stderr
    given = ("action='fallback', factor=10.0", "action='fall back', factor=0.5", "action='fall back', factor=nan")
    for said, it in zip(ended.stdout.splitlines(), given, strict=True):
        assert said.startswith(it) and "'warn', 'fall back', 'refuse'" in said
