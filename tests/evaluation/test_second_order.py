"""Gauss–Newton against a written-out matrix, and second-order methods for as long as a given time."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bygrad.evaluation import LBFGS, GaussNewton, Protocol, compare, run_in_time
from bygrad.evaluation.second_order import lbfgs_curves, second_order_curve
from bygrad.experiments.transfer_rows import LossTimes
from bygrad.optimizers import SGD, Adam
from bygrad.problems import (
    ConvClassifier,
    HeldOut,
    ImageData,
    LeastSquares,
    Mixture,
    MLPClassifier,
    Oracle,
    ProblemFamily,
    Quadratic,
    load_images,
)
from bygrad.unroll import draw, loss_curves

DIGITS = load_images("mnist").shrunk(8)


def numpy_gauss_newton(images, labels, weight, bias, damping):
    """One damped Gauss–Newton step of logistic regression, with the matrix written out."""
    x = images.reshape(len(images), -1) / 255
    features = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    logits = x @ weight + bias
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares = odds / odds.sum(axis=1, keepdims=True)
    classes = shares.shape[1]
    # Params are flattened with the bias first, as jax.tree orders the keys.
    order = lambda matrix: np.concatenate([matrix[-1], matrix[:-1].reshape(-1)])  # noqa: E731
    slope = order(features.T @ (shares - np.eye(classes)[labels]) / len(x))
    curvature = np.zeros((slope.size, slope.size))
    for feature, share in zip(features, shares, strict=True):
        jacobian = np.stack([order(np.outer(feature, np.eye(classes)[c])) for c in range(classes)])
        curvature += jacobian.T @ (np.diag(share) - np.outer(share, share)) @ jacobian / len(x)
    return -np.linalg.solve(curvature + damping * np.eye(slope.size), slope)


def test_gauss_newton_takes_the_step_of_the_written_out_matrix():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        images, labels = rng.integers(0, 255, (30, 2, 2), np.uint8), rng.integers(0, 3, 30).astype(np.int32)
        data = ImageData("random", images, labels, images, labels)
        family = MLPClassifier.from_data(data, layers=0, scale=1.0)
        params = jax.tree.map(lambda leaf: leaf.astype(float), family.init((), jax.random.key(0)))
        start = family.loss(params, (), None)
        method = GaussNewton(damping=jnp.asarray(0.05), batches=None, products=15)
        after, damping = method.step(family, params, method.init(params, start), (), jax.random.key(1), jnp.asarray(0))
        weight, bias = (np.asarray(params[0][name]) for name in ("weight", "bias"))
        step = numpy_gauss_newton(images, labels, weight, bias, 0.05 * float(start))
        moved = np.concatenate([np.ravel(after[0][name] - params[0][name]) for name in ("bias", "weight")])
        np.testing.assert_allclose(moved, step, rtol=1e-6, atol=1e-12)
        assert family.loss(after, (), None) < start
        assert damping < method.init(params, start)  # the model foretold the fall well


def test_gauss_newton_damps_whatever_the_sign_of_the_loss():
    method = GaussNewton(damping=jnp.asarray(0.5))
    up, down, none = (float(method.init((), jnp.asarray(value))) for value in (3.0, -3.0, 0.0))
    assert up == down == 1.5 and none > 0


class Line(LeastSquares):
    def sample(self, key):
        return ()

    def init(self, instance, key):
        return jnp.zeros(2)

    def residuals(self, params, instance):
        x = jnp.array([0.0, 1.0, 2.0])
        return params[0] + params[1] * x - (1 + 2 * x)


def test_gauss_newton_solves_linear_least_squares_at_once_and_stays_there():
    method = GaussNewton(damping=jnp.asarray(1e-9), batches=None, products=2)
    start = jnp.array([3.0, -2.0])
    _, curve = second_order_curve(method, Line(), (), start, jax.random.key(0), steps=3, size=5)
    np.testing.assert_allclose(curve[1:4], 0, atol=1e-8)
    assert np.isnan(curve[4:]).all()


class ByHand(Line):
    """The gradient is written down; the derivative of the loss would be zero."""

    def loss(self, params, instance, key):
        return jax.lax.stop_gradient(super().loss(params, instance, key))

    def value_and_grad(self, params, instance, key):
        return jax.value_and_grad(super().loss)(params, instance, key)


@pytest.mark.parametrize("minibatches", [None, 2])
def test_lbfgs_descends_by_the_gradient_that_is_written_by_hand(minibatches):
    method, start = LBFGS(minibatches), jnp.array([3.0, -2.0])
    curves = [
        second_order_curve(method, family, (), start, jax.random.key(0), steps=5, size=5)[1]
        for family in (ByHand(), Line())
    ]
    np.testing.assert_allclose(curves[0], curves[1], rtol=1e-5, atol=1e-9)
    assert curves[0][-1] < 1e-3 * curves[0][0]


@pytest.mark.slow
def test_gauss_newton_does_not_care_for_the_scale_of_the_loss():
    family = MLPClassifier.from_data(DIGITS, hidden=4, scale=0.3)
    method, keys = GaussNewton(damping=jnp.ones(()), batches=2, products=4), jax.random.split(jax.random.key(0), 2)
    curves = [
        run_in_time(method, np.array([0.1, 1.0]), it, None, keys, 1e9, 6).curves
        for it in (family, LossTimes(family, 64.0))
    ]
    np.testing.assert_allclose(curves[1] / 64, curves[0], rtol=2e-3)
    assert curves[0].shape == (2, 2, 7)
    assert np.all(curves[0][..., -1] < curves[0][..., 0])


alone = eqx.filter_jit(second_order_curve)  # one program for the two of Gauss-Newton


@pytest.mark.parametrize(
    ("method", "one_by_one"),
    [
        pytest.param(LBFGS(batches=2), False, id="lbfgs", marks=pytest.mark.slow),
        pytest.param(GaussNewton(damping=jnp.ones(())), False, id="gauss-newton", marks=pytest.mark.slow),
        pytest.param(GaussNewton(damping=jnp.ones(())), True, id="gauss-newton in turn"),
    ],
)
def test_side_by_side_in_turn_and_alone_are_the_same(method, one_by_one):
    family = MLPClassifier.from_data(DIGITS, hidden=4, scale=0.3)
    keys = jax.random.split(jax.random.key(3), 2)
    ran = run_in_time(method, np.ones(1), family, family, keys, 1e9, 4, one_by_one=one_by_one)
    instances, params, run_keys = draw(family, keys)
    first = jax.tree.map(lambda leaf: leaf[0], (instances, params))
    end, curve = alone(method, family, *first, run_keys[0], steps=4, size=4)
    np.testing.assert_allclose(ran.curves[0, 0], curve, rtol=1e-3)
    np.testing.assert_allclose(ran.test[0, 0], family.loss(end, (), None), rtol=1e-3)


@pytest.mark.slow
def test_on_a_mixture_second_order_methods_run_on_what_the_others_run_on():
    members = Quadratic(2), Quadratic(3)
    family = Mixture(members, (1.0, 3.0))
    keys = jax.random.split(jax.random.key(0), 3)
    each = [
        lbfgs_curves(one, jax.vmap(lambda key, i=i: jax.random.fold_in(key, i))(keys), 4)
        for i, one in enumerate(members)
    ]
    curves = lbfgs_curves(family, keys, 4)
    np.testing.assert_allclose(curves[:, 0], loss_curves(Adam(1e-2), family, keys, 1)[:, 0], rtol=1e-5)
    np.testing.assert_allclose(curves, (each[0] + 3 * each[1]) / 2, rtol=1e-5)
    ran = run_in_time(LBFGS(), np.ones(1), family, family, keys, 1e9, 4)
    np.testing.assert_allclose(ran.curves[0], curves, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(ran.test[0], curves[:, -1], rtol=1e-5, atol=1e-7)


def test_a_mixture_of_one_is_judged_as_that_one_is():
    family, keys = Mixture((Quadratic(2),)), jax.random.split(jax.random.key(0), 2)
    ran = run_in_time(LBFGS(), np.ones(1), family, family, keys, 1e9, 3)
    np.testing.assert_allclose(ran.test[0], ran.curves[0, :, -1], rtol=1e-5)


@pytest.mark.slow
def test_a_line_search_costs_as_much_in_a_comparison_as_alone():
    """Under `vmap` it would evaluate what it does not ask for, and every run would wait for the others'."""
    calls = []

    def rosenbrock(params, seed):
        calls.append(seed)
        x, uphill = params[0], params[1] - params[0] ** 2
        return (1 - x) ** 2 + 10 * uphill**2, np.array([2 * (x - 1) - 40 * x * uphill, 20 * uphill])

    family, keys = Oracle(rosenbrock, np.array([-1.0, 1.0])), jax.random.split(jax.random.key(0), 3)

    def count(run):
        calls.clear()
        jax.block_until_ready(run())
        return len(calls)

    def needed(steps):
        curve = lambda: second_order_curve(LBFGS(), family, (), family.start_params, keys[0], steps, 8, recorded=False)  # noqa: E731
        return count(jax.jit(curve))

    assert needed(8) > 8 + needed(0)
    assert count(lambda: lbfgs_curves(family, keys, 8)) <= 3 * (needed(8) + 7)  # what is recorded on the way
    ran = count(lambda: run_in_time(LBFGS(), np.ones(1), family, None, keys, 1e9, 8).curves)
    assert ran <= 3 * (needed(0) + needed(3) + needed(8) + needed(8) + 7)  # timed without it


