"""The examples of a batch: how many there are, and cutting them out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import optree
from torch import Tensor

from fnloop.trees.named import by_name, restored
from fnloop.trees.paths import join
from fnloop.trees.show import short

_SHOWN = 6
_WHOLE = (int, float, complex, str, bytes, np.generic)


class UnclearRows(ValueError):
    """The number of examples cannot be told; the message says what was found."""


def rows(batch: Any) -> int | None:
    """The number of examples of a batch: the common leading dimension of its tensors and arrays.

    In a list or tuple inside the batch, such as the texts of the examples, or images of different
    sizes, an item may also be an example. If there is no tensor, the strings of such lists count.

    Returns:
        The number; None if the batch has only single values.

    Raises:
        UnclearRows: The sizes disagree, or there is more than one way to read them.

    >>> import torch
    >>> rows({"image": [torch.zeros(3, n, n) for n in (4, 5)], "label": torch.tensor([0, 1])})
    2
    >>> rows(([torch.zeros(3, 4, 4)] * 5, ["cat"] * 5))
    Traceback (most recent call last):
    fnloop.values.rows.UnclearRows: 0 is a list of 5 tensors f32[3,4,4], which may be 5 examples \
or 5 inputs of 3 examples
    """
    if type(batch) is tuple and len(batch) == 2:  # fast path for (x, y)
        x, y = batch
        if isinstance(x, Tensor) and isinstance(y, Tensor) and x.ndim and y.ndim:
            size = x.shape[0]
            if size == y.shape[0]:
                return size
    tree = by_name(batch)
    outer, inner = list[tuple[int, str]](), list[tuple[int, str]]()
    for path, array, in_list in _arrays(tree):
        _note(inner if in_list else outer, array.shape[0], path)
    if type(tree) is list:
        _refuse_examples("the batch", tree)
    for entry, child in [] if outer else _children(tree):
        _refuse_examples(join((entry,)), child)
    found = outer or inner or _texts(tree)
    if len(found) == 1:
        ((size, _),) = found
        if not inner or all([_has(child, size) for _, child in _children(tree)]):
            return size
        found = [*found, *[each for each in inner if each[0] != size]]
    if not found:
        return None
    listed = [f"{path or 'the batch'} has {size}" for size, path in found]
    more = [f"{len(listed) - _SHOWN} more"] if len(listed) > _SHOWN else []
    raise UnclearRows(", ".join([*listed[:_SHOWN], *more]))


def cut(batch: Any, start: int, stop: int, size: int) -> Any:
    """The examples from `start` to `stop` of a batch of `size` examples.

    Tensors and arrays are cut along their leading dimension, and so are lists and tuples inside
    the batch that have one item an example. Other numbers, strings and lists stay as they are.

    Raises:
        UnclearRows: There is an object of an unknown type, which may hold examples.

    >>> import numpy as np
    >>> batch = {"x": np.arange(4), "text": ["a", "b", "c", "d"], "rate": 0.5}
    >>> cut(batch, 1, 3, size=4)
    {'x': array([1, 2]), 'text': ['b', 'c'], 'rate': 0.5}
    """
    tree = by_name(batch)
    if _is_texts(tree):
        return batch[start:stop]
    return restored(_rebuilt(tree, lambda child: _cut(child, start, stop, size)))


def _cut(node: Any, start: int, stop: int, size: int) -> Any:
    if _is_array(node):
        return node[start:stop] if node.ndim else node
    if _is_list(node) and len(node) == size and not _is_columns(node, size):
        return node[start:stop]
    if not isinstance(node, _WHOLE) and node is not None and optree.tree_is_leaf(node):
        raise UnclearRows(f"there is a {type(node).__name__}")
    return _rebuilt(node, lambda child: _cut(child, start, stop, size))


def _has(node: Any, size: int) -> bool:
    """Whether a part of a batch can be read as `size` examples."""
    if _is_array(node):
        return not node.ndim or node.shape[0] == size
    if _is_list(node) and len(node) == size:
        return True
    return all([_has(child, size) for _, child in _children(node)])


def _is_columns(node: Any, size: int) -> bool:
    """Whether all tensors in a list have `size` rows, and there is one."""
    found = [array.shape[0] for _, array, _ in _arrays(node)]
    return bool(found) and all([rows == size for rows in found])


def _arrays(
    node: Any, path: tuple[Any, ...] = (), in_list: bool = False
) -> Iterator[tuple[str, Any, bool]]:
    """The tensors and arrays that have rows, with path, and whether in a list inside the batch."""
    if _is_array(node):
        if node.ndim:
            yield join(path), node, in_list
        return
    within = in_list or (bool(path) and _is_list(node))
    for entry, child in _children(node):
        yield from _arrays(child, (*path, entry), within)


def _refuse_examples(path: str, items: Any) -> None:
    """Refuse a list of similar tensors where nothing else tells whether they are the examples."""
    if not _is_list(items) or len(items) < 4 or not all(map(_is_array, items)):
        return
    first, shapes = items[0], {tuple(item.shape) for item in items}
    alike = len({(item.dtype, item.ndim) for item in items}) == 1
    # Images of different sizes are 3-d; columns of different sizes are mostly 2-d.
    if alike and first.ndim > 1 and (len(shapes) == 1 or first.ndim == 3):
        raise UnclearRows(
            f"{path} is a list of {len(items)} tensors {short(first)}, which may be "
            f"{len(items)} examples or {len(items)} inputs of {first.shape[0]} examples"
        )


def _note(found: list[tuple[int, str]], size: int, path: str) -> None:
    """Add a size that is not there yet. (Sizes that vary, in a compiled step, have no hash.)"""
    if not any([size == each for each, _ in found]):
        found.append((size, path))


def _texts(tree: Any) -> list[tuple[int, str]]:
    """The lengths of the lists of strings, each with a path."""
    if _is_texts(tree):
        return [(len(tree), "")]
    found: list[tuple[int, str]] = []
    for entry, child in _children(tree):
        if _is_list(child) and _all_text(child):
            _note(found, len(child), join((entry,)))
    return found


def _is_texts(tree: Any) -> bool:
    return type(tree) is list and _all_text(tree)


def _all_text(items: Any) -> bool:
    return bool(items) and all([isinstance(item, (str, bytes)) for item in items])


def _is_array(node: Any) -> bool:
    return isinstance(node, (Tensor, np.ndarray))


def _is_list(node: Any) -> bool:
    return type(node) in (list, tuple)


def _children(node: Any) -> list[tuple[Any, Any]]:
    """Pairs of key and child; none for a leaf."""
    if type(node) is dict:
        return list(node.items())
    if type(node) in (list, tuple):
        return list(enumerate(node))
    if node is None or _is_array(node) or optree.tree_is_leaf(node):
        return []
    children, _, entries, *_ = optree.tree_flatten_one_level(node)
    return list(zip(entries, children, strict=True))


def _rebuilt(node: Any, f: Any) -> Any:
    """The same node with `f` of each child; a leaf as it is."""
    if _is_array(node):
        return f(node)
    if node is None or optree.tree_is_leaf(node):
        return node
    children, static, _, build, *_ = optree.tree_flatten_one_level(node)
    return build(static, tuple(map(f, children)))
