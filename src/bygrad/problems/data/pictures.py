"""Photographs and paintings that come with the package, for artistic style transfer. NOTICE names their authors."""

import numpy as np

from .embedded import read_arrays
from .split import Split, part_of

TILE = 64
"""Pixels of a side of an embedded photograph."""

TEST_PHOTOGRAPHS = ("chelsea", "china", "european-honey-bee", "cincinnati-bridge")
"""Photographs that are kept for tests, whole: nothing is trained on any part of them."""

PAINTINGS = ("great_wave", "houses_at_auvers")
"""The Great Wave off Kanagawa (Hokusai, about 1831) and Houses at Auvers (van Gogh, 1890)."""


def load_photographs(split: Split = "train", size: int = TILE) -> np.ndarray:
    """Return squares cut from the photographs of a split, bytes `[n, size, size, 3]`.

    The package holds tiles of 64 x 64 pixels, cut from twelve photographs at three scales. Larger squares join
    neighbouring tiles, wherever the tiles of a scale are complete; they overlap. Smaller ones are averaged.

    **Arguments:** `split`: by photograph, never by tile. `size`: 128 pixels, or a divisor of 64.

    **Raises:** `ValueError` for another split or size.

    **Example:**

        >>> load_photographs("train").shape, load_photographs("test", 128).shape
        ((114, 64, 64, 3), (16, 128, 128, 3))
    """
    if size != 2 * TILE and (size < 1 or TILE % size):
        raise ValueError(
            f"size is {size}, but squares of the embedded photographs have {2 * TILE} pixels a side or a divisor of"
            f" {TILE}. Give one of these."
        )
    arrays = read_arrays("photographs_64.npz")
    tiles, names = arrays["x"], arrays["names"]
    # A name is `collection/photograph.ending@pixels`, with the pixels of the shorter side at that scale.
    photographs = [name.partition("/")[2].partition(".")[0] for name in names]
    tested = np.isin(photographs, TEST_PHOTOGRAPHS)
    chosen = part_of(split, train=~tested, test=tested)
    if size <= TILE:
        return _shrunk(tiles[chosen], size)
    squares = []
    for name in dict.fromkeys(names[chosen]):
        squares += _joined(tiles[names == name], int(name.rpartition("@")[2]) // TILE)
    return np.stack(squares)


def _joined(tiles: np.ndarray, rows: int) -> list[np.ndarray]:
    """Return the squares of 2 x 2 tiles in a scale of `rows` rows; none if tiles of it were left out."""
    columns, rest = divmod(len(tiles), rows)
    if rest or columns < rows or rows < 2:
        return []
    whole = tiles.reshape(rows, columns, TILE, TILE, 3).transpose(0, 2, 1, 3, 4)
    whole = whole.reshape(rows * TILE, columns * TILE, 3)
    starts = [(TILE * i, TILE * j) for i in range(rows - 1) for j in range(columns - 1)]
    return [whole[i : i + 2 * TILE, j : j + 2 * TILE] for i, j in starts]


def load_painting(name: str, size: int = 256) -> np.ndarray:
    """Return a painting as bytes `[size, size, 3]`; `size` divides 256, and pixels are averaged over squares.

    **Example:**

        >>> load_painting("great_wave", 64).shape
        (64, 64, 3)
    """
    if name not in PAINTINGS:
        raise ValueError(f"There is no painting {name!r} in the package. Known: {', '.join(PAINTINGS)}.")
    painting = read_arrays("paintings_256.npz")[name]
    if size < 1 or len(painting) % size:
        raise ValueError(
            f"size is {size}, which does not divide {len(painting)}, the pixels of a side of the painting. Give a"
            " power of two."
        )
    return _shrunk(painting[None], size)[0]


def _shrunk(pictures: np.ndarray, size: int) -> np.ndarray:
    """Average squares of pixels of `[n, side, side, 3]`, so that `size` are left to a side."""
    step = pictures.shape[1] // size
    squares = pictures.reshape(-1, size, step, size, step, 3)
    return np.round(squares.mean(axis=(2, 4))).astype(np.uint8)
