"""Every optimizer on params that are divided over devices."""

import os
import subprocess
import sys

import pytest

from bygrad.optimizers import LEARNED

pytestmark = pytest.mark.core

SHARDED = """
import sys
import equinox as eqx, jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from bygrad.optimizers import BASELINES, LEARNED, SGD, Adam, Guard

assert jax.device_count() == 8
mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("a", "b"))
specs = {"w": P("a", "b"), "b": P("a"), "s": P()}
here = {"w": jnp.linspace(-1, 1, 32).reshape(8, 4), "b": jnp.linspace(0.1, 1, 4), "s": jnp.ones(())}
there = {name: jax.device_put(leaf, NamedSharding(mesh, specs[name])) for name, leaf in here.items()}

@eqx.filter_jit
def run(optimizer, params):
    grads = jax.tree.map(lambda leaf: 0.1 * leaf, params)
    updates, _ = optimizer.update(grads, optimizer.init(params), params, value=jnp.ones(()))
    return jax.tree.map(jnp.add, params, updates)

wrong, kinds = [], LEARNED | BASELINES | {"Guard": None}
for name, kind in ((name, kinds[name]) for name in sys.argv[1:]):
    learned = kind in LEARNED.values()
    optimizer = Guard(SGD(), Adam()) if kind is None else kind(jax.random.key(0)) if learned else kind()
    one, eight = run(optimizer, here), run(optimizer, there)
    for leaf in here:
        if not np.allclose(one[leaf], eight[leaf], rtol=1e-5, atol=1e-6):
            wrong.append(f"{name}: other values of {leaf}")
        if not eight[leaf].sharding.is_equivalent_to(there[leaf].sharding, here[leaf].ndim):
            wrong.append(f"{name}: {leaf} moved to {eight[leaf].sharding}")
assert not wrong, "; ".join(wrong)
"""

STATE = """
from jax.sharding import AxisType

mesh = Mesh(np.array(jax.devices()), ("model",), axis_types=(AxisType.Auto,))
specs = {"b": P(None, "model"), "w": P("model")}
put = lambda array, spec: jax.device_put(array, NamedSharding(mesh, spec))
params = jax.tree.map(put, {"b": jnp.ones((2, 8)), "w": jnp.ones((16, 3))}, specs)
optimizer = LEARNED["LSTM"](jax.random.key(0), (2,))
for init in (optimizer.init, jax.jit(lambda params: optimizer.init(params))):
    state = init(params)
    updates, moved = jax.jit(lambda grads, state: optimizer.update(grads, state))(params, state)
    for name, spec in specs.items():
        for leaf in jax.tree.leaves((state[name], moved[name])):  # [units, *coordinates]
            assert leaf.sharding.is_equivalent_to(NamedSharding(mesh, P(None, *spec)), leaf.ndim), (name, leaf.sharding)
        assert updates[name].sharding.is_equivalent_to(NamedSharding(mesh, spec), 2), (name, updates[name].sharding)

# A large array that is divided along its first axis takes a step without a message.
large = put(jnp.ones((64, 48)), P("model"))
step = jax.jit(lambda grads, state: optimizer.update(grads, state)).lower(large, optimizer.init(large)).compile()
assert not any(word in step.as_text() for word in ("all-gather", "all-reduce", "all-to-all", "collective-permute"))
"""

LOCAL = """
from jax import shard_map
from bygrad.optimizers import LSTM, base

base.STEP_BLOCK = 64
optimizer, size = LSTM(jax.random.key(0), (4,)), 8 * 1000
mesh = Mesh(np.array(jax.devices()), ("model",))
grads = jax.random.normal(jax.random.key(1), (size,))
state = jax.random.normal(jax.random.key(2), optimizer.start((size,)).shape)
expected = jax.tree.leaves(optimizer.step(grads, state))

def in_a_loop(function, *arguments):
    return "scan[" in str(jax.make_jaxpr(function)(*arguments))

# Inside `shard_map` arrays are local: blocks it is, also where the gradient alone is the same on all devices.
for checked in (True, False):
    divided = shard_map(optimizer.step_in_blocks, mesh=mesh, in_specs=(P("model"), P(None, "model")),
                        out_specs=(P("model"), P(None, "model")), check_vma=checked)
    assert in_a_loop(divided, grads, state)
    for ours, theirs in zip(jax.tree.leaves(jax.jit(divided)(grads, state)), expected):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
alike = shard_map(optimizer.step_in_blocks, mesh=mesh, in_specs=(P(), P(None, "model")),
                  out_specs=(P("model"), P(None, "model")))
few = grads[: size // 8]
for ours, theirs in zip(jax.tree.leaves(jax.jit(alike)(few, state)), optimizer.step(jnp.tile(few, 8), state)):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)

# Outside, a trace cannot tell, nor inside over a part of the axes; arrays that are there can.
assert not in_a_loop(optimizer.step_in_blocks, grads, state)
axes = Mesh(np.array(jax.devices()).reshape(4, 2), ("model", "data"))
assert not in_a_loop(shard_map(optimizer.step_in_blocks, mesh=axes, in_specs=(P("model"), P(None, "model")),
                               out_specs=(P("model"), P(None, "model")), axis_names={"model"}), grads, state)
put = lambda array, spec: jax.device_put(array, NamedSharding(mesh, spec))
assert not base._may_be_divided((grads, state))
assert base._may_be_divided((put(grads, P("model")), put(state, P(None, "model"))))
"""

