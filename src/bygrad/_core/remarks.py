"""Warnings that point at the line of the user that led to them, whatever lies between."""

import sys
import warnings

_BETWEEN = {"bygrad", "contextlib", "equinox", "jax", "jaxtyping", "optax", "torch"}


def remark(message: str) -> None:
    """Warn with `message`, at the nearest line that belongs neither to this package nor to what calls it."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _BETWEEN:
        level, frame = level + 1, frame.f_back
    warnings.warn(visible(message), stacklevel=level)


def visible(text: str) -> str:
    r"""Return text with escapes for what would steer the terminal that shows it: a stranger's file may hold such.

    >>> print(visible("caf\xe9 \x1b[2J \x9b2J"))
    café \x1b[2J \x9b2J
    """
    return "".join(it if it.isprintable() or it == "\n" else repr(it)[1:-1] for it in text)
