"""Meta-gradients: replay equals backpropagation, backpropagation equals finite differences, and all are finite."""

import dataclasses
import functools
from typing import get_args

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from bygrad._core import trees
from bygrad.metagrads import NRES, Backprop, Blend, Estimate, Estimator, Forward, Members, Replay
from bygrad.optimizers import (
    HAND_DESIGNED,
    LEARNED,
    LSTM,
    SGD,
    AdamWCosine,
    Controller,
    Learned,
    Nesterov,
    Optimizer,
    Partition,
    base,
)
from bygrad.problems import ConvClassifier, HeldOut, Mixture, MLPClassifier, ProblemFamily, Quadratic, find_family
from bygrad.problems.mlp import Activation
from bygrad.unroll import Windows, lift, rollout

OPTIMIZERS = LEARNED | HAND_DESIGNED


def perceptron(activation: Activation = "sigmoid", layers: int = 1) -> MLPClassifier:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (20, 6), dtype=np.uint8), rng.integers(0, 3, 20, dtype=np.int32)
    return MLPClassifier(
        jnp.asarray(images), jnp.asarray(labels), 3, hidden=4, layers=layers, activation=activation, scale=1.0, batch=5
    )


FAMILIES = {
    "uniform": Quadratic(4),
    "gaussian": Quadratic(4, "gaussian"),
    **{name: perceptron(name) for name in get_args(Activation)},
    "0 layers": perceptron(layers=0),
    "2 layers": perceptron(layers=2),
}


@functools.cache
def build(name: str, x64: bool) -> Optimizer:
    kind = OPTIMIZERS[name]
    with jax.enable_x64(x64):
        if kind is Partition:
            parts = {"biases": Nesterov(), "rest": eqx.filter_jit(LSTM)(jax.random.key(0), (4, 3))}
            return Partition(parts=parts, rules=(("*bias", "biases"), ("*", "rest")))
        if kind is AdamWCosine:
            return kind(warmup=3.0)  # without one, there would be no gradient of it to compare
        if not issubclass(kind, Learned):
            return kind()
        small = () if kind is Controller else ((4, 3),)
        built = eqx.filter_jit(kind)(jax.random.key(0), *small)
        return _nudged(built) if name in (*LONG, "Controller") else built


@eqx.filter_jit
def _nudged(optimizer: Optimizer) -> Optimizer:
    """Move what starts at zero, or there would be no gradient below it to compare."""
    arrays, static = eqx.partition(optimizer, eqx.is_inexact_array)
    moved = jax.tree.map(lambda leaf: leaf + 0.01 * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), arrays)
    return eqx.combine(moved, static)


def assert_equal(ours: Estimate, theirs: Estimate, tolerance: float) -> None:
    np.testing.assert_allclose(ours.loss, theirs.loss, rtol=tolerance)
    np.testing.assert_allclose(ours.losses, theirs.losses, rtol=tolerance)
    assert jax.tree.structure(ours.gradient) == jax.tree.structure(theirs.gradient)
    # Below this, rounding alone: the gradients of a linear classifier sum to zero over classes, so that a bias that is
    # added to all updates has no meta-gradient.
    nothing = 1e-12 * np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(theirs.gradient)))
    for a, b in zip(jax.tree.leaves(ours.gradient), jax.tree.leaves(theirs.gradient), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert np.linalg.norm(b) > 0
        if np.linalg.norm(b) < nothing:
            assert np.linalg.norm(a) < nothing
        else:
            assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b)


# Rules of hundreds of operations: they take minutes operation by operation, so one family must do, and where there is
# little time one of them for all.
LONG = ("MLPRule", "STAR", "Celo2")
SHORT = [name for name in OPTIMIZERS if name not in LONG]
# The replay knows neither family nor optimizer: one learned rule meets a smooth and a kinked family.
# In float64, where nothing can hide.
PAIRS = [("relu", "LSTM", True, 1e-10), ("sigmoid", "LSTM", False, 1e-5)]
_AS_ADAM = ("SGD", "Nesterov", "RMSprop", "AdamW")
_AS_CELO2 = ("MLPRule", "STAR")
_AS_OTHERS = (*_AS_CELO2, "RNNprop", "GlobalLSTM")  # as the LSTM, and as one with a memory
_ONCE = ("LSTM", "AdamWCosine", *_AS_ADAM, *_AS_OTHERS)
PAIRS += [("0 layers", name, True, 1e-8) for name in OPTIMIZERS if name not in _ONCE]
AGAIN = [("2 layers", "Adam", True, 1e-10), ("sigmoid", "Partition", False, 1e-5)]  # nothing new, of another size
AGAIN += [("uniform", "LSTM", True, 1e-10), ("0 layers", "AdamWCosine", True, 1e-8)]
AGAIN += [("0 layers", name, True, 1e-8) for name in _AS_OTHERS]


