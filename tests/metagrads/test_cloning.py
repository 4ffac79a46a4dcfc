"""Cloning: a loss in closed form for a pupil of the teacher's kind, draws without bias, and what comes after it."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bygrad.metagrads import Clone, Estimate, Imitate, Replay
from bygrad.metagrads.cloning import KEPT
from bygrad.optimizers import LSTM, SGD, Adam, Partition
from bygrad.problems import Quadratic
from bygrad.training import Recipe, Validated, describe, is_begun, meta_train
from bygrad.unroll import Windows

WINDOWS = Windows(Quadratic(5), horizon=6, truncation=2, instances=3)


def estimates(clone, pupil, count):
    state = clone.init(pupil, WINDOWS, jax.random.key(0))
    step = eqx.filter_jit(clone.estimate)
    for _ in range(count):
        estimate, state = step(pupil, WINDOWS, state)
        yield estimate, state


@pytest.mark.parametrize("rate", [0.02, 0.05, 0.08])
def test_for_a_pupil_of_the_same_kind_the_loss_has_a_closed_form(rate):
    """Updates are rates times the same gradients: errors are the relative error of the rate times the taught."""
    taught = 0.05
    estimate, state = next(estimates(Clone(SGD(taught)), SGD(rate), 1))
    size = np.mean(np.square(state.taught), axis=2)
    share = np.mean(size / (size + 0.02 * size.mean(axis=0)))
    np.testing.assert_allclose(estimate.loss, 0.5 * share * (rate / taught - 1) ** 2, rtol=1e-4, atol=1e-7)
    expected = share * (rate / taught - 1) / taught
    np.testing.assert_allclose(estimate.gradient.learning_rate, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.mean(estimate.losses), estimate.loss, rtol=1e-5)


class Halves(Quadratic):
    """Params in half precision, of such a size that the squares of their updates have none."""

    def init(self, instance, key):
        return (0.01 * super().init(instance, key)).astype(jnp.float16)

    def loss(self, params, instance, key):
        return 0.5 * jnp.sum(jnp.square(params.astype(jnp.float32)))


@pytest.mark.parametrize("kind", [Clone, Imitate])
def test_updates_of_params_in_half_precision_are_squared_in_float32(kind):
    windows, taught, rate, share = dataclasses.replace(WINDOWS, family=Halves(5)), 0.01, 0.002, 1e6
    estimator = Clone(SGD(taught)) if kind is Clone else Imitate(Replay(), SGD(taught), weight=share, every=1)
    state = estimator.init(SGD(rate), windows, jax.random.key(0))
    estimate, _ = estimator.estimate(SGD(rate), windows, state)
    if kind is Clone:
        size = np.mean(np.square(np.asarray(state.taught, np.float64)), axis=2)
        share = np.mean(size / (size + 0.02 * size.mean(axis=0)))
        np.testing.assert_allclose(estimate.loss, 0.5 * share * (rate / taught - 1) ** 2, rtol=0.05)
    np.testing.assert_allclose(estimate.gradient.learning_rate, share * (rate / taught - 1) / taught, rtol=0.05)


class Broken(Quadratic):
    """On some instances nothing is finite."""

    def loss(self, params, instance, key):
        return super().loss(params, instance, key) * jnp.where(instance[1][0] > 0.7, jnp.inf, 1.0)


class Nothing(Replay):
    """An estimator to which something can be added, whatever the family is like."""

    def estimate(self, optimizer, windows, state):
        zero = jax.tree.map(jnp.zeros_like, eqx.filter(optimizer, eqx.is_inexact_array))
        return Estimate(jnp.zeros(()), zero, jnp.zeros(windows.instances)), state


def test_runs_of_the_teacher_that_are_not_finite_are_left_out():
    windows, taught, rate = dataclasses.replace(WINDOWS, family=Broken(5), instances=8), 0.05, 0.02
    clone, pupil = Clone(SGD(taught)), SGD(rate)
    estimate, state = clone.estimate(pupil, windows, clone.init(pupil, windows, jax.random.key(0)))
    live = np.isfinite(estimate.losses)
    assert 0 < live.sum() < 8 and float(estimate.lost) == pytest.approx(np.mean(~live))
    np.testing.assert_allclose(estimate.loss, np.mean(estimate.losses[live]), rtol=1e-5)
    size = np.mean(np.square(state.taught[:, live]), axis=2)
    share = np.mean(size / (size + 0.02 * size.mean(axis=0)))
    np.testing.assert_allclose(estimate.gradient.learning_rate, share * (rate / taught - 1) / taught, rtol=1e-4)

    imitate = Imitate(Nothing(), SGD(taught), weight=1.0, every=1)
    estimate, state = imitate.estimate(pupil, windows, imitate.init(pupil, windows, jax.random.key(0)))
    np.testing.assert_allclose(estimate.gradient.learning_rate, (rate - taught) / taught**2, rtol=1e-4)
    assert 0 < np.sum(windows.done(state.shown)) < 8  # that are renewed before their time


def test_a_teacher_that_diverges_everywhere_is_told():
    recipe = Recipe(4, 4, 2, 40, 1e-2, 1.0, Clone(SGD(1e20)), validate_every=40, validation_runs=2)
    with pytest.raises(FloatingPointError, match=r"no run of the teacher is finite.*lower its learning rate"):
        meta_train(SGD(0.02), Quadratic(2), recipe, watch=lambda event: None)


def test_what_is_recorded_is_the_teachers_run():
    teacher = Adam(0.1)
    _, state = next(estimates(Clone(teacher), SGD(0.1), 1))
    params = state.seen.params[0, 1]
    memory = teacher.init(params)
    for t in range(WINDOWS.horizon):
        np.testing.assert_allclose(state.seen.params[t, 1], params, rtol=1e-4, atol=1e-6)
        update, memory = teacher.update(state.seen.grads[t, 1], memory)
        np.testing.assert_allclose(state.taught[t, 1], update, rtol=1e-3, atol=1e-6)
        params = params + update


def test_the_gradient_of_the_loss_is_that_of_autodiff():
    pupil = LSTM(jax.random.key(1), (4,))
    estimate, state = next(estimates(Clone(Adam(0.1)), pupil, 1))

    @jax.grad
    def expected(theta):
        optimizer = eqx.combine(theta, pupil)
        memory, total = optimizer.init(state.seen.grads[0]), 0.0
        for t in range(WINDOWS.horizon):
            update, memory = optimizer.update(state.seen.grads[t], memory)
            square = jnp.mean(jnp.square(update - state.taught[t]), axis=-1)
            total += 0.5 * jnp.mean(state.weights[t] * square) / WINDOWS.horizon
        return total

    expected = expected(eqx.filter(pupil, eqx.is_inexact_array))
    for a, b in zip(jax.tree.leaves(estimate.gradient), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * float(jnp.max(jnp.abs(b))))


@pytest.mark.parametrize("in_parts", [False, True])
def test_a_part_of_the_coordinates_gives_the_gradient_of_all_on_average(in_parts):
    lstm = LSTM(jax.random.key(1), (3,))
    pupil = Partition(parts={"convolutions": lstm, "rest": lstm}) if in_parts else lstm

    def head(estimate):
        return (estimate.gradient.parts["rest"] if in_parts else estimate.gradient).head

    whole, _ = next(estimates(Clone(Adam(0.1)), pupil, 1))
    drawn = [head(estimate) for estimate, _ in estimates(Clone(Adam(0.1), coordinates=2), pupil, 200)]
    drawn = np.asarray(drawn)
    error = drawn.std(axis=0) / np.sqrt(len(drawn))
    assert np.all(np.abs(drawn.mean(axis=0) - head(whole)) < 4 * error)
    assert np.all(error > 0)


def test_of_many_coordinates_some_are_kept():
    pupil, windows = LSTM(jax.random.key(1), (3,)), dataclasses.replace(WINDOWS, family=Quadratic(2 * KEPT))
    state = Clone(Adam(0.1), coordinates=1).init(pupil, windows, jax.random.key(0))
    assert state.taught.shape == state.seen.grads.shape == (6, 3, KEPT)
    whole = Clone(Adam(0.1)).init(pupil, windows, jax.random.key(0))
    for instance in range(3):  # of each instance its own, the gradients beside the updates that were made of them
        rows = [
            np.flatnonzero(np.all(whole.taught[:, instance] == one[:, None], 0)) for one in state.taught[:, instance].T
        ]
        chosen = np.concatenate(rows)
        assert len(set(chosen)) == KEPT
        np.testing.assert_array_equal(whole.seen.grads[:, instance, chosen], state.seen.grads[:, instance])


@pytest.mark.slow
def test_what_is_kept_does_not_go_by_where_it_begins():
    """A start is normal, with mean 0, and so is the part of it that is drawn from another key."""
    windows = Windows(Quadratic(4 * KEPT, scale=1.0), horizon=1, truncation=1, instances=50)
    state = Clone(SGD(0.1), coordinates=1).init(LSTM(jax.random.key(1), (3,)), windows, jax.random.key(0))
    starts = np.asarray(state.seen.params[0])
    assert starts.shape == (50, KEPT)
    assert abs(starts.mean()) < 4 / np.sqrt(starts.size)


class Parted(Quadratic):
    """A quadratic whose params stand in two leaves, one of them called as a convolution's weight."""

    def init(self, instance, key):
        params = super().init(instance, key)
        return {"conv": {"weight": params[:3]}, "rest": params[3:]}

    def loss(self, params, instance, key):
        return super().loss(jnp.concatenate([params["conv"]["weight"], params["rest"]]), instance, key)


