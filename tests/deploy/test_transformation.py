"""A deployed optimizer is a good citizen of optax: it composes, compiles once, and is never compiled in."""

import os
import subprocess
import sys
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import bygrad
from bygrad.artifacts import find, load
from bygrad.deploy import optax as deployed
from bygrad.deploy.card import model_card
from bygrad.deploy.jax import export
from bygrad.optimizers import (
    HAND_DESIGNED,
    LEARNED,
    LSTM,
    SGD,
    Adam,
    BestOf,
    Controller,
    Guard,
    Learned,
    Optimizer,
    Partition,
    Scaled,
    base,
    depth_of,
)

KINDS = LEARNED | HAND_DESIGNED


class OfTheLoss(Optimizer):
    """Steps down the gradient by the loss: to see what arrives."""

    def init(self, params):
        return ()

    def update(self, grads, state, params=None, *, value=None, key=None):
        if value is None:
            raise ValueError("needs a value")
        return jax.tree.map(lambda grad: -value * grad, grads), state


def make(name: str) -> Optimizer:
    kind = KINDS[name]
    return kind(jax.random.key(0)) if issubclass(kind, Learned) else kind()


@pytest.fixture(scope="module")
def small() -> LSTM:
    return LSTM(jax.random.key(0), (3,), Scaled())


@pytest.fixture(scope="module")
def params() -> dict[str, object]:
    return {"scalar": jnp.float32(0.5), "pair": [jnp.linspace(-1, 1, 6).reshape(2, 3), jnp.zeros((0, 2))]}


def close(left: object, right: object, rtol: float = 1e-6) -> None:
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for ours, theirs in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=1e-7)


def test_a_name_a_file_an_artifact_and_the_optimizer_are_the_same(params):
    name = "paper/quadratic"
    given = (name, find(name), str(find(name)), load(find(name)), bygrad.load(name))
    for it in given:
        close(deployed(it).init(params).optimizer, given[-1], rtol=0)


@pytest.mark.core
@pytest.mark.parametrize("name", [*KINDS, "Guard", "BestOf"])
def test_the_state_is_stable_and_so_nothing_compiles_twice(name, params):
    guards = {"Guard": Adam(), "BestOf": lambda it: BestOf(it, Adam())}
    transformation = deployed(make("LSTM" if name in guards else name), guard=guards.get(name))
    describe = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), tree)  # noqa: E731
    state = jax.eval_shape(transformation.init, params)
    step = jax.jit(lambda grads, state, params: transformation.update(grads, state, params, value=1.0))
    updates, after = jax.eval_shape(step, params, state, params)
    assert describe(after) == describe(state) == describe(transformation.init(params))
    assert describe(updates) == describe(jax.eval_shape(lambda: params))


@pytest.mark.core
@pytest.mark.parametrize("name", ["LSTM", "Controller", "Partition"])  # the others are as LSTM
def test_donating_twice_from_one_artifact(name):
    transformation = deployed(make(name))
    params = {"w": jnp.ones((2, 3)), "b": jnp.zeros(3)}

    @jax.jit
    def plain(params, state):
        updates, state = transformation.update(params, state, params)
        return optax.apply_updates(params, updates), state

    donating = jax.jit(plain.__wrapped__, donate_argnums=(0, 1))
    expected, _ = plain(params, transformation.init(params))
    for _ in range(2):
        own = jax.tree.map(jnp.copy, params)
        result, state = donating(own, transformation.init(own))
        close(result, expected)
        donating(result, state)


