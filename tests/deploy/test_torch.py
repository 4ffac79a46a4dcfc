"""An artifact in PyTorch: the steps that it takes in JAX, and a torch optimizer in everything else."""

import copy
import dataclasses
import gc
import io
import pickle  # noqa: TID251 - of what this process has just written
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bygrad
from bygrad.artifacts import Artifact, ArtifactError, Trajectory, describe, find, load
from bygrad.deploy import optax as deployed
from bygrad.deploy.jax import from_artifact
from bygrad.optimizers import LEARNED, LSTM, Controller, Optimizer, Scaled, declare

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")

from bygrad.deploy.torch import Adam as TorchAdam  # noqa: E402
from bygrad.deploy.torch import Guard as TorchGuard  # noqa: E402
from bygrad.deploy.torch import LearnedOptimizer, replay  # noqa: E402
from bygrad.deploy.torch_rules import RULES  # noqa: E402
from bygrad.deploy.torch_rules import base as rules_base  # noqa: E402
from bygrad.deploy.torch_rules import controller as torch_controller  # noqa: E402

ABOUT = {"name": "test/one", "training": {}, "validation": {}}
SHAPES = [(), (5,), (0,), (2, 0, 3), (7, 3), (2, 1, 3, 2, 2), (40, 33)]


def random_theta(optimizer: Optimizer) -> Optimizer:
    """Meta-parameters as training might leave them: none of them is zero."""
    rng = np.random.default_rng(0)

    def disturb(leaf: Any) -> Any:
        noise = 0.2 * rng.standard_normal(leaf.shape)
        return leaf + jnp.asarray(noise, leaf.dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(disturb, optimizer)


KINDS: dict[str, Callable[[], Optimizer]] = {
    **{name: lambda name=name: LEARNED[name](jax.random.key(0)) for name in RULES if name != "LSTM"},
    "Controller with reach": lambda: Controller(jax.random.key(0), reach=True),
    "Controller with decay": lambda: Controller(jax.random.key(0), weight_decay=1.0),
    "LSTM of one layer": lambda: LSTM(jax.random.key(1), (4,), Scaled(0.5), output_scale=2.0),
    "LSTM of three layers": lambda: LSTM(jax.random.key(2), (5, 3, 4), state_dtype="float32"),
}


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    path = tmp_path_factory.mktemp("artifacts") / "it.safetensors"
    return {name: bygrad.export(random_theta(make()), path, **ABOUT) for name, make in KINDS.items()} | {
        "LSTM": load(find("paper/mnist"))  # a trained one
    }


@pytest.fixture(scope="module")
def small(artifacts: dict[str, Artifact]) -> Artifact:
    return artifacts["LSTM of one layer"]


def tensors(arrays: list[np.ndarray], dtype: Any = None) -> list[Any]:
    return [torch.nn.Parameter(torch.from_numpy(np.array(array)).to(dtype)) for array in arrays]


def set_grads(params: list[Any], grads: list[np.ndarray]) -> None:
    for param, grad in zip(params, grads, strict=True):
        param.grad = torch.from_numpy(np.array(grad)).to(param.dtype)


def draw(seed: int, steps: int = 0) -> Iterator[list[np.ndarray]]:
    """Trees of arrays whose sizes span orders of magnitude: params first, then gradients."""
    rng = np.random.default_rng(seed)
    for _ in range(1 + steps):
        yield [rng.standard_normal(shape) * 10.0 ** rng.uniform(-5, 0.5, shape) for shape in SHAPES]


def run(optimizer: Any, params: list[Any], trees: Any) -> list[np.ndarray]:
    for grads in trees:
        set_grads(params, grads)
        optimizer.step()
    return [param.detach().float().numpy().copy() for param in params]


def widened(artifact: Artifact) -> Artifact:
    """The same in float64: a file is of its own precision."""
    wide = lambda it: it.astype(np.float64) if it.dtype.kind == "f" else it  # noqa: E731
    tensors = {name: wide(it) for name, it in artifact.tensors.items()}
    return Artifact(dataclasses.replace(artifact.manifest, tensors=describe(tensors)), tensors)


SLOW = ("Controller with decay", "LSTM of three layers")


@pytest.mark.parametrize(
    "name", ["LSTM", *(pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in KINDS)]
)
def test_the_same_steps_as_in_jax(name, artifacts):
    """In float64 over a whole run; in float32 step by step, each from the state of the run in float64."""
    start, *trees = draw(0, 12)
    wide, narrow = tensors(start, torch.float64), tensors(start, torch.float32)
    torch64, torch32 = LearnedOptimizer(wide, artifacts[name]), LearnedOptimizer(narrow, artifacts[name])
    single = from_artifact(artifacts[name])
    step32 = jax.jit(lambda grads, state, params: single.update(grads, state, params, value=jnp.ones(())))
    to_single = lambda tree: jax.tree.map(  # noqa: E731
        lambda leaf: jnp.asarray(leaf, jnp.float32 if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.dtype), tree
    )
    with jax.enable_x64(True):
        double = from_artifact(widened(artifacts[name]))
        points = [jnp.asarray(leaf) for leaf in start]
        state = double.init(points)
        step64 = jax.jit(lambda grads, state, params: double.update(grads, state, params, value=jnp.ones(())))
    for step, grads in enumerate(trees):
        # float32, from the states of the float64 runs.
        if step:
            torch32.load_state_dict(torch64.state_dict())
            for tensor_state in torch32.state.values():
                for key, entry in tensor_state.items():
                    if isinstance(entry, torch.Tensor) and entry.is_floating_point():
                        tensor_state[key] = entry.float()
        for param, point in zip(narrow, wide, strict=True):
            param.data = point.detach().float()
        here = [jnp.asarray(point.detach().numpy()) for point in narrow]
        state32 = to_single(jax.tree.map(np.asarray, state)) if step else single.init(here)
        theirs32, _ = step32([jnp.asarray(grad, jnp.float32) for grad in grads], state32, here)
        ours32 = updates_of(torch32, narrow, grads)
        assert off(ours32, theirs32) <= 1e-5, step
        # float64.
        with jax.enable_x64(True):
            theirs64, state = step64([jnp.asarray(grad) for grad in grads], state, points)
            points = [point + update for point, update in zip(points, theirs64, strict=True)]
        run(torch64, wide, [grads])
    moved = [np.asarray(point) - leaf for point, leaf in zip(points, start, strict=True)]
    assert off([param.detach().numpy() - leaf for param, leaf in zip(wide, start, strict=True)], moved) <= 1e-10


def updates_of(optimizer: Any, params: list[Any], grads: list[np.ndarray]) -> list[np.ndarray]:
    """The updates before they are added to params, which would round them."""
    set_grads(params, grads)
    points = [param.detach() for param in params]
    rule, states = optimizer._rule, [optimizer.state[param] or optimizer._rule.start(param) for param in params]
    return [update.numpy() for update in rule.step([param.grad for param in params], states, points, None)]


def off(ours: list[Any], theirs: list[Any]) -> float:
    """The largest difference over the largest update."""
    pairs = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in zip(ours, theirs, strict=True)]
    size = max(float(np.max(np.abs(b))) for _, b in pairs if b.size)
    assert all(a.shape == b.shape for a, b in pairs)
    return max(float(np.max(np.abs(a - b))) for a, b in pairs if a.size) / size