@pytest.mark.slow
def test_parts_are_cloned_together_as_the_whole():
    lstm, windows = LSTM(jax.random.key(1), (3,)), dataclasses.replace(WINDOWS, family=Parted(5))
    parts = Partition(parts={"convolutions": lstm, "rest": lstm})
    clone = Clone(SGD(0.05))
    (whole, _), (ours, _) = (
        clone.estimate(it, windows, clone.init(it, windows, jax.random.key(0))) for it in (lstm, parts)
    )
    np.testing.assert_allclose(ours.losses, whole.losses, rtol=1e-5)
    gradients = ours.gradient.parts
    total = jax.tree.map(jnp.add, gradients["convolutions"], gradients["rest"])
    for a, b in zip(jax.tree.leaves(total), jax.tree.leaves(whole.gradient), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(jnp.max(jnp.abs(b))))
    assert all(np.any(gradients[name].head != 0) for name in gradients)


@pytest.mark.slow
def test_an_array_counts_by_its_size_whatever_part_of_it_is_drawn():
    """A pupil of two parts that see one coordinate each of 3 and of 9, or all: the loss is the same on average."""

    class Steep(Parted):
        def loss(self, params, instance, key):
            return super().loss(params | {"rest": 5 * params["rest"]}, instance, key)

    lstm = LSTM(jax.random.key(1), (2,))
    windows = dataclasses.replace(WINDOWS, family=Steep(12))
    for first in (lstm, SGD(0.0)):  # the second sees all of its params, whatever is drawn of others
        pupil = Partition(parts={"convolutions": first, "rest": lstm})
        whole, drawn = (Clone(SGD(0.05), coordinates=count) for count in (12, 1))
        expected, _ = whole.estimate(pupil, windows, whole.init(pupil, windows, jax.random.key(0)))
        state, step, losses = drawn.init(pupil, windows, jax.random.key(0)), eqx.filter_jit(drawn.estimate), []
        for _ in range(200):
            estimate, state = step(pupil, windows, state)
            losses.append(float(estimate.loss))
        error = np.std(losses) / np.sqrt(len(losses))
        assert abs(np.mean(losses) - expected.loss) < 4 * error < 0.1 * expected.loss