def test_a_mesh_of_one_device_compiles_nothing_twice():
    place = NamedSharding(Mesh(np.array(jax.devices()[:1]), ("device",)), PartitionSpec())
    params = jax.device_put({"w": jnp.ones((4, 3)), "s": jnp.ones(())}, place)
    transformation = deployed(LSTM(jax.random.key(0), (2,)))
    state = transformation.init(params)

    @jax.jit
    def step(params, state):
        updates, state = transformation.update(params, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(2):
        params, state = step(params, state)
    assert step._cache_size() == 1


@pytest.mark.core
def test_one_trace_for_all_artifacts_and_no_constant_in_it(params):
    one, other = (deployed(LSTM(jax.random.key(seed), (20,))) for seed in range(2))
    traces = []

    @jax.jit
    def step(grads, state, params):
        traces.append(None)
        return one.update(grads, state, params)

    step(params, one.init(params), params)
    swapped, _ = step(params, other.init(params), params)
    assert len(traces) == 1
    close(swapped, jax.jit(other.update)(params, other.init(params), params)[0])
    assert one.update is other.update

    program = jax.make_jaxpr(step.__wrapped__)(params, one.init(params), params)
    assert sum(np.asarray(constant).nbytes for constant in program.consts) < 1000
    larger = deployed(LSTM(jax.random.key(0), (60,)))  # with eight times the meta-parameters
    sizes = [len(jax.jit(step.__wrapped__).lower(params, it.init(params), params).as_text()) for it in (one, larger)]
    assert sizes[1] < 1.1 * sizes[0]


@pytest.mark.core
def test_buffers_do_not_pile_up(small, params):
    transformation = deployed(small, guard=Adam(0.01))
    step = jax.jit(lambda grads, state: transformation.update(grads, state, grads, value=1.0))
    state, counts = transformation.init(params), []
    for i in range(60):
        _, state = step(params, state)
        if i in (9, 59):
            counts.append(len(jax.live_arrays()))
    assert counts[1] <= counts[0]  # fewer, if something else was collected


@pytest.mark.core
def test_arrays_of_numpy_are_taken_in_the_precision_of_jax(small):
    point = {"weight": np.ones((3, 2)), "bias": np.zeros(2)}
    transformation = deployed(small)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state = transformation.init(point)
        ours, _ = transformation.update(point, state, point)
    as_jax = jax.tree.map(jnp.asarray, point)
    theirs, _ = transformation.update(as_jax, transformation.init(as_jax), as_jax)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_copy_in_the_state_is_what_counts(small, params):
    transformation = deployed(small)
    state = transformation.init(params)
    zero = state._replace(optimizer=jax.tree.map(jnp.zeros_like, state.optimizer))
    updates, _ = transformation.update(params, zero, params)
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(updates))


WRAPPERS = {
    "chain": (lambda it: optax.chain(optax.clip_by_global_norm(0.1), it, optax.scale(0.5)), 0.5),
    "masked": (lambda it: optax.masked(it, {"scalar": True, "pair": [True, False]}), 1.0),
    "partition": (
        lambda it: optax.partition(
            {"ours": it, "none": optax.set_to_zero()}, {"scalar": "ours", "pair": ["ours", "none"]}
        ),
        1.0,
    ),
    "apply_if_finite": (lambda it: optax.apply_if_finite(it, 3), 1.0),
    "inject": (
        lambda it: optax.inject_hyperparams(lambda factor: optax.chain(it, optax.scale(factor)))(
            optax.constant_schedule(0.25)
        ),
        0.25,
    ),
    "schedule": (lambda it: optax.chain(it, optax.scale_by_schedule(lambda count: 1.0 / (1 + count))), 1.0),
}


@pytest.mark.core
@pytest.mark.parametrize("name", WRAPPERS)
def test_composes(name, small, params):
    wrap, factor = WRAPPERS[name]
    transformation = wrap(deployed(small))
    grads = jax.tree.map(lambda leaf: 0.01 * leaf, params)  # small enough not to be clipped
    step = jax.jit(lambda grads, state: transformation.update(grads, state, params, value=1.0, unheard_of=2))
    updates, _ = step(grads, transformation.init(params))
    bare, _ = small.update(grads, small.init(params), params)
    close(updates, jax.tree.map(lambda leaf: factor * leaf, bare), rtol=1e-5)


def test_takes_a_step_for_several_gradients(small, params):
    transformation = optax.MultiSteps(deployed(small), every_k_schedule=2)
    step = jax.jit(lambda grads, state: transformation.update(grads, state, params))
    state = transformation.init(params)
    first, state = step(jax.tree.map(lambda leaf: 3 * leaf, params), state)
    second, _ = step(params, state)
    close(first, jax.tree.map(jnp.zeros_like, params))
    close(second, small.update(jax.tree.map(lambda leaf: 2 * leaf, params), small.init(params), params)[0], rtol=1e-5)


