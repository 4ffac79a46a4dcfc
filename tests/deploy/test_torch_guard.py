"""The guard in PyTorch: the decisions of the one in JAX, and its promises whatever the rule does."""

import copy
import dataclasses
import io
import itertools
import json
import subprocess
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bygrad
from bygrad._core.definitions import RUN, TRIAL
from bygrad.artifacts import Artifact, describe, find, load
from bygrad.deploy import optax as in_jax
from bygrad.optimizers import Optimizer, envelope, trials

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")

from bygrad.deploy.torch import Adam, Envelope, Guard, LearnedOptimizer, Rule  # noqa: E402
from bygrad.deploy.torch_rules import envelope as torch_envelope  # noqa: E402
from bygrad.deploy.torch_rules import trials as torch_trials  # noqa: E402

SCALES = np.array([0.01, 0.1, 0.5, 1.0])


class Case(NamedTuple):
    """A rule that takes steps of `size` times the gradient, up to its step number `turn`, and of `later` times it from
    there; the noise of the gradients that it gets; and what its guard is to see."""

    size: float
    turn: int = 10_000
    later: float = 0.0
    noise: float = 0.0
    seen: tuple[str, ...] = ()


CASES = {
    "climbs": Case(-0.05),
    "stands still": Case(0.0),
    "NaN": Case(np.nan),
    "is better": Case(0.9, seen=("won",)),
    "turns": Case(0.5, turn=45, later=-0.5, seen=("won", "rollbacks")),
    "stops": Case(0.5, turn=20, seen=("won", "stalls")),
    "is better in noise": Case(0.9, noise=0.3, seen=("won",)),
    "climbs in noise": Case(-0.05, noise=0.3),
}


class InJax(Optimizer):
    size: jax.Array
    turn: jax.Array
    later: jax.Array

    def init(self, params):
        return jnp.zeros((), jnp.int32)

    def update(self, grads, state, params=None, *, value=None, key=None):
        size = -jnp.where(state < self.turn, self.size, self.later)
        return jax.tree.map(lambda grad: (size * grad).astype(grad.dtype), grads), state + 1


class InTorch(Rule):
    """The same, and what moves at random or by a number, whatever the gradient."""

    feature_version = 1

    def __init__(self, size: float, turn: int = 10_000, later: float = 0.0, kind: str = "") -> None:
        self.size, self.turn, self.later, self.kind = size, turn, later, kind

    def start(self, param):
        return {"step": torch.zeros((), dtype=torch.int32, device=param.device)}

    def step(self, grads, states, params, value=None):
        updates = []
        for grad, state in zip(grads, states, strict=True):
            size = -self.size if int(state["step"]) < self.turn else -self.later
            state["step"] += 1
            noise = torch.from_numpy(np.random.default_rng(int(state["step"])).standard_normal(grad.shape))
            wild = {"": grad, "random": noise.to(grad.dtype), "number": torch.ones_like(grad)}[self.kind]
            updates.append(size * wild)
        return updates


class Descent:
    """Gradients and losses of a quadratic of two arrays, the same numbers for both frameworks."""

    def __init__(self, noise: float = 0.0) -> None:
        self.noise, self.rng = noise, np.random.default_rng(0)

    def at(self, a: np.ndarray, b: np.ndarray) -> tuple[float, list[np.ndarray]]:
        there = self.noise * self.rng.standard_normal(5)
        moved = np.asarray(a, np.float64) - there[:4], np.asarray(b, np.float64) - there[4]
        return 0.5 * float(SCALES @ moved[0] ** 2 + moved[1] ** 2), [SCALES * moved[0], moved[1]]


START = [np.array([1.0, -2.0, 3.0, -1.0]), np.array(1.0)]


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    return load(find("paper/quadratic"))


def parameters(dtype: Any = torch.float64) -> list[Any]:
    return [torch.nn.Parameter(torch.from_numpy(leaf.copy()).to(dtype)) for leaf in START]


def guarded(artifact: Artifact, params: Sequence[Any], rule: Rule, **options: Any) -> Any:
    horizon, lr = options.pop("horizon", None), options.pop("lr", 1.0)
    fallback = options.pop("fallback", Adam(0.01))
    return LearnedOptimizer(params, artifact, lr, horizon, guard=lambda _: Guard(rule, fallback, **options))


