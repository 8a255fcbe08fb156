"""What a signal handler raises, told apart from the failure of what it has broken off."""

from __future__ import annotations

import inspect
import sys
import traceback
from types import FrameType


def let_out(error: BaseException) -> None:
    """Raise what a signal handler has raised, if that is what `error` is, or was made from.

    An alarm may raise a TimeoutError, which is an OSError, in the middle of a file. For an `except`
    that goes on after failures.

    >>> import signal
    >>> def alarm(signum, frame):
    ...     raise TimeoutError("the time is over")
    >>> before = signal.signal(signal.SIGINT, alarm)
    >>> try:
    ...     signal.raise_signal(signal.SIGINT)
    ... except OSError as error:
    ...     let_out(error)
    Traceback (most recent call last):
    TimeoutError: the time is over
    >>> _ = signal.signal(signal.SIGINT, before)
    """
    # To look at the variables of a frame that runs would keep them, the error too, in a cycle.
    running = {id(frame) for frame, _ in traceback.walk_stack(sys._getframe())}
    origin: BaseException | None = error
    while origin is not None:
        ended = [f for f, _ in traceback.walk_tb(origin.__traceback__) if id(f) not in running]
        if any(map(_is_handler, ended)):
            raise origin
        origin = origin.__cause__


class passing_over:
    """``contextlib.suppress``, but for what a signal handler raises.

    It is no generator: on Python 3.13, the frame of one would keep the error in a cycle.
    """

    def __init__(self, *kinds: type[Exception]) -> None:
        self._kinds = kinds

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, self._kinds):
            return False
        let_out(error)
        return True


def _is_handler(frame: FrameType) -> bool:
    """Whether it was called with the frame that called it, as Python does with what it interrupts.

    Which handlers are installed does not tell: one may have removed itself before it raised.
    """
    names, rest, _, values = inspect.getargvalues(frame)
    given = (*[values.get(name) for name in names], *(values.get(rest, ()) if rest else ()))
    return frame.f_back is not None and any(value is frame.f_back for value in given)
