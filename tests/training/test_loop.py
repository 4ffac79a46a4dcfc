"""Meta-training: it learns, keeps the best, returns to a good state after a bad step, and says when it was in vain."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from jax.sharding import Mesh

from bygrad.metagrads import (
    NRES,
    PES,
    Backprop,
    Blend,
    Clone,
    Estimate,
    Estimator,
    Forward,
    FullES,
    Imitate,
    Members,
    Replay,
)
from bygrad.optimizers import LSTM, SGD, AdamWCosine, Nesterov, Optimizer, to_portable
from bygrad.problems import HeldOut, Mixture, ProblemFamily, Quadratic
from bygrad.training import (
    CheckpointError,
    Event,
    MetaTrained,
    Recipe,
    RolledBack,
    Stepped,
    Validated,
    Warned,
    best_of,
    loop,
    meta_train,
)
from bygrad.training.advice import of_what_was_learned, refuse_what_cannot_fit
from bygrad.training.devices import Devices
from bygrad.training.loop import MAX_ROLLBACKS
from bygrad.unroll import loss_curves

from .estimators import Upward

TINY = {"horizon": 4, "truncation": 2, "instances": 2, "validation_runs": 4}


class Bowl(ProblemFamily):
    """Half the squared distance to the origin, which gradient descent with a rate of 1 reaches in one step."""

    def sample(self, key):
        return jax.random.uniform(key, (2,), minval=0.5, maxval=1.0)

    def init(self, instance, key):
        return instance

    def loss(self, params, instance, key):
        return 0.5 * jnp.sum(params**2)


class Cliff(Bowl):
    """As the bowl, but no longer a number away from the origin."""

    def loss(self, params, instance, key):
        return jnp.where(jnp.max(jnp.abs(params)) < 10, 0.5 * jnp.sum(params**2), jnp.nan)


class Faulty(Estimator):
    """Replay, with a meta-gradient that is not a number at every `period`-th estimate."""

    period: int = eqx.field(static=True)

    def init(self, optimizer, windows, key):
        return Replay().init(optimizer, windows, key), jnp.int32(0)

    def estimate(self, optimizer, windows, state):
        inner, count = state
        estimate, inner = Replay().estimate(optimizer, windows, inner)
        bad = (count + 1) % self.period == 0
        gradient = jax.tree.map(lambda leaf: jnp.where(bad, jnp.nan, leaf), estimate.gradient)
        return Estimate(estimate.loss, gradient, estimate.losses), (inner, count + 1)

    def axes(self, optimizer, state):
        return Replay().axes(optimizer, state[0]), None


def area_of(optimizer: object, family: ProblemFamily, recipe: Recipe) -> np.ndarray:
    """Losses `[runs, horizon + 1]` on the instances of the validations."""
    _, key = jax.random.split(jax.random.key(recipe.seed))
    return np.asarray(loss_curves(optimizer, family, jax.random.split(key, recipe.validation_runs), recipe.horizon))


def test_an_lstm_learns_quadratics():
    # Long enough that rounding, which differs from machine to machine and grows on the way, does not decide.
    recipe = Recipe(horizon=20, truncation=10, instances=16, meta_steps=1_000, validate_every=50, validation_runs=64)
    untrained = LSTM(jax.random.key(0), (8,), output_scale=1.0)
    trained = meta_train(untrained, Quadratic(), recipe)
    first, *_ = trained.log.of(Validated)
    assert trained.best.area < 0.7 * first.area, (trained.best, first)
    assert not trained.log.of(Warned)
    # And on problems that neither training nor validation has seen.
    keys = jax.random.split(jax.random.key(99), 64)
    curves = [eqx.filter_jit(loss_curves)(it, Quadratic(), keys, 20) for it in (trained.optimizer, untrained)]
    assert np.mean(curves[0][:, :-1]) < 0.7 * np.mean(curves[1][:, :-1])


@pytest.mark.parametrize("select", ["area", "final"])
def test_the_best_is_what_validated_best(select):
    # A rate of 1 is best. From 0.4, with steps that do not stop, meta-training passes it by, but not by so much that it
    # would be rolled back.
    recipe = Recipe(
        **TINY,
        meta_steps=8,
        meta_learning_rate=0.25,
        validate_every=2,
        estimator=Upward(),
        select=select,
        final_window=2,
    )
    trained = meta_train(SGD(0.4), Bowl(), recipe)
    validated = trained.log.of(Validated)
    assert [event.step for event in validated] == [0, 2, 4, 6, 8]
    scores = [getattr(event, select) for event in validated]
    best = validated[int(np.argmin(scores))]
    assert 0 < best.step < 8
    assert (trained.best.step, trained.best.area, trained.best.final) == pytest.approx(
        (best.step, best.area, best.final)
    )
    assert [event.best for event in validated] == [
        score < min(scores[:i], default=np.inf) for i, score in enumerate(scores)
    ]
    curves = area_of(trained.optimizer, Bowl(), recipe)
    assert trained.best.area == pytest.approx(curves[:, :-1].sum(axis=1).mean(), rel=1e-5)
    assert trained.best.final == pytest.approx(curves[:, -2:].mean(), rel=1e-5)


def test_the_last_is_kept_where_the_recipe_says_so():
    settings = {**TINY, "meta_steps": 8, "meta_learning_rate": 0.25, "validate_every": 2, "estimator": Upward()}
    best, last = (meta_train(SGD(0.4), Bowl(), Recipe(**settings, keep=keep)) for keep in ("best", "last"))
    # Nothing else differs: the same course, but what comes out is its end, though an earlier one validated better.
    assert [event.area for event in last.log.of(Validated)] == [event.area for event in best.log.of(Validated)]
    assert best.best.step < last.best.step == 8
    assert last.best.area > best.best.area
    curves = area_of(last.optimizer, Bowl(), Recipe(**settings))
    assert last.best.area == pytest.approx(curves[:, :-1].sum(axis=1).mean(), rel=1e-5)


def test_watcher_log_and_file_tell_the_same(tmp_path: Path):
    told = []
    recipe = Recipe(**TINY, meta_steps=7, validate_every=3, estimator=Faulty(4))
    trained = meta_train(Nesterov(0.1), Bowl(), recipe, folder=tmp_path / "run", watch=told.append)
    assert told == trained.log.events
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line.pop("event") for line in lines] == [type(event).__name__ for event in told]
    assert lines == [vars(event) for event in told]
    assert [event.step for event in trained.log.of(Validated)] == [0, 3, 6, 7]
    assert [event.step for event in trained.log.of(Stepped)] == [1, 2, 3, 5, 6, 7]
    seconds = [event.seconds for event in told]
    assert seconds == sorted(seconds)


def rates(trained: MetaTrained, recipe: Recipe) -> None:
    """The meta-learning-rate falls along a cosine, and every rollback halves it."""
    factor = 1.0
    for event in trained.log.events:
        if isinstance(event, RolledBack):
            factor /= 2
            assert event.rate == pytest.approx(factor)
        elif isinstance(event, Stepped):
            cosine = 0.5 * (1 + np.cos(np.pi * (event.step - 1) / recipe.meta_steps))
            assert event.meta_learning_rate == pytest.approx(factor * recipe.meta_learning_rate * cosine, rel=1e-5)


def test_a_meta_gradient_that_is_not_finite_leads_back_with_half_the_rate():
    recipe = Recipe(**TINY, meta_steps=20, validate_every=5, estimator=Faulty(7))
    trained = meta_train(Nesterov(0.1), Bowl(), recipe)
    rolled = trained.log.of(RolledBack)
    assert [event.step for event in rolled] == [7, 14]
    assert all("meta-gradient's norm was nan" in event.reason for event in rolled)
    assert [event.step for event in trained.log.of(Stepped)] == [i for i in range(1, 21) if i not in (7, 14)]
    rates(trained, recipe)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(trained.optimizer))
    assert trained.best.area < trained.log.of(Validated)[0].area


def test_the_best_so_far_is_read_from_the_folder(tmp_path: Path):
    recipe = Recipe(**TINY, meta_steps=20, meta_learning_rate=0.03, validate_every=5)
    trained = meta_train(Nesterov(0.1), Bowl(), recipe, folder=tmp_path / "run")
    best = best_of(tmp_path / "run", Nesterov(0.7))
    for ours, theirs in zip(jax.tree.leaves(best), jax.tree.leaves(trained.optimizer), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(CheckpointError, match="holds another state"):
        best_of(tmp_path / "run", SGD(0.1))
    with pytest.raises(FileNotFoundError, match="no optimizer has been kept"):
        best_of(tmp_path, Nesterov(0.7))


def test_who_resumes_with_another_optimizer_hears_that_it_is_not_the_one_that_goes_on(tmp_path: Path):
    recipe = Recipe(**TINY, meta_steps=2)
    first = meta_train(Nesterov(0.1), Bowl(), recipe, folder=tmp_path / "run")
    same = meta_train(Nesterov(0.1), Bowl(), recipe, folder=tmp_path / "run", resume=True, watch=lambda event: None)
    other = meta_train(Nesterov(0.2), Bowl(), recipe, folder=tmp_path / "run", resume=True, watch=lambda event: None)
    told = [[event.message for event in it.log.of(Warned)] for it in (same, other)]
    assert not any("differs from the one" in message for message in told[0])
    assert any("Nesterov that is given differs from the one" in message for message in told[1])
    assert first.optimizer.learning_rate == other.optimizer.learning_rate


def test_the_state_gone_back_to_is_the_one_that_validated(tmp_path: Path):
    states = {}

    def watch(event: object) -> None:
        # The state right after this event is written when Ctrl-C is asked for while it is told.
        if isinstance(event, RolledBack) or (isinstance(event, Stepped) and event.step == states["stop"]):
            os.kill(os.getpid(), signal.SIGINT)

    recipe = Recipe(**TINY, meta_steps=20, validate_every=5, estimator=Faulty(7))
    for stop in (5, 7):
        states["stop"] = stop
        with pytest.raises(KeyboardInterrupt):
            meta_train(Nesterov(0.1), Bowl(), recipe, folder=tmp_path / str(stop), watch=watch)
        states[stop] = safetensors.numpy.load_file(tmp_path / str(stop) / "checkpoint.safetensors")
    validated, back = states[5], states[7]
    assert (int(validated["step"]), int(back["step"])) == (5, 7)
    assert (float(validated["rate"]), float(back["rate"])) == (1.0, 0.5)
    restored = [name for name in back if name.startswith(("optimizer/", "meta_state/"))]
    assert len(restored) > 4
    for name in restored:
        np.testing.assert_array_equal(back[name], validated[name], err_msg=name)
    changed = [name for name in back if name.startswith("inner/") and not np.array_equal(back[name], validated[name])]
    assert any("params" in name for name in changed)  # other problems, or it might fail again in the same way


def test_a_rate_that_is_much_too_large_is_lowered_until_it_works():
    recipe = Recipe(**TINY, meta_steps=30, meta_learning_rate=100.0, validate_every=5)
    trained = meta_train(SGD(0.1), Cliff(), recipe)
    assert 1 <= len(trained.log.of(RolledBack)) <= MAX_ROLLBACKS
    rates(trained, recipe)
    assert np.isfinite(trained.optimizer.learning_rate)
    assert np.isfinite(trained.best.area)
    assert trained.best.area <= trained.log.of(Validated)[0].area


def test_meta_parameters_that_overflow_are_not_blamed_on_the_meta_gradient():
    recipe = Recipe(**TINY, meta_steps=3, meta_learning_rate=3e38, estimator=Upward())  # twice that is infinite
    rolled, *_ = meta_train(SGD(0.1), Bowl(), recipe, watch=lambda event: None).log.of(RolledBack)
    assert rolled.step == 2
    assert "a step with a meta-learning-rate of 2.25e+38 left no finite meta-parameters" in rolled.reason


def test_a_validation_that_is_not_finite_leads_back_too():
    # From 0.1, steps of 3 and 1.5 go beyond a rate of 2, where the runs of a validation fall off the cliff.
    recipe = Recipe(
        horizon=30, truncation=2, meta_steps=6, meta_learning_rate=3.0, validate_every=1, estimator=Upward()
    )
    trained = meta_train(SGD(0.1), Cliff(), recipe)
    rolled = trained.log.of(RolledBack)
    assert rolled
    assert "validation gave an area of nan" in rolled[0].reason  # and then, at half the rate, perhaps a large one
    rates(trained, recipe)
    assert all(np.isfinite(event.area) for event in trained.log.of(Validated))


def test_a_validation_that_shows_that_all_is_lost_leads_back_too():
    """Rates above 2 diverge, but in 30 steps the losses stay finite."""
    recipe = Recipe(
        horizon=30, truncation=2, meta_steps=6, meta_learning_rate=3.0, validate_every=1, estimator=Upward()
    )
    trained = meta_train(SGD(0.1), Bowl(), recipe)
    rolled = trained.log.of(RolledBack)
    assert rolled
    assert all("worse than at the start" in event.reason for event in rolled)
    rates(trained, recipe)
    start, *others = trained.log.of(Validated)
    lowest = min(event.area for event in (start, *others))
    assert all(event.area <= max(start.area, 2 * lowest) for event in others)


def test_what_diverged_at_first_can_lose_what_it_has_learned(monkeypatch):
    """Validations that are not finite, then good, then worse than when they first were finite, and then good again."""
    areas = iter([np.nan, np.nan, 5.0, 1.0, 4.0, 1e20, 2.0, 3.0])
    losses = lambda *_: np.full((2, 2), next(areas))  # noqa: E731
    monkeypatch.setattr("bygrad.training.loop._MetaTraining._validation_losses", losses)
    recipe = Recipe(**TINY, meta_steps=7, validate_every=1)
    trained = meta_train(SGD(0.1), Bowl(), recipe, watch=lambda event: None)
    assert [event.step for event in trained.log.of(RolledBack)] == [5]
    assert [event.area for event in trained.log.of(Validated)][2:] == [5.0, 1.0, 4.0, 2.0, 3.0]


def test_where_the_last_is_kept_all_is_lost_as_soon_as_where_the_best_is(tmp_path: Path):
    """With every validation the area grows by less than twice, and after a few it is more than twice the lowest."""
    settings = {"horizon": 30, "truncation": 2, "meta_learning_rate": 0.02, "validate_every": 1, "meta_steps": 13}
    first = []
    for keep in ("best", "last"):
        told: list[Event] = []
        recipe = Recipe(**settings, estimator=Upward(), keep=keep)
        meta_train(SGD(1.8), Bowl(), recipe, folder=tmp_path / keep, watch=told.append)
        first.append(next(event for event in told if isinstance(event, RolledBack)))
        areas = [event.area for event in told if isinstance(event, Validated)]
        assert max(areas) <= 2 * min(areas)
    best, last = first
    assert last.step == best.step > 2 and last.reason == best.reason


def test_hopeless_meta_training_stops_and_keeps_the_best(tmp_path: Path):
    recipe = Recipe(**TINY, meta_steps=50, validate_every=5, estimator=Faulty(1))
    optimizer = Nesterov(0.1)
    with pytest.raises(FloatingPointError, match=r"Meta-training stopped at meta-step 11: .*for the 11th time"):
        meta_train(optimizer, Bowl(), recipe, folder=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert sum(line["event"] == "RolledBack" for line in lines) == MAX_ROLLBACKS
    tensors = safetensors.numpy.load_file(tmp_path / "checkpoint.safetensors")
    np.testing.assert_array_equal(tensors["best/learning_rate"], optimizer.learning_rate)
    np.testing.assert_array_equal(tensors["best/momentum"], optimizer.momentum)
    assert np.all(np.isfinite(tensors["best_scores"]))


def test_learning_nothing_is_said(tmp_path: Path):
    recipe = Recipe(**TINY, meta_steps=3, meta_learning_rate=1e-9, validate_every=2)
    with pytest.warns(UserWarning, match=r"(did not|hardly) improved? the area"):  # nobody watches
        trained = meta_train(Nesterov(0.1), Bowl(), recipe)
    assert isinstance(trained.log.events[-1], Warned)
    assert "did not improve the area on held-out instances" in trained.log.events[-1].message
    assert "Try a meta-learning-rate 3 times larger or smaller" in trained.log.events[-1].message


def test_what_has_nothing_to_learn_is_refused():
    class Still(Optimizer):
        """Takes no steps, and has no number by which it could."""

        def init(self, params):
            return ()

        def update(self, grads, state, params=None, *, value=None, key=None):
            return jax.tree.map(jnp.zeros_like, grads), state

    with pytest.raises(ValueError, match="Still holds no array of floating-point numbers"):
        meta_train(Still(), Bowl(), Recipe(**TINY))


WRONG = """
import jax, optax, bygrad
from bygrad.metagrads import Clone, Imitate, Replay
from bygrad.training import Curriculum

