"""``show``: what a function of the state gives, for trackers to show."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fnloop.effects.effect import Effect, Run
from fnloop.stages.functions import check_function
from fnloop.trackers.shown import Shown
from fnloop.values.metrics import Metrics
from fnloop.values.state import State


class show(Effect):
    """Make a function ``(state, metrics) -> {name: value}`` something that `fl.track` shows.

    The values are `fl.trackers.Image`, `fl.trackers.Text`, `fl.trackers.Audio`,
    `fl.trackers.Histogram` and `fl.trackers.File`. It is given to `fl.track` beside the trackers,
    in `fl.every`, and goes to all of them. The function is called on the thread that trains; an
    error in it ends the run, as in any effect.

    >>> import torch, fnloop as fl
    >>> @fl.trackers.show
    ... def picture(state, metrics):
    ...     return {"first layer": fl.trackers.Image(state.params["weight"])}
    >>> effect = fl.track(fl.trackers.Aim("runs"), fl.every(500, picture))
    """

    def __init__(
        self, function: Callable[[State, Metrics], Mapping[str, Shown]], name: str | None = None
    ) -> None:
        check_function(function, "show", "(state, metrics) -> {name: picture, ...}")
        self.function = function
        self.name = name or getattr(function, "__name__", type(function).__name__)
        self._show: Callable[[State, Mapping[str, Any]], None] | None = None

    def check_run(self, run: Run) -> None:
        if run.show is None:
            raise TypeError(
                f"{self.name} is shown by trackers, and stands among the callbacks itself. Give "
                f"it to fl.track: fl.track(fl.trackers.Aim(), fl.every(500, {self.name}))."
            )

    def open(self, run: Run) -> None:
        self.check_run(run)
        self._show = run.show

    def __call__(self, state: State, metrics: Metrics) -> None:
        values = self.function(state, metrics)
        check_shown(values, self.name)
        if self._show is not None:
            self._show(state, values)


def check_shown(values: Any, who: str) -> None:
    """Check that values can be shown.

    Raises:
        TypeError: One cannot.
    """
    wanted = (
        "fl.trackers.Image, Text, Audio, Histogram or File by name, such as "
        '{"samples": fl.trackers.Image(x)}'
    )
    if not isinstance(values, Mapping):
        raise TypeError(f"{who} returned {type(values).__name__}; trackers show {wanted}.")
    for name, value in values.items():
        if not isinstance(name, str) or not isinstance(value, Shown):
            raise TypeError(
                f"{who} returned {type(value).__name__} as {name!r}; trackers show {wanted}. "
                "Numbers are metrics: a step or a callback returns them."
            )
