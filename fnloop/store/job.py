"""A call that another thread makes, and what has come of it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Job(Generic[T]):
    """A call to be made by `run`, and its result.

    Its locks and queues are of C: an exception from a signal handler leaves none of them locked.

    >>> job = Job(lambda: 2 + 3)
    >>> job.run()
    >>> job.done(), job.error(), job.result()
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


def work(jobs: queue.SimpleQueue[Job[object] | None]) -> None:
    """Do the jobs of a queue until there is None in it: what a thread runs."""
    while (job := jobs.get()) is not None:
        job.run()
        del job  # else the last one is held until the next comes