def advance(optimizer: Any, params: Sequence[Any], problem: Descent, **given: Any) -> float:
    value, grads = problem.at(*(param.detach().double().numpy() for param in params))
    for param, grad in zip(params, grads, strict=True):
        param.grad = torch.from_numpy(np.array(grad)).to(param.dtype)
    optimizer.step(**({"value": torch.tensor(value, dtype=torch.float64)} | given))
    return value


@eqx.filter_jit
def step_in_jax(guard: Any, grads: Any, state: Any, params: Any, value: Any) -> Any:
    updates, state = guard.update(grads, state, params, value=value)
    return [a + b for a, b in zip(params, updates, strict=True)], state


@pytest.mark.parametrize(
    ("dtype", "horizon", "trusted"),
    [
        pytest.param("float64", None, False, marks=pytest.mark.slow),
        pytest.param("float32", 120, False, marks=pytest.mark.slow),
        pytest.param("float64", None, True, marks=pytest.mark.slow),
        ("float64", 120, True),
        pytest.param("float64", 2_000, True, marks=pytest.mark.slow),
    ],
)
def test_the_same_decisions_and_steps_as_in_jax(dtype, horizon, trusted, artifact):
    for name, case in CASES.items():
        params, problem, other = parameters(getattr(torch, dtype)), Descent(case.noise), Descent(case.noise)
        optimizer = guarded(
            artifact, params, InTorch(case.size, case.turn, case.later), horizon=horizon, trusted=trusted
        )
        with jax.enable_x64(dtype == "float64"):
            learned = InJax(*map(jnp.asarray, (case.size, case.turn, case.later)))
            guard = bygrad.Guard(learned, bygrad.Adam(0.01), trusted=trusted)
            guard = guard if horizon is None else guard.declare(horizon)
            theirs = [jnp.asarray(leaf, dtype) for leaf in START]
            state, tolerance = guard.init(theirs), 1e-10 if dtype == "float64" else 1e-5
            for step in range(120):
                value, grads = other.at(*map(np.asarray, theirs))
                given = [jnp.asarray(grad, dtype) for grad in grads]
                theirs, state = step_in_jax(guard, given, state, theirs, jnp.asarray(value, dtype))
                advance(optimizer, params, problem)
                for ours, leaf in zip(params, theirs, strict=True):
                    np.testing.assert_allclose(
                        ours.detach().numpy(), leaf, rtol=tolerance, atol=tolerance, err_msg=f"{name}, {step}"
                    )
            told = guard.report(state)
            assert optimizer.report() == told, name
            settled = guard.settled(theirs, state)
        assert horizon is not None or trusted or all(told[event] for event in case.seen), (name, told)
        optimizer.settle()
        for ours, leaf in zip(params, settled, strict=True):
            np.testing.assert_allclose(ours.detach().numpy(), leaf, rtol=tolerance, atol=tolerance)


def test_four_losses_in_a_row_above_the_fallbacks_lose_a_trial_whatever_was_before():
    """As `tests/optimizers/test_guard.py` has it."""
    trials, watch = torch_trials.Trials(window=10, share=0.1, margin=0.0, growth=0.02), torch_trials.Watch()
    losses = [1.0] + 10 * [1.0] + 5 * [0.9] + [0.0] + 4 * [1.1]
    verdicts = [trials.decide(watch, step, loss, good=True, allowed=True) for step, loss in enumerate(losses)]
    assert (watch.trials, watch.won, watch.trusted, verdicts[-1].moves) == (1, 0, False, "back")


@pytest.mark.slow
def test_one_loss_where_the_first_trial_begins_is_as_noisy_as_the_others():
    """As `tests/optimizers/test_trials.py` has it."""
    trials, rng, won, runs = torch_trials.Trials(10, 0.1, 2.0, 0.02), np.random.default_rng(0), 0, 1_000
    means = np.array([1.0] + 10 * [6.0] + 10 * [1.0])
    for losses in means + 0.5 * rng.standard_normal((runs, means.size)):
        watch = trials.begin()
        for step, loss in enumerate(losses.tolist()):
            trials.decide(watch, step, loss, good=True, allowed=True)
        won += watch.won
    assert won <= 0.045 * runs


