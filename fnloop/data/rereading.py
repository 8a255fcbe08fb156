"""Data of which some batches are read that training is to read again."""

from __future__ import annotations

from typing import Any

from fnloop.data.iterables import is_once
from fnloop.data.sources import Source, as_source
from fnloop.trees.show import short


def as_rereadable(data: Any, who: str) -> Source:
    """The data, if reading it moves nothing.

    Args:
        data: As for `fl.run`.
        who: Who reads it, for the error.

    Raises:
        TypeError: It goes on from its own position.

    >>> as_rereadable(iter([1, 2]), "profile")
    Traceback (most recent call last):
    ...
    TypeError: profile reads batches that training is to read again, and this data (...
    """
    source = as_source(data)
    about: Any = getattr(source, "about", None)
    if is_once(source) or (about is not None and about().get("exact") == "by its own state"):
        raise TypeError(
            f"{who} reads batches that training is to read again, and this data ({short(data)}) "
            "goes on from its own position. Give it some as a list: "
            "[*itertools.islice(loader, 100)]."
        )
    return source
