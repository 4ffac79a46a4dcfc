"""The two parts of data: what optimizers are learned on, and what they are tested on."""

from typing import Literal, TypeAlias, TypeVar

Split: TypeAlias = Literal["train", "test"]

Part = TypeVar("Part")


def part_of(split: Split, *, train: Part, test: Part) -> Part:
    """Return the part that a split names. **Raises:** `ValueError` for another name."""
    parts = {"train": train, "test": test}
    if split not in parts:
        raise ValueError(f"split is {split!r}, and data have no such part. Choose 'train' or 'test'.")
    return parts[split]
