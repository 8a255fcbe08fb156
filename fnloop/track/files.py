"""Names for the files of runs: an earlier run's file is never overwritten."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path


def claim(path: Path) -> Path:
    """Create `path`, or ``<stem>-2<suffix>``, ``-3``, ... where earlier runs have their files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        candidate = path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        try:
            candidate.touch(exist_ok=False)
        except FileExistsError:
            continue
        if number > 1:
            warnings.warn(
                f"{path} holds an earlier run; this run is written to {candidate.name}.",
                stacklevel=2,
            )
        return candidate
    raise AssertionError("unreachable")


def end_last_line(path: Path) -> None:
    """Drop what follows the last newline: half a line, from a process that was killed."""
    with path.open("rb+") as file:
        file.truncate(file.read().rfind(b"\n") + 1)
