"""A tracker that writes JSON lines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fnloop.trackers.base import Tracker
from fnloop.trackers.distributions import Histogram
from fnloop.trackers.run_files import append, claim, end_last_line, is_same, local, replace
from fnloop.trackers.shown import Shown, Text
from fnloop.trees.json_codec import jsonable


class JSONL(Tracker):
    """Write a run to a file of JSON lines.

    The first line is ``{"config": {...}}``; each further line is one point,
    ``{"step": 50, "epoch": 1, "loss": 0.3, ...}``. JSON has no nan and no infinity: they are
    written as the strings ``"nan"``, ``"inf"`` and ``"-inf"``, which `float` reads. What is shown
    is a line of its own: a text ``{"step": 50, "epoch": 1, "sample": "a b"}``, a histogram
    ``{..., "weight": {"counts": [...], "edges": [first, last]}}``; other kinds are not taken. A new
    run never writes to an earlier run's file, but to ``<stem>-2.jsonl``, with a warning. A resumed
    run goes on in its file, without the lines that a killed run had written after its last
    checkpoint.

    Args:
        path: The file; missing folders are created.

    Attributes:
        path: The file that is written; absolute from `open` on.

    >>> from fnloop.trackers import JSONL
    >>> from fnloop import track
    >>> effect = track(JSONL("runs/a.jsonl"))
    """

    takes = (Text, Histogram)

    def __init__(self, path: str | Path) -> None:
        self.path = local(path, "fl.trackers.JSONL")
        self._asked = self.path
        self._first: bytes | None = None  # the first line

    def open(self, config: Mapping[str, Any], run: str | None) -> None:
        asked = self._asked.absolute()  # the working directory may change during the run
        going_on = run is not None and is_same(asked.with_name(run), self.place_before)
        self.path = self.place = asked.with_name(run) if run and going_on else claim(asked)
        if going_on:
            end_last_line(self.path)
        self.id = self.path.name
        self._first = _line({"config": config})
        append(self.path, b"", beginning=self._first)

    def rewind(self, step: int) -> None:
        lines = self.path.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines if not _is_after(line, step)]
        if len(kept) < len(lines):
            replace(self.path, b"".join(kept))

    def log(self, numbers: Mapping[str, float], step: int, epoch: int) -> None:
        self._append({"step": step, "epoch": epoch, **numbers})

    def show(self, name: str, value: Shown, step: int, epoch: int) -> None:
        shown: Any = None
        if isinstance(value, Text):
            shown = value.text
        elif isinstance(value, Histogram):
            found = value.read()
            shown = {"counts": found.counts.tolist(), "edges": found.edges[[0, -1]].tolist()}
        self._append({"step": step, "epoch": epoch, name: shown})

    def _append(self, entries: Mapping[str, Any]) -> None:
        if self._first is None:
            raise ValueError(f"{self.path} is not open: call open(config, run) first.")
        append(self.path, _line(entries), beginning=self._first)

    def close(self, status: str) -> None:
        self._first = None


def _line(entries: Mapping[str, Any]) -> bytes:
    return (json.dumps(jsonable(entries), allow_nan=False) + "\n").encode()


def _is_after(line: bytes, step: int) -> bool:
    try:
        point = json.loads(line)
    except ValueError:
        return False
    found = point.get("step") if isinstance(point, dict) else None
    return isinstance(found, int) and found > step
