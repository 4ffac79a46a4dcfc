"""The baselines against the formulas of Torch 7's `optim`, written out in NumPy, and against plain optax."""

from collections.abc import Callable, Iterator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bygrad.evaluation.tuning import with_learning_rate
from bygrad.optimizers import (
    HAND_DESIGNED,
    SGD,
    AdamW,
    AdamWCosine,
    Cosine,
    FromOptax,
    Lion,
    Muon,
    Nesterov,
    RMSprop,
    ScheduleFree,
    Trapezoid,
    declare,
    parameter_count,
)

STEPS = 100
Gradient = Callable[[np.ndarray], np.ndarray]


def problem() -> tuple[np.ndarray, Gradient]:
    """The start and the gradient of a badly scaled least-squares problem."""
    rng = np.random.default_rng(0)
    matrix, target = rng.standard_normal((6, 6)), rng.standard_normal(6)
    return rng.standard_normal(6), lambda x: 2 * matrix.T @ (matrix @ x - target)


# Each yields the points at which it takes gradients: there the loss is reported.
def sgd(x: np.ndarray, gradient: Gradient) -> Iterator[np.ndarray]:
    while True:
        yield x
        x = x - 1e-2 * gradient(x)


def nesterov(x: np.ndarray, gradient: Gradient) -> Iterator[np.ndarray]:
    velocity = np.zeros_like(x)
    while True:
        x = x + 0.9 * velocity
        yield x
        g = gradient(x)
        x = x - 1e-2 * g
        velocity = 0.9 * velocity - 1e-2 * g


def rmsprop(x: np.ndarray, gradient: Gradient) -> Iterator[np.ndarray]:
    square = np.zeros_like(x)
    while True:
        yield x
        g = gradient(x)
        square = 0.99 * square + 0.01 * g * g
        x = x - 1e-2 * g / (np.sqrt(square) + 1e-8)


def adam(
    x: np.ndarray, gradient: Gradient, decay: float = 0.0, horizon: int | None = None, warmup: int = 1
) -> Iterator[np.ndarray]:
    mean, square, t = np.zeros_like(x), np.zeros_like(x), 0
    while True:
        yield x
        g, t = gradient(x), t + 1
        mean, square = 0.9 * mean + 0.1 * g, 0.999 * square + 0.001 * g * g
        step = mean / (1 - 0.9**t) / (np.sqrt(square / (1 - 0.999**t)) + 1e-8)
        rate = 1e-2 if horizon is None else 1e-2 * (1 + np.cos(np.pi * min((t - 1) / horizon, 1))) / 2
        x = x - min(t / warmup, 1) * rate * (step + decay * x)


def adamw(x: np.ndarray, gradient: Gradient) -> Iterator[np.ndarray]:
    return adam(x, gradient, decay=1e-2)


def adamw_cosine(x: np.ndarray, gradient: Gradient) -> Iterator[np.ndarray]:
    return adam(x, gradient, decay=1e-2, horizon=80)  # the last steps are beyond it


# The last column: RMSprop's constant stands elsewhere than Torch's, which is seen where gradients are small.
REFERENCES = {
    "SGD": (sgd, lambda: optax.sgd(1e-2), 1e-10),
    "Nesterov": (nesterov, lambda: optax.sgd(1e-2, 0.9, nesterov=True), 1e-10),
    "RMSprop": (rmsprop, lambda: optax.rmsprop(1e-2, decay=0.99, eps=1e-16), 1e-6),
    "Adam": (adam, lambda: optax.adam(1e-2), 1e-10),
    "AdamW": (adamw, lambda: optax.adamw(1e-2, weight_decay=1e-2), 1e-10),
    "AdamWCosine": (
        adamw_cosine,
        lambda: optax.adamw(optax.cosine_decay_schedule(1e-2, 80), weight_decay=1e-2),
        1e-10,
    ),
}


