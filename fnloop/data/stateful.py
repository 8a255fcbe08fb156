"""Loaders and iterators that save and restore their own position."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Generator, Iterable
from contextlib import closing, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.utils.data import DataLoader

from fnloop._torch.workers import with_parts
from fnloop.data.batches import START
from fnloop.data.fingerprint import name_of
from fnloop.data.generators import seeded_generators
from fnloop.data.iterables import END, Once, Pairs, is_once, length, too_short
from fnloop.data.loader import about_loader, collates, is_map_style, samplers
from fnloop.data.nested import Epochs
from fnloop.data.order import check_drawn, check_order
from fnloop.data.overwriting import HeldBatches
from fnloop.data.reading_thread import started
from fnloop.data.seeding import seeding
from fnloop.data.worker_parts import SeededDataset, ShowDataset
from fnloop.trees.json_codec import decode, encode
from fnloop.values.cursor import Cursor
from fnloop.values.key import fold

_METHODS = (("state_dict", "load_state_dict"), ("get_state", "set_state"))


class CursorWithState(Cursor):
    """A cursor with the state of its loader after the batch before it.

    The state belongs to one batch, so it stays correct when later batches are drawn ahead.
    """

    state: Any = None  # as JSON, or the error if it cannot be encoded
    __repr__ = Cursor.__repr__

    def _replace(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, **changes: Any
    ) -> CursorWithState:
        """The same place in the data under other numbers."""
        same = super()._replace(**changes)
        same.state = self.state
        return same


class _Known:
    """The known states of a loader: its first one, and that after the last batch used."""

    first: Any = None
    last: CursorWithState | None = None


_known: WeakKeyDictionary[Any, _Known] = WeakKeyDictionary()


def is_stateful(data: Any) -> bool:
    """Whether `data` is an iterable that can save and restore its position."""
    return isinstance(data, Iterable) and not isinstance(data, nn.Module) and bool(_methods(data))


class Stateful:
    """A loader with ``state_dict`` and ``load_state_dict``, or ``get_state`` and ``set_state``.

    Its state is read after each batch, before the next one is drawn. A run resumes exactly if that
    state is known: from a checkpoint (`recall`), or because the last batch was drawn from the same
    loader in this process. A new run restores the first state of the loader, so that two runs see
    the same batches.
    """

    fresh = False
    kind = "stateful loader"

    def __init__(self, data: Any) -> None:
        self._data = data
        self._loader, self._shared = _seeded(data)
        self._told = Epochs(data)
        methods: Any = _methods(self._loader)
        self._get, self._set = methods
        self._known = _known_of(data)
        self._recalled: CursorWithState | None = None
        self._watched = False  # whether it is checked that reading draws no random number
        self.batches = None if is_once(data) else length(data)

    def iterate(self, cursor: Cursor = START, key: int = 0) -> Pairs:
        """See `Source.iterate`."""
        epoch, index, count = cursor
        state, skip = self._place(cursor)
        while True:
            with closing(self._read(epoch, index, fold(key, epoch), state, skip)) as items:
                drawn = next(items, END)
                resumed, state, skip = state is not None, None, 0
                if drawn is END:
                    if resumed and index == 0:
                        continue  # the state was that after the last batch of an epoch
                    raise ValueError(too_short(epoch, index, self.batches))
                held = HeldBatches(self, 1)
                held.add(count + 1, drawn[0])
                for following in items:
                    index, count = index + 1, count + 1
                    held.add(count + 1, following[0])
                    yield self._hold(CursorWithState(epoch, index, count), drawn)
                    drawn = following
            epoch, index, count = epoch + 1, 0, count + 1
            yield self._hold(CursorWithState(epoch, 0, count), drawn)

    def memo(self, cursor: Cursor) -> Any:
        """The position of the loader after the batch before `cursor`, as JSON.

        Args:
            cursor: A cursor that `iterate` yielded; for any other the result is None.

        Raises:
            ValueError: The loader's state contains something that a checkpoint cannot hold.
        """
        if not isinstance(cursor, CursorWithState):
            return None
        if isinstance(cursor.state, ValueError):
            raise cursor.state
        return {"cursor": list(cursor), "state": cursor.state}

    def recall(self, memo: Any) -> None:
        """Make the next `iterate`, which must start at the cursor of `memo`, continue from it.

        Raises:
            ValueError: `memo` is not a position.
        """
        place: Any = memo.get("cursor") if isinstance(memo, dict) else None
        integers = isinstance(place, list) and [type(n) for n in place] == [int] * 3
        if not integers or "state" not in memo:
            raise ValueError(
                "This is not a position of a data loader: expected the keys 'cursor' (three "
                f"integers) and 'state', got {str(memo)[:100]}."
            )
        self._recalled = CursorWithState(*place)
        self._recalled.state = memo["state"]

    def left(self, cursor: Cursor) -> None:
        """Set the last used cursor of those that `iterate` yielded."""
        if isinstance(cursor, CursorWithState):
            self._known.last = cursor

    def cut(self, after: Cursor) -> Cursor:
        """The end of the epoch, if it ends with the batch that was yielded with `after`.

        A torch loader begins the next epoch anew, with an order of its own. Another goes on from
        its state: where its epochs begin, it alone knows.
        """
        end = CursorWithState(after.epoch + 1, 0, after.count)
        if self._shared is None and isinstance(after, CursorWithState):
            end.state = after.state
        self._known.last = end
        return end

    def about(self) -> dict[str, Any]:
        """Its fingerprint."""
        shared = about_loader(self._data) if isinstance(self._data, DataLoader) else {}
        return shared | {
            "kind": "stateful",
            "loader": name_of(self._data),
            "batches": self.batches,
            "index": "batches",
            "exact": "by its own state",
        }

    def ordered(self) -> Stateful:
        """See `Source`."""
        check_order(self._data)
        same = copy.copy(self)
        same._watched = True
        return same

    def _place(self, cursor: Cursor) -> tuple[Any, int]:
        """Return the state to start the loader from (JSON or None), and the batches to skip."""
        recalled, self._recalled = self._recalled, None
        if recalled is not None and recalled != cursor:
            raise ValueError(
                f"The saved position of the data loader is at cursor {list(recalled)}, but the run "
                f"continues at {list(cursor)}. Usual cause: the state and the data come from "
                "different checkpoints."
            )
        held = recalled or self._known.last
        if held is not None and held == cursor and not isinstance(held.state, ValueError):
            return held.state, 0
        if self._shared is not None:  # a new epoch, whose order depends on the key
            return None, cursor.index if getattr(self._data, "next_iter_state", None) is None else 0
        if cursor.count == 0:
            first = self._known.first
            return None if isinstance(first, ValueError) else first, 0
        warnings.warn(
            f"The data loader ({type(self._data).__name__}) goes on from where it stands: its "
            f"state at cursor {list(cursor)} is not known. Usual cause: the run's state was loaded "
            "by hand; fit(..., resume=folder) restores the loader's too.",
            stacklevel=2,
        )
        return None, 0

    def _read(
        self, epoch: int, index: int, seed: int, state: Any, skip: int
    ) -> Generator[tuple[Any, Any], None, None]:
        """Pairs of a batch and the loader's state after it, from batch `index` of an epoch on."""
        loader = self._loader
        of_torch = isinstance(loader, DataLoader)
        parts = samplers(loader) if of_torch else []
        self._told.begin(epoch)
        if self._shared is not None:
            self._shared.copy_(torch.tensor([seed, epoch]))
        with seeded_generators([loader, *parts] if of_torch else [], seed):
            block = nothing if of_torch and loader.num_workers else seeding
            fresh = self._shared is None and not (epoch or index)

            def begin() -> Any:
                with block(seed):
                    if state is not None:
                        self._set(decode(state))
                    elif fresh and self._known.first is None:
                        self._known.first = self._state()
                    return iter(loader)

            items = started(begin)
            for number in itertools.count(index - skip):
                with block(fold(seed, number)):
                    item: Any = next(items, END)
                    if self._watched and block is seeding:
                        check_drawn(fold(seed, number), self._data)
                if item is END:
                    return
                if number >= index:
                    yield item, self._state()

    def _hold(self, cursor: CursorWithState, drawn: tuple[Any, Any]) -> tuple[Cursor, Any]:
        batch, cursor.state = drawn
        self._known.last = cursor
        return cursor, batch

    def _state(self) -> Any:
        """The loader's current state as JSON, or the error if it cannot be encoded."""
        try:
            return encode(self._get())
        except ValueError as error:
            return ValueError(
                f"The data loader cannot be resumed exactly: {error} Return only such values from "
                "state_dict()."
            )


