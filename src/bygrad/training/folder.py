"""The folder of a meta-training: its checkpoint, its log, and who is at work in it."""

import contextlib
import dataclasses
import errno
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp

from .._core.files import locked, sweep
from ..optimizers import Optimizer
from . import checkpoint
from .devices import Devices, from_lead, meet
from .events import Log
from .recipe import Recipe

AnyOptimizer = TypeVar("AnyOptimizer", bound=Optimizer)

CHECKPOINT, LOG, BEFORE = "checkpoint.safetensors", "log.jsonl", "before"
"""In the folder of a meta-training: its checkpoint, its log, and the folder of what was carried out before it."""
LOCK = "lock"
"""Beside them while a process is at work there; what a killed one leaves holds nobody up."""
FULL = {
    errno.ENOSPC: "Make room first.",
    errno.EDQUOT: "Make room first.",
    errno.EFBIG: "Allow larger files first (ulimit -f).",
}
"""What the system says where a disk is full, or the user's share of it, or a file, and what to do then."""


def is_begun(folder: Path) -> bool:
    """Whether a folder holds a meta-training that can be resumed."""
    return (folder / CHECKPOINT).exists() or ((folder / BEFORE).exists() and is_begun(folder / BEFORE))


def has(folder: Path | None, name: str) -> bool:
    """Whether there is a file of this name; the lead looks, for all."""
    found = folder is not None and (folder / name).exists()
    return from_lead(lambda: str(found).encode()) == b"True"


def refuse_another(folder: Path | None) -> None:
    """**Raises:** `FileExistsError` where there is a meta-training already."""
    if has(folder, CHECKPOINT):
        raise FileExistsError(
            f"{folder} already holds a meta-training, which a new one would overwrite. Go on with it (resume=True,"
            " --resume) or choose another folder."
        )


@dataclasses.dataclass(frozen=True)
class Saved:
    """A checkpoint as it was read: its bytes, and what was written beside the arrays."""

    path: Path
    data: bytes
    info: dict[str, Any]

    def arrays(self, like: Any) -> Any:
        """Return the arrays, NumPy's, in a tree like this one. **Raises:** `CheckpointError` where they do not fit."""
        return checkpoint.restore(self.path, like, self.data)


def _comparable(identity: dict[str, Any]) -> dict[str, Any]:
    """With NaN and infinity as words: the one is not equal to itself."""
    return json.loads(json.dumps(identity), parse_constant=str)


def best_of(folder: Path | str, optimizer: AnyOptimizer) -> AnyOptimizer:
    """Return the best optimizer so far of a meta-training that was interrupted, or that stopped.

    **Arguments:** `folder`: that was given to `meta_train`. `optimizer`: one of the same configuration, the one that
    training began with, say; its arrays are replaced.

    **Raises:** `FileNotFoundError` where there is no checkpoint, `CheckpointError` for one of another optimizer.
    """
    folder = Path(folder)
    path = next((it for it in (folder / CHECKPOINT, folder / BEFORE / CHECKPOINT) if it.exists()), None)
    if path is None:
        raise FileNotFoundError(
            f"There is no checkpoint in {folder}, so no optimizer has been kept there. Give the folder of a"
            " meta-training (of the command, the folder `metatraining` in its own)."
        )
    kept = checkpoint.restore(path, eqx.filter(optimizer, eqx.is_array), among="best/")
    return eqx.combine(jax.tree.map(jnp.asarray, kept), optimizer)


