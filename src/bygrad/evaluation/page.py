"""A page of figures and tables, in the style of a report, for what is not one comparison."""

import dataclasses
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from .._core.files import write_text_atomically
from . import report
from .drawing import prefixed_ids, save

if TYPE_CHECKING:
    import matplotlib.figure


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure of a page: drawn here, or the SVG that another report has written. Its `name` is that of its files."""

    name: str
    caption: str
    figure: "matplotlib.figure.Figure | None" = None
    svg: str | None = None


@dataclasses.dataclass(frozen=True)
class Sheet:
    """A table of a page: plain texts, of which the first `text_columns` in a row are words and the others numbers."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text_columns: int = 1


def write_page(folder: Path, title: str, statement: str, parts: Sequence[Picture | Sheet]) -> Path:
    """Write `report.html` into `folder`, and each figure that is drawn here as `.png` and `.svg`.

    **Returns:** the path of the page. **Raises:** `ImportError` without matplotlib, if there is a figure to draw.
    """
    body = [f"<h1>{escape(title)}</h1>", f"<p>{escape(statement)}</p>"]
    for part in parts:
        if isinstance(part, Sheet):
            rows = [("", [escape(cell) for cell in row]) for row in part.rows]
            body += [f"<h2>{escape(part.title)}</h2>", report.html_table(part.headings, rows, part.text_columns)]
        else:
            body.append(report.html_figure(_svg_of(part, folder), part.caption))
    write_text_atomically(folder / "report.html", report.html_page(title, body))
    return folder / "report.html"


def _svg_of(picture: Picture, folder: Path) -> str:
    if picture.figure is not None:
        save(picture.figure, folder / picture.name)
        return (folder / f"{picture.name}.svg").read_text(encoding="utf-8")
    return prefixed_ids(picture.svg or "", picture.name)
