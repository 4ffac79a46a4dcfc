"""Learn an optimizer for your own problem, compare it with tuned baselines, and use it with optax.

python examples/learn_your_problem.py [META_STEPS]
"""

import sys

import jax
import jax.numpy as jnp
import optax

import bygrad


class Rosenbrock(bygrad.ProblemFamily):
    """Valleys of different depths."""

    def sample(self, key):
        return jax.random.uniform(key, minval=1.0, maxval=10.0)

    def init(self, instance, key):
        return jax.random.normal(key, (2,))

    def loss(self, params, instance, key):
        return (1 - params[0]) ** 2 + instance * (params[1] - params[0] ** 2) ** 2


def main() -> None:
    meta_steps = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    family = Rosenbrock()
    recipe = bygrad.Recipe(horizon=60, meta_steps=meta_steps, instances=16, validate_every=max(1, meta_steps // 10))
    trained = bygrad.meta_train(bygrad.LSTM(jax.random.key(0)), family, recipe)
    print(f"area under the loss on held-out problems: {trained.best.area:.3f}, after {trained.best.step} meta-steps")

    # Use it: the contract is optax's.
    instance = family.sample(jax.random.key(1))
    params = family.init(instance, jax.random.key(2))
    optimizer = trained.optimizer
    state = optimizer.init(params)

    @jax.jit
    def step(optimizer, params, state):
        value, grads = jax.value_and_grad(family.loss)(params, instance, None)
        updates, state = optimizer.update(grads, state, params, value=value)
        return optax.apply_updates(params, updates), state, value

    for _ in range(60):
        params, state, value = step(optimizer, params, state)
    print(f"loss after 60 steps: {value:.4f}, at {jnp.round(params, 2)}")


if __name__ == "__main__":  # not where `bygrad` imports this file for its family
    main()
