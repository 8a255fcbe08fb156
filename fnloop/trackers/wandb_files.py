"""The file of a run of Weights & Biases, up to a step."""

from __future__ import annotations

import importlib
import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_HEADER, _BLOCK, _PREFIX = 7, 32768, 7  # bytes: of the file, of a block, before each piece
_WHOLE, _FIRST, _LAST = 1, 2, 4  # kinds of pieces of a record


def cut_after(path: Path, step: int) -> None:
    """Cut a file of an offline run before its first point after `step`.

    It is left as if the process had been killed then.
    """
    for start, record in records(path):
        at = step_of(record)
        if at is not None and at > step:
            with path.open("rb+") as file:
                file.truncate(start)
            return


def await_end(path: Path, patience: float = 30.0) -> None:
    """Wait until the record of the end is there: ``finish`` returns before it is written."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        blocks = max(0, path.stat().st_size // _BLOCK - 1)
        if any(record.HasField("exit") for _, record in records(path, blocks * _BLOCK)):
            return
        time.sleep(0.02)


def records(path: Path, start: int = 0) -> Iterator[tuple[int, Any]]:
    """The records of a file from a block on that begins at `start`, and where each begins.

    It is a log of LevelDB: blocks of 32 KiB with pieces of records, each behind its checksum (4
    bytes), length (2) and kind (1). A piece that a killed process has not finished ends it.
    """
    with path.open("rb") as file:
        file.seek(start)
        data = file.read()
    Record = importlib.import_module("wandb.proto.wandb_internal_pb2").Record
    at, first, held = 0 if start else _HEADER, 0, b""
    while at + _PREFIX <= len(data):
        left = _BLOCK - at % _BLOCK
        if left < _PREFIX:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        piece = data[at + _PREFIX : at + _PREFIX + length]
        if not kind or len(piece) < length:
            return
        if kind in (_WHOLE, _FIRST):
            first, held = start + at, b""
        at += _PREFIX + length
        if kind in (_WHOLE, _FIRST) or held:  # and not the rest of a record before `start`
            held += piece
        if kind in (_WHOLE, _LAST) and held:
            record = Record()
            record.ParseFromString(held)
            yield first, record
            held = b""


def step_of(record: Any) -> int | None:
    """The step of a point; None of other records."""
    for item in record.history.item:
        if item.key == "step" or list(item.nested_key) == ["step"]:
            return int(json.loads(item.value_json))
    return None
