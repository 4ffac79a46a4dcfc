"""Lion, Muon, Schedule-Free and AdamW with a cosine against their formulas, written out in NumPy."""

from collections.abc import Iterator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bygrad.optimizers import (
    Adam,
    AdamWCosine,
    FromOptax,
    Lion,
    Muon,
    Optimizer,
    ScheduleFree,
    declare,
    evaluation_point,
)

pytestmark = pytest.mark.core

STEPS = 20
HORIZON = 16  # the last steps of AdamW's cosine are beyond it


def gradient(x: np.ndarray) -> np.ndarray:
    """Of a badly scaled quadratic on matrices `[3, 2]`."""
    return np.array([[1.0, 10.0], [0.1, 2.0], [5.0, 0.5]]) * x - np.array([0.3, -0.2])


def lion(x: np.ndarray) -> Iterator[np.ndarray]:
    m = np.zeros_like(x)
    while True:
        yield x
        g = gradient(x)
        x = x - 1e-3 * np.sign(0.9 * m + 0.1 * g)
        m = 0.99 * m + 0.01 * g


def muon(x: np.ndarray) -> Iterator[np.ndarray]:
    """Momentum with Nesterov's look-ahead, bias-corrected as optax does it, orthogonalized, scaled by the shape."""
    m, t = np.zeros_like(x), 0
    while True:
        yield x
        g, t = gradient(x), t + 1
        m = 0.95 * m + 0.05 * g
        z = 0.95 * m / (1 - 0.95 ** (t + 1)) + 0.05 * g / (1 - 0.95**t)
        z = z / (np.linalg.norm(z) + 1e-8)
        for _ in range(5):
            gram = z @ z.T
            z = 3.4445 * z + (-4.775 * gram + 2.0315 * gram @ gram) @ z
        x = x - 2e-2 * z * max(1, x.shape[1] / x.shape[0]) ** 0.5


def schedule_free(x: np.ndarray) -> Iterator[np.ndarray]:
    z, v, y, t = x, np.zeros_like(x), x, 0
    while True:
        yield y
        g, t = gradient(y), t + 1
        v = 0.999 * v + 0.001 * g**2
        z = z - 1e-2 * g / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        x = x + (z - x) / t
        y = 0.9 * x + 0.1 * z


def adamw_cosine(x: np.ndarray) -> Iterator[np.ndarray]:
    m, v, t = np.zeros_like(x), np.zeros_like(x), 0
    while True:
        yield x
        rate = 1e-2 * (1 + np.cos(np.pi * min(t / HORIZON, 1))) / 2
        g, t = gradient(x), t + 1
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        x = x - rate * (m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8) + 1e-2 * x)


REFERENCES = {Lion: lion, Muon: muon, ScheduleFree: schedule_free, AdamWCosine: adamw_cosine}


def path(optimizer: Optimizer, x: np.ndarray) -> tuple[np.ndarray, object, jax.Array]:
    update = eqx.filter_jit(optimizer.update)
    params, points = jnp.asarray(x), []
    state = optimizer.init(params)
    for _ in range(STEPS):
        points.append(np.asarray(params))
        updates, state = update(jnp.asarray(gradient(points[-1])), state, params)
        params = params + updates
    return np.stack(points), state, params


@pytest.mark.parametrize("kind", REFERENCES)
def test_twenty_steps_equal_the_formulas(kind: type[FromOptax]):
    x = np.random.default_rng(0).standard_normal((3, 2))
    with jax.enable_x64(True):
        points, _, _ = path(declare(kind(), HORIZON), x)
    expected = np.stack([point for point, _ in zip(REFERENCES[kind](x), range(STEPS), strict=False)])
    np.testing.assert_allclose(points, expected, rtol=1e-6, atol=1e-7)


def test_schedule_free_is_judged_at_its_average():
    x = np.random.default_rng(0).standard_normal((3, 2))
    with jax.enable_x64(True):
        optimizer = ScheduleFree()
        points, state, params = path(optimizer, x)
        judged = np.asarray(evaluation_point(optimizer, state, params))
        assert evaluation_point(Adam(), None, params) is params
    # y = 0.9 x + 0.1 z, and z are the points from which x is the plain average.
    z = np.asarray(state.z)
    np.testing.assert_allclose(0.9 * judged + 0.1 * z, params, rtol=1e-9)
    assert np.abs(judged - np.asarray(params)).max() > 1e-3
    assert points.shape == (STEPS, 3, 2)
