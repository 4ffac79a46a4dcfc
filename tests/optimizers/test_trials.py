"""Trials: what is decided from the losses alone."""

import jax
import jax.numpy as jnp

from bygrad._core.definitions import REFERENCE
from bygrad.optimizers.trials import Seen, Trials, Watch


def decided(trials: Trials, losses: jax.Array, told: jax.Array | None = None) -> Watch:
    """The watch after these losses, where nothing else matters; not given where not `told`."""
    point, yes = jnp.zeros(()), jnp.ones((), bool)

    def step(watch: Watch, now: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[Watch, None]:
        count, loss, told = now
        good = ~told | jnp.isfinite(loss)
        return trials.decide(watch, Seen(count, point, loss, told, good, yes))[1], None

    told = jnp.ones(losses.shape, bool) if told is None else told
    return jax.lax.scan(step, trials.init(point, ()), (jnp.arange(losses.size), losses, told))[0]


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
