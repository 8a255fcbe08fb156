"""Start a thread, whatever comes in the meantime."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def begin(start: Callable[..., T], *arguments: Any) -> T:
    """Call `start`, which starts a thread; an exception from a signal handler stays what it is.

    ``Thread.start`` tidies up after an exception, and raises KeyError in its place if the new
    thread has tidied up before.

    >>> import threading
    >>> begin(threading.Thread(target=print, args=("here",)).start)
    here
    """
    try:
        return start(*arguments)
    except KeyError as error:
        raise error.__context__ or error from None
