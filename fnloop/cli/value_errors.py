"""What is wrong with a value that is not of its type."""

from __future__ import annotations

from typing import Any

from fnloop.cli.class_types import items_of, places_of, values_of
from fnloop.cli.flag_types import kind_text, may_be
from fnloop.cli.yaml_dialect import load_flag


def wrong_value(place: str, kind: Any, value: Any) -> str:
    """The error that a value is not of a type.

    Args:
        place: Where it stands: ``--widths``, or ``c.yaml:2: widths``.
        kind: The type.
        value: As text, if it is from the command line; None for null.

    >>> print(wrong_value("--widths", list[int], "1,2"))
    --widths takes list[int], got '1,2'. A list is written --widths '[1,2]'.
    >>> print(wrong_value("--size", tuple[int, int], "3"))
    --size takes tuple[int, int], got '3'. A list is written --size '[VALUE,VALUE]'.
    >>> print(wrong_value("c.yaml:2: widths", list[int], 1))
    c.yaml:2: widths takes list[int], got 1. A list is written [1].
    """
    if value is None:
        return f"{place} takes {kind_text(kind)}, got null."
    text, how, on_line = str(value), "", place.startswith("--")
    if items_of(kind) is not Any and not text.startswith("["):
        written = _listed(kind, text)
        written = f"{place} '{written}'" if on_line else written
        how = f" A list is written {written}."
    elif values_of(kind) is not Any and not text.startswith("{"):
        flag = f"{place} '{{NAME: VALUE}}', or {place}.NAME VALUE" if on_line else "{NAME: VALUE}"
        how = f" A mapping is written {flag}."
    return f"{place} takes {kind_text(kind)}, got {value!r}.{how}"


def _listed(kind: Any, text: str) -> str:
    """A list as it is written: of the text, if that gives items of the type."""
    found = load_flag(f"[{text}]")
    items = found if isinstance(found, list) else []
    places = places_of(kind)
    kinds = places or (items_of(kind),) * len(items)
    if items and len(items) == len(kinds) and all(map(may_be, items, kinds)):
        return f"[{text}]"
    return f"[{','.join(['VALUE'] * len(places)) or 'VALUE,...'}]"
