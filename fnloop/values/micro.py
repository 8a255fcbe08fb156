"""Micro-batches split by the user."""

from __future__ import annotations

from typing import Any

from fnloop.trees.nodes import tree


@tree
class Micro:
    """A batch that is already split into micro-batches, for `fl.accumulate`.

    Attributes:
        parts: The micro-batches, in order; their sizes and shapes may differ.

    >>> len(Micro(({"tokens": 1}, {"tokens": 2})).parts)
    2
    """

    parts: tuple[Any, ...]