def test_training_a_network_goes_the_same_way_in_both(artifacts):
    """Both frameworks compute their own gradients, and neither sees the other."""
    torch.manual_seed(0)
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((16, 4)), rng.standard_normal((16, 2))
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)).double()
    start = [param.detach().numpy().copy() for param in model.parameters()]
    optimizer = LearnedOptimizer(model.parameters(), artifacts["LSTM"])

    def closure() -> Any:
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(torch.from_numpy(x)), torch.from_numpy(y))
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(20)]
    with jax.enable_x64(True):

        def loss(params: list[Any]) -> Any:
            w1, b1, w2, b2 = params
            return jnp.mean((jnp.tanh(x @ w1.T + b1) @ w2.T + b2 - y) ** 2)

        transformation = deployed(widened(artifacts["LSTM"]))
        params = [jnp.asarray(leaf) for leaf in start]
        state = transformation.init(params)

        @jax.jit
        def step(params: Any, state: Any) -> Any:
            value, grads = jax.value_and_grad(loss)(params)
            updates, state = transformation.update(grads, state, params, value=value)
            return [a + b for a, b in zip(params, updates, strict=True)], state, value

        for expected in losses:
            params, state, value = step(params, state)
            np.testing.assert_allclose(expected, value, rtol=1e-10)
    for ours, theirs in zip(model.parameters(), params, strict=True):
        np.testing.assert_allclose(ours.detach().numpy(), theirs, rtol=1e-9, atol=1e-10)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", RULES)
