"""Pictures in files: reading and writing with Pillow, which comes with the extra `report`."""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..._core.files import write_atomically


def read_picture(
    path: str | os.PathLike[str],
    size: int,
    multiple: int = 1,
    check: Callable[[int, int], None] = lambda width, height: None,
) -> np.ndarray:
    """Read a picture, resized so that its longer side has `size` pixels: RGB bytes `[height, width, 3]`.

    What is transparent is shown on white: the colours that lie under it are not part of the picture.

    **Arguments:** `path`: a file of any kind that Pillow reads; the first frame of several. `size`: in pixels.
    `multiple`: both sides become multiples of it, which changes the proportions a little. `check`: is told width and
    height before the picture is resized to them, and may raise.

    **Raises:** `FileNotFoundError`, `ValueError` for what is not a picture, `ImportError` without Pillow.
    """
    Image, ImageOps = _pillow()
    if size < multiple:
        raise ValueError(f"size is {size}, but a side needs {multiple} pixels or more. Give a larger size.")
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}, so there is no picture to read. Check the path.")
    try:
        with Image.open(path) as file:
            held = ImageOps.exif_transpose(file)  # as its camera was held
        whole = held.convert("RGBA" if held.mode in ("LA", "PA", "RGBA") or "transparency" in held.info else "RGB")
    except (Image.DecompressionBombError, OSError, ValueError, SyntaxError, RuntimeError) as error:
        raise ValueError(
            f"{path} cannot be read as a picture ({error}): it is of another kind, cut short or damaged. Give a JPEG,"
            " PNG or another format that Pillow reads."
        ) from error
    if held.mode[0] in "IF":  # Pillow would cut them at 255: white, or black
        raise ValueError(
            f"{path} has grey values of 16 or 32 bits, whose white is not known here. Save it with 8 bits a channel."
        )
    picture = Image.new("RGB", whole.size, "white")
    picture.paste(whole, mask=whole if whole.mode == "RGBA" else None)
    scale = size / max(picture.size)
    width, height = (max(multiple, round(side * scale / multiple) * multiple) for side in picture.size)
    check(width, height)
    return np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS))


def write_picture(path: str | os.PathLike[str], picture: np.ndarray) -> None:
    """Write RGB bytes `[height, width, 3]` as PNG or JPEG, which the ending decides; the file is whole or absent."""
    Image, _ = _pillow()
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format=kind_of(path))
    write_atomically(path, buffer.getvalue())


def _pillow() -> tuple[Any, Any]:
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ImportError(
            f"Pictures are read and written with Pillow, which is not installed ({error}). Install it with:"
            " pip install pillow."
        ) from error
    return Image, ImageOps


def kind_of(path: str | os.PathLike[str]) -> str:
    """Return the format that the ending of a path asks for; `ValueError` for one that nothing here writes."""
    kinds = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
    ending = Path(path).suffix.lower()
    if ending not in kinds:
        raise ValueError(f"{path} ends in {ending or 'nothing'}, so the format is not clear. End it in .png or .jpg.")
    return kinds[ending]
