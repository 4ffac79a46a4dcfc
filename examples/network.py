"""A network trained on minibatches, as a family to learn an optimizer for; by itself, a run with one that is learned.

bygrad specialize examples/network.py:Network --budget 90s
python examples/network.py [STEPS]
"""

import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import bygrad
from bygrad.deploy import optax as as_optax
from bygrad.problems import load_images


def images():
    """Yours come here: inputs and labels to train on, and others that are held out."""
    it = load_images("mnist").shrunk(8)
    pairs = (it.x_train.reshape(-1, 64) / 255, it.y_train), (it.x_test.reshape(-1, 64) / 255, it.y_test)
    return jax.tree.map(jnp.asarray, pairs)


def mean_loss(params, inputs, labels):
    hidden = jax.nn.relu(inputs @ params["w1"] + params["b1"])
    logits = hidden @ params["w2"] + params["b2"]
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


class Network(bygrad.ProblemFamily):
    """Runs on the same data, which differ in where they start and in their minibatches."""

    data: tuple = eqx.field(default_factory=images)  # of all instances; the default lets the command build the family

    def sample(self, key):
        return ()

    def init(self, instance, key):
        one, two = jax.random.split(key)
        weights = {"w1": jax.random.normal(one, (64, 32)) / 8, "w2": jax.random.normal(two, (32, 10)) / 32**0.5}
        return weights | {"b1": jnp.zeros(32), "b2": jnp.zeros(10)}

    def loss(self, params, instance, key):
        inputs, labels = self.data[0]
        if key is not None:  # a minibatch; without a key, the loss on all data
            rows = jax.random.randint(key, (64,), 0, len(labels))
            inputs, labels = inputs[rows], labels[rows]
        return mean_loss(params, inputs, labels)

    def held_out_loss(self, params, instance, key):  # only for `--objective validation`
        return mean_loss(params, *self.data[1])


if __name__ == "__main__":
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 400
    family = Network()
    params = family.init((), jax.random.key(0))
    transformation = as_optax("general/controller", horizon=steps)  # or the file that `bygrad specialize` has written
    state = transformation.init(params)

    @jax.jit
    def step(family, params, state, key):
        value, grads = family.value_and_grad(params, (), key)
        updates, state = transformation.update(grads, state, params, value=value)
        return optax.apply_updates(params, updates), state

    for key in jax.random.split(jax.random.key(1), steps):
        params, state = step(family, params, state, key)
    print(f"training loss after {steps} steps: {family.loss(params, (), None):.4f}")
    print(f"held-out loss: {family.held_out_loss(params, (), None):.4f}")
