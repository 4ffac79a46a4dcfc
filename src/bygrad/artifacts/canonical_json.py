"""JSON with one reading and one spelling: what Python's own reader lets pass silently is refused here."""

import json
import math
from collections.abc import Iterable
from functools import partial
from typing import Any, NoReturn

from .errors import ArtifactError

MAX_DEPTH = 64

_DAMAGED = "Copy the file again from where it was written, or train again"


def parse_object(text: str, what: str) -> dict[str, Any]:
    """Return the JSON object in `text`; `what` names it in errors ("the header").

    **Raises:** `ArtifactError` for text that is not JSON or not an object, for a key that occurs twice (readers
    disagree on which one counts), for `NaN` and `Infinity` (not JSON), and for nesting that exhausts the parser.
    """
    try:
        value = json.loads(text, object_pairs_hook=partial(_unique, what), parse_constant=partial(_refuse, what))
    except ArtifactError:
        raise
    except RecursionError:
        raise ArtifactError(
            f"{what} is nested too deeply for the parser",
            "No artifact needs that, so the file is damaged or made to do harm",
            _DAMAGED,
        ) from None
    except ValueError as error:  # malformed JSON, and integers of thousands of digits
        raise ArtifactError(f"{what} is not JSON ({error})", "It cannot be read", _DAMAGED) from None
    if not isinstance(value, dict):
        raise ArtifactError(f"{what} is a JSON {type(value).__name__}, not an object", "It has no fields", _DAMAGED)
    return value


def dump(value: Any, *, sort_keys: bool) -> str:
    """Return the JSON of `value` in ASCII and without spaces, its keys sorted or in the order given."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False, sort_keys=sort_keys)


def plain(value: Any, where: str, depth: int = 0) -> Any:
    """Return a deep copy of `value` that JSON gives back unchanged: tuples become lists, the rest is checked.

    **Raises:** `ArtifactError` naming the place, as in `training.quantiles[3]`, for what JSON cannot hold: numbers
    that are not finite, keys that are not strings, arrays and other objects, nesting deeper than `MAX_DEPTH`.
    """
    if depth > MAX_DEPTH:
        raise ArtifactError(
            f"{where[:60]}... is nested more than {MAX_DEPTH} levels deep",
            "Other readers of JSON may refuse it",
            "Flatten it; a container that contains itself cannot be stored at all",
        )
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ArtifactError(f"{where} is {value!r}", "JSON has no such number", "Leave it out, or store None")
        return float(value)
    if isinstance(value, list | tuple):
        return [plain(item, f"{where}[{index}]", depth + 1) for index, item in enumerate(value)]
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise ArtifactError(
                    f"{where} has the key {key!r} of type {type(key).__name__}",
                    "JSON would turn it into a string, and it would not come back as it was",
                    "Use a string as the key",
                )
        return {str(key): plain(item, _below(where, key), depth + 1) for key, item in value.items()}
    raise ArtifactError(
        f"{where} is of type {type(value).__name__}",
        "The manifest is JSON: None, bool, int, float, str, lists and dicts with string keys",
        "Convert it first, a NumPy value with .item() and an array with .tolist()",
    )


def shorten(value: object) -> str:
    """Return the `repr` of an untrusted `value`, cut to a length that an error message can bear."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def listing(names: Iterable[str]) -> str:
    """Return untrusted `names`, sorted, for an error message: ten at most, and `none` for none."""
    ordered = sorted(names)
    more = f" and {len(ordered) - 10} more" if len(ordered) > 10 else ""
    return ", ".join(shorten(name) for name in ordered[:10]) + more if ordered else "none"


def _unique(what: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ArtifactError(
                f"{what} has the key {shorten(key)} twice",
                "Two readers of this file could load two different optimizers from it",
                "Write it with bygrad.artifacts.save, which writes every key once",
            )
        result[key] = value
    return result


def _refuse(what: str, literal: str) -> NoReturn:
    raise ArtifactError(f"{what} contains {literal}", "That is not JSON, and other readers fail on it", _DAMAGED)


def _below(where: str, key: str) -> str:
    return f"{where}.{key}" if key.isidentifier() else f"{where}[{shorten(key)}]"
