"""A solver that was learned for a family: what `learn` returns, and how it solves without ever being trusted."""

import contextlib
import dataclasses
import hashlib
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, NamedTuple, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from .._core import trees
from .._core.draws import check_seed
from .._core.programs import Program
from .._core.types import Tick
from ..problems import ProblemFamily, QuadraticProgram
from ..problems.base import check_is_family
from .admm import ADMM, relative_gap
from .base import Flat, Method
from .card import Card, report
from .doubt import Doubt, LearnedDoubt, merged, until_believed
from .drift import Usual, alarm, tally
from .engine import Rows, run
from .learned import LearnedDamping, LearnedRestart, LearnedStart
from .levenberg_marquardt import LevenbergMarquardt
from .proximal import ProximalGradient
from .solution import Solution, Status, Tally
from .solve import (
    as_rows,
    as_solution,
    best_of,
    fitting_method,
    flat_of_rows,
    from_every_start,
    precision,
    refuse_traced,
    rows_at_once,
    with_arrays,
)
from .starts import guesses, in_blocks, starting_points
from .warm import LearnedWarmStart

PROVEN = 16
"""Working sets whose proposals are proven at once, where there are so many: a call takes as long as many proofs."""

SolverGuard = Literal["certificate", "best_of_two"]

Reader = LearnedStart | LearnedDoubt | LearnedRestart | LearnedDamping | LearnedWarmStart
"""A network that reads instances, and was whitened for instances of one size."""


class Batch(NamedTuple):
    """Instances to solve, `rows` of them, and how. `given`: what the caller guesses, `[rows, p]`, or None. `at_once`:
    rows that are worked on at a time."""

    flat: Flat
    instances: PyTree[np.ndarray]
    rows: int
    given: np.ndarray | None
    seed: int
    at_once: int
    dtype: Any
    watch: Tick | None

    def those(self, which: np.ndarray) -> "Batch":
        """Return the instances where `which` is true."""
        instances = trees.rows(self.instances, which)
        given = None if self.given is None else self.given[which]
        return self._replace(instances=instances, given=given, rows=int(np.sum(which)))


