"""Trials: what is decided from the losses alone."""

import jax
import jax.numpy as jnp
import pytest

from bygrad._core.definitions import REFERENCE, TRIAL
from bygrad.optimizers.trials import Level, Seen, Trials, Watch


def decided(trials: Trials, losses: jax.Array, told: jax.Array | None = None) -> Watch:
    """The watch after these losses, where nothing else matters; not given where not `told`."""
    point, yes = jnp.zeros(()), jnp.ones((), bool)

    def step(watch: Watch, now: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[Watch, None]:
        count, loss, told = now
        good = ~told | jnp.isfinite(loss)
        return trials.decide(watch, Seen(count, point, loss, told, good, yes))[1], None

    told = jnp.ones(losses.shape, bool) if told is None else told
    return jax.lax.scan(step, trials.init(point, ()), (jnp.arange(losses.size), losses, told))[0]


def test_one_loss_where_the_first_trial_begins_is_as_noisy_as_the_others():
    """The fallback climbs, and one that stands still is not to win because the loss before the trial was a high one."""
    trials, runs = Trials(10, 0.1, 2.0, 0.02, jnp.zeros((), jnp.int32)), 4_000
    means = jnp.array([1.0] + 10 * [6.0] + 10 * [1.0])
    losses = means + 0.5 * jax.random.normal(jax.random.key(0), (runs, means.size))
    watch = jax.jit(jax.vmap(lambda it: decided(trials, it)))(losses)
    assert int(watch.trials.min()) == 1 and int(watch.won.sum()) <= 0.04 * runs  # 21 %, were that loss exact
    better = losses.at[:, 11:].add(-3.0)
    assert int(jax.jit(jax.vmap(lambda it: decided(trials, it)))(better).won.sum()) >= 0.95 * runs


def test_defeats_are_forgotten_with_the_second_of_two_trials_that_are_won():
    """The fallback stands still. The learned optimizer loses, wins and then climbs, and wins from there on."""
    trials, point, yes = Trials(4, 0.5, 0.0, 0.0, jnp.zeros((), jnp.int32)), jnp.zeros(()), jnp.ones((), bool)

    @jax.jit
    def call(watch: Watch, count: int, loss: float) -> Watch:
        seen = Seen(jnp.asarray(count), point, jnp.asarray(loss), yes, yes, yes)
        return trials.decide(watch, seen)[1]

    watch, loss, told = trials.init(point, ()), 1.0, []
    for count in range(1500):
        wins, defeats, trusted = int(watch.won), int(watch.defeats), bool(watch.trusted)
        if int(watch.phase) == TRIAL:
            loss += -0.05 if defeats else 0.05
        elif trusted:
            loss += 0.05 if wins == 1 else -0.05
        watch = call(watch, count, loss)
        if int(watch.won) > wins:
            told.append((trusted, defeats, int(watch.defeats)))
    # The first follows a trial that was lost, the second a lead that climbed.
    assert told[:2] == [(False, 1, 1), (False, 2, 2)]
    assert told[2] == (True, 2, 0)


def test_a_level_has_the_error_of_others_only_where_it_has_none():
    one, error = Level(jnp.asarray(1.0), jnp.asarray(0.0)), jnp.asarray(0.5)
    assert one.or_error(error).error == 0.5 and Level(one.mean, jnp.asarray(0.1)).or_error(error).error < 0.2


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_loss_that_is_not_finite_is_no_level_that_others_could_lie_below(bad):
    trials = Trials(10, 0.1, 0.0, 0.02, jnp.zeros((), jnp.int32))
    losses = jnp.array([1.0] + 3 * [1.0] + [bad] + 6 * [1.0] + 4 * [1.5])
    watch = decided(trials, losses)
    assert float(decided(trials, losses[:10]).highest) == 1.0
    assert (int(watch.defeats), int(watch.discarded)) == (1, 4)  # as soon as four lie above


def test_a_call_without_a_loss_is_neither_above_nor_below():
    trials = Trials(10, 0.1, 0.0, 0.02, jnp.zeros((), jnp.int32))
    losses = jnp.array(11 * [1.0] + 3 * [1.5] + [0.0] + [1.5])
    told = jnp.arange(losses.size) != 14
    assert int(decided(trials, losses).defeats) == 0
    watch = decided(trials, losses, told)
    assert (int(watch.defeats), int(watch.discarded)) == (1, 5)


def test_a_window_waits_for_a_loss_and_no_trial_begins_without():
    """Each tenth loss is missing, the one with which each window would end."""
    trials = Trials(10, 0.5, 2.0, 0.02, jnp.zeros((), jnp.int32))
    losses = jnp.ones(600)
    told = jnp.arange(losses.size) % 10 != 0
    watch = decided(trials, losses, told)
    assert int(watch.trials) >= 2 and int(watch.phase) != REFERENCE
