"""An array in a ``.npy`` file, to which rows are added at the end."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np

from fnloop.store.files import write_all


class GrowingArray:
    """A ``.npy`` file that grows.

    Its header says how many rows there are only after `finish`; until then it says none.

    Args:
        path: The file; it is made if it is not there.
        dtype: Of the numbers.
        shape: Of one row.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     array = GrowingArray(Path(folder) / "a.npy", np.dtype("<f4"), (2,))
    ...     array.append(np.ones((3, 2), "f4"))
    ...     array.append(np.zeros((1, 2), "f4"))
    ...     array.finish()
    ...     array.close()
    ...     np.load(Path(folder) / "a.npy").sum(1).tolist()
    [2.0, 2.0, 2.0, 0.0]

    Source: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html. The header has
    room for any number of rows, so that it can be written again in its place.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self.dtype, self.shape, self.path = dtype, shape, path
        self.rows = 0
        self._row = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        self._start = len(self._header(0))
        self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)

    def append(self, rows: np.ndarray[Any, Any]) -> None:
        """Add rows of this dtype and shape."""
        if not self.rows:
            self.cut(0)
        write_all(self._file, np.ascontiguousarray(rows).reshape(-1).view(np.uint8))
        self.rows += len(rows)

    def read(self, start: int, count: int) -> np.ndarray[Any, Any]:
        """Rows from `start` on; fewer than `count` if the file ends before."""
        end = self._file.seek(0, io.SEEK_END)
        self._file.seek(self._start + start * self._row)
        wanted = count * self._row
        raw = bytearray(max(0, min(wanted, end - self._file.tell())))
        view, filled = memoryview(raw), 0
        while filled < len(raw) and (got := self._file.readinto(view[filled:])):
            filled += got
        self._file.seek(self._start + self.rows * self._row)
        whole = filled // self._row if self._row else count
        return np.frombuffer(raw, self.dtype, whole * self._row // self.dtype.itemsize).reshape(
            whole, *self.shape
        )

    def cut(self, rows: int) -> None:
        """Drop all but the first `rows`; the next are added behind them."""
        self._file.seek(0)
        write_all(self._file, self._header(0))
        self._file.truncate(self._start + rows * self._row)
        self._file.seek(self._start + rows * self._row)
        self.rows = rows

    def finish(self) -> None:
        """Write into the header how many rows there are; all is on the disk when this returns."""
        self._file.seek(0)
        write_all(self._file, self._header(self.rows))
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _header(self, rows: int) -> bytes:
        found = io.BytesIO()
        about: Any = {
            "descr": np.lib.format.dtype_to_descr(self.dtype),
            "fortran_order": False,
            "shape": (rows, *self.shape),
        }
        np.lib.format.write_array_header_1_0(found, about)
        return found.getvalue()
