"""The folder that something long leaves its results in: whose it is, and what an interrupted run has there."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .._core.files import read_json, unwritable, write_text_atomically
from ..evaluation import strict_json, write_report
from ..training import from_lead
from ..training.folder import LOCK

IDENTITIES = "experiment.json", "family.sha256"
"""Files that say what a folder is for, and hold nothing of it."""
OF_NOBODY = "It says what the folder is for, so nothing there can be trusted to be of this run: choose another (--out)."
"""What to do where the first of them is damaged."""


def refuse_used(folder: Path, *, resumable: bool = True) -> None:
    """Raise `FileExistsError` if there is a file in the folder, but for the lock of a process that was killed before it
    wrote any, and `OSError` if nothing can be written there. In a job of several processes, process 0 looks.

    **Arguments:** `resumable`: whether the command that is refused can go on with what is there.
    """
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file, so nothing can be kept in it. Choose another folder (--out).")
    used = from_lead(lambda: str(any(path.is_file() and path.name != LOCK for path in folder.rglob("*"))).encode())
    if used == b"True":
        remedy = "Go on with it (--resume) or choose" if resumable else "Choose"
        raise FileExistsError(
            f"{folder} already exists, and what is in it would be overwritten. {remedy} another folder (--out)."
        )
    if why := from_lead(lambda: unwritable(folder).encode()).decode():
        raise PermissionError(why)


def claim(folder: Path, identity: dict[str, Any], resume: bool) -> None:
    """Write down what a folder is for, or check that it is for this and that `resume` is on."""
    path = folder / "experiment.json"
    if not resume or (folder.exists() and not folder.is_dir()):
        refuse_used(folder)
    elif folder.exists() and any(folder.iterdir()):
        found = read_json(path, OF_NOBODY) if path.exists() else {}
        # More sources of data at the end change nothing for what has found its own among the first.
        if str(identity.get("data", "")).startswith(f"{found.get('data')},"):
            found["data"] = identity["data"]
        if different := [key for key in identity if found.get(key) != identity[key]]:
            pairs = ", ".join(f"{key} was {found.get(key)}, is {identity[key]}" for key in different)
            raise ValueError(
                f"{folder} holds another experiment ({pairs}), so it cannot be resumed as this one. Resume with the"
                " same arguments, or choose another folder."
            )
    write_text_atomically(path, json.dumps(identity, indent=2))


@contextlib.contextmanager
def leaving_nothing(folder: Path) -> Iterator[None]:
    """Remove from a new folder what says whose it is where an error comes before there is anything else in it: with the
    mistake mended, the folder can be used."""
    new = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    try:
        yield
    except Exception:
        if new and folder.is_dir() and all(path.name in IDENTITIES for path in folder.iterdir()):
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()
        raise


def reported(folder: Path) -> dict[str, Any] | None:
    """Return the results that an earlier run has written a report of, or None. The page comes last: where it was not
    drawn any more, it is now."""
    if not (kept := folder / "results.json").exists():
        return None
    results = read_json(kept)
    if not (folder / "report.html").exists():
        write_report(results, folder)
    return results


class Kept(dict[str, dict[str, Any]]):
    """Results by name that are in a file as soon as they are here, and are read from it where it exists."""

    def __init__(self, path: Path) -> None:
        super().__init__(read_json(path) if path.exists() else {})
        self._path = path

    def __setitem__(self, name: str, results: dict[str, Any]) -> None:
        super().__setitem__(name, results)
        write_text_atomically(self._path, json.dumps(strict_json(dict(self))))


def seconds_kept(folder: Path, what: str, seconds: float | None) -> float | None:
    """Keep in a folder how many seconds something took; or, with None, where it was not done now or not as a whole,
    return what was kept, if anything."""
    kept = Kept(folder / "seconds.json")
    if seconds is not None:
        kept[what] = {"seconds": seconds}
    return kept.get(what, {}).get("seconds")
