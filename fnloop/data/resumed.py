"""The cursor of a resumed run whose batch size has changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fnloop.values.cursor import Cursor


def resumed_index(
    cursor: Cursor, before: Mapping[str, Any], now: Mapping[str, Any]
) -> tuple[Cursor, str | None]:
    """Convert a cursor to a new batch size, without skipping an example of the epoch.

    The index of `fl.Batches` counts examples, so it stays. The index of a ``DataLoader`` counts
    batches: it is rounded down to a batch of the new size, so some examples may be seen twice.

    Args:
        cursor: The cursor in the checkpoint.
        before: The data's fingerprint (`about`) in the checkpoint.
        now: The fingerprint of the resumed run's data.

    Returns:
        The new cursor, and a message about what changed; None if nothing did.

    >>> before, now = ({"index": "batches", "batch_size": n, "batches": 99} for n in (32, 48))
    >>> resumed_index(Cursor(2, 5, 205), before, now)[0]
    Cursor(epoch=2, index=3, count=205)
    >>> print(resumed_index(Cursor(2, 5, 205), before, now)[1])
    The batch size was 32 and is 48: the epoch goes on at batch 3, and 16 examples are seen twice.
    """
    old, new = _size(before), _size(now)
    if "by its own state" in (before.get("exact"), now.get("exact")):
        if old == new or None in (old, new):
            return cursor, None
        return cursor, (
            f"The batch size was {old} and is {new}: the loader goes on from its own state, and "
            "what that means for another batch size is up to it."
        )
    regrouped = _regrouped(before, now)
    if cursor.index == 0 or old is None or new is None or (old == new and not regrouped):
        return cursor, None
    read = cursor.index * old
    index = read // new
    what = _what(before, now, old, new)
    batches = now.get("batches")
    if now.get("index") != "examples" and isinstance(batches, int) and index >= batches:
        return Cursor(cursor.epoch + 1, 0, cursor.count), (
            f"{what}: none of the epoch's {batches} batches is left, and the next epoch begins."
        )
    place = f"example {index}" if now.get("index") == "examples" else f"batch {index}"
    twice = read - index * new
    if regrouped:
        return cursor._replace(index=index), (
            f"{what}, which puts other examples together (buckets): the epoch goes on at {place}, "
            "some of its examples may be left out, and others seen twice."
        )
    seen = f", and {twice} examples are seen twice" if twice else ", and none is seen twice"
    return cursor._replace(index=index), f"{what}: the epoch goes on at {place}{seen}."


def _regrouped(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether the order of the examples depends on the batch size, which is another one."""
    grouped = "buckets" in before or "buckets" in now
    return grouped and before.get("batch_size") != now.get("batch_size")


def _size(about: Mapping[str, Any]) -> int | None:
    """Number of examples per unit of the cursor's index; None if unknown."""
    if about.get("index") == "examples":
        return 1
    size = about.get("batch_size")
    return size if isinstance(size, int) and size > 0 else None


def _what(before: Mapping[str, Any], now: Mapping[str, Any], old: int, new: int) -> str:
    if before.get("index") == now.get("index"):
        return f"The batch size was {before.get('batch_size')} and is {now.get('batch_size')}"
    return (
        f"The data was {before.get('kind')} and is {now.get('kind')}, which has another order, so "
        "some examples of this epoch may be left out and others seen twice"
    )
