"""Artifacts on the Hugging Face Hub. With `problems/data/download.py`, the only module that uses the network.

Nothing is sent or fetched but by `push` and `pull`. What is pulled is named by a commit, which cannot change, and is
verified like any file: the Hub is not trusted.
"""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..artifacts import SOLVER, Artifact, ArtifactError, find, load, save, to_bytes
from .card import model_card

FILE = "optimizer.safetensors"
"""The name of the artifact in a repository."""

MAX_BYTES = 1 << 30
"""What is fetched at most."""


def push(artifact: str | os.PathLike[str], repo: str, *, revision: str = "main", private: bool = False) -> str:
    """Upload an artifact and its model card to a repository, which is made if there is none; return the commit.

    **Arguments:** `artifact`: a shipped artifact by name, or a file. `repo`: `owner/name`. `revision`: the branch to
    commit to, made if there is none. `private`: hide a new repository; else it is as its owner, an organization
    say, has new ones. The token is that of `hf auth login`, or `HF_TOKEN`.

    **Raises:** `ArtifactError` for a file that is not whole, or holds a solver; `ImportError` without
    `huggingface_hub`; `ConnectionError` with what the Hub answered.
    """
    hub = _library()
    read = load(find(artifact))
    if read.manifest.optimizer == SOLVER:
        raise ArtifactError(
            f"{read.manifest.name} is a learned solver, which belongs to one family of problems",
            "The card would tell others to use it as an optimizer",
            "Share its file together with the source of the family",
        )
    with _explained(f"{read.manifest.name} could not be uploaded to {repo}"):
        api = hub.HfApi()
        api.create_repo(repo, private=private or None, exist_ok=True)
        if revision != "main":
            api.create_branch(repo, branch=revision, exist_ok=True)
        files = {FILE: to_bytes(read), "README.md": model_card(read.manifest, repo, FILE).encode()}
        done = api.create_commit(
            repo,
            [hub.CommitOperationAdd(name, data) for name, data in files.items()],
            commit_message=f"Upload {read.manifest.name}",
            revision=revision,
        )
    return done.oid


def pull(repo: str, *, revision: str, out: str | os.PathLike[str]) -> Artifact:
    """Download the artifact of a commit to the file `out` and return it, verified.

    **Arguments:** `repo`: `owner/name`. `revision`: the 40 digits of a commit, as `push` prints them and the Hub shows
    them. A branch or a tag can be moved to something else, so neither will do.

    **Raises:** `ValueError` for a revision that is no commit; `FileExistsError` rather than overwrite `out`;
    `ArtifactError` for what is not an artifact, or not of this commit; `ConnectionError` with what the Hub answered.
    """
    if re.fullmatch("[0-9a-f]{40}", revision) is None:
        raise ValueError(
            f"The revision {revision!r} is not the 40 digits of a commit. A branch or a tag can be moved, and another"
            f" optimizer would come without notice. Take a commit from the history of {repo} on the Hub."
        )
    if os.path.lexists(out):
        raise FileExistsError(f"{os.fspath(out)} already exists and would be overwritten. Choose another name.")
    hub = _library()
    where = f"{repo} at {revision}"
    with tempfile.TemporaryDirectory() as folder:
        with _explained(f"{where} could not be downloaded"):
            found = hub.get_hf_file_metadata(hub.hf_hub_url(repo, FILE, revision=revision))
            if found.commit_hash != revision:
                raise ArtifactError(
                    f"{where}: the server answers with the commit {found.commit_hash}",
                    "That is not what was asked for",
                    "Take the commit from the history of the repository, and its owner from someone you trust",
                )
            if found.size is not None and found.size > MAX_BYTES:
                raise ArtifactError(
                    f"{where}: {FILE} has {found.size:,} bytes, and at most {MAX_BYTES:,} are fetched",
                    "It is no optimizer, or one that was never meant to be shared like this",
                    "Download it by other means, and look at it with `bygrad verify`",
                )
            # Not to the shared cache, whose folders are named by what a server says.
            path = Path(hub.hf_hub_download(repo, FILE, revision=revision, local_dir=folder))
        try:
            artifact = load(path)
        except ArtifactError as error:
            cause = error.cause.removeprefix(f"{path}: ")
            raise ArtifactError(f"{where}: {cause}", error.consequence, error.remedy) from None
    save(out, artifact, new=True)
    return artifact


def _library() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError(
            f"The Hub needs the library `huggingface_hub`, which is not installed ({error}). Install it with:"
            " pip install huggingface_hub."
        ) from error
    return huggingface_hub


@contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except ArtifactError:
        raise
    except Exception as error:
        # What is missing, or a token that is not enough, as the library says it; answers that are not the Hub's; and
        # the errors of several network stacks, which the library lets through.
        reason = " ".join(str(error).split())
        raise ConnectionError(
            f"{what} ({type(error).__name__}: {reason}). Nothing was changed here. Check the name, the commit, the"
            " network and, for what is private or to be written, the token (hf auth login)."
        ) from error
