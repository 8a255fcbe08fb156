"""A thread that computes while the caller reads."""

from __future__ import annotations

import _thread
import contextlib
import functools
import queue
import weakref
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from fnloop.store.task import Task, work

P = ParamSpec("P")
T = TypeVar("T")


class Helper:
    """Makes calls in order in another thread, which begins with the first and ends with the block.

    Nobody waits for calls whose results are not asked for. An exception from a signal handler may
    come at any instruction: the thread ends nevertheless, at the latest when the `Helper` is
    collected. `threading.Thread` and executors have locks in Python, which it would leave locked.

    >>> with Helper() as helper:
    ...     task = helper.later(pow, 2, 10)
    ...     task.result()
    1024
    """

    def __init__(self) -> None:
        self._tasks: queue.SimpleQueue[Task[Any] | None] = queue.SimpleQueue()
        self._started = False
        weakref.finalize(self, self._tasks.put, None)

    def later(self, call: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> Task[T]:
        """Make a call in the other thread; here, if no thread can be started."""
        task = Task(functools.partial(call, *arguments, **named))
        if self._starts():
            self._tasks.put(task)
        else:
            task.run()
        return task

    def _starts(self) -> bool:
        """Whether the thread has been started."""
        if not self._started:
            with contextlib.suppress(RuntimeError):  # at the end of the process; too many threads
                _thread.start_new_thread(work, (self._tasks,))
                self._started = True
        return self._started

    def __enter__(self) -> Helper:
        return self

    def __exit__(self, *_: object) -> None:
        self._tasks.put(None)
