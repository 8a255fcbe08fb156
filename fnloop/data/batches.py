"""Batches of data that is in memory or can be indexed, pure in the cursor."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import optree
import torch
from torch import Tensor
from torch.utils.data import TensorDataset, default_collate

from fnloop._torch.random import seeded
from fnloop.data.permute import permute
from fnloop.trees import is_tree, tree_leaves, tree_paths
from fnloop.trees.show import short
from fnloop.values import Cursor, fold

START = Cursor()
_AHEAD = 4096  # positions shuffled at once: amortised, a batch of 64 costs 5 us instead of 120


class Batches:
    """Data cut into batches, in a new order each epoch; the batch is a function of the cursor.

    Nothing is held between two calls, so resuming needs no more than the cursor. The order of an
    epoch is a function of `seed` and the epoch (see `fl.permute`), whatever the batch size.

    Args:
        data: A tensor or numpy array; a tuple, dict or other pytree of them with one common leading
            dimension, whose batches have the same structure (arrays become tensors once, here,
            without a copy); or a map-style dataset (``__len__`` and ``__getitem__``, or
            ``__getitems__``), whose examples are joined by torch's ``default_collate``. A list is
            such a dataset: a list of examples. What a dataset draws from torch's CPU generator
            is a function of (seed, epoch, index) too.
        batch_size: Examples in a batch; the last one of an epoch may be smaller.
        shuffle: False keeps the order of the data.
        seed: Root of the shuffle, any integer.
        drop_last: Leave out a last batch that is smaller than `batch_size`.

    Attributes:
        examples: Number of examples.
        batches: Number of batches in an epoch.

    Raises:
        ValueError: If there is no example, if the leading dimensions disagree, if `batch_size` is
            less than 1, or if `drop_last` would leave no batch.

    >>> batches = Batches({"x": torch.arange(5.0)}, batch_size=2, shuffle=False)
    >>> len(batches), [batch["x"].tolist() for batch in batches]
    (3, [[0.0, 1.0], [2.0, 3.0], [4.0]])
    >>> cursor, batch = batches.at(torch.tensor([0, 4, 2]))
    >>> batch["x"].tolist(), cursor.tolist()
    ([4.0], [1, 0, 3])
    """

    def __init__(
        self,
        data: Any,
        batch_size: int,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
    ) -> None:
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size is an int, at least 1; got {batch_size!r}.")
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.drop_last = drop_last
        self.examples, self._take, self._devices = _reader(data, seed)
        if not self.examples:
            raise ValueError("The data is empty: it has 0 examples.")
        if drop_last and self.examples < batch_size:
            raise ValueError(
                f"drop_last=True leaves no batch: there are {self.examples} examples and "
                f"batch_size is {batch_size}. Make batch_size smaller, or keep the last batch."
            )
        self._length = (self.examples + (0 if drop_last else batch_size - 1)) // batch_size
        self.batches: int | None = self._length  # the name that it has in a Source
        self._order = _Order(self.examples, seed, self._devices, max(_AHEAD, batch_size))

    def __len__(self) -> int:
        return self._length

    def at(self, cursor: Tensor) -> tuple[Tensor, Any]:
        """The batch that starts at `cursor`, and the cursor of the next one.

        Args:
            cursor: int64[3], ``(epoch, index, count)``; `index` counts examples.
        """
        after, batch = next(self._walk(Cursor.of(cursor), self._order))
        return after.tensor(), batch

    def iterate(
        self, cursor: Cursor = START, key: int = 0
    ) -> Generator[tuple[Cursor, Any], None, None]:
        """For ever, from `cursor` on: pairs of the cursor after the batch, and the batch.

        Args:
            cursor: Where to start.
            key: Not used: the order is that of `seed`.
        """
        # Its own look-ahead: two readers at different places would throw out each other's.
        ahead = max(_AHEAD, self.batch_size)
        return self._walk(cursor, _Order(self.examples, self.seed, self._devices, ahead))

    def __iter__(self) -> Iterator[Any]:
        """The batches of the first epoch."""
        for after, batch in self.iterate():
            yield batch
            if after.epoch:
                return

    def __repr__(self) -> str:
        return (
            f"Batches({self.examples} examples, batch_size={self.batch_size}, "
            f"shuffle={self.shuffle}, seed={self.seed}, drop_last={self.drop_last})"
        )

    def _walk(self, cursor: Cursor, order: _Order) -> Generator[tuple[Cursor, Any], None, None]:
        epoch, index, count = cursor
        size, examples, take = self.batch_size, self.examples, self._take
        if not 0 <= index < examples:
            raise ValueError(
                f"The cursor stands at example {index} of an epoch of {examples}. Usual cause: "
                "the run is resumed with other data than it was started with."
            )
        last = examples - size if self.drop_last else examples - 1  # where a batch may start
        if index > last:  # left there by a run with a smaller batch size
            epoch, index = epoch + 1, 0
        while True:
            stop = min(index + size, examples)
            if self.shuffle:
                indices = order.at(epoch, index, stop)
            else:
                indices = dict.fromkeys(self._devices, slice(index, stop))
            batch = take(indices, epoch, index)
            count += 1
            epoch, index = (epoch, stop) if stop <= last else (epoch + 1, 0)
            yield Cursor(epoch, index, count), batch


class _Order:
    """The shuffled positions, computed some thousands ahead and kept on each device."""

    def __init__(self, examples: int, seed: int, devices: list[torch.device], ahead: int) -> None:
        self._examples, self._seed, self._devices, self._ahead = examples, seed, devices, ahead
        self._known: tuple[int, int, int, dict[torch.device, Tensor]] = (-1, 0, 0, {})

    def at(self, epoch: int, start: int, stop: int) -> dict[torch.device, Tensor]:
        """Which examples the positions from `start` to `stop` of an epoch hold, on each device."""
        known, first, last, blocks = self._known
        if known != epoch or start < first or stop > last:
            first, last = start, min(start + self._ahead, self._examples)
            block = permute(torch.arange(first, last), self._examples, self._seed, epoch)
            blocks = {device: block.to(device) for device in self._devices}
            self._known = (epoch, first, last, blocks)  # one assignment, as threads may share it
        return {device: block[start - first : stop - first] for device, block in blocks.items()}


_Indices = Mapping[torch.device, Any]  # slices, or int64 tensors
_Take = Callable[[_Indices, int, int], Any]


def _reader(data: Any, seed: int) -> tuple[int, _Take, list[torch.device]]:
    """The number of examples, a function that takes some, the devices it needs indices on."""
    if isinstance(data, TensorDataset):
        data = data.tensors
    if is_columns(data):
        mapping: bool = isinstance(data, Mapping) and not isinstance(data, dict)
        return _columns(dict(data) if mapping else data)
    if isinstance(data, list) and data and all(_is_column(part) for part in data):
        raise ValueError(
            f"A list of {len(data)} tensors may be columns or examples. Write a tuple for columns, "
            "such as (inputs, targets), and torch.stack(list) for examples."
        )
    if hasattr(data, "__len__") and (hasattr(data, "__getitem__") or hasattr(data, "__getitems__")):
        return _dataset(data, seed)
    raise TypeError(
        "Batches takes tensors or numpy arrays (or a tuple or dict of them), or a dataset with "
        f"__len__ and __getitem__; it was given {type(data).__name__}. What can only be iterated "
        "goes to fl.run or fl.fit as it is, if it yields batches."
    )


def is_columns(data: Any) -> bool:
    """Whether `data` is, by its outermost type, a pytree of tensors rather than a dataset."""
    return isinstance(data, (Tensor, np.ndarray, tuple, Mapping)) or is_tree(data)


def _columns(data: Any) -> tuple[int, _Take, list[torch.device]]:
    paths = tree_paths(data)
    leaves = [_tensor(path, leaf) for path, leaf in zip(paths, tree_leaves(data), strict=True)]
    structure = optree.tree_structure(data)
    lengths = {leaf.shape[0] for leaf in leaves}
    if len(lengths) > 1:
        width = max(map(len, paths))
        rows = zip(paths, leaves, strict=True)
        table = "\n".join(f"  {path:<{width}}  {short(leaf)}" for path, leaf in rows)
        raise ValueError(
            f"The leading dimensions, which count the examples, disagree:\n{table}\n"
            "Usual cause: inputs and targets of different splits, or a leaf that is one value for "
            "all examples (leave it out of the data)."
        )

    def take(indices: _Indices, epoch: int, index: int) -> Any:
        parts: list[Tensor] = []
        for leaf in leaves:
            chosen = indices[leaf.device]
            parts.append(
                leaf[chosen] if isinstance(chosen, slice) else leaf.index_select(0, chosen)
            )
        return structure.unflatten(parts)

    return next(iter(lengths), 0), take, list({leaf.device: None for leaf in leaves})


def _dataset(data: Any, seed: int) -> tuple[int, _Take, list[torch.device]]:
    cpu = torch.device("cpu")

    def take(indices: _Indices, epoch: int, index: int) -> Any:
        chosen = indices[cpu]
        numbers: Sequence[int] = (
            range(chosen.start, chosen.stop) if isinstance(chosen, slice) else chosen.tolist()
        )
        with seeded(fold(seed, epoch, index)):
            if hasattr(data, "__getitems__"):
                return default_collate(data.__getitems__(list(numbers)))
            return default_collate([data[number] for number in numbers])

    return len(data), take, [cpu]


def _is_column(value: Any) -> bool:
    return isinstance(value, (Tensor, np.ndarray)) and value.ndim > 0


def _tensor(path: str, leaf: Any) -> Tensor:
    if not _is_column(leaf):
        raise ValueError(
            f"The data has {short(leaf)} at {path or 'its root'!r}. Every leaf must be a tensor or "
            "numpy array whose first dimension counts the examples."
        )
    if isinstance(leaf, Tensor):
        return leaf
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return torch.from_numpy(leaf if min(leaf.strides) >= 0 else leaf.copy())
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"The array at {path or 'its root'!r} has dtype {leaf.dtype}, which torch cannot hold. "
            "Encode it as numbers first."
        ) from error
