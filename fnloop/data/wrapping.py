"""``Wrapped``: a source that reads another one, and passes on what that one knows."""

from __future__ import annotations

import copy
from typing import Any, Self

from torch import Tensor

from fnloop.data.sources import Source
from fnloop.values.cursor import Cursor


class Wrapped:
    """The base of sources that read another one; a subclass defines ``iterate``.

    Args:
        source: The other one.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self.batches = source.batches
        self.batch_size: int = getattr(source, "batch_size", 1)
        self.once: bool = getattr(source, "once", False)
        self.fresh: bool = getattr(source, "fresh", True)
        self.lent: bool = getattr(source, "lent", False)

    def about(self) -> dict[str, Any] | None:
        """The fingerprint of the data."""
        ask: Any = getattr(self._source, "about", None)
        return None if ask is None else ask()

    @property
    def columns(self) -> dict[str, Tensor]:
        """See `fl.Batches`."""
        return getattr(self._source, "columns", {})

    def ordered(self) -> Self:
        """See `Source`."""
        ask: Any = getattr(self._source, "ordered", None)
        same = copy.copy(self)
        same._source = self._source if ask is None else ask()
        return same

    def memo(self, cursor: Cursor) -> Any:
        """The position of the data after the batch yielded with `cursor`; see `Source`."""
        ask: Any = getattr(self._source, "memo", None)
        return None if ask is None else ask(cursor)

    def recall(self, memo: Any) -> None:
        """Make the data continue from a position returned by `memo`.

        Raises:
            ValueError: The data has no positions.
        """
        tell: Any = getattr(self._source, "recall", None)
        if tell is None:
            raise ValueError(
                "The checkpoint holds a position of the data, but this data has no positions. "
                "Usual cause: the run was started with another loader."
            )
        tell(memo)

    def left(self, cursor: Cursor) -> None:
        """Set the last used cursor of those that `iterate` yielded; later batches were not used."""
        tell: Any = getattr(self._source, "left", None)
        if tell is not None:
            tell(cursor)

    def cut(self, after: Cursor) -> Cursor:
        """The end of the epoch, if it ends with the batch that was yielded with `after`."""
        ask: Any = getattr(self._source, "cut", None)
        return Cursor(after.epoch + 1, 0, after.count) if ask is None else ask(after)