def test_blocks_change_nothing(name, artifacts, monkeypatch):
    start, *trees = draw(2, 3)
    params = tensors(start, torch.float64)
    whole = run(LearnedOptimizer(params, artifacts[name]), params, trees)
    for module in (rules_base, torch_controller):
        monkeypatch.setattr(module, "BLOCK", 4)
    params = tensors(start, torch.float64)
    for ours, theirs in zip(run(LearnedOptimizer(params, artifacts[name]), params, trees), whole, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize("sign", [1, -1])
def test_no_exponent_makes_an_update_overflow_or_vanish(sign, tmp_path):
    start, grads = draw(12, 1)
    params, updates = tensors(start, torch.float32), []
    for exponent in (10, 100):
        bias = jnp.array([0.0, 0.0, sign * exponent])
        optimizer = eqx.tree_at(lambda it: it.head_bias, LEARNED["Controller"](jax.random.key(0)), bias)
        artifact = bygrad.export(optimizer, tmp_path / "it.safetensors", **ABOUT)
        updates.append(updates_of(LearnedOptimizer(params, artifact), params, grads))
    for far, farther in zip(*updates, strict=True):
        assert np.all(np.isfinite(farther)) and np.all(farther != 0)
        np.testing.assert_array_equal(farther, far)


@pytest.mark.parametrize("name", RULES)
def test_a_gradient_whose_square_overflows_is_survived(name, artifacts):
    """In both frameworks alike; the squares of later ones are still compared with it."""
    shapes = [(4,), (8, 4)]
    params = tensors([np.ones(shape, np.float32) for shape in shapes])
    optimizer, theirs = LearnedOptimizer(params, artifacts[name]), from_artifact(artifacts[name])
    points = [jnp.ones(shape) for shape in shapes]
    state = theirs.init(points)
    for size in (1.0, 1.0, 1e25, 1.0, 1.0):
        run(optimizer, params, [[np.full(shape, size, np.float32) for shape in shapes]])
        grads = [jnp.full(shape, size) for shape in shapes]
        updates, state = theirs.update(grads, state, points, value=jnp.ones(()))
        points = [point + update for point, update in zip(points, updates, strict=True)]
    for param, point in zip(params, points, strict=True):
        assert torch.isfinite(param).all()
        np.testing.assert_allclose(param.detach(), point, rtol=1e-5)


def test_a_horizon_is_declared_to_rules_that_go_by_it(small, artifacts):
    start, *trees = draw(11, 3)
    long, short = tensors(start), tensors(start)
    run(LearnedOptimizer(long, artifacts["Controller"], horizon=10_000), long, trees)
    optimizer = LearnedOptimizer(short, artifacts["Controller"], horizon=5)
    run(optimizer, short, trees)
    assert not torch.equal(long[4], short[4])
    # A resumed run has the horizon that it started with.
    other = LearnedOptimizer(short, artifacts["Controller"])
    other.load_state_dict(optimizer.state_dict())
    assert {int(state["horizon"]) for state in other.state.values()} == {5}
    # As in JAX.
    declared = declare(from_artifact(artifacts["Controller"]), 5)
    points = [jnp.asarray(leaf, jnp.float32) for leaf in start]
    state = declared.init(points)
    step = jax.jit(lambda grads, state, points: declared.update(grads, state, points))
    for grads in trees:
        updates, state = step([jnp.asarray(grad, jnp.float32) for grad in grads], state, points)
        points = [point + update for point, update in zip(points, updates, strict=True)]
    np.testing.assert_allclose(short[4].detach().numpy(), points[4], rtol=1e-4)
    with pytest.raises(ValueError, match="horizon=7 would change nothing"):
        LearnedOptimizer(tensors(start), small, horizon=7)
    with pytest.raises(ValueError, match="The horizon is 0"):
        LearnedOptimizer(tensors(start), artifacts["Controller"], horizon=0)


def test_a_rule_that_goes_by_the_horizon_says_so_where_none_is_given(small, artifacts, recwarn):
    start = tensors(next(draw(11)))
    LearnedOptimizer(start, small)
    LearnedOptimizer(start, artifacts["Controller"], horizon=1_000)
    assert not recwarn
    with pytest.warns(UserWarning, match=r"test/one goes by how many steps .* for a run of 1,000.* Give horizon=\."):
        LearnedOptimizer(start, artifacts["Controller"])


def test_a_run_cannot_be_made_longer_in_its_middle(artifacts):
    start, *trees = draw(11, 1)
    for guard in (None, TorchAdam(1e-2)):
        params = tensors(start)
        optimizer = LearnedOptimizer(params, artifacts["Controller"], horizon=100, guard=guard)
        run(optimizer, params, trees)
        guard = guard and TorchAdam(1e-2)
        longer = LearnedOptimizer(params, artifacts["Controller"], horizon=5_000, guard=guard)
        with pytest.raises(ValueError, match=r"in a run of 100 steps, and this optimizer was made for 5000"):
            longer.load_state_dict(optimizer.state_dict())


def test_a_part_of_a_network_takes_the_steps_of_the_whole_where_it_is_told_the_depth(small, artifacts):
    start, grads = draw(11, 1)

    def updates(count: int, **given: Any) -> list[np.ndarray]:
        params = tensors(start[:count])
        optimizer = LearnedOptimizer(params, artifacts["Controller"], horizon=9, **given)
        return updates_of(optimizer, params, grads[:count])

    # What is not trained does not count.
    assert (depth := LearnedOptimizer.depth_of([*tensors(start), torch.ones(2, 2)])) == 4
    whole = updates(len(start))[:5]
    assert off(updates(5, depth=depth), whole) < 1e-6
    assert off(updates(5), whole) > 0.05
    assert LearnedOptimizer.depth_of([]) == 1
    network = torch.nn.Linear(2, 2)
    assert LearnedOptimizer.depth_of(network.named_parameters()) == LearnedOptimizer.depth_of(network.parameters()) == 1
    with pytest.raises(ValueError, match="The depth is 0, but it counts the tensors with two axes"):
        updates(5, depth=0)
    with pytest.raises(ValueError, match="depth=4 would change nothing"):
        LearnedOptimizer(tensors(start), small, depth=4)
    with pytest.raises(ValueError, match=r"group sets depth=3.*Give it to the optimizer"):
        LearnedOptimizer([{"params": tensors(start), "depth": 3}], artifacts["Controller"], horizon=9, depth=4)


@pytest.mark.parametrize("guarded", [False, True])
def test_the_depth_is_that_of_what_is_trained_and_not_of_what_has_a_gradient_now(guarded, artifacts):
    start, grads = draw(11, 1)

    def updates(idle: Callable[[Any], Any]) -> list[np.ndarray]:
        params = tensors(start)
        guard = TorchAdam(1e-2) if guarded else None
        optimizer = LearnedOptimizer(params, artifacts["Controller"], horizon=9, guard=guard)
        set_grads(params, grads)
        for param in params[5:]:
            param.grad = idle(param)
        before = [param.detach().clone() for param in params]
        optimizer.step()
        return [(param.detach() - old).numpy() for param, old in zip(params, before, strict=True)]

    assert off(updates(lambda param: None)[:5], updates(torch.zeros_like)[:5]) < 1e-6


@pytest.mark.parametrize("guarded", [False, True])
def test_layers_that_are_frozen_under_way_make_no_step_of_the_others_larger(guarded, artifacts):
    """Also where the run is resumed since then."""
    rng = np.random.default_rng(0)
    start, grads = ([rng.standard_normal((4, 4)) for _ in range(9)] for _ in range(2))
    guard = TorchAdam(1e-2) if guarded else None

    def last(frozen: bool, resumed: bool) -> np.ndarray:
        params = tensors(start)
        optimizer = LearnedOptimizer(params, artifacts["Controller"], horizon=200, guard=guard)
        given = {"value": 1.0} if guarded else {}
        for step in range(3):
            set_grads(params, grads)
            for param in params[:-1] if frozen and step else []:
                param.requires_grad_(False)
                param.grad = None
            if resumed and step == 2:
                saved = copy.deepcopy(optimizer.state_dict())
                optimizer = LearnedOptimizer(params, artifacts["Controller"], horizon=200, guard=guard)
                optimizer.load_state_dict(saved)
            optimizer.step(**given)
        return params[-1].detach().numpy()

    for resumed in (False, True):
        np.testing.assert_allclose(last(True, resumed), last(False, False), rtol=1e-12)


@pytest.mark.parametrize("name", RULES)
def test_a_param_that_gets_another_shape_is_refused_and_one_of_another_dtype_goes_on(name, artifacts):
    param = tensors([np.ones((2, 3))], torch.float32)[0]
    optimizer = LearnedOptimizer([param], artifacts[name])
    param.grad = torch.ones_like(param)
    optimizer.step()
    param.data, param.grad = param.data.double(), None
    param.grad = torch.ones_like(param)
    optimizer.step()
    assert {it.dtype for it in optimizer.state[param].values() if it.is_floating_point()} >= {torch.float64}
    before = param.data.clone()
    for shape in ((3, 2), (2,)):
        param.grad = None
        param.data = torch.ones(shape, dtype=torch.float64)
        param.grad = torch.ones_like(param)
        with pytest.raises(ValueError, match=re.escape(f"for a param of shape {list(shape)}")):
            optimizer.step()
        assert torch.equal(param, torch.ones(shape, dtype=torch.float64))
    param.grad, param.data = None, before.clone()
    param.grad = torch.ones_like(param)
    optimizer.step()
    assert not torch.equal(param, before)


@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_the_precision_of_a_users_products_is_none_of_a_rules(precision):
    artifact, before = load(find("paper/mnist")), torch.get_float32_matmul_precision()
    golden = Trajectory.from_fields(artifact.manifest.trajectory)
    torch.set_float32_matmul_precision(precision)
    try:
        assert golden.deviation(replay(artifact, golden.steps)) < 1e-4
        assert torch.get_float32_matmul_precision() == precision
        model = torch.linspace(0, 1, 256 * 256).view(256, 256)
        theirs = model @ model
        optimizer = LearnedOptimizer([param := torch.nn.Parameter(torch.ones(3))], artifact)
        param.grad = torch.ones(3)
        optimizer.step()
        assert torch.equal(model @ model, theirs)  # theirs go on as they were
    finally:
        torch.set_float32_matmul_precision(before)


def test_frozen_whole_numbers_are_left_alone(small):
    frozen = torch.nn.Parameter(torch.arange(4, dtype=torch.uint8), requires_grad=False)
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = LearnedOptimizer([weight, frozen], small)
    weight.sum().backward()
    optimizer.step()
    assert frozen.tolist() == [0, 1, 2, 3] and not torch.equal(weight.detach(), torch.ones(3))


def test_a_guard_hears_of_a_horizon_that_every_group_has(artifacts):
    params = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    groups = [{"params": [param], "horizon": horizon} for param, horizon in zip(params, (60, 40), strict=True)]
    optimizer = LearnedOptimizer(groups, artifacts["Controller"], guard=TorchAdam(1e-2))
    assert optimizer.state_dict()["param_groups"][0]["guard"]["horizon"] == 60


def test_a_resumed_run_keeps_its_depth(artifacts):
    start, *trees = draw(11, 1)
    counted, told = (
        LearnedOptimizer(tensors(start), artifacts["Controller"], horizon=9, depth=depth) for depth in (None, 7)
    )
    run(told, told.param_groups[0]["params"], trees)
    with pytest.raises(ValueError, match=r"in a run of depth 7, and this optimizer counts it itself.*Give depth=7"):
        counted.load_state_dict(told.state_dict())
    told.load_state_dict(counted.state_dict())  # who finds out later that it has to be told
    assert told.state_dict()["param_groups"][0]["depth"] == 7
    assert copy.deepcopy(told)._rule.depth == 7


def test_an_optimizer_whose_params_are_divided_needs_the_depth_and_has_no_guard(small, artifacts, tmp_path):
    zero = pytest.importorskip("torch.distributed.optim").ZeroRedundancyOptimizer
    params = tensors(next(draw(11)))

    def divided(artifact: Artifact, **given: Any) -> Any:
        return zero(params, optimizer_class=LearnedOptimizer, artifact=artifact, **given)

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        assert divided(artifacts["Controller"], horizon=9, depth=5).optim._rule.depth == 5
        divided(small)  # goes by no depth
        with pytest.raises(ValueError, match=r"each process sees a part of it: .*Give depth="):
            divided(artifacts["Controller"], horizon=9)
        with pytest.raises(ValueError, match=r"A guard in ZeroRedundancyOptimizer .*Leave out guard="):
            divided(artifacts["Controller"], horizon=9, depth=5, guard=TorchAdam(1e-2))
    finally:
        torch.distributed.destroy_process_group()


def test_a_run_beyond_its_horizon_is_remarked_on_once_also_if_it_was_resumed(artifacts, recwarn):
    start, *trees = draw(11, 7)
    warnings.simplefilter("always")  # each of two optimizers tells it
    for guard in (None, TorchAdam(1e-2)):
        params = tensors(start)
        optimizer = LearnedOptimizer(params, artifacts["Controller"], horizon=4, guard=guard)
        optimizer.add_param_group({"params": tensors([np.ones(3)]), "horizon": 2})  # over before: that is no mistake
        for step, grads in enumerate(trees):
            if step == 2 and guard is None:
                saved, optimizer = optimizer.state_dict(), LearnedOptimizer(params, artifacts["Controller"], horizon=4)
                optimizer.add_param_group({"params": tensors([np.ones(3)]), "horizon": 2})
                optimizer.load_state_dict(saved)
            recwarn.clear()
            set_grads(params, grads)
            optimizer.step(value=1.0)
            told = [str(it.message) for it in recwarn]
            assert len(told) == (step == 4), (step, told)
            assert all("has passed its horizon of 4 steps" in it for it in told)
            assert all(it.filename == __file__ for it in recwarn)  # the line that took the step


@pytest.mark.parametrize("guarded", [False, True], ids=["bare", "guarded"])
def test_a_group_that_joins_later_has_its_own_horizon(guarded, artifacts):
    """Its params take the steps of a run of that length."""

    def optimizer(params: Any, horizon: int) -> Any:
        guard = (lambda rule: TorchGuard(rule, TorchAdam(1e-2), share=0.0)) if guarded else None
        return LearnedOptimizer(params, artifacts["Controller"], horizon=horizon, guard=guard)

    start, *trees = draw(13, 6)
    early, late, alone = tensors(start), tensors(start), tensors(start)
    both = optimizer([{"params": early}], 6)
    run(both, early, trees[:3])
    for param in early:  # it counts no longer to the depth
        param.grad = None
        param.requires_grad_(False)
    both.add_param_group({"params": late, "horizon": 3})
    run(both, late, trees[3:])
    run(optimizer(alone, 3), alone, trees[3:])
    assert all(map(torch.equal, late, alone))
    # A resumed run has the horizons that it started with.
    again = optimizer([{"params": tensors(start)}, {"params": tensors(start), "horizon": 3}], 6)
    again.load_state_dict(both.state_dict())
    other = optimizer([{"params": tensors(start)}, {"params": tensors(start), "horizon": 5}], 6)
    with pytest.raises(ValueError, match=r"in a run of 3 steps, and this optimizer was made for 5"):
        other.load_state_dict(both.state_dict())
    with pytest.raises(ValueError, match="The horizon is 0"):
        both.add_param_group({"params": tensors(start), "horizon": 0})
    if guarded:  # where the rule starts afresh, its run is as long as before
        rule, name = both._rule.learned, "learned/horizon"
        rule._layers = [(bias * float("nan"), weights) for bias, weights in rule._layers]
        rule._constants.clear()
        run(both, late, trees[:1])
        assert both.report()["replaced"] == 1 and {int(both.state[param][name]) for param in late} == {3}


@pytest.mark.parametrize("default", ["cpu", "meta"])
@pytest.mark.parametrize("name", ["LSTM", "Controller"])
def test_a_step_waits_for_no_device(name, default, artifacts):
    """Tensors without data stand for an accelerator: to read one of them would be to wait for it."""
    params = [torch.nn.Parameter(torch.empty(shape, device="meta")) for shape in SHAPES]
    with torch.device(default):
        optimizer = LearnedOptimizer(params, artifacts[name], lr=0.5)
        for _ in range(2):
            for param in params:
                param.grad = torch.empty_like(param)
            optimizer.step()
    with pytest.raises(RuntimeError, match="meta"):
        params[0].tolist()


def test_closures_return_their_loss_and_compute_with_gradients_on(small):
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = LearnedOptimizer([weight], small)

    def closure() -> Any:
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 3.0
    assert weight.grad is not None and weight.requires_grad
    assert optimizer.step() is None


def test_a_closure_may_return_anything_and_a_guard_asks_for_a_number(small):
    def step(result: Any, **kwargs: Any) -> Any:
        weight = torch.nn.Parameter(torch.ones(3))
        weight.grad = torch.ones(3)
        optimizer = LearnedOptimizer([weight], small, **kwargs)
        returned = optimizer.step(lambda: result)
        assert not torch.equal(weight, torch.ones(3))
        return returned

    for result in ({"loss": 1.0}, (torch.ones(2), "two"), torch.ones(8)):
        assert step(result) is result
    for result, found in [({"loss": 1.0}, "a dict"), (torch.ones(8), r"of shape \[8\]")]:
        with pytest.raises(TypeError, match=f"The loss is {found}, and a guard compares numbers"):
            step(result, guard=TorchAdam(0.01))
    for result in (1, 1.0, np.float32(1), torch.ones(1), torch.ones(())):
        assert step(result, guard=TorchAdam(0.01)) is result


@pytest.mark.parametrize("name", RULES)
def test_the_lr_of_each_group_multiplies_and_schedulers_set_it(name, artifacts):
    start, grads = draw(3, 1)
    bare, scaled = tensors(start), tensors(start)
    run(LearnedOptimizer(bare, artifacts[name]), bare, [grads])
    optimizer = LearnedOptimizer([{"params": scaled[:2]}, {"params": scaled[2:], "lr": 0.25}], artifacts[name], lr=0.5)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1)
    run(optimizer, scaled, [grads])
    for index, (a, b, leaf) in enumerate(zip(bare, scaled, start, strict=True)):
        moved = (0.5 if index < 2 else 0.25) * (a.detach().numpy() - leaf)
        np.testing.assert_allclose(b.detach().numpy() - leaf, moved, rtol=1e-5, atol=1e-9)
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.05, 0.025])
    tensor_rate = tensors(start)
    half = torch.tensor([0.5], dtype=torch.float64)
    run(LearnedOptimizer(tensor_rate, artifacts[name], lr=half), tensor_rate, [grads])
    np.testing.assert_array_equal(tensor_rate[1].detach().numpy(), scaled[1].detach().numpy())
    one, still = tensors(start), tensors(start)
    run(LearnedOptimizer(one, artifacts[name], lr=0.0), one, [grads])
    assert all(torch.equal(a, b) for a, b in zip(one, still, strict=True))


