"""The character model: causal, a proper likelihood, and with a text of its own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bygrad.problems import CharacterModel, check_family


@pytest.fixture(scope="module")
def model() -> CharacterModel:
    text = jnp.asarray(np.random.default_rng(0).integers(0, 5, 60), jnp.uint8)
    return CharacterModel(text, characters=5, width=8, heads=2, window=6, batch=3)


@pytest.mark.slow
def test_it_starts_near_the_uniform_distribution_and_has_gradients(model):
    params = check_family(model, jax.random.key(0))
    assert set(params) > {"attend", "output", "characters", "places"}
    loss = float(model.loss(params, (), None))
    assert loss == pytest.approx(np.log(5), abs=1.0)
    assert loss > 0


def test_a_prediction_does_not_see_what_comes_after_it(model):
    params = model.init((), jax.random.key(1))
    codes = jnp.arange(6)[None] % 5
    before = model.logits(params, codes)
    after = model.logits(params, codes.at[0, 4].set(0))
    np.testing.assert_allclose(before[0, :4], after[0, :4], rtol=1e-5)
    assert np.abs(before[0, 4:] - after[0, 4:]).max() > 1e-3


def test_the_objective_is_the_mean_over_windows_side_by_side(model):
    params = model.init((), jax.random.key(1))
    losses = []
    for start in range(0, 54, 6):
        window = np.asarray(model.text[start : start + 7], int)
        scores = jax.nn.log_softmax(model.logits(params, jnp.asarray(window[None, :-1]))[0])
        losses.append(-np.mean(np.asarray(scores)[np.arange(6), window[1:]]))
    np.testing.assert_allclose(model.loss(params, (), None), np.mean(losses), rtol=1e-5)


@pytest.mark.slow
def test_minibatches_come_from_all_windows(model):
    params = model.init((), jax.random.key(1))
    windows = model.text[np.arange(54)[:, None] + np.arange(7)].astype(int)
    scores = jax.nn.log_softmax(model.logits(params, windows[:, :-1]))
    losses = -np.mean(np.take_along_axis(np.asarray(scores), np.asarray(windows)[:, 1:, None], axis=2), axis=(1, 2))
    drawn = jax.vmap(lambda key: model.loss(params, (), key))(jax.random.split(jax.random.key(2), 4000))
    error = losses.std() / (3 * 4000) ** 0.5
    assert abs(np.mean(drawn) - losses.mean()) < 4 * error
    np.testing.assert_allclose(np.std(drawn), losses.std() / 3**0.5, rtol=0.05)


def test_the_text_that_comes_with_the_package_is_divided():
    train, test = (CharacterModel.embedded(split) for split in ("train", "test"))
    assert train.characters == test.characters
    assert len(train.text) > 8 * len(test.text)
    assert int(max(train.text.max(), test.text.max())) == train.characters - 1


def test_the_held_out_part_of_a_text_is_not_trained_on(model):
    kept = dataclasses.replace(model, held_out=25)
    params, key = model.init((), jax.random.key(1)), jax.random.key(3)
    first, last = (dataclasses.replace(model, text=part) for part in (model.text[:35], model.text[35:]))
    for loss, part in ((kept.loss, first), (kept.held_out_loss, last)):
        np.testing.assert_allclose(loss(params, (), None), part.loss(params, (), None), rtol=1e-6)
    drawn = jax.vmap(lambda key: kept.held_out_loss(params, (), key))(jax.random.split(key, 4000))
    alone = jax.vmap(lambda key: last.loss(params, (), key))(jax.random.split(key, 4000))
    assert abs(np.mean(drawn) - np.mean(alone)) < 4 * np.std(alone) / 4000**0.5 * 2**0.5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"width": 9}, "a width that the heads divide"),
        ({"scale": -1.0}, "scale >= 0"),
        ({"window": 60}, "longer text"),
        ({"held_out": 6}, "longer text"),
        ({"held_out": 54}, "longer text"),
    ],
)
def test_what_does_not_exist_is_refused(model, options, words):
    with pytest.raises(ValueError, match=words):
        CharacterModel(model.text, characters=5, **{"width": 8, "heads": 2, "window": 6} | options)
