"""Draw batches ahead in a background thread, and copy them to the device."""

from __future__ import annotations

import functools
import queue
import threading
from collections.abc import Callable, Generator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fnloop.data.batches import START
from fnloop.data.overwriting import HeldBatches
from fnloop.data.reading_thread import ReadingThread, started
from fnloop.data.sources import Source, as_source
from fnloop.data.wrapping import Wrapped
from fnloop.trees.nodes import tree_leaves, tree_map
from fnloop.values.counts import as_count
from fnloop.values.cursor import Cursor
from fnloop.values.threads import begin

_Copied = tuple[Any, Any]  # the batch, and the CUDA event after its copy, if any


class prefetch(Wrapped):
    """Draw batches ahead in a background thread, and copy them to a device.

    Batches and cursors are those of `data`, so a run resumes exactly, even if batches were drawn
    but not used. (Except for an iterator, which cannot go back: its unused batches are lost.)

    Drawing overlaps with the training step if it uses no random numbers in this process: tensors
    and arrays in `fl.Batches`, a ``DataLoader`` with workers, and copies to a device. Datasets and
    generators use the seeded global generators, which are locked during a step, so they wait for
    it; use a ``DataLoader`` with workers for them. What begins an epoch (calling ``__iter__`` or a
    data function, starting workers) is done in the thread that asks for the batches.

    Args:
        data: Anything that `fl.run` accepts.
        depth: Number of batches to hold ready, at least 1.
        device: Device for the tensors of a batch, such as ``"cuda"``; for CUDA they are pinned and
            copied on a separate stream while the step computes. None does not move them.

    Raises:
        TypeError: `data` is not accepted.
        ValueError: `depth` is less than 1.

    >>> from fnloop.data.sources import one_epoch
    >>> list(one_epoch(prefetch([1, 2, 3])))
    [1, 2, 3]
    """

    def __init__(self, data: Any, depth: int = 2, device: torch.device | str | None = None) -> None:
        super().__init__(as_source(data))
        self.depth = as_count(depth, "prefetch(depth=...)", 1)
        self.device = None if device is None else _device(device)
        self.lent = self.lent and not _copies(self.device)

    def iterate(
        self, cursor: Cursor = START, key: int = 0
    ) -> Generator[tuple[Cursor, Any], None, None]:
        """See `Source.iterate`. The thread ends with the generator."""
        device = _with_index(self.device)
        worker = _Worker(self._source, cursor, key, self.depth, device)
        after = None
        try:
            try:
                worker.start()
                while True:
                    drawn = worker.take()
                    if drawn is None:
                        return
                    after, (batch, copied) = drawn
                    if copied is not None:
                        _wait_for(batch, copied, device)
                    yield after, batch
            finally:
                worker.stop()
        finally:
            worker.stop()  # an exception from a signal handler may have come before the one above
            if after is not None:
                self.left(after)  # later batches were drawn but not used


def _device(given: Any) -> torch.device:
    try:
        return torch.device(given)
    except (RuntimeError, TypeError) as error:
        raise TypeError(f'prefetch(device=...) takes "cpu", "cuda" or another: {error}') from error


def _copies(device: torch.device | None) -> bool:
    return device is not None and device.type != "cpu"  # to another device, at once


class _Start(NamedTuple):
    """What the thread asks to be called in the one that takes its batches."""

    call: Callable[[], None]


class _Worker:
    """The thread. It draws while a place is free, until it is stopped or the data ends."""

    def __init__(
        self, source: Source, cursor: Cursor, key: int, depth: int, device: torch.device | None
    ) -> None:
        self._fresh = _copies(device) or getattr(source, "fresh", True)
        self._depth = depth
        self._drawn = drawn = queue.SimpleQueue[Any]()
        # A queue of C: an exception from a signal handler could leave a `Semaphore` locked.
        self._places: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(depth):
            self._places.put(None)
        self._stopped = False
        self._thread = ReadingThread(
            functools.partial(self._run, source, cursor, key, device),
            ask=lambda start: drawn.put(_Start(start)),
            name="fnloop-prefetch",
        )

    def start(self) -> None:
        """Start the thread; afterwards call `stop`."""
        begin(self._thread.start)

    def take(self) -> tuple[Cursor, _Copied] | None:
        """The next cursor and batch; None at the end. Reraises exceptions of the data."""
        while isinstance(drawn := self._drawn.get(), _Start):
            started(drawn.call)
        self._places.put(None)
        if isinstance(drawn, BaseException):
            raise drawn
        return drawn

    def stop(self) -> None:
        """Stop the thread; wait up to 10 seconds for the batch that it is drawing."""
        self._stopped = True
        self._places.put(None)
        self._thread.stop()
        # The garbage collector may call this from the thread itself.
        if self._thread is not threading.current_thread() and self._thread.is_alive():
            self._thread.join(timeout=10)  # data that hangs must not block the program's exit

    def _run(self, source: Source, cursor: Cursor, key: int, device: torch.device | None) -> None:
        batches = source.iterate(cursor, key)
        try:
            copy = _copier(device)
            held = None if self._fresh else HeldBatches(source, self._depth, handed_out=True)
            while True:
                self._places.get()
                if self._stopped:
                    break
                drawn = next(batches, None)
                if drawn is not None and held is not None:
                    held.add(drawn[0].count, drawn[1])
                self._drawn.put(None if drawn is None else (drawn[0], copy(drawn[1])))
                if drawn is None:
                    break
        except BaseException as error:
            self._drawn.put(error)
        finally:
            batches.close()


def _with_index(device: torch.device | None) -> torch.device | None:
    # Resolve the index here: the current device of a new thread is always the first one.
    index: Any = device.index if device else None
    if device is None or device.type != "cuda" or index is not None:
        return device
    return torch.device("cuda", torch.cuda.current_device())


def _copier(device: torch.device | None) -> Any:
    """A function that copies a batch, and returns the copy and the event to wait for, if any."""
    if device is None:
        return lambda batch: (batch, None)
    if device.type != "cuda":
        return lambda batch: (tree_map(lambda leaf: _to(leaf, device), batch), None)
    stream = torch.cuda.Stream(device)

    def copy(batch: Any) -> _Copied:
        with torch.cuda.stream(stream):
            return tree_map(lambda leaf: _to(_pinned(leaf), device), batch), stream.record_event()

    return copy


def _pinned(leaf: Any) -> Any:
    return leaf.pin_memory() if isinstance(leaf, Tensor) and leaf.device.type == "cpu" else leaf


def _to(leaf: Any, device: torch.device) -> Any:
    # Batch classes of other libraries are leaves for optree, and may have their own `to`.
    return leaf.to(device, non_blocking=True) if hasattr(leaf, "to") else leaf


def _wait_for(batch: Any, copied: Any, device: torch.device | None) -> None:
    """Make the current stream wait for the copy, and record its use of the memory."""
    stream = torch.cuda.current_stream(device)
    stream.wait_event(copied)
    for leaf in tree_leaves(batch):
        if isinstance(leaf, Tensor) and leaf.device.type == "cuda":
            leaf.record_stream(stream)
