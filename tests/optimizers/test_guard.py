"""The guard: finite in all cases; the fallback's path where the learned optimizer is bad, else the learned one's."""

import warnings
from functools import partial
from typing import Any

import equinox as eqx
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

import bygrad
from bygrad._core.definitions import REFERENCE, RUN, UNTOLD
from bygrad.optimizers import SGD, Adam, BestOf, Envelope, Guard, Optimizer, ScheduleFree
from bygrad.optimizers.base import one_loss
from bygrad.problems import MLPClassifier, ProblemFamily, find_family
from bygrad.unroll import begin, rollout

RUNS, STEPS = 8, 400  # of most tests, so that they share their programs
BAD = {"climbs": 0.05, "random": 0.3, "nan": jnp.nan, "stands still": 0.0, "1e30": 1e30, "max": 3e38}


class Bad(Optimizer):
    """An optimizer that does harm, each in its own way; `size` is an array, so that all share their programs."""

    size: jax.Array
    random: jax.Array
    state_too: jax.Array

    def __init__(self, name: str, state_too: bool = False):
        self.size, self.random = jnp.asarray(BAD[name], jnp.float32), jnp.asarray(name == "random")
        self.state_too = jnp.asarray(state_too)

    def init(self, params: Any) -> Any:
        return jnp.zeros(())

    def update(self, grads: Any, state: Any, params: Any = None, *, value: Any = None, key: Any = None) -> Any:
        noise = jax.random.normal(jax.random.fold_in(jax.random.key(0), state.astype(jnp.int32)), ())

        def move(grad: jax.Array) -> jax.Array:
            wild = jnp.abs(self.size) > 1e6
            update = jnp.where(wild, self.size * jnp.ones_like(grad), self.size * grad)
            return jnp.where(self.random, self.size * noise * jnp.ones_like(grad), update).astype(grad.dtype)

        return jax.tree.map(move, grads), jnp.where(self.state_too, jnp.nan, state + 1)


class Bowl(ProblemFamily):
    """A quadratic with eigenvalues from 0.01 to 1, and noise in the gradient and the loss if there is a key."""

    noise: jax.Array

    def sample(self, key):
        return ()

    def init(self, instance, key):
        return {"a": jax.random.normal(key, (4,)), "b": jnp.ones(())}

    def loss(self, params, instance, key):
        scales = jnp.logspace(-2, 0, 4)
        noise = self.noise * jax.random.normal(key, (5,))
        return (
            0.5 * jnp.sum(scales * params["a"] ** 2)
            + 0.5 * params["b"] ** 2
            + jnp.dot(noise[:4], params["a"])
            + noise[4] * params["b"]
        )


@eqx.filter_jit
def run(optimizer: Optimizer, family: ProblemFamily, keys: jax.Array, steps: int) -> tuple[Any, Any, Any]:
    """Losses `[runs, steps + 1]`, last params and last state."""
    end, trajectory = rollout(optimizer, family, begin(optimizer, family, keys), steps)
    losses = jnp.concatenate([trajectory.value, trajectory.end_value[None]])
    return losses.T, end.params, end.optimizer_state


@eqx.filter_jit
def one_step(optimizer: Optimizer, grads: Any, state: Any, params: Any, value: Any) -> Any:
    return optimizer.update(grads, state, params, value=value)


def finite(tree: Any) -> bool:
    return all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", BAD)
def test_without_noise_the_path_is_the_fallbacks_own_with_fewer_steps(name):
    keys, steps = jax.random.split(jax.random.key(1), RUNS), STEPS
    family = Bowl(jnp.zeros(()))
    guard = Guard(Bad(name), Adam(0.01))
    _, params, state = run(guard, family, keys, steps)
    losses, _, _ = run(Adam(0.01), family, keys, steps)
    report = guard.report(state)
    assert finite((params, state))
    for i in range(RUNS):
        own = {leaf: params[leaf][i] for leaf in params}
        kept = guard.settled(own, jax.tree.map(lambda leaf, i=i: leaf[i], state))
        # A call is one loss: the last params have been reached by all steps that were not discarded.
        effective = steps - report["discarded"][i]
        np.testing.assert_allclose(family.loss(kept, (), keys[i]), losses[i, effective], rtol=2e-3)
        # One whose updates are not finite is not worth a trial.
        assert report["won"][i] == 0 and (report["trials"][i] >= 1) == (name != "nan")
        assert report["discarded"][i] <= 0.1 * steps + 30


