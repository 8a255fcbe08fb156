"""Arrays that grow batch by batch, with a log of the batches: a killed process loses none."""

from __future__ import annotations

import itertools
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from fnloop.store.columns import Columns
from fnloop.store.files import write_all
from fnloop.store.growing_array import GrowingArray
from fnloop.values.cursor import Cursor

LOG = "batches.log"
FORMAT = 1


class BatchFiles:
    """The outputs of one epoch's batches in a folder, a ``.npy`` file for each name.

    A batch is written to the arrays first and then, as one line, to a log: how many rows it has,
    where the data stood after it, and a checksum of what it wrote to each file. Whatever a killed
    process or a power failure leaves, `BatchFiles(folder)` keeps the batches whose checksums are
    right, up to the first that is missing, and cuts off the rest. So no batch waits for the disk.

    Args:
        folder: The folder; it exists.
        about: What the outputs are of, as JSON. That of what is there already has precedence.

    Attributes:
        about: As given, or as it was when the first batch was written.
        batches, rows: How many are there.
        cursor: The data's, after the last of them.
    """

    def __init__(self, folder: Path, about: Any = None) -> None:
        self.folder, self.about = folder, about
        self.batches = self.rows = 0
        self.cursor = Cursor()
        self._arrays: dict[str, GrowingArray] = {}
        path = folder / LOG
        self._log = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)
        self._end = 0
        self._recover()

    @property
    def kinds(self) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
        """Dtype, and shape of one row, by name of the array; once there is a batch."""
        return {name: (array.dtype, array.shape) for name, array in self._arrays.items()}

    def append(self, columns: Columns, cursor: Cursor) -> None:
        """Add a batch.

        Args:
            columns: Arrays by name, with one leading dimension.
            cursor: The data's, after it.

        Raises:
            ValueError: They do not fit to one another, or to the batches before.
            OSError: They cannot be written; the batches before are kept.
        """
        rows = _rows(columns, self.batches)
        if not self._arrays:
            kinds = {name: [a.dtype.str, list(a.shape[1:])] for name, a in columns.items()}
            self._open(kinds)
            self._note({"format": FORMAT, "about": self.about, "arrays": kinds})
        self._check(columns)
        sums = list[int]()
        for name, array in self._arrays.items():
            array.append(columns[name])
            sums.append(_crc(columns[name]))
        self._note([rows, *cursor, *sums])
        self._count(rows, cursor)

    def read(self, start: int, count: int) -> dict[str, np.ndarray[Any, Any]]:
        """Rows from `start` on."""
        return {name: array.read(start, count) for name, array in self._arrays.items()}

    def each(self) -> Iterator[tuple[Columns, Cursor]]:
        """The batches, as they were given to `append`."""
        start = 0
        with (self.folder / LOG).open("rb") as lines:
            for line in itertools.islice(lines, 1, 1 + self.batches):
                rows, *place = json.loads(line)[:4]
                yield self.read(start, rows), Cursor(*place)
                start += rows

    def finish(self) -> None:
        """Make the arrays complete files; they are on the disk when this returns."""
        for array in self._arrays.values():
            array.finish()

    def close(self) -> None:
        """Close the files."""
        for array in self._arrays.values():
            array.close()
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, kinds: Mapping[str, Any]) -> None:
        for name, (dtype, shape) in kinds.items():
            file = self.folder / f"{name}.npy"
            self._arrays[name] = GrowingArray(file, np.dtype(dtype), tuple(shape))

    def _note(self, entry: Any) -> None:
        line = json.dumps(entry, separators=(",", ":")).encode() + b"\n"
        write_all(self._log, line)
        self._end += len(line)

    def _count(self, rows: int, cursor: Cursor) -> None:
        self.batches, self.rows, self.cursor = self.batches + 1, self.rows + rows, cursor

    def _recover(self) -> None:
        with (self.folder / LOG).open("rb") as lines:
            for line in lines:
                if not self._recall(line):
                    break
                self._end += len(line)
        for array in self._arrays.values():
            array.cut(self.rows)
        self._log.truncate(self._end)
        self._log.seek(self._end)

    def _recall(self, line: bytes) -> bool:
        """Take up a line of the log; False if it is not whole, or not what the files have."""
        try:
            entry = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            return False
        if not self._arrays:
            if not isinstance(entry, dict) or entry.get("format") != FORMAT:
                return False
            self.about = entry["about"]
            self._open(entry["arrays"])
            return True
        if not isinstance(entry, list) or len(entry) != 4 + len(self._arrays):
            return False
        rows, epoch, index, count, *sums = entry
        for array, crc in zip(self._arrays.values(), sums, strict=True):
            found = array.read(self.rows, rows)
            if len(found) != rows or _crc(found) != crc:
                return False
        self._count(rows, Cursor(epoch, index, count))
        return True

    def _check(self, columns: Columns) -> None:
        number = self.batches + 1
        if set(columns) != set(self._arrays):
            raise ValueError(
                f"The outputs of batch {number} are {_listed(columns)}, and those of the first "
                f"are {_listed(self._arrays)}. A function that predicts returns the same for all."
            )
        for name, array in self._arrays.items():
            found = columns[name]
            if found.dtype != array.dtype or found.shape[1:] != array.shape:
                raise ValueError(
                    f"The output {name!r} of batch {number} is {found.dtype}"
                    f"{list(found.shape[1:])} for an example, and was {array.dtype}"
                    f"{list(array.shape)} before; one array holds them all. Usual cause: outputs "
                    "that are as long as the batch's longest example; pad them to one length."
                )


def _rows(columns: Columns, batch: int) -> int:
    sizes = {len(array) for array in columns.values()}
    if len(sizes) != 1:
        listed = ", ".join(f"{name!r} has {len(array)}" for name, array in columns.items())
        raise ValueError(
            f"The outputs of batch {batch + 1} have different numbers of examples: "
            f"{listed or 'there are none'}. The first dimension of each is the batch's."
        )
    return sizes.pop()


def _crc(array: np.ndarray[Any, Any]) -> int:
    raw: Any = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return zlib.crc32(raw)


def _listed(names: Any) -> str:
    return ", ".join(map(repr, names)) or "none"
