"""Derivatives of solutions against finite differences of solutions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bygrad.problems import QuadrotorControl
from bygrad.solvers import LevenbergMarquardt, implicit, jacobian, solve

from .families import Decay, decays


@pytest.mark.parametrize("limited", [False, True], ids=["free", "bounds"])
def test_derivatives_agree_with_finite_differences(limited):
    family, h = Decay(limited=limited), 1e-5
    data = decays(8)
    direction = np.random.default_rng(0).normal(size=9)
    exact = LevenbergMarquardt(tol=1e-16, max_steps=200)
    every = np.concatenate([data, data + h * direction, data - h * direction])
    found = solve(family, every, method=exact, batch=32).x
    x = np.stack([found["height"], found["rate"][:, 0]], axis=1).reshape(3, 8, 2)
    differences = (x[1] - x[2]) / (2 * h)
    with jax.enable_x64(True):

        def vector(params):
            return jnp.concatenate([jnp.ravel(params["height"]), params["rate"]])

        for row in range(8):
            at = {"height": jnp.asarray(x[0, row, 0]), "rate": jnp.asarray(x[0, row, 1:])}
            solution = lambda instance, at=at: vector(implicit(family, at, instance))  # noqa: E731
            value, forward = jax.jvp(solution, (jnp.asarray(data[row]),), (jnp.asarray(direction),))
            np.testing.assert_allclose(value, x[0, row], rtol=1e-12)
            np.testing.assert_allclose(forward, differences[row], rtol=1e-3, atol=1e-6)
            backward = jax.jacrev(solution)(jnp.asarray(data[row])) @ direction
            np.testing.assert_allclose(backward, forward, rtol=1e-9, atol=1e-12)
            if limited and x[0, row, 0] == 0.9:
                assert forward[0] == 0  # a param at its bound stays there


def test_what_has_kinks_or_limits_is_refused():
    family = QuadrotorControl.build(horizon=2)
    instance = family.sample(jax.random.key(0))
    with pytest.raises(TypeError, match="the derivatives would be wrong"):
        jacobian(family, solve(family, np.asarray(instance)[None]), instance[None])
    with pytest.raises(TypeError, match="the derivatives would be wrong"):
        implicit(family, family.init(instance, jax.random.key(1)), instance)


def test_derivatives_of_a_batch_are_computed_in_float64():
    class Cubed(Decay):
        """Instances of two arrays, one of them whole numbers."""

        def sample(self, key):
            return {"data": super().sample(key), "power": jnp.int32(2)}

        def residuals(self, params, instance):
            return instance["power"] * super().residuals(params, instance["data"] ** 3)

    data, h = np.abs(decays(9)) + 0.1, 1e-5
    direction = np.random.default_rng(0).normal(size=9)
    exact = LevenbergMarquardt(tol=1e-16, max_steps=200)
    batches = [{"data": data + step * direction, "power": np.full(9, 2)} for step in (0.0, h, -h)]
    found, higher, lower = (solve(Cubed(), it, method=exact, batch=16) for it in batches)
    found = dataclasses.replace(found, status=np.where(np.arange(9) == 2, 0, found.status))  # out of steps
    derivatives = jacobian(Cubed(), found, batches[0], batch=4)
    assert derivatives["height"]["power"] is None and derivatives["rate"]["data"].shape == (9, 1, 9)
    good = np.arange(9) != 2
    for name, by in derivatives.items():
        differences = (higher.x[name] - lower.x[name]) / (2 * h)
        np.testing.assert_allclose((by["data"] @ direction)[good], differences[good], rtol=1e-4, atol=1e-6)
        assert np.isnan(by["data"][2]).all() and by["data"].dtype == np.float64
    with pytest.raises(ValueError, match="9 solutions and 8 instances"):
        jacobian(Cubed(), found, jax.tree.map(lambda leaf: leaf[:8], batches[0]))


@pytest.mark.core
def test_float64_is_not_differentiated_in_float32():
    family, (instance,) = Decay(), decays(1)
    params = {"height": np.ones(()), "rate": np.ones(1)}
    with pytest.raises(ValueError, match=r"are float64, .* but JAX computes in float32 here.*jax\.enable_x64"):
        jax.jacrev(lambda it: implicit(family, params, it)["rate"])(instance)
    single = jax.tree.map(np.float32, (params, instance))
    assert jax.jacrev(lambda it: implicit(family, single[0], it)["rate"])(single[1]).shape == (1, 9)
    with jax.enable_x64(True):
        assert jax.jacrev(lambda it: implicit(family, params, it)["rate"])(instance).dtype == np.float64


def test_no_instances_have_no_derivatives():
    class Powered(Decay):
        def sample(self, key):
            return {"data": super().sample(key), "power": jnp.int32(2)}

        def residuals(self, params, instance):
            return super().residuals(params, instance["data"])

    none = {"data": np.zeros((0, 9)), "power": np.zeros(0, int)}
    found = jacobian(Powered(), solve(Powered(), none), none)
    assert found["height"]["data"].shape == (0, 9) and found["rate"]["data"].shape == (0, 1, 9)
    assert found["height"]["power"] is None and found["rate"]["data"].dtype == np.float64
