"""Pages of memos: files beside the checkpoints, each written once and named by its digest."""

from __future__ import annotations

import contextlib
import hashlib
import io
import uuid
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fnloop.effects.page import Page
from fnloop.store.checkpoint_errors import DamagedError
from fnloop.store.files import Files, write_all, written
from fnloop.store.patience import opened
from fnloop.trees.json_codec import as_json
from fnloop.trees.paths import join, split

PAGES = "pages"
"""The folder of pages, in the folder of checkpoints."""
LARGEST = 32 * 2**20
ALL = 256 * 2**20
"""Maximum bytes of a page, and of all pages of a checkpoint, so that forged ones cost little."""


def detached(memos: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Page]]:
    """Memos with None in place of each page, and the pages by path.

    >>> detached({"history": {"pages": [Page(b"rows")], "cut": 1}})
    ({'history': {'pages': [None], 'cut': 1}}, {'history/pages/0': b'rows'})
    """
    pages: dict[str, Page] = {}

    def without(node: Any, path: tuple[Any, ...]) -> Any:
        if isinstance(node, Page):
            pages[join(path)] = node
            return None
        if isinstance(node, Mapping):
            return {key: without(part, (*path, key)) for key, part in node.items()}
        if isinstance(node, list | tuple):
            return [without(part, (*path, i)) for i, part in enumerate(node)]
        return node

    return without(memos, ()), pages


def saveable(memos: Mapping[str, Any]) -> dict[str, Any]:
    """Those that can be saved; the others are left out, with a warning."""
    found = dict(memos)
    for name, memo in memos.items():
        try:
            as_json(detached({name: memo})[0])
        except (TypeError, ValueError) as error:
            del found[name]
            warnings.warn(
                f"The memo of the effect {name!r} cannot be saved, and is left out: {error}",
                stacklevel=3,
            )
    return found


def attached(
    manifest: Mapping[str, Any], folder: Path, files: Files
) -> tuple[dict[str, Any], list[str]]:
    """The inverse of `detached`, for the manifest of a checkpoint in `folder`.

    Returns:
        The memos, and what is wrong with pages that are missing or damaged: they stay None.

    Raises:
        UnreadableError: A page cannot be read now.
    """
    memos, faults, left = manifest["memos"], list[str](), ALL
    for path, digest in manifest.get("pages", {}).items():
        try:
            page = _read(folder / PAGES / digest, digest, files, min(left, LARGEST))
        except DamagedError as error:
            faults.append(str(error))
            continue
        left -= len(page)
        *parents, last = split(path)
        with contextlib.suppress(LookupError, TypeError, ValueError):
            node = memos
            for part in parents:
                node = node[int(part) if isinstance(node, list) else part]
            node[int(last) if isinstance(node, list) else last] = page
    return memos, faults


def put_pages(pages: Mapping[str, Page], folder: Path, files: Files) -> None:
    """Write the pages that `folder` does not have yet; they are on the disk when this returns."""
    if not pages:
        return
    place = folder / PAGES
    there = set(files.names(place))
    for name in there:
        if ".tmp-" in name:  # left by a killed process
            files.remove(place / name)
    new = {page.digest: page for page in pages.values() if page.digest not in there}
    if new and not files.exists(place):
        files.make(place)
        files.sync(folder)
    for digest, page in new.items():
        # Elsewhere than on a disk the file appears whole when it is closed.
        file = place / (f"{digest}.tmp-{uuid.uuid4().hex[:8]}" if files.renames else digest)
        with written(files, file) as output:
            write_all(output, page)
        if files.renames:
            files.rename(file, place / digest)
    if new:
        files.sync(place)


def _read(file: Path, digest: str, files: Files, largest: int) -> Page:
    with opened(files, file) as stream:
        size = stream.seek(0, io.SEEK_END)
        if size > largest:
            raise DamagedError(
                f"{file} has {size} bytes, and pages may have {LARGEST} each, {ALL} in all."
            )
        stream.seek(0)
        raw, filled = bytearray(size), 0
        while filled < size and (got := stream.readinto(memoryview(raw)[filled:])):
            filled += got
    if hashlib.sha256(raw).hexdigest() != digest:
        raise DamagedError(f"{file} is damaged: its contents do not match its digest.")
    return Page(raw)
