"""Families from plain functions: the same numbers as from JAX, in every way that a family is used."""

import subprocess
import sys
import time
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bygrad._core.threads import Threads
from bygrad.metagrads import Backprop, Replay
from bygrad.optimizers import SGD, Adam
from bygrad.problems import Oracle, ProblemFamily, check_family, describe_family
from bygrad.training import Recipe, meta_train
from bygrad.unroll import Windows, begin, rollout


def noisy_bowl(params, seed, instance):
    """A quadratic with noise of a known seed; float64 throughout, as NumPy likes it."""
    noise = 0.0 if seed is None else np.random.default_rng(seed).standard_normal(2)
    far = np.asarray(params["p"], np.float64) - instance["center"]
    return np.sum(instance["scale"] * far**2) + np.sum(noise * params["p"]), {"p": 2 * instance["scale"] * far + noise}


def start(seed, instance):
    return {"p": instance["center"] + np.random.default_rng(seed).standard_normal(2)}


def draw(seed):
    rng = np.random.default_rng(seed)
    return {"center": rng.standard_normal(2), "scale": rng.uniform(0.5, 1.0)}


class Same(ProblemFamily):
    """The same family in JAX: what it draws comes from the oracle, what it computes does not."""

    oracle: Oracle

    def sample(self, key):
        return self.oracle.sample(key)

    def init(self, instance, key):
        return self.oracle.init(instance, key)

    def loss(self, params, instance, key):
        seed = jax.random.bits(key, dtype=jnp.uint32)
        shape = jax.ShapeDtypeStruct((2,), jnp.float32)
        noise = jax.pure_callback(_noise, shape, seed, vmap_method="sequential")
        return jnp.sum(instance["scale"] * (params["p"] - instance["center"]) ** 2) + jnp.sum(noise * params["p"])


def _noise(seed):
    return np.random.default_rng(int(seed)).standard_normal(2).astype(np.float32)


@pytest.fixture(scope="module")
def family() -> Oracle:
    return Oracle(noisy_bowl, start, draw)


def test_a_batch_of_runs_equals_that_of_the_same_family_in_jax(family):
    keys = jax.random.split(jax.random.key(0), 3)
    trajectories = [
        eqx.filter_jit(lambda it: rollout(SGD(0.1), it, begin(SGD(0.1), it, keys), 4)[1])(one)
        for one in (family, Same(family))
    ]
    for ours, theirs in zip(*map(jax.tree.leaves, trajectories), strict=True):
        np.testing.assert_allclose(_numbers(ours), _numbers(theirs), rtol=1e-4, atol=1e-5)