class Narrow(ProblemFamily):
    """Params in one dtype, the loss in another."""

    dtype: str = eqx.field(static=True, default="bfloat16")

    def sample(self, key):
        return ()

    def init(self, instance, key):
        return {"narrow": jnp.array([0.5, -2.0], self.dtype), "wide": jnp.ones(2)}

    def loss(self, params, instance, key):
        return sum(jnp.sum((leaf.astype(float) - 0.25) ** 2) for leaf in params.values())


@pytest.mark.parametrize("wide", [False, True])
def test_params_and_losses_may_differ_in_their_dtype(wide):
    with jax.enable_x64(wide):
        curves = lbfgs_curves(Narrow(), jax.random.split(jax.random.key(0), 2), 3)
    np.testing.assert_allclose(curves[:, 0], 0.0625 + 2.25**2 + 2 * 0.75**2, rtol=1e-6)
    np.testing.assert_allclose(curves[:, -1], 0.0, atol=1e-6)


class Displaced(Quadratic):
    """Held-out data ask for another minimum."""

    def held_out_loss(self, params, instance, key):
        return jnp.sum((params - 3.0) ** 2)


@pytest.mark.slow
def test_a_line_search_wants_the_values_of_its_gradients():
    family, keys = Displaced(2), jax.random.split(jax.random.key(0), 2)
    ran = run_in_time(LBFGS(), np.ones(1), HeldOut(family), family, keys, 1e9, 12)
    np.testing.assert_allclose(ran.test, 0.0, atol=1e-5)