class StatefulOnce(Stateful):
    """`Stateful` for an iterator. It is never read ahead, and its end ends the run."""

    once = True

    def iterate(self, cursor: Cursor = START, key: int = 0) -> Pairs:
        """See `Source.iterate`."""
        state, _ = self._place(cursor)
        if state is not None:
            self._set(decode(state))
        items = Once(self._data)
        items.watched = self._watched
        for after, batch in items.iterate(cursor, key):
            yield self._hold(CursorWithState(*after), (batch, self._state()))


def nothing(seed: int) -> nullcontext[None]:
    """A context manager in place of `seeding`, for loaders whose workers draw."""
    return nullcontext()


def _methods(data: Any) -> tuple[Any, Any] | None:
    for get, put in _METHODS:
        if callable(getattr(data, get, None)) and callable(getattr(data, put, None)):
            return getattr(data, get), getattr(data, put)
    return None


def _known_of(data: Any) -> _Known:
    try:
        return _known.setdefault(data, _Known())
    except TypeError:  # not weakly referenceable, or not hashable
        return _Known()


def _seeded(data: Any) -> tuple[Any, Any]:
    """A copy of a torch loader with seeded examples, and the epoch's seed and number.

    Unlike in `Loader`, the sampler is not wrapped, because the loader saves its position. So they
    are passed in shared memory, and an example that occurs twice in an epoch draws the same
    random numbers.
    """
    if not isinstance(data, DataLoader) or not is_map_style(data) or _methods(data.dataset):
        return data, None
    shared = torch.zeros(2, dtype=torch.int64, device="cpu")
    if data.num_workers:
        shared.share_memory_()
    parts: dict[str, Any] = {
        "dataset": SeededDataset(data.dataset, collates(data), shared),
        "worker_init_fn": ShowDataset(data.worker_init_fn),
    }
    if hasattr(data, "_initial_iter_for_state_dict"):  # torchdata's flag for its current iterator
        parts["_initial_iter_for_state_dict"] = False
    return with_parts(data, **parts), shared
