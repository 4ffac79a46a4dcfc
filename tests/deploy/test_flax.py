"""With Flax: its optimizers take the steps that optax takes, and Orbax keeps them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bygrad.deploy import optax as as_optax
from bygrad.optimizers import LSTM, Adam, Controller, Guard, Partition, RNNprop

nnx = pytest.importorskip("flax.nnx")
ocp = pytest.importorskip("orbax.checkpoint")

KEY = jax.random.key(0)
INPUTS, TARGETS = jax.random.normal(KEY, (16, 3)), jnp.ones((16, 2))
OPTIMIZERS = {
    "Controller": Controller(KEY, learning_rate=0.1),
    "RNNprop": RNNprop(KEY, (3,)),
    # By whole paths: what wraps a param may not be a part of it.
    "Partition": Partition(
        parts={"kernel": LSTM(KEY, (2,)), "rest": Adam(0.1)}, rules=(("kernel", "kernel"), ("*", "rest"))
    ),
    "Guard": Guard(Controller(KEY, learning_rate=0.1), Adam(0.1)),
}


def loss(kernel, bias):
    return jnp.mean((INPUTS @ kernel + bias - TARGETS) ** 2)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_nnx_optimizer_takes_the_steps_that_optax_takes(name):
    transformation = as_optax(OPTIMIZERS[name])
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    params = {"kernel": model.kernel[...], "bias": model.bias[...]}
    theirs, state = nnx.Optimizer(model, transformation, wrt=nnx.Param), transformation.init(params)

    @nnx.jit
    def step(model, optimizer):
        value, grads = nnx.value_and_grad(lambda it: loss(it.kernel[...], it.bias[...]))(model)
        optimizer.update(model, grads, value=value)

    @jax.jit
    def plain(params, state):
        value, grads = jax.value_and_grad(lambda it: loss(it["kernel"], it["bias"]))(params)
        updates, state = transformation.update(grads, state, params, value=value)
        return optax.apply_updates(params, updates), state

    for _ in range(4):
        step(model, theirs)
        params, state = plain(params, state)
    np.testing.assert_allclose(model.kernel[...], params["kernel"], rtol=1e-5)
    np.testing.assert_allclose(model.bias[...], params["bias"], rtol=1e-5)


def test_variables_that_are_given_throughout_stay_variables():
    transformation = as_optax(OPTIMIZERS["Controller"])
    _, params = nnx.split(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), nnx.Param)
    grads = jax.tree.map(jnp.ones_like, params)
    updates, _ = transformation.update(grads, transformation.init(params), params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    bare = nnx.as_pure(params)
    theirs, _ = transformation.update(nnx.as_pure(grads), transformation.init(bare), bare)
    for one, other in zip(jax.tree.leaves(updates), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(one, other)


def test_orbax_keeps_the_state_of_a_guard(tmp_path):
    transformation, params = as_optax(OPTIMIZERS["Guard"]), {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}
    state, grads = transformation.init(params), jax.tree.map(jnp.ones_like, params)
    for step in range(3):
        _, state = transformation.update(grads, state, params, value=1.0 / (step + 1))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        like = jax.tree.map(ocp.utils.to_shape_dtype_struct, transformation.init(params))
        kept = checkpointer.restore(tmp_path / "state", like)
    assert jax.tree.structure(kept) == jax.tree.structure(state)
    for ours, theirs in zip(jax.tree.leaves(kept), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(ours, theirs)