family, recipe = bygrad.Quadratic(2), bygrad.Recipe(horizon=2, truncation=2)
for call in (
    lambda: bygrad.meta_train(optax.adam(1e-2), family, recipe),
    lambda: bygrad.meta_train(bygrad.LSTM, family, recipe),
    lambda: bygrad.meta_train(bygrad.LSTM(jax.random.key(0)), family, Curriculum(recipe)),
    lambda: bygrad.Recipe(seconds="10m"),
    lambda: bygrad.Recipe(meta_learning_rate="1e-2"),
    lambda: bygrad.Recipe(clip=None),
    lambda: bygrad.Recipe(estimator=bygrad.NRES),
    lambda: bygrad.Recipe(instances=4.0),
    lambda: bygrad.Recipe(meta_steps=True),
    lambda: bygrad.Recipe(shortest=25.5),
    lambda: bygrad.Recipe(warmup=float("nan")),
    lambda: bygrad.Recipe(seed=1.5),
    lambda: bygrad.Recipe(before=5),
    lambda: Clone(bygrad.Adam),
    lambda: Imitate(Replay(), "adam"),
    lambda: bygrad.NRES(sigma="0.1"),
    lambda: bygrad.NRES(sigma=float("inf")),
    lambda: Replay(segment=2.5),
    lambda: Imitate(Replay(), bygrad.Adam(), every=1.5),
    lambda: Clone(bygrad.Adam(), coordinates=0.5),
    lambda: Clone(bygrad.Adam(), coordinates=2.5),
    lambda: Curriculum(recipe, horizons=(2, 4, 1e3)),
    lambda: Curriculum(recipe, horizons=(2, 4), runs=2.0),
):
    try:
        call()
    except (TypeError, ValueError) as error:
        print(error)
