"""Options that several commands have."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

Families = Annotated[
    str,
    arg(
        help="A family by name (see `bygrad list`), or path/to/file.py:Class; without :Class the only one in the file.",
        metavar="NAME",
    ),
]
Data = Annotated[
    str,
    arg(
        help="Images for the families that need them: mnist (carried by the package), a local file, hf:ylecun/mnist. Of"
        " several with commas between them, each family takes the first that fits."
    ),
]
Folder = Annotated[
    Path | None,
    arg(help="Folder for everything that is written; if not given, one in runs.", metavar="DIR", aliases=["-o"]),
]
Resume = Annotated[bool, arg(help="Go on with what an interrupted run left in the folder, if any.")]
Json = Annotated[Path | None, arg(help="Write the results to this file as well.", metavar="FILE")]
Seed = Annotated[int, arg(help="Seed of everything random.")]
Hosts = Annotated[
    str | None,
    arg(
        help="Place in a job of several processes: auto (SLURM, Open MPI, Kubernetes, TPU), or where process 0 listens,"
        " how many there are and which one this is, from 0; none: alone, whoever has started it.",
        metavar="ADDRESS:PORT,COUNT,INDEX",
    ),
]
Artifact = Positional[Annotated[str, arg(help="A shipped artifact by name, or a file.", metavar="ARTIFACT")]]


def label_of(family: str) -> str:
    """Return what a family is called in the names of folders: its class, or its file where no class is named."""
    file, _, name = family.rpartition(":")
    return Path(name or file).stem.lower()
