"""A training run of the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fnloop.cli.flags import Flags
from fnloop.cli.recipe import Recipe


class Job(NamedTuple):
    """A training run to be done.

    Attributes:
        file: The recipe file.
        flags: Its flags.
        recipe: The recipe that it returned for these flags.
        folder: The run's folder; None if nothing is saved.
        start: The checkpoint to resume from; None for a new run.
        anew: Arguments of ``fnloop fit`` for a new run with these flags.
        overwrite: Whether another run's checkpoints in the folder are deleted.
    """

    file: Path
    flags: Flags
    recipe: Recipe
    folder: Path | None
    start: Path | None
    anew: Sequence[str]
    overwrite: bool = False
