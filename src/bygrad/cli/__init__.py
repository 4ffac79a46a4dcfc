"""The command `bygrad`."""

import sys


def main(arguments: list[str] | None = None) -> None:
    """Run the command (`bygrad.cli.command.run`)."""
    try:
        from .command import run  # what reads options takes its time to load, and Ctrl-C may come in it
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(130)
    run(arguments)