@pytest.mark.parametrize("name", RULES)
def test_a_param_without_gradient_is_left_alone_with_its_state(name, artifacts):
    start, first, second, third = draw(4, 3)
    params, alone = tensors(start), tensors(start)
    optimizer, other = LearnedOptimizer(params, artifacts[name]), LearnedOptimizer(alone, artifacts[name])
    run(optimizer, params, [first])
    run(other, alone, [first])
    frozen, state = params[4].detach().clone(), copy.deepcopy(optimizer.state[params[4]])
    set_grads(params, second)
    params[4].grad = None
    optimizer.step()
    assert torch.equal(params[4], frozen)
    for key, entry in optimizer.state[params[4]].items():
        assert torch.equal(entry, state[key])
    run(optimizer, params, [third])
    assert not torch.equal(params[4], frozen)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("block", [2**19, 4])
def test_params_and_gradients_of_any_memory_layout(name, block, artifacts, monkeypatch):
    monkeypatch.setattr(torch_controller, "BLOCK", block)
    start, grads = draw(5, 1)
    plain, strided = tensors([start[4]]), tensors([np.ascontiguousarray(start[4].T)])
    strided[0].data = strided[0].data.t()
    run(LearnedOptimizer(plain, artifacts[name]), plain, [[grads[4]]])
    strided[0].grad = torch.from_numpy(np.asfortranarray(grads[4]))
    assert not strided[0].is_contiguous() and not strided[0].grad.is_contiguous()
    LearnedOptimizer(strided, artifacts[name]).step()
    assert not strided[0].is_contiguous()
    np.testing.assert_allclose(strided[0].detach(), plain[0].detach(), rtol=1e-12)


