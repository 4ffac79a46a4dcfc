"""The optimizers that come with bygrad. They lie in the folder `shipped` beside this file: its structure is the names.

`paper/mnist` is `shipped/paper/mnist.safetensors`; to ship another one is to put its file there.
"""

import difflib
import os
from pathlib import Path

from .canonical_json import shorten
from .errors import ArtifactError

_FOLDER = Path(__file__).parent / "shipped"
_SUFFIX = ".safetensors"


def shipped_names() -> list[str]:
    """Return the names of the artifacts that come with bygrad, sorted."""
    return sorted(path.relative_to(_FOLDER).as_posix().removesuffix(_SUFFIX) for path in _FOLDER.rglob(f"*{_SUFFIX}"))


def find(name_or_path: str | os.PathLike[str]) -> Path:
    """Return the path of an artifact, given as a shipped name such as `"paper/mnist"` or as the path of a file.

    A shipped name always means the shipped artifact, whatever lies in the working directory; write `./paper/mnist`
    for a file of your own that happens to be called so.

    **Raises:** `ArtifactError` for what is neither, with the names that there are and the nearest one.
    """
    names = shipped_names()
    if isinstance(name_or_path, str) and name_or_path in names:
        return _FOLDER / f"{name_or_path}{_SUFFIX}"
    path = Path(name_or_path)
    if os.path.isfile(path):  # and not path.is_file(), which raises for a name that is too long
        return path
    text = os.fspath(name_or_path)
    inside = path / f"optimizer{_SUFFIX}"
    if os.path.isfile(inside):
        raise ArtifactError(
            f"{shorten(text)} is a folder", "There is nothing to load", f"Give the file in it, {inside}"
        )
    if os.path.exists(text):
        raise ArtifactError(
            f"{shorten(text)} is a folder without an optimizer, or a device",
            "There is nothing to load",
            "Give the path of a file",
        )
    close = difflib.get_close_matches(text.removesuffix(_SUFFIX), names, n=1)
    raise ArtifactError(
        f"{shorten(text)} is neither a file nor the name of an optimizer that comes with bygrad",
        "There is nothing to load",
        (f"Did you mean {close[0]!r}? " if close else "")
        + (f"Give the path of a file, or one of: {', '.join(names)}" if names else "Give the path of a file")
        + ("" if names else "; this installation comes with no trained optimizers"),
    )