@pytest.mark.core
def test_scan_and_vmap_are_loops(small):
    transformation = deployed(small)
    starts = jnp.linspace(-1, 1, 6).reshape(2, 3)

    def run(start):
        def body(carry, _):
            params, state = carry
            updates, state = transformation.update(2 * params, state, params, value=jnp.sum(params**2))
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(body, (start, transformation.init(start)), length=3)
        return params

    looped = []
    for start in starts:
        params, state = start, transformation.init(start)
        for _ in range(3):
            updates, state = transformation.update(2 * params, state, params)
            params = optax.apply_updates(params, updates)
        looped.append(params)
    close(jax.jit(jax.vmap(run))(starts), jnp.stack(looped), rtol=1e-5)


@pytest.mark.core
def test_a_batch_of_optimizers_is_one_more_axis(params):
    transformation = deployed(SGD())
    state = transformation.init(params)
    rates = jnp.array([0.5, 2.0])
    batch = state._replace(optimizer=SGD(rates))
    updates, _ = jax.vmap(lambda state: transformation.update(params, state, params))(batch)
    for rate, scalar in zip(rates, updates["scalar"], strict=True):
        np.testing.assert_allclose(scalar, -rate * params["scalar"], rtol=1e-6)


@pytest.mark.core
def test_low_precision_params(small):
    for dtype in (jnp.bfloat16, jnp.float16):
        params = {"w": jnp.linspace(-1, 1, 4).astype(dtype)}
        transformation = deployed(small)
        updates, state = transformation.update(params, transformation.init(params), params)
        assert updates["w"].dtype == dtype
        assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype(jnp.float32)}


@pytest.mark.core
def test_a_state_in_bfloat16_is_kept_as_its_bits_and_written_where_it_lies(monkeypatch):
    """The same numbers as with the state as it is, for arrays below a block and above; donated, it needs no copy."""
    monkeypatch.setattr(base, "STEP_BLOCK", 64)
    optimizer = LSTM(jax.random.key(0), (5, 4), state_dtype="bfloat16")
    params = {"large": jnp.ones((40, 100)), "small": jnp.ones(7)}
    grads = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(leaf.size), leaf.shape), params)
    transformation = deployed(optimizer)
    state, plain = transformation.init(params), optimizer.init(params)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.state)} == {jnp.dtype(jnp.uint16)}
    step, stepped = jax.jit(transformation.update, donate_argnums=(0, 1)), eqx.filter_jit(optimizer.update)
    for _ in range(3):
        expected, plain = stepped(grads, plain)
        updates, state = step(jax.tree.map(jnp.copy, grads), state)
        close(updates, expected)
        for bits, values in zip(jax.tree.leaves(state.state), jax.tree.leaves(plain), strict=True):
            np.testing.assert_array_equal(bits, jax.lax.bitcast_convert_type(values, jnp.uint16))
    needed = step.lower(grads, state).compile().memory_analysis()
    if needed is not None:
        assert needed.temp_size_in_bytes < 0.5 * sum(leaf.nbytes for leaf in jax.tree.leaves(state.state))


def test_a_gradient_through_steps_with_a_state_of_bits_is_refused():
    transformation = deployed(LSTM(jax.random.key(0), (3,), state_dtype="bfloat16"))

    def after_two_steps(params):
        state = transformation.init(params)
        for _ in range(2):
            updates, state = transformation.update(2 * params, state, params)
            params = params + updates
        return jnp.sum(params)

    with pytest.raises(TypeError, match="A state that is kept as bits has no derivative"):
        jax.grad(after_two_steps)(jnp.ones(3))


def test_value_and_guard_arrive(params):
    transformation = deployed(OfTheLoss())
    updates, _ = transformation.update(params, transformation.init(params), params, value=2.0)
    close(updates, jax.tree.map(lambda leaf: -2.0 * leaf, params))
    with pytest.raises(ValueError, match="needs a value"):
        transformation.update(params, transformation.init(params), params)
    guarded = deployed(OfTheLoss(), guard=lambda bare: SGD(1.0) if isinstance(bare, OfTheLoss) else bare)
    updates, _ = guarded.update(params, guarded.init(params), params)
    close(updates, jax.tree.map(lambda leaf: -leaf, params))


@pytest.mark.parametrize("guard", [Adam(0.1), lambda it: BestOf(it, Adam(0.1))], ids=["Guard", "BestOf"])
def test_several_losses_are_refused_by_their_shape(guard):
    transformation, point = deployed(SGD(0.1), guard=guard), jnp.ones(3)
    with pytest.raises(ValueError, match=r"value has shape \(8,\), but runs are compared by one loss"):
        transformation.update(point, transformation.init(point), point, value=jnp.ones(8))


