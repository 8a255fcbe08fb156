"""The end of a rank's program, which it notes for the others."""

from __future__ import annotations

import atexit
import contextlib
import functools
import sys
from types import TracebackType

from fnloop._torch import rank_store
from fnloop._torch.collectives import started
from fnloop.distributed.whereabouts import RankError, note_end, note_failure


@functools.cache  # once in a process
def say_farewell() -> None:
    """Note from now on how this process ends, and then leave its group; of another rank's failure,
    show one line.
    """
    before = sys.excepthook

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, RankError) and error.ranks:
            print(f"{kind.__name__}: {error}", file=sys.stderr, flush=True)
        else:
            tell(error)
            before(kind, error, trace)

    sys.excepthook = show
    atexit.register(_leave)


def tell(error: BaseException) -> None:
    """Note an exception that ends this process, if it is one of many."""
    if started():
        with contextlib.suppress(RuntimeError):  # the others are gone
            note_failure(error)


def _leave() -> None:
    if not started():
        return
    with contextlib.suppress(RuntimeError):
        if note_end():
            rank_store.leave()
