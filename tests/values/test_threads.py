import threading
import time

import pytest

from fnloop.values.threads import begin


class Alarm(Exception):
    """What a signal handler raises."""


def test_an_exception_that_comes_as_a_thread_starts_stays_what_it_is(monkeypatch):
    name = "_start_joinable_thread"  # since Python 3.13
    name = name if hasattr(threading, name) else "_start_new_thread"
    start, gate = getattr(threading, name), threading.Event()
    thread = threading.Thread(target=gate.wait)

    def broken_off(*arguments, **options):
        start(*arguments, **options)
        while thread not in threading._active.values():
            time.sleep(0.001)
        raise Alarm

    monkeypatch.setattr(threading, name, broken_off)
    try:
        with pytest.raises(Alarm):
            begin(thread.start)
    finally:
        gate.set()


def test_other_errors_of_a_start_stay_what_they_are():
    with pytest.raises(KeyError, match="a"):
        begin(lambda: {}["a"])
    try:
        raise Alarm
    except Alarm:
        with pytest.raises(KeyError, match="b"):
            begin(lambda: {}["b"])