def path(optimizer: FromOptax | optax.GradientTransformation, x: np.ndarray, gradient: Gradient) -> np.ndarray:
    """The points `[steps, n]` at which an optimizer takes gradients."""
    update = eqx.filter_jit(optimizer.update)
    params, points = jnp.asarray(x), []
    state = optimizer.init(params)
    for _ in range(STEPS):
        points.append(np.asarray(params))
        updates, state = update(jnp.asarray(gradient(points[-1])), state, params)
        params = params + updates
    return np.stack(points)


def test_every_baseline_has_a_reference():
    assert set(REFERENCES) == set(HAND_DESIGNED)


@pytest.mark.parametrize("name", HAND_DESIGNED)
def test_a_hundred_steps_equal_the_formulas(name):
    reference, plain, tolerance = REFERENCES[name]
    x, gradient = problem()
    expected = np.stack([point for point, _ in zip(reference(x, gradient), range(STEPS), strict=False)])
    with jax.enable_x64(True):
        points = path(declare(HAND_DESIGNED[name](learning_rate=1e-2), 80), x, gradient)
        theirs = path(plain(), x, gradient)
    assert points.dtype == np.float64
    assert np.abs(points[-1] - points[0]).max() > 0.1
    np.testing.assert_allclose(points, expected, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(points, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("warmup", [10, 0, 1, 7])
def test_the_rate_rises_over_the_warmup(warmup):
    x, gradient = problem()
    reference = adam(x, gradient, decay=1e-2, horizon=80, warmup=max(1, warmup))
    expected = np.stack([point for point, _ in zip(reference, range(STEPS), strict=False)])
    with jax.enable_x64(True):
        points = path(declare(AdamWCosine(learning_rate=1e-2, warmup=warmup), 80), x, gradient)
    np.testing.assert_allclose(points, expected, rtol=1e-10, atol=1e-10)


SCHEDULED = {
    AdamW: lambda rate: optax.adamw(rate, weight_decay=1e-2),
    Nesterov: lambda rate: optax.sgd(rate, 0.9, nesterov=True),
    RMSprop: lambda rate: optax.rmsprop(rate, decay=0.99, eps=1e-16),
    Lion: lambda rate: optax.lion(rate, weight_decay=0.0),
    Muon: lambda rate: optax.contrib.muon(rate),
}


@pytest.mark.parametrize("kind", SCHEDULED)
def test_a_cosine_is_a_schedule_of_the_learning_rate(kind):
    x, gradient = problem()
    with jax.enable_x64(True):
        cosine = with_learning_rate(declare(Cosine(kind()), 80), 1e-2)
        points = path(cosine, x, gradient)
        theirs = path(SCHEDULED[kind](optax.cosine_decay_schedule(1e-2, 80)), x, gradient)
    np.testing.assert_allclose(points, theirs, rtol=1e-9, atol=1e-9)
    assert np.ptp(points[81:], axis=0).max() == 0  # beyond the horizon nothing moves


@pytest.mark.parametrize("kind", SCHEDULED)
@pytest.mark.parametrize(("warmup", "decay"), [(0, 0.25), (10, 0.5), (1, 1.0), (7, 0.1)])
def test_a_trapezoid_is_a_schedule_of_the_learning_rate(kind, warmup, decay):
    x, gradient = problem()
    falling = round(80 * decay)
    rises, stays, falls = (
        optax.linear_schedule(1e-2 / max(1, warmup), 1e-2, max(1, warmup - 1)),
        optax.constant_schedule(1e-2),
        optax.linear_schedule(1e-2, 0.0, falling),
    )
    joined = optax.join_schedules([rises, stays, falls], [warmup, 80 - falling])
    schedule = lambda count: joined(jnp.asarray(count, float))  # noqa: E731  # in float32, of whole numbers
    with jax.enable_x64(True):
        shaped = with_learning_rate(declare(Trapezoid(kind(), warmup=warmup, decay=decay), 80), 1e-2)
        points = path(shaped, x, gradient)
        theirs = path(SCHEDULED[kind](schedule), x, gradient)
    np.testing.assert_allclose(points, theirs, rtol=1e-9, atol=1e-9)
    assert np.ptp(points[81:], axis=0).max() == 0  # beyond the horizon nothing moves


@pytest.mark.parametrize(("schedule", "given_up"), [(Cosine, 0.5), (Trapezoid, 0.1)])
def test_schedules_give_up_as_much_of_the_learning_rate_as_they_say(schedule, given_up):
    part = declare(schedule(SGD()), STEPS).part
    assert float(1 - jnp.mean(jax.vmap(part)(jnp.arange(float(STEPS))))) == pytest.approx(given_up, abs=1 / STEPS)


@pytest.mark.parametrize("schedule", [Cosine, Trapezoid])
@pytest.mark.parametrize("kind", [ScheduleFree, AdamWCosine, lambda: Cosine(SGD()), lambda: Trapezoid(SGD())])
def test_what_has_a_schedule_or_an_average_takes_no_other(schedule, kind):
    with pytest.raises(ValueError, match=rf"schedule or an average of its own.*give {schedule.__name__} a rule"):
        schedule(kind())


@pytest.mark.parametrize(
    ("name", "field", "values"),
    [
        *[(name, "learning_rate", [1e-3, 1e-2, 3e-2]) for name in HAND_DESIGNED],
        ("Nesterov", "momentum", [0.0, 0.5, 0.99]),
        ("RMSprop", "decay", [0.0, 0.5, 0.999]),
        ("Adam", "b1", [0.0, 0.5, 0.99]),
        ("Adam", "b2", [0.5, 0.9, 0.9999]),
        ("AdamW", "weight_decay", [0.0, 0.1, 1.0]),
        ("AdamWCosine", "warmup", [0.0, 3.0, 20.0]),
    ],
)
def test_a_batch_of_hyperparameters_is_a_batch_of_optimizers(name, field, values):
    x, gradient = problem()
    matrix = jnp.stack([jnp.asarray(gradient(row) - gradient(0 * x), jnp.float32) for row in np.eye(len(x))], axis=1)
    shift = jnp.asarray(gradient(0 * x), jnp.float32)

    @jax.jit
    def run(value: jax.Array) -> jax.Array:
        optimizer = eqx.tree_at(lambda it: getattr(it, field), HAND_DESIGNED[name](), value)

        def body(carry, _):
            params, state = carry
            updates, state = optimizer.update(matrix @ params + shift, state, params)
            return (params + updates, state), params

        start = jnp.asarray(x, jnp.float32)
        return jax.lax.scan(body, (start, optimizer.init(start)), None, length=10)[1]

    together, alone = jax.vmap(run)(jnp.array(values)), [run(jnp.float32(value)) for value in values]
    np.testing.assert_allclose(together, jnp.stack(alone), rtol=1e-4, atol=1e-5)
    assert np.abs(together[0, -1] - together[-1, -1]).max() > 1e-4


@pytest.mark.parametrize("name", HAND_DESIGNED)
def test_hyperparameters_are_the_meta_parameters(name):
    leaves = jax.tree.leaves(eqx.filter(HAND_DESIGNED[name](), eqx.is_inexact_array))
    assert all(leaf.dtype == jnp.float32 and leaf.shape == () for leaf in leaves)
    assert parameter_count(HAND_DESIGNED[name]()) == len(leaves) >= 1


@pytest.mark.parametrize("build", [AdamWCosine, lambda horizon: Cosine(SGD(), horizon=horizon)])
@pytest.mark.parametrize("horizon", [0, -1])
def test_schedules_are_over_whole_steps(build, horizon):
    with pytest.raises(ValueError, match=rf"{horizon}"):
        build(horizon=horizon)