def _numbers(leaf):
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def test_its_meta_gradient_by_replay_is_that_of_backpropagation_in_jax(family):
    optimizer = Adam(0.1)

    @eqx.filter_jit
    def estimate(estimator, it):
        windows = Windows(it, 6, 3, 2)
        return estimator.estimate(optimizer, windows, estimator.init(optimizer, windows, jax.random.key(2)))[0]

    by_replay, by_backprop = estimate(Replay(), family), estimate(Backprop(), Same(family))
    np.testing.assert_allclose(by_replay.loss, by_backprop.loss, rtol=1e-4)
    for ours, theirs in zip(*map(jax.tree.leaves, (by_replay.gradient, by_backprop.gradient)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=2e-5)
    with pytest.raises(TypeError, match=r"differentiated through it \(Backprop.*Meta-train with Replay"):
        estimate(Backprop(), family)


def test_it_is_meta_trained_like_any_other(family):
    recipe = Recipe(
        horizon=6, truncation=3, instances=2, meta_steps=6, meta_learning_rate=0.02, validate_every=3, validation_runs=2
    )
    trained = meta_train(SGD(0.01), family, recipe)
    assert trained.optimizer.learning_rate > 0.01  # it was too small


@pytest.mark.core
def test_the_objective_without_noise_is_once_differentiable(family):
    instance = family.sample(jax.random.key(4))
    params = family.init(instance, jax.random.key(5))
    value, grads = jax.value_and_grad(family.loss)(params, instance, None)
    wanted_value, wanted = noisy_bowl(jax.tree.map(np.asarray, params), None, jax.tree.map(np.asarray, instance))
    np.testing.assert_allclose(value, wanted_value, rtol=1e-5)
    np.testing.assert_allclose(grads["p"], wanted["p"], rtol=1e-5)
    with pytest.raises(TypeError, match="values and gradients and no more"):
        jax.hessian(family.loss)(params, instance, None)


@pytest.mark.core
def test_nested_batches_come_back_in_their_places():
    family = Oracle(lambda params, seed: (np.sum(params), params * 0 + seed), np.zeros((2, 1)))
    keys = jax.random.split(jax.random.key(6), (3, 4))
    evaluate = jax.vmap(jax.vmap(lambda key: family.value_and_grad(jnp.zeros((2, 1)), (), key)))
    _, grads = jax.jit(evaluate)(keys)
    seeds = jax.vmap(jax.vmap(lambda key: jax.random.bits(key, dtype=jnp.uint32)))(keys)
    assert grads.shape == (3, 4, 2, 1)
    np.testing.assert_allclose(grads[..., 1, 0], np.asarray(seeds, np.float32), rtol=1e-6)


def test_programs_side_by_side_do_not_share_a_seeded_generator():
    generator = np.random.RandomState()  # one for all, as torch's own

    def draw(seed):
        generator.seed(seed)
        time.sleep(0.01)  # another program would seed it here
        return generator.standard_normal(2)

    family = Oracle(lambda params, seed: (np.sum(params), np.ones(2)), draw)
    keys = jax.random.split(jax.random.key(7), (4, 5))
    start = jax.jit(jax.vmap(lambda key: family.init((), key)))
    with Threads(4) as pool:
        found = np.stack(list(pool.map(lambda some: np.asarray(start(some)), list(keys))))
    seeds = np.asarray(jax.vmap(jax.vmap(lambda key: jax.random.bits(key, dtype=jnp.uint32)))(keys))
    wanted = [[np.random.RandomState(seed).standard_normal(2) for seed in row] for row in seeds]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


NESTED = """
import jax, jax.numpy as jnp, numpy as np
from bygrad.problems import Oracle

inner = Oracle(lambda params, seed: (np.sum(params**2), 2 * params), np.ones(2))
ask = lambda params, seed: tuple(map(np.asarray, inner.value_and_grad(jnp.asarray(params), (), jax.random.key(0))))
np.testing.assert_array_equal(Oracle(ask, np.ones(2)).value_and_grad(jnp.ones(2), (), None)[1], [2, 2])
"""


@pytest.mark.slow
def test_a_function_that_asks_another_oracle_does_not_wait_for_itself():
    """In a process of its own, which would never end."""
    done = subprocess.run([sys.executable, "-c", NESTED], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


def test_a_function_with_another_result_is_refused_at_once():
    with pytest.raises(ValueError, match=r"returned \(float32\[\], float32\[1\]\), but \(float32\[\], float32\[3\]\)"):
        Oracle(lambda params, seed: (0.0, params[:1]), np.ones(3))
    with pytest.raises(ValueError, match=r"returned float32\[3\], but.*Return \(value, grads\)"):
        Oracle(lambda params, seed: params, np.ones(3))
    with pytest.raises(ZeroDivisionError):
        Oracle(lambda params, seed: 1 / 0, np.ones(3))


def test_numbers_that_would_become_others_are_refused():
    with pytest.raises(ValueError, match=r"complex128 numbers that float32 cannot hold \(\(3\+1j\)\)"):
        Oracle(lambda params, seed: (3 + 1j, params), np.ones(2))
    draws = {"halves": lambda seed: 1 if seed == 0 else 2.5, "seeds": lambda seed: 2**31 * (seed > 0)}
    for draw in draws.values():
        with pytest.raises(ValueError, match=r"Oracle.sample raised ValueError: A function of an Oracle returned"):
            check_family(Oracle(bowl_of, lambda seed, instance: np.ones(2), draw), jax.random.key(0))
    whole = Oracle(bowl_of, lambda seed, instance: np.ones(2), lambda seed: np.uint32(2**31) * np.uint32(seed > 0))
    assert int(whole.sample(jax.random.key(0))) == 2**31


@pytest.mark.parametrize("wrong", [np.array([None, 1.0]), np.array(["1", "2"])], ids=["objects", "texts"])
def test_what_is_no_number_is_refused_at_once(wrong):
    says = r"returned .* \((object|<U1)\), which is no number, .* Return arrays of numbers"
    with pytest.raises(ValueError, match=says):
        Oracle(lambda params, seed: (0.0, wrong), np.ones(2))
    with pytest.raises(ValueError, match=says):
        Oracle(bowl_of, lambda seed, instance: np.ones(2), lambda seed: {"of": wrong})
    with pytest.raises(ValueError, match=says):
        Oracle(lambda params, seed: (0.0, params), wrong)


def test_a_value_beyond_float32_is_infinite_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        family = Oracle(lambda params, seed: (1e300, np.full(2, -1e300)), np.ones(2))
        value, grads = family.value_and_grad(jnp.ones(2), (), None)
    assert value == jnp.inf and (grads == -jnp.inf).all()


@pytest.mark.parametrize(
    ("oracle", "says"),
    [
        (lambda: Oracle(lambda params, seed: (1 / (seed == 0), params), np.ones(3)), "ZeroDivisionError: division by"),
        (
            lambda: Oracle(bowl_of, lambda seed, instance: np.ones(3), lambda seed: np.zeros(1 + (seed > 0))),
            r"Oracle\.sample raised ValueError: A function of an Oracle returned float32\[2\], but float32\[1\]",
        ),
    ],
    ids=["error", "shape"],
)
def test_what_a_function_raises_later_is_told_with_its_cause(oracle, says):
    with pytest.raises(ValueError, match=says) as caught:
        check_family(oracle(), jax.random.key(0))
    assert "mend that one first" in str(caught.value)
    assert "must be JAX functions" not in str(caught.value)


def bowl_of(params, seed, instance):
    return np.sum(params**2), 2 * params


def test_a_description_tells_the_functions(family):
    assert describe_family(family)["function"].endswith("test_oracle.noisy_bowl")
    assert check_family(family, jax.random.key(0))["p"].shape == (2,)