@pytest.mark.parametrize("name", BAD)
def test_with_noise_the_loss_follows_the_fallbacks(name):
    keys, steps, window = jax.random.split(jax.random.key(2), RUNS), STEPS, 50
    family = Bowl(jnp.asarray(0.05))
    losses, _, state = run(Guard(Bad(name), Adam(0.01)), family, keys, steps)
    reference, _, _ = run(Adam(0.01), family, keys, steps)
    # Medians of the runs: the window may hold a trial of one of them. The guard is behind by what it discards.
    discarded = int(state.watch.discarded.max())
    settled = np.median(losses[:, -window:], axis=1).mean()
    last = reference.shape[1] - discarded
    wanted = np.median(reference[:, last - window : last], axis=1).mean()
    assert settled <= 1.05 * wanted + 0.002 * float(reference[:, 0].mean())
    assert discarded <= 0.1 * steps + 3 * 12
    # Each defeat triples the wait: 100 and then 300 calls for a window of 10 and a tenth of the calls.
    assert int(jnp.max(jnp.where(state.watch.won == 0, state.watch.trials, 0))) <= 2


def test_one_that_is_trusted_leads_from_the_first_step_and_pays_for_its_trials_alone():
    family, keys, steps = Bowl(jnp.zeros(())), jax.random.split(jax.random.key(3), RUNS), STEPS
    guard = Guard(SGD(0.9), SGD(0.01), trusted=True).declare(steps)
    losses, _, state = run(guard, family, keys, steps)
    alone, _, _ = run(SGD(0.9), family, keys, steps)
    report = guard.report(state)
    np.testing.assert_allclose(losses[:, :80], alone[:, :80], rtol=1e-5)
    assert report["trials"] == report["won"] and min(report["trials"]) >= 2
    assert report["rollbacks"] == report["stalls"] == [0] * RUNS
    for i, discarded in enumerate(report["discarded"]):
        assert report["learned_steps"][i] == steps - discarded - report["trials"][i]  # each has a jump back, too
        np.testing.assert_allclose(losses[i, -1], alone[i, steps - discarded], rtol=1e-3)


@pytest.mark.parametrize("name", BAD)
def test_one_that_is_trusted_and_bad_is_found_out_in_a_trial_at_the_latest(name):
    family, keys, steps = Bowl(jnp.zeros(())), jax.random.split(jax.random.key(1), RUNS), STEPS
    fallback = SGD(0.5)  # remembers nothing of gradients on the way
    harm = 5e-3 if name == "random" else 1e-4  # along the flattest direction, which takes long to undo
    guard = Guard(Bad(name), fallback, trusted=True).declare(steps)
    _, params, state = run(guard, family, keys, steps)
    losses, _, _ = run(fallback, family, keys, steps)
    report = guard.report(state)
    assert finite((params, state)) and report["won"] == [0] * RUNS
    ends = jax.vmap(lambda it, key: family.loss(it, (), key))(jax.vmap(guard.settled)(params, state), keys)
    for i, (discarded, learned) in enumerate(zip(report["discarded"], report["learned_steps"], strict=True)):
        assert discarded <= 0.1 * steps and learned <= 0.25 * steps + 10
        # Where the fallback gets in the steps that are left, but for what a window that is not taken back has done.
        left = steps - discarded - learned - report["trials"][i]  # a jump back for each
        assert ends[i] <= losses[i, left - 2] + harm * losses[i, 0]


