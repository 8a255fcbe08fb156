"""Signals: the first ends the run, the second stops at once."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from torch import nn

import fnloop as fl
from fnloop.loop.interrupt import Interrupt
from fnloop.store.files import Disk
from fnloop.values.threads import HOLDERS, begin
from tests.store.faulty import Faulty


def loss(model, x):
    return model(x).square().mean()


STEP = fl.pipe(loss, fl.grad, fl.update(fl.optim.adamw(1e-2)), fl.ema(0.9))


def data():
    return fl.Batches(torch.arange(20.0).reshape(10, 2), batch_size=4, seed=1)


def state():
    torch.manual_seed(0)
    return STEP.init(nn.Linear(2, 1))


def at(count, do):
    return fl.effect(lambda s, m: do() if int(s.cursor[2]) == count else None, name="at")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_during_an_effect_lets_no_further_step_run(name, tmp_path):
    number = getattr(signal, name)
    press = at(2, lambda: signal.raise_signal(number))
    last, history = fl.fit(
        STEP, state(), data(), steps=9, callbacks=[press, fl.checkpoint(tmp_path)]
    )
    text = {"SIGINT": "Ctrl-C"}.get(name, name)
    assert (history.status, history.reason) == ("interrupted", f"interrupted by {text}")
    assert int(last.cursor[2]) == 2 and fl.load(tmp_path, like=last) == last


def test_a_signal_before_the_first_step_lets_none_run(tmp_path):
    class Press(fl.base.Effect):
        def open(self, run):
            signal.raise_signal(signal.SIGINT)

        def __call__(self, state, metrics):
            raise AssertionError

    last, history = fl.fit(STEP, state(), data(), steps=9, callbacks=[Press()])
    assert history.status == "interrupted" and int(last.cursor[2]) == 0


def test_a_signal_as_a_finished_run_is_closed_is_told():
    class Press(fl.base.Effect):
        def __call__(self, state, metrics):
            pass

        def close(self, status):
            signal.raise_signal(signal.SIGTERM)

    last, history = fl.fit(STEP, state(), data(), steps=2, callbacks=[Press()])
    assert (history.status, history.reason) == ("interrupted", "interrupted by SIGTERM")
    assert int(last.cursor[2]) == 2


FROM_C = """
import ctypes, signal, sys, torch
# Of a handler that was there before, Python only knows that it is not its own.
libc = ctypes.CDLL(None)
handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda number: None)
libc.signal(signal.SIGTERM, handler)
libc.signal(signal.SIGUSR1, handler)
signal.getsignal = lambda n, get=signal.getsignal: None if n in (15, signal.SIGUSR1) else get(n)
import fnloop as fl
step = fl.pipe(lambda m, x: m(x).square().mean(), fl.grad, fl.update(fl.optim.sgd(0.1)))
state = step.init(torch.nn.Linear(2, 1))
state, history = fl.fit(step, state, [torch.ones(4, 2)], steps=3, callbacks=[fl.checkpoint("run")])
print(history.status)
"""


def test_handlers_installed_from_c_stay(tmp_path):
    command = [sys.executable, "-c", FROM_C]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.stdout == "completed\n", done.stderr


class ReadOnly(Exception):
    state = property(lambda self: "of the error")


class Own(Exception):
    def __init__(self):
        self.state = "of the user"


@pytest.mark.parametrize("kind", [ReadOnly, Own])
def test_the_state_of_an_error_is_left_to_it(kind):
    def fail():
        raise kind

    with pytest.raises(kind) as caught:
        fl.fit(STEP, state(), data(), steps=9, callbacks=[at(2, fail)])
    assert str(caught.value.state).startswith("of the")
    assert caught.value.history.status == "failed"


def test_handlers_of_others_work_and_are_restored():
    heard = []
    handler = lambda number, frame: heard.append(number)  # noqa: E731
    before = signal.signal(signal.SIGALRM, handler)
    try:
        press = at(2, lambda: signal.raise_signal(signal.SIGALRM))
        fl.fit(STEP, state(), data(), steps=3, callbacks=[press])
        assert heard == [signal.SIGALRM] and signal.getsignal(signal.SIGALRM) is handler
    finally:
        signal.signal(signal.SIGALRM, before)


class Ringing(Faulty):
    """A file system in one call of which an alarm comes."""

    def due(self, call, path):
        self.calls.append((call, path.name))
        if len(self.calls) - 1 == self.at:
            signal.raise_signal(signal.SIGALRM)
        return False


@contextlib.contextmanager
def alarm(kind):
    def handler(number, frame):
        signal.signal(number, signal.SIG_IGN)  # once is enough
        raise kind("my time is over")

    before = signal.signal(signal.SIGALRM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, before)


def saving(folder, at=None):
    """A run that saves after two steps, four and the last, the fifth.

    Its outcome, and the numbers of the calls of files when the steps were done.
    """
    done, files = [], Ringing(Disk(), at)
    saves = fl.checkpoint(folder, keep=1, every=2, unit="step", files=files)
    note = fl.effect(lambda state, metrics: done.append(len(files.calls)))
    try:
        outcome = fl.fit(STEP, state(), data(), steps=5, callbacks=[saves, note])
    except Exception as error:
        outcome = error
    return outcome, [*done, len(files.calls)]


@pytest.mark.filterwarnings("ignore:Closing the effect checkpoint failed")
@pytest.mark.parametrize("kind", [TimeoutError, ConnectionError, RuntimeError])
def test_an_alarm_in_a_save_is_no_failure_of_the_disk(kind, tmp_path):
    _, (first, second, third, fourth, fifth, end) = saving(tmp_path / "whole")
    for n in [
        *range(0, first, 5),
        *range(first, second, 4),
        *range(third, fourth, 4),
        *range(fifth, end, 4),
    ]:
        folder = tmp_path / str(n)
        with alarm(kind):
            outcome, _ = saving(folder, n)
        if n < fifth:
            assert type(outcome) is kind and str(outcome) == "my time is over"
        if n >= first:
            last = outcome.state if n < fifth else outcome[0]  # the run is over, and closed
            assert int(last.cursor[2]) == (2 if n < second else 4 if n < fourth else 5)
            assert fl.load(fl.latest(folder), like=state()) == last


@pytest.mark.parametrize("kind", [TimeoutError, RuntimeError])
def test_an_alarm_as_a_memo_is_made_is_no_failure_of_the_memo(kind, tmp_path):
    class Noting(fl.base.Effect):
        def __call__(self, state, metrics):
            pass

        def memo(self):
            signal.raise_signal(signal.SIGALRM)

    saves = fl.checkpoint(tmp_path, every=2, unit="step")
    with alarm(kind), pytest.raises(kind, match="my time is over"):
        fl.fit(STEP, state(), data(), steps=5, callbacks=[saves, Noting()])
    assert fl.latest(tmp_path).name == "step-00000002"


def test_an_alarm_as_an_error_is_given_the_history_leaves_in_its_place():
    class Failure(Exception):
        def __setattr__(self, name, value):
            if name == "history":
                signal.raise_signal(signal.SIGALRM)
            super().__setattr__(name, value)

    def fail():
        raise Failure

    with alarm(RuntimeError), pytest.raises(RuntimeError, match="my time is over") as caught:
        fl.fit(STEP, state(), data(), steps=5, callbacks=[at(2, fail)])
    assert int(caught.value.__context__.state.cursor[2]) == 2


@pytest.mark.parametrize("kind", [TimeoutError, RuntimeError])
def test_an_alarm_in_a_save_by_hand_or_in_a_loop_of_ones_own(kind, tmp_path):
    with alarm(kind), pytest.raises(kind, match="my time is over"):
        fl.save(state(), tmp_path, files=Ringing(Disk(), 8))
    saves = fl.checkpoint(tmp_path, every=2, unit="step", files=Ringing(Disk(), 40))
    loop = fl.run(STEP, state(), data(), steps=3, callbacks=[saves])
    with alarm(kind), pytest.raises(kind, match="my time is over"):
        for _ in loop:
            pass


def test_a_process_that_is_forked_in_a_run_can_be_ended():
    codes = []

    def fork():
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.write(writer, b"!")
            time.sleep(60)
            os._exit(1)
        os.read(reader, 1)  # what comes earlier, Python's fork forgets
        os.close(reader)
        os.close(writer)
        os.kill(child, signal.SIGTERM)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    _, history = fl.fit(STEP, state(), data(), steps=2, callbacks=[at(1, fork)])
    assert codes == [-signal.SIGTERM] and history.status == "completed"


# The last validation


def stopped_at(count, how, **more):
    def ask(s, metrics):
        now = int(s.cursor[2]) == count
        return s, {**metrics, "ask": fl.stop(now and how == "stop", "enough")}

    def press():
        if how != "stop":
            signal.raise_signal(how)

    validate = fl.every(1, fl.validate(loss, data()), unit="epoch")
    patient = fl.early_stopping("val/loss", patience=3)
    callbacks = [validate, patient, ask, at(count, press), *more.pop("callbacks", [])]
    return fl.fit(STEP, state(), data(), epochs=4, callbacks=callbacks, **more)


@pytest.mark.parametrize("how", ["stop", signal.SIGINT])
def test_a_run_that_is_stopped_between_two_validations_is_validated(how, tmp_path):
    saving, tracking = fl.checkpoint(tmp_path / "run"), fl.trackers.JSONL(tmp_path / "a.jsonl")
    last, history = stopped_at(5, how, callbacks=[saving, fl.track(tracking)])
    assert history.steps("val/loss") == [3, 5]
    assert history["val/loss"][-1] == fl.evaluate(loss, last, data())["loss"]
    assert history.steps("loss") == [3, 5]
    line = (tmp_path / "a.jsonl").read_text().splitlines()[-1]
    assert '"step": 5' in line and "val/loss" in line
    assert fl.load(tmp_path / "run", like=last) == last


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGHUP])
def test_where_the_machine_wants_its_time_back_it_is_not(how):
    _, history = stopped_at(5, how)
    assert history.steps("val/loss") == [3]


def test_a_validation_that_was_due_is_not_repeated():
    _, history = stopped_at(3, signal.SIGINT)
    assert history.steps("val/loss") == [3]


def test_a_resumed_run_does_not_hear_of_the_last_validation(tmp_path):
    whole, expected = stopped_at(99, "stop")
    saving = fl.checkpoint(tmp_path)
    stopped_at(5, signal.SIGINT, callbacks=[saving])
    last, history = stopped_at(99, "stop", callbacks=[fl.checkpoint(tmp_path)], resume=tmp_path)
    assert last == whole and history["val/loss"] == expected["val/loss"]


def test_a_second_ctrl_c_skips_it(tmp_path):
    calls = []

    def check(model, x):
        calls.append(1)
        if len(calls) == 6:  # one for the example, three at the end of the epoch, then this one
            signal.raise_signal(signal.SIGINT)
        return loss(model, x)

    callbacks = [
        fl.every(1, fl.validate(check, data()), unit="epoch"),
        at(5, lambda: signal.raise_signal(signal.SIGINT)),
        fl.checkpoint(tmp_path),
    ]
    with pytest.raises(KeyboardInterrupt) as caught:
        fl.fit(STEP, state(), data(), epochs=4, callbacks=callbacks)
    assert len(calls) == 6 and int(caught.value.state.cursor[2]) == 5
    assert fl.load(tmp_path, like=caught.value.state) == caught.value.state


def test_a_signal_that_comes_as_a_thread_starts_waits_until_it_has(monkeypatch):
    class Alarm(Exception):
        """What a handler of the user's raises."""

    def handler(number, frame):
        raise Alarm

    name = "_start_joinable_thread"  # since Python 3.13
    name = name if hasattr(threading, name) else "_start_new_thread"
    start, gate = getattr(threading, name), threading.Event()

    def signalled(*arguments, **options):
        signal.raise_signal(signal.SIGALRM)
        return start(*arguments, **options)

    thread, before = threading.Thread(target=gate.wait), signal.signal(signal.SIGALRM, handler)
    interrupt = Interrupt()
    interrupt.listen()
    monkeypatch.setattr(threading, name, signalled)
    try:
        with pytest.raises(Alarm):
            begin(thread.start)
        assert thread.is_alive() and not interrupt.hold
    finally:
        gate.set()
        interrupt.stop_listening()
        signal.signal(signal.SIGALRM, before)
    assert HOLDERS == []
