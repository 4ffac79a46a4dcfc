"""Estimators from random directions: unbiased where they say so, and honest about noise, clipping and losses."""

import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bygrad.metagrads import (
    ESTIMATORS,
    NRES,
    PES,
    Backprop,
    Blend,
    Estimate,
    Estimator,
    Forward,
    FullES,
    Imitate,
    Members,
    TruncatedES,
    signal_to_noise,
)
from bygrad.metagrads import particles as pairs
from bygrad.metagrads.blend import _precision
from bygrad.optimizers import Adam, Optimizer
from bygrad.problems import Mixture, ProblemFamily
from bygrad.unroll import Windows

HORIZON, TARGET, THETA = 4, np.array([1.0, -2.0]), np.array([0.3, 0.1])


class Drift(Optimizer):
    """Adds its meta-parameters at every step: params are linear in them, and a quadratic loss is quadratic in them."""

    step: jax.Array

    def init(self, params):
        return ()

    def update(self, grads, state, params=None, *, value=None, key=None):
        return self.step, state


class Bowl(ProblemFamily):
    """Half the squared distance to a target, times `scale`; `lost` of the instances are not numbers."""

    scale: float = eqx.field(static=True, default=1.0)
    lost: float = eqx.field(static=True, default=0.0)

    def sample(self, key):
        return jax.random.uniform(key) < self.lost

    def init(self, instance, key):
        return jnp.zeros(2)

    def loss(self, params, instance, key):
        value = 0.5 * self.scale * jnp.sum(jnp.square(params - jnp.array(TARGET)))
        return jnp.where(instance & (params[0] != 0), jnp.nan, value)


# The mean over s = 1..T of s (s θ - c): the meta-loss is a quadratic, so smoothing leaves its gradient as it is.
SLOPES = np.array([s * (s * THETA - TARGET) for s in range(1, HORIZON + 1)])
EXACT = np.mean(SLOPES, axis=0)


