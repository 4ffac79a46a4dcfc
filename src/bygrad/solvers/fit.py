"""A solver that was learned for a family: what `learn` returns, and how it solves without ever being trusted."""

import dataclasses
import hashlib
import time
from typing import Any, Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from .._core import trees
from .._core.programs import Program
from ..problems import ProblemFamily, QuadraticProgram
from .admm import ADMM, relative_gap
from .base import Flat, Method
from .card import Card, report
from .certificate import has_drifted
from .engine import Rows, Watch, run
from .learned import LearnedStart
from .solution import Solution, Status
from .solve import as_rows, as_solution, best_of, best_start, flat_of_rows, precision, rows_at_once, take, with_arrays
from .starts import in_blocks, starting_points

Guard = Literal["certificate", "best_of_two"]


@dataclasses.dataclass(frozen=True)
class LearnedSolver:
    """A solver for one family: a method, perhaps with learned damping, perhaps a learned start, and its fallback.

    **Arguments:** `method`, `start`, `starts`: the method, the learned start or None, and how many of its proposals are
    tried. `classical`, `classical_starts`: the tuned classical solver that takes over where the learned one fails.
    `dtype`: the precision in which it was measured, and solves.
    """

    family: ProblemFamily
    method: Method
    classical: Method
    start: LearnedStart | None
    starts: int
    classical_starts: int
    card: Card | None = None
    dtype: str = "float64"

    def solve(
        self,
        instances: PyTree[Any],
        *,
        guard: Guard = "certificate",
        seed: int = 0,
        batch: int | None = None,
        dtype: Any = None,
        watch: Watch | None = None,
    ) -> Solution:
        """Solve a batch like `bygrad.solve`.

        **Guarantee** (any network, also one that answers nonsense): with `guard="certificate"`, every instance that is
        returned as a success has ended by the stopping rules of the method, which the network cannot change. All others
        have been solved again by the classical solver from its own starts; what is solved is returned, or the lower
        cost of two. So an instance is unsolved only where both have failed, and the extra cost is at most the learned
        attempt. With `guard="best_of_two"` the classical solver runs on every instance, and no returned cost is above
        the classical one, for twice the work (of quadratic programs, whose unsolved points may cost less than the
        optimum: a solved point is returned wherever one of the two is solved). *Sketch:* the second run does not depend
        on the first, and the better of two is taken.

        `Solution.warnings` says so when more instances than chance allows needed the fallback, compared with the
        held-out instances: then the family has drifted, and the card no longer holds.
        """
        if guard not in get_args(Guard):
            raise ValueError(
                f"guard is {guard!r}, which is not a guard. Choose {' or '.join(map(repr, get_args(Guard)))}."
            )
        dtype = np.dtype(dtype or self.dtype)
        with precision(dtype, self.family):
            arrays, rows = as_rows(instances, dtype)
            if rows is None:
                raise ValueError("The instances hold no arrays, so there is nothing to tell them apart, or to learn.")
            flat, warnings = flat_of_rows(self.family, arrays, rows)
            batch = rows_at_once(self.method, batch)
            results = self._attempt(flat, arrays, rows, seed, batch, dtype, watch)
            failed = results["status"] <= 0
            again = np.ones(rows, bool) if guard == "best_of_two" else failed
            fallback = np.zeros(rows, bool)
            learned = self.start is not None or self.method is not self.classical
            if learned and again.any():
                both = guard == "best_of_two"
                results, better = self._fall_back(flat, arrays, results, again, not both, seed, batch, dtype, watch)
                fallback = better if both else failed
            warnings += self._alarm(int(fallback.sum()), rows, guard, learned)
            return as_solution(flat, results, fallback, warnings)

    @property
    def digest(self) -> str:
        """SHA-256 of all that decides what it answers, but for the family's own code."""
        parts = self.family, self.method, self.classical, self.start
        said = type(self.family).__name__, self.starts, self.classical_starts, self.dtype
        digest = hashlib.sha256(repr(said).encode())
        for name, leaf in trees.named_leaves(parts).items():
            array = np.asarray(leaf) if eqx.is_array_like(leaf) else np.zeros(0)
            digest.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
        return digest.hexdigest()

    def report(self) -> str:
        """Say in words what was learned, what it is worth, and what is proven about it."""
        return report(self.card, self.family)

    def _attempt(
        self, flat: Flat, instances: Any, rows: int, seed: int, batch: int, dtype: Any, watch: Watch | None
    ) -> Rows:
        own = starting_points(
            flat,
            instances,
            rows,
            None,
            starts=self.starts if self.start is None else 1,
            seed=seed,
            batch=batch,
            dtype=dtype,
        )
        if self.start is not None:
            propose = lambda flat, instances, own: proposals(self.start, self.starts, flat, instances, own)  # noqa: E731
            own = in_blocks(propose, flat, (instances, own), rows, batch, dtype).reshape(rows * self.starts, flat.size)
        method = with_arrays(self.method, dtype).prepare(flat, dtype)
        if isinstance(method, ADMM) and method.warm is not None:
            return _proven_first(method, flat, instances, own, batch, dtype, watch)
        every = jax.tree.map(lambda leaf: np.repeat(leaf, self.starts, axis=0), instances)
        return best_of(self.family, run(method, flat, every, own, batch=batch, watch=watch), self.starts)

    def _fall_back(
        self,
        flat: Flat,
        instances: Any,
        results: Rows,
        again: np.ndarray,
        solved_first: bool,
        seed: int,
        batch: int,
        dtype: Any,
        watch: Watch | None,
    ) -> tuple[Rows, np.ndarray]:
        classical = dataclasses.replace(self, method=self.classical, start=None, starts=self.classical_starts)
        some = jax.tree.map(lambda leaf: leaf[again], instances)
        second = classical._attempt(flat, some, int(again.sum()), seed, batch, dtype, watch)
        where = np.flatnonzero(again)
        pairs = {name: np.stack([values[where], second[name]], axis=1) for name, values in results.items()}
        pairs = {name: values.reshape(2 * len(where), *values.shape[2:]) for name, values in pairs.items()}
        merged, replaced = {name: values.copy() for name, values in results.items()}, np.zeros(len(again), bool)
        better = best_start(self.family, pairs, 2, solved_first)
        for name, values in take(pairs, 2, better).items():
            merged[name][where] = values
        replaced[where] = better == 1
        return merged, replaced

    def _alarm(self, fallbacks: int, rows: int, guard: Guard, learned: bool) -> tuple[str, ...]:
        card = self.card
        if card is None or not learned or guard != "certificate" or rows == 0:
            return ()
        if not has_drifted(fallbacks, rows, card.fallbacks, card.heldout, card.confidence):
            return ()
        return (
            f"{fallbacks} of {rows} instances needed the classical solver, but only {card.fallbacks} of {card.heldout}"
            " held-out ones did: the family has drifted. The results are as good as the classical solver's, but the"
            " card no longer holds. Learn again on recent instances.",
        )