def test_a_loss_that_is_not_finite_is_no_level_that_others_could_lie_below():
    trials = torch_trials.Trials(10, 0.1, 0.0, 0.02)
    watch = trials.begin()
    for step, loss in enumerate([1.0] + 3 * [1.0] + [np.nan] + 6 * [1.0] + 4 * [1.5]):
        trials.decide(watch, step, loss, good=bool(np.isfinite(loss)), allowed=True)
    assert (watch.highest, watch.defeats, watch.discarded) == (1.0, 1, 4)


def never(step: int) -> bool:
    return False


@pytest.mark.filterwarnings("ignore:The guard was given no loss")
@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize(
    "told",
    [
        pytest.param(never, id="never", marks=pytest.mark.slow),
        pytest.param(lambda step: step % 5 < 4, id="most", marks=pytest.mark.slow),
        pytest.param(lambda step: step % 2 == 0, id="half", marks=pytest.mark.slow),
        pytest.param(lambda step: step >= 15, id="late", marks=pytest.mark.slow),
        pytest.param(lambda step: step % 40 < 23, id="in parts"),
    ],
)
def test_where_losses_are_missing_it_decides_as_in_jax(told, trusted, artifact):
    """And one that lost does not move the params then."""
    for name in ("climbs", "is better", "turns", "NaN"):
        case, ours = CASES[name], parameters()
        problem, other = Descent(), Descent()
        optimizer = guarded(artifact, ours, InTorch(case.size, case.turn, case.later), trusted=trusted)
        with jax.enable_x64(True):
            learned = InJax(*map(jnp.asarray, (case.size, case.turn, case.later)))
            guard = bygrad.Guard(learned, bygrad.Adam(0.01), trusted=trusted)
            theirs = [jnp.asarray(leaf) for leaf in START]
            state = guard.init(theirs)
            for step in range(100):
                value, grads = other.at(*map(np.asarray, theirs))
                given = value if told(step) else None
                loss = None if given is None else jnp.asarray(given)
                theirs, state = step_in_jax(guard, [jnp.asarray(grad) for grad in grads], state, theirs, loss)
                advance(optimizer, ours, problem, value=given)
                for left, right in zip(ours, theirs, strict=True):
                    np.testing.assert_allclose(left.detach(), right, rtol=1e-9, atol=1e-9, err_msg=f"{name}, {step}")
            assert optimizer.report() == guard.report(state), name
        report = optimizer.report()
        if told is never:
            assert report["learned_steps"] == (0 if name == "NaN" else 100) and report["trials"] == 0
        elif name == "climbs" and not trusted:
            assert report["won"] == 0 and report["learned_steps"] <= report["discarded"] + 15 * (not told(0))


def test_a_gradient_that_is_not_finite_is_a_defeat_where_the_learned_rule_leads(artifact):
    param = torch.nn.Parameter(torch.ones(2))
    optimizer = guarded(artifact, [param], InTorch(0.1), trusted=True, fallback=InTorch(0.0))
    for grad in (1.0, 1.0, float("nan")):
        param.grad = torch.full((2,), grad)
        optimizer.step(value=1.0)
    assert bool((param == 1).all())
    assert optimizer.report()["reason"].startswith("A loss or gradient of the learned optimizer was not finite")


