"""Runs on fresh instances: the same for every optimizer, and independent of how they are cut into pieces."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bygrad.evaluation import area, final, lbfgs_curves, run_curves
from bygrad.evaluation import runs as runs_module
from bygrad.evaluation.second_order import no_objective
from bygrad.optimizers import LSTM, SGD, ScheduleFree
from bygrad.problems import MLPClassifier, ProblemFamily, Quadratic
from bygrad.unroll import begin, loss_curves, rollout


def perceptron() -> MLPClassifier:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (20, 6), dtype=np.uint8), rng.integers(0, 3, 20, dtype=np.int32)
    return MLPClassifier(jnp.asarray(images), jnp.asarray(labels), classes=3, hidden=4, batch=5, scale=1.0)


class NeedsKey(ProblemFamily):
    def sample(self, key):
        return ()

    def init(self, instance, key):
        return jax.random.normal(key, (3,))

    def loss(self, params, instance, key):
        return jnp.sum((params - jax.random.normal(key, (3,))) ** 2)


def test_pieces_leave_no_trace():
    told, options = [], {"horizon": 3, "runs": 5}
    optimizer = SGD(0.05)
    whole, seconds = run_curves(optimizer, perceptron(), jax.random.key(1), chunk=100, **options)
    assert whole.shape == (5, 4)
    assert whole.dtype == np.float64
    assert seconds > 0
    tick = lambda done, total: told.append((done, total))  # noqa: E731
    pieces, _ = run_curves(optimizer, perceptron(), jax.random.key(1), chunk=2, tick=tick, **options)
    np.testing.assert_allclose(pieces, whole, rtol=1e-5)
    assert told == [(2, 5), (4, 5), (5, 5)]


def test_seconds_are_those_of_a_step_of_one_run(monkeypatch):
    ticks = iter([10.0, 10.0 + 6.0])
    monkeypatch.setattr(runs_module, "time", types.SimpleNamespace(perf_counter=lambda: next(ticks)))
    _, seconds = run_curves(SGD(0.05), perceptron(), jax.random.key(1), chunk=2, horizon=3, runs=6)
    assert seconds == pytest.approx(6.0 / (2 * 3))  # the first two of six runs were timed


def test_all_optimizers_start_from_the_same_instances_and_minibatches():
    key, options, family = jax.random.key(2), {"horizon": 2, "runs": 3}, perceptron()
    learned, moving, still = (run_curves(it, family, key, **options)[0] for it in (LSTM(key, (3,)), SGD(1.0), SGD(0.0)))
    np.testing.assert_allclose(learned[:, 0], still[:, 0], rtol=1e-5)
    np.testing.assert_allclose(moving[:, 0], still[:, 0], rtol=1e-5)
    assert np.all(moving[:, 1:] != still[:, 1:])
    # Who stays in place sees another minibatch at every step.
    assert len(np.unique(still)) == still.size


def test_what_is_judged_elsewhere_is_timed_by_its_steps_alone(monkeypatch):
    programs, real = [], runs_module.run_in_chunks

    def run_in_chunks(curves_of, *arguments, **options):
        programs.append(curves_of)
        return real(curves_of, *arguments, **options)[0], float(len(programs))

    monkeypatch.setattr(runs_module, "run_in_chunks", run_in_chunks)
    family, key = Quadratic(3), jax.random.key(0)
    keys = jax.random.split(key, 3)
    _, seconds = run_curves(SGD(0.05), family, key, horizon=4, runs=3, chunk=2)
    assert seconds == len(programs) == 1
    programs.clear()
    average = ScheduleFree(0.3)
    curves, seconds = run_curves(average, family, key, horizon=4, runs=3, chunk=2)
    np.testing.assert_allclose(curves, loss_curves(average, family, keys, 4), rtol=1e-5)
    assert seconds == len(programs) == 2
    _, seen = rollout(average, family, begin(average, family, keys), 4)
    passing = np.concatenate([seen.value, seen.end_value[None]]).T
    np.testing.assert_allclose(programs[1](average, family, keys, 4), passing, rtol=1e-5)
    assert np.all(passing[:, 2:] != curves[:, 2:])


def test_area_and_final_loss():
    curves = np.array([[4.0, 3.0, 2.0, 1.0], [8.0, 0.0, 0.0, 2.0]])
    np.testing.assert_array_equal(area(curves), [9, 8])  # the losses before each update, not the last one
    np.testing.assert_array_equal(final(curves, 1), [1, 2])
    np.testing.assert_array_equal(final(curves, 2), [1.5, 1])


def test_lbfgs_solves_quadratics_to_machine_precision():
    with jax.enable_x64(True):
        curves = np.asarray(lbfgs_curves(Quadratic(4, "gaussian"), jax.random.split(jax.random.key(0), 8), 60))
    assert curves.shape == (8, 61)
    assert np.all(curves[:, -1] < 1e-20 * curves[:, 0])
    assert np.all(curves.min(axis=1) < 1e-25 * curves[:, 0])
    assert np.all(np.diff(curves, axis=1) <= 1e-20)  # its line search never goes up


@pytest.mark.slow
def test_lbfgs_beats_gradient_descent_on_a_perceptron():
    keys = jax.random.split(jax.random.key(0), 3)
    family = perceptron()
    second = np.asarray(lbfgs_curves(family, keys, 15))
    assert np.all(np.isfinite(second))
    first, _ = run_curves(SGD(0.1), family, jax.random.key(0), horizon=15, runs=3)
    assert second[:, -5:].mean() < first[:, -5:].mean()


@pytest.mark.parametrize(
    ("family", "expected"),
    [(Quadratic(), True), (perceptron(), True), (NeedsKey(), False)],
    ids=lambda it: type(it).__name__,
)
def test_a_family_that_needs_a_key_has_no_objective(family, expected):
    assert (no_objective(family) is None) is expected
