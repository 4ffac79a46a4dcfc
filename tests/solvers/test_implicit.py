"""Derivatives of solutions against finite differences of solutions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bygrad.problems import QuadrotorControl
from bygrad.solvers import LevenbergMarquardt, implicit, solve

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
        implicit(family, family.init(instance, jax.random.key(1)), instance)
