"""A tracker for TensorBoard."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fnloop.trackers.base import Tracker
from fnloop.trackers.run_files import is_same
from fnloop.trees.json_codec import jsonable


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
        self.folder = Path(folder)
        self._writer: Any = None

    def open(self, config: Mapping[str, Any], run: str | None) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "fl.trackers.TensorBoard needs the tensorboard package, which is not installed: "
                "pip install fnloop[tensorboard]"
            ) from error
        self.folder = self.folder.absolute()  # the working directory may change during the run
        if run is not None and not (self.folder / run).exists():
            (self.folder / run).mkdir(parents=True)  # its folder was deleted
        elif run is None or not is_same(self.folder / run, self.place_before):
            run = None
        self.id = run or self._new_run()
        self.place = self.folder / self.id
        self._writer = SummaryWriter(str(self.place))
        if run is None:
            text = json.dumps(jsonable(config), indent=2)
            self._writer.add_text("config", "".join(f"    {line}\n" for line in text.splitlines()))

    def rewind(self, step: int) -> None:
        # TensorBoard reads this as: what has been written from that step on does not count.
        protocol: Any = importlib.import_module("tensorboard.compat.proto.event_pb2")
        start = protocol.SessionLog(status=protocol.SessionLog.START)
        self._writer.file_writer.add_event(protocol.Event(session_log=start), step + 1)

    def log(self, numbers: Mapping[str, float], step: int, epoch: int) -> None:
        for name, number in numbers.items():
            self._writer.add_scalar(name, number, global_step=step)
        self._writer.add_scalar("epoch", epoch, global_step=step)

    def close(self, status: str) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _new_run(self) -> str:
        self.folder.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            with contextlib.suppress(FileExistsError):
                (self.folder / f"run-{number}").mkdir()
                return f"run-{number}"
        raise AssertionError("unreachable")
