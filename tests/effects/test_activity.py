"""Those who watch a thread are told what it does."""

from __future__ import annotations

import threading
import time

import pytest

from fnloop.effects.activity import Activity, unwatch, watch, watchers


class Notes:
    def __init__(self) -> None:
        self.told: list[str | None] = []

    def shows(self, activity: Activity | None) -> None:
        self.told.append(activity and activity.text())

    def says(self, line: str) -> None:
        self.told.append(line)


def test_a_watcher_is_told_also_of_the_end_after_an_error() -> None:
    notes = Notes()
    watch(notes)
    try:
        with pytest.raises(KeyError), Activity("val", 2) as activity:
            activity.advance()
            raise KeyError
    finally:
        unwatch(notes)
    with Activity("unseen"):
        pass
    assert notes.told == ["val", "val 1/2", None] and watchers() == ()


def test_other_threads_are_not_watched() -> None:
    notes = Notes()
    watch(notes)
    thread = threading.Thread(target=lambda: Activity("elsewhere").__enter__())
    thread.start()
    thread.join()
    unwatch(notes)
    assert notes.told == []


def test_the_time_is_told_after_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    activity = Activity("compiling")
    monkeypatch.setattr(time, "perf_counter", lambda: activity.began + 7.2)
    assert activity.text() == "compiling, 7 s"
