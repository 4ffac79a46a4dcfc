"""Imitation: a loss in closed form for a pupil of the teacher's kind, and turns."""

import json
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

from bygrad._core import trees
from bygrad.metagrads import PES, Backprop, Clone, Imitate, Replay
from bygrad.optimizers import LSTM, SGD, Adam, AdamWCosine, Controller, Optimizer, Partition, declare
from bygrad.problems import Quadratic
from bygrad.training import Recipe, describe
from bygrad.unroll import Windows

WINDOWS = Windows(Quadratic(3), horizon=4, truncation=2, instances=2)


@pytest.mark.parametrize("rate", [0.02, 0.05])
def test_for_a_pupil_of_the_same_kind_the_loss_has_a_closed_form(rate):
    """Updates are rates times the same gradients: the loss is half the square of the relative error of the rate."""
    taught, weight, pupil = 0.05, 0.3, SGD(rate)
    imitate = Imitate(Backprop(), SGD(taught), weight=weight, every=1)
    state = eqx.filter_jit(imitate.init)(pupil, WINDOWS, jax.random.key(0))
    alone, imitating = eqx.filter_jit(Backprop().estimate), eqx.filter_jit(imitate.estimate)
    for _ in range(3):  # an instance is renewed in between
        own, _ = alone(pupil, WINDOWS, state.achieved)
        both, state = imitating(pupil, WINDOWS, state)
        added = both.gradient.learning_rate - own.gradient.learning_rate
        scale = abs(float(own.gradient.learning_rate))
        np.testing.assert_allclose(added, weight * (rate - taught) / taught**2, rtol=1e-4, atol=1e-5 * scale)
        np.testing.assert_array_equal(both.loss, own.loss)


def test_the_gradient_is_that_of_the_loss_along_the_teachers_path():
    pupil, teacher = LSTM(jax.random.key(0), (3,)), Adam(0.1)
    imitate = Imitate(Replay(), teacher, weight=1.0, every=1)
    state = eqx.filter_jit(imitate.init)(pupil, WINDOWS, jax.random.key(0))
    own, _ = eqx.filter_jit(Replay().estimate)(pupil, WINDOWS, state.achieved)
    both, after = eqx.filter_jit(imitate.estimate)(pupil, WINDOWS, state)

    grads, taught = [], []  # of both instances, step by step
    for i in range(2):
        params, instance = state.shown.params[i], jax.tree.map(lambda leaf, i=i: leaf[i], state.shown.instance)
        memory = teacher.init(params)
        for _ in range(2):
            grad = jax.grad(WINDOWS.family.loss)(params, instance, None)
            update, memory = teacher.update(grad, memory)
            grads.append(grad), taught.append(update)
            params = params + update
        np.testing.assert_allclose(after.shown.params[i], params, rtol=1e-4)

    @jax.grad
    def expected(theta):
        optimizer, errors = eqx.combine(theta, pupil), []
        for i in range(2):
            memory = optimizer.init(grads[0])
            for t in (2 * i, 2 * i + 1):
                update, memory = optimizer.update(grads[t], memory)
                errors.append(update - taught[t])
        return 0.5 * jnp.mean(jnp.square(jnp.stack(errors))) / jnp.mean(jnp.square(jnp.stack(taught)))

    expected = expected(eqx.filter(pupil, eqx.is_inexact_array))
    for a, b, c in zip(*map(jax.tree.leaves, (both.gradient, own.gradient, expected)), strict=True):
        np.testing.assert_allclose(a - b, c, rtol=2e-3, atol=1e-4 * float(jnp.max(jnp.abs(c))))


TEACHERS = {
    "LSTM": lambda: LSTM(jax.random.key(1), (3,)),
    "AdamWCosine": lambda: AdamWCosine(0.1),
    "Partition": lambda: Partition(parts={"all": LSTM(jax.random.key(2), (2,))}, rules=(("*", "all"),)),
}