def _proven_first(
    method: ADMM, flat: Flat, instances: Any, own: np.ndarray, batch: int, dtype: Any, watch: Watch | None
) -> Rows:
    """Keep the proposals that the family's own bounds prove to be good enough, and run ADMM on the others.

    Nothing is iterated for an instance that is kept, so that it costs one evaluation of the network and the bounds.
    """
    family = flat.family
    assert isinstance(family, QuadraticProgram) and method.warm is not None
    if type(family).certify is QuadraticProgram.certify:  # the default, which proves nothing
        return run(method, flat, instances, own, batch=batch, watch=watch)
    found = in_blocks(_proven, flat, (instances, own), len(own), batch, dtype, method)
    x, dual, (cost, certificate) = found[:, : flat.size], found[:, flat.size : -2], found[:, -2:].T
    good = certificate <= np.asarray(method.tol)
    whole = np.zeros(len(good), np.int32)
    results: Rows = {
        "x": x, "cost": cost, "certificate": certificate, "nit": whole, "nfev": whole + 1,
        "status": np.full(len(good), Status.CERTIFIED, np.int32), "dual": dual,
        "finished": np.full(len(good), time.perf_counter()),
    }  # fmt: skip
    if not good.all():
        some = jax.tree.map(lambda leaf: leaf[~good], instances)
        rest = run(method, flat, some, own[~good], batch=batch, watch=watch)
        for name, values in rest.items():
            results[name][~good] = values
    return results


def _proven_(flat: Flat, instances: PyTree, own: Float[Array, "rows p"], method: ADMM) -> Float[Array, "rows numbers"]:
    """Return each proposal with its multipliers, cost and certificate, in one row."""

    def one(instance: Any, own: Array) -> Array:
        assert method.warm is not None and isinstance(flat.family, QuadraticProgram)
        proposed, dual, _ = (it.astype(own.dtype) for it in method.warm(instance))
        found = flat.family.certify(proposed, dual, instance)
        x, cost, lowest = (proposed, jnp.inf, -jnp.inf) if found is None else found
        certificate = relative_gap(jnp.asarray(cost, x.dtype), jnp.asarray(lowest, x.dtype))
        certificate = jnp.where(jnp.isnan(certificate), jnp.inf, certificate)
        return jnp.concatenate([x, dual, jnp.stack([cost, certificate])])

    return jax.vmap(one)(instances, own)


_proven = Program(_proven_)


def _proposals_(
    start: LearnedStart, count: int, flat: Flat, instances: PyTree, own: Float[Array, "rows p"]
) -> Float[Array, "rows count p"]:
    return jax.vmap(lambda one, x: start.best(flat, one, x, count))(instances, own)


proposals = Program(_proposals_)