"""


def test_what_is_of_the_wrong_kind_is_refused_by_name():
    """In a process of its own, as annotations are not checked for a user."""
    done = subprocess.run([sys.executable, "-c", WRONG], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = ["no optimizer of this package"] * 2 + ["a Curriculum is for bygrad.training.learn_by_curriculum"]
    said += ["seconds is '10m', which is no number", "rate is '1e-2', which is no number", "clip is None, which is no"]
    said += ["no estimator of meta-gradients"] + ["no whole number"] * 5
    said += ["before is 5, which cannot be carried out first"]
    said += ["no optimizer of this package"] * 2 + ["pairs must differ"] * 2
    said += ["segment is 2.5, but counts steps", "a whole number of at least 1 for every"]
    said += ["a whole number of at least 1, or nothing would be imitated"] * 2 + [
        "1000.0 is no whole",
        "2.0 is no whole",
    ]
    for line, expected in zip(done.stdout.splitlines(), said, strict=True):
        assert expected in line


def test_what_no_time_was_left_for_is_not_called_a_failure():
    recipe = Recipe(seconds=1e-6)
    assert "over before the first meta-step" in of_what_was_learned(SGD(), recipe, 0, 1.0, 1.0)
    told = of_what_was_learned(SGD(), recipe, 5, 1.0, 0.99)
    assert "hardly improved" in told and "more time" in told and "output_scale" not in told
    assert "output_scale" in of_what_was_learned(LSTM(jax.random.key(0)), Recipe(), 5, 1.0, 1.5)
    assert of_what_was_learned(SGD(), recipe, 5, 1.0, 0.9) is None


@pytest.mark.parametrize(("estimator", "shorter"), [(NRES(), False), (Forward(), True), (Clone(SGD()), True)], ids=repr)
def test_shorter_windows_are_advised_where_they_are_kept(estimator, shorter):
    recipe = Recipe(estimator=estimator)
    with pytest.raises(MemoryError, match=r"Lower instances \(now 4\)") as caught:
        refuse_what_cannot_fit({"a meta-step": 2}, 1, recipe, SGD(), Bowl())
    assert ("truncation (now 20)" in str(caught.value)) is shorter


def test_resuming_without_a_folder_is_refused():
    with pytest.raises(ValueError, match="no folder is given"):
        meta_train(SGD(), Bowl(), Recipe(**TINY), resume=True)


def test_that_nothing_was_ever_finite_is_said():
    heard: list[Event] = []
    trained = meta_train(SGD(1e30), Bowl(), Recipe(**TINY, meta_steps=2, validate_every=2), watch=heard.append)
    assert heard[-1] is trained.log.events[-1]
    assert not np.isfinite(trained.best.area)
    assert "No area on held-out instances was ever finite" in trained.log.events[-1].message


def test_what_diverges_at_first_is_learned_on():
    """Gradient descent on the bowl converges below a rate of 2; from 2.5, the way there takes several validations."""
    recipe = Recipe(
        horizon=30,
        truncation=2,
        instances=8,
        meta_steps=40,
        meta_learning_rate=0.05,
        validate_every=5,
        estimator=NRES(0.05),
    )
    trained = meta_train(SGD(2.5), Cliff(), recipe)
    first, second, *_, last = trained.log.of(Validated)
    assert np.isnan(first.area) and np.isnan(second.area) and not first.best
    assert trained.best.area == last.area < np.inf
    assert trained.optimizer.learning_rate < 2
    assert not trained.log.of(RolledBack)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"horizon": 10, "truncation": 3}, "not a multiple of the truncation"),
        ({"estimator": FullES()}, "FullES looks at whole runs"),
        ({"estimator": Replay(segment=3)}, "not a multiple of the segment"),
        ({"estimator": Members(Replay())}, "Members needs a Mixture"),
        ({"estimator": Blend(), "instances": 1}, "Raise instances"),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused_before_what_comes_before_is_trained(settings, message, tmp_path: Path):
    wrong = Recipe(**TINY | settings, meta_steps=1, before=Recipe(**TINY, meta_steps=1))
    with pytest.raises((TypeError, ValueError), match=message):
        meta_train(SGD(), Bowl(), wrong, folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Judged(Bowl):
    """The bowl, to be judged by the distance to another point."""

    def held_out_loss(self, params, instance, key):
        return 0.5 * jnp.sum((params - 0.5) ** 2)


@pytest.mark.parametrize(
    "estimator",
    [Replay(), Backprop(), Forward(), Blend(), Imitate(Replay(), SGD()), Members(Replay())],
    ids=lambda it: type(it).__name__,
)
def test_derivatives_of_the_training_loss_are_refused_where_the_held_out_loss_counts(estimator, tmp_path):
    family = Mixture((HeldOut(Judged()),)) if isinstance(estimator, Members) else HeldOut(Judged())
    recipe = Recipe(**TINY, meta_steps=2, estimator=estimator)
    for wrong in (recipe, Recipe(**TINY, meta_steps=2, estimator=NRES(), before=recipe)):
        with pytest.raises(ValueError, match=f"{type(estimator).__name__} follows the derivatives of the losses"):
            meta_train(SGD(0.1), family, wrong, folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("estimator", [NRES(), Clone(SGD())], ids=lambda it: type(it).__name__)
def test_what_sees_losses_alone_learns_for_the_held_out_loss(estimator):
    assert not any(it.differentiates for it in (estimator, Imitate(estimator, SGD()), Members(estimator)))
    recipe = Recipe(**TINY, meta_steps=2, estimator=estimator)
    trained = meta_train(SGD(0.1), HeldOut(Judged()), recipe, watch=lambda _: None)
    assert len(trained.log.of(Stepped)) == 2 and np.isfinite(trained.best.area)


@pytest.mark.slow
def test_losses_may_be_negative():
    """A constant that is added to a loss changes nothing that is learned, no rollback and no warning."""

    class Shifted(Bowl):
        shift: float

        def loss(self, params, instance, key):
            return super().loss(params, instance, key) + self.shift

    recipe = Recipe(**TINY, meta_steps=12, meta_learning_rate=0.3, validate_every=1)
    for rate in (0.95, 0.1):  # near the best rate, which is 1, and far from it
        plain, shifted = (meta_train(SGD(rate), Shifted(shift), recipe) for shift in (0.0, -1.0))
        assert not plain.log.of(RolledBack) and not shifted.log.of(RolledBack)
        # Which of two that are nearly alike is the best, rounding decides.
        np.testing.assert_allclose(shifted.optimizer.learning_rate, plain.optimizer.learning_rate, rtol=2e-2)
    idle = Recipe(**TINY, meta_steps=3, meta_learning_rate=1e-9, validate_every=2)
    assert meta_train(Nesterov(0.1), Shifted(-1.0), idle, watch=lambda event: None).log.of(Warned)


@pytest.mark.core
def test_a_schedule_is_trained_for_the_horizon_that_it_is_validated_on():
    class Still(Bowl):
        def sample(self, key):
            return jnp.array([1.0, 0.5])

    recipe = Recipe(horizon=20, truncation=20, instances=1, meta_steps=1, validate_every=1, validation_runs=1)
    optimizer = AdamWCosine(0.05)
    trained = meta_train(optimizer, Still(), recipe)
    losses = loss_curves(optimizer, Still(), jax.random.split(jax.random.key(0), 1), 20)[0]
    np.testing.assert_allclose(trained.log.of(Stepped)[0].meta_loss, np.mean(losses[1:]), rtol=1e-5)


def test_what_follows_a_rollback_is_not_drawn_from_the_keys_of_what_was_before(monkeypatch):
    """A branch of a key is what the key of as many instances is split into."""
    keys, begin = [], loop.begin

    class Spied:
        bytes_more = staticmethod(begin.bytes_more)

        def __call__(self, *arguments):
            keys.append(arguments[-1])
            return begin(*arguments)

    monkeypatch.setattr(loop, "begin", Spied())  # the first inner problems are the learner's to draw
    recipe = Recipe(**TINY, meta_steps=20, validate_every=5, estimator=Faulty(7))
    meta_train(Nesterov(0.1), Bowl(), recipe, watch=lambda event: None)
    first = jax.random.split(jax.random.split(jax.random.key(recipe.seed))[0], 20)
    drawn = {np.asarray(jax.random.key_data(key)).tobytes() for key in keys}
    assert len(drawn) == 2
    assert not drawn & {np.asarray(jax.random.key_data(key)).tobytes() for key in first}


def test_the_seed_decides_everything():
    def theta(seed: int) -> list[bytes]:
        recipe = Recipe(**TINY, meta_steps=3, validate_every=3, seed=seed)
        return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(meta_train(SGD(0.1), Bowl(), recipe).optimizer)]

    assert theta(0) == theta(0) != theta(1)


@pytest.mark.core
def test_params_in_half_precision_can_be_meta_trained_and_resumed(tmp_path: Path):
    class Half(Bowl):
        def init(self, instance, key):
            return instance.astype(jnp.bfloat16)

        def loss(self, params, instance, key):
            return 0.5 * jnp.sum(params.astype(jnp.float32) ** 2)

    recipe = Recipe(**TINY, meta_steps=2, validate_every=1)
    optimizer = LSTM(jax.random.key(0), (2,))
    trained = meta_train(optimizer, Half(), recipe, folder=tmp_path)
    again = meta_train(optimizer, Half(), recipe, folder=tmp_path, resume=True)
    for name, tensor in to_portable(trained.optimizer).tensors.items():
        assert tensor.dtype == np.float32
        np.testing.assert_array_equal(to_portable(again.optimizer).tensors[name], tensor)


class Descent(Optimizer):
    """A rule of one's own that remembers nothing."""

    log_rate: jax.Array

    def init(self, params):
        return None

    def update(self, grads, state, params=None, *, value=None, key=None):
        return jax.tree.map(lambda grad: (-jnp.exp(self.log_rate) * grad).astype(grad.dtype), grads), state