def test_a_fallback_makes_a_guard(params):
    """A rule that climbs, and one that gives NaN, are caught, and the fallback moves the params."""
    transformation = deployed(SGD(-0.1), guard=Adam(0.1))
    start = point = jnp.array([1.0, -2.0])
    state = transformation.init(point)
    assert isinstance(state.optimizer, Guard)

    @jax.jit
    def step(point, state):
        value, grads = jax.value_and_grad(lambda it: jnp.sum(it**2))(point)
        updates, state = transformation.update(grads, state, point, value=value)
        return point + updates, state

    for _ in range(60):
        point, state = step(point, state)
    assert jnp.sum(point**2) < 0.1 * jnp.sum(start**2)
    assert step._cache_size() == 1
    envelope = deployed("paper/mnist", guard=Adam()).init(params).optimizer.envelope
    assert envelope.horizon == load(find("paper/mnist")).manifest.training["recipe"]["horizon"]


def test_a_horizon_is_declared_to_rules_that_go_by_it(small, params):
    controller = Controller(jax.random.key(0))
    states = [deployed(controller, horizon=horizon).init(params) for horizon in (7, None)]
    assert [int(state.optimizer.horizon) for state in states] == [7, int(controller.horizon)]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
    lstms = Partition(parts={"all": small}, rules=(("*", "all"),))
    for kind, it in {"LSTM": small, "Partition": lstms}.items():
        with pytest.raises(ValueError, match=rf"steps of {kind} do not depend .* horizon=7 would change nothing"):
            deployed(it, horizon=7)


def test_a_checkpoint_restores_what_is_in_the_state(params, tmp_path):
    """The leaves are all there is to keep: meta-parameters, horizon and memory, the rest comes from `init`."""
    saved, other = (deployed(Controller(jax.random.key(seed)), horizon=7 + seed) for seed in range(2))
    _, state = saved.update(params, saved.init(params), params)
    eqx.tree_serialise_leaves(tmp_path / "state.eqx", state)
    fresh = other.init(params)
    for restored in (
        eqx.tree_deserialise_leaves(tmp_path / "state.eqx", fresh),
        jax.tree.unflatten(jax.tree.structure(fresh), jax.tree.leaves(state)),
    ):
        assert eqx.tree_equal(restored, state)
        assert eqx.tree_equal(other.update(params, restored, params), saved.update(params, state, params))


def test_a_rule_that_goes_by_the_horizon_says_so_where_none_is_given(recwarn):
    deployed("paper/mnist")
    deployed("general/controller", horizon=400)
    deployed("general/controller", guard=lambda it: Guard(it, Adam(1e-3)).declare(200))
    both = deployed("general/controller", guard=lambda it: BestOf(it, Adam(1e-3)), horizon=400)
    assert not recwarn
    assert int(both.init(jnp.ones(2)).optimizer.learned.horizon) == 200
    with pytest.warns(UserWarning, match=r"general/controller goes by how many steps .* Give horizon=\."):
        deployed("general/controller")


def test_a_part_that_gets_nothing_of_a_network_is_named(recwarn):
    """The names of the layers in Flax: without a word, one LSTM would do what two have learned."""
    named = {"Conv_0": {"kernel": jnp.ones((3, 3, 2, 4)), "bias": jnp.zeros(4)}}
    state = bygrad.deploy.optax("paper/cifar10").init(named)
    assert list(state.state) == ["rest"]
    assert "No param goes to convolutions of paper/cifar10 ('*conv*weight')" in str(recwarn.pop().message)
    renamed = {"conv_0": {"weight": jnp.ones((3, 3, 2, 4)), "bias": jnp.zeros(4)}}
    assert len(bygrad.deploy.optax("paper/cifar10").init(renamed).state) == 2
    assert not recwarn.list