@pytest.mark.parametrize("name", ["Controller with reach", "Controller with decay"])
@pytest.mark.parametrize("block", [2**19, 100])
@pytest.mark.parametrize("like", ["params", "gradients", "neither"])
def test_moments_lie_in_memory_as_their_params_do(like, block, name, artifacts, monkeypatch):
    """Channels last, say; a state that was saved of others is arranged so too."""
    monkeypatch.setattr(torch_controller, "BLOCK", block)
    rng = np.random.default_rng(0)
    start, *grads = ([rng.standard_normal((70, 6, 3, 3)), rng.standard_normal(6)] for _ in range(4))
    plain, last = tensors(start), tensors(start)
    if like != "gradients":
        last[0].data = last[0].data.contiguous(memory_format=torch.channels_last)
    trained, optimizer = LearnedOptimizer(plain, artifacts[name]), LearnedOptimizer(last, artifacts[name])
    run(trained, plain, grads[:1])
    optimizer.load_state_dict(copy.deepcopy(trained.state_dict()))
    last[0].data.copy_(plain[0].data)
    last[1].data.copy_(plain[1].data)
    for one in grads[1:]:
        run(trained, plain, [one])
        set_grads(last, one)
        if like != "neither":
            last[0].grad = last[0].grad.contiguous(memory_format=torch.channels_last)
        optimizer.step()
    for entry in ("mean", "square"):
        assert optimizer.state[last[0]][entry].stride() == last[0].stride()
    assert (last[0].is_contiguous()) == (like == "gradients")
    for one, other in zip(last, plain, strict=True):
        np.testing.assert_allclose(one.detach(), other.detach(), rtol=1e-10)


def test_rates_that_differ_by_group_wait_for_no_device(artifacts):
    """Tensors without data stand for an accelerator, from which no number could be read."""
    params = [torch.nn.Parameter(torch.ones(3, device="meta")) for _ in range(4)]
    groups = [{"params": params[:2]}, {"params": params[2:3], "lr": 0.5}, {"params": params[3:], "lr": torch.ones(())}]
    rates = torch_controller._together([0.5, 0.5, 0.25, torch.tensor(2.0)], torch.ones(()))
    assert rates.tolist() == [0.5, 0.5, 0.25, 2.0]
    optimizer = LearnedOptimizer(groups, artifacts["Controller"], horizon=9)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert optimizer.state[params[0]]["mean"].device.type == "meta"


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_a_resumed_run_goes_on_bit_for_bit(name, dtype, artifacts):
    """Also through a file, and for bfloat16 params, whose float32 state torch alone would cast to bfloat16."""
    start, *trees = draw(6, 6)
    params = tensors(start, getattr(torch, dtype))
    optimizer = LearnedOptimizer(params, artifacts[name])
    run(optimizer, params, trees[:3])
    file = io.BytesIO()
    torch.save({"params": params, "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = [torch.nn.Parameter(param.detach().clone()) for param in saved["params"]]
    other = LearnedOptimizer(resumed, artifacts[name])
    other.load_state_dict(saved["optimizer"])
    for theirs, ours in zip(params, resumed, strict=True):
        for key, entry in optimizer.state[theirs].items():
            assert other.state[ours][key].dtype == entry.dtype
            assert torch.equal(other.state[ours][key], entry)
            assert not entry.is_floating_point() or entry.dtype == torch.promote_types(theirs.dtype, torch.float32)
    for ours, theirs in zip(run(other, resumed, trees[3:]), run(optimizer, params, trees[3:]), strict=True):
        assert ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("guarded", [False, True], ids=["bare", "guarded"])
@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize(("before", "after"), [("float64", "float32"), ("float32", "float64"), ("float64", "bfloat16")])
def test_a_run_goes_on_in_another_precision(before, after, name, guarded, artifacts):
    """As with torch's own optimizers: the state follows the params into theirs, or into float32."""
    start, *trees = draw(6, 6)
    params, others = tensors(start, getattr(torch, before)), tensors(start, getattr(torch, after))
    optimizer, other = (
        LearnedOptimizer(it, artifacts[name], guard=TorchAdam(0.01) if guarded else None) for it in (params, others)
    )
    run(optimizer, params, trees[:3])
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for param in others:
        fresh = other._rule.start(param)
        assert {key: entry.dtype for key, entry in other.state[param].items()} == {
            key: entry.dtype for key, entry in fresh.items()
        }
    kept = [param.detach().float().clone() for param in others]
    for ours, theirs in zip(run(other, others, trees[3:]), kept, strict=True):
        assert np.isfinite(ours).all() and (not ours.size or not np.array_equal(ours, theirs.numpy()))


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("name", RULES)
def test_a_run_goes_on_bit_for_bit_from_a_state_dict_that_was_taken_apart(name, flat, artifacts, recwarn):
    """`torch.distributed.checkpoint` begins the states of an optimizer by a step without a loss, which is no mistake of
    the user's."""
    tools = pytest.importorskip("torch.distributed.checkpoint.state_dict")
    options = tools.StateDictOptions(flatten_optimizer_state_dict=flat)
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((8, 3)))

    def started() -> tuple[Any, Any]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).double()
        guard = lambda rule: TorchGuard(rule, TorchAdam(0.01), window=4, share=0.5, growth=0.0)  # noqa: E731
        return model, LearnedOptimizer(model.parameters(), artifacts[name], guard=guard)

    def train(model: Any, optimizer: Any) -> None:
        for _ in range(9):
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step(value=loss)

    model, optimizer = started()
    train(model, optimizer)
    saved = tools.get_optimizer_state_dict(model, optimizer, options=options)
    other, resumed = started()
    other.load_state_dict(model.state_dict())
    tools.set_optimizer_state_dict(other, resumed, saved, options=options)
    for its in ((model, optimizer), (other, resumed)):
        train(*its)
    assert all(map(torch.equal, model.parameters(), other.parameters()))
    assert optimizer.report() == resumed.report() and optimizer.report()["trials"]
    assert not any("was given no loss" in str(it.message) for it in recwarn)


