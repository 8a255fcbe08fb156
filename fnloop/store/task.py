"""A call that another thread makes, and what has come of it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Task(Generic[T]):
    """A call to be made by `run`, and its result.

    Its locks and queues are of C: an exception from a signal handler leaves none of them locked.

    >>> task = Task(lambda: 2 + 3)
    >>> task.run()
    >>> task.done(), task.error(), task.result()
    (True, None, 5)
    """

    def __init__(self, call: Callable[[], T]) -> None:
        self._call: Callable[[], T] | None = call
        self._results: list[T] = []
        self._error: BaseException | None = None
        self._pending = threading.Lock()  # locked until it is done
        self._pending.acquire()

    def run(self) -> None:
        """Make the call; an exception is kept for those who ask."""
        try:
            if self._call is not None:
                self._results.append(self._call())
        except BaseException as error:
            self._error = error
        finally:
            self._call = None  # and what it holds
            self._pending.release()

    def done(self) -> bool:
        """Whether the call has ended."""
        return not self._pending.locked()

    def error(self) -> BaseException | None:
        """Wait until it is done; its exception, if there was one."""
        with self._pending:  # `acquire` and `release` would leave room for an exception
            return self._error

    def result(self) -> T:
        """Wait until it is done; what the call returned, or its exception."""
        if error := self.error():
            raise error
        return self._results[0]


def work(tasks: queue.SimpleQueue[Task[object] | None]) -> None:
    """Do the tasks of a queue until there is None in it: what a thread runs."""
    while (task := tasks.get()) is not None:
        task.run()
        del task  # else the last one is held until the next comes