def test_so_does_a_partition_with_such_a_part(tmp_path, recwarn):
    cards = []
    for name, part in {"controller": Controller(jax.random.key(0), horizon=70), "adam": Adam()}.items():
        parts = {"matrices": part, "rest": SGD()}
        partition = Partition(parts=parts, rules=(("*weight", "matrices"), ("*", "rest")))
        artifact = export(partition, tmp_path / name, name=f"mine/{name}", training={}, validation={})
        cards.append(model_card(artifact.manifest, "mine", "optimizer.safetensors"))
    deployed(tmp_path / "adam")
    deployed(tmp_path / "controller", horizon=400)
    assert not recwarn
    with pytest.warns(UserWarning, match="mine/controller goes by how many steps .* a run of 70,"):
        deployed(tmp_path / "controller")
    assert [card.count("horizon=steps") for card in cards] == [1, 0]  # for JAX: PyTorch has no partitions


WRONG_KINDS = """
import jax.numpy as jnp, optax
from bygrad.deploy import optax as deployed
from bygrad.optimizers import Adam, BestOf, Controller, Guard, Partition, declare

def refused(kind, message, function, *arguments, **named):
    try:
        function(*arguments, **named)
    except kind as error:
        assert message in str(error), error
    else:
        raise AssertionError((arguments, named))

for wrong in (Adam, optax.adam(1e-3), lambda bare: None, 3):
    refused(TypeError, "is no optimizer that could be deployed", deployed, wrong)
    refused(TypeError, "nothing to fall back to", deployed, "paper/mnist", guard=wrong)
    for whole in (Guard, BestOf, lambda *parts: Partition(parts=dict(zip("ab", parts)), rules=(("*", "a"),))):
        refused(TypeError, "no optimizer of this package", whole, Adam(jnp.asarray(0.1)), wrong)
for horizon in (2.5, float("inf"), float("nan"), 10**12, "10", True):
    refused(ValueError, f"The horizon is {horizon!r}, but it counts", deployed, "general/controller", horizon=horizon)
"""


def test_arguments_of_the_wrong_kind_are_refused():
    """In a process of its own: the tests' check of annotations would refuse them first."""
    done = subprocess.run([sys.executable, "-c", WRONG_KINDS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.core
def test_abstract_params(small, params):
    abstract = jax.eval_shape(lambda: params)
    state = deployed(small).init(abstract)
    concrete = deployed(small).init(params)
    assert jax.tree.structure(state) == jax.tree.structure(concrete)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(state))


@pytest.mark.core
def test_complex_params_are_refused_by_name_and_the_remedy_works(small):
    params = {"layers": [{"w": jnp.ones(2, jnp.complex64) * (1 + 2j)}]}
    with pytest.raises(
        TypeError, match=r"params have a complex leaf layers/0/w \(complex64\).*split_real_and_imaginary"
    ):
        deployed(small).init(params)
    state = deployed(small).init({"layers": [{"w": jnp.ones(2)}]})
    with pytest.raises(TypeError, match="gradients have a complex leaf layers/0/w"):
        deployed(small).update(params, state)
    transformation = optax.contrib.split_real_and_imaginary(deployed(small))
    updates, _ = transformation.update(params, transformation.init(params), params)
    assert updates["layers"][0]["w"].dtype == jnp.complex64


@pytest.mark.core
def test_numbers_are_params_too(small):
    transformation = deployed(small)
    state = transformation.init({"a": 1.0})
    updates, _ = transformation.update({"a": 0.25}, state, {"a": 1.0})
    arrays = {"a": jnp.asarray(1.0)}
    expected, _ = transformation.update({"a": jnp.asarray(0.25)}, transformation.init(arrays), arrays)
    assert updates == expected and updates["a"] != 0


@pytest.mark.parametrize("guard", [None, Adam(1e-3)], ids=["bare", "guarded"])
def test_updates_of_gradients_in_lower_precision_are_as_exact_as_the_params(guard):
    params = {"w": jnp.linspace(-1.0, 1.0, 40).reshape(8, 5), "b": jnp.ones(5)}
    rough = jax.tree.map(lambda leaf: (0.3 * leaf).astype(jnp.bfloat16), params)
    exact = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), rough)
    transformation = deployed("general/controller", guard=guard, horizon=100)
    state = transformation.init(params)
    ours, theirs = (transformation.update(grads, state, params, value=1.0)[0] for grads in (rough, exact))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_array_equal(a, b)