@pytest.mark.slow
def test_a_trusted_one_wins_where_it_cannot_be_told_from_the_fallback_and_another_does_not():
    """Two of one kind, in noise."""
    family, keys, won = Bowl(jnp.asarray(0.05)), jax.random.split(jax.random.key(8), RUNS), {}
    for trusted in (False, True):
        guard = Guard(SGD(0.05), SGD(0.05), trusted=trusted).declare(100)
        _, _, state = run(guard, family, keys, 100)
        won[trusted] = sum(guard.report(state)["won"]) / sum(guard.report(state)["trials"])
    assert won[False] < 0.3 and won[True] > 0.7


def test_a_trusted_one_that_climbs_does_so_for_one_window_however_long_the_run_is():
    family, keys = Bowl(jnp.zeros(())), jax.random.split(jax.random.key(1), 2)
    _, _, state = run(Guard(Bad("climbs"), Adam(0.01), trusted=True).declare(100_000), family, keys, 40)
    assert state.learned_steps.tolist() == [9, 9] and not state.watch.trusted.any()


def test_a_trusted_one_that_jumps_away_in_its_first_window_is_taken_back_to_the_start():
    params = {"a": jnp.ones(4), "b": jnp.ones(())}
    guard = Guard(SGD(1.0), SGD(0.0), window=4, trusted=True)
    state, point = guard.init(params), params
    for loss in (1.0, 50.0, 51.0, 50.0):
        updates, state = one_step(guard, params, state, point, jnp.asarray(loss))
        point = jax.tree.map(jnp.add, point, updates)
    report = guard.report(state)
    assert (report["rollbacks"], report["discarded"], bool(state.watch.trusted)) == (1, 4, False)
    for leaf in params:
        np.testing.assert_allclose(point[leaf], params[leaf])


@settings(max_examples=60)
@given(
    grad=st.floats(width=32, allow_nan=True, allow_infinity=True),
    param=st.floats(-(2.0**100), 2.0**100, width=32) | st.sampled_from([jnp.nan, jnp.inf]),
    value=st.floats(width=32, allow_nan=True, allow_infinity=True),
    name=st.sampled_from(sorted(BAD)),
    state_too=st.booleans(),
    phase=st.integers(0, 2),
    trusted=st.booleans(),
)
def test_updates_and_states_are_finite_whatever_comes_in(grad, param, value, name, state_too, phase, trusted):
    guard = Guard(Bad(name, state_too), Adam(0.1), trusted=trusted)
    start = {"a": jnp.ones(4), "b": jnp.ones(())}
    state = guard.init(start)
    state = eqx.tree_at(lambda it: it.watch.phase, state, jnp.asarray(phase, jnp.int32))
    grads, params = ({"a": jnp.full(4, x, jnp.float32), "b": jnp.ones(())} for x in (grad, param))
    for _ in range(2):
        updates, state = one_step(guard, grads, state, params, jnp.asarray(value, jnp.float32))
        assert finite(updates)
        assert not finite(params) or finite((jax.tree.map(jnp.add, params, updates), state))


def test_one_bad_gradient_moves_nothing_and_leaves_the_fallback_warm():
    guard, params = Guard(Bad("nan"), Adam(0.1), share=0.0), {"a": jnp.ones(4), "b": jnp.ones(())}
    state, plain = guard.init(params), Adam(0.1).init(params)
    for grad in (1.0, jnp.nan, 0.5):
        grads = jax.tree.map(lambda leaf, grad=grad: grad * leaf, params)
        updates, state = guard.update(grads, state)
        if jnp.isfinite(grad):
            wanted, plain = Adam(0.1).update(grads, plain)
            np.testing.assert_allclose(updates["a"], wanted["a"], rtol=1e-6)
        else:
            assert not np.any(updates["a"])
    report = guard.report(state)
    assert (report["steps"], report["bad_inputs"], report["replaced"], report["learned_steps"]) == (3, 1, 3, 0)


