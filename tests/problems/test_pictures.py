"""Embedded photographs and paintings: whole, apart from each other, joined as they were cut."""

import numpy as np
import pytest

from bygrad.problems.data.embedded import read_arrays
from bygrad.problems.data.pictures import (
    PAINTINGS,
    TEST_PHOTOGRAPHS,
    load_painting,
    load_photographs,
)


def test_the_split_is_by_photograph():
    names = [name.partition("/")[2].partition(".")[0] for name in read_arrays("photographs_64.npz")["names"]]
    assert set(TEST_PHOTOGRAPHS) < set(names)
    train, test = load_photographs("train"), load_photographs("test")
    assert len(train) + len(test) == len(names)
    assert len(test) == sum(name in TEST_PHOTOGRAPHS for name in names)
    assert not {tile.tobytes() for tile in train} & {tile.tobytes() for tile in test}


@pytest.mark.parametrize("split", ["train", "test"])
def test_larger_squares_are_joined_without_seams(split):
    """Across a seam, neighbours differ about as much as elsewhere."""
    squares = load_photographs(split, 128).astype(float)
    tiles = {tile.tobytes() for tile in load_photographs(split)}
    for square in squares:
        for i in (0, 64):
            for j in (0, 64):
                assert square[i : i + 64, j : j + 64].astype(np.uint8).tobytes() in tiles
    across, down = np.abs(np.diff(squares, axis=2)), np.abs(np.diff(squares, axis=1))
    assert across[:, :, 63].mean() < 1.3 * across.mean()
    assert down[:, 63].mean() < 1.3 * down.mean()


@pytest.mark.parametrize("name", PAINTINGS)
def test_a_smaller_painting_is_the_mean_over_squares(name):
    whole, small = load_painting(name), load_painting(name, 64)
    assert whole.shape == (256, 256, 3) and whole.dtype == small.dtype == np.uint8
    np.testing.assert_allclose(small[3, 5], whole[12:16, 20:24].mean(axis=(0, 1)), atol=0.5)


def test_a_smaller_photograph_is_the_mean_over_squares():
    whole, small = load_photographs("test"), load_photographs("test", 32)
    assert small.shape == (len(whole), 32, 32, 3)
    np.testing.assert_allclose(small[2, 3, 5], whole[2, 6:8, 10:12].mean(axis=(0, 1)), atol=0.5)


def test_what_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"size is 96.*128 pixels a side or a divisor of 64"):
        load_photographs("train", 96)
    with pytest.raises(ValueError, match=r"no painting 'scream'.*great_wave"):
        load_painting("scream")
    with pytest.raises(ValueError, match="size is 100, which does not divide 256"):
        load_painting("great_wave", 100)