class Folder:
    """Where a meta-training keeps its checkpoint and its log; without a path, nowhere.

    Process 0, the lead, reads and writes for all: only its machine needs the folder, and nobody decides on an older
    copy. Every process makes the same calls. `saved` is the meta-step of the last checkpoint.
    """

    def __init__(self, path: Path | None, devices: Devices):
        self.path, self.devices = path, devices
        self.log = Log(path / LOG if path is not None and devices.lead else None)
        self.saved: int | None = None

    def begin(self) -> None:
        """Make the folder, and put away the log of what never came to a checkpoint."""
        if self.path is not None and self.devices.lead:
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / LOG).unlink(missing_ok=True)
            self._sweep()

    def save(self, step: int, arrays: Any, info: dict[str, Any]) -> None:
        """Write a checkpoint, with `info` beside the arrays, of which every device holds its part."""
        if self.path is None:
            return
        whole = self.devices.fetch(arrays)
        if self.devices.lead:
            checkpoint.save(self.path / CHECKPOINT, whole, info)
        meet("saved")  # what a process says of the checkpoint after this is true
        self.saved = step

    def read(self, identity: dict[str, Any]) -> Saved:
        """Read the checkpoint of the meta-training that has this identity.

        **Raises:** `FileNotFoundError` where there is none, `CheckpointError` for one of another identity.
        """
        path = None if self.path is None else self.path / CHECKPOINT
        data = b"" if path is None else from_lead(lambda: path.read_bytes() if path.exists() else b"")
        if path is None or not data:
            raise FileNotFoundError(
                f"There is no checkpoint in {self.path}, so there is nothing to resume. Start without resume, or name"
                " the folder of an earlier run."
            )
        saved = Saved(path, data, checkpoint.read_info(path, data))
        recorded, identity = _comparable(saved.info["recipe"]), _comparable(identity)
        if recorded != identity:
            # What a file leaves out is what a recipe says where nothing was chosen.
            default = {name: getattr(Recipe, name, None) for name in recorded | identity}
            was, now = default | recorded, default | identity
            pairs = ", ".join(f"{name} was {was[name]}, is {now[name]}" for name in was if was[name] != now[name])
            raise checkpoint.CheckpointError(
                f"The checkpoint in {self.path} was made with another recipe ({pairs}), so resuming would give"
                " neither result. Resume with the same settings, or start in another folder; in Python, with what was"
                " learned here: bygrad.meta_train(bygrad.training.best_of(folder, optimizer), ...)."
            )
        return saved

    def go_on(self, step: int, seconds: float) -> None:
        """Take up the log where the checkpoint of this meta-step was written, after so many seconds of work."""
        if self.path is not None and self.devices.lead:
            self._sweep()
        self.log.rewind(step, seconds)
        self.log.recall(from_lead(self.log.text.encode).decode(), step, seconds)
        self.saved = step

    def _sweep(self) -> None:
        assert self.path is not None
        for name in (CHECKPOINT, LOG):
            sweep(self.path / name)

    def kept(self) -> str:
        """Say what is there for who goes on."""
        if self.path is None:
            return "Nothing was kept, as no folder was given: start again."
        if self.saved is None:
            return (
                f"Nothing was kept in {self.path}, as no checkpoint had been written yet: start again, with --resume."
            )
        where = " on the machine of process 0" if jax.process_count() > 1 else ""
        return (
            f"The last checkpoint, of meta-step {self.saved}, is whole and in {self.path}{where}. Go on with it"
            " (resume=True, --resume), on any number of devices and processes."
        )

    @contextlib.contextmanager
    def held(self, resume: bool) -> Iterator[None]:
        """Keep the processes of other jobs out, and say what is left where the disk is full.

        **Raises:** `FileExistsError` if another process is at work here. `OSError` where nothing can be written.
        """
        try:
            with contextlib.ExitStack() as held:
                if from_lead(lambda: str(self._is_taken(held, resume)).encode()) == b"True":
                    raise FileExistsError(
                        f"Another process is at work in {self.path}, so both would write its log and its checkpoint."
                        " Wait for it, choose another folder, or let all processes of a job share one meta-training"
                        " (--hosts auto)."
                    )
                try:
                    yield
                except KeyboardInterrupt:
                    if self.path is not None and self.devices.lead and self.path.exists():
                        (self.path / LOG).touch()  # it was begun, however early that was, and can be resumed
                    raise
        except OSError as error:
            if error.errno not in FULL:
                raise
            text = f"Meta-training stopped, as what it keeps could not be written ({error.strerror})."
            raise OSError(error.errno, f"{text} {FULL[error.errno]} {self.kept()}") from error

    def _is_taken(self, held: contextlib.ExitStack, resume: bool) -> bool:
        folder = self.path
        # With nothing to resume, which is said later, there is nothing to keep others out of.
        if folder is None or (resume and not folder.exists()):
            return False

        def leave() -> None:
            (folder / LOCK).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # it is not empty, most often
                folder.rmdir()

        try:
            held.enter_context(locked(folder / LOCK))
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno in FULL:
                raise
            raise OSError(
                error.errno,
                f"Nothing can be written in {folder} ({error.strerror}), so no checkpoint could be kept there, and"
                " nothing was started. Make it writable, or choose another folder (--out).",
            ) from error
        held.callback(leave)
        return False
