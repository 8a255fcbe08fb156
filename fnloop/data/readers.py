"""Read examples by position, from tensors or from a dataset."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import optree
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset, default_collate

from fnloop.data.dtypes import from_array, indexable
from fnloop.data.fingerprint import columns, name_of, sample_of_columns, sample_of_list
from fnloop.data.gathering import at_once, gathered
from fnloop.data.nested import Epochs, inexact
from fnloop.data.seeding import Examples, seeding
from fnloop.stages.base import Stage
from fnloop.trees.nodes import is_tree, tree_leaves
from fnloop.trees.paths import tree_paths
from fnloop.trees.show import short


def is_columns(data: Any) -> bool:
    """Whether the outermost type of `data` is that of a pytree of tensors, not a dataset."""
    return isinstance(data, (Tensor, np.ndarray, tuple, Mapping)) or is_tree(data)


Collate = Callable[[list[Any]], Any]


def reader(data: Any, collate: Collate | None = None) -> Columns | Indexed:
    """Make the reader for `data`; see `fl.Batches` for the accepted types.

    Raises:
        TypeError: The type is not accepted, or `collate` is given for a pytree of tensors.
        ValueError: `data` is a list of tensors, or the leaves of a pytree are not tensors and
            arrays with a common leading dimension.
    """
    check_data(data)
    if collate is not None and not callable(collate):
        raise TypeError(f"collate= takes a function of a list of examples, got {short(collate)}.")
    if isinstance(data, TensorDataset):
        if collate is not None:
            return Indexed(data, collate)
        data = data.tensors
    if is_columns(data) and collate is not None:
        raise TypeError(
            f"collate= joins examples of a dataset, and this data is a {type(data).__name__} of "
            "tensors, which are cut without joining. Give a list of examples, or a dataset."
        )
    if is_columns(data):
        mapping: bool = isinstance(data, Mapping) and not isinstance(data, dict)
        return Columns(dict(data) if mapping else data)
    if (
        collate is None
        and isinstance(data, list)
        and data
        and all(_is_column(part) for part in data)
    ):
        raise ValueError(
            f"A list of {len(data)} tensors may be columns or examples. Use a tuple for columns, "
            "such as (inputs, targets), and torch.stack(list) for examples."
        )
    check_indexed(data, "Batches")
    if hasattr(data, "__len__") and (hasattr(data, "__getitem__") or hasattr(data, "__getitems__")):
        return Indexed(data, collate)
    raise TypeError(
        "Batches takes tensors or numpy arrays (or a tuple or dict of them), or a dataset with "
        f"__len__ and __getitem__; it was given {type(data).__name__}. Pass an iterable of batches "
        "directly to fl.run or fl.fit."
    )


def check_indexed(data: Any, who: str) -> None:
    """Refuse a dataset of torch that does not give examples by number, also in a ``Subset``.

    Raises:
        TypeError: It is one, such as an ``IterableDataset``.
    """
    while type(data) is Subset:
        data = data.dataset
    if not isinstance(data, Dataset) or hasattr(data, "__getitems__"):
        return
    if type(data).__getitem__ is not Dataset.__getitem__:  # which raises NotImplementedError
        return
    name = type(data).__name__
    if isinstance(data, IterableDataset):
        raise TypeError(
            f"{who} reads examples by number, and {name} is an IterableDataset, which gives them "
            "one after the other. Its batches come from a DataLoader(dataset, batch_size), which "
            "is data as it is; or collect its examples: list(dataset)."
        )
    raise TypeError(
        f"{who} reads examples by number, and {name} is a Dataset without __getitem__. Define "
        "__getitem__(self, i), which returns example i."
    )


def check_part(data: Any, what: str) -> None:
    """As `check_data`, for data that is looked at later: also numbers and texts are refused.

    Args:
        data: The data; None where there is none.
        what: The argument, for messages.
    """
    check_data(data, what)
    if isinstance(data, (str, int, float)):
        raise TypeError(
            f"{what} is tensors, a dataset, a DataLoader, or another iterable of batches; got "
            f"{short(data)} ({type(data).__name__})."
        )


def check_data(data: Any, what: str = "data") -> None:
    """Refuse what is no data, tables of pandas or polars, and Lightning's ``CombinedLoader``.

    Raises:
        TypeError: It is one of these.
    """
    if isinstance(data, type):
        raise TypeError(f"{what} is an object, not a class; create one: {data.__name__}(...).")
    if isinstance(data, nn.Module | Stage) and not hasattr(data, "__iter__"):  # nn.Sequential has
        raise TypeError(
            f"{what} is tensors, a dataset, a DataLoader, or another iterable of batches; got a "
            f"{type(data).__name__}."
        )
    if type(data).__name__ == "CombinedLoader":
        raise TypeError(_COMBINED.format(what=what))
    if not hasattr(data, "to_numpy"):
        return
    one = hasattr(data, "columns")
    convert = "torch.tensor({}.to_numpy()).float()"
    raise TypeError(
        f"The data is a {type(data).__name__} of {type(data).__module__.partition('.')[0]}, and "
        "training takes tensors of numbers. Convert its columns, such as "
        + (
            f"(x, y) with x = {convert.format('table[names]')} and y = "
            f"{convert.format('table[name]')}."
            if one
            else f"{convert.format('column')}."
        )
        + " Categories and text become numbers first."
    )


_COMBINED = (
    "{what} is a CombinedLoader of Lightning, which gives numbers of its own with each batch. "
    'Loaders side by side are fl.data.together(a=loader, b=other, mode="restart"), which is its '
    '"max_size_cycle" (others: "longest", "shortest"); one after the other fl.data.concat(loader, '
    'other); several for a validation are given by name, {{"a": loader, "b": other}}. '
    "fl.lightning.step(module, combined) takes one as it is."
)


class Columns:
    """A pytree of tensors with a common leading dimension.

    Attributes:
        examples: Size of the leading dimension.
        devices: Devices of the tensors; `take` needs the indices on each, in this order.
        random: Whether reading examples can draw random numbers.
        lent: Whether `cut` gives parts of the user's tensors.
        epochs: Tells the epoch to the parts of a dataset that have ``set_epoch``; may be None.
        leaves: The tensors, by path.
    """

    random = False
    lent = True
    epochs = None

    def __init__(self, data: Any) -> None:
        paths = tree_paths(data)
        leaves = [_tensor(path, leaf) for path, leaf in zip(paths, tree_leaves(data), strict=True)]
        _check_lengths(paths, leaves)
        self.examples = leaves[0].shape[0] if leaves else 0
        self.devices = tuple(dict.fromkeys(leaf.device for leaf in leaves))
        self.leaves = dict(zip(paths, leaves, strict=True))
        # Some dtypes cannot be indexed: their bits are read as integers and viewed as the dtype.
        self._columns = [
            (indexable(leaf, path), self.devices.index(leaf.device))
            for path, leaf in self.leaves.items()
        ]
        self._dtypes = [leaf.dtype for leaf in leaves]
        self._viewed = any(
            x.dtype is not t for (x, _), t in zip(self._columns, self._dtypes, strict=True)
        )
        self._structure: Any = optree.tree_structure(data)

    def take(self, indices: Sequence[Tensor], seed: int) -> Any:
        """The examples at `indices` (int64[n] on each device), as new tensors."""
        found = [column.index_select(0, indices[k]) for column, k in self._columns]
        if self._viewed:
            found = [x.view(dtype) for x, dtype in zip(found, self._dtypes, strict=True)]
        return self._structure.unflatten(found)

    def several(
        self, indices: Sequence[Tensor], size: int, seed: int, place: int | None = None
    ) -> Iterator[Any]:
        """Batches of `size` examples at `indices`, one after the other; see `take`.

        `place` is the position of the first one in the epoch, where an example may come several
        times: each time, it draws other random numbers.
        """
        columns = [column for column, _ in self._columns]
        many = 1 if self._viewed else at_once(columns, size)
        if many > 1 and len(indices[0]) > size:
            return map(self._structure.unflatten, gathered(columns, indices[0], size, many))
        return (self.take(part, seed) for part in _parts(indices, size))

    def cut(self, part: slice, seed: int) -> Any:
        """The examples of a part of the data, as views."""
        return self._structure.unflatten([x[part] for x in self.leaves.values()])

    def about(self) -> dict[str, Any]:
        """The fingerprint of the data."""
        return {"columns": columns(self.leaves), "sample": sample_of_columns(self.leaves.values())}


class Indexed:
    """A map-style dataset, with the attributes and methods of `Columns`."""

    devices = (torch.device("cpu"),)
    lent = False

    def __init__(self, data: Any, collate: Collate | None) -> None:
        self.examples = len(data)
        self._data = data
        self._collate = collate
        self._examples = Examples(data)
        self._drawn = getattr(collate, "draws", collate is not None)  # while joining
        self.random = self._examples.random or self._drawn
        self.epochs = Epochs(data) or None

    def take(self, indices: Sequence[Tensor], seed: int) -> Any:
        """The collated examples at `indices`; random numbers of each depend on it and `seed`."""
        return self._join(indices[0].tolist(), seed)

    def several(
        self, indices: Sequence[Tensor], size: int, seed: int, place: int | None = None
    ) -> Iterator[Any]:
        """As for `Columns`; each batch is read when it is asked for."""
        for number, (part,) in enumerate(_parts(indices, size)):
            first = None if place is None else place + number * size
            yield self._join(part.tolist(), seed, first)

    def cut(self, part: slice, seed: int) -> Any:
        """The collated examples of a part of the dataset."""
        return self._join(list(range(part.start, part.stop)), seed)

    def about(self) -> dict[str, Any]:
        """The fingerprint of the data, computed without reading examples (except of a list)."""
        dataset = self._data
        sample = {"sample": sample_of_list(dataset)} if type(dataset) is list else {}
        return {
            "dataset": name_of(dataset),
            **sample,
            **({} if self._collate is None else {"collate": about_collate(self._collate)}),
            **inexact(dataset, self._collate),
        }

    def _join(self, numbers: Sequence[int], seed: int, place: int | None = None) -> Any:
        if not self.random:
            return self._joined(self._examples.take(numbers, seed))
        times = () if place is None else range(place, place + len(numbers))
        with seeding(seed):
            examples = self._examples.take(numbers, seed, times)
            if self._drawn:
                self._examples.before_collation(numbers, seed, times)
            return self._joined(examples)

    def _joined(self, examples: list[Any]) -> Any:
        if self._collate is not None:
            return self._collate(examples)
        try:
            return default_collate(examples)
        except (TypeError, ValueError, RuntimeError, KeyError) as error:
            raise ValueError(
                f"{len(examples)} examples of {type(self._data).__name__} cannot be joined to a "
                f"batch: {error}. Usual cause: they differ in shape or keys, or hold something "
                "other than numbers, text, arrays and tensors (None, objects). Return tensors of "
                "one shape; pad sequences that differ in length, collate=fl.data.pad(...); or "
                "give a collate= of your own."
            ) from error


def about_collate(collate: Any) -> Any:
    """What a checkpoint keeps of a function that joins examples."""
    ask: Any = getattr(collate, "about", None)
    return getattr(collate, "__qualname__", None) or name_of(collate) if ask is None else ask()


def _parts(indices: Sequence[Tensor], size: int) -> Iterator[tuple[Tensor, ...]]:
    """The indices of each batch, on each device."""
    return zip(*[block.split(size) for block in indices], strict=True)


def _is_column(value: Any) -> bool:
    return isinstance(value, (Tensor, np.ndarray)) and value.ndim > 0


def _tensor(path: str, leaf: Any) -> Tensor:
    check_data(leaf)
    if not _is_column(leaf):
        raise ValueError(
            f"The data has {short(leaf)} at {path or 'its root'!r}. Every leaf must be a tensor or "
            "numpy array whose first dimension counts the examples."
        )
    if isinstance(leaf, Tensor):
        return leaf
    return from_array(leaf, path)


def _check_lengths(paths: list[str], leaves: list[Tensor]) -> None:
    if len({leaf.shape[0] for leaf in leaves}) > 1:
        width = max(map(len, paths))
        rows = zip(paths, leaves, strict=True)
        table = "\n".join(f"  {path:<{width}}  {short(leaf)}" for path, leaf in rows)
        raise ValueError(
            f"The leading dimensions, which count the examples, disagree:\n{table}\n"
            "Usual cause: inputs and targets of different splits, or a leaf that is one value for "
            "all examples (leave it out of the data)."
        )
