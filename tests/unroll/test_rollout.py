"""Runs of a batch of instances: each is what one would get alone, step by step."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bygrad.optimizers import LSTM, SGD, Adam, AdamW, Coordinatewise, Optimizer, ScheduleFree, evaluation_point
from bygrad.problems import MLPClassifier, ProblemFamily, Quadratic
from bygrad.unroll import begin, draw, judged_run, loss_curves, rollout, step_keys
from bygrad.unroll import run as run_alone

OPTIMIZERS = {"LSTM": lambda: LSTM(jax.random.key(0), (4, 3)), "Adam": Adam, "AdamW": AdamW}


def perceptron() -> MLPClassifier:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (20, 6), dtype=np.uint8), rng.integers(0, 3, 20, dtype=np.int32)
    return MLPClassifier(jnp.asarray(images), jnp.asarray(labels), classes=3, hidden=4, batch=5, scale=1.0)


class Noisy(ProblemFamily):
    """Half the squared distance to the origin, plus noise that does not depend on where one is."""

    def sample(self, key):
        return ()

    def init(self, instance, key):
        return jax.random.normal(key, (3,))

    def loss(self, params, instance, key):
        return 0.5 * jnp.sum(params**2) + jax.random.normal(key)


class Isotropic(ProblemFamily):
    """Half of `a` times the squared distance to the origin: gradient descent has a closed form."""

    def sample(self, key):
        return jax.random.uniform(key, minval=0.5, maxval=1.5)

    def init(self, instance, key):
        return jax.random.normal(key, (3,))

    def loss(self, params, instance, key):
        return 0.5 * instance * jnp.sum(params**2)


@eqx.filter_jit
def run(optimizer: Optimizer, family: ProblemFamily, keys: jax.Array, steps: int):
    return rollout(optimizer, family, begin(optimizer, family, keys), steps)


@pytest.mark.parametrize(
    ("family", "name"),
    [
        *(pytest.param(*it, marks=pytest.mark.slow) for it in ((Quadratic(4), "LSTM"), (Quadratic(4), "Adam"))),
        (perceptron(), "LSTM"),
        (perceptron(), "AdamW"),
    ],
    ids=lambda it: it if isinstance(it, str) else type(it).__name__,
)
def test_a_batch_equals_a_loop_over_its_instances(family, name):
    with jax.enable_x64(True):
        optimizer = OPTIMIZERS[name]()
        keys = jax.random.split(jax.random.key(1), 3)
        end, trajectory = run(optimizer, family, keys, 4)
        instances, starts, run_keys = draw(family, keys)
        evaluate = eqx.filter_jit(lambda *inputs: jax.value_and_grad(family.loss)(*inputs))
        update = eqx.filter_jit(optimizer.update)
        for i in range(3):
            instance, params = jax.tree.map(lambda leaf, i=i: leaf[i], (instances, starts))
            state = optimizer.init(params)
            for step in range(4):
                value, grads = evaluate(params, instance, step_keys(run_keys[i], jnp.int32(step))[0])
                np.testing.assert_allclose(trajectory.value[step, i], value, rtol=1e-10)
                updates, state = update(grads, state, params, value=value)
                params = jax.tree.map(jnp.add, params, updates)
            for ours, alone in zip(jax.tree.leaves(end.params), jax.tree.leaves(params), strict=True):
                np.testing.assert_allclose(ours[i], alone, rtol=1e-10, atol=1e-12)
        np.testing.assert_array_equal(end.step, [4, 4, 4])


def test_a_run_can_be_cut_anywhere():
    family, optimizer, keys = Noisy(), Adam(), jax.random.split(jax.random.key(0), 2)

    @eqx.filter_jit
    def pieces(optimizer: Optimizer, first: int, second: int):
        middle, before = rollout(optimizer, family, begin(optimizer, family, keys), first)
        end, after = rollout(optimizer, family, middle, second)
        return end.params, jnp.concatenate([before.value, after.value]), before.end_value, after.value[0]

    end, trajectory = run(optimizer, family, keys, 5)
    params, values, handed_over, taken_up = pieces(optimizer, 2, 3)
    np.testing.assert_allclose(params, end.params, rtol=1e-6)
    np.testing.assert_allclose(values, trajectory.value, rtol=1e-6)
    np.testing.assert_allclose(handed_over, taken_up, rtol=1e-6)


def test_every_optimizer_meets_the_same_noise():
    keys = jax.random.split(jax.random.key(2), 3)
    noises = []
    for optimizer in (SGD(0.0), SGD(0.3), OPTIMIZERS["LSTM"]()):
        _, trajectory = run(optimizer, Noisy(), keys, 6)
        params = trajectory.params  # [steps, instances, 3], for matrices and mapped optimizers alike
        noises.append(trajectory.value - 0.5 * np.sum(np.square(params), axis=-1))
    for noise in noises[1:]:
        np.testing.assert_allclose(noise, noises[0], atol=1e-5)
    assert len(np.unique(np.round(noises[0], 4))) == noises[0].size  # another one for every step and instance


def test_a_curve_is_the_loss_after_as_many_updates():
    rate, horizon = 0.4, 6
    keys = jax.random.split(jax.random.key(3), 5)
    curves = loss_curves(SGD(rate), Isotropic(), keys, horizon)
    curvature, start, _ = draw(Isotropic(), keys)
    initial = 0.5 * curvature * np.sum(np.square(start), axis=1)
    shrinkage = (1 - rate * curvature)[:, None] ** (2 * np.arange(horizon + 1))
    np.testing.assert_allclose(curves, initial[:, None] * shrinkage, rtol=1e-5)


def test_what_keeps_an_average_is_judged_there():
    optimizer, horizon = ScheduleFree(0.1), 6
    keys = jax.random.split(jax.random.key(3), 2)
    end, _, curves = judged_run(optimizer, Isotropic(), keys, horizon)
    _, _, passing = judged_run(optimizer, Isotropic(), keys, horizon, in_passing=True)
    curvatures, starts, _ = draw(Isotropic(), keys)
    for i in range(2):
        curvature, params, state = curvatures[i], starts[i], optimizer.init(starts[i])
        for step in range(horizon + 1):
            average = evaluation_point(optimizer, state, params)
            for curve, where in ((curves, average), (passing, params)):
                np.testing.assert_allclose(curve[i, step], 0.5 * curvature * jnp.sum(where**2), rtol=1e-5)
            if step < horizon:
                updates, state = optimizer.update(curvature * params, state, params)
                params = params + updates
        np.testing.assert_allclose(end[i], average, rtol=1e-5)
    assert np.abs(curves - passing).max() > 1e-3
    np.testing.assert_array_equal(loss_curves(optimizer, Isotropic(), keys, horizon), curves)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_trajectory_holds_what_the_optimizer_saw(name):
    optimizer, family = OPTIMIZERS[name](), Isotropic()
    keys = jax.random.split(jax.random.key(4), 2)
    end, trajectory = run(optimizer, family, keys, 3)
    curvature = end.instance[None, :, None]
    np.testing.assert_allclose(trajectory.grads, curvature * trajectory.params, rtol=1e-6)
    np.testing.assert_allclose(trajectory.end_grads, curvature[0] * end.params, rtol=1e-6)
    np.testing.assert_allclose(trajectory.end_value, 0.5 * end.instance * np.sum(np.square(end.params), 1), rtol=1e-6)
    for leaf in jax.tree.leaves(trajectory.start) if isinstance(optimizer, Coordinatewise) else ():
        assert not np.any(leaf)


def test_half_precision_params_stay_so():
    class Half(Isotropic):
        def init(self, instance, key):
            return {"p": jax.random.normal(key, (3,), jnp.bfloat16), "q": jnp.ones((), jnp.float32)}

        def loss(self, params, instance, key):
            return jnp.sum(params["p"].astype(jnp.float32) ** 2) + params["q"] ** 2

    for make in OPTIMIZERS.values():
        end, trajectory = run(make(), Half(), jax.random.split(jax.random.key(0), 2), 2)
        assert end.params["p"].dtype == jnp.bfloat16
        assert end.params["q"].dtype == jnp.float32
        assert np.all(np.isfinite(trajectory.end_value))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_losses_in_half_precision_add_up(dtype):
    """From 256 on, bfloat16 has no room for another 1; float16 has no number for a sum of 100,000."""

    class Half(ProblemFamily):
        def sample(self, key):
            return ()

        def init(self, instance, key):
            return jnp.ones(2, dtype)

        def loss(self, params, instance, key):
            return 250 + jnp.sum(params)

    keys, steps = jax.random.split(jax.random.key(0), 2), 500
    curves = np.asarray(loss_curves(SGD(0.0), Half(), keys, steps))
    np.testing.assert_array_equal(np.sum(curves[:, :-1], axis=1), 252 * steps)
    optimizer = SGD(0.0)
    _, trajectory = rollout(optimizer, Half(), begin(optimizer, Half(), keys), 1)
    alone = jax.tree.map(lambda leaf: leaf[0], begin(optimizer, Half(), keys))
    assert trajectory.value.dtype == trajectory.end_value.dtype == jnp.float32
    assert run_alone(optimizer, Half(), alone, 1)[1].dtype == jnp.float32
    assert trajectory.grads.dtype == dtype
