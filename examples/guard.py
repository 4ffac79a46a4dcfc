"""Use a trained optimizer where it was not trained, under a guard: it moves the params only where it is better.

python examples/guard.py [STEPS]
"""

import sys

import jax
import optax

import bygrad
from bygrad.problems import load_images

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
images = load_images("mnist")


problem = bygrad.MLPClassifier.from_data(images, activation="relu")  # it was trained on networks with sigmoids


def train(optimizer):
    """Train a small network and return the loss on all the data, and the optimizer's last state."""
    params = problem.init((), jax.random.key(0))
    state = optimizer.init(params)

    @jax.jit
    def step(optimizer, params, state, key):
        value, grads = problem.value_and_grad(params, (), key)
        updates, state = optimizer.update(grads, state, params, value=value)
        return optax.apply_updates(params, updates), state

    for key in jax.random.split(jax.random.key(1), steps):
        params, state = step(optimizer, params, state, key)
    if isinstance(optimizer, bygrad.Guard):
        params = optimizer.settled(params, state)  # in case that the run ended inside a trial
    return float(problem.loss(params, (), None)), state


learned, adam = bygrad.load("paper/mnist"), bygrad.Adam(3e-3)
guard = bygrad.Guard(learned, fallback=adam).declare(steps)
print(f"alone: {train(learned)[0]:.4f}. Adam: {train(adam)[0]:.4f}.")
loss, state = train(guard)
report = guard.report(state)
print(f"guarded: {loss:.4f}. {report['won']} of {report['trials']} trials won.")
print(f"{report['discarded']} of {steps} evaluations discarded. {report['reason']}")
