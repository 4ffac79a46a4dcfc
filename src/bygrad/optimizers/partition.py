"""An optimizer made of optimizers, each for its part of the params, as section 3.3 of Andrychowicz et al. (2016)."""

import fnmatch
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import equinox as eqx
import jax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .._core import trees
from .._core.draws import key_of
from .._core.types import Params, State
from .base import Learned, Optimizer, Scheduled, check_parts, declare, drawing_key
from .lstm import LSTM

Rules = tuple[tuple[str, str], ...]
"""Pairs of a pattern and the name of the part for paths that match it."""


@functools.lru_cache(maxsize=2**14)  # of many arrays with a rule each, to look through all is slow
def _owner(rules: tuple[tuple[str, str], ...], path: str) -> str | None:
    return next((name for pattern, name in rules if fnmatch.fnmatchcase(path, pattern)), None)


class Partition(Optimizer, Learned, Scheduled):
    r"""Optimizers side by side, each assigned to some of the params by their paths, and meta-trained together.

    The paper gives convolution weights to one LSTM and all the rest to another. Any optimizers will do: hand-designed
    ones take part with their hyperparameters as meta-parameters.

    A part sees a dictionary from path to array, of the arrays that are its own: what it averages or shares, it does so
    over them alone. A part that owns none is left alone.

    **Arguments:** `key`: draws the default parts. `parts`: optimizers by name; by default two LSTMs, for the kernels of
    convolutions and for the rest. `rules`: pairs of pattern and name; the first pattern that fits a path decides. A
    pattern is a glob over the whole path (`bygrad`'s paths are names joined by `/`, as in `layers/0/weight`): `*`
    stands for any characters, `/` included, `[0-2]` for one of them.

    **Raises:** `TypeError` for a part that is no optimizer; `ValueError` for a rule that names no part, and at `init`
    and `update` for a path that no pattern fits.

    **Example:**

        >>> from bygrad.optimizers import Adam, SGD
        >>> parts = {"matrices": Adam(1e-2), "rest": SGD(1e-1)}
        >>> both = Partition(parts=parts, rules=(("*weight", "matrices"), ("*", "rest")))
        >>> both.part_of("layers/0/bias")
        'rest'
    """

    feature_version: ClassVar[int] = 1

    parts: dict[str, Optimizer]
    rules: Rules = eqx.field(static=True)

    def __init__(
        self,
        key: PRNGKeyArray | None = None,
        parts: Mapping[str, Optimizer] | None = None,
        rules: Sequence[tuple[str, str]] = (("*conv*weight", "convolutions"), ("*", "rest")),
    ):
        if parts is None:
            keys = jax.random.split(key_of(0) if key is None else key)
            parts = {"convolutions": LSTM(keys[0]), "rest": LSTM(keys[1])}
        self.parts = dict(sorted(parts.items()))  # a tree's order, whatever the order in which they were named
        check_parts("A partition", *parts.values())
        self.rules = tuple((pattern, name) for pattern, name in rules)
        if unknown := sorted({name for _, name in self.rules} - set(self.parts)):
            raise ValueError(
                f"The rules assign params to {', '.join(map(repr, unknown))}, but the parts are"
                f" {', '.join(map(repr, self.parts))}: nothing would update them. Name a part, or add one."
            )

    @classmethod
    def by(cls, choose: Callable[[str], str], parts: Mapping[str, Optimizer], params: Params) -> "Partition":
        """Return the partition that a function from path to name makes of `params`.

        The function is asked once for every path, and the answers become the rules: one pattern for each path, so that
        the partition can be written to a file. It fits params with these paths only.
        """
        return cls(parts=parts, rules=[(_literally(path), choose(path)) for path in trees.named_leaves(params)])

    @property
    def config(self) -> dict[str, Any]:
        return {
            "parts": {name: _describe(part) for name, part in self.parts.items()},
            "rules": list(map(list, self.rules)),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], key: PRNGKeyArray | None = None) -> "Partition":
        keys = jax.random.split(drawing_key(key), len(config["parts"]))
        parts = {name: _build(name, it, key) for (name, it), key in zip(config["parts"].items(), keys, strict=True)}
        return cls(parts=parts, rules=[(pattern, name) for pattern, name in config["rules"]])

    def declare(self, horizon: int | Int[Array, ""]) -> "Partition":
        parts = [declare(part, horizon) for part in self.parts.values()]
        return eqx.tree_at(lambda it: list(it.parts.values()), self, parts)

    def owner(self, path: str) -> str | None:
        """Return the name of the part that a path belongs to, None if no pattern fits it."""
        return _owner(self.rules, path)

    def part_of(self, path: str) -> str:
        """Return the name of the part that a path belongs to; `ValueError` if no pattern fits it."""
        if (owner := self.owner(path)) is not None:
            return owner
        patterns = ", ".join(repr(pattern) for pattern, _ in self.rules) or "none"
        raise ValueError(
            f"No pattern fits the path {path!r} (patterns: {patterns}), so nothing would update it. End the rules with"
            " a pattern that fits the rest, ('*', NAME)."
        )

    def a_path_of_each(self) -> dict[str, str]:
        """Return a path for every part, as far as one can be read off its rules."""
        paths: dict[str, str] = {}
        for pattern, name in self.rules:
            # One of the letters for each in brackets, and "x" for what may be anything.
            path = re.sub(r"\[(.)[^]]*\]|[*?]", lambda found: found[1] or "x", pattern)
            if self.owner(path) == name:
                paths.setdefault(name, path)
        return paths

    def divide(self, tree: Params) -> dict[str, dict[str, Any]]:
        """Return for every part that owns any leaves of a tree its leaves by path."""
        divided: dict[str, dict[str, Any]] = {}
        for path, leaf in trees.named_leaves(tree).items():
            divided.setdefault(self.part_of(path), {})[path] = leaf
        return divided

    def join(self, divided: Mapping[str, Mapping[str, Any]], like: Params) -> Params:
        """Undo `divide`: put the leaves back into a tree like `like`."""
        return trees.replace_leaves(like, lambda path, leaf: divided[self.part_of(path)][path])

    def part_keys(self, key: PRNGKeyArray) -> dict[str, PRNGKeyArray]:
        """Return a key for every part, so that no two draw alike."""
        return {name: jax.random.fold_in(key, i) for i, name in enumerate(self.parts)}

    def init(self, params: Params) -> State:
        return {name: self.parts[name].init(owned) for name, owned in self.divide(params).items()}

    def update(
        self,
        grads: Params,
        state: State,
        params: Params | None = None,
        *,
        value: Float[Array, ""] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Params, State]:
        where = {} if params is None else self.divide(params)
        keys = {} if key is None else self.part_keys(key)
        stepped = {
            name: self.parts[name].update(owned, state[name], where.get(name), value=value, key=keys.get(name))
            for name, owned in self.divide(grads).items()
        }
        updates = self.join({name: updates for name, (updates, _) in stepped.items()}, grads)
        return updates, {name: after for name, (_, after) in stepped.items()}


