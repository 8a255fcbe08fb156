"""Start a thread, whatever comes in the meantime."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Holder(Protocol):
    """What is between the process and its signal handlers, in the main thread.

    Attributes:
        hold: While True, no handler raises an exception: signals wait until `raise_held`.
    """

    hold: bool

    def raise_held(self) -> None:
        """Raise what was held."""


HOLDERS: list[Holder] = []  # those of the runs under way, outermost first


def begin(start: Callable[..., T], *arguments: Any) -> T:
    """Call `start`, which starts a thread; signals that come meanwhile are held until it has.

    Inside of ``Thread.start``, an exception from a signal handler can leave a lock of the thread's
    locked, and the thread then waits for ever. Or it is replaced by a KeyError, if the new thread
    has tidied up before ``start`` does.

    >>> begin(threading.Thread(target=print, args=("here",)).start)
    here
    """
    main = threading.current_thread() is threading.main_thread()
    holder = HOLDERS[-1] if main and HOLDERS else None
    if holder is None or holder.hold:
        return _begin(start, *arguments)
    try:
        holder.hold = True
        result = _begin(start, *arguments)
    finally:
        holder.hold = False
    holder.raise_held()
    return result


def _begin(start: Callable[..., T], *arguments: Any) -> T:
    handled = sys.exception()  # by the caller, who may be in an `except`
    try:
        return start(*arguments)
    except KeyError as error:
        came = error.__context__
        raise (error if came is None or came is handled else came) from None