@dataclasses.dataclass(frozen=True)
class LearnedSolver:
    """A solver for one family: a method, perhaps with learned damping, perhaps a learned start, and its fallback.

    **Arguments:** `method`, `start`, `starts`: the method, the learned start or None, and how many of its proposals are
    tried. `classical`, `classical_starts`: the tuned classical solver that takes over where the learned one fails.
    `dtype`: the precision in which it was measured, and solves. `usual`: where the instances lie that it was learned
    from, for the drift alarm. `doubt`: which solutions are worth another start, up to `starts`; without it, all are.
    With it, the first start is the learned one, if there is one, and all others are classical, but for the second where
    there is a `restart`: that says where to look after a solution that is doubted.
    """

    family: ProblemFamily
    method: Method
    classical: Method
    start: LearnedStart | None
    starts: int
    classical_starts: int
    card: Card | None = None
    dtype: str = "float64"
    usual: Usual | None = None
    doubt: Doubt | None = None
    restart: LearnedRestart | None = None

    def __post_init__(self) -> None:
        check_is_family(self.family)
        for method in (self.method, self.classical):
            fitting_method(self.family, method)
        if self.restart is not None and (self.doubt is None or self.starts < 2):
            raise ValueError(
                f"restart says where to look again after a solution that is doubted, but doubt is {self.doubt} and"
                f" there are {self.starts} starts, so nothing would. Give a doubt and two starts, or no restart."
            )

    def solve(
        self,
        instances: PyTree[Any],
        *,
        x0: PyTree[Any] | None = None,
        dual0: Any = None,
        guard: SolverGuard = "certificate",
        seed: int = 0,
        batch: int | None = None,
        dtype: Any = None,
        watch: Tick | None = None,
    ) -> Solution:
        """Solve a batch like `bygrad.solve`.

        `x0`, with `dual0` for quadratic programs, is a guess of the caller's, the last solution say. It is one more
        proposal beside those of a learned start and of a learned warm start, of which the better one is taken; where
        neither was learned, it is the first start. The classical solver that takes over has starts of its own.

        **Guarantee** (any network, also one that answers nonsense): with `guard="certificate"`, every instance that is
        returned as a success has ended by the stopping rules of the method, which the network cannot change. All others
        have been solved again by the classical solver from its own starts; what is solved is returned, or the lower
        cost of two. So an instance is unsolved only where both have failed, and the extra cost is at most the learned
        attempt. With `guard="best_of_two"` the classical solver runs on every instance, and no returned cost is above
        the classical one by more than rounding, for twice the work (of quadratic programs, whose unsolved points may
        cost less than the optimum: a solved point is returned wherever one of the two is solved). *Sketch:* the second
        run does not depend on the first, and the better of two is taken.

        **Drift alarm:** `Solution.warnings` says so when more instances than chance allows were not solved at the first
        attempt, took more steps than all but 1 in 100 or 1 in 10 of the held-out instances, or lie further from those
        learned from than all but as many; under either guard, for learned and for tuned solvers. Where nothing has
        changed, a call warns with probability `1 - card.confidence` at most, over held-out and new instances;
        `alarm` adds up over calls. It sees what fails, is slow or is unusual in one of its numbers. It cannot see
        solutions that got worse without any of these: success of least squares and smooth families is a local minimum,
        not the best. With `x0`, or in another `dtype`, it looks at the instances alone: the card was measured without.

        **Raises:** as `bygrad.solve`, and `ValueError` for instances of another size than its networks have learned.
        """
        if guard not in get_args(SolverGuard):
            raise ValueError(
                f"guard is {guard!r}, which is not a guard. Choose {' or '.join(map(repr, get_args(SolverGuard)))}."
            )
        check_seed(seed)
        dtype = np.dtype(dtype or self.dtype)
        with precision(dtype, self.family):
            refuse_traced(self, x0, dual0)
            arrays, rows = as_rows(instances, dtype)
            if rows is None:
                raise ValueError("The instances hold no arrays, so there is nothing to tell them apart, or to learn.")
            self._check_size(arrays)
            flat, warnings = flat_of_rows(self.family, arrays, rows)
            batch = rows_at_once(self.method, batch, flat, arrays)
            given = guesses(flat, x0, dual0, rows, self.method.multipliers(flat), dtype)
            asked = Batch(flat, arrays, rows, given, seed, batch, dtype, watch)
            results = self._attempt(asked)
            counted = self._tally(asked, results)
            failed, fallback, both = results["status"] <= 0, np.zeros(rows, bool), guard == "best_of_two"
            again = np.ones(rows, bool) if both else failed
            # With doubt alone, what is not solved has been tried from every classical start.
            others = self.start is not None or self.restart is not None or self.method is not self.classical
            others |= given is not None or (self.doubt is not None and (both or self.starts < self.classical_starts))
            if others and again.any():
                second = self._classically(asked.those(again)._replace(given=None))
                results, better = merged(self.family, results, np.flatnonzero(again), second, solved_first=not both)
                fallback[again] = better if both else True
            warnings += self.alarm([counted])
            return as_solution(flat, results, fallback, warnings, counted)

    def alarm(self, tallies: Iterable[Tally | None]) -> tuple[str, ...]:
        """Return the warning of a drift, or none, from all instances of several calls: their `Solution.tally`.

        What is too little in each call may be more than chance allows in all of them. Its level holds for one look at
        numbers of calls that were fixed before, not for a look after each.
        """
        return () if self.card is None else alarm(self.card, [it for it in tallies if it is not None])

    @property
    def digest(self) -> str:
        """SHA-256 of all that decides what it answers, but for the family's own code; the same in every process."""
        parts = self.family, self.method, self.classical, self.start, self.doubt, self.restart
        # Static fields stand in the structure. An object without a text of its own shows its address there.
        structure = without_addresses(str(jax.tree.structure(parts)))
        digest = hashlib.sha256(repr((structure, self.starts, self.classical_starts, self.dtype)).encode())
        for name, leaf in trees.named_leaves(parts).items():
            if eqx.is_array_like(leaf):
                array = np.asarray(leaf)
                digest.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
            else:
                digest.update(f"{name} {without_addresses(repr(leaf))}".encode())
        return digest.hexdigest()

    def report(self) -> str:
        """Say in words what was learned, what it is worth, and what is proven about it."""
        return report(self.card, self.family)

    def _check_size(self, instances: Any) -> None:
        size = sum(math.prod(leaf.shape[1:]) for leaf in trees.real_leaves(instances))
        for network in learned_parts(self).values():
            if isinstance(network, Reader) and (learned := network.whitening.instance_mean.size) != size:
                single = all(leaf.ndim == 1 for leaf in jax.tree.leaves(instances))
                raise ValueError(
                    f"An instance here has {size} numbers, but those that the solver was learned from had {learned}, so"
                    " its networks cannot read it. "
                    + ("For a single one give instance[None]. " if single else "")
                    + "Solve these instances by bygrad.solve, or learn a solver for them."
                )

    def _tally(self, asked: Batch, first: Rows) -> Tally | None:
        if self.card is None:
            return None
        seen = {} if self.usual is None else {"distance": self.usual.distance(asked.instances)}
        if asked.given is None and np.dtype(asked.dtype) == self.dtype:
            seen |= {"unsolved": first["status"] <= 0, "steps": first["nit"]}
        return tally(self.card, seen, asked.rows)

    def starting(self, asked: Batch) -> np.ndarray:
        """Return where each instance starts, `[rows, starts, p]`: at the best proposals of a network, or classically;
        with doubt, at the best proposal first and classically then, as proposals are too much alike. Where the second
        one is learned, it is left out, as it depends on where the first one ends."""
        flat, instances, rows, given, seed, batch, dtype, _ = asked
        classical = self.starts if self.start is None or self.doubt is not None else 1
        classical -= self.restart is not None
        settings: Any = {"starts": classical, "seed": seed, "batch": batch, "dtype": dtype}
        own = starting_points(flat, instances, rows, given if self.start is None else None, **settings)
        own = own.reshape(rows, classical, own.shape[-1])
        if self.start is None:
            return own
        first = own[:, 0] if given is None else np.stack([own[:, 0], given], axis=1)
        count = self.starts if self.doubt is None else 1
        propose = lambda flat, instances, own: proposals(self.start, count, flat, instances, own)  # noqa: E731
        proposed = in_blocks(propose, flat, (instances, first), rows, batch, dtype)
        return np.concatenate([proposed.reshape(rows, count, own.shape[-1]), own[:, 1:]], axis=1)

    def _attempt(self, asked: Batch) -> Rows:
        method = with_arrays(self.method, asked.dtype).prepare(asked.flat, asked.dtype)
        if isinstance(method, ADMM) and method.warm is not None:
            return _proven_first(method, asked, self.starting)
        starts = self.starting(asked)
        how: Any = {"batch": asked.at_once, "watch": asked.watch}
        if self.doubt is not None:
            how |= {"restart": self.restart}
            results = until_believed(self.doubt, method, asked.flat, asked.instances, starts, **how)
        else:
            each = from_every_start(method, asked.flat, asked.instances, starts, **how)
            results = best_of(self.family, each, self.starts)
        if self.start is None:
            return results
        # Costs of proposals are looked at before the first step, and again those of the best of them.
        proposed, best = self.start.proposals, self.starts if self.doubt is None else 1
        tried = proposed + (best if best < proposed else 0) + (1 if asked.given is None else 2)
        return results | {"nfev": results["nfev"] + tried}

    def _classically(self, asked: Batch) -> Rows:
        return classical_only(self, self.classical_starts)._attempt(asked)


