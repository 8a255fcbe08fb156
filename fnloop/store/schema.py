"""The entries of a manifest, and the values that each may have."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fnloop.trees.json_codec import is_shallow

Check = Callable[[Any], bool]

LONE = ("step", "calls", "cursor", "key")
"""Fields of a state that are a single leaf."""
_FIELDS = (*LONE, "params", "buffers", "slots")


def fault_in(manifest: Mapping[str, Any]) -> str | None:
    """What is wrong with a manifest's entries, or None.

    >>> fault_in({"format": 1})[:30]
    'it lacks bytes, config, cursor'
    """
    if deep := [name for name, value in manifest.items() if not is_shallow(value)]:
        return f"{deep[0][:40]!r} is nested too deeply"
    needed = _ENTRIES | (_PIECES if manifest.get("format") == 2 else _ONE_FILE)
    if lacking := sorted(needed.keys() - manifest.keys()):
        return f"it lacks {', '.join(lacking)}"
    for name, (what, check) in (needed | _LATER).items():
        if name in manifest and not check(manifest[name]):
            return f"{name!r} is not {what}"
    return None


def fault_in_path(path: str) -> str | None:
    """What is wrong with a leaf's path, or None.

    >>> fault_in_path("params/0.weight"), fault_in_path("params/../x")
    (None, "has a part '..'")
    """
    if len(path) > 1000:
        return "has more than 1000 characters"
    if not path.isprintable():
        return "has characters that cannot be printed"
    first, *parts = path.split("/")
    if odd := [part for part in parts if part in ("", ".", "..")]:
        return f"has a part {odd[0]!r}"
    if first not in _FIELDS:
        return f"begins with {first!r}, which no state has"
    if (first in LONE) != (not parts):
        return "ends too early" if first not in LONE else f"goes on after {first!r}"
    return None


def is_whole(value: Any) -> bool:
    """Whether it is an int and no bool."""
    return type(value) is int


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _is_count(value: Any) -> bool:
    return is_whole(value) and value >= 0


def _are_whole(value: Any) -> bool:
    return is_whole(value) or (isinstance(value, list) and all(map(_are_whole, value)))


def _is_cursor(value: Any) -> bool:
    return _has(value, ("epoch", "index", "count")) and all(map(_is_count, value.values()))


def _is_monitor(value: Any) -> bool:
    return (
        _has(value, ("name", "mode", "value"))
        and _is_text(value["name"])
        and value["mode"] in ("min", "max")
        and _is_number(value["value"])
    )


def _is_file_name(value: Any) -> bool:
    return _is_text(value) and re.fullmatch(r"state(-[0-9a-f]{8})?\.safetensors", value) is not None


def is_piece_file(value: Any) -> bool:
    """Whether it is the name of a rank's file of pieces."""
    pattern = r"state(-[0-9a-f]{8})?-[0-9]{5}\.safetensors"
    return _is_text(value) and re.fullmatch(pattern, value) is not None


def _are_files(value: Any) -> bool:
    return bool(value) and _named(_is_count)(value) and all(map(is_piece_file, value))


def _is_identity(value: Any) -> bool:
    return _is_text(value) and re.fullmatch(r"[0-9a-zA-Z._-]{1,80}", value) is not None


def _is_digest(value: Any) -> bool:
    return _is_text(value) and re.fullmatch(r"[0-9a-f]{64}", value) is not None


def _has(value: Any, names: Iterable[str]) -> bool:
    return isinstance(value, dict) and value.keys() == set(names)


def _named(check: Check) -> Check:
    return lambda value: isinstance(value, dict) and all(map(check, value.values()))


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


_TEXT = ("text", _is_text)
_COUNT = ("a count", _is_count)
_MEMBERS = ("a whole number, or one for each member", _are_whole)
_VALUES = ("values by name", lambda value: isinstance(value, dict))

_ENTRIES: dict[str, tuple[str, Check]] = {
    "format": ("1 or more", lambda value: is_whole(value) and value >= 1),
    "fnloop": _TEXT,
    "torch": _TEXT,
    "python": _TEXT,
    "threads": _COUNT,
    "device": _TEXT,
    "cursor": ("epoch, index and count", _is_cursor),
    "step": _MEMBERS,
    "key": _MEMBERS,
    "model": _TEXT,
    "pipeline": ("text or null", _or_none(_is_text)),
    "status": _TEXT,
    "metrics": ("numbers by name", _named(_is_number)),
    "monitor": ("a name, a mode and a value, or null", _or_none(_is_monitor)),
    "config": _VALUES,
    "data": _VALUES,
    "memos": _VALUES,
    "structure": ("text by path", _named(_is_text)),
    "leaves": _VALUES,
}
_ONE_FILE: dict[str, tuple[str, Check]] = {
    "file": ("the name of a file of tensors", _is_file_name),
    "bytes": _COUNT,
}
"""Entries of format 1 alone."""
_PIECES: dict[str, tuple[str, Check]] = {
    "mesh": ("numbers of ranks by name", _named(_is_count)),
    "files": ("the bytes of files of pieces, by name", _are_files),
}
"""Entries of format 2 alone."""
_LATER: dict[str, tuple[str, Check]] = {
    "run": ("an identity or null", _or_none(_is_identity)),
    "pages": ("digests by path", _named(_is_digest)),
}
"""Entries that the first checkpoints of this format lack."""
