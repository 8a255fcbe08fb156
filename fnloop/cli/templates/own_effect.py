"""``NewEffect``: say in a line what it does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fnloop as fl


class NewEffect(fl.base.Effect):
    """Write the loss of each step to a text file, and how the run has ended.

    An effect sees a run and cannot change it. ``fl.every(50, NewEffect(path))`` calls it every 50
    steps, with the mean of their metrics.

    Args:
        path: The file; one that is there is gone on with.
    """

    name = "new_effect"

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def open(self, run: Any) -> None:
        """Called before the first step."""
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def __call__(self, state: fl.State, metrics: Mapping[str, Any]) -> None:
        self._write(f"{int(state.cursor[2])} {float(metrics['loss']):.6g}")

    def close(self, status: str) -> None:
        """Called once, whatever has happened: "completed", "stopped", "interrupted", "failed"."""
        self._write(status)

    def _write(self, line: str) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")