def test_one_that_starts_afresh_does_so_where_the_params_are():
    """An average of the params, as that of `ScheduleFree`, would else be one with the origin, and lead there."""
    learned, params = ScheduleFree(0.01), {"a": jnp.full(4, 100.0)}
    guard = Guard(learned, Adam(0.01), share=0.0)
    still, state = guard.update({"a": jnp.full(4, 1e25)}, guard.init(params), params)  # its square is not finite
    assert not np.any(still["a"]) and int(state.replaced) == 1
    grads = {"a": jnp.ones(4)}
    updates, _ = guard.update(grads, state, params)
    wanted, _ = learned.update(grads, learned.init(params), params)
    np.testing.assert_allclose(updates["a"], wanted["a"], rtol=1e-6)
    assert np.max(np.abs(updates["a"])) < 0.1


def test_a_learned_optimizer_that_is_better_keeps_its_own_path():
    family, keys, steps = Bowl(jnp.zeros(())), jax.random.split(jax.random.key(3), 2), 100
    guard = Guard(SGD(0.9), SGD(0.01))
    losses, _, state = run(guard, family, keys, steps)
    alone, _, _ = run(SGD(0.9), family, keys, steps)
    report = guard.report(state)
    assert report["won"] == report["trials"] == [1, 1] and report["rollbacks"] == [0, 0]
    np.testing.assert_allclose(losses[:, -1], alone[:, steps - 10], rtol=1e-3)


@pytest.mark.parametrize("horizon", [30, 70, 100, 400])
@pytest.mark.parametrize("name", BAD)
def test_a_trusted_one_costs_no_more_than_the_share_of_the_horizon_or_a_window(name, horizon):
    family, keys = Bowl(jnp.asarray(0.05)), jax.random.split(jax.random.key(5), RUNS)
    _, _, state = run(Guard(Bad(name), Adam(0.01), trusted=True).declare(horizon), family, keys, STEPS)
    assert int(state.watch.discarded.max()) <= max(4, 0.1 * horizon)


@pytest.mark.parametrize(("horizon", "trials"), [(70, 0), (100, 1), (400, 2)])
@pytest.mark.parametrize("name", ["climbs", "stands still"])
def test_with_a_horizon_all_trials_together_keep_to_the_share_of_it(name, horizon, trials):
    family, keys = Bowl(jnp.asarray(0.05)), jax.random.split(jax.random.key(5), RUNS)
    _, _, state = run(Guard(Bad(name), Adam(0.01)).declare(horizon), family, keys, STEPS)
    assert int(state.watch.discarded.max()) <= 0.1 * horizon
    assert set(state.watch.trials.tolist()) == {trials}


