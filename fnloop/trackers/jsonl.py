"""A tracker that writes JSON lines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from fnloop.trackers.base import Tracker
from fnloop.trackers.run_files import claim, end_last_line, is_same, replace
from fnloop.trees.json_codec import jsonable


class JSONL(Tracker):
    """Write a run to a file of JSON lines.

    The first line is ``{"config": {...}}``; each further line is one point,
    ``{"step": 50, "epoch": 1, "loss": 0.3, ...}``. JSON has no nan and no infinity: they are
    written as the strings ``"nan"``, ``"inf"`` and ``"-inf"``, which `float` reads. A new run never
    writes to an earlier run's file, but to ``<stem>-2.jsonl``, with a warning. A resumed run
    goes on in its file, without the lines that a killed run had written after its last checkpoint.

    Args:
        path: The file; missing folders are created.

    Attributes:
        path: The file that is written; absolute from `open` on.

    >>> from fnloop.trackers import JSONL
    >>> from fnloop import track
    >>> effect = track(JSONL("runs/a.jsonl"))
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._asked = self.path
        self._file: TextIO | None = None

    def open(self, config: Mapping[str, Any], run: str | None) -> None:
        asked = self._asked.absolute()  # the working directory may change during the run
        going_on = run is not None and is_same(asked.with_name(run), self.place_before)
        self.path = self.place = asked.with_name(run) if run and going_on else claim(asked)
        if going_on:
            end_last_line(self.path)
        self.id, self.place = self.path.name, self.path
        self._file = self.path.open("a", encoding="utf-8")
        if not self.path.stat().st_size:
            self._write({"config": config})

    def rewind(self, step: int) -> None:
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if not _is_after(line, step)]
        if len(kept) < len(lines):
            self.close("")
            replace(self.path, "".join(kept))
            self._file = self.path.open("a", encoding="utf-8")

    def log(self, numbers: Mapping[str, float], step: int, epoch: int) -> None:
        self._write({"step": step, "epoch": epoch, **numbers})

    def close(self, status: str) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, line: Mapping[str, Any]) -> None:
        if self._file is None:
            raise ValueError(f"{self.path} is not open: call open(config, run) first.")
        self._file.write(json.dumps(jsonable(line), allow_nan=False) + "\n")
        self._file.flush()


def _is_after(line: str, step: int) -> bool:
    try:
        point = json.loads(line)
    except ValueError:
        return False
    found = point.get("step") if isinstance(point, dict) else None
    return isinstance(found, int) and found > step
