"""How the documentation is built: `make docs`."""

import importlib.metadata
import re
from typing import Any

project = "bygrad"
copyright = "the bygrad authors"
release = importlib.metadata.version("bygrad")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax"]
myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 2

html_theme = "furo"
html_title = "bygrad"
html_baseurl = ""

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "imported-members": True}
default_role = "code"

_MATH = re.compile(r"\$\$(?P<display>.+?)\$\$|\$(?P<inline>[^$\n]+(?:\n[^$\n]+)?)\$", re.DOTALL)


def _to_rst(app: Any, what: str, name: str, target: Any, options: Any, lines: list[str]) -> None:
    """Turn the mathematics and the bold openings of the docstrings, which are Markdown's, into Sphinx's."""

    def math(found: re.Match[str]) -> str:
        if found["display"] is not None:
            body = " ".join(found["display"].split())
            return f"\n\n.. math:: {body}\n\n"
        return f":math:`{' '.join(found['inline'].split())}`"

    text = _MATH.sub(math, "\n".join(lines))
    # A role has to end at a word's end: `n`² and $k$th do not.
    text = re.sub(r"((?<![`\w])(?::math:)?`[^`\s](?:[^`\n]*[^`\s])?`)(?=[^\W_])", r"\1\\ ", text)
    lines[:] = text.split("\n")


def _leave_out(app: Any, what: str, name: str, target: Any, skip: bool, options: Any) -> bool:
    """Fields of modules are described in the class, and tables would be printed whole."""
    return skip or (what == "module" and not callable(target))


def setup(app: Any) -> None:
    """Register the hooks."""
    app.connect("autodoc-process-docstring", _to_rst)
    app.connect("autodoc-skip-member", _leave_out)
