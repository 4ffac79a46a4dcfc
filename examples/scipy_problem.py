"""Meta-train on a problem that SciPy solves: the rates of a chemical reaction, from noisy measurements of it.

A -> B -> C with rates k1 and k2. SciPy integrates the reaction, and its sensitivities for the gradient.

python examples/scipy_problem.py [META_STEPS]
"""

import sys

import jax
import numpy as np
from scipy.integrate import solve_ivp

import bygrad

TIMES = np.linspace(0.5, 5.0, 6)


def reaction(log_rates):
    """Return A and B at `TIMES`, `[2, 6]`, and their derivatives with respect to the logarithms of the rates."""
    k1, k2 = np.exp(np.asarray(log_rates, np.float64))
    jacobian = np.array([[-k1, 0.0], [k1, -k2]])

    def rhs(time, y):
        state, sensitivities = y[:2], y[2:].reshape(2, 2)
        direct = np.array([[-k1 * state[0], 0.0], [k1 * state[0], -k2 * state[1]]])
        return np.concatenate([jacobian @ state, (jacobian @ sensitivities + direct).ravel()])

    found = solve_ivp(rhs, (0.0, TIMES[-1]), [1.0, 0.0, 0.0, 0.0, 0.0, 0.0], method="LSODA", t_eval=TIMES, rtol=1e-6)
    return found.y[:2], found.y[2:].reshape(2, 2, -1)


def draw(seed):
    """An instance: what somebody measured of a reaction whose rates are to be found."""
    rng = np.random.default_rng(seed)
    return reaction(rng.normal([-0.5, -1.0], 0.5))[0] + 0.01 * rng.standard_normal((2, len(TIMES)))


def value_and_grad(log_rates, seed, measured):
    """Mean squared error of the reaction, and its gradient."""
    predicted, sensitivities = reaction(np.clip(log_rates, -6, 3))
    error = predicted - measured
    return np.mean(error**2), 2 * np.einsum("st,spt->p", error, sensitivities) / error.size


meta_steps = int(sys.argv[1]) if len(sys.argv) > 1 else 100
family = bygrad.Oracle(value_and_grad, np.zeros(2), draw)
recipe = bygrad.Recipe(horizon=20, instances=4, meta_steps=meta_steps, validate_every=max(1, meta_steps // 4))
trained = bygrad.meta_train(bygrad.LSTM(jax.random.key(0), (8,)), family, recipe)
print(f"area under the loss on held-out reactions: {trained.best.area:.4f}, after {trained.best.step} meta-steps")

# Use it without JAX around the problem: the optimizer is all that JAX runs.
measured, log_rates = draw(10**6), np.zeros(2, np.float32)
state = trained.optimizer.init(log_rates)
for _ in range(20):
    value, grads = value_and_grad(log_rates, None, measured)
    updates, state = trained.optimizer.update(grads.astype(np.float32), state, log_rates)
    log_rates = log_rates + np.asarray(updates)
print(f"rates after 20 steps: {np.exp(log_rates).round(3)}, mean squared error {value:.5f}")