def _literally(path: str) -> str:
    """Return the pattern that fits this path alone."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in path)


def _describe(part: Optimizer) -> dict[str, Any]:
    name = type(part).__name__
    if isinstance(part, Learned):
        return {"name": name, "features": part.feature_version, "config": part.config}
    return {"name": name}


def _build(name: str, described: Mapping[str, Any], key: PRNGKeyArray) -> Optimizer:
    from . import BASELINES, LEARNED  # the tables list this class too

    kind = described["name"]
    if kind in BASELINES:
        return BASELINES[kind]()
    if kind not in LEARNED:
        known = ", ".join(LEARNED | BASELINES)
        raise ValueError(
            f"Part {name!r} is a {kind!r}, which this version of bygrad does not have (it has {known})."
            " Upgrade bygrad, or use an artifact with parts of these."
        )
    if described["features"] != LEARNED[kind].feature_version:
        raise ValueError(
            f"Part {name!r} was trained with version {described['features']} of {kind}'s features, but this bygrad"
            f" computes version {LEARNED[kind].feature_version}: its meta-parameters would mean something else. Use the"
            " bygrad it was written with, or train it again."
        )
    part = LEARNED[kind].of_file(described["config"], key)
    if not isinstance(part, Optimizer):
        raise ValueError(
            f"Part {name!r} is a {kind}, which is no optimizer, so nothing would update its params. Build the"
            " partition of optimizers, and write it again."
        )
    return part
