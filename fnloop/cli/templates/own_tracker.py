"""``NewTracker``: say in a line where it writes to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fnloop as fl


class NewTracker(fl.trackers.Tracker):
    """Write a run's numbers to a text file, a line for each; for ``fl.track(NewTracker(path))``.

    `fl.track` keeps numbers until there are enough, and calls `log` from another thread.

    Args:
        path: The file; one that is there is gone on with.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def open(self, config: Mapping[str, Any], run: str | None) -> None:
        """Called before the first step; `run` is the `id` of the run that is gone on with."""
        self.place = self.path.absolute()  # the working directory may change
        self.place.parent.mkdir(parents=True, exist_ok=True)
        self.id = self.place.name
        self._write(f"config {json.dumps(config, default=str)}")

    def log(self, numbers: Mapping[str, float], step: int, epoch: int) -> None:
        for name, value in numbers.items():
            self._write(f"{step} {name} {value:.6g}")

    def close(self, status: str) -> None:
        self._write(status)

    def _write(self, line: str) -> None:
        assert self.place is not None, "open(config, run) comes first"
        with self.place.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")
