"""Blocks in which a setting of the whole process is another, for one thread at a time."""

from __future__ import annotations

import threading
from typing import Any

_LOCK: Any = threading.RLock()
_BLOCKS: list[ProcessWide] = []  # those that the thread with the lock is in, outermost first


class ProcessWide:
    """A context manager that changes a setting of the process, and restores it afterwards.

    A lock lets in one thread at a time. A subclass says what it saves, changes and restores.
    """

    __slots__ = ()

    def save(self) -> None:
        """Remember the setting as it is."""
        raise NotImplementedError

    def change(self) -> None:
        """Make it another."""
        raise NotImplementedError

    def restore(self) -> None:
        """Make it what was saved. It may be called again."""
        raise NotImplementedError

    # An exception from a signal handler may come after any call. (Assigning to a slice and deleting
    # one are no calls.)

    def __enter__(self) -> None:
        _LOCK.acquire()
        try:
            self.save()
            _BLOCKS[len(_BLOCKS) :] = [self]
        except BaseException:
            _LOCK.release()
            raise
        try:
            self.change()
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        try:
            self.restore()
        except BaseException:
            self.restore()
            raise
        finally:
            del _BLOCKS[-1:]
            _LOCK.release()


def inside() -> bool:
    """Whether this thread is inside such a block."""
    return _LOCK._is_owned()


def leave_all() -> None:
    """Leave all blocks that this thread is in.

    For a caller that was outside of all of them before an exception from a signal handler, which
    may have come at the first instruction of ``__exit__``.
    """
    if not _LOCK._is_owned():
        return
    for block in reversed(_BLOCKS):
        block.restore()
    del _BLOCKS[:]
    while _LOCK._is_owned():
        _LOCK.release()