BAD = {
    "climbs": InTorch(-0.05),
    "random": InTorch(0.3, kind="random"),
    "NaN": InTorch(np.nan),
    "stands still": InTorch(0.0),
    "1e30": InTorch(1e30, kind="number"),
    "largest": InTorch(3e38, kind="number"),
}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, "float64") for name in BAD),
        *(pytest.param(name, "bfloat16", marks=[pytest.mark.slow] * (name != "climbs")) for name in BAD),
    ],
)
def test_without_noise_the_path_is_the_fallbacks_own_with_fewer_steps(name, dtype, artifact):
    dtype = getattr(torch, dtype)
    params, problem, steps = parameters(dtype), Descent(), 200
    optimizer = guarded(artifact, params, copy.copy(BAD[name]))
    plain = parameters(dtype)
    alone = [[param.detach().clone() for param in plain]]
    adam = guarded(artifact, plain, Adam(0.01), share=0.0)  # as a bare optimizer
    for _ in range(steps):
        advance(adam, plain, problem)
        alone.append([param.detach().clone() for param in plain])
        advance(optimizer, params, problem)
        assert all(param.isfinite().all() for param in params)
    optimizer.settle()
    report = optimizer.report()
    assert report["won"] == 0 and (report["trials"] >= 1) == (name != "NaN") and report["discarded"] <= 0.1 * steps + 30
    for ours, theirs in zip(params, alone[steps - report["discarded"]], strict=True):
        torch.testing.assert_close(ours.detach(), theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_params_and_state_are_finite_whatever_comes_in(dtype, artifact):
    big = float(torch.finfo(getattr(torch, dtype)).max)
    grads, values = (1.0, big, float("nan"), float("inf"), 0.0), (1.0, 3e38, float("nan"), -float("inf"))
    for name, rule in BAD.items():
        params = parameters(getattr(torch, dtype))
        optimizer = guarded(artifact, params, copy.copy(rule), window=4)
        for grad, value in itertools.product(grads, values):
            for param in params:
                param.grad = torch.full_like(param, grad)
            optimizer.step(value=value)
            entries = [entry for state in optimizer.state.values() for entry in state.values()]
            assert all(entry.isfinite().all() for entry in (*params, *entries)), (name, grad, value)
        report = optimizer.report()
        assert (report["steps"], report["bad_inputs"]) == (20, 8)


def test_a_guard_is_shown_by_what_it_falls_back_to(artifact):
    optimizer = guarded(artifact, parameters(torch.float32), InTorch(0.1))
    shown = repr(optimizer)
    assert shown.startswith("LearnedOptimizer (\nParameter Group 0\n    depth: None\n    guard: Adam(")
    assert artifact.manifest.digest in shown and "counts" not in shown and "params" not in shown
    assert "counts" in optimizer.param_groups[0]["guard"]  # which checkpoints need


@pytest.mark.parametrize("call", [3, 4])
def test_params_that_were_ruined_are_no_point_to_return_to(call, artifact):
    param = torch.nn.Parameter(torch.ones(2))
    optimizer = LearnedOptimizer([param], artifact, guard=lambda rule: Guard(rule, Adam(0.1), window=4))
    for step in range(12):
        param.grad = torch.ones(2)
        if step == call:
            param.data.fill_(float("nan"))
        optimizer.step(value=1.0)
        assert bool(optimizer.state[param]["point"].isfinite().all())


def test_an_envelope_counts_all_params_and_not_those_that_move_now(artifact):
    head, rest = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(40))
    envelope = Envelope(parameter_count=43, action="refuse")
    optimizer = LearnedOptimizer([head, rest], artifact, guard=lambda rule: Guard(rule, Adam(0.1), envelope=envelope))
    head.grad = torch.ones(3)
    optimizer.step(value=1.0)
    assert optimizer.report()["outside"] == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_found_in_params_of_any_dtype(bad, artifact):
    dtypes = torch.float16, torch.float32, torch.bfloat16, torch.float64
    params = [torch.nn.Parameter(torch.ones(size, dtype=dtype)) for size, dtype in enumerate(dtypes)]
    params.append(torch.nn.Parameter(torch.tensor(1.0)))
    optimizer = guarded(artifact, params, InTorch(0.1))
    for place, param in enumerate(params[1:]):  # the first has no entries
        for it in params:
            it.grad = torch.zeros_like(it)
        param.grad.view(-1)[-1] = bad
        optimizer.step(value=1.0)
        assert optimizer.report()["bad_inputs"] == place + 1


def test_closures_and_values_are_the_same_and_no_loss_is_warned_of(artifact):
    def run(closed: bool) -> Any:
        weight = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
        optimizer = LearnedOptimizer([weight], artifact, guard=Adam(0.1))

        def closure() -> Any:
            optimizer.zero_grad()
            loss = weight.square().sum()
            loss.backward()
            return loss

        for _ in range(30):
            if closed:
                assert optimizer.step(closure).requires_grad
            else:
                optimizer.step(value=closure().item())
        return weight.detach(), optimizer.report()

    (left, report), (right, other) = run(True), run(False)
    assert torch.equal(left, right) and report == other and report["trials"] == 1
    weight = torch.nn.Parameter(torch.ones(3))
    weight.grad = torch.ones(3)
    optimizer = LearnedOptimizer([weight], artifact, guard=Adam(0.1))
    optimizer.step(value=1.0)
    with pytest.warns(UserWarning, match=r"given no loss.*step\(value=loss\)"):  # also where they stop coming
        optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()  # told


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_loss_that_is_a_number_is_judged_as_it_is_whatever_the_default_dtype_and_device(dtype, artifact):
    def run() -> Any:
        params, problem = parameters(), Descent()
        optimizer = guarded(artifact, params, InTorch(0.9))
        for _ in range(60):
            value, _ = problem.at(*(param.detach().numpy() for param in params))
            advance(optimizer, params, problem, value=1e6 + value)
        return optimizer.report()

    wanted = run()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with torch.device("meta"):
            found = run()
    finally:
        torch.set_default_dtype(torch.float32)
    assert found == wanted and found["won"]


