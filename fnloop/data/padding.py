"""Join examples of different lengths to batches of a few shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fnloop.data.filling import filled, sequences, values_by_path
from fnloop.data.joining import joined
from fnloop.data.whole import whole_numbers
from fnloop.names.keywords import explained
from fnloop.trees.show import short
from fnloop.values.counts import as_count
from fnloop.values.padded import Padded


class pad:
    """Join examples to a batch, and pad their sequences to the next of a few lengths.

    It is called with a list of examples: as ``fl.Batches(..., collate=pad)``, or as the
    ``collate_fn`` of a ``DataLoader``. All sequences of a batch are padded to one length. What is
    not named in `values` is joined as torch's ``default_collate`` joins it.

    Args:
        lengths: The lengths to pad to.
        values: What to add to which fields: a dict from the path of a field (``"tokens"``,
            ``"0"``, ``"text/tokens"``) to a number; or a number alone, for examples that are
            sequences themselves. A sequence is a tensor or array whose first dimension is the
            length, or a list of numbers.
        batch_size: Fill a smaller batch, such as the last one of an epoch, up to so many examples:
            its first one is repeated, with weight zero. None leaves it as it is.

    Raises:
        TypeError: An argument is of another type.
        ValueError: There is no length or no field, or a length is below 1. At the call: a sequence
            is empty, or longer than all `lengths`; a field is missing, or no sequence; sequences
            differ in dtype or in their other dimensions; a number in `values` does not fit the
            dtype; or there are more than `batch_size` examples.

    >>> join = pad((4, 8), {"tokens": 0}, batch_size=3)
    >>> batch, mask, weight = join(
    ...     [{"tokens": [5, 6, 7], "label": 1}, {"tokens": [8], "label": 0}]
    ... )
    >>> batch["tokens"].tolist(), batch["label"].tolist()
    ([[5, 6, 7, 0], [8, 0, 0, 0], [5, 6, 7, 0]], [1, 0, 1])
    >>> mask["tokens"].sum(1).tolist(), weight.tolist()
    ([3, 1, 3], [1.0, 1.0, 0.0])
    """

    draws = False  # random numbers

    @explained
    def __init__(
        self,
        lengths: Sequence[int],
        values: Mapping[str, float] | float,
        batch_size: int | None = None,
    ) -> None:
        if not isinstance(lengths, Sequence) or isinstance(lengths, str):
            raise TypeError(f"pad takes a few lengths, such as (32, 64); got {short(lengths)}.")
        if not lengths:
            raise ValueError("pad takes at least one length, such as (32, 64); got none.")
        self.lengths = tuple(sorted({as_count(n, "pad(lengths=...)", 1) for n in lengths}))
        self._values = values_by_path(values, "pad")
        self.batch_size = None
        if batch_size is not None:
            self.batch_size = as_count(batch_size, "pad(batch_size=...)", 1)

    def __call__(self, examples: Sequence[Any]) -> Padded:
        """Join a list of examples to a batch."""
        count = len(examples)
        size = count if self.batch_size is None else self.batch_size
        if not count:
            raise ValueError("pad was given no example, and cannot tell what a batch looks like.")
        if count > size:
            raise ValueError(
                f"pad(batch_size={self.batch_size}) was given {count} examples. The batch size of "
                "fl.Batches or the DataLoader must not be larger."
            )
        examples = [*examples, *[examples[0]] * (size - count)]
        found = {path: sequences(examples, path, self._check) for path in self._values}
        longest = max(len(one) for each in found.values() for one in each)
        length = next(each for each in self.lengths if each >= longest)
        padded, mask = dict[str, Tensor](), dict[str, Tensor]()
        for path, each in found.items():
            mask[path] = _mask(each, length)
            padded[path] = filled(path, each, length, self._values[path])
        weight = (torch.arange(size) < count).float().to(next(iter(mask.values())).device)
        return Padded(joined(examples, padded), mask.get("", mask), weight)

    def buckets(self, lengths: Sequence[int] | Tensor) -> Tensor:
        """The length that each sequence is padded to, for ``fl.Batches(..., buckets=)``.

        Args:
            lengths: The length of each sequence.

        Raises:
            TypeError: They are not whole numbers.
            ValueError: One is empty, or longer than all of `lengths`.

        >>> pad((40, 70, 100), 0).buckets([20, 40, 41, 100]).tolist()
        [40, 40, 70, 100]
        """
        given = whole_numbers(lengths, "pad.buckets(...)", "the length of each example")
        wrong = ((given < 1) | (given > self.lengths[-1])).nonzero()
        if len(wrong):
            example = int(wrong[0])
            self._check(int(given[example]), f"The sequence of example {example}")
        sizes = torch.tensor(self.lengths, device="cpu")
        return sizes[torch.searchsorted(sizes, given)]

    def about(self) -> str:
        """What a checkpoint keeps of it."""
        return repr(self)

    def __repr__(self) -> str:
        values = self._values.get("", self._values)
        return f"pad({self.lengths}, {values}, batch_size={self.batch_size})"

    def _check(self, length: int, what: str) -> None:
        if length < 1:
            raise ValueError(
                f"{what} is empty, which has no mean and nothing to attend to. Leave such examples "
                "out, or give them one token that says so."
            )
        if length > self.lengths[-1]:
            raise ValueError(
                f"{what} has length {length}, and the largest to pad to is {self.lengths[-1]}. Cut "
                f"it, x[:{self.lengths[-1]}], or give pad a larger length as well."
            )


def _mask(sequences: list[Tensor], length: int) -> Tensor:
    """Where the sequences are: bool[n, length]."""
    lengths = torch.tensor([len(one) for one in sequences])
    return (torch.arange(length) < lengths[:, None]).to(sequences[0].device)
