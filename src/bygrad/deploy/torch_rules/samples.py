"""What the controller in PyTorch looks at: a few entries of every tensor, and what they say of the whole."""

# pyright: reportPrivateImportUsage=false

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..._core.definitions import FEWEST, REACH, SAMPLE


class Samples:
    """The entries that are looked at, of several quantities: for every tensor a matrix, with a row for each quantity,
    and zeros at the end where its sample is smaller than others."""

    def __init__(self, shapes: Sequence[Sequence[int]], dtype: torch.dtype, device: torch.device) -> None:
        matrices = [as_matrix(shape) for shape in shapes]
        steps = [strides(*matrix) for matrix in matrices]
        self.grids = [
            (len(range(0, rows, down)), len(range(0, columns, across)))
            for (rows, columns), (down, across) in zip(matrices, steps, strict=True)
        ]
        self._strides = [(down * columns, across) for (_, columns), (down, across) in zip(matrices, steps, strict=True)]
        self._entries: dict[int, Tensor] = {}  # where they are, of tensors that do not lie in this order in memory
        sizes = [down * across for down, across in self.grids]
        self._sizes = torch.tensor([max(1, size) for size in sizes], dtype=dtype, device=device)[:, None, None]
        memory = torch.zeros(6, len(sizes), max(sizes), dtype=dtype, device=device)
        self._rows = memory[:5].transpose(0, 1)
        self._grad, _, self._mean, self.n, self._q, self._square = memory
        self._places = [
            [row[:size].view(grid) for row, size, grid in zip(quantity, sizes, self.grids, strict=True)]
            for quantity in (memory[0], memory[1], memory[2], memory[5])
        ]

    def see(self, *quantities: Sequence[Tensor]) -> None:
        """Look at gradients, params and the two moments."""
        for places, leaves in zip(self._places, quantities, strict=True):
            seen = [
                leaf.as_strided(grid, apart, leaf.storage_offset()) if leaf.is_contiguous() else self._take(leaf, index)
                for index, (leaf, grid, apart) in enumerate(zip(leaves, self.grids, self._strides, strict=True))
            ]
            torch._foreach_copy_(places, seen)

    def _take(self, leaf: Tensor, index: int) -> Tensor:
        """Look at a tensor that lies in memory in another order: channels last, say."""
        if index not in self._entries:
            (rows, columns), (down, across) = self.grids[index], self._strides[index]
            entries = down * torch.arange(rows)[:, None] + across * torch.arange(columns)
            self._entries[index] = entries.to(leaf.device)
        return torch.take(leaf, self._entries[index])

    def move(
        self, kept: Sequence[float], taken: Sequence[float], unbias1: Tensor, unbias2: Tensor, epsilon: float
    ) -> None:
        """Let the moments follow the gradients, and divide mean and gradient by the root of the other one."""
        self._mean.lerp_(self._grad, taken[0]).mul_(unbias1)
        square = (kept[1] * self._square).addcmul_(self._grad, self._grad, value=taken[1])
        root = square.mul_(unbias2).sqrt_().add_(epsilon)
        torch.div(self._mean, root, out=self.n)
        torch.div(self._grad, root, out=self._q)

    def products(self) -> Tensor:
        """Return the means `[tensors, 5, 5]` of the products of gradient, param, mean, n and q with each other."""
        products = torch.bmm(self._rows, self._rows.transpose(1, 2)) / self._sizes
        # A gradient whose square overflows is a large one, and not the end of the run.
        return products.clamp_(max=torch.finfo(products.dtype).max)


class Grids:
    """The samples of all tensors as matrices: their columns, and then their rows, which are columns seen from the side.

    **Arguments:** `seen`: rows and columns of the sample of each tensor. `shapes`: of the tensors.
    """

    def __init__(
        self,
        seen: Sequence[tuple[int, int]],
        shapes: Sequence[Sequence[int]],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        whole = [as_matrix(shape) for shape in shapes]
        sides = [*seen, *((columns, rows) for rows, columns in seen)]
        starts = np.cumsum([0, *(columns for _, columns in sides)])
        down = [np.tile(np.arange(columns), rows) for rows, columns in seen]
        across = [np.repeat(np.arange(rows), columns) for rows, columns in seen]
        places = np.zeros((2, len(seen), max(map(math.prod, seen))), int)  # zeros beyond a sample add nothing
        for k, start, place in zip(range(len(sides)), starts, [*down, *across], strict=False):
            places.reshape(len(sides), -1)[k, : len(place)] = start + place
        owners = np.repeat(np.arange(len(sides)), [columns for _, columns in sides])
        rows = np.array([rows for rows, _ in sides], float)
        count = np.array([rows for rows, _ in whole] + [columns for _, columns in whole], float)

        def number(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array).to(device, dtype)

        self._places, self._owners = torch.from_numpy(places.ravel()).to(device), torch.from_numpy(owners).to(device)
        pairs = np.maximum(1, rows * (rows - 1))
        self._of_sums = number(1 / (pairs * np.maximum(1, np.array([columns for _, columns in sides], float))))
        self._of_square, self._count, self._all_pairs = map(number, (rows / pairs, count, count * (count - 1)))
        self._reaching = number(np.array([len(shape) > 1 for shape in shapes], float))

    def log_reaches(self, n: Tensor, square: Tensor) -> Tensor:
        """Return the logarithm of every reach over `REACH`, of $n$ at all samples and its mean square by tensor."""
        square, entries = torch.cat([square, square]), n.reshape(-1)
        sums = n.new_zeros(len(self._owners)).index_add_(0, self._places, torch.cat([entries, entries]))
        squares = n.new_zeros(len(square)).index_add_(0, self._owners, sums.square_())
        pairs = torch.addcmul(squares * self._of_sums, self._of_square, square, value=-1).clamp_(min=0)
        furthest = torch.addcmul(self._count * square, self._all_pairs, pairs).view(2, -1).amax(0)
        return (torch.log1p(furthest) / 2).sub_(math.log(REACH)).mul_(self._reaching)


def as_matrix(shape: Sequence[int]) -> tuple[int, int]:
    """Return rows and columns of a tensor as a matrix, as in JAX."""
    first, last = (shape[0], shape[-1]) if len(shape) > 1 else (math.prod(shape), 1)
    size = math.prod(shape)
    return (first, size // max(1, first)) if first > last else (size // max(1, last), last)


def strides(rows: int, columns: int) -> tuple[int, int]:
    """Return how far apart the rows and the columns lie that a sample sees, as in JAX."""
    most = max(1, min(columns, max(FEWEST, SAMPLE // max(1, rows))))
    return max(1, -(-rows // (SAMPLE // most))), max(1, -(-columns // most))
