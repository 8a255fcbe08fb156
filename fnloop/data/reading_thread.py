"""A thread that reads data, and has epochs started by the thread that uses them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from fnloop._torch.process_wide import inside

T = TypeVar("T")


class ReadingThread(threading.Thread):
    """A thread that calls `read`, and asks another one to start iterators.

    Workers that a ``DataLoader`` forks lose all threads but the one that forked them, with what
    libraries keep for each. Process groups among it wait for ever for threads that are not there.
    So who uses the data starts its workers, as without this thread.

    Args:
        read: What the thread does.
        ask: Passes a function on to the other thread, which calls it.
        name: The thread's name.
    """

    def __init__(
        self, read: Callable[[], None], ask: Callable[[Callable[[], None]], None], name: str
    ) -> None:
        super().__init__(target=read, name=name, daemon=True)
        self._ask = ask
        self._answers: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def started(self, start: Callable[[], T]) -> T:
        """What `start` returns or raises in the other thread; GeneratorExit after `stop`."""
        self._ask(lambda: self._answers.put(_outcome(start)))
        result, error = self._answers.get()
        if error is not None:
            raise error
        return result

    def stop(self) -> None:
        """Let go of a thread that waits in `started`."""
        self._answers.put((None, GeneratorExit()))


def started(start: Callable[[], T]) -> T:
    """Call `start`, which starts an iterator, in the thread that uses its items.

    >>> next(started(lambda: iter("abc")))
    'a'
    """
    thread = threading.current_thread()
    # In a `ProcessWide` block the other thread may be the one that waits for this one.
    if not isinstance(thread, ReadingThread) or inside():
        return start()
    return thread.started(start)


def _outcome(start: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    try:
        return start(), None
    except BaseException as error:
        return None, error
