"""Batches drawn ahead in the background, and copied to the device."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator
from typing import Any

import torch
from torch import Tensor

from fnloop.data.batches import START
from fnloop.data.sources import Source, as_source
from fnloop.trees.nodes import tree_leaves, tree_map
from fnloop.values.cursor import Cursor

_Copied = tuple[Any, Any]  # the batch, and the CUDA event after its copy, if any


class prefetch:
    """Data whose batches a background thread draws ahead and copies to a device.

    The batches and their cursors are those of `data`, so a run resumes exactly, however many were
    drawn and not used. (An iterator cannot go back: what was drawn and not used is lost.)

    It overlaps with the step where drawing needs no random numbers in this process: tensors and
    arrays in `fl.Batches`, a ``DataLoader`` with workers, and the copy to a device. Datasets and
    generators draw under seeded generators, which one thread at a time may hold, so they
    wait for the step; give those to a ``DataLoader`` with workers.

    Args:
        data: Anything that `fl.run` takes.
        depth: Batches to hold ready, at least 1.
        device: Where to copy the tensors of a batch, such as ``"cuda"``; on CUDA they are pinned
            and copied on a stream of their own while the step computes. None leaves them where
            they are.

    Raises:
        ValueError: If `depth` is less than 1.

    >>> from fnloop.data.sources import one_epoch
    >>> list(one_epoch(prefetch([1, 2, 3])))
    [1, 2, 3]
    """

    def __init__(self, data: Any, depth: int = 2, device: torch.device | str | None = None) -> None:
        if depth < 1:
            raise ValueError(f"depth is the number of batches to hold, at least 1; got {depth}.")
        self._source = as_source(data)
        self.batches = self._source.batches
        self.batch_size = getattr(self._source, "batch_size", 1)
        self.depth = depth
        self.device = None if device is None else torch.device(device)

    def iterate(
        self, cursor: Cursor = START, key: int = 0
    ) -> Generator[tuple[Cursor, Any], None, None]:
        """As for a `Source`; the thread ends with the generator."""
        device = _with_index(self.device)
        worker = _Worker(self._source, cursor, key, self.depth, device)
        after = None
        try:
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
            left: Any = getattr(self._source, "left", None)
            if left is not None and after is not None:
                left(after)  # what was drawn ahead of it was not used

    def about(self) -> dict[str, Any] | None:
        """The fingerprint of the data."""
        ask: Any = getattr(self._source, "about", None)
        return None if ask is None else ask()

    def memo(self, cursor: Cursor) -> Any:
        """The position of the data after the batch that was given with `cursor`; see `Source`."""
        ask: Any = getattr(self._source, "memo", None)
        return None if ask is None else ask(cursor)

    def recall(self, memo: Any) -> None:
        """Let the data go on from a position that `memo` gave."""
        tell: Any = getattr(self._source, "recall", None)
        if tell is None:
            raise ValueError(
                "A position of the data was kept with the checkpoint, and this data has none. "
                "Usual cause: the run was started with another loader."
            )
        tell(memo)


class _Worker:
    """The thread: it draws while there is a free place, until it is stopped or the data ends."""

    def __init__(
        self, source: Source, cursor: Cursor, key: int, depth: int, device: torch.device | None
    ) -> None:
        self._drawn: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._places = threading.Semaphore(depth)
        self._stopped = False
        self._thread = threading.Thread(
            target=self._run,
            args=(source, cursor, key, device),
            name="fnloop-prefetch",
            daemon=True,
        )
        self._thread.start()

    def take(self) -> tuple[Cursor, _Copied] | None:
        """The next cursor and batch; None at the end. Raises what the data raised."""
        drawn = self._drawn.get()
        self._places.release()
        if isinstance(drawn, BaseException):
            raise drawn
        return drawn

    def stop(self) -> None:
        """End the thread; a batch that it is drawing is finished first, if that is soon."""
        self._stopped = True
        self._places.release()
        if self._thread is not threading.current_thread():  # the garbage collector runs anywhere
            self._thread.join(timeout=10)  # data that hangs must not hang the end of the program

    def _run(self, source: Source, cursor: Cursor, key: int, device: torch.device | None) -> None:
        batches = source.iterate(cursor, key)
        try:
            copy = _copier(device)
            while self._places.acquire() and not self._stopped:
                drawn = next(batches, None)
                self._drawn.put(None if drawn is None else (drawn[0], copy(drawn[1])))
                if drawn is None:
                    break
        except BaseException as error:
            self._drawn.put(error)
        finally:
            batches.close()


def _with_index(device: torch.device | None) -> torch.device | None:
    # A new thread's current device is the first one, whatever the one of the thread that asks.
    index: Any = device.index if device else None
    if device is None or device.type != "cuda" or index is not None:
        return device
    return torch.device("cuda", torch.cuda.current_device())


def _copier(device: torch.device | None) -> Any:
    """A function from a batch to the copied batch and the event to wait for."""
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
    # Batches of other libraries, unknown to optree, are leaves that bring a `to` of their own.
    return leaf.to(device, non_blocking=True) if hasattr(leaf, "to") else leaf


def _wait_for(batch: Any, copied: Any, device: torch.device | None) -> None:
    """Let the current stream wait for the copy, and own the memory."""
    stream = torch.cuda.current_stream(device)
    stream.wait_event(copied)
    for leaf in tree_leaves(batch):
        if isinstance(leaf, Tensor) and leaf.device.type == "cuda":
            leaf.record_stream(stream)
