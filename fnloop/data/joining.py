"""Join the examples of a batch, some fields of which have been joined before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import default_collate

from fnloop.trees.paths import join, split


def field(example: Any, path: str) -> Any:
    """The field of an example at a path; the example itself if the path is empty.

    Raises:
        ValueError: There is none.

    >>> field({"text": ([1, 2], 0)}, "text/0")
    [1, 2]
    """
    found = example
    for part in split(path) if path else ():
        children = _children(found) or {}
        if part not in children:
            there = ", ".join(map(repr, paths(example)))
            raise ValueError(
                f"An example has no field {path!r}: it has {there or 'none at all'}. The number or "
                "name of a field, as in pad(lengths, {'tokens': 0}), is that in the example."
            )
        found = children[part]
    return found


def paths(example: Any) -> list[str]:
    """The paths of an example's fields; a list is one field.

    >>> paths({"text": ([1, 2], 0)})
    ['text/0', 'text/1']
    """
    return [join(path) for path in _fields(example)]


def joined(examples: Sequence[Any], done: Mapping[str, Tensor]) -> Any:
    """A batch in the structure of its examples.

    Args:
        examples: They have the same fields.
        done: Fields that are joined already, by path; others are joined by ``default_collate``.

    Raises:
        ValueError: They have other fields than the first, or a field cannot be joined.

    >>> import torch
    >>> joined([([1, 2], "a"), ([3], "b")], {"0": torch.zeros(2, 2)})
    (tensor([[0., 0.],
            [0., 0.]]), ['a', 'b'])
    """
    return _joined((), examples, done)


def _joined(path: tuple[str, ...], items: Sequence[Any], done: Mapping[str, Tensor]) -> Any:
    place, first = join(path), items[0]
    if place in done:
        return done[place]
    children = _children(first)
    within = any(name.startswith(f"{place}/") or not place for name in done)
    if children is None or (isinstance(first, list) and not within):
        return _collated(place, items)
    each = [_children(item) or {} for item in items]
    for other in each:
        if other.keys() != children.keys():
            raise ValueError(
                f"Examples differ in their fields{f' at {place!r}' if place else ''}: one has "
                f"{list(children)}, another {list(other)}. Give all the same."
            )
    parts = [_joined((*path, name), [one[name] for one in each], done) for name in children]
    if isinstance(first, Mapping):
        return dict(zip(first, parts, strict=True))
    if hasattr(first, "_fields"):
        return type(first)(*parts)
    return tuple(parts) if isinstance(first, tuple) else parts


def _collated(place: str, items: Sequence[Any]) -> Any:
    try:
        return default_collate(list(items))
    except (TypeError, ValueError, RuntimeError, KeyError) as error:
        raise ValueError(
            f"The field {place!r} of {len(items)} examples cannot be joined: {error}. Usual cause: "
            "it is a sequence, and its length differs: name it for pad, as in "
            f"{{{place!r}: 0}}. Or it holds something other than numbers, text, arrays and tensors."
        ) from error


def _children(node: Any) -> dict[str, Any] | None:
    """The fields of a dict, tuple or list, by name; None of anything else."""
    if isinstance(node, Mapping):
        return {str(key): value for key, value in node.items()}
    names: Any = getattr(node, "_fields", None)
    if isinstance(node, (tuple, list)):
        return dict(zip(names or map(str, range(len(node))), node, strict=True))
    return None


def _fields(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The paths of fields, in which a list is one."""
    children = None if isinstance(node, list) and path else _children(node)
    if children is None:
        yield from [path] if path else []
        return
    for name, child in children.items():
        yield from _fields(child, (*path, name))