@pytest.mark.parametrize(
    "estimator",
    [
        *(Replay(), PES()),
        *(
            pytest.param(it, marks=pytest.mark.slow)
            for it in (Replay(segment=1), Forward(), NRES(), Imitate(Replay(), SGD()), Clone(SGD()))
        ),
    ],
    ids=repr,
)
def test_a_state_of_none_is_told_from_parts_that_are_none(estimator):
    """As a model of Equinox has them that is filtered for its arrays."""

    class Holes(Bowl):
        def sample(self, key):
            return {"start": super().sample(key), "nothing": None}

        def init(self, instance, key):
            return [None, instance["start"], None]

        def loss(self, params, instance, key):
            return 0.5 * jnp.sum(params[1] ** 2)

    recipe = Recipe(**TINY, meta_steps=2, estimator=estimator)
    trained = meta_train(Descent(jnp.asarray(-1.0)), Holes(), recipe, watch=lambda event: None)
    assert len(trained.log.of(Stepped)) == 2 and np.isfinite(trained.best.area)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_meta_parameters_keep_their_dtype_and_the_run_can_be_resumed(dtype, tmp_path: Path):
    rule, recipe = Descent(jnp.asarray(-1.0, dtype)), Recipe(**TINY, meta_steps=2)
    trained = meta_train(rule, Bowl(), recipe, folder=tmp_path, watch=lambda event: None)
    assert trained.optimizer.log_rate.dtype == dtype and trained.optimizer.log_rate != rule.log_rate
    again = meta_train(rule, Bowl(), recipe, folder=tmp_path, resume=True, watch=lambda event: None)
    assert again.optimizer.log_rate == trained.optimizer.log_rate