def estimates(
    estimator: Estimator, truncation: int, draws: int, particles: int = 1, family: ProblemFamily | None = None
) -> np.ndarray:
    """Means over the windows of one run of independent estimates, `[draws, 2]`."""

    @functools.partial(jax.vmap, in_axes=(0, None))
    def draw(key: jax.Array, theta: jax.Array) -> jax.Array:
        optimizer, windows = Drift(theta), Windows(family or Bowl(), HORIZON, truncation, particles)
        state, total = estimator.init(optimizer, windows, key), jnp.zeros(2)
        for _ in range(HORIZON // truncation):
            estimate, state = estimator.estimate(optimizer, windows, state)
            total += estimate.gradient.step
        return total * truncation / HORIZON

    return np.asarray(jax.jit(draw)(jax.random.split(jax.random.key(0), draws), jnp.array(THETA)), np.float64)


def standard_errors(draws: np.ndarray, exact: np.ndarray = EXACT) -> np.ndarray:
    """How many standard errors the mean of the draws is away from the exact meta-gradient."""
    return (draws.mean(0) - exact) / (draws.std(0, ddof=1) / np.sqrt(len(draws)))


@pytest.mark.core
@pytest.mark.parametrize(
    ("estimator", "truncation"),
    [(FullES(0.1), 4), (NRES(0.1), 2), (NRES(0.1), 1), (PES(0.1), 2), (PES(0.1), 1), (Forward(), 2)],
    ids=lambda it: type(it).__name__ if isinstance(it, Estimator) else str(it),
)
def test_unbiased_estimators_give_the_exact_meta_gradient_on_average(estimator, truncation):
    assert not estimator.biased
    draws = estimates(estimator, truncation, 4_000)
    assert np.all(draws.std(0) > 0)
    assert np.all(np.abs(standard_errors(draws)) < 4)


@pytest.mark.parametrize(
    ("estimator", "truncation"), [(NRES(0.1, late=3.0), 2), (NRES(0.1, late=1.5), 1), (PES(0.1, late=3.0), 2)]
)
def test_late_losses_count_by_a_power_of_time(estimator, truncation):
    # What part of the integral of (k + 1) t^k falls into a window is the weight of its mean loss.
    ends = np.linspace(0, 1, HORIZON // truncation + 1) ** (estimator.late + 1)
    means = SLOPES.reshape(-1, truncation, 2).mean(1)
    draws = estimates(estimator, truncation, 4_000)
    assert np.all(np.abs(standard_errors(draws, np.diff(ends) @ means)) < 4)
    assert np.max(np.abs(standard_errors(draws))) > 10  # the mean over the run is another


def test_a_window_that_is_the_whole_run_counts_as_ever():
    plain, late = (estimates(FullES(0.1, late=late), HORIZON, 4) for late in (None, 3.0))
    np.testing.assert_allclose(late, plain, rtol=1e-6)


@pytest.mark.slow
def test_the_robust_form_keeps_what_late_losses_count_for():
    plain, late = (one_step(NRES(robust=True, late=late), Bowl())[0] for late in (None, 1.0))
    np.testing.assert_allclose(late.losses, plain.losses)
    # By NumPy. The second half of the pairs begins as if in the middle of a run: of t^2, a quarter lies before it.
    differences, directions = pairs_of(NRES())
    cut = np.clip(differences / np.median(np.abs(differences)), -3, 3) * np.repeat([0.5, 1.5], 32)
    np.testing.assert_allclose(late.gradient.step, np.mean(cut[:, None] / NRES().sigma * directions, axis=0), rtol=1e-3)


def test_truncated_evolution_strategies_fail_that_test():
    assert TruncatedES().biased
    assert np.max(np.abs(standard_errors(estimates(TruncatedES(0.1), 2, 4_000)))) > 10
    assert np.all(np.abs(standard_errors(estimates(TruncatedES(0.1), 4, 4_000))) < 4)  # a whole run is no truncation


def test_the_blend_follows_the_more_precise_of_two():
    # Backpropagation through a run without noise is exact, and so is the blend, whatever the directions.
    draws = estimates(Blend(0.1), 4, 20, particles=8)
    directions = estimates(FullES(0.1), 4, 20, particles=8)
    assert np.linalg.norm(draws - EXACT, axis=1).max() < np.linalg.norm(directions - EXACT, axis=1).mean() / 5


class Rippled(Bowl):
    """The bowl with ripples: next to nothing in the loss, and in the gradient either noise or not a number."""

    height: float = eqx.field(static=True, default=0.0)

    def loss(self, params, instance, key):
        ripples = self.height * jnp.sum(jnp.sin(1e5 * params)) if self.height else 0 * jnp.sqrt(0 * params @ params)
        return super().loss(params, instance, key) + ripples


def test_the_blend_is_evolution_strategies_where_backpropagation_gives_no_number():
    (blend, _), (directions, _) = (one_step(it, Rippled()) for it in (Blend(0.1), TruncatedES(0.1)))
    np.testing.assert_allclose(blend.gradient.step, directions.gradient.step, rtol=1e-5)
    assert np.all(np.isfinite(blend.gradient.step))


def test_the_blend_leaves_out_backpropagation_where_it_is_noise():
    ours, theirs = (
        np.linalg.norm(estimates(it, 4, 20, particles=64, family=Rippled(height=1e-3)) - EXACT, axis=1).mean()
        for it in (Blend(0.1), FullES(0.1))
    )
    assert ours < 1.2 * theirs


def one_step(estimator: Estimator, family: ProblemFamily, particles: int = 64) -> tuple[Estimate, object]:
    optimizer, windows = Drift(jnp.array(THETA)), Windows(family, HORIZON, 2, particles)
    state = estimator.init(optimizer, windows, jax.random.key(1))
    return estimator.estimate(optimizer, windows, state)


@pytest.mark.core
@pytest.mark.parametrize("estimator", [NRES(), PES(), TruncatedES(), Forward()], ids=lambda it: type(it).__name__)
def test_lost_particles_are_counted_left_out_and_replaced(estimator):
    whole, _ = one_step(estimator, Bowl())
    estimate, state = one_step(estimator, Bowl(lost=0.25))
    gone = ~np.isfinite(np.asarray(estimate.losses))
    assert 0 < gone.sum() < 32
    assert float(estimate.lost) == pytest.approx(gone.mean())
    assert np.all(np.isfinite(estimate.gradient.step))
    # All losses are alike, so leaving some out must not pull the mean towards zero.
    np.testing.assert_allclose(estimate.loss, np.mean(np.asarray(whole.losses)[~gone]), rtol=1e-5)
    assert float(whole.lost) == 0
    inner = state.inner
    np.testing.assert_array_equal(np.asarray(inner.step) >= HORIZON, gone | (np.asarray(inner.step) >= HORIZON))
    optimizer, windows = Drift(jnp.array(THETA)), Windows(Bowl(lost=0.25), HORIZON, 2, 64)
    _, after = estimator.estimate(optimizer, windows, state)
    assert np.all(np.asarray(after.inner.key != inner.key)[gone])


class Root(ProblemFamily):
    """A loss that ends where params turn negative."""

    def sample(self, key):
        return ()

    def init(self, instance, key):
        return jnp.ones(1)

    def loss(self, params, instance, key):
        return 1 + jnp.sum(jnp.sqrt(params))


@pytest.mark.parametrize("size", [0.9, pytest.param(0.99, marks=pytest.mark.slow), 0.999])
@pytest.mark.parametrize("form", [{"robust": True}, {"largest": 0.5}, {"largest": 0.5, "log": True}], ids=str)
def test_the_one_of_a_pair_that_fails_has_lost(size, form):
    """Longer steps are better until the loss has no value any more: the more of them fail, the shorter they must be."""
    windows, optimizer = Windows(Root(), 1, 1, 512), Drift(-jnp.array([size]))
    estimator = NRES(**form)
    estimate, _ = estimator.estimate(optimizer, windows, estimator.init(optimizer, windows, jax.random.key(0)))
    assert float(estimate.lost) == 0 and np.isfinite(float(estimate.loss))
    assert (float(estimate.clipped) > 0.5) == (size > 0.98)
    assert np.sign(float(estimate.gradient.step[0])) == (-1 if size > 0.98 else 1)  # of a negative step


def test_without_a_particle_left_there_is_no_estimate():
    estimate, _ = one_step(NRES(), Bowl(lost=1.0))
    assert float(estimate.lost) == 1
    assert np.all(np.isnan(estimate.gradient.step))


def test_the_robust_form_does_not_see_the_scale_of_the_loss_and_clips():
    plain, robust, scaled = (
        one_step(estimator, Bowl(scale=scale), particles=1024)[0]
        for estimator, scale in ((NRES(), 1.0), (NRES(robust=True), 1.0), (NRES(robust=True), 1e4))
    )
    np.testing.assert_allclose(robust.gradient.step, scaled.gradient.step, rtol=1e-3)
    assert float(plain.clipped) == 0
    # Three medians are two standard deviations where differences are normal, beyond which is a part of 0.043.
    assert 0.01 < float(robust.clipped) < 0.15
    cosine = np.dot(plain.gradient.step, robust.gradient.step)
    assert cosine > 0.8 * np.linalg.norm(plain.gradient.step) * np.linalg.norm(robust.gradient.step)


def test_differences_are_cut_and_keep_their_sizes():
    plain, doubled = (
        one_step(estimator, Bowl(scale=scale))[0] for estimator, scale in ((NRES(), 1.0), (NRES(largest=1e6), 2.0))
    )
    np.testing.assert_allclose(2 * plain.gradient.step, doubled.gradient.step, rtol=1e-4)
    assert float(doubled.clipped) == 0
    # Where all are cut, only their signs are left.
    small, smaller = (one_step(NRES(largest=largest), Bowl())[0] for largest in (1e-7, 1e-8))
    assert float(small.clipped) == float(smaller.clipped) == 1
    np.testing.assert_allclose(small.gradient.step, 10 * smaller.gradient.step, rtol=1e-4)
    # In between, by NumPy.
    differences, directions = pairs_of(NRES())
    largest = float(np.sort(np.abs(differences))[32:34].mean())
    estimate = one_step(NRES(largest=largest), Bowl())[0]
    assert float(estimate.clipped) == pytest.approx(31 / 64)
    expected = np.mean(np.clip(differences, -largest, largest)[:, None] / NRES().sigma * directions, axis=0)
    np.testing.assert_allclose(estimate.gradient.step, expected, rtol=1e-3)


def pairs_of(estimator: NRES) -> tuple[np.ndarray, np.ndarray]:
    """Return half the differences of the losses of the pairs of `one_step`, and their directions."""
    optimizer, windows = Drift(jnp.array(THETA)), Windows(Bowl(), HORIZON, 2, 64)
    state = pairs.renew(optimizer, windows, estimator.init(optimizer, windows, jax.random.key(1)))
    direction = estimator.directions(optimizer, state.inner)
    _, losses = pairs.run_pairs(optimizer, windows, state.inner, direction, estimator.sigma)
    return np.asarray(losses[0] - losses[1]) / 2, np.asarray(direction.step)


def test_logarithms_make_differences_relative():
    plain, scaled = (one_step(NRES(log=True), Bowl(scale=scale))[0] for scale in (1.0, 1e3))
    np.testing.assert_allclose(plain.gradient.step, scaled.gradient.step, rtol=1e-3)


def test_negative_losses_have_no_logarithm_and_are_lost():
    class Sunken(Bowl):
        def loss(self, params, instance, key):
            return super().loss(params, instance, key) - 10

    estimate, _ = one_step(NRES(log=True), Sunken())
    assert float(estimate.lost) == 1
    assert np.all(np.isnan(estimate.gradient.step))
    assert float(one_step(NRES(), Sunken())[0].lost) == 0


def test_the_signal_to_noise_ratio_is_that_of_the_particles():
    rng = np.random.default_rng(0)
    gradients = rng.standard_normal((50, 3)) + np.array([1.0, 0.0, 0.0])
    mean = gradients.mean(0)
    covariance = np.cov(gradients.T)
    expected = mean @ mean / (np.trace(covariance) / 50)
    ours = signal_to_noise(
        jnp.linalg.norm(jnp.array(mean)), jnp.mean(jnp.sum(jnp.array(gradients) ** 2, 1)), jnp.array(50.0)
    )
    assert float(ours) == pytest.approx(expected, rel=1e-4)


def test_of_a_single_particle_and_of_particles_all_alike_rounding_says_nothing():
    gradients = np.random.default_rng(0).standard_normal((100, 30)).astype(np.float32)
    norms, squares = np.linalg.norm(gradients, axis=1), np.sum(np.square(gradients), axis=1)
    assert np.any(squares > np.square(norms)) and np.any(squares < np.square(norms))
    assert np.all(np.isnan(jax.vmap(lambda *one: signal_to_noise(*one, jnp.array(1.0)))(norms, squares)))
    alike = jax.vmap(lambda *one: signal_to_noise(*one, jnp.array(8.0)))(norms, squares)
    assert np.all(np.isfinite(alike)) and np.all(np.asarray(alike) > 1e5)
    estimate, _ = one_step(NRES(), Bowl(), particles=1)
    norm = jnp.linalg.norm(estimate.gradient.step)
    assert np.isnan(signal_to_noise(norm, estimate.square, 1 - estimate.lost))


@pytest.mark.core
def test_members_of_a_pair_share_everything_random():
    class Noisy(Bowl):
        def loss(self, params, instance, key):
            return jnp.sum(params * jax.random.normal(key, (2,)))

    _, state = one_step(NRES(sigma=1e-9), Noisy())
    for leaf in jax.tree.leaves(state.inner.params):
        np.testing.assert_allclose(leaf[0], leaf[1], atol=1e-6)


@pytest.mark.core
def test_the_meta_gradient_of_a_mixture_is_the_mean_over_its_members():
    mixture = Mixture((Bowl(), Bowl(scale=3.0)), (1.0, 2.0))
    estimate, state = one_step(Members(NRES()), mixture)
    optimizer, parts = Drift(jnp.array(THETA)), []
    for i, member in enumerate(mixture.members):
        windows = Windows(member, HORIZON, 2, 64)
        start = NRES().init(optimizer, windows, jax.random.fold_in(jax.random.key(1), i))
        parts.append(NRES().estimate(optimizer, windows, start)[0])
    np.testing.assert_allclose(estimate.gradient.step, np.mean([it.gradient.step for it in parts], axis=0), rtol=1e-5)
    np.testing.assert_allclose(estimate.loss, (parts[0].loss + 2 * parts[1].loss) / 2, rtol=1e-5)
    ratios = [
        float(signal_to_noise(jnp.linalg.norm(it.gradient.step), it.square, jnp.array(64.0)))
        for it in (*parts, estimate)
    ]
    assert ratios[2] > min(ratios[:2])
    axes = Members(NRES()).axes(optimizer, state)
    assert jax.tree.structure(axes) == jax.tree.structure(state)
    with pytest.raises(TypeError, match="needs a Mixture, but the family is Bowl"):
        one_step(Members(NRES()), Bowl())


@pytest.mark.slow
def test_members_say_of_particles_what_their_estimator_does():
    mixture = Mixture((Bowl(lost=0.5), Bowl()), (1.0, 1.0))
    estimate, _ = one_step(Members(Backprop()), mixture)
    assert (estimate.square, estimate.clipped, estimate.lost) == (None, None, None)
    known, _ = one_step(Members(NRES()), mixture)
    assert 0.1 < float(known.lost) < 0.4 and known.clipped == 0  # a half of one of the two
    imitating, _ = one_step(Members(Imitate(NRES(), Adam())), mixture)
    assert float(imitating.square) > 0 and 0.1 < float(imitating.lost) < 0.4


def test_what_cannot_work_is_refused():
    with pytest.raises(ValueError, match="sigma is 0"):
        NRES(0.0)
    with pytest.raises(ValueError, match="FullES looks at whole runs, but the truncation is 2 and the horizon 4"):
        one_step(FullES(), Bowl())
    with pytest.raises(
        ValueError, match=r"A meta-step has 1 instance, .* Raise instances \(--instances\) to 2 or more"
    ):
        one_step(Blend(), Bowl(), particles=1)
    with pytest.raises(ValueError, match="sigma is 0"):
        Blend(0.0)
    with pytest.raises(ValueError, match="largest is -1"):
        NRES(largest=-1.0)
    with pytest.raises(ValueError, match="late is -1"):
        NRES(late=-1.0)
    with pytest.raises(ValueError, match="Choose one of the two"):
        PES(robust=True, largest=1.0)


def test_estimators_say_whether_they_are_biased():
    made = {name: kind() for name, kind in ESTIMATORS.items() if name not in ("Imitate", "Clone")}
    assert [name for name, it in made.items() if not it.biased] == ["FullES", "PES", "NRES", "Forward"]
    # What divides by a median, or takes logarithms, has another mean.
    for kind in (FullES, PES, NRES):
        assert kind(robust=True).biased and kind(log=True).biased and kind(largest=1.0).biased
    assert not Members(NRES()).biased and Members(TruncatedES()).biased


def test_precisions_are_those_of_the_instances_of_all_devices():
    """By `vmap` over parts in the place of devices; one instance is lost, and one number of another is not finite."""
    draw = np.random.default_rng(0).normal(1, [1, 2, 3], (8, 3)).astype(np.float32)
    draw[2, 1], live = np.inf, np.arange(8) != 5
    draw[5] = np.nan
    windows = Windows(Bowl(), 4, 4, 4, axis="devices")

    def part(gradients, live):
        return _precision(windows, gradients, live)

    parts = jax.vmap(part, axis_name="devices")(draw.reshape(2, 4, 3), live.reshape(2, 4))
    whole = _precision(dataclasses.replace(windows, axis=None), jnp.asarray(draw), jnp.asarray(live))
    expected = 1 / np.var(draw[live][:, [0, 2]], axis=0)
    for found in (*parts, whole):
        np.testing.assert_allclose(found[jnp.array([0, 2])], expected, rtol=1e-5)
        assert found[1] == 0