def without_addresses(text: str) -> str:
    """Return the text of an object without where it lies in the memory."""
    return re.sub(r" at 0x[0-9a-f]+", "", text)


@contextlib.contextmanager
def ready(
    solver: LearnedSolver, instances: PyTree[np.ndarray], seed: int, watch: Tick | None = None
) -> Iterator[tuple[Batch, Method]]:
    """Yield instances as a solver takes them, and its method; until it is left, the solver's precision holds."""
    dtype = np.dtype(solver.dtype)
    with precision(dtype, solver.family):
        some, rows = as_rows(instances, dtype)
        assert rows is not None
        flat, _ = flat_of_rows(solver.family, some, rows)
        method = with_arrays(solver.method, dtype).prepare(flat, dtype)
        at_once = rows_at_once(solver.method, None, flat, some)
        yield Batch(flat, some, rows, None, seed, at_once, dtype, watch), method


def classical_only(solver: LearnedSolver, starts: int) -> LearnedSolver:
    """Return the tuned classical solver of a learned one, with so many starts for each instance."""
    return dataclasses.replace(solver, method=solver.classical, start=None, doubt=None, restart=None, starts=starts)


def learned_parts(solver: LearnedSolver) -> dict[str, Any]:
    """Return what of a solver may have been learned, by name; None for what was not."""
    method = solver.method
    damping = method.damping if isinstance(method, LevenbergMarquardt) else None
    return {
        "start": solver.start,
        "doubt": solver.doubt,
        "restart": solver.restart,
        "damping": damping if isinstance(damping, LearnedDamping) else None,
        "warm": method.warm if isinstance(method, ADMM) else None,
        "schedule": method.schedule if isinstance(method, ProximalGradient) else None,
    }