@pytest.mark.core
@pytest.mark.parametrize(
    ("family", "name", "x64", "tolerance"),
    [
        pytest.param(*it, id=f"{it[0]}-{it[1]}-{'float64' if it[2] else 'float32'}", marks=marks)
        for pairs, marks in ((PAIRS, ()), (AGAIN, pytest.mark.slow))
        for it in pairs
    ],
)
def test_replay_equals_backpropagation_without_second_derivatives(family, name, x64, tolerance):
    # Two windows of two steps, with an instance renewed between them.
    replay, backprop = (eqx.filter_jit(it.estimate) for it in (Replay(), Backprop(second_derivatives=False)))
    with jax.enable_x64(x64):
        optimizer = build(name, x64)
        windows = Windows(FAMILIES[family], horizon=4, truncation=2, instances=2)
        state = eqx.filter_jit(windows.begin)(optimizer, jax.random.key(2))
        assert 4 in state.step + 2
        for _ in range(2):
            replayed, after = replay(optimizer, windows, state)
            reference, state = backprop(optimizer, windows, state)
            assert_equal(replayed, reference, tolerance)
            for a, b in zip(jax.tree.leaves(after.params), jax.tree.leaves(state.params), strict=True):
                np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def convolutional() -> ConvClassifier:
    """One convolution, which compiles sooner than two."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (20, 6, 5, 2), dtype=np.uint8), rng.integers(0, 3, 20, dtype=np.int32)
    return ConvClassifier(
        jnp.asarray(images), jnp.asarray(labels), 3, channels=(3,), kernel=3, hidden=4, scale=0.5, batch=6
    )


# Of the families that come with the package, one of each class that the small ones above are none of.
BROUGHT = {name: True for name in ("convolution", "characters", "lennard-jones")}
BROUGHT |= {name: False for name in ("oral-dose", "ball-and-stick")}  # with arrays in float32


# Those that take long only where there is time: the replay knows no family.
_LONG_FAMILIES = ("convolution", "characters", "oral-dose", "ball-and-stick")


@pytest.mark.parametrize(
    "name", [pytest.param(it, marks=pytest.mark.slow if it in _LONG_FAMILIES else ()) for it in BROUGHT]
)
def test_replay_equals_backpropagation_on_the_families_of_the_package(name):
    x64 = BROUGHT[name]
    replay, backprop = (eqx.filter_jit(it.estimate) for it in (Replay(), Backprop(second_derivatives=False)))
    with jax.enable_x64(x64):
        optimizer = Nesterov(1e-5)  # small enough for all of them
        family = convolutional() if name == "convolution" else find_family(name)
        windows = Windows(family, horizon=2, truncation=2, instances=1)
        state = eqx.filter_jit(windows.begin)(optimizer, jax.random.key(1))
        assert_equal(
            replay(optimizer, windows, state)[0], backprop(optimizer, windows, state)[0], 1e-8 if x64 else 1e-5
        )


# What differs in how it is differentiated; every rule's formula is held against NumPy elsewhere.
DIFFERENTIATED = ("GlobalLSTM", "RNNprop", "Partition", "AdamWCosine", "Adam", "Controller", "LSTM")


@pytest.mark.core
@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("tanh", "LSTM"),
        *[pytest.param("uniform", name, marks=pytest.mark.slow) for name in DIFFERENTIATED[:-3]],
        *[("uniform", name) for name in DIFFERENTIATED[-3:]],
    ],
    ids=str,
)
def test_backpropagation_with_second_derivatives_equals_finite_differences(family, name):
    with jax.enable_x64(True):
        optimizer = build(name, True)
        windows = Windows(FAMILIES[family], horizon=3, truncation=3, instances=2)
        state = eqx.filter_jit(windows.begin)(optimizer, jax.random.key(1))
        arrays, static = eqx.partition(optimizer, eqx.is_inexact_array)
        theta, unravel = jax.flatten_util.ravel_pytree(arrays)

        @jax.jit
        def estimate(theta: jax.Array) -> tuple[jax.Array, jax.Array]:
            optimizer = eqx.combine(unravel(theta), static)
            result, _ = Backprop(second_derivatives=True).estimate(optimizer, windows, state)
            return result.loss, jax.flatten_util.ravel_pytree(result.gradient)[0]

        _, gradient = estimate(theta)
        for direction in np.random.default_rng(0).standard_normal((3, theta.size)):
            ahead, behind = (estimate(theta + h * direction)[0] for h in (1e-6, -1e-6))
            np.testing.assert_allclose(gradient @ direction, (ahead - behind) / 2e-6, rtol=1e-6)


class HalfBlind(ProblemFamily):
    """Of a tensor, one param has no gradient, and another has none either once it is at zero; one tensor has none."""

    def sample(self, key):
        return ()

    def init(self, instance, key):
        return {"half": jnp.array([1.0, 2.0, 0.0]), "blind": jnp.array([[0.0, 1.0], [2.0, 3.0]])}

    def loss(self, params, instance, key):
        half = params["half"]
        return half[0] ** 2 + half[2] ** 2 + 0 * half[1]


@pytest.mark.core
@pytest.mark.parametrize(
    ("name", "horizon"),
    [
        *[pytest.param(name, 1, marks=pytest.mark.slow if name in _AS_CELO2 else ()) for name in LONG],
        *[pytest.param(name, 4, marks=pytest.mark.slow if name in (*_AS_ADAM, *_AS_OTHERS) else ()) for name in SHORT],
    ],
)
def test_meta_gradients_are_finite_where_gradients_vanish(name, horizon):
    optimizer = build(name, False)
    windows = Windows(HalfBlind(), horizon, truncation=1, instances=1)
    state = eqx.filter_jit(windows.begin)(optimizer, jax.random.key(0))
    # No third with `Backprop(False)`: its terms are part of the sum of `Backprop(True)`, where a NaN cannot cancel.
    for estimator in (Replay(), Backprop(True)):
        estimated, inner = eqx.filter_jit(estimator.estimate), state
        for _ in range(2):
            estimate, inner = estimated(optimizer, windows, inner)
            assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(estimate))
            assert any(np.any(np.asarray(leaf) != 0) for leaf in jax.tree.leaves(estimate.gradient))


@pytest.mark.core
def test_the_meta_loss_is_the_mean_of_the_losses_after_each_update():
    rate, curvature = 0.25, 2.0

    class Bowl(ProblemFamily):
        def sample(self, key):
            return jax.random.uniform(key, minval=1.0, maxval=2.0)

        def init(self, instance, key):
            return instance[None]

        def loss(self, params, instance, key):
            return 0.5 * curvature * params[0] ** 2

    optimizer = HAND_DESIGNED["SGD"](rate)
    windows = Windows(Bowl(), horizon=3, truncation=3, instances=2)
    state = windows.begin(optimizer, jax.random.key(0))
    start, steps = np.asarray(state.params, np.float64), np.arange(1, 4)
    shrinkage = 1 - rate * curvature
    losses = np.mean(0.5 * curvature * start**2 * shrinkage ** (2 * steps), axis=1)
    # Whole derivative of start² (1 - rate c)^(2t) c/2, and the one with gradients c p_s held constant.
    whole = np.mean(0.5 * curvature * start**2 * 2 * steps * shrinkage ** (2 * steps - 1) * -curvature)
    points = start * shrinkage ** np.arange(4)
    constant = -np.mean([curvature * points[:, t] * np.sum(curvature * points[:, :t], 1) for t in steps])
    for estimator, derivative in ((Backprop(True), whole), (Backprop(False), constant), (Replay(), constant)):
        estimate, _ = eqx.filter_jit(estimator.estimate)(optimizer, windows, state)
        np.testing.assert_allclose(estimate.losses, losses, rtol=1e-5)
        np.testing.assert_allclose(estimate.loss, losses.mean(), rtol=1e-5)
        np.testing.assert_allclose(estimate.gradient.learning_rate, derivative, rtol=1e-5)
    assert whole != pytest.approx(constant, rel=1e-2)


@pytest.mark.parametrize("last", [pytest.param(1, marks=pytest.mark.slow), 6])
def test_the_meta_loss_can_be_that_of_the_last_updates(last):
    optimizer, windows = build("LSTM", False), Windows(FAMILIES["sigmoid"], 6, 6, 2)
    estimator = Replay(last=last)
    begun = eqx.filter_jit(windows.begin)(optimizer, jax.random.key(0))
    estimate, _ = eqx.filter_jit(estimator.estimate)(optimizer, windows, begun)

    @eqx.filter_jit
    @eqx.filter_value_and_grad
    def expected(optimizer):
        _, seen = rollout(optimizer, windows.family, begun, 6, second_derivatives=False, in_blocks=False)
        return jnp.mean(jnp.concatenate([seen.value[1:], seen.end_value[None]])[-last:])

    loss, gradient = expected(optimizer)
    np.testing.assert_allclose(estimate.loss, loss, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(estimate.gradient), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * float(jnp.max(jnp.abs(b))))


def test_forward_mode_needs_nothing_of_a_problem_but_its_gradient():
    """A loss whose derivative is written by hand has none in forward mode, its gradient has."""

    @jax.custom_vjp
    def square(x):
        return x @ x

    square.defvjp(lambda x: (x @ x, x), lambda x, cot: (2 * cot * x,))

    class ByHand(Quadratic):
        def loss(self, params, instance, key):
            return square(params)

    class Plain(Quadratic):
        def loss(self, params, instance, key):
            return params @ params

    found = []
    for family in (ByHand(3), Plain(3)):
        windows = Windows(family, 4, 2, 2)
        state = Forward().init(Nesterov(0.01), windows, jax.random.key(0))
        estimate, _ = eqx.filter_jit(Forward().estimate)(Nesterov(0.01), windows, state)
        found.append(float(estimate.gradient.learning_rate))
    assert found[0] == pytest.approx(found[1], rel=1e-5) != 0


class Enveloped(Quadratic):
    """A minimum over other variables that are held fixed: autodiff sees nothing of it, and the gradient is known."""

    def loss(self, params, instance, key):
        return self.value_and_grad(params, instance, key)[0]

    def value_and_grad(self, params, instance, key):
        fixed = jax.lax.stop_gradient(params)
        inner = fixed / 2
        return jnp.sum((fixed - inner) ** 2 + inner**2), 1.0 * params


class Halved(Quadratic):
    def loss(self, params, instance, key):
        return 0.5 * params @ params


@pytest.mark.parametrize("mixed", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("estimator", [Backprop(), Forward(), Blend()], ids=lambda it: type(it).__name__)
def test_losses_have_the_derivative_that_the_family_gives(estimator, mixed):
    found = []
    for family in (Enveloped(3), Halved(3)):
        windows = Windows(Mixture((family, family)) if mixed else family, 4, 4, 2)
        state = estimator.init(SGD(0.1), windows, jax.random.key(0))
        estimate, _ = eqx.filter_jit(estimator.estimate)(SGD(0.1), windows, state)
        found.append(float(estimate.gradient.learning_rate))
    if isinstance(estimator, Backprop):  # without second derivatives the paper's, the same for both
        exact, _ = Replay().estimate(SGD(0.1), windows, windows.begin(SGD(0.1), jax.random.key(0)))
        assert found[1] == pytest.approx(float(exact.gradient.learning_rate), rel=1e-5)
    assert found[0] == pytest.approx(found[1], rel=1e-5) != 0


@pytest.mark.parametrize(
    "estimator", [Forward(), pytest.param(Blend(), marks=pytest.mark.slow)], ids=lambda it: type(it).__name__
)
def test_a_state_in_half_precision_has_derivatives_where_large_arrays_are_updated_in_blocks(monkeypatch, estimator):
    optimizer, windows = LSTM(jax.random.key(0), (3,), state_dtype="bfloat16"), Windows(Quadratic(10), 3, 3, 2)
    state = estimator.init(optimizer, windows, jax.random.key(1))
    found = []
    for block in (10, 4):
        monkeypatch.setattr(base, "STEP_BLOCK", block)
        program = eqx.filter_jit(lambda optimizer: estimator.estimate(optimizer, windows, state)[0].gradient)
        found.append(np.asarray(jax.flatten_util.ravel_pytree(program(optimizer))[0]))
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4, atol=1e-4 * np.abs(found[0]).max())
    assert np.count_nonzero(found[0]) > 50


@pytest.mark.parametrize(
    "estimator",
    [Replay(), *(pytest.param(it, marks=pytest.mark.slow) for it in (Forward(), Blend(), NRES()))],
    ids=lambda it: type(it).__name__,
)
def test_meta_parameters_in_half_precision_have_gradients_in_it(estimator):
    """Those in another dtype would make other meta-parameters of them, and another program of the second meta-step."""

    def gradient(dtype):
        optimizer = eqx.tree_at(lambda it: it.learning_rate, Nesterov(), jnp.asarray(0.125, dtype))
        windows = Windows(Quadratic(10), 3, 3, 4)
        state = estimator.init(optimizer, windows, jax.random.key(1))
        return eqx.filter_jit(estimator.estimate)(optimizer, windows, state)[0].gradient.learning_rate

    half, whole = gradient(jnp.bfloat16), gradient(jnp.float32)
    assert half.dtype == jnp.bfloat16
    assert float(half) == pytest.approx(float(whole), rel=0.05) != 0


@pytest.mark.parametrize("estimator", [Replay(), Backprop(True), Forward(), NRES()], ids=lambda it: type(it).__name__)
def test_the_state_in_which_a_run_starts_is_a_constant(estimator):
    """An array that only `init` reads has no meta-gradient, though losses depend on it."""

    class Pushed(Optimizer):
        start: jax.Array

        def init(self, params):
            return jnp.full_like(params, self.start)

        def update(self, grads, state, params=None, *, value=None, key=None):
            return -0.1 * state, state

    windows = Windows(Quadratic(3), 2, 2, 2)
    state = estimator.init(Pushed(jnp.array(1.0)), windows, jax.random.key(0))
    estimate, _ = eqx.filter_jit(estimator.estimate)(Pushed(jnp.array(1.0)), windows, state)
    np.testing.assert_array_equal(estimate.gradient.start, 0)


def test_more_losses_than_a_window_has_are_refused():
    windows = Windows(Quadratic(2), 4, 2, 2)
    with pytest.raises(ValueError, match="last=3, but a window has 2 steps"):
        Replay(last=3).estimate(SGD(0.1), windows, windows.begin(SGD(0.1), jax.random.key(0)))


def test_a_part_of_the_losses_cannot_be_kept_in_segments():
    with pytest.raises(ValueError, match="segment=2, last=1"):
        Replay(segment=2, last=1)


class Judged(Quadratic):
    """Quadratics that are judged by the distance from where they start."""

    def held_out_loss(self, params, instance, key):
        return jnp.sum(jnp.square(params))


@pytest.mark.parametrize(
    "estimator",
    [Replay(), Backprop(), *(pytest.param(it, marks=pytest.mark.slow) for it in (Backprop(True), Forward())), NRES()],
    ids=lambda it: type(it).__name__,
)
def test_those_that_differentiate_do_not_see_that_another_loss_is_held_out(estimator: Estimator):
    """Their meta-gradient stays that of the training loss: `differentiates` says whose does."""

    @eqx.filter_jit
    def gradient(family: ProblemFamily) -> jax.Array:
        windows = Windows(family, 4, 2, 2)
        state = estimator.init(Nesterov(0.01), windows, jax.random.key(0))
        return estimator.estimate(Nesterov(0.01), windows, state)[0].gradient.learning_rate

    training, judged = float(gradient(Judged(3))), float(gradient(HeldOut(Judged(3))))
    assert training != 0
    assert (judged == pytest.approx(training, rel=1e-4)) == estimator.differentiates


class Slope(ProblemFamily):
    """Params in half precision, whose gradient is 200 everywhere: a sum over 500 steps is no float16."""

    def sample(self, key):
        return ()

    def init(self, instance, key):
        return jnp.ones(4, jnp.float16)

    def loss(self, params, instance, key):
        return 200 * jnp.sum(params.astype(jnp.float32))


@pytest.mark.parametrize("estimator", [Replay(), Replay(segment=50)], ids=["whole", "in segments"])
def test_replay_adds_up_in_float32_what_params_in_half_precision_are_moved_by(estimator):
    steps, rule = 500, SGD(1e-8)
    windows = Windows(Slope(), steps, steps, 4)
    estimate, _ = eqx.filter_jit(estimator.estimate)(rule, windows, windows.begin(rule, jax.random.key(0)))
    # After t updates the loss is the start's minus the rate times 4 t 200²: on average over t = 1..steps.
    np.testing.assert_allclose(estimate.gradient.learning_rate, -4 * 200**2 * (steps + 1) / 2, rtol=1e-2)


class Cliff(ProblemFamily):
    """Quadratics in two tensors; from the third step on, the gradient of some instances is not finite."""

    def sample(self, key):
        return jax.random.uniform(key)

    def init(self, instance, key):
        return {"weight": jax.random.normal(key, (3,)), "bias": jnp.ones(2)}

    def loss(self, params, instance, key):
        total = sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(params))
        return total * (1 + instance) / jnp.where((instance > 0.6) & (total < 3.5), 0.0, 1.0)


@pytest.mark.parametrize(
    ("estimator", "name"), [(Replay(), "SGD"), (Replay(last=2), "SGD"), (Replay(segment=2), "Partition")], ids=repr
)
def test_instances_that_are_not_finite_are_left_out_of_a_replay(estimator, name):
    rule = Partition(parts={"a": LSTM(jax.random.key(0), (2,)), "b": SGD(0.05)}, rules=(("bias", "b"), ("*", "a")))
    rule = SGD(0.05) if name == "SGD" else rule
    windows = Windows(Cliff(), 8, 4, 8)
    inner = trees.replaced(windows.begin(rule, jax.random.key(0)), step=jnp.zeros(8, jnp.int32))
    estimated = eqx.filter_jit(estimator.estimate)
    estimate, after = estimated(rule, windows, inner)
    live = np.isfinite(estimate.losses)
    assert 0 < live.sum() < 8
    np.testing.assert_allclose(estimate.lost, np.mean(~live), rtol=1e-6)
    np.testing.assert_array_equal(windows.done(after), ~live)  # a fresh one takes their place

    fewer = dataclasses.replace(windows, instances=int(live.sum()))
    left = jax.tree.map(lambda leaf: leaf[live], trees.replaced(inner, optimizer_state=None))
    left = trees.replaced(left, optimizer_state=lift(rule).init(left.params))
    expected, _ = estimated(rule, fewer, left)
    assert_equal(dataclasses.replace(estimate, losses=estimate.losses[live]), expected, 1e-5)


def test_of_instances_none_of_which_is_finite_there_is_no_estimate():
    windows = Windows(Cliff(), 8, 4, 2)
    inner = windows.begin(SGD(0.05), jax.random.key(0))
    inner = trees.replaced(inner, instance=jnp.full(2, 0.9), step=jnp.zeros(2, jnp.int32))
    estimate, _ = eqx.filter_jit(Replay().estimate)(SGD(0.05), windows, inner)
    assert estimate.lost == 1 and np.isnan(estimate.loss) and np.isnan(estimate.gradient.learning_rate)


class Holed(Quadratic):
    """Quadratics of which some are lost at the first step, more of them the larger the share is."""

    share: float = eqx.field(static=True, default=0.3)

    def loss(self, params, instance, key):
        lost = jax.random.uniform(jax.random.key(jnp.sum(jnp.abs(instance[1]) * 1e6).astype(int))) < self.share
        return super().loss(params, instance, key) * jnp.where(lost, jnp.nan, 1.0)


@pytest.mark.parametrize(
    ("estimator", "family"),
    [
        (Replay(), Holed(3)),
        (Members(Replay()), Mixture((Holed(3, share=0.6), Holed(2, share=0.1)))),
        (Members(NRES()), Mixture((Holed(3, share=0.6), Holed(2, share=0.1)))),
    ],
    ids=["replay", "replay of members", "particles of members"],
)
def test_the_mean_over_devices_is_that_over_all_instances_wherever_those_are_that_are_lost(estimator, family):
    rule, devices = SGD(0.1), 4
    whole = Windows(family, 4, 2, 16)
    here = dataclasses.replace(whole, instances=16 // devices, axis="devices")
    state = estimator.init(rule, whole, jax.random.key(3))
    axes = estimator.axes(rule, state)

    def divide(axis, leaf):
        return jnp.moveaxis(leaf.reshape(*leaf.shape[:axis], devices, -1, *leaf.shape[axis + 1 :]), axis, 0)

    parts = jax.tree.map(divide, axes, state)
    each, _ = jax.vmap(lambda part: estimator.estimate(rule, here, part), axis_name="devices")(parts)
    expected, _ = estimator.estimate(rule, whole, state)
    lost = np.asarray(each.lost)
    assert len(set(lost.tolist())) > 1 and 0.1 < lost.mean() < 0.7
    np.testing.assert_allclose(lost.mean(), expected.lost, rtol=1e-6)
    np.testing.assert_allclose(jnp.mean(each.loss), expected.loss, rtol=1e-5)
    np.testing.assert_allclose(jnp.mean(each.gradient.learning_rate), expected.gradient.learning_rate, rtol=1e-5)
