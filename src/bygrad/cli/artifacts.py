"""Commands on files of trained optimizers."""

from pathlib import Path
from typing import Annotated

from rich.console import Console
from rich.markup import escape
from tyro.conf import Positional, arg

from .options import Artifact


def inspect(artifact: Artifact) -> None:
    """Check an artifact and print what it says about itself, but for the numbers of its golden trajectory."""
    import json

    from ..artifacts import find, load

    fields = json.loads(load(find(artifact)).manifest.to_json())
    if "trajectory" in fields:
        fields["trajectory"] = {"steps": len(fields["trajectory"].get("steps", ()))}
    Console().print_json(data=fields, ensure_ascii=True)  # letters could steer the terminal


def verify(artifact: Artifact) -> None:
    """Check every byte of an artifact, and replay its golden trajectory in JAX and in PyTorch."""
    from ..deploy import verify as replay

    console = Console(highlight=False, soft_wrap=True)
    for done in replay(artifact):
        off = done.remark if done.deviation is None else f"off by {done.deviation:.1e} of the largest update"
        console.print(f"{done.framework}: {escape(off)}")
    console.print("The file is whole, and nothing that was replayed differs.")


def push(
    artifact: Artifact,
    repo: Positional[Annotated[str, arg(help="Repository on the Hugging Face Hub.", metavar="OWNER/NAME")]],
    revision: Annotated[str, arg(help="Branch to commit to.")] = "main",
    private: Annotated[bool, arg(help="Hide the repository, if it is new.")] = False,
) -> None:
    """Upload an artifact with a model card to the Hugging Face Hub, and print the commit to pull it by."""
    from ..deploy import hub

    commit = hub.push(artifact, repo, revision=revision, private=private)
    Console(highlight=False, soft_wrap=True).print(f"bygrad pull {escape(repo)} --revision {commit}")


def pull(
    repo: Positional[Annotated[str, arg(help="Repository on the Hugging Face Hub.", metavar="OWNER/NAME")]],
    revision: Annotated[str, arg(help="The 40 digits of a commit: what a branch means can change.", metavar="COMMIT")],
    out: Annotated[Path, arg(help="File to write; nothing is overwritten.", metavar="FILE")] = Path(
        "optimizer.safetensors"
    ),
) -> None:
    """Download a trained optimizer from the Hugging Face Hub, by commit, and verify it."""
    from ..deploy import hub

    artifact = hub.pull(repo, revision=revision, out=out)
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{artifact.manifest.name}, a {artifact.manifest.optimizer}: {escape(str(out))}")