def test_a_loaded_state_is_a_copy_and_hooks_see_it(small):
    start, grads = draw(7, 1)
    params, others = tensors(start), tensors(start)
    optimizer, other = LearnedOptimizer(params, small), LearnedOptimizer(others, small)
    run(optimizer, params, [grads])
    state, seen = optimizer.state_dict(), []
    before = state["state"][4]["state"].clone()

    def double(_: Any, given: dict[str, Any]) -> dict[str, Any]:
        changed = {k: {name: 2 * entry for name, entry in entries.items()} for k, entries in given["state"].items()}
        return {**given, "state": changed}

    other.register_load_state_dict_pre_hook(double)
    other.register_load_state_dict_post_hook(lambda it: seen.append(it.state[others[4]]["state"].clone()))
    other.load_state_dict(state)
    assert torch.equal(other.state[others[4]]["state"], 2 * before) and torch.equal(seen[0], 2 * before)
    run(other, others, [grads])
    assert torch.equal(state["state"][4]["state"], before)
    assert len(other._optimizer_load_state_dict_pre_hooks) == len(other._optimizer_load_state_dict_post_hooks) == 1


def test_the_state_of_another_artifact_is_refused_and_changes_nothing(small, artifacts):
    start, grads = draw(8, 1)
    params = tensors(start)
    optimizer = LearnedOptimizer(params, small)
    run(optimizer, params, [grads])
    before = copy.deepcopy(optimizer.state_dict())
    for other in (LearnedOptimizer(tensors(start), artifacts["LSTM"]), torch.optim.Adam(tensors(start))):
        with pytest.raises(ValueError, match=rf"of digest (\w+), and test/one has {small.manifest.digest}"):
            optimizer.load_state_dict(other.state_dict())
    after = optimizer.state_dict()
    assert str(before["param_groups"]) == str(after["param_groups"])
    assert torch.equal(before["state"][4]["state"], after["state"][4]["state"])
    assert len(optimizer._optimizer_load_state_dict_pre_hooks) == 0


def test_the_digest_is_of_what_decides_the_steps(small, artifacts, tmp_path):
    renamed = bygrad.export(from_artifact(small), tmp_path / "it.safetensors", **ABOUT | {"name": "test/two"})
    assert renamed.manifest.digest == small.manifest.digest
    assert len({artifact.manifest.digest for artifact in artifacts.values()}) == len(artifacts)
    optimizer = LearnedOptimizer(tensors([np.ones(2)]), small)
    assert optimizer.state_dict()["param_groups"][0]["theta"] == small.manifest.digest
    assert small.manifest.digest in repr(optimizer)


def test_tensors_do_not_pile_up(small):
    params, counts = tensors([np.ones((7, 3))]), []
    optimizer = LearnedOptimizer(params, small, guard=TorchAdam(0.01))
    for i in range(60):
        set_grads(params, [np.ones((7, 3))])
        optimizer.step(value=1.0)
        if i in (9, 59):
            gc.collect()
            counts.append(sum(issubclass(type(it), torch.Tensor) for it in gc.get_objects()))
    assert counts[1] <= counts[0]  # fewer, if something else was collected


def pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))  # noqa: S301 - as above


@pytest.mark.parametrize("name", ["LSTM of one layer", "Controller"])
@pytest.mark.parametrize("copied", [copy.deepcopy, pickled], ids=["copy", "pickle"])
def test_copies_are_whole(copied, name, artifacts):
    start, first, second = draw(9, 2)
    params = tensors(start)
    optimizer = LearnedOptimizer(params, artifacts[name], horizon=9 if name == "Controller" else None)
    run(optimizer, params, [first])
    params2, optimizer2 = copied((params, optimizer))
    optimizer2.load_state_dict(optimizer2.state_dict())
    for ours, theirs in zip(run(optimizer2, params2, [second]), run(optimizer, params, [second]), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_gradient_scaler_skips_what_overflows(small):
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer, scaler = LearnedOptimizer([weight], small), torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(weight.square().sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    plain = torch.nn.Parameter(torch.ones(3))
    plain.grad = torch.full((3,), 2.0)
    LearnedOptimizer([plain], small).step()
    assert torch.equal(weight, plain)
    before, state = weight.detach().clone(), optimizer.state[weight]["state"].clone()
    optimizer.zero_grad()
    scaler.scale(weight.sum() * float("inf")).backward()
    scaler.step(optimizer)
    assert torch.equal(weight, before) and torch.equal(optimizer.state[weight]["state"], state)


@pytest.mark.parametrize("name", [*RULES, "Controller with reach"])
def test_the_same_steps_under_autocast_and_whatever_the_default_dtype_and_device(name, artifacts):
    """Torch's own optimizers do not see either."""
    start, *trees = draw(11, 3)
    plain, inside, narrow, far = (tensors(start, torch.float32) for _ in range(4))
    wanted = run(LearnedOptimizer(plain, artifacts[name]), plain, trees)
    with torch.autocast("cpu", torch.bfloat16):
        inside = run(LearnedOptimizer(inside, artifacts[name]), inside, trees)
        assert torch.is_autocast_enabled("cpu")
    torch.set_default_dtype(torch.bfloat16)
    try:
        narrow = run(LearnedOptimizer(narrow, artifacts[name]), narrow, trees)
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.device("meta"):
        far = run(LearnedOptimizer(far, artifacts[name]), far, trees)
    for it, *others in zip(wanted, inside, narrow, far, strict=True):
        for other in others:
            np.testing.assert_array_equal(other, it)


@pytest.mark.parametrize("guarded", [False, True], ids=["bare", "guarded"])
@pytest.mark.parametrize("closed", [False, True], ids=["step()", "step(closure)"])
def test_inside_a_compiled_training_step(closed, guarded, artifacts):
    """The model is compiled and the step left out: the losses are those of eager training, and nothing is compiled
    again for later steps."""
    x, y = (torch.from_numpy(np.random.default_rng(k).standard_normal((8, 3))) for k in range(2))
    graphs = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    def train(compiled: bool) -> list[float]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3)).double()
        guard = TorchAdam(0.01) if guarded else None
        optimizer = LearnedOptimizer(model.parameters(), artifacts["Controller"], guard=guard)

        def compute() -> Any:
            optimizer.zero_grad()
            loss = (model(x) - y).square().mean()
            loss.backward()
            return loss

        def step() -> Any:
            if closed:
                return optimizer.step(compute)
            loss = compute()
            optimizer.step(value=loss)
            return loss

        run = torch.compile(step, backend=backend) if compiled else step
        losses = [run().item() for _ in range(6)]
        if compiled:
            before = len(graphs)
            losses += [run().item() for _ in range(10)]
            assert 0 < before == len(graphs)
        return losses

    eager, compiled = train(False), train(True)
    np.testing.assert_allclose(compiled[:6], eager, rtol=1e-12)
    assert compiled[-1] < compiled[0]


def test_complex_params_are_refused(small):
    with pytest.raises(TypeError, match=r"dtype torch.complex64.*Give torch.view_as_real"):
        LearnedOptimizer([torch.ones(2, dtype=torch.complex64)], small)


def test_params_that_are_divided_over_processes_are_refused(small, tmp_path):
    distributed = pytest.importorskip("torch.distributed.tensor").distribute_tensor
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        param = torch.nn.Parameter(distributed(torch.ones(4), mesh))
        optimizer = LearnedOptimizer([torch.ones(2, requires_grad=True)], small)
        with pytest.raises(
            TypeError, match=r"of shape \[4\] is a DTensor.*DistributedDataParallel in place of fully_sh"
        ):
            optimizer.add_param_group({"params": [param]})
        assert len(optimizer.param_groups) == 1
    finally:
        torch.distributed.destroy_process_group()


