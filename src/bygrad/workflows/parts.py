"""The folder beside a file of results while it is solved: its parts, whose they are, and who is at work on them."""

import contextlib
import hashlib
import json
import math
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .._core import trees
from .._core.files import (
    join_arrays_atomically,
    locked,
    read_json,
    reading_arrays,
    sweep,
    write_arrays_atomically,
    write_text_atomically,
)
from ..solvers import Solution
from ..solvers.solution import Tally
from .display import Display

IDENTITY = "run.json"
"""In the folder, what it belongs to, and how rows are divided into blocks."""

SECONDS = 20
"""What a block should take: after a kill, about so much is solved again."""

FIELDS = ("cost", "certificate", "status", "success", "nit", "nfev", "used_fallback", "dual")

WARNINGS, TALLY = "warnings", "tally"
"""In a part, beside the fields of the results: what concerns the block, and what the drift alarm counted in it."""

MANY = 10
"""Warnings that are told; of a million blocks, each may have its own."""

PAUSE, LONG = 1.0, 60.0
"""Seconds between two looks at what other processes have written, and after which it is asked whether they are."""


class Parts:
    """Blocks of rows, the results of each of which are a file until all are there and `join` makes one of them.

    The first two blocks have `first` rows: the second one, for which everything is compiled, shows how many rows take
    `SECONDS`, and so many, at most `limit`, have all others. What is chosen stays in the folder, for whoever goes on.

    Process `index` of `count` takes the blocks `index`, `index + count` and so on, so that none is solved twice;
    process 0 takes the second one as well, says how large the others are, and joins.
    """

    def __init__(self, out: Path, rows: int, place: tuple[int, int], first: int, size: int | None, limit: int):
        self.out, self.rows, self.first, self.size, self.limit = out, rows, first, size, limit
        self.index, self.count = place
        self.folder = out.with_name(f".{out.name}.parts")
        self._path, self._identity = self.folder / IDENTITY, {}

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Keep processes that know nothing of this one from the same blocks.

        **Raises:** `FileExistsError` if one is at work.
        """
        alone, locks = self.count == 1, [self.folder / "lock"]
        locks += [] if alone else [self.folder / f"lock-{self.index}"]
        try:
            with contextlib.ExitStack() as held:
                try:
                    held.enter_context(locked(locks[0], shared=not alone))
                    for lock in locks[1:]:
                        held.enter_context(locked(lock))
                except BlockingIOError as error:
                    place = "" if alone else f", or is process {self.index} as well"
                    raise FileExistsError(
                        f"Another process is at work on {self.out}{place}, so both would solve the same. Wait for it,"
                        " choose another --out, or share the work: --hosts auto, or COUNT,INDEX, for every process."
                    ) from error
                try:
                    yield
                finally:
                    if alone and not self._path.exists():
                        locks[0].unlink(missing_ok=True)
        finally:
            with contextlib.suppress(OSError):  # it is not empty, most often
                self.folder.rmdir()

    def claim(self, identity: dict[str, Any], resume: bool, display: Display) -> None:
        """Read how far the run of this identity is, after checking that the folder is this run's where it exists.

        Where `out` exists as well and says that it is of this run, that was killed after it had written it, and only
        the folder is left to remove; where there is no folder, nothing is left to do. Any other `out` stays. Processes
        other than 0 wait until that has said how large blocks are, or has joined all of them.
        """
        self._identity, told = identity, False
        if self.index == 0:
            if resume:
                self._read_plan()
            finished = resume and self._is_finished()
            if finished and not self._path.exists():
                display.say(f"{self.out} is finished: there is nothing to go on with")
            elif self.out.exists() and not finished:
                other = " It is not of this run, or of a version that does not say whose it is." * resume
                raise FileExistsError(
                    f"{self.out} already exists and would be overwritten.{other} Choose another --out."
                )
            if self._path.exists() and not resume:
                raise FileExistsError(
                    f"{self.folder} holds an interrupted run. Go on with it (--resume), or remove the folder."
                )
            return
        since = time.monotonic()
        while not self.out.exists() and not self._read_plan():
            if not told:
                display.say(f"process {self.index} waits for the first blocks of process 0")
                told = True
            if time.monotonic() - since > LONG:
                display.say(
                    "process 0 has written nothing yet. If it has ended, what it said tells why: end this process as"
                    " well, and start all of them again."
                )
                since = math.inf
            time.sleep(PAUSE)
        if self.out.exists() and not self._path.exists() and not self._is_finished():
            raise FileExistsError(f"{self.out} already exists and would be overwritten. Choose another --out.")

    def _seal(self) -> bytes:
        """What `out` says of whose it is, in the comment of its archive: the whole, which process 0 knows, and what the
        others do."""
        known = {name: it for name, it in self._identity.items() if name != "contents"}
        texts = (json.dumps(it, sort_keys=True).encode() for it in (self._identity, known))
        return b" ".join(hashlib.sha256(text).hexdigest().encode() for text in texts)

    def _is_finished(self) -> bool:
        """Whether `out` has been written by a run of this identity."""
        try:
            with zipfile.ZipFile(self.out) as whole:
                ours, theirs = (it.split() for it in (self._seal(), whole.comment))
                return theirs[:1] == ours[:1] if self.index == 0 else theirs[1:] == ours[1:]
        except (OSError, zipfile.BadZipFile):
            return False

    def _read_plan(self) -> bool:
        """Say whether it is known how rows are divided. **Raises:** `ValueError` if the folder is of another run."""
        if not self._path.exists():
            return False
        found = read_json(self._path, "Remove the folder that it is in and resume: that is solved again.")
        different = [key for key in self._identity if found.get(key) != self._identity[key]]
        if different or "first" not in found:
            raise ValueError(
                f"{self.folder} holds a run that differs in {', '.join(different or ['version'])}, so its results are"
                " not of this one. Resume with the same arguments, or remove the folder."
            )
        self.first, self.size = found["first"], found["size"]
        return self.size is not None or self.rows <= 2 * self.first

    def own(self) -> Iterator[tuple[int, int]]:
        """Yield what is left for this process to solve: the first row of each block, and the one after its last."""
        if self.out.exists():
            return
        for number, (at, stop) in enumerate(self._blocks()):
            whose = 0 if number == 1 else number % self.count
            if whose == self.index and not self._part(at).exists():
                yield at, stop

    def keep(self, at: int, found: Solution, seconds: float) -> None:
        """Write the results of a block, and how long it took decides on the size of those after the second one."""
        if self.size is None and at > 0:
            self.size = rows_in_time(len(found), seconds, self.limit)
        if self.index == 0:  # not before there is something to go on from
            plan = {"first": self.first, "size": self.size}
            write_text_atomically(self._path, json.dumps(self._identity | plan, indent=1))
        write_part(self._part(at), found)

    def join(self, display: Display) -> tuple[list[str], list[Tally]]:
        """Write `out` from its parts, when all are there, if it is not written yet; remove them, and return their
        warnings and tallies."""
        blocks = [(at, stop, self._part(at)) for at, stop in self._blocks()] if self._path.exists() else []
        parts = [part for _, _, part in blocks]
        if not self.out.exists():
            self._await(parts, display)
            sweep(self.out)
            with reading_arrays(parts[0]) as part:
                names = [name for name in part if name not in (WARNINGS, TALLY)]
            join_arrays_atomically(self.out, parts, names, self.rows, self._seal())
        left = [block for block in blocks if block[2].exists()]
        warnings, tallies = _warnings(left), _tallies(left)
        # The identity goes last: it says whose the others are. The locks go after the parts that they are for.
        for path in sorted(self.folder.iterdir(), key=lambda path: (path == self._path, path.suffix != ".npz")):
            path.unlink(missing_ok=True)
        return warnings, tallies

    def _await(self, parts: list[Path], display: Display) -> None:
        """Wait for the parts of other processes, and say which are missing."""
        whose, told = {part: number % self.count for number, part in enumerate(parts)}, False
        while missing := whose.keys() - self.folder.iterdir():
            late = ", ".join(map(str, sorted({whose[part] for part in missing})))
            if not told:
                display.say(
                    f"process 0 waits for {len(missing)} of {len(parts)} blocks, of process {late}. If one is lost,"
                    " start it again; or end this one, and go on with --resume and any number of processes."
                )
            told = True
            display.phase("waiting", len(parts) - len(missing), len(parts), f"for process {late}")
            time.sleep(PAUSE)

    def _part(self, at: int) -> Path:
        return self.folder / f"{at:012d}.npz"

    def _blocks(self) -> Iterator[tuple[int, int]]:
        """Yield all blocks; of no rows there is one, so that the fields are known. The size of the third one is known
        when the second one is solved."""
        at = number = 0
        while at < self.rows or number == 0:
            size = self.first if number < 2 else self.size
            assert size is not None
            yield at, min(at + size, self.rows)
            at, number = at + size, number + 1


def rows_in_time(rows: int, seconds: float, limit: int) -> int:
    """Return how many rows take `SECONDS`, where `rows` took `seconds`; at least 1 and at most `limit`."""
    return int(min(max(rows * SECONDS / max(seconds, 1e-6), 1), limit))


def write_part(path: Path, found: Solution) -> None:
    """Write the fields of a solution, its warnings, and its tally if it has one."""
    x = {f"x/{name}" if name else "x": leaf for name, leaf in trees.named_leaves(found.x).items()}
    fields = {name: getattr(found, name) for name in FIELDS}
    told: dict[str, Any] = {WARNINGS: np.array(found.warnings, np.str_)}
    if found.tally is not None:
        told[TALLY] = np.array([found.tally.rows, *found.tally.beyond])
    write_arrays_atomically(path, x | fields | told)


def _tallies(parts: list[tuple[int, int, Path]]) -> list[Tally]:
    found = []
    for *_, path in parts:
        with reading_arrays(path) as part:
            if TALLY in part:
                rows, *beyond = part[TALLY].tolist()
                found.append(Tally(rows, tuple(beyond)))
    return found


def _warnings(parts: list[tuple[int, int, Path]]) -> list[str]:
    """Return what the parts warn of, each once; what does not concern all of them with the first rows that it does."""
    found: dict[str, list[tuple[int, int]]] = {}
    for at, stop, path in parts:
        with reading_arrays(path) as part:
            for warning in part[WARNINGS].tolist():
                found.setdefault(warning, []).append((at, stop))
    told = [
        warning if len(where) == len(parts) else f"Rows {where[0][0]} to {where[0][1] - 1}: {warning}"
        for warning, where in found.items()
    ]
    further = [f"{len(told) - MANY} further warnings, of later rows, are like these."] if len(told) > MANY else []
    return told[:MANY] + further