def test_other_dtypes_are_refused_by_name(small):
    with pytest.raises(TypeError, match=r"leaf count of dtype int32, .* optax.masked"):
        deployed(small).init({"count": jnp.zeros((), jnp.int32), "w": jnp.ones(2)})
    model, grads = {"activation": jax.nn.relu, "w": jnp.ones(2)}, {"activation": None, "w": jnp.ones(2)}
    for call in (
        lambda: deployed(small).init(model),
        lambda: deployed(small).update(grads, deployed(small).init(grads), model),
    ):
        with pytest.raises(TypeError, match=r"params have a leaf activation that is a \w+, no array.*eqx.filter"):
            call()


@pytest.mark.parametrize(
    ("grads", "message"),
    [
        ({"w": jnp.ones(2)}, "b stands only in the params"),
        ({"w": jnp.ones(2), "b": jnp.ones(1), "a": jnp.ones(1)}, "a stands only in the gradients"),
        ({"w": jnp.ones(3), "b": jnp.ones(1)}, r"gradient of w has the shape \[3\], and the param \[2\]"),
    ],
)
def test_gradients_of_other_params_are_refused_by_path(small, grads, message):
    params = {"w": jnp.ones(2), "b": jnp.ones(1)}
    transformation = deployed(small)
    with pytest.raises(ValueError, match=message):
        transformation.update(grads, transformation.init(params), params)


@pytest.mark.parametrize("guarded", [False, True], ids=["bare", "guarded"])
@pytest.mark.parametrize("name", ["LSTM", "Controller"])
@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"w": jnp.ones(2)}, r"\bb is missing there"),
        (
            {"w": jnp.ones(2), "b": jnp.ones(3), "a": jnp.ones(1)},
            r"\ba is of shape \[.*1\] there, and missing for",
        ),
        ({"w": jnp.ones(2), "b": jnp.ones(1)}, r"\bb is of shape \[.*1\] there, and of shape \[.*3\] for"),
        ({"w": jnp.ones(4), "b": jnp.ones(3)}, r"\bw is of shape \[.*4\] there, and of shape \[.*2\] for"),
        ({"w": jnp.ones((2, 2)), "b": jnp.ones(3)}, r"\bw is of shape"),
    ],
    ids=["fewer", "more", "broadcast", "shape", "axes"],
)
def test_the_state_of_another_model_is_refused_by_path(others, message, name, guarded):
    params = {"w": jnp.ones(2), "b": jnp.ones(3)}
    transformation = deployed(make(name), guard=Adam() if guarded else None)
    state = transformation.init(others)
    for update in (transformation.update, jax.jit(transformation.update)):
        with pytest.raises(ValueError, match=f"not that of these params: .*{message}.*start with init"):
            update(params, state, params, value=1.0)


def test_a_state_of_another_kind_is_refused_by_what_it_is(small, params):
    """Of another transformation, of the bare optimizer, of a chain, and from a checkpoint without its structure."""
    transformation = deployed(small)
    state = transformation.init(params)
    others = optax.adam(1e-3).init(params), small.init(params), (state,), dict(state._asdict()), None
    for other, kind in zip(others, ("tuple", "dict", "tuple", "dict", "NoneType"), strict=True):
        for update in (transformation.update, jax.jit(transformation.update)):
            with pytest.raises(ValueError, match=rf"The state is a {kind}, and not what init\(params\) .* returns"):
                update(params, other, params)


def test_an_optimizer_with_other_leaves_is_refused(params):
    loose = eqx.tree_at(lambda it: it.learning_rate, Adam(), 0.1)
    with pytest.raises(TypeError, match="leaf learning_rate of Adam is a float"):
        deployed(loose)


class Mixed(Optimizer):
    """As one writes a rule with Equinox: its network has activations among its leaves, which are functions."""

    network: eqx.nn.MLP

    def init(self, params):
        return ()

    def update(self, grads, state, params=None, *, value=None, key=None):
        return jax.tree.map(lambda grad: jax.vmap(self.network)(grad[:, None])[:, 0], grads), state


@pytest.mark.parametrize("guard", [None, Adam(1e-2)])
def test_a_rule_whose_layers_hold_functions_takes_the_steps_that_it_takes_alone(guard):
    rule = Mixed(eqx.nn.MLP(1, 1, 4, 1, activation=jnp.tanh, key=jax.random.key(0)))
    grads = {"p": jnp.linspace(-1, 1, 5)}
    transformation = deployed(rule, guard=guard)
    state = transformation.init(grads)
    step = jax.jit(lambda grads, state: transformation.update(grads, state, grads, value=1.0))
    updates, new = step(grads, state)
    expected, _ = (rule if guard is None else Guard(rule, guard)).update(grads, state.state, grads, value=jnp.ones(()))
    np.testing.assert_allclose(updates["p"], expected["p"], rtol=1e-5, atol=1e-7)
    assert jax.tree.structure(new) == jax.tree.structure(state)