def test_sparse_gradients_are_refused(small):
    table = torch.nn.Embedding(4, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(TypeError, match=r"layout torch.sparse_coo.*sparse=False"):
        LearnedOptimizer(table.parameters(), small).step()


def test_a_negative_lr_is_refused_and_one_of_adam_remarked_on(small):
    param = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match="lr is -1"):
        LearnedOptimizer([param], small, lr=-1.0)
    for rate in (np.inf, np.nan, torch.tensor(-1.0)):
        with pytest.raises(ValueError, match="lr is"):
            LearnedOptimizer([param], small, lr=rate)
    with pytest.raises(ValueError, match="lr is -3"):
        LearnedOptimizer([{"params": [param], "lr": -3.0}], small)
    with pytest.warns(UserWarning, match="lr is 0.001: it multiplies"):
        LearnedOptimizer([param], small, lr=1e-3)
    optimizer = LearnedOptimizer([param], small)
    with pytest.warns(UserWarning, match="lr is 0.0003: it multiplies"):
        optimizer.add_param_group({"params": [torch.ones(2, requires_grad=True)], "lr": 3e-4})


@pytest.mark.parametrize(
    ("schedule", "told"),
    [
        (
            lambda it: torch.optim.lr_scheduler.OneCycleLR(it, 3e-3, 300, cycle_momentum=False),
            "lr was at most 0.003 in",
        ),
        (lambda it: torch.optim.lr_scheduler.LambdaLR(it, lambda step: (step + 1) / 5_100), "lr was at most 0.0196"),
        (lambda it: torch.optim.lr_scheduler.LambdaLR(it, lambda step: (step + 1) / 4_900), None),  # a warm-up
        (lambda it: torch.optim.lr_scheduler.CosineAnnealingLR(it, T_max=100), None),
    ],
    ids=["OneCycleLR", "slow warm-up", "warm-up", "CosineAnnealingLR"],
)
def test_a_scheduler_with_rates_of_adam_is_remarked_on_once(schedule, told, small, recwarn):
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = LearnedOptimizer([weight], small)
    scheduler = schedule(optimizer)
    for step in range(150):
        weight.grad = torch.ones(3)
        optimizer.step()
        scheduler.step()
        assert len(recwarn) == (told is not None and step >= 99), step
    assert told is None or told in str(recwarn[0].message)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("shape", [(6, 4), (9, 4), (4,), (4, 8), (32,), (8, 2, 2)])
def test_the_state_of_another_model_is_refused_with_its_shape(name, shape, artifacts):
    param, other = tensors([np.ones((8, 4)), np.ones(shape)], torch.float32)
    optimizer, resumed = LearnedOptimizer([param], artifacts[name]), LearnedOptimizer([other], artifacts[name])
    for one, its in ((param, optimizer), (other, resumed)):
        one.grad = torch.ones_like(one)
        its.step()
    before = copy.deepcopy(resumed.state_dict())
    with pytest.raises(ValueError, match=re.escape(f"for a param of shape {list(shape)}")):
        resumed.load_state_dict(optimizer.state_dict())
    for key, entry in before["state"][0].items():
        assert torch.equal(entry, resumed.state_dict()["state"][0][key])


def test_a_state_that_lies_flat_is_read_as_before(small):
    """State dicts were written so: the numbers of each tensor in a row, in the same order."""
    start, first, second = draw(7, 2)
    params, others = tensors(start), tensors(start)
    optimizer, other = LearnedOptimizer(params, small), LearnedOptimizer(others, small)
    run(optimizer, params, [first])
    run(other, others, [first])
    flat = optimizer.state_dict()
    flat["state"] = {index: {"state": entries["state"].flatten()} for index, entries in flat["state"].items()}
    other.load_state_dict(flat)
    for ours, theirs in zip(run(other, others, [second]), run(optimizer, params, [second]), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", RULES)
def test_a_state_that_is_put_in_past_load_state_dict_is_checked_at_the_next_step(name, artifacts, tmp_path):
    """As ZeroRedundancyOptimizer does it, which also moves numbers to the CPU, wherever the params are."""
    zero = pytest.importorskip("torch.distributed.optim").ZeroRedundancyOptimizer

    def divided(params: list[Any], name: str = name, depth: int = 5, horizon: int = 9) -> Any:
        given = {"horizon": horizon, "depth": depth} if name == "Controller" else {}
        return zero(params, optimizer_class=LearnedOptimizer, artifact=artifacts[name], **given)

    start, first, second = draw(9, 2)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        params = tensors(start, torch.float32)
        optimizer = divided(params)
        run(optimizer, params, [first])

        def saved() -> Any:
            optimizer.consolidate_state_dict(0)
            return copy.deepcopy(optimizer.state_dict())

        def refused(other: Any, its: list[Any], state: Any, message: str) -> None:
            other.load_state_dict(state)
            before = [param.detach().clone() for param in its]
            set_grads(its, [np.ones(param.shape) for param in its])
            with pytest.raises(ValueError, match=message):
                other.step()
            assert all(map(torch.equal, its, before))

        others = [torch.nn.Parameter(param.detach().clone()) for param in params]
        resumed, state = divided(others), saved()
        resumed.load_state_dict(state)
        kept = copy.deepcopy(state["state"])
        ours, theirs = run(resumed, others, [second]), run(optimizer, params, [second])
        assert all(map(np.array_equal, ours, theirs))
        assert all(torch.equal(state["state"][k][key], entry) for k in kept for key, entry in kept[k].items())
        transposed = [torch.nn.Parameter(param.detach().t().clone() if param.ndim == 2 else param) for param in params]
        refused(divided(transposed), transposed, saved(), r"for a param of shape \[33, 40\]")
        foreign = next(it for it in RULES if it != name)
        refused(divided(others, foreign), others, saved(), "saved with an optimizer of digest")
        if name == "Controller":
            refused(divided(others, depth=6), others, saved(), "in a run of depth 5.*was made for 6")
            refused(divided(others, horizon=8), others, saved(), "in a run of 9 steps.*was made for 8")
        adam = torch.optim.Adam(others)
        adam.step()
        refused(divided(others), others, adam.state_dict(), f"holds no {'mean' if name == 'Controller' else 'state'}")
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("name", RULES)
def test_a_state_from_another_device_follows_the_params(name, artifacts):
    """Tensors without data stand for an accelerator."""
    param, other = (torch.nn.Parameter(torch.ones(7, 3, device=device)) for device in ("cpu", "meta"))
    optimizer, resumed = (LearnedOptimizer([it], artifacts[name]) for it in (param, other))
    param.grad, other.grad = torch.ones_like(param), torch.ones_like(other)
    optimizer.step()
    resumed.state[other] = optimizer.state[param]
    resumed.step()
    assert {entry.device.type for entry in resumed.state[other].values()} == {"meta"}
    assert {entry.device.type for entry in optimizer.state[param].values()} == {"cpu"}


@pytest.mark.parametrize("setting", [{"weight_decay": 0.5}, {"maximize": True}, {"horizon": 10}])
def test_settings_of_a_group_that_would_be_ignored_are_refused(setting, small):
    with pytest.raises(ValueError, match=f"A param group sets {next(iter(setting))}, which test/one does not have"):
        LearnedOptimizer([{"params": [torch.ones(2, requires_grad=True)], **setting}], small)


def test_the_horizon_of_a_guard_comes_with_its_state(small):
    """Also where the rule has none."""
    params = tensors([np.ones(3)])
    saved = LearnedOptimizer(params, small, guard=TorchAdam(0.01), horizon=100)
    optimizer = LearnedOptimizer(params, small, guard=TorchAdam(0.01))
    optimizer.load_state_dict(saved.state_dict())
    set_grads(params, [np.ones(3)])
    optimizer.step(value=1.0)
    assert optimizer.state_dict()["param_groups"][0]["guard"]["horizon"] == 100


def test_the_horizon_of_a_guard_is_not_replaced_by_another(small):
    params = tensors([np.ones(3)])
    saved = LearnedOptimizer(params, small, guard=TorchAdam(0.01), horizon=100)
    optimizer = LearnedOptimizer(params, small, guard=TorchAdam(0.01), horizon=200)
    with pytest.raises(ValueError, match="saved in a run of 100 steps, and this optimizer was made for 200"):
        optimizer.load_state_dict(saved.state_dict())


def test_a_horizon_that_is_changed_under_way_is_remarked_on_and_saved_as_it_is(artifacts, recwarn):
    params = tensors([np.ones((3, 3))])

    def made(horizon: int) -> Any:
        return LearnedOptimizer(params, artifacts["Controller"], horizon=horizon)

    optimizer = made(100)
    set_grads(params, [np.ones((3, 3))])
    optimizer.step()
    optimizer.param_groups[0]["horizon"] = 500
    with pytest.warns(UserWarning, match="changed under way: params that have taken a step keep that of their first"):
        optimizer.step()
    recwarn.clear()
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match="saved in a run of 100 steps"):
        made(500).load_state_dict(saved)
    resumed = made(100)
    resumed.load_state_dict(saved)
    resumed.step()
    assert not recwarn.list


