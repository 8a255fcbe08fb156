"""Settings that change between phases of a run: other graphs, not other numbers in one graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from fnloop.trees.nodes import static, tree
from fnloop.trees.show import short
from fnloop.values.counts import as_count
from fnloop.values.questions import Passed, Unit, answer
from fnloop.values.state import State


class ByCount:
    """A setting by the count at which it begins."""

    explains_keywords: ClassVar[bool] = True
    unit: ClassVar[Unit]
    values: Any

    def __post_init__(self) -> None:
        name, values = type(self).__name__, self.values
        if isinstance(values, tuple):  # as it keeps them
            values = dict(values)
        if not isinstance(values, Mapping) or not values:
            raise TypeError(
                f"{name} takes a dict of settings by the count at which each begins, "
                f"{name}({{0: 1, 4: 2}}); got {short(values)}."
            )
        counts = {as_count(start, f"{name}({{start: ...}})"): v for start, v in values.items()}
        pairs = [(start, _hashable(counts[start])) for start in sorted(counts)]
        object.__setattr__(self, "values", tuple(pairs))

    def at(self, count: int) -> Any:
        """The setting at a count; None before the first one."""
        return self._after(self._passed(count))

    def now(self, state: State, what: str) -> Any:
        """The setting for the call that is given `state`.

        Args:
            state: What a stage was called with.
            what: What depends on it, for messages.
        """
        return self._after(answer(state, self._passed, what))

    def every(self) -> list[Any]:
        """The settings in their order, with None if there is none at the start."""
        return [self._after(i) for i in range(0 if self.values[0][0] else 1, len(self.values) + 1)]

    @property
    def _passed(self) -> Passed:
        return Passed(tuple([start for start, _ in self.values]), self.unit)

    def _after(self, passed: int) -> Any:
        return self.values[passed - 1][1] if passed else None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({short(dict(self.values))})"


@tree
class by_epoch(ByCount):
    """A setting that changes with the epoch, counted from 0: which parameters are frozen, say.

    For what a step is made of, where a schedule is for its numbers: ``fl.grad(frozen=...)``,
    ``fl.accumulate(...)``. A compiled step has one graph for each setting. The epoch is that of
    ``state.cursor``, so a resumed run goes on in its phase; `fl.run` and `fl.fit` move it. In a
    loop of your own, and for an iterator without epochs, use `by_step`.

    Args:
        values: Settings by the epoch at which each begins. Before the first one, and where it is
            None, the stage's default holds.

    Raises:
        TypeError: `values` is no dict, or an epoch is not an int.
        ValueError: An epoch is negative.

    >>> frozen = by_epoch({0: "backbone", 3: ["backbone.0", "backbone.1"], 5: None})
    >>> [frozen.at(epoch) for epoch in (0, 2, 3, 9)]
    ['backbone', 'backbone', ('backbone.0', 'backbone.1'), None]
    """

    unit: ClassVar[Unit] = "epoch"
    values: Any = static()


@tree
class by_step(ByCount):
    """A setting that changes with the step: as `by_epoch`, by calls of the training step.

    It counts ``state.calls``: skipped steps too, so that no value is read from a device. In a part
    of an `fl.sequence` these are the calls of the whole.

    Args:
        values: Settings by the number of calls after which each begins. Before the first one, and
            where it is None, the stage's default holds.

    Raises:
        TypeError: `values` is no dict, or a step is not an int.
        ValueError: A step is negative.

    >>> by_step({100: 2, 500: 4})
    by_step({100: 2, 500: 4})
    >>> [by_step({100: 2, 500: 4}).at(step) for step in (99, 100, 500)]
    [None, 2, 4]
    """

    unit: ClassVar[Unit] = "call"
    values: Any = static()


def settings(value: Any) -> list[Any]:
    """All settings of `value`, which may change between phases."""
    return value.every() if isinstance(value, ByCount) else [value]


def setting(value: Any, state: State, what: str) -> Any:
    """The setting of `value` for the call that is given `state`."""
    return value.now(state, what) if isinstance(value, ByCount) else value


def _hashable(value: Any) -> Any:
    if isinstance(value, (set, frozenset)):  # the order of a set of strings varies by process
        return tuple(sorted(value))  # type: ignore[reportUnknown]
    return tuple(value) if isinstance(value, list) else value  # type: ignore[reportUnknown]
