"""A tracker for TensorBoard."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import socket
import time
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fnloop.trackers.base import Tracker
from fnloop.trackers.run_files import append, is_same, local
from fnloop.trees.json_codec import jsonable

_VERSION = "brain.Event:2"


class TensorBoard(Tracker):
    """Write a run to a TensorBoard folder; view it with ``tensorboard --logdir FOLDER``.

    Each run gets its own folder, ``run-1``, ``run-2``, ...; a resumed run continues in its own, and
    points that a killed run had written after its last checkpoint are not shown.
    Hyperparameters are on the Text tab.

    Args:
        folder: The folder of runs; created if missing.

    Raises:
        ImportError: In `open`, if the tensorboard package is missing.

    >>> from fnloop.trackers import TensorBoard
    >>> from fnloop import track
    >>> effect = track(TensorBoard("runs/tensorboard"))
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = local(folder, "fl.trackers.TensorBoard")
        self._file: Path | None = None
        self._parts: Any = None

    def open(self, config: Mapping[str, Any], run: str | None) -> None:
        self._parts = _import_parts()
        self.folder = self.folder.absolute()  # the working directory may change during the run
        if run is not None and not (self.folder / run).exists():
            (self.folder / run).mkdir(parents=True)  # its folder was deleted
        elif run is None or not is_same(self.folder / run, self.place_before):
            run = None
        self.id = run or self._new_run()
        self.place = self.folder / self.id
        self._file = _new_file(self.place)
        self._append([])
        if run is None:
            text = json.dumps(jsonable(config), indent=2)
            text = "".join(f"    {line}\n" for line in text.splitlines())
            self._append([{"summary": self._parts.text("config", text)}])

    def rewind(self, step: int) -> None:
        # TensorBoard reads this as: what has been written from that step on does not count.
        self._append([{"session_log": self._parts.start, "step": step + 1}])

    def log(self, numbers: Mapping[str, float], step: int, epoch: int) -> None:
        self._append(
            {"summary": self._parts.scalar(name, number), "step": step}
            for name, number in {**numbers, "epoch": epoch}.items()
        )

    def close(self, status: str) -> None:
        self._file = None

    def _append(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Write events; here, and not by `SummaryWriter`, whose thread dies of the first error."""
        if self._file is None:
            raise ValueError("The tracker is not open: call open(config, run) first.")
        append(self._file, self._records(events), self._records([{"file_version": _VERSION}]))

    def _records(self, events: Iterable[Mapping[str, Any]]) -> bytes:
        held = io.BytesIO()
        writer, now = self._parts.RecordWriter(held), time.time()
        for event in events:
            writer.write(self._parts.Event(wall_time=now, **event).SerializeToString())
        return held.getvalue()

    def _new_run(self) -> str:
        self.folder.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            with contextlib.suppress(FileExistsError):
                (self.folder / f"run-{number}").mkdir()
                return f"run-{number}"
        raise AssertionError("unreachable")


def _import_parts() -> Any:
    try:
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter
        from torch.utils.tensorboard import summary
    except ImportError as error:
        raise ImportError(
            "fl.trackers.TensorBoard needs the tensorboard package, which is not installed: "
            "pip install fnloop[tensorboard]"
        ) from error
    proto: Any = event_pb2
    return types.SimpleNamespace(
        Event=proto.Event,
        start=proto.SessionLog(status=proto.SessionLog.START),
        RecordWriter=RecordWriter,
        scalar=summary.scalar,
        text=summary.text,
    )


def _new_file(folder: Path) -> Path:
    """A name as TensorBoard gives: it reads the files of a folder in the order of their names."""
    number = len(list(folder.glob("events.out.tfevents.*")))
    name = f"{int(time.time()):010d}.{socket.gethostname()}.{number:06d}.{os.getpid()}"
    return folder / f"events.out.tfevents.{name}"
