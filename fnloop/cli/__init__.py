"""The command line, and the recipes that it runs."""

from __future__ import annotations

from collections.abc import Sequence

from fnloop.cli.recipe import Recipe as Recipe


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command of ``fnloop``.

    Args:
        arguments: As on the command line, without the program's name; default ``sys.argv[1:]``.

    Returns:
        The exit code: 0; 1 if something failed; 2 for a wrong command line or configuration; 130
        for Ctrl-C, even if the run ended in good order.
    """
    from fnloop.cli.app import run  # not needed by those who only import fnloop

    return run(arguments)
