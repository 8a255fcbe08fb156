"""Arrays by name as a Parquet file, through pyarrow, which is loaded only here."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

_ABOUT = b"fnloop"
Kinds = Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]


def arrow() -> Any:
    """The modules ``pyarrow`` and ``pyarrow.parquet``.

    Raises:
        ImportError: They are not installed.
    """
    try:
        import pyarrow.parquet  # pyright: ignore

        return pyarrow
    except ImportError as error:
        raise ImportError(
            "A .parquet file is written by pyarrow, which is not installed: pip install "
            "'fnloop[parquet]'. A folder of .npy files needs nothing more."
        ) from error


def write_parquet(
    path: Path, kinds: Kinds, blocks: Iterable[Mapping[str, np.ndarray[Any, Any]]], about: Any
) -> None:
    """Write a file, a row group for each block; it is on the disk when this returns.

    Args:
        path: The file.
        kinds: Dtype, and shape of one row, by name of the column. Rows that are arrays become lists
            of fixed size.
        blocks: Rows by name of the column.
        about: JSON for the file's metadata.
    """
    schema = schema_of(kinds).with_metadata({_ABOUT: json.dumps(about).encode()})
    pa = arrow()
    with pa.parquet.ParquetWriter(path, schema) as file:
        for block in blocks:
            columns = [_column(block[name], schema.field(name).type) for name in schema.names]
            file.write_table(pa.Table.from_arrays(columns, schema=schema))
    with path.open("rb") as written:
        os.fsync(written.fileno())


def schema_of(kinds: Kinds) -> Any:
    """The columns as Parquet has them.

    Raises:
        ValueError: Parquet has no type for one of them.
    """
    pa, fields = arrow(), []
    for name, (dtype, shape) in kinds.items():
        if dtype.kind == "c" or 0 in shape:
            raise ValueError(
                f"The output {name!r} is {dtype}{list(shape)} for an example, for which Parquet "
                "has no type. Write .npy files, to a folder, or return its real and imaginary part."
                if dtype.kind == "c"
                else f"The output {name!r} has no numbers: {dtype}{list(shape)} for an example."
            )
        kind = pa.from_numpy_dtype(dtype)
        for size in reversed(shape):
            kind = pa.list_(kind, size)
        fields.append(pa.field(name, kind, nullable=False))
    return pa.schema(fields)


def about_parquet(path: Path) -> Any:
    """The JSON that `write_parquet` put into a file's metadata; None if it is not such a file."""
    pa = arrow()
    try:
        found = pa.parquet.read_metadata(path).metadata or {}
    except (OSError, pa.ArrowException):
        return None
    return json.loads(found[_ABOUT]) if _ABOUT in found else None


def first_rows(path: Path, rows: int) -> dict[str, np.ndarray[Any, Any]]:
    """The first rows of a file that `write_parquet` wrote."""
    pa, batches, left = arrow(), list[Any](), rows
    with pa.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=max(1, rows)):
            batches.append(batch.slice(0, left))
            left -= len(batches[-1])
            if not left:
                break
        table = pa.Table.from_batches(batches, file.schema_arrow)
    return {name: _array(table[name].combine_chunks()) for name in table.column_names}


def _column(rows: np.ndarray[Any, Any], kind: Any) -> Any:
    pa = arrow()
    if rows.ndim == 1:
        return pa.array(rows, type=kind)
    inner = _column(rows.reshape(-1, *rows.shape[2:]), kind.value_type)
    return pa.FixedSizeListArray.from_arrays(inner, type=kind)


def _array(column: Any) -> np.ndarray[Any, Any]:
    shape = [len(column)]
    while hasattr(column.type, "list_size"):
        shape.append(column.type.list_size)
        column = column.flatten()
    return column.to_numpy(zero_copy_only=False).reshape(shape)