def test_no_trial_begins_that_the_envelope_would_end():
    """A trial of a run of 10,000 steps takes 2 times 100, more than the learned optimizer was trained for."""
    guard = Guard(SGD(0.5), SGD(1e-3), envelope=Envelope(horizon=100))
    with pytest.warns(UserWarning, match="10,000 steps, but .* on runs of 100: no trial of such a run"):
        long = guard.declare(10_000)
    for it, trials in ((long, 0), (guard.declare(100), 1)):
        _, _, state = run(it, Bowl(jnp.asarray(0.0)), jax.random.split(jax.random.key(5), 2), 90)
        assert set(state.watch.trials.tolist()) == {trials}


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_outside_its_envelope_for_good_the_learned_optimizer_takes_no_steps(share):
    for envelope, most in ((Envelope(horizon=20), 20), (Envelope(parameter_count=1_000), 0)):
        guard = Guard(TurnsBad(), SGD(0.02), envelope=envelope, share=share, growth=0.0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _, _, state = run(guard, Bowl(jnp.zeros(())), jax.random.split(jax.random.key(4), 1), 60)
        assert int(state.learned[0]) <= most and int(state.outside[0]) == 60 - most


def test_in_float64_an_offset_of_the_loss_changes_no_decision():
    """With an offset of a million, float32 tells losses apart down to 0.06 alone: all would seem to stand still."""
    with jax.enable_x64(True):
        guard, reports = Guard(SGD(0.02), SGD(0.005)), []
        for offset in (0.0, 1e6):
            point = jnp.full(2, 0.01)
            state = guard.init(point)
            for _ in range(120):
                updates, state = one_step(guard, 2 * point, state, point, offset + jnp.sum(point**2))
                point = point + updates
            reports.append(guard.report(state))
        assert reports[0] == reports[1] and reports[0]["learned_steps"] > 60


def test_without_a_loss_it_says_that_it_cannot_compare():
    guard = Guard(SGD(0.1), SGD(0.1))
    with pytest.warns(UserWarning, match="given no loss"):
        guard.update(jnp.ones(2), guard.init(jnp.ones(2)), jnp.ones(2))


def with_losses(guard: Guard, told: list[bool]) -> tuple[float, Any, list[bool]]:
    """On a bowl, with a loss where `told`: the last loss, the report, and the calls in which `learned` moved."""
    traces, moved = [], []

    @jax.jit
    def step(point, state, value):
        traces.append(None)
        updates, state = guard.update(point, state, point, value=value)
        return point + updates, state

    point = jnp.ones(4)
    state = guard.init(point)
    for it in told:
        before = state.learned_steps
        point, state = step(point, state, jnp.sum(point**2) if it else None)
        moved.append(bool(state.learned_steps > before))
    assert len(traces) == len(set(told))  # one program with a loss, and one without
    return float(jnp.sum(guard.settled(point, state) ** 2)), guard.report(state), moved


@pytest.mark.filterwarnings("ignore:The guard was given no loss")
@pytest.mark.parametrize("every", [2, 5])
def test_a_missing_loss_does_not_hand_the_params_to_one_that_lost(every):
    guard = Guard(SGD(-0.05), SGD(0.01))
    all_told, report, _ = with_losses(guard, 200 * [True])
    some_told, other, _ = with_losses(guard, [step % every < every - 1 for step in range(200)])
    assert report["won"] == other["won"] == 0 and other["trials"] >= 1
    assert other["learned_steps"] <= other["discarded"] <= 0.1 * 200 + 30
    assert some_told <= 1.5 * all_told < 0.2


@pytest.mark.filterwarnings("ignore:The guard was given no loss")
@pytest.mark.parametrize(("told", "trials", "lost"), [(1, 1, 0), (8, 1, 1), (15, 1, 1)])
def test_where_losses_stop_a_trial_is_as_long_as_it_was_to_be_and_is_not_won(told, trials, lost):
    """In the fallback's part without having shown one, in the same later, and in the learned optimizer's."""
    _, report, moved = with_losses(Guard(SGD(0.3), SGD(0.01)), told * [True] + 60 * [False])
    assert (report["trials"], report["won"], report["discarded"]) == (trials, 0, 10 * lost)
    assert np.flatnonzero(moved).tolist() == lost * list(range(11, 20))


@pytest.mark.filterwarnings("ignore:The guard was given no loss")
def test_a_lead_goes_on_without_losses_and_is_judged_by_the_next_two():
    for later, rollbacks in ((-0.2, 0), (0.2, 1)):
        learned, told = TurnsBad(14, later), 25 * [True] + 40 * [False] + 2 * [True]
        _, report, moved = with_losses(Guard(learned, SGD(0.01)), told)
        assert (report["won"], report["rollbacks"]) == (1, rollbacks) and all(moved[11:-1])
        assert (report["discarded"] > 40) == (rollbacks == 1)


@pytest.mark.filterwarnings("ignore:The guard was given no loss")
def test_until_the_first_loss_the_learned_optimizer_moves_and_nothing_of_that_is_taken_back():
    for trusted in (False, True):
        guard = Guard(TurnsBad(30, 0.2), SGD(0.01), trusted=trusted)
        last, report, moved = with_losses(guard, 30 * [False] + 60 * [True])
        assert all(moved[:30]) and report["won"] == 0
        assert last < 1e-3 < 4.0 * 0.98**60  # where the fallback would be that has to begin anew


@pytest.mark.filterwarnings("ignore:The guard was given no loss")
def test_without_params_nothing_is_tried():
    guard, params = Guard(SGD(1.0), SGD(-1.0)), {"a": jnp.ones(4), "b": jnp.ones(())}
    first = guard.init(params)
    for phase, trusted, sign in ((UNTOLD, False, -1), (RUN, False, 1), (RUN, True, -1), (REFERENCE, True, 1)):
        state = eqx.tree_at(lambda it: it.watch.phase, first, jnp.asarray(phase, jnp.int32))
        state = eqx.tree_at(lambda it: it.watch.trusted, state, jnp.asarray(trusted))
        updates, state = one_step(guard, params, state, None, None)
        np.testing.assert_array_equal(updates["a"], sign * np.ones(4))
        assert int(state.learned_steps) == (sign < 0)


def test_a_gradient_that_is_not_finite_is_a_defeat_where_the_learned_optimizer_leads():
    params = {"a": jnp.ones(4), "b": jnp.ones(())}
    guard = Guard(SGD(0.1), SGD(0.0), trusted=True)
    state, point = guard.init(params), params
    for grad in (1.0, 1.0, jnp.nan):
        grads = jax.tree.map(lambda leaf, grad=grad: grad * jnp.ones_like(leaf), params)
        updates, state = one_step(guard, grads, state, point, jnp.asarray(1.0))
        point = jax.tree.map(jnp.add, point, updates)
    np.testing.assert_allclose(point["a"], params["a"])
    assert guard.report(state)["reason"].startswith("A loss or gradient of the learned optimizer was not finite")


@pytest.mark.parametrize(
    ("losses", "won"),
    [
        ([1.0] + 4 * [2.0] + 4 * [0.5], 1),
        ([1.0] + 4 * [2.0] + 4 * [1.0], 0),  # only the fallback made it worse
        ([1.0] + 4 * [0.5] + 4 * [0.7], 0),  # it fell, but less than the fallback's
        ([1.0] + 10 * [1.0] + 5 * [0.9] + [0.0] + 4 * [1.1], 0),  # four in a row above, whatever was before
    ],
    ids=["better than both", "not better than at the start", "not better than the fallback", "above at the end"],
)
def test_a_trial_is_won_by_a_loss_below_the_fallbacks_and_below_where_it_began(losses, won):
    guard = Guard(SGD(0.0), SGD(0.0), window=len(losses) // 2, margin=0.0)
    params = {"a": jnp.ones(4), "b": jnp.ones(())}
    state = guard.init(params)
    for loss in losses:
        _, state = one_step(guard, params, state, params, jnp.asarray(loss))
    report = guard.report(state)
    assert (report["trials"], report["won"], bool(state.watch.trusted)) == (1, won, won)


def test_a_lead_ends_where_the_loss_stops_falling_and_nothing_is_taken_back():
    guard, params = Guard(SGD(0.0), SGD(0.0), window=4), {"a": jnp.ones(4), "b": jnp.ones(())}
    state, led = guard.init(params), []
    falling = [0.5 * 0.9**step for step in range(20)]
    for loss in [1.0, *(4 * [1.0]), *(4 * [0.5]), *falling, *(40 * [falling[-1]])]:
        _, state = one_step(guard, params, state, params, jnp.asarray(loss))
        led.append(bool(state.watch.trusted))
    report = guard.report(state)
    assert (report["won"], report["rollbacks"], report["stalls"], report["discarded"]) == (1, 0, 1, 4)
    assert report["reason"].startswith("The loss stopped falling")
    # For as long as it had fallen: the window after it is the lowest.
    assert sum(led) == 2 * (len(falling) + 4)


class TurnsBad(Optimizer):
    """Good for `turn` steps, then climbs."""

    turn: int = eqx.field(static=True, default=60)
    later: float = eqx.field(static=True, default=0.5)

    def init(self, params):
        return jnp.zeros((), jnp.int32)

    def update(self, grads, state, params=None, *, value=None, key=None):
        size = jnp.where(state < self.turn, -0.5, self.later)
        return jax.tree.map(lambda grad: size * grad, grads), state + 1


def test_one_that_turns_bad_does_harm_for_one_window():
    family, keys = Bowl(jnp.zeros(())), jax.random.split(jax.random.key(4), 1)
    guard = Guard(TurnsBad(), SGD(0.02))
    losses, _, state = run(guard, family, keys, 140)
    report = guard.report(state)
    assert (report["won"][0], report["rollbacks"][0]) == (1, 1)
    assert report["reason"] == [
        "The loss rose under the learned optimizer: the fallback went on from the last good point."
    ]
    lowest = np.minimum.accumulate(losses[0])
    above = np.flatnonzero(losses[0, 30:] > lowest[30:] * 1.001)
    assert len(above) <= 2 * 10
    assert losses[0, -1] <= losses[0, 59]


@pytest.mark.slow
def test_a_learned_optimizer_outside_its_family():
    """The shipped LSTM on a small ReLU network, ten times as long as it was trained for."""
    small = find_family("mnist")
    pixels = small.images.reshape(-1, 28, 28)[:2000, ::4, ::4].reshape(2000, -1)
    family = MLPClassifier(pixels, small.labels[:2000], hidden=8, activation="relu", batch=32)
    keys, steps = jax.random.split(jax.random.key(7), 2), 500
    adam = Adam(0.01)
    final = {}
    learned = bygrad.load("paper/mnist")
    guard = Guard(learned, adam)
    for name, optimizer in {"guard": guard, "adam": adam}.items():
        _, params, state = run(optimizer, family, keys, steps)
        if name == "guard":
            params = jax.vmap(guard.settled)(params, state)
        final[name] = float(jnp.mean(jax.vmap(lambda p: family.loss(p, (), None))(params)))
    assert final["guard"] <= 1.05 * final["adam"]


@pytest.mark.parametrize("kind", [Guard, BestOf])
def test_params_and_state_can_be_donated(kind):
    optimizer, params = kind(SGD(0.1), Adam(0.1)), {"a": jnp.ones(4), "b": jnp.ones(())}

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state):
        updates, state = optimizer.update(params, state, params, value=jnp.sum(params["a"]))
        return jax.tree.map(jnp.add, params, updates), state

    state = optimizer.init(params)
    for _ in range(2):
        params, state = step(params, state)
    assert finite((params, state))


def test_what_cannot_work_is_refused():
    with pytest.raises(ValueError, match=r"window=2.*could not judge.*Give a whole window >= 4"):
        Guard(Adam(), window=2)
    with pytest.raises(ValueError, match="margin=nan"):
        Guard(Adam(), margin=float("nan"))
    assert Guard(Adam(), share=0.02).trials.growth == 0.01
    guard, params = Guard(Adam()), jnp.ones(2)
    with pytest.raises(ValueError, match=r"a value but no params.*share=0"):
        guard.update(params, guard.init(params), value=jnp.ones(()))


def test_several_losses_are_refused():
    with pytest.raises(ValueError, match=r"shape \(3,\).*one loss for all params.*jax.vmap"):
        one_loss(jnp.ones(3))
    assert one_loss(np.ones(1)).shape == one_loss(2.0).shape == ()


def test_low_precision_params_return_from_far_away():
    guard = Guard(Bad("climbs"), SGD(0.1), window=6)
    params = {"a": jnp.full(4, 2.0, jnp.bfloat16), "b": jnp.ones((), jnp.bfloat16)}
    state, seen = guard.init(params), []
    for _ in range(30):
        value = jnp.sum(params["a"].astype(jnp.float32) ** 2)
        updates, state = one_step(guard, jax.tree.map(lambda p: 2 * p, params), state, params, value)
        params = jax.tree.map(jnp.add, params, updates)
        seen.append(float(value))
    assert params["a"].dtype == jnp.bfloat16 and seen[-1] < 0.1 * seen[0]
    assert state.watch.point["a"].dtype == jnp.float32


@pytest.mark.parametrize(("horizon", "length"), [(400, 10), (1_000, 10), (10_000, 100)])
def test_the_first_trial_of_a_long_run_is_longer(horizon, length):
    guard, params = Guard(SGD(jnp.asarray(0.1)), Adam(0.1)).declare(horizon), jnp.ones(2)
    _, state = guard.update(params, guard.init(params), params, value=jnp.sum(params**2))
    assert state.watch is not None
    assert int(state.watch.length) == length