def test_that_no_loss_has_a_logarithm_is_told():
    class Below(Bowl):
        def loss(self, params, instance, key):
            return super().loss(params, instance, key) - 1_000

    recipe = Recipe(**TINY, meta_steps=20, estimator=NRES(log=True))
    with pytest.raises(FloatingPointError, match="no window counted: losses or gradients are not finite"):
        meta_train(Descent(jnp.asarray(-1.0)), Below(), recipe, watch=lambda event: None)


def test_data_that_every_device_would_have_a_copy_of_must_fit(monkeypatch, tmp_path):
    """Devices of one machine's cores share its memory."""

    class Large(Bowl):
        data: jax.Array = eqx.field(default_factory=lambda: jnp.zeros(1000))

    mesh = Mesh(np.array(jax.devices()[:1]), ("instances",))
    monkeypatch.setattr(Devices, "sharing", classmethod(lambda cls, instances: cls(mesh, 0)))
    monkeypatch.setattr(Devices, "count", 2)
    monkeypatch.setattr(loop, "bytes_available", lambda devices: 3_999)
    with pytest.raises(MemoryError, match=r"3.906 KiB of memory for the family's data on each device.*JAX_NUM_CPU_DEV"):
        meta_train(SGD(), Large(), Recipe(**TINY), folder=tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_idle_devices_are_told(monkeypatch):
    monkeypatch.setattr(Devices, "sharing", classmethod(lambda cls, instances: cls(None, 2)))
    assert not meta_train(SGD(), Bowl(), Recipe(**TINY, meta_steps=1)).log.of(Warned)  # cores are not idle
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    told = meta_train(SGD(), Bowl(), Recipe(**TINY, meta_steps=1)).log.of(Warned)
    assert any("2 of 3 devices stay idle: 2 instances" in it.message and "multiple of 3" in it.message for it in told)


def test_a_family_that_cannot_work_is_refused_before_anything_is_written(tmp_path: Path):
    class Lost(Bowl):
        def loss(self, params, instance, key):
            return jnp.sum(params) * jnp.nan

    with pytest.raises(ValueError, match=r"Lost\.loss is nan at the start"):
        meta_train(SGD(), Lost(), Recipe(**TINY, meta_steps=1), folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"horizon": 0}, "horizon is 0"),
        ({"horizon": 2**31}, "horizon is 2147483648, which nothing counts to"),
        ({"truncation": -1}, "truncation is -1"),
        ({"instances": 0}, "instances is 0"),
        ({"meta_steps": 0}, "meta_steps is 0"),
        ({"meta_learning_rate": 0.0}, "meta_learning_rate is 0"),
        ({"meta_learning_rate": float("nan")}, "meta_learning_rate is nan"),
        ({"clip": -1.0}, "clip is -1"),
        ({"validate_every": 0}, "validate_every is 0"),
        ({"validation_runs": 0}, "validation_runs is 0"),
        ({"final_window": 0}, "final_window is 0"),
        ({"final_window": 11, "horizon": 10, "truncation": 5}, "final_window is 11, longer than the horizon of 10"),
    ],
    ids=str,
)
def test_a_recipe_that_cannot_work_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**settings)