@pytest.mark.parametrize("name", ["is better in noise", "climbs", "turns"])
def test_a_resumed_run_goes_on_bit_for_bit(name, artifact):
    """Wherever it was cut, also inside a trial, and also for bfloat16 params."""
    case = CASES[name]

    def fresh(dtype: Any) -> tuple[list[Any], Any]:
        params = parameters(dtype)
        return params, guarded(artifact, params, InTorch(case.size, case.turn, case.later), horizon=500)

    for cut, dtype in ((0, torch.float64), (5, torch.bfloat16), (14, torch.float32), (23, torch.float64), (60, None)):
        (params, optimizer), problem = fresh(dtype or torch.float64), Descent(case.noise)
        for _ in range(cut):
            advance(optimizer, params, problem)
        file = io.BytesIO()
        torch.save({"params": params, "optimizer": optimizer.state_dict()}, file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        resumed, other = fresh(dtype or torch.float64)
        other.load_state_dict(saved["optimizer"])
        for param, value in zip(resumed, saved["params"], strict=True):
            param.data = value.detach().clone()
        again = copy.deepcopy(problem)
        for _ in range(40):
            advance(optimizer, params, problem)
            advance(other, resumed, again)
        assert all(map(torch.equal, params, resumed)) and optimizer.report() == other.report()


def test_a_state_with_a_guard_is_not_one_without(artifact):
    bare, with_guard = LearnedOptimizer(parameters(), artifact), guarded(artifact, parameters(), InTorch(0.1))
    with pytest.raises(ValueError, match=r"saved with a guard.*made without one.*Give `guard`"):
        bare.load_state_dict(with_guard.state_dict())
    with pytest.raises(ValueError, match=r"saved without a guard.*made with one"):
        with_guard.load_state_dict(bare.state_dict())


def test_a_state_is_not_taken_by_another_guard(artifact):
    saved = guarded(artifact, parameters(), InTorch(0.1)).state_dict()
    other = LearnedOptimizer(parameters(), artifact, guard=lambda rule: Guard(rule, Adam(0.1)))
    with pytest.raises(ValueError, match=r"saved with another guard \(.*fallback was Adam\(0.01.*is Adam\(0.1,"):
        other.load_state_dict(saved)


def test_rates_multiply_both_rules_but_no_return(artifact):
    """Half the rate of both is a guard around half of each; a rate of 0 holds a group."""
    params, others, problem, again = parameters(), parameters(), Descent(), Descent()
    optimizer = guarded(artifact, params, InTorch(-0.1), lr=0.5)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=1.0)
    halved = guarded(artifact, others, InTorch(-0.05), fallback=Adam(0.005))
    for _ in range(40):
        advance(optimizer, params, problem)
        scheduler.step()
        advance(halved, others, again)
    for ours, theirs in zip(params, others, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    assert optimizer.report() == halved.report() and optimizer.report()["trials"] == 1
    params = parameters()
    optimizer = LearnedOptimizer(
        [{"params": params[:1]}, {"params": params[1:], "lr": 0.0}], artifact, guard=lambda rule: Guard(rule, Adam(0.1))
    )
    for _ in range(25):
        advance(optimizer, params, problem)
    assert not np.array_equal(params[0].detach(), START[0]) and np.array_equal(params[1].detach(), START[1])


def test_a_run_that_ends_in_a_trial_is_settled_and_can_go_on(artifact):
    params, problem = parameters(), Descent()
    optimizer = guarded(artifact, params, InTorch(0.0))
    losses = [advance(optimizer, params, problem) for _ in range(14)]
    assert losses[-1] > losses[9]  # the rule that stands still has its turn
    optimizer.settle()
    settled = problem.at(*(param.detach().numpy() for param in params))[0]
    assert settled < min(losses) and optimizer.report()["discarded"] == 3
    optimizer.settle()
    later = [advance(optimizer, params, problem) for _ in range(20)]
    assert later[0] == settled and np.all(np.diff(later) < 0)


def test_to_be_settled_takes_the_lead_from_nobody(artifact):
    """One that descends faster leads before its next trial, and after that was ended."""
    params, problem = parameters(), Descent()
    optimizer = guarded(artifact, params, InTorch(0.05), trusted=True, window=6)
    rule = optimizer._rule
    for _ in range(500):
        if rule.watch.phase != TRIAL:
            advance(optimizer, params, problem)
    assert rule.watch.phase == TRIAL and rule.watch.trusted
    optimizer.settle()
    assert rule.watch.phase == RUN and rule.watch.trusted


def test_a_param_that_loses_its_gradient_in_a_trial_returns_as_well(artifact):
    params, problem = parameters(), Descent()
    optimizer = guarded(artifact, params, InTorch(-0.05), window=6)
    for step in range(30):
        value, grads = problem.at(*(param.detach().numpy() for param in params))
        for param, grad in zip(params, grads, strict=True):
            param.grad = torch.from_numpy(np.array(grad))
        if step >= 9:
            params[1].grad = None
        if step == 9:
            moved = params[1].detach().clone()  # by the rule that climbs
        optimizer.step(value=value)
    assert optimizer.report()["won"] == 0
    assert moved > 1 > params[1]


def test_the_envelope_is_that_of_jax(artifact):
    params = [torch.nn.Parameter(torch.zeros(3, 4)), torch.nn.Parameter(torch.zeros(()))]
    for size, horizon, count in ((1e-3, None, 13), (5.0, None, 13), (0.5, 3, 13), (0.5, None, 1000)):
        training = {"parameter_count": count, "gradient_scale": {"0.01": 0.01, "0.99": 1.0}, "recipe": {}}
        training |= {"recipe": {"horizon": horizon}} if horizon else {}
        ours = Guard(InTorch(0.1), Adam(0.01), share=0.0, envelope=Envelope.from_training(training))
        theirs = bygrad.Guard(
            InJax(jnp.asarray(0.1), jnp.asarray(100), jnp.asarray(0.0)),
            bygrad.Adam(0.01),
            share=0.0,
            envelope=bygrad.Envelope.from_training(training),
        )
        optimizer = LearnedOptimizer(params, artifact, guard=lambda _, ours=ours: ours)
        points = [jnp.zeros((3, 4)), jnp.zeros(())]
        state = theirs.init(points)
        for step in range(12):
            grads = [np.full((3, 4), size * (1 + step), np.float32), np.zeros((), np.float32)]
            for param, grad in zip(params, grads, strict=True):
                param.grad = torch.from_numpy(grad)
            optimizer.step()
            _, state = theirs.update([jnp.asarray(grad) for grad in grads], state, points)
        assert optimizer.report() == theirs.report(state), (size, horizon, count)
    assert optimizer.report()["outside"] == 12


class Stepping(InTorch):
    """Counts its steps, of all params."""

    steps = 0

    def step(self, grads, states, params, value=None):
        self.steps += 1
        return super().step(grads, states, params, value)


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_outside_its_envelope_for_good_the_learned_rule_takes_no_steps(share, artifact):
    rule, params = Stepping(0.1), parameters()
    options = {"envelope": Envelope(horizon=20), "share": share, "growth": 0.0}
    optimizer = guarded(artifact, params, rule, **options)
    with pytest.warns(UserWarning):
        taken = [(advance(optimizer, params, Descent()), rule.steps)[1] for _ in range(30)]
    assert taken[-1] == taken[19] > 0


@pytest.mark.parametrize("init_scale", [2.0**16, 2.0**60])
def test_a_gradient_scaler_lets_a_guard_return_from_where_no_scale_helps(init_scale, artifact):
    """From a point whose loss overflows in half precision, that is; also where the first scales are too large."""
    weight = torch.nn.Parameter(torch.zeros(3))
    optimizer = guarded(artifact, [weight], InTorch(-30.0, kind="number"))
    scaler = torch.amp.GradScaler("cpu", init_scale=init_scale)

    def step() -> float:
        optimizer.zero_grad()
        wanted = torch.full((3,), 100.0, dtype=torch.float16)
        loss = ((100 * weight).half() - wanted).square().float().mean() / 1e4
        scaler.scale(loss).backward()
        scaler.step(optimizer, value=loss)
        scaler.update()
        return float(loss.detach())

    for _ in range(300):
        loss = step()
    assert loss < 1e-3 and weight.isfinite().all()
    assert optimizer.report()["trials"] >= 1 and optimizer.report()["won"] == 0
    assert 1.0 <= scaler.get_scale() < init_scale or init_scale == 2.0**16


def test_a_gradient_scaler_changes_no_step_and_what_overflows_by_scale_alone_is_left_out(artifact):
    def run(scaler: Any, unscale: bool = False) -> tuple[Any, dict[str, Any]]:
        weight = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
        optimizer = guarded(artifact, [weight], InTorch(0.3))
        for _ in range(60):
            optimizer.zero_grad()
            loss = weight.square().sum()
            scaler.scale(loss).backward()
            if unscale:
                scaler.unscale_(optimizer)
            scaler.step(optimizer, value=loss)
            scaler.update()
        return weight.detach(), optimizer.report()

    plain = run(torch.amp.GradScaler("cpu", enabled=False))
    for unscale in (False, True):
        found = run(torch.amp.GradScaler("cpu", init_scale=2.0**10), unscale)
        assert torch.equal(found[0], plain[0]) and found[1] == plain[1]
    _, told = run(torch.amp.GradScaler("cpu", init_scale=2.0**127))  # too large for a step or two
    assert told["bad_inputs"] == 0 and 50 <= told["steps"] < 60


def test_an_envelope_refuses_and_warns_as_told(artifact):
    def run(action: str) -> None:
        params = parameters()
        optimizer = guarded(artifact, params, InTorch(0.1), envelope=Envelope(horizon=2, action=action))
        for _ in range(5):
            advance(optimizer, params, Descent())

    with pytest.raises(ValueError, match=r"longer than those.*told to refuse that"):
        run("refuse")
    with pytest.warns(UserWarning, match="longer than those") as caught:
        run("warn")
    assert len(caught) == 1
    with pytest.warns(UserWarning, match="longer than those.* There the fallback alone moves the params") as caught:
        run("fall back")
    assert len(caught) == 1
    envelope = LearnedOptimizer(parameters(), artifact, guard=Adam())._rule.envelope
    assert envelope.horizon == artifact.manifest.training["recipe"]["horizon"]


@pytest.mark.parametrize(
    ("horizon", "until", "window", "trials"), [(5_000, 100, 10, 1), (5_200, 100, 10, 0), (500, 100, 60, 1)]
)
def test_it_says_whether_any_trial_fits_what_the_envelope_allows(horizon, until, window, trials, artifact):
    """A tenth of a tenth of the run for each part of the first one, and no more than a twentieth."""
    params, envelope = parameters(), Envelope(horizon=until)
    told = "and nothing is tried that would not" if trials else "no trial of such a run would be over by then"
    with pytest.warns(UserWarning, match=f"{horizon:,} steps, but .* on runs of {until}: .*{told}"):
        optimizer = guarded(artifact, params, InTorch(0.0), horizon=horizon, envelope=envelope, window=window)
    with pytest.warns(UserWarning, match=f"{horizon:,} steps, but .* on runs of {until}: .*{told}"):
        bounds = bygrad.Envelope(horizon=until)
        bygrad.Guard(bygrad.Adam(0.1), envelope=bounds, window=window).declare(horizon)
    for _ in range(until):
        advance(optimizer, params, Descent())
    assert optimizer.report()["trials"] == trials


TOGETHER = """
import datetime, json, sys, torch
from bygrad.deploy.torch import Adam, Guard, LearnedOptimizer, Rule

class Half(Rule):
    feature_version = 1
    def __init__(self): ...
    def start(self, param): return {}
    def step(self, grads, states, params, value=None): return [-0.5 * grad for grad in grads]

def run(drift, **options):
    weight = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = LearnedOptimizer([weight], "paper/quadratic", guard=lambda _: Guard(Half(), Adam(0.01), **options))
    for step in range(40):
        weight.grad = weight.detach().clone()
        optimizer.step(value=0.5 * weight.grad.square().sum() + drift * step)
    return weight.tolist(), optimizer.report()

def run_all(rank, meet):
    runs = {"alone": run(0.0)}
    minutes = datetime.timedelta(minutes=2)
    torch.distributed.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=2, timeout=minutes)
    drift = 0.125 if rank else -0.125
    runs |= {"together": run(drift), "apart": run(drift, together=False)}
    torch.distributed.destroy_process_group()
    return json.dumps(runs)
"""


@pytest.mark.slow
def test_processes_that_train_one_model_decide_alike_by_the_mean_of_their_losses(tmp_path):
    """One sees losses that rise, and the other losses that fall: their mean is what a single process would see.

    The first of the two is this process: another takes longer to import PyTorch than for all else.
    """
    meet, here = tmp_path / "meet", {}
    command = [sys.executable, "-c", f"{TOGETHER}\nprint(run_all(1, sys.argv[1]))", str(meet)]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    exec(TOGETHER, here)  # noqa: S102 - what the other one runs
    try:
        first = json.loads(here["run_all"](0, meet))
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        out, said = other.communicate()
    assert other.returncode == 0, said
    second = json.loads(out)
    assert first["alone"][1]["won"] == 1
    assert first["together"] == second["together"] == first["alone"]
    assert first["apart"][1]["won"] != second["apart"][1]["won"]


def test_the_constants_are_those_of_jax():
    for ours, theirs in ((torch_trials, trials), (torch_envelope, envelope)):
        names = {name for name, it in vars(ours).items() if name.isupper() and isinstance(it, int | float)}
        assert names
        for name in names:
            assert getattr(ours, name) == getattr(theirs, name, getattr(theirs, f"_{name}", None)), name


def test_what_cannot_work_is_refused():
    with pytest.raises(ValueError, match=r"window=2.*could not judge.*Give a whole window >= 4"):
        Guard(InTorch(0.1), Adam(), window=2)
    with pytest.raises(ValueError, match="margin=nan"):
        Guard(InTorch(0.1), Adam(), margin=float("nan"))
    Guard(InTorch(0.1), Adam(), share=0.02)  # growth follows
    with pytest.raises(ValueError, match=r"learning_rate=-1.*are no Adam"):
        Adam(-1.0)


def test_adam_is_that_of_torch():
    ours, theirs, problem = parameters(), parameters(), Descent()
    optimizer, reference = Adam(0.05), torch.optim.Adam(theirs, 0.05)
    states = [optimizer.start(param) for param in ours]
    for _ in range(20):
        _, grads = problem.at(*(param.detach().numpy() for param in ours))
        tensors = [torch.from_numpy(np.array(grad)) for grad in grads]
        for param, update in zip(ours, optimizer.step(tensors, states, ours), strict=True):
            param.data += update
        for param, grad in zip(theirs, tensors, strict=True):
            param.grad = grad
        reference.step()
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-14)


