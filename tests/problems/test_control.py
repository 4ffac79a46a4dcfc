"""The quadrotor of OSQP's manual, written again: <https://osqp.org/docs/examples/mpc.html>."""

import jax.numpy as jnp
import numpy as np

from bygrad.problems import QuadrotorControl
from bygrad.solvers import ADMM, solve

HORIZON = 10
A = np.array(
    [
        [1, 0, 0, 0, 0, 0, 0.1, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0, 0, 0.1, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0, 0, 0, 0.1, 0, 0, 0],
        [0.0488, 0, 0, 1, 0, 0, 0.0016, 0, 0, 0.0992, 0, 0],
        [0, -0.0488, 0, 0, 1, 0, 0, -0.0016, 0, 0, 0.0992, 0],
        [0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0.0992],
        [0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0],
        [0.9734, 0, 0, 0, 0, 0, 0.0488, 0, 0, 0.9846, 0, 0],
        [0, -0.9734, 0, 0, 0, 0, 0, -0.0488, 0, 0, 0.9846, 0],
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0.9846],
    ]
)
B = np.array(
    [
        [0, -0.0726, 0, 0.0726],
        [-0.0726, 0, 0.0726, 0],
        [-0.0152, 0.0152, -0.0152, 0.0152],
        [0, -0.0006, 0, 0.0006],
        [0.0006, 0, -0.0006, 0],
        [0.0106, 0.0106, 0.0106, 0.0106],
        [0, -1.4512, 0, 1.4512],
        [-1.4512, 0, 1.4512, 0],
        [-0.3049, 0.3049, -0.3049, 0.3049],
        [0, -0.0236, 0, 0.0236],
        [0.0236, 0, -0.0236, 0],
        [0.2107, 0.2107, 0.2107, 0.2107],
    ]
)
WEIGHTS, THRUST_WEIGHT = np.array([0, 0, 10, 10, 10, 10, 0, 0, 0, 5, 5, 5]), 0.1
TARGET = np.eye(12)[5]
LOW, HIGH = np.full(12, -np.inf), np.full(12, np.inf)
LOW[:2], HIGH[:2], LOW[5] = -np.pi / 6, np.pi / 6, -1
THRUST_LOW, THRUST_HIGH = 9.6 - 10.5916, 13 - 10.5916

FAMILY, RNG = QuadrotorControl.build(), np.random.default_rng(0)
FIRST = RNG.normal(size=12) * np.repeat([0.1, 0.5, 0.2, 0.2], 3)


def split(params: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the states, one more than the inputs, and those."""
    return params[: 12 * (HORIZON + 1)].reshape(-1, 12), params[12 * (HORIZON + 1) :].reshape(-1, 4)


def test_the_matrices_are_those_of_the_manual():
    params = RNG.normal(size=12 * (HORIZON + 1) + 4 * HORIZON)
    states, inputs = split(params)
    ours, first = jnp.asarray(params, jnp.float32), jnp.asarray(FIRST, jnp.float32)

    # The square of the target, which no plan changes, is left out.
    cost = np.sum(WEIGHTS * ((states - TARGET) ** 2 - TARGET**2)) + THRUST_WEIGHT * np.sum(inputs**2)
    np.testing.assert_allclose(FAMILY.objective(ours, first), cost / 2, rtol=1e-5)

    _, low, high = (np.asarray(it) for it in FAMILY.vectors(first))
    rows, equations = np.asarray(FAMILY.matrices[1] @ ours), np.asarray(FAMILY.equations)
    np.testing.assert_array_equal(low[equations], high[equations])
    moved = np.concatenate([[FIRST], states[:-1] @ A.T + inputs @ B.T])
    np.testing.assert_allclose((rows - low)[equations].reshape(-1, 12), moved - states, atol=1e-4)

    limited = np.isfinite(LOW) | np.isfinite(HIGH)
    expected = np.concatenate([states[1:, limited].ravel(), inputs.ravel()])
    np.testing.assert_allclose(rows[~equations], expected, rtol=1e-5)
    for ours, state, thrust in ((low, LOW, THRUST_LOW), (high, HIGH, THRUST_HIGH)):
        expected = np.concatenate([np.tile(state[limited], HORIZON), np.full(4 * HORIZON, thrust)])
        np.testing.assert_allclose(ours[~equations], expected, rtol=1e-5)


def test_plans_fly_as_the_quadrotor_does_and_keep_the_limits():
    found = solve(FAMILY, 3 * np.stack([FIRST, -FIRST]), method=ADMM(tol=1e-5, max_steps=20_000), batch=2)
    assert found.success.all()
    for first, plan in zip((3 * FIRST, -3 * FIRST), found.x, strict=True):
        states, inputs = split(plan)
        np.testing.assert_allclose(states[0], first, atol=1e-4)
        np.testing.assert_allclose(states[1:], states[:-1] @ A.T + inputs @ B.T, atol=1e-4)
        assert np.all(states[1:] > LOW - 1e-4) and np.all(states[1:] < HIGH + 1e-4)
        assert np.all(inputs > THRUST_LOW - 1e-4) and np.all(inputs < THRUST_HIGH + 1e-4)
        assert np.abs(inputs - THRUST_HIGH).min() < 1e-3 or np.abs(inputs - THRUST_LOW).min() < 1e-3  # they bind
