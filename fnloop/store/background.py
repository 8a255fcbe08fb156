"""A background thread that runs jobs in order while training continues."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

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
        self._pool = ThreadPoolExecutor(1, "fnloop-checkpoint")
        self._jobs: deque[Future[None]] = deque()
        self._failures: list[BaseException] = []

    def start(self) -> None:
        """Start the thread; afterwards call `release`.

        An exception from a signal handler may keep a thread from starting, and a job that was
        waiting for it would be lost. So there is one before there are jobs.
        """
        begin(lambda: self._pool.submit(_nothing).result())

    def wait(self) -> None:
        """Wait until all jobs have ended."""
        while self._jobs:
            self._settle()

    def do(self, job: Callable[[], None]) -> None:
        """Run `job` in the thread; blocks while two are running or queued."""
        while len(self._jobs) >= 2:
            self._settle()
        self._jobs.append(self._pool.submit(job))

    def failures(self) -> list[BaseException]:
        """Exceptions of the jobs that have ended since the last call, in order."""
        while self._jobs and self._jobs[0].done():
            self._settle()
        failures, self._failures = self._failures, []
        return failures

    def finish(self) -> list[BaseException]:
        """Wait for all jobs, and return their exceptions."""
        self.wait()
        self._pool.shutdown()
        return self.failures()

    def release(self) -> None:
        """Let the thread end after the last job."""
        self._pool.shutdown(wait=False)

    def _settle(self) -> None:
        error = self._jobs[0].exception()  # an exception from a signal handler may end the wait
        self._jobs.popleft()
        if error is not None:
            self._failures.append(error)


def _nothing() -> None:
    """The first job."""
