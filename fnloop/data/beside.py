"""``together``: a batch of each of several data sets at every step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from fnloop.data.combined import Combined, PartReader
from fnloop.data.order import refusal
from fnloop.trees.show import short

Mode = Literal["shortest", "longest", "cycle", "restart"]
_MODES = ("shortest", "longest", "cycle", "restart")


def together(*listed: Any, mode: Mode = "shortest", **parts: Any) -> Beside:
    """Data whose batches are dicts with a batch of each part: ``{"a": batch, "b": batch}``.

    Of parts without names, tuples: for members of a population with batches of their own.

    Resumes at every step as its parts do. Nothing is remembered: the batch of each part follows
    from the place in the epoch.

    Args:
        listed: The data of each part, if they have no names.
        mode: When an epoch ends, and what a part gives that has ended before:

            - ``"shortest"``: with the shortest part. What is left of the others is left out; they
              begin the next epoch anew, so that other examples are left out if they are shuffled.
            - ``"longest"``: with the longest part. One that has ended gives None.
            - ``"cycle"``: with the longest part. One that has ended begins its next epoch, in
              another order if it is shuffled, and goes on there when the longest begins anew.
            - ``"restart"``: the same, but all parts begin anew with the longest, as Lightning's
              ``max_size_cycle`` has it: of a part that does not fit, the end is seen less often.
        parts: The data by name; each is anything that `fl.run` accepts and that can begin anew.

    Raises:
        TypeError: A part is not accepted, or goes on from a position of its own.
        ValueError: Another `mode`; no part; parts with and without names; or, unless the mode is
            ``"shortest"``, a part does not know its length.

    >>> a, b = ["a0", "a1"], ["b0", "b1", "b2"]
    >>> from fnloop.data.sources import one_epoch
    >>> list(one_epoch(together(a=a, b=b)))
    [{'a': 'a0', 'b': 'b0'}, {'a': 'a1', 'b': 'b1'}]
    >>> list(one_epoch(together(a, b)))
    [('a0', 'b0'), ('a1', 'b1')]
    >>> list(one_epoch(together(a=a, b=b, mode="longest")))[-1]
    {'a': None, 'b': 'b2'}
    >>> list(one_epoch(together(a=a, b=b, mode="cycle")))[-1]
    {'a': 'a0', 'b': 'b2'}
    """
    if listed and parts:
        raise ValueError(
            f"fl.data.together gives a dict of parts with names, or a tuple of parts without; got "
            f"{len(listed)} without, and {', '.join(map(repr, parts))}."
        )
    return Beside(mode, {str(i): part for i, part in enumerate(listed)} or parts, bool(listed))


class Beside(Combined):
    """The source that `together` makes."""

    def __init__(self, mode: Any, parts: Mapping[str, Any], as_tuple: bool = False) -> None:
        super().__init__("together", parts)
        if mode not in _MODES:
            raise ValueError(
                f"fl.data.together(mode=...) is one of {', '.join(map(repr, _MODES))}; got "
                f"{short(mode)}. A part of that name is given another one."
            )
        self._mode, self._as_tuple = mode, as_tuple
        known = [part.batches for part in self._parts.values()]
        if mode == "shortest":
            lengths = [batches for batches in known if batches is not None]
            self.batches = min(lengths) if len(lengths) == len(known) else None
        else:
            self._lengths = self.lengths()
            self.batches = max(self._lengths.values())

    def read(self, readers: Mapping[str, PartReader], epoch: int, index: int) -> tuple[Any, bool]:
        """See `Combined`."""
        batch, ended = self._read(readers, epoch, index)
        return tuple(batch.values()) if self._as_tuple else batch, ended

    def _read(
        self, readers: Mapping[str, PartReader], epoch: int, index: int
    ) -> tuple[dict[str, Any], bool]:
        if self._mode == "shortest":
            found = {name: reader.at(epoch, index) for name, reader in readers.items()}
            ended = any(over for _, over in found.values())
            return {name: batch for name, (batch, _) in found.items()}, ended
        longest, batch = self.batches or 1, dict[str, Any]()
        for name, reader in readers.items():
            length = self._lengths[name]
            if self._mode == "cycle":
                batch[name] = reader.at(*divmod(epoch * longest + index, length))[0]
            elif self._mode == "restart":
                turn, i = divmod(index, length)
                batch[name] = reader.at(epoch * -(-longest // length) + turn, i)[0]
            else:
                batch[name] = reader.at(epoch, index)[0] if index < length else None
        return batch, index + 1 == longest

    def about(self) -> dict[str, Any]:
        """Adds the mode."""
        return super().about() | {"mode": self._mode}

    def ordered(self) -> Beside:
        """See `Source`."""
        if self._mode in ("cycle", "restart"):
            raise refusal("fl.data.together repeats parts", 'use mode="longest"')
        return super().ordered()

    def __repr__(self) -> str:
        return f"together({', '.join(self._parts)}, mode={self._mode!r})"
