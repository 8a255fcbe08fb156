"""Pack sequences of many lengths into rows of one length."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fnloop.data.filling import filled, sequence, sequences, values_by_path
from fnloop.data.joining import field, joined, paths
from fnloop.data.readers import check_indexed
from fnloop.data.whole import whole_numbers
from fnloop.names.keywords import explained
from fnloop.trees.show import short
from fnloop.values.counts import as_count
from fnloop.values.packed_rows import PackedRows


class pack:
    """A dataset of rows of one length, in each of which several sequences stand.

    It is for `fl.Batches` or a ``DataLoader``: their batches are `fl.data.PackedRows`, all of one
    shape, and little of them is filling. Which examples share a row is decided once: from the
    longest to the shortest, each goes to the row where it leaves the least room (best fit
    decreasing, which for many examples takes at most 11/9 of the fewest possible rows: Johnson et
    al., "Worst-case performance bounds for simple one-dimensional packing algorithms", 1974).
    Epochs shuffle rows.

    Args:
        examples: A dataset of examples with ``__len__`` and ``__getitem__``, such as a list.
        length: The length of a row, at least that of the longest example.
        values: What to fill the end of a row with: a dict from the path of a field (``"tokens"``,
            ``"0"``) to a number, with each field of an example; or a number alone, for examples
            that are sequences themselves.
        lengths: The length of each example; None reads them all once.

    Attributes:
        rows: The numbers of the examples in each row.

    Raises:
        TypeError: An argument is of another type.
        ValueError: There is no example, or one is empty or longer than a row. When a row is read:
            fields of an example differ in length, or there is one that is not in `values`; or an
            example has another length than before.

    >>> rows = pack([[5, 6, 7], [8, 9], [1], [2, 3, 4]], 4, 0)
    >>> rows.rows
    [[0, 2], [1], [3]]
    >>> rows[0].batch.tolist(), rows[0].document.tolist(), rows[0].position.tolist()
    ([5, 6, 7, 1], [1, 1, 1, 2], [0, 1, 2, 0])
    """

    @explained
    def __init__(
        self,
        examples: Any,
        length: int,
        values: Mapping[str, float] | float,
        lengths: Sequence[int] | Tensor | None = None,
    ) -> None:
        self.length = as_count(length, "pack(length=...)", 1)
        if not hasattr(examples, "__len__") or isinstance(examples, (str, type)):
            raise TypeError(f"pack(examples=...) takes a list or dataset, got {short(examples)}.")
        check_indexed(examples, "pack")
        self._values, self._examples = values_by_path(values, "pack"), examples
        if lengths is None:
            first = next(iter(self._values))
            lengths = [len(sequence(field(example, first), first)) for example in _all(examples)]
        self._lengths = whole_numbers(lengths, "pack(lengths=...)", "the length of each example")
        if not len(self._lengths) or len(self._lengths) != len(examples):
            raise ValueError(
                f"pack was given {len(examples)} examples and {len(self._lengths)} lengths; it "
                "takes one length for each example, and at least one example."
            )
        for number, each in enumerate(self._lengths.tolist()):
            self._check(each, f"The sequence of example {number}")
        self.rows = best_fit(self._lengths.tolist(), self.length)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> PackedRows:
        numbers = self.rows[row]
        examples = [self._examples[number] for number in numbers]
        self._check_fields(examples[0])
        done = dict[str, Tensor]()
        for path, value in self._values.items():
            found = sequences(examples, path, self._check)
            for number, one in zip(numbers, found, strict=True):
                self._check_same(number, path, len(one))
            done[path] = filled(path, [torch.cat(found)], self.length, value)[0]
        sizes = self._lengths[numbers]
        starts = sizes.cumsum(0) - sizes
        used, spare = int(sizes.sum()), self.length - int(sizes.sum())
        document = torch.arange(1, len(numbers) + 1).repeat_interleave(sizes)
        position = torch.arange(used) - starts.repeat_interleave(sizes)
        rest = torch.zeros(spare, dtype=torch.int64)
        return PackedRows(
            joined(examples[:1], done), torch.cat([document, rest]), torch.cat([position, rest])
        )

    def __repr__(self) -> str:
        return f"pack({len(self._lengths)} examples in {len(self)} rows of {self.length})"

    def _check(self, length: int, what: str) -> None:
        if length < 1:
            raise ValueError(f"{what} is empty. Leave such examples out.")
        if length > self.length:
            raise ValueError(
                f"{what} has length {length}, and a row has {self.length}. Cut it, "
                f"x[:{self.length}], or into several examples; or make rows longer."
            )

    def _check_fields(self, example: Any) -> None:
        missing = [path for path in paths(example) if path not in self._values]
        if missing and "" not in self._values:
            raise ValueError(
                f"An example has the field {missing[0]!r}, and pack was given "
                f"{', '.join(map(repr, self._values))}. In a row stand several examples, so a "
                "field has a number for each position: give pack what to fill it with, or leave it "
                "out of the examples."
            )

    def _check_same(self, number: int, path: str, length: int) -> None:
        if length != int(self._lengths[number]):
            where = f"The field {path!r} of example {number}" if path else f"Example {number}"
            raise ValueError(
                f"{where} has length {length}, and the example was packed with length "
                f"{int(self._lengths[number])}. Usual cause: fields of different lengths, other "
                "lengths=, or a dataset that cuts its examples at random."
            )


def best_fit(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Put items into rows of a size: the longest first, each where it leaves the least room.

    Items of one length are taken in their order, and of rows with the same room the one that has
    had it longest.

    Returns:
        The numbers of the items in each row, ascending; rows in the order of their first items.

    >>> best_fit([3, 5, 2, 2, 3], 6)
    [[0, 4], [1], [2, 3]]
    """
    rows: list[list[int]] = []
    with_room: defaultdict[int, deque[int]] = defaultdict(deque)  # rows by the room that is left
    rooms = 0  # the same as bits, so that the least room that is enough is found at once
    for number in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[number]
        enough = rooms >> length
        if enough:
            room = length + (enough & -enough).bit_length() - 1
            row = with_room[room].popleft()
            if not with_room[room]:
                rooms ^= 1 << room
        else:
            room, row = size, len(rows)
            rows.append([])
        rows[row].append(number)
        if room > length:
            with_room[room - length].append(row)
            rooms |= 1 << (room - length)
    return sorted(map(sorted, rows))


def _all(examples: Any) -> Any:
    """The examples by number, so that those of a dataset end where it says."""
    return (examples[i] for i in range(len(examples)))
