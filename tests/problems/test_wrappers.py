"""Families made from families: judged by held-out data, and several side by side."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bygrad.optimizers import Controller
from bygrad.problems import (
    CharacterModel,
    HeldOut,
    Mixture,
    MLPClassifier,
    ProblemFamily,
    Quadratic,
    RandomScale,
    RandomStart,
    check_family,
    hold_out,
    is_held_out,
)
from bygrad.unroll import loss_curves

KEY = jax.random.key(0)


def perceptron(held_out: int = 0) -> MLPClassifier:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (30, 6), dtype=np.uint8), rng.integers(0, 3, 30, dtype=np.int32)
    return MLPClassifier(jnp.asarray(images), jnp.asarray(labels), 3, hidden=4, scale=1.0, batch=5, held_out=held_out)


def test_held_out_images_are_not_trained_on():
    family = perceptron(held_out=10)
    params = family.init((), KEY)
    first = MLPClassifier(family.images[:20], family.labels[:20], 3, hidden=4)
    last = MLPClassifier(family.images[20:], family.labels[20:], 3, hidden=4)
    np.testing.assert_allclose(family.loss(params, (), None), first.loss(params, (), None), rtol=1e-6)
    np.testing.assert_allclose(family.held_out_loss(params, (), None), last.loss(params, (), None), rtol=1e-6)
    np.testing.assert_array_equal(family.loss(params, (), KEY), first_batch(first, params))


def first_batch(family: MLPClassifier, params: object) -> jax.Array:
    smaller = MLPClassifier(family.images, family.labels, 3, hidden=4, batch=5)
    return smaller.loss(params, (), KEY)


def test_a_family_judged_by_held_out_data_has_its_value_and_the_gradient_of_the_training_loss():
    family = perceptron(held_out=10)
    judged = HeldOut(family)
    params = check_family(judged, KEY)
    value, grads = jax.value_and_grad(judged.loss)(params, (), None)
    np.testing.assert_allclose(value, family.held_out_loss(params, (), None), rtol=1e-6)
    for ours, theirs in zip(
        jax.tree.leaves(grads), jax.tree.leaves(jax.grad(family.loss)(params, (), None)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    drawn = family.held_out_loss(params, (), jax.random.fold_in(KEY, 0x4E1D))  # its own minibatch, not that trained on
    np.testing.assert_allclose(judged.loss(params, (), KEY), drawn, rtol=1e-6)
    noisy = jax.grad(judged.loss)(params, (), KEY)
    for ours, theirs in zip(
        jax.tree.leaves(noisy), jax.tree.leaves(jax.grad(family.loss)(params, (), KEY)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_a_family_without_held_out_data_says_so():
    for family in (Quadratic(2), perceptron()):
        with pytest.raises(NotImplementedError, match=f"{type(family).__name__} has no held-out data"):
            family.held_out_loss(family.init(family.sample(KEY), KEY), family.sample(KEY), KEY)
    with pytest.raises(NotImplementedError, match=r"^MLPClassifier has no held-out data.* Give held_out="):
        check_family(HeldOut(perceptron()), KEY)
    with pytest.raises(ValueError, match="held_out is 30 of 30 entries"):
        perceptron(held_out=30)


def test_the_last_fifth_is_held_out_or_as_much_as_is_asked_for():
    text = CharacterModel(jnp.arange(50, dtype=jnp.uint8) % 5, characters=5, window=6)
    for family, size in ((perceptron(), 30), (text, 50)):
        assert hold_out(family).held_out == size // 5
        assert hold_out(hold_out(family, 12)).held_out == 12
        assert hold_out(hold_out(family, 12), 9).held_out == 9
    inside = hold_out(RandomStart(perceptron()), 7)
    assert inside.family.held_out == 7
    check_family(HeldOut(inside), KEY)
    assert hold_out(Quadratic(2)) == Quadratic(2)
    with pytest.raises(ValueError, match="Quadratic has no images or text of which the last 7"):
        hold_out(Quadratic(2), 7)


def test_a_held_out_family_is_found_inside_of_others():
    judged = HeldOut(perceptron(held_out=10))
    assert all(map(is_held_out, (judged, RandomStart(judged), Mixture((Quadratic(2), judged)))))
    assert not any(map(is_held_out, (judged.family, Mixture((Quadratic(2), judged.family)))))


def test_a_mixture_is_all_of_its_members_side_by_side():
    members = (Quadratic(3), perceptron(), Quadratic(2, "gaussian"))
    family = Mixture(members, (1.0, 0.5, 2.0))
    params = check_family(family, KEY)
    instance = family.sample(KEY)
    keys = [jax.random.fold_in(KEY, i) for i in range(3)]
    terms = [
        weight * member.loss(part, piece, key)
        for weight, member, part, piece, key in zip(family.weights, members, params, instance, keys, strict=True)
    ]
    np.testing.assert_allclose(family.loss(params, instance, KEY), sum(terms) / 3, rtol=1e-6)
    assert instance[0][0].shape == (3, 3) and instance[2][0].shape == (2, 2)
    with pytest.raises(ValueError, match="2 families with 1 weights"):
        Mixture(members[:2], (1.0,))


def test_a_mixture_is_judged_by_the_held_out_data_of_its_members():
    family = hold_out(Mixture((perceptron(), RandomStart(perceptron())), (1.0, 0.5)), 10)
    params, instance = check_family(HeldOut(family), KEY), family.sample(KEY)
    keys = [jax.random.fold_in(KEY, i) for i in range(2)]
    one, other = (
        member.held_out_loss(part, piece, key)
        for member, part, piece, key in zip(family.members, params, instance, keys, strict=True)
    )
    np.testing.assert_allclose(family.held_out_loss(params, instance, KEY), (one + 0.5 * other) / 2, rtol=1e-6)
    with pytest.raises(NotImplementedError, match=r"^Quadratic has no held-out data"):
        check_family(HeldOut(Mixture((perceptron(10), Quadratic(2)))), KEY)


def test_random_units_change_the_gradients_and_not_the_losses():
    family = perceptron(held_out=10)
    scaled = RandomScale(family, spread=2.0)
    check_family(scaled, KEY)
    instance = scaled.sample(KEY)
    params, plain = scaled.init(instance, KEY), family.init((), KEY)
    for loss in ("loss", "held_out_loss"):
        np.testing.assert_allclose(
            getattr(scaled, loss)(params, instance, KEY), getattr(family, loss)(plain, (), KEY), rtol=1e-6
        )
    ours, theirs = jax.grad(scaled.loss)(params, instance, KEY), jax.grad(family.loss)(plain, (), KEY)
    for a, b, scale in zip(*map(jax.tree.leaves, (ours, theirs, instance[1])), strict=True):
        np.testing.assert_allclose(a, scale * b, rtol=2e-5, atol=1e-7)
    units = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(instance[1])])
    assert np.all(np.abs(np.log(units)) <= 2.0) and np.unique(units).size == units.size
    assert np.log(units).min() < -1.5 and np.log(units).max() > 1.5  # as often smaller as larger
    assert not np.array_equal(jax.tree.leaves(scaled.sample(jax.random.key(1))[1])[0], jax.tree.leaves(instance[1])[0])
    with pytest.raises(ValueError, match="spread is 50"):
        RandomScale(family, spread=50.0)


def test_a_random_start_scales_the_initial_params_and_nothing_else():
    family = perceptron(held_out=10)
    begun = RandomStart(family, 0.1, 1e3)
    check_family(begun, KEY)
    instances = jax.vmap(begun.sample)(jax.random.split(KEY, 500))
    logarithms = np.log10(np.stack([np.asarray(leaf) for leaf in jax.tree.leaves(instances[1])]))
    assert logarithms.shape == (4, 500) and logarithms.min() >= -1 and logarithms.max() <= 3
    deviation = 4 / 12**0.5  # of a uniform number between -1 and 3
    np.testing.assert_allclose(logarithms.mean(axis=1), 1.0, atol=4 * deviation / 500**0.5)
    np.testing.assert_allclose(np.corrcoef(logarithms), np.eye(4), atol=4 / 500**0.5)  # of every tensor its own
    instance = begun.sample(KEY)
    own, params = family.init((), KEY), begun.init(instance, KEY)
    for ours, factor, theirs in zip(*map(jax.tree.leaves, (params, instance[1], own)), strict=True):
        np.testing.assert_allclose(ours, factor * theirs, rtol=1e-6)
    for name in ("loss", "held_out_loss"):
        np.testing.assert_array_equal(getattr(begun, name)(own, instance, KEY), getattr(family, name)(own, (), KEY))
    for low, high in ((0.0, 1.0), (2.0, 1.0), (1.0, float("inf"))):
        with pytest.raises(ValueError, match="no factor can be drawn"):
            RandomStart(family, low, high)


@pytest.mark.parametrize("judged", [pytest.param(False, marks=pytest.mark.slow), True])
def test_runs_on_a_mixture_are_runs_on_each_member_by_itself(judged):
    members = perceptron(10), RandomStart(perceptron(10))
    mixture = Mixture(members, (1.0, 3.0))
    family = HeldOut(mixture) if judged else mixture
    # Its steps depend on how many matrices there are: in both members together it would take others.
    optimizer = eqx.tree_at(lambda it: it.powers, Controller(KEY, learning_rate=0.1), jnp.array([-0.5, 0.1]))
    keys = jax.random.split(KEY, 3)
    curves = loss_curves(optimizer, family, keys, 5)
    each = []
    for i, one in enumerate(members):
        its = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, i)
        each.append(loss_curves(optimizer, HeldOut(one) if judged else one, its, 5))
    np.testing.assert_allclose(curves, (each[0] + 3 * each[1]) / 2, rtol=1e-5)


@pytest.mark.parametrize("wrap", [RandomStart, pytest.param(RandomScale, marks=pytest.mark.slow), HeldOut, None])
def test_the_members_of_a_mixture_inside_of_another_family_run_by_themselves_too(wrap):
    members = perceptron(10), RandomStart(perceptron(10), 0.5, 2.0)
    mixture = Mixture(members, (1.0, 3.0))
    family = Mixture((mixture,), (2.0,)) if wrap is None else wrap(mixture)
    parts, weights = zip(*family.parts(), strict=True)
    assert list(map(type, parts)) == [wrap or type(member) for member in members]
    assert list(weights) == ([1.0, 3.0] if wrap is None else [0.5, 1.5])
    optimizer = eqx.tree_at(lambda it: it.powers, Controller(KEY, learning_rate=0.1), jnp.array([-0.5, 0.1]))
    keys = jax.random.split(KEY, 3)
    each = [
        weights[i] * loss_curves(optimizer, part, jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, i), 5)
        for i, part in enumerate(members if wrap is None else map(wrap, members))
    ]
    np.testing.assert_allclose(loss_curves(optimizer, family, keys, 5), each[0] + each[1], rtol=1e-5)


class StraightThrough(ProblemFamily):
    """Rounds its params, and gives a gradient as if it did not: that of the derivative is zero."""

    def sample(self, key):
        return jax.random.uniform(key, (), minval=1.0, maxval=2.0)

    def init(self, instance, key):
        return {"first": jax.random.normal(key, (3,)), "second": jnp.ones((1, 2))}

    def loss(self, params, instance, key):
        return self.value_and_grad(params, instance, key)[0]

    def value_and_grad(self, params, instance, key):
        rounded = jax.tree.map(jnp.round, params)
        return instance * sum(jnp.sum(leaf**2) for leaf in rounded.values()), scaled(2 * instance, rounded)

    def held_out_loss(self, params, instance, key):
        return jnp.sum(params["first"])


def scaled(factor, tree):
    return jax.tree.map(lambda leaf: factor * leaf, tree)


def test_families_of_families_give_the_gradient_that_is_written_by_hand():
    family = StraightThrough()
    instance, params = family.sample(KEY), {"first": jnp.array([0.2, 1.3, -2.6]), "second": jnp.ones((1, 2))}
    _, grads = family.value_and_grad(params, instance, None)
    units = {"first": jnp.array([0.5, 2.0, 1.0]), "second": jnp.full((1, 2), 4.0)}
    found = {
        "held out": HeldOut(family).value_and_grad(params, instance, None)[1],
        "random start": RandomStart(family).value_and_grad(params, (instance, None), None)[1],
        "mixture": Mixture((family, Quadratic(2)), (3.0, 1.0)).value_and_grad(
            (params, jnp.ones(2)), (instance, Quadratic(2).sample(KEY)), None
        )[1][0],
        "random scale": RandomScale(family).value_and_grad(
            jax.tree.map(jnp.divide, params, units), (instance, units), None
        )[1],
    }
    expected = {"mixture": scaled(1.5, grads), "random scale": jax.tree.map(jnp.multiply, units, grads)}
    assert float(jnp.abs(grads["first"]).max()) > 0
    for name, gradient in found.items():
        for ours, theirs in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected.get(name, grads)), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6, err_msg=name)
