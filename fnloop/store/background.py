"""One thread that does jobs in their order, while the run goes on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Background:
    """Jobs one after the other, of which at most one waits while another is done.

    Whoever brings a third waits: each job holds a state, and memory is finite. At the end of the
    program Python waits for the jobs.

    >>> done = []
    >>> background = Background()
    >>> for i in range(3):
    ...     background.do(lambda i=i: done.append(i))
    >>> background.finish(), done
    ([], [0, 1, 2])
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "fnloop-checkpoint")
        self._jobs: deque[Future[None]] = deque()
        self._failures: list[BaseException] = []

    def wait(self) -> None:
        """Wait until no job is under way."""
        while self._jobs:
            self._settle()

    def do(self, job: Callable[[], None]) -> None:
        """Have `job` done; waits while two are under way."""
        while len(self._jobs) >= 2:
            self._settle()
        self._jobs.append(self._pool.submit(job))

    def failures(self) -> list[BaseException]:
        """What the jobs that have ended since the last call have raised, in order."""
        while self._jobs and self._jobs[0].done():
            self._settle()
        failures, self._failures = self._failures, []
        return failures

    def finish(self) -> list[BaseException]:
        """Wait for all jobs; what they have raised."""
        self.wait()
        self._pool.shutdown()
        return self.failures()

    def _settle(self) -> None:
        error = self._jobs.popleft().exception()
        if error is not None:
            self._failures.append(error)
