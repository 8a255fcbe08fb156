"""``Monitoring``: the base of callbacks that follow one metric from validation to validation."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from fnloop.stages.callback import Callback
from fnloop.values.cursor import Cursor
from fnloop.values.merging import find
from fnloop.values.monitored import OneNumber, one_number
from fnloop.values.stacked import members_of
from fnloop.values.state import State


class Monitoring(Callback):
    """A callback that does something whenever the metric `monitor` is reported."""

    monitor: str

    def is_due(self, cursor: Cursor) -> bool:
        return False  # what reports its metric is; reading that does not fail

    def needs_state(self, cursor: Cursor, reported: Collection[str]) -> bool:
        return self._may_be_in(reported)  # it may act at any step

    def needs(self) -> tuple[str, ...]:
        return (OneNumber(self.monitor),)

    def found(self, state: State, metrics: Mapping[str, Any]) -> Any:
        """The value of the metric, one number or one for each member; None if it is not there.

        Raises:
            ValueError: It is something else.
        """
        value = find(metrics, self.monitor) if self._may_be_in(metrics) else None
        if value is None:
            return None
        return one_number(value, self.monitor, self.describe(), members_of(state))

    def _may_be_in(self, names: Collection[str]) -> bool:
        # Most steps report nothing that it could be, or be a part of.
        return self.monitor.startswith(tuple(names))
