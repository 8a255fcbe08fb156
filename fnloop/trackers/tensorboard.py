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
from typing import Any, cast

from fnloop.trackers.base import Tracker
from fnloop.trackers.distributions import Histogram
from fnloop.trackers.flat_config import flat
from fnloop.trackers.pictures import Image
from fnloop.trackers.run_files import append, is_same, local
from fnloop.trackers.shown import Shown, Text
from fnloop.trackers.sounds import Audio
from fnloop.trees.json_codec import jsonable

_VERSION = "brain.Event:2"


class TensorBoard(Tracker):
    """Write a run to a TensorBoard folder; view it with ``tensorboard --logdir FOLDER``.

    Each run gets its own folder, ``run-1``, ``run-2``, ...; a resumed run continues in its own, and
    points that a killed run had written after its last checkpoint are not shown. Hyperparameters
    are on the tabs HParams, where runs are compared by their metrics, and Text. Files it does not
    take.

    Args:
        folder: The folder of runs; created if missing.

    Raises:
        ImportError: In `open`, if the tensorboard package is missing.

    >>> from fnloop.trackers import TensorBoard
    >>> from fnloop import track
    >>> effect = track(TensorBoard("runs/tensorboard"))
    """

    takes = (Image, Text, Audio, Histogram)

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
            _, begun, _ = self._parts.hparams(_settings(config), {})
            self._append([{"summary": begun}])

    def rewind(self, step: int) -> None:
        # TensorBoard reads this as: what has been written from that step on does not count.
        self._append([{"session_log": self._parts.start, "step": step + 1}])

    def log(self, numbers: Mapping[str, float], step: int, epoch: int) -> None:
        self._append(
            {"summary": self._parts.scalar(name, number), "step": step}
            for name, number in {**numbers, "epoch": epoch}.items()
        )

    def show(self, name: str, value: Shown, step: int, epoch: int) -> None:
        self._append([{"summary": self._summary(name, value), "step": step}])

    def close(self, status: str) -> None:
        if self._file is not None and status in ("completed", "stopped"):
            _, _, ended = self._parts.hparams({}, {})
            self._append([{"summary": ended}])
        self._file = None

    def _summary(self, name: str, value: Shown) -> Any:
        Summary, kind = self._parts.Summary, {}
        if isinstance(value, Text):
            return self._parts.text(name, value.text)
        if isinstance(value, Histogram):
            found = value.read()
            # TensorBoard has each bin by its right end, and the first one's left end besides.
            ends, counts = found.edges.tolist(), [0, *found.counts.tolist()]
            return self._parts.histogram(
                name, ends[0], ends[-1], sum(counts), found.total, found.squares, ends, counts
            )
        if isinstance(value, Image):
            height, width, channels = value.pixels().shape
            kind["image"] = Summary.Image(
                height=height, width=width, colorspace=channels, encoded_image_string=value.png()
            )
        elif isinstance(value, Audio):
            length, channels = value.samples().shape
            kind["audio"] = Summary.Audio(
                sample_rate=value.rate,
                num_channels=channels,
                length_frames=length,
                encoded_audio_string=value.wav(),
                content_type="audio/wav",
            )
        return Summary(value=[Summary.Value(tag=name, **kind)])

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


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Hyperparameters as TensorBoard takes them: numbers, bools and strings."""
    found = {name: value for name, value in flat(config).items() if value is not None}
    kinds = (bool, int, float, str)
    return {n: value if isinstance(value, kinds) else str(value) for n, value in found.items()}


def _import_parts() -> Any:
    try:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter
        from torch.utils.tensorboard import summary
    except ImportError as error:
        raise ImportError(
            "fl.trackers.TensorBoard needs the tensorboard package, which is not installed: "
            "pip install fnloop[tensorboard]"
        ) from error
    proto, kinds = cast("tuple[Any, Any]", (event_pb2, summary_pb2))
    return types.SimpleNamespace(
        Event=proto.Event,
        start=proto.SessionLog(status=proto.SessionLog.START),
        RecordWriter=RecordWriter,
        Summary=kinds.Summary,
        scalar=summary.scalar,
        histogram=summary.histogram_raw,
        hparams=summary.hparams,
        text=summary.text,
    )


def _new_file(folder: Path) -> Path:
    """A name as TensorBoard gives: it reads the files of a folder in the order of their names."""
    number = len(list(folder.glob("events.out.tfevents.*")))
    name = f"{int(time.time()):010d}.{socket.gethostname()}.{number:06d}.{os.getpid()}"
    return folder / f"events.out.tfevents.{name}"