def _proven_first(method: ADMM, asked: Batch, starting: Callable[[Batch], np.ndarray]) -> Rows:
    """Keep the proposals that the family's own bounds prove to be good enough, and run ADMM on the others, `starting`
    where they do, or at their proposals.

    Nothing is iterated for an instance that is kept, so that it costs one evaluation of the network and the bounds.
    """
    flat, instances, rows, given, _, batch, dtype, watch = asked
    family = flat.family
    assert isinstance(family, QuadraticProgram) and method.warm is not None
    if type(family).certify is QuadraticProgram.certify or not rows:  # the default proves nothing
        return run(method, flat, instances, starting(asked)[:, 0], batch=batch, watch=watch)
    # What the family starts with is not worth a proof: to draw it takes as long.
    guess = None if given is None else starting(asked)[:, 0]
    at_once = PROVEN * batch if rows >= PROVEN * batch else batch
    found = in_blocks(_proven, flat, (instances, guess), rows, at_once, dtype, method)
    x, dual, (cost, certificate) = found[:, : flat.size], found[:, flat.size : -2], found[:, -2:].T
    good, whole = certificate <= np.asarray(method.tol), np.zeros(rows, np.int32)
    results: Rows = {
        "x": x, "cost": cost, "certificate": certificate, "nit": whole, "nfev": whole + 1,
        "status": np.full(rows, Status.CERTIFIED, np.int32), "dual": dual,
        "finished": np.full(rows, time.perf_counter()),
    }  # fmt: skip
    if not good.all():
        some = asked.those(~good)
        rest = run(method, flat, some.instances, starting(some)[:, 0], batch=batch, watch=watch)
        for name, values in rest.items():
            results[name][~good] = values
        results["nfev"][~good] += 1  # their bounds were evaluated as well
    return results


@Program
def _proven(
    flat: Flat, instances: PyTree, guess: Float[Array, "rows p"] | None, method: ADMM
) -> Float[Array, "rows numbers"]:
    """Return each proposal with its multipliers, cost and certificate, in one row; where the network has none, the
    guess."""

    def one(instance: Any, guess: Array | None) -> Array:
        assert isinstance(flat.family, QuadraticProgram)
        proposed, dual, _ = method.first(flat, instance, jnp.zeros(flat.size) if guess is None else guess)
        found = flat.family.certify(proposed, dual, instance)
        x, cost, lowest = (proposed, jnp.inf, -jnp.inf) if found is None else found
        terms = method.terms(flat, instance, x, dual)
        certificate = relative_gap(jnp.asarray(cost, x.dtype), jnp.asarray(lowest, x.dtype), terms)
        certificate = jnp.where(jnp.isnan(certificate), jnp.inf, certificate)
        return jnp.concatenate([x, dual, jnp.stack([cost, certificate])])

    return jax.vmap(one)(instances, guess)


@Program
def proposals(
    start: LearnedStart, count: int, flat: Flat, instances: PyTree, own: Float[Array, "rows *classical p"]
) -> Float[Array, "rows count p"]:
    """Return the `count` best starts of each instance, of a network's proposals and those that are its `own`."""
    return jax.vmap(lambda one, x: start.best(flat, one, x, count))(instances, own)