def test_no_coordinates_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        Clone(SGD(0.1), coordinates=0)


CLONING = Recipe(6, 6, 3, 40, 1e-2, 1.0, Clone(SGD(0.05)), validate_every=20, validation_runs=2)
RECIPE = Recipe(6, 2, 3, 4, 1e-3, 1.0, Replay(), validate_every=2, validation_runs=2, before=CLONING, seed=3)


@pytest.mark.slow
def test_what_comes_before_is_where_learning_begins(tmp_path):
    family, optimizer = WINDOWS.family, LSTM(jax.random.key(0), (4,))
    told = []
    both = meta_train(optimizer, family, RECIPE, folder=tmp_path / "both", watch=told.append)
    first = meta_train(optimizer, family, dataclasses.replace(CLONING, seed=3))
    then = meta_train(first.optimizer, family, dataclasses.replace(RECIPE, before=None))
    for a, b in zip(jax.tree.leaves(both.optimizer), jax.tree.leaves(then.optimizer), strict=True):
        np.testing.assert_array_equal(a, b)
    assert [event.step for event in told if isinstance(event, Validated)] == [0, 20, 40, 0, 2, 4]
    assert describe(RECIPE)["before"]["estimator"]["name"] == "Clone"


@pytest.mark.slow
def test_an_interruption_before_resumes_to_the_same(tmp_path):
    family, optimizer = WINDOWS.family, LSTM(jax.random.key(0), (4,))
    whole = meta_train(optimizer, family, RECIPE)

    def stop(event):
        if isinstance(event, Validated) and event.step == 20:
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        meta_train(optimizer, family, RECIPE, folder=tmp_path / "a", watch=stop)
    assert is_begun(tmp_path / "a")
    resumed = meta_train(optimizer, family, RECIPE, folder=tmp_path / "a", resume=True)
    for a, b in zip(jax.tree.leaves(whole.optimizer), jax.tree.leaves(resumed.optimizer), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(FileExistsError):
        meta_train(optimizer, family, RECIPE, folder=tmp_path / "a")
