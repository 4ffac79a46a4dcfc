"""Windows of a horizon: staggered at the start, renewed at a border, and nowhere else."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bygrad._core import trees
from bygrad.optimizers import LSTM, SGD, Adam, Controller
from bygrad.problems import Mixture, Oracle, ProblemFamily, Quadratic
from bygrad.unroll import Windows, apart, begin, rollout

pytestmark = pytest.mark.core

OPTIMIZERS = {"LSTM": lambda: LSTM(jax.random.key(0), (3,)), "Adam": Adam}


def rows(tree: object, i: int, *, last: bool = False) -> list[np.ndarray]:
    """What belongs to one instance, in the leaves whose first axis (or last but one) is that of instances."""
    return [np.asarray(leaf[..., i, :] if last else leaf[i]) for leaf in jax.tree.leaves(tree)]


def equal(left: list[np.ndarray], right: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize(
    ("horizon", "truncation", "instances", "steps"),
    [(6, 2, 5, [0, 0, 2, 2, 4]), (6, 6, 3, [0, 0, 0]), (3, 1, 2, [0, 1]), (400, 20, 4, [0, 100, 200, 300])],
    ids=str,
)
def test_instances_start_as_if_of_different_ages(horizon, truncation, instances, steps):
    windows = Windows(Quadratic(2), horizon, truncation, instances)
    np.testing.assert_array_equal(windows.begin(Adam(), jax.random.key(0)).step, steps)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_instance_is_renewed_when_its_horizon_is_over_and_only_then(name):
    optimizer, windows = OPTIMIZERS[name](), Windows(Quadratic(2), horizon=6, truncation=2, instances=3)
    matrix = name == "LSTM"  # its state is [units, instances, coordinates]

    @eqx.filter_jit
    def advance(inner):
        renewed = windows.renew(optimizer, inner)
        return renewed, rollout(optimizer, windows.family, renewed, windows.truncation)[0]

    inner = eqx.filter_jit(windows.begin)(optimizer, jax.random.key(0))
    fresh_state = rows(inner.optimizer_state, 0, last=matrix)
    seen = []
    for _ in range(5):
        before, (renewed, inner) = inner, advance(inner)
        for i in range(3):
            step = int(before.step[i])
            parts = [rows((it.params, it.instance), i) for it in (before, renewed)]
            states = [rows(it.optimizer_state, i, last=matrix) for it in (before, renewed)]
            if step < windows.horizon:
                assert int(renewed.step[i]) == step
                assert equal(*parts) and equal(*states)
                assert before.key[i] == renewed.key[i]
            else:
                assert (step, int(renewed.step[i])) == (6, 0)
                assert not equal(*parts)
                assert equal(states[1], fresh_state)
                assert before.key[i] != renewed.key[i]
                seen.append((i, parts[1][0].tobytes()))
            assert int(inner.step[i]) == int(renewed.step[i]) + 2
    assert [i for i, _ in seen] == [2, 1, 0, 2]  # the oldest first
    assert len({params for _, params in seen}) == len(seen)  # and never the same problem again


def test_instances_are_drawn_only_where_one_is_renewed():
    drawn = []

    def draw(seed):
        drawn.append(seed)
        return np.zeros(1)

    windows = Windows(Oracle(lambda params, seed, instance: (params @ params, 2 * params), np.ones(2), draw), 6, 2, 2)
    rule = SGD(0.1)
    inner = eqx.filter_jit(windows.begin)(rule, jax.random.key(0))
    jax.block_until_ready(inner)
    renew, counts = eqx.filter_jit(windows.renew), []
    for steps in ([0, 2], [4, 6], [2, 4]):
        drawn.clear()
        jax.block_until_ready(renew(rule, trees.replaced(inner, step=jnp.array(steps, jnp.int32))))
        counts.append(len(drawn))
    assert counts == [0, 2, 0]


class Echo(ProblemFamily):
    """Instances and the noise of losses are drawn alike, from the key that each is given."""

    def sample(self, key):
        return jax.random.normal(key, (3,))

    def init(self, instance, key):
        return jnp.zeros(3)

    def loss(self, params, instance, key):
        return params @ jax.random.normal(key, (3,))


def test_a_fresh_instance_is_not_the_noise_of_the_last_loss():
    windows = Windows(Echo(), horizon=2, truncation=2, instances=2)
    inner, seen = rollout(Adam(), Echo(), windows.begin(Adam(), jax.random.key(0)), 2)
    fresh = windows.renew(Adam(), inner).instance
    noise = np.concatenate([np.asarray(seen.grads).reshape(-1, 3), np.asarray(seen.end_grads).reshape(-1, 3)])
    apart = np.abs(noise[:, None] - np.asarray(fresh)[None]).max(axis=-1)
    assert apart.min() > 1e-3


@pytest.mark.parametrize("kind", ["rbg", "unsafe_rbg"])
def test_a_run_depends_on_its_own_key_alone_whatever_its_kind(kind):
    keys = jax.random.split(jax.random.key(0, impl=kind), 3)

    def seen(keys):
        inner = begin(Adam(), Echo(), keys)
        return inner.instance, rollout(Adam(), Echo(), inner, 2)[1].grads, apart(Mixture((Echo(), Echo())), keys)[1][2]

    together, alone = seen(keys), seen(keys[1:2])
    for ours, theirs, axis in zip(together, alone, (0, 1, 0), strict=True):
        np.testing.assert_array_equal(as_numbers(ours).take([1], axis), as_numbers(theirs))
    assert len(np.unique(together[0], axis=0)) == 3


def as_numbers(array):
    return np.asarray(jax.random.key_data(array) if jnp.issubdtype(array.dtype, jax.dtypes.prng_key) else array)


def test_runs_can_have_horizons_of_their_own():
    windows = Windows(Quadratic(2), horizon=80, truncation=5, instances=400, shortest=10)
    optimizer = Controller(jax.random.key(0), hidden=2)
    inner = windows.begin(optimizer, jax.random.key(1))
    horizons = np.asarray(windows.horizons(inner.key))
    assert set(horizons % 5) == {0} and horizons.min() == 10 and horizons.max() == 80
    assert np.median(horizons) == pytest.approx(np.sqrt(10 * 80), rel=0.15)  # uniform in the logarithm
    np.testing.assert_array_equal(inner.optimizer_state.horizon, horizons)  # and the optimizer knows its own
    assert np.all(np.asarray(inner.step) < horizons)
    done = eqx.tree_at(lambda it: it.step, inner, jnp.full(400, 40, jnp.int32))
    renewed = windows.renew(optimizer, done)
    np.testing.assert_array_equal(np.asarray(renewed.step) == 0, horizons <= 40)
    uneven = Windows(Quadratic(2), horizon=100, truncation=20, instances=64, shortest=25)
    assert set(np.asarray(uneven.horizons(jax.random.split(jax.random.key(0), 64)))) == {40, 60, 80, 100}
    with pytest.raises(ValueError, match="The shortest horizon is 90"):
        Windows(Quadratic(2), horizon=80, truncation=5, instances=1, shortest=90)


@pytest.mark.parametrize(
    ("horizon", "truncation", "instances", "message"),
    [
        (10, 3, 1, "horizon of 10 steps is not a multiple of the truncation of 3"),
        (3, 10, 1, "not a multiple"),
        (0, 1, 1, "at least 1"),
        (1, 0, 1, "at least 1"),
        (1, 1, 0, "at least 1"),
    ],
)
def test_windows_that_do_not_fit_are_refused(horizon, truncation, instances, message):
    with pytest.raises(ValueError, match=message):
        Windows(Quadratic(), horizon, truncation, instances)