def test_a_schedule_of_what_would_be_ignored_is_refused(small):
    param = torch.ones(2, requires_grad=True)
    optimizer = LearnedOptimizer([{"params": [param], "weight_decay": 0.0}], small)
    param.grad = torch.ones(2)
    optimizer.step()
    moved = param.detach().clone()
    optimizer.param_groups[0]["weight_decay"] = 0.1
    with pytest.raises(ValueError, match="sets weight_decay, which test/one does not have"):
        optimizer.step()
    assert torch.equal(param, moved)


def test_labels_of_groups_are_kept(small, artifacts):
    """Those of users, of schedulers, and of tools that give an optimizer its own arguments in every group."""
    group = {"params": [torch.ones(2, requires_grad=True)], "name": "head", "lr_scale": 0.5, "max_lr": 1.0}
    assert LearnedOptimizer([group], small).param_groups[0]["name"] == "head"
    group |= {"artifact": "it", "horizon": 7, "depth": 3, "weight_decay": 0.0, "maximize": False, "rho": 0.05}
    optimizer = LearnedOptimizer([group], artifacts["Controller"], horizon=7, depth=3)
    assert optimizer.param_groups[0]["horizon"] == 7


def changed(artifact: Artifact, **fields: Any) -> Artifact:
    kinds = type(artifact.manifest).__dataclass_fields__
    kept = {name: getattr(artifact.manifest, name) for name in kinds}
    return Artifact(type(artifact.manifest)(**{**kept, **fields}), artifact.tensors)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"optimizer": "Unheard"}, "test/one is a Unheard, which this bygrad cannot run in PyTorch.*deploy.optax"),
        ({"features": 99}, "trained with version 99 of LSTM's features"),
        ({"config": {"layers": [4]}}, "not those of LSTM .KeyError"),
        ({"config": {"layers": [4], "peepholes": True}}, "not those of LSTM .ValueError: it has no peepholes"),
        ({"config": {"layers": [], "preprocess": {"name": "Scaled"}, "output_scale": 1.0}}, "not those.*IndexError"),
        (
            {"config": {"layers": [3], "preprocess": {"name": "Scaled", "scale": 1.0}, "output_scale": 1.0}},
            r"tensor head has the shape \(4,\), not \(3,\)",
        ),
    ],
    ids=["class", "features", "config", "settings", "no layer", "shapes"],
)
def test_an_artifact_that_torch_cannot_run_is_refused_by_name(fields, message, small):
    with pytest.raises(ArtifactError, match=message):
        LearnedOptimizer([torch.ones(2, requires_grad=True)], changed(small, **fields))


ALONE = """
import sys
import torch
from bygrad.deploy.torch import Adam, Guard, LearnedOptimizer

weight = torch.nn.Parameter(torch.ones(3))
weight.grad = torch.ones(3)
for guard in (None, Adam()):
    optimizer = LearnedOptimizer([weight], "paper/mnist", guard=guard)
    optimizer.step(value=1.0)
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.settle()

def refused(kind, message, **arguments):
    try:
        LearnedOptimizer([torch.ones(2, requires_grad=True)], **arguments)
    except kind as error:
        assert message in str(error), error
    else:
        raise AssertionError(arguments)

for guard in (torch.optim.Adam, Adam, "Adam", 3, lambda rule: None):
    remedy = "nothing to fall back to. Give bygrad.deploy.torch.Adam(1e-3)"
    refused(TypeError, remedy, artifact="paper/mnist", guard=guard)
refused(TypeError, "which names no artifact", artifact=1e-3)
for fallback in (torch.optim.Adam([weight]), Adam):
    of_rules = lambda rule: Guard(rule, fallback)
    refused(TypeError, "which is no rule of this package", artifact="paper/mnist", guard=of_rules)
in_jax = lambda rule: Guard(rule, Adam(), envelope=type("Envelope", (), {"horizon": 100, "action": "warn"})())
refused(TypeError, "Give one of bygrad.deploy.torch.Envelope", artifact="paper/mnist", guard=in_jax)
for rate in ("1", None):
    refused(ValueError, f"lr is {rate!r}, but it is a number", artifact="paper/mnist", lr=rate)
for horizon in (2.5, float("inf"), float("nan"), 10**12, "10", True):
    refused(ValueError, f"The horizon is {horizon!r}, but it counts", artifact="general/controller", horizon=horizon)
optimizer = LearnedOptimizer([torch.ones(2, requires_grad=True)], "general/controller", horizon=100.0)
for call, given, message in (
    (optimizer.add_param_group, [torch.ones(2)], "A param group is a list, which says"),
    (optimizer.step, torch.ones(()), "step() was given a Tensor, but its first argument is a closure"),
):
    try:
        call(given)
    except TypeError as error:
        assert message in str(error), error
    else:
        raise AssertionError(message)
assert not {"jax", "jaxlib", "equinox", "optax"} & sys.modules.keys()
"""


def test_never_imports_jax_and_refuses_arguments_of_the_wrong_kind():
    """In one process of its own: here JAX is imported, and the tests' check of annotations would refuse them first."""
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_without_torch_the_rest_still_works():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import bygrad.deploy\n"
        "found = {it.framework: it for it in bygrad.deploy.verify('paper/quadratic')}\n"
        "assert found['JAX'].deviation < 1e-4 and 'pip install' in found['PyTorch'].remark, found"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
