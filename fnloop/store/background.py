"""A background thread that runs jobs in order while training continues."""

from __future__ import annotations

import queue
import threading
import weakref
from collections import deque
from collections.abc import Callable

from fnloop.store.task import Task, work
from fnloop.values.threads import begin


class Background:
    """Runs jobs one after the other, with at most one in the queue.

    `do` blocks when there are two already, to bound memory: each job holds a state. At exit Python
    waits for the jobs.

    >>> done = []
    >>> background = Background()
    >>> background.start()
    >>> for i in range(3):
    ...     background.do(lambda i=i: done.append(i))
    >>> background.finish(), done
    ([], [0, 1, 2])
    """

    def __init__(self) -> None:
        # A queue of C: an exception from a signal handler could leave an executor's locks locked.
        self._queue: queue.SimpleQueue[Task[None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(
            target=work, args=(self._queue,), name="fnloop-checkpoint", daemon=True
        )
        self._jobs: deque[Task[None]] = deque()
        self._failures: list[BaseException] = []
        weakref.finalize(self, _end, self._queue, self._thread)

    def start(self) -> None:
        """Start the thread; afterwards call `release`."""
        begin(self._thread.start)

    def wait(self) -> None:
        """Wait until all jobs have ended."""
        while self._jobs:
            self._settle()

    def do(self, job: Callable[[], None]) -> None:
        """Run `job` in the thread; blocks while two are running or queued."""
        while len(self._jobs) >= 2:
            self._settle()
        one = Task(job)
        self._queue.put(one)  # first: nothing may wait for a job that is not done
        self._jobs.append(one)

    def failures(self) -> list[BaseException]:
        """Exceptions of the jobs that have ended since the last call, in order."""
        while self._jobs and self._jobs[0].done():
            self._settle()
        failures, self._failures = self._failures, []
        return failures

    def finish(self) -> list[BaseException]:
        """Wait for all jobs, and return their exceptions."""
        self.wait()
        _end(self._queue, self._thread)
        return self.failures()

    def release(self) -> None:
        """Let the thread end after the last job."""
        self._queue.put(None)

    def _settle(self) -> None:
        error = self._jobs[0].error()  # an exception from a signal handler may end the wait
        self._jobs.popleft()
        if error is not None:
            self._failures.append(error)


def _end(jobs: queue.SimpleQueue[Task[None] | None], thread: threading.Thread) -> None:
    """Let the thread end after the last job, and wait for it."""
    jobs.put(None)
    if thread.is_alive() and thread is not threading.current_thread():
        thread.join()