@pytest.mark.parametrize("given", ["raises", "noise"])
def test_without_an_objective_there_is_no_row_and_a_reason(given):
    def noisy(params, seed):
        if given == "raises" and seed is None:
            raise TypeError("a seed is a number")
        noise = np.random.default_rng(seed).standard_normal(2)
        return np.sum((params - noise) ** 2), 2 * (params - noise)

    family = Oracle(noisy, np.ones(2))
    rows = compare({"plain": SGD(0.1)}, {}, family, Protocol(2, runs=2, second_order_runs=2))
    assert list(rows) == ["plain"]
    with pytest.raises(ValueError, match="no objective without noise"):
        family.loss(jnp.ones(2), (), None)


@pytest.mark.slow
def test_one_step_is_taken_even_if_it_does_not_fit():
    # By a program of the test before.
    family = MLPClassifier.from_data(DIGITS, hidden=4, scale=0.3)
    ran = run_in_time(LBFGS(batches=2), np.ones(1), family, family, jax.random.split(jax.random.key(0), 2), 1e-9, 4)
    assert ran.curves.shape == (1, 2, 2)
    assert ran.seconds > 0


@pytest.mark.slow
def test_fast_convolutions_without_a_forward_mode_are_no_obstacle():
    family = ConvClassifier.from_data(DIGITS, channels=(2,), kernel=3, hidden=4, batch=16, scale=0.3)
    method, keys = GaussNewton(damping=jnp.ones(())), jax.random.split(jax.random.key(0), 1)
    curves = run_in_time(method, np.ones(1), family, None, keys, 1e9, 8, one_by_one=True).curves
    assert np.isfinite(curves).all() and curves.min() < 0.9 * curves[0, 0, 0]
