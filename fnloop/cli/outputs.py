"""Write predictions to files."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from fnloop.cli.messages import Problem, shown
from fnloop.store.columns import as_columns

SUFFIXES = (".csv", ".npy", ".npz")


def write_outputs(outputs: Iterable[Any], path: str | None) -> None:
    """Write outputs, one row per example.

    Args:
        outputs: For each batch a tensor, or a tree of tensors with a common batch dimension.
        path: A .csv, .npy or .npz file; None prints CSV batch by batch.

    Raises:
        Problem: They do not fit the format, or the file cannot be written.
        ValueError: They are not such tensors.
    """
    if path is None:
        return _write_csv(outputs, sys.stdout)
    try:
        if path.endswith(".csv"):
            with Path(path).open("w", newline="", encoding="utf-8") as file:
                return _write_csv(outputs, file)
        arrays = _joined(outputs)
        if path.endswith(".npz"):
            named: dict[str, Any] = {name or "output": array for name, array in arrays.items()}
            return np.savez(path, **named)
        if len(arrays) > 1:
            raise Problem(
                f"A .npy file holds one array, and the outputs are {', '.join(arrays)}; use .npz."
            )
        np.save(path, next(iter(arrays.values())))
    except OSError as error:
        raise Problem(f"{shown(Path(path))} cannot be written: {error.strerror}.") from None


def _write_csv(outputs: Iterable[Any], file: TextIO) -> None:
    writer = csv.writer(file, lineterminator="\n")
    for i, output in enumerate(outputs):
        columns = [(name, _table(name, a)) for name, a in as_columns(output).items()]
        if i == 0:
            writer.writerow([head for name, table in columns for head in _heads(name, table)])
        rows = zip(*(table for _, table in columns), strict=True)
        writer.writerows([value for cells in row for value in cells] for row in rows)


def _heads(name: str, table: Sequence[Sequence[Any]]) -> Iterator[str]:
    width, name = len(table[0]) if table else 0, name or "output"
    yield from [name] if width == 1 else (f"{name}.{i}" for i in range(width))


def _table(name: str, array: np.ndarray[Any, Any]) -> list[list[Any]]:
    if array.ndim > 2:
        raise Problem(
            f"CSV has rows of numbers, and the output {name or 'of the model'} has shape "
            f"{list(array.shape)} a batch; use --output FILE.npz."
        )
    return array.reshape(len(array), -1).tolist()


def _joined(outputs: Iterable[Any]) -> dict[str, np.ndarray[Any, Any]]:
    parts: dict[str, list[np.ndarray[Any, Any]]] = {}
    for output in outputs:
        for name, array in as_columns(output).items():
            parts.setdefault(name, []).append(array)
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}
