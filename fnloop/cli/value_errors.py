"""What is wrong with a value that is not of its type."""

from __future__ import annotations

from typing import Any

from fnloop.cli.class_types import items_of, values_of
from fnloop.cli.flag_types import kind_text


def wrong_value(place: str, kind: Any, value: Any) -> str:
    """The error that a value is not of a type.

    Args:
        place: Where it stands: ``--widths``, or ``c.yaml:2: widths``.
        kind: The type.
        value: As text, if it is from the command line; None for null.

    >>> print(wrong_value("--widths", list[int], "1,2"))
    --widths takes list[int], got '1,2'. A list is written --widths '[1,2]'.
    >>> print(wrong_value("c.yaml:2: widths", list[int], 1))
    c.yaml:2: widths takes list[int], got 1. A list is written [1].
    """
    if value is None:
        return f"{place} takes {kind_text(kind)}, got null."
    text, how, on_line = str(value), "", place.startswith("--")
    if items_of(kind) is not Any and not text.startswith("["):
        written = f"{place} '[{text}]'" if on_line else f"[{text}]"
        how = f" A list is written {written}."
    elif values_of(kind) is not Any and not text.startswith("{"):
        flag = f"{place} '{{NAME: VALUE}}', or {place}.NAME VALUE" if on_line else "{NAME: VALUE}"
        how = f" A mapping is written {flag}."
    return f"{place} takes {kind_text(kind)}, got {value!r}.{how}"
