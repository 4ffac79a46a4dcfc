"""Write a rule of your own, and learn its numbers: by replay, and by evolution strategies, which need no derivative.

python examples/own_rule.py [META_STEPS]
"""

import sys

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

import bygrad
from bygrad.metagrads import NRES
from bygrad.optimizers import Optimizer
from bygrad.training import Validated


class SoftSign(Optimizer):
    """Momentum, and a step along its softened sign: three numbers are learned. As logarithms, they stay positive."""

    log_rate: Array = eqx.field(default_factory=lambda: jnp.log(3e-3))
    log_forget: Array = eqx.field(default_factory=lambda: jnp.log(0.1))
    log_soft: Array = eqx.field(default_factory=lambda: jnp.log(1e-2))

    def init(self, params):
        return jax.tree.map(jnp.zeros_like, params)

    def update(self, grads, state, params=None, *, value=None, key=None):
        rate, forget, soft = jnp.exp(self.log_rate), jnp.minimum(jnp.exp(self.log_forget), 1.0), jnp.exp(self.log_soft)
        state = jax.tree.map(lambda mean, grad: mean + forget * (grad - mean), state, grads)
        return jax.tree.map(lambda mean: -rate * mean / (jnp.abs(mean) + soft), state), state


class Rosenbrock(bygrad.ProblemFamily):
    """Valleys of different depths."""

    def sample(self, key):
        return jax.random.uniform(key, minval=1.0, maxval=10.0)

    def init(self, instance, key):
        return jax.random.normal(key, (2,))

    def loss(self, params, instance, key):
        return (1 - params[0]) ** 2 + instance * (params[1] - params[0] ** 2) ** 2


meta_steps = int(sys.argv[1]) if len(sys.argv) > 1 else 300
common = {"horizon": 60, "instances": 16, "meta_steps": meta_steps, "meta_learning_rate": 3e-2}
recipes = {
    "replay": bygrad.Recipe(**common),
    # Short windows of long runs, without bias; the settings that `bygrad specialize` uses.
    "NRES": bygrad.Recipe(**common, truncation=10, estimator=NRES(sigma=0.02, robust=True), meta_b2=0.99, warmup=20),
}
for name, recipe in recipes.items():
    trained = bygrad.meta_train(SoftSign(), Rosenbrock(), recipe)
    numbers = ", ".join(f"{jnp.exp(number):.3g}" for number in jax.tree.leaves(trained.optimizer))
    start = trained.log.of(Validated)[0].area
    print(f"{name}: area {start:.1f} -> {trained.best.area:.1f}, with rate, forgetting and softness {numbers}")
