"""What commands show when they run and when they end."""

import importlib.util
import shlex
import sys
from pathlib import Path
from typing import Any

from rich.console import Console


def progress(quiet: bool = False) -> Any:
    """Return where progress is shown."""
    from ..workflows import Display

    return Display(Console(quiet=quiet))


def require_results(file: Path | None, folder: Path) -> None:
    """Refuse what would come to a report that cannot be drawn, or a file that cannot be written, before anything is
    computed for it. `folder`: where the report will be, which may not be there yet."""
    from .._core.files import refuse_unwritable

    refuse_unwritable(file, "--json")
    if file is not None and file.absolute() in (folder.absolute(), *folder.absolute().parents):
        raise IsADirectoryError(f"--json {file} would be a folder, that of the report. Choose another name.")
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError(
            "matplotlib is not installed, so the report at the end could not be drawn, and nothing was started."
            " Install it: pip install matplotlib."
        )


def finish(results: dict[str, Any], folder: Path, file: Path | None) -> None:
    """Show what was found, and write it to `file` where one is given."""
    import json

    from .._core.files import write_text_atomically
    from ..evaluation import level_cells, results_table, strict_json, time_line

    console = Console()
    if results.get("optimizers"):
        console.print(results_table(results))
    for level in results.get("levels", ()):
        what, paper, reach, ours, *_ = level_cells(level)
        beside = [f"paper {paper}"] * (level.get("paper") is not None)
        if level["reached"] is not None:
            beside.append(f"to reach {reach}: {'reached' if level['reached'] else 'NOT reached'}")
        line = f"{what}: {ours}" + "; " * bool(beside) + ", ".join(beside)
        console.print(line, highlight=False, soft_wrap=True)
    if line := time_line(results):
        console.print(f"time: {line}", highlight=False, soft_wrap=True)
    if file is not None:
        write_text_atomically(file, json.dumps(strict_json(results), indent=1))
    console.print(f"report: {folder / 'report.html'}", highlight=False, soft_wrap=True)


def known(table: dict[str, Any], name: str, kind: str) -> Any:
    """Return what a table has under a name, or say which names it has."""
    import difflib

    if name not in table:
        close = difflib.get_close_matches(name, table, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"There is no {kind} {name!r}.{hint} Known: {', '.join(table)}.")
    return table[name]


def command_line() -> str:
    """Return the command as it was typed."""
    return shlex.join(["bygrad", *sys.argv[1:]])
