"""Names for the files of runs: an earlier run's file is never overwritten."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path
from typing import Any


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


def is_name(run: Any) -> bool:
    """Whether a run's id can be the name of a file or folder, and leads to no other place.

    >>> is_name("a-2.jsonl"), is_name("../a"), is_name(5)
    (True, False, False)
    """
    if not isinstance(run, str) or run in ("", ".", "..") or len(run) > 200:
        return False
    return run.isprintable() and not set(run) & set("/\\:")


def end_last_line(path: Path) -> None:
    """Drop what follows the last newline: half a line, from a process that was killed."""
    with path.open("rb+") as file:
        file.truncate(file.read().rfind(b"\n") + 1)