def widened(artifact: Artifact) -> Artifact:
    """The same in float64: a file is of its own precision."""
    wide = lambda it: it.astype(np.float64) if it.dtype.kind == "f" else it  # noqa: E731
    tensors = {name: wide(it) for name, it in artifact.tensors.items()}
    return Artifact(dataclasses.replace(artifact.manifest, tensors=describe(tensors)), tensors)


def test_a_model_in_both_frameworks(artifact):
    """With a fallback alone, as in `bygrad.deploy.optax`: the shipped optimizer of quadratics, where it is at home."""
    rng = np.random.default_rng(3)
    matrix, target = rng.standard_normal((10, 10)), rng.standard_normal(10)
    weight = torch.nn.Parameter(torch.zeros(10, dtype=torch.float64))
    optimizer = LearnedOptimizer([weight], artifact, guard=Adam(0.1))
    with jax.enable_x64(True):
        transformation = in_jax(widened(artifact), guard=bygrad.Adam(0.1))
        point = jnp.zeros(10)
        state = transformation.init(point)

        @jax.jit
        def step(point: Any, state: Any) -> Any:
            value, grad = jax.value_and_grad(lambda it: jnp.sum((matrix @ it - target) ** 2))(point)
            updates, state = transformation.update(grad, state, point, value=value)
            return point + updates, state

        for _ in range(60):
            optimizer.zero_grad()
            loss = (torch.from_numpy(matrix) @ weight - torch.from_numpy(target)).square().sum()
            loss.backward()
            optimizer.step(value=loss)
            point, state = step(point, state)
            np.testing.assert_allclose(weight.detach().numpy(), point, rtol=1e-8, atol=1e-9)
        assert optimizer.report() == state.optimizer.report(state.state)