EXPLICIT = """
import optax
from bygrad.deploy import optax as as_optax
from bygrad.optimizers import LSTM, SGD, Adam, Controller, Guard

rules = Controller(jax.random.key(0), 4, reach=True), LSTM(jax.random.key(0), (2,)), Guard(SGD(), Adam())
mesh = jax.make_mesh((8,), ("model",))  # whose shardings are types
assert mesh.axis_types == (jax.sharding.AxisType.Explicit,)
specs = {"b": P(None), "w": P(None, "model")}
here = {"b": jnp.linspace(0.1, 1, 4), "w": jnp.linspace(-1, 1, 64 * 24).reshape(64, 24)}

def train(transformation, params):
    state = transformation.init(params)

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(lambda params: sum(jnp.sum(leaf**2) for leaf in params.values()))(params)
        updates, state = transformation.update(grads, state, params, value=value)
        return optax.apply_updates(params, updates), state

    for _ in range(2):
        params, state = step(params, state)
    assert step._cache_size() == 1, "compiled again for the second step"
    return params, state

for rule in rules:
    transformation = as_optax(rule)
    one, _ = train(transformation, here)
    with jax.set_mesh(mesh):
        eight, state = train(transformation, jax.tree.map(jax.device_put, here, specs))
        begun = transformation.init(eight)
    for name, leaf in one.items():
        np.testing.assert_allclose(eight[name], leaf, rtol=1e-5, atol=1e-6)
        assert eight[name].sharding.is_equivalent_to(NamedSharding(mesh, specs[name]), leaf.ndim)
    for after, before in zip(jax.tree.leaves(state), jax.tree.leaves(begun), strict=True):
        assert after.sharding.is_equivalent_to(before.sharding, after.ndim)
"""

ENSEMBLE = """
import optax
from bygrad.deploy import optax as as_optax
from bygrad.optimizers import SGD, Adam, BestOf

mesh = Mesh(np.array(jax.devices()), ("model",))
rates = jnp.logspace(-2, 1, 8)  # where the guards of all devices do not do the same

def run(transformation, params, state, rate):
    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(lambda params: rate * jnp.sum(params**2))(params)
        updates, state = transformation.update(grads, state, params, value=value)
        return (optax.apply_updates(params, updates), state), value

    return jax.lax.scan(step, (params, state), length=60)[1]

for guard in (Adam(0.1), lambda learned: BestOf(learned, Adam(0.1))):
    transformation = as_optax(SGD(0.3), guard=guard)
    start = jnp.linspace(0.1, 1, 4) * jnp.ones((8, 1))
    given = start, jax.vmap(transformation.init)(start), rates
    one = jax.jit(jax.vmap(lambda *it: run(transformation, *it)))(*given)
    each = lambda *it: run(transformation, *jax.tree.map(lambda leaf: leaf[0], it))[None]
    eight = jax.jit(jax.shard_map(each, mesh=mesh, in_specs=P("model"), out_specs=P("model")))(*given)
    params, state = jax.tree.map(lambda leaf: leaf[0], given[:2])  # the same on all devices, until the first step
    step = lambda rate: transformation.update(rate[0] * params, state, params, value=rate[0])[0]
    jax.eval_shape(jax.shard_map(step, mesh=mesh, in_specs=P("model"), out_specs=P("model")), rates)
    np.testing.assert_allclose(eight, one, rtol=1e-4, atol=1e-6)
    assert np.isfinite(eight).all()
"""


FEW = ["LSTM", "Controller", "Adam", "Guard"]  # enough to see whether another version of JAX divides arrays alike
# Muon treats a matrix as a whole; the other baselines treat entries one by one, as Adam does.
OTHERS = [*(name for name in LEARNED if name not in FEW), "Muon"]


@pytest.mark.parametrize(
    ("script", "names"),
    [pytest.param(SHARDED, OTHERS, marks=pytest.mark.slow, id="others"), pytest.param(SHARDED + STATE, FEW, id="few")],
)
def test_params_divided_over_eight_devices_take_the_same_step_and_stay_there(script, names):
    """Many optimizers in one process, whose start takes longer than each of them; and the state lies as the params."""
    run(script, *names)


@pytest.mark.slow
def test_large_arrays_are_updated_in_blocks_where_they_are_certainly_on_one_device():
    run(SHARDED.partition("mesh =")[0] + LOCAL)


@pytest.mark.slow
def test_a_deployed_optimizer_takes_the_same_step_where_shardings_are_types():
    run(SHARDED.partition("mesh =")[0] + EXPLICIT)


@pytest.mark.slow
def test_devices_that_hold_runs_of_their_own_are_guarded_each_for_itself():
    run(SHARDED.partition("mesh =")[0] + ENSEMBLE)


def run(script, *names):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"  # those of the suite compile fast
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", script, *names], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