@pytest.mark.slow
def test_a_schedule_is_that_of_the_longest_runs_where_each_has_its_own_horizon():
    """Of an optimizer that keeps its horizon in its state, too: it has nothing to learn from itself."""
    windows = Windows(Quadratic(3), horizon=8, truncation=2, instances=4, shortest=2)
    itself = declare(Controller(jax.random.key(0), hidden=2).fall(), 8)
    imitate = Imitate(Replay(), itself, weight=1.0, every=1)
    state = eqx.filter_jit(imitate.init)(itself, windows, jax.random.key(0))
    assert len(set(np.asarray(windows.horizons(state.shown.key)))) > 1
    own, _ = eqx.filter_jit(Replay().estimate)(itself, windows, state.achieved)
    both, _ = eqx.filter_jit(imitate.estimate)(itself, windows, state)
    for ours, theirs in zip(*map(jax.tree.leaves, (both.gradient, own.gradient)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * float(1 + jnp.max(jnp.abs(theirs))))


@pytest.mark.parametrize("name", [pytest.param(it, marks=pytest.mark.slow if it == "LSTM" else ()) for it in TEACHERS])
def test_any_optimizer_can_teach_and_knows_the_horizon(name):
    """An optimizer has nothing to learn from itself, whatever the way in which it likes to see a batch."""
    teacher = TEACHERS[name]()
    itself = declare(teacher, WINDOWS.horizon)
    imitate, clone = Imitate(Replay(), teacher, weight=1.0, every=1), Clone(teacher)
    state = eqx.filter_jit(imitate.init)(itself, WINDOWS, jax.random.key(0))
    own, _ = eqx.filter_jit(Replay().estimate)(itself, WINDOWS, state.achieved)
    both, _ = eqx.filter_jit(imitate.estimate)(itself, WINDOWS, state)
    for ours, theirs in zip(*map(jax.tree.leaves, (both.gradient, own.gradient)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * float(1 + jnp.max(jnp.abs(theirs))))
    shown = eqx.filter_jit(clone.init)(itself, WINDOWS, jax.random.key(0))
    estimate, _ = eqx.filter_jit(clone.estimate)(itself, WINDOWS, shown)
    assert abs(float(estimate.loss)) < 1e-6
    json.dumps(describe(Recipe(estimator=imitate)))


class Bent(Optimizer):
    """Holds a function, as a network of Equinox does."""

    bend: Callable[[Array], Array] = jnp.tanh

    def init(self, params):
        return ()

    def update(self, grads, state, params=None, *, value=None, key=None):
        return jax.tree.map(lambda grad: -0.01 * self.bend(grad), grads), state


def test_a_teacher_that_holds_a_function_can_be_written_down():
    told = [json.dumps(describe(Recipe(estimator=Clone(Bent(it))))) for it in (jnp.tanh, jnp.tanh, jnp.sin)]
    assert told[0] == told[1] != told[2] and " at 0x" not in told[0]


def test_what_the_estimator_says_of_its_particles_is_passed_on():
    imitate = Imitate(PES(), SGD(0.05))
    state = eqx.filter_jit(imitate.init)(SGD(0.1), WINDOWS, jax.random.key(0))
    own, _ = eqx.filter_jit(PES().estimate)(SGD(0.1), WINDOWS, state.achieved)
    both, _ = eqx.filter_jit(imitate.estimate)(SGD(0.1), WINDOWS, state)
    assert own.square is not None and both.square is not None and both.lost is not None
    # Its noise is that of the particles, about the mean that the imitation has moved.
    noises = [it.square - jnp.square(trees.global_norm(it.gradient)) for it in (own, both)]
    assert trees.global_norm(both.gradient) != trees.global_norm(own.gradient)
    np.testing.assert_allclose(noises[1], noises[0], rtol=1e-4)


def test_turns_are_taken():
    pupil = SGD(0.1)
    imitate = Imitate(Replay(), SGD(0.05), every=2)
    state = eqx.filter_jit(imitate.init)(pupil, WINDOWS, jax.random.key(0))
    alone, imitating = eqx.filter_jit(Replay().estimate), eqx.filter_jit(imitate.estimate)
    imitated = []
    for _ in range(4):
        own, _ = alone(pupil, WINDOWS, state.achieved)
        both, state = imitating(pupil, WINDOWS, state)
        imitated.append(bool(abs(both.gradient.learning_rate - own.gradient.learning_rate) > 1e-3))
    assert imitated == [True, False, True, False]


def test_a_recipe_with_imitation_is_json():
    described = describe(Recipe(estimator=Imitate(Replay(0.5), SGD(0.25), every=3)))["estimator"]
    assert described["estimator"]["coordinates"] == 0.5
    assert described["teacher"] == {"name": "SGD", "learning_rate": 0.25}


@pytest.mark.parametrize("options", [{"every": 0}, {"weight": 0.0}])
def test_imitation_of_nothing_is_refused(options):
    with pytest.raises(ValueError, match="nothing would be imitated"):
        Imitate(Replay(), SGD(), **options)
