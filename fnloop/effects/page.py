"""``Page``: a part of a memo that no longer changes."""

from __future__ import annotations

import functools
import hashlib


class Page(bytes):
    """Bytes in a memo, for what only grows, such as the rows of a history.

    A memo is written with every checkpoint, so it has to stay small. A page in it is written once,
    to a file of its own beside the checkpoints; the manifest has its digest.

    >>> Page(b"rows").digest[:8]
    'bc51e9e6'
    """

    @functools.cached_property
    def digest(self) -> str:
        """The SHA-256 of the bytes, hexadecimal."""
        return hashlib.sha256(self).hexdigest()