SHARDED = """
import jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from bygrad.deploy import optax as deployed
from bygrad.optimizers import LSTM, Adam, Controller

assert jax.device_count() == 8
mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("a", "b"))
specs = {"w": P("a", "b"), "b": P()}
here = {"w": jnp.linspace(-1, 1, 48).reshape(8, 6), "b": jnp.ones(3)}
apart = {name: jax.device_put(leaf, NamedSharding(mesh, specs[name])) for name, leaf in here.items()}

def check(transformation):
    @jax.jit
    def step(params, state):
        updates, state = transformation.update(params, state, params, value=1.0)
        return optax.apply_updates(params, updates), state

    def run(params):
        state = transformation.init(params)
        for _ in range(3):
            params, state = step(params, state)
        return params, state

    (expected, _), before = run(here), step._cache_size()
    params, state = run(apart)
    assert step._cache_size() == before + 1, "compiled again for the second step"
    for name, leaf in params.items():
        np.testing.assert_allclose(leaf, expected[name], rtol=1e-6)
        assert leaf.sharding.is_equivalent_to(NamedSharding(mesh, specs[name]), leaf.ndim)
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state.optimizer))
    return state

state = check(deployed(LSTM(jax.random.key(0), (3,))))
assert state.state["w"].sharding.is_equivalent_to(NamedSharding(mesh, P(None, "a", "b")), 3)
check(deployed(Controller(jax.random.key(0))))
check(deployed(Controller(jax.random.key(0)), guard=Adam(), horizon=100))
"""


@pytest.mark.slow
def test_params_on_eight_devices_take_the_same_steps():
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", SHARDED], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_a_part_of_a_network_takes_the_steps_of_the_whole_where_it_is_told_the_depth(small, tmp_path):
    keys = iter(jax.random.split(jax.random.key(3), 8))
    params = {name: jax.random.normal(next(keys), (4, 5)) for name in "abcd"}
    grads = jax.tree.map(lambda leaf: jax.random.normal(next(keys), leaf.shape), params)
    part = {"a": True, "b": False, "c": False, "d": False}

    def updates(transformation: optax.GradientTransformation) -> jax.Array:
        return transformation.update(grads, transformation.init(params), params)[0]["a"]

    assert depth_of(params) == 4 and depth_of({"scale": jnp.ones(3)}) == 1
    controller = bygrad.load("general/controller")
    whole = updates(deployed(controller, horizon=9))
    close(updates(optax.masked(deployed(controller, horizon=9, depth=4), part)), whole)
    parts = Partition(parts={"one": controller, "rest": controller}, rules=(("a", "one"), ("*", "rest")))
    close(updates(deployed(parts, horizon=9, depth=4)), whole)
    assert deployed(Guard(parts, Adam()), depth=4).init(params).optimizer.learned.parts["one"].depth == 4
    guarded = deployed("general/controller", horizon=9, depth=depth_of(params), guard=Adam(1e-2))
    assert guarded.init({"a": params["a"]}).optimizer.learned.depth == 4
    assert float(jnp.max(jnp.abs(updates(optax.masked(deployed(controller, horizon=9), part)) / whole))) > 1.05
    # A file does not keep it.
    told = controller.with_depth(4)
    export(told, tmp_path / "it.safetensors", name="mine/it", training={}, validation={})
    assert bygrad.load(tmp_path / "it.safetensors").depth is None
    bygrad.deploy.verify(tmp_path / "it.safetensors")
    for wrong in (0, True):
        with pytest.raises(ValueError, match=r"The depth is .*, but it counts the tensors with two axes"):
            deployed(controller, horizon=9, depth=wrong)
    with pytest.raises(ValueError, match=r"steps of LSTM do not depend on the depth.* depth=4 would change nothing"):
        deployed(small, depth=4)
    with pytest.raises(ValueError, match=r"steps of Partition do not depend on the depth.* depth=4 would change"):
        deployed(make("Partition"), depth=4)
