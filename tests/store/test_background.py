import signal
import threading
import time

import pytest
import torch

import fnloop as fl
from fnloop.store.background import Background
from fnloop.store.files import Disk
from fnloop.store.run_lock import Lock


def test_jobs_are_done_in_their_order_by_one_thread():
    done, background = [], Background()
    background.start()
    for i in range(20):
        background.do(lambda i=i: done.append((i, threading.current_thread().name)))
    assert background.finish() == []
    assert [i for i, _ in done] == list(range(20))
    assert len({name for _, name in done}) == 1 and done[0][1] != threading.current_thread().name


def test_whoever_brings_a_third_waits():
    gate, background = threading.Event(), Background()
    background.start()
    background.do(gate.wait)
    background.do(lambda: None)
    third = threading.Thread(target=lambda: background.do(lambda: None))
    third.start()
    third.join(0.2)
    assert third.is_alive()
    gate.set()
    third.join(5)
    assert not third.is_alive()
    background.finish()


def test_failures_are_told_in_order_and_once():
    background = Background()
    background.start()

    def fail(text):
        raise OSError(text)

    background.do(lambda: fail("a"))
    background.do(lambda: fail("b"))
    background.do(lambda: None)
    assert list(map(str, background.finish())) == ["a", "b"]
    assert background.failures() == []


def in_the_main_thread(condition):
    """In place of ``Condition.__enter__``, which an exception can leave with the lock locked."""
    if threading.current_thread() is threading.main_thread():
        raise AssertionError
    return condition._lock.__enter__()


def test_no_exception_of_a_signal_handler_can_leave_a_lock_locked(monkeypatch, tmp_path):
    done, background, lock = [], Background(), Lock(tmp_path, Disk())
    background.start()
    lock.take()
    monkeypatch.setattr(threading.Condition, "__enter__", in_the_main_thread)
    for i in range(4):
        background.do(lambda i=i: done.append(i))
    assert background.finish() == [] and done == [0, 1, 2, 3]
    lock.release()


def test_a_job_needs_no_thread_that_starts_with_it(monkeypatch):
    def refuse(thread):
        raise AssertionError

    done, background = [], Background()
    background.start()
    monkeypatch.setattr(threading.Thread, "start", refuse)
    background.do(lambda: done.append(1))
    assert background.finish() == [] and done == [1]


class Slow(Disk):
    """A disk on which a file takes a while to be synchronised."""

    def __init__(self, seconds=0.3):
        self.seconds = seconds
        self.broken = False

    def create(self, path):
        if self.broken:
            raise OSError(5, "Input/output error")
        file, wait = super().create(path), self.seconds
        sync = file.sync

        def slow():
            time.sleep(wait)
            sync()

        file.sync = slow
        return file


STEP = fl.pipe(
    lambda m, x: m(x).square().mean(), fl.grad, fl.update(fl.optim.adamw(0.01)), fl.ema(0.9)
)


def state():
    return STEP.init(lambda: torch.nn.Linear(2, 1), seed=1)


def fit(saving, steps=6, callbacks=(), step=STEP):
    data = fl.Batches(torch.arange(24.0).reshape(12, 2), 2)
    return fl.fit(step, state(), data, steps=steps, callbacks=[*callbacks, saving])


def saves(folder):
    return sorted(int(path.name[5:]) for path in folder.glob("step-*"))


def test_the_run_goes_on_while_a_save_is_written(tmp_path):
    ahead = []
    look = fl.effect(lambda s, m: ahead.append((int(s.cursor[2]), saves(tmp_path))))
    saving = fl.checkpoint(tmp_path, every=3, unit="step", background=True, files=Slow())
    began = time.monotonic()
    fit(saving, callbacks=[look])
    assert time.monotonic() - began > 0.5, "the end waits for what is under way"
    assert ahead[4] == (5, [])  # two steps on, and nothing of the first save is to be seen
    assert saves(tmp_path) == [3, 6]


def test_what_is_saved_is_the_state_as_it_was_also_where_steps_write_over_it(tmp_path):
    kept = {}
    keep = fl.effect(lambda s, m: kept.update({int(s.cursor[2]): fl.tree_map(torch.clone, s)}))
    step = fl.compile(STEP, backend="aot_eager")
    saving = fl.checkpoint(
        tmp_path, keep=None, every=1, unit="step", background=True, files=Slow(0.05)
    )
    fit(saving, callbacks=[keep], step=step)
    for count, expected in kept.items():
        assert fl.load(tmp_path / f"step-{count:08d}", like=state()) == expected


def test_a_failure_is_told_at_the_next_step_and_tried_again(tmp_path):
    files = Slow(0.0)
    saving = fl.checkpoint(tmp_path, keep=2, every=2, unit="step", background=True, files=files)

    def steer(s, metrics):
        files.broken = int(s.cursor[2]) in (2, 3)
        time.sleep(0.1 if files.broken else 0)

    with pytest.warns(UserWarning, match="step-00000002 was not saved") as told:
        fitted, _ = fit(saving, callbacks=[fl.effect(steer)])
    assert len(told) == 1 and "The run continues" in str(told[0].message)
    assert saves(tmp_path) == [4, 6]
    assert fl.load(tmp_path, like=state()) == fitted
    assert saving.memo()["recent"] == [4, 6], "what is not on the disk is not kept"


@pytest.mark.lightning("K8")
def test_deletions_follow_the_saves_that_make_them_possible(tmp_path):
    saving = fl.checkpoint(
        tmp_path, keep=1, every=1, unit="step", background=True, files=Slow(0.02)
    )
    seen = []
    look = fl.effect(lambda s, m: seen.append(len(saves(tmp_path))))
    fit(saving, steps=12, callbacks=[look])
    assert saves(tmp_path) == [12] and max(seen) <= 2
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.lightning("K8")
def test_background_and_plain_saves_keep_the_same(tmp_path):
    data = fl.Batches(torch.randn(24, 2, generator=torch.Generator().manual_seed(0)), 2)

    def run(folder, background):
        validate = fl.every(2, fl.validate(lambda m, x: (m(x) * 1000).sin().mean(), data))
        saving = fl.checkpoint(folder, 2, "val/loss", every=3, unit="step", background=background)
        fl.fit(STEP, state(), data, steps=13, callbacks=[validate, saving])
        manifests = [fl.store.read_manifest(path) for path in sorted(folder.iterdir())]
        for manifest in manifests:
            assert manifest["memos"]["checkpoint/val/loss"].pop("run") == manifest["run"]
            assert manifest["memos"]["history"].pop("seconds") > 0
        return [(m["cursor"], m["monitor"], m["memos"], m["status"]) for m in manifests]

    assert run(tmp_path / "a", True) == run(tmp_path / "b", False)


class Alarm(Exception):
    """What a handler of the user's raises."""


@pytest.fixture
def alarm():
    """Make SIGALRM raise."""

    def handler(number, frame):
        raise Alarm

    before = signal.signal(signal.SIGALRM, handler)
    yield
    signal.signal(signal.SIGALRM, before)


def test_an_alarm_while_the_end_waits_for_a_save_does_not_cost_the_last_state(tmp_path, alarm):
    came = []

    class Alarming(Slow):
        def create(self, path):
            if threading.current_thread() is not threading.main_thread() and not came:
                came.append(path)
                time.sleep(self.seconds)  # until the main thread waits
                signal.pthread_kill(threading.main_thread().ident, signal.SIGALRM)
            return super().create(path)

    saving = fl.checkpoint(tmp_path, every=2, unit="step", background=True, files=Alarming())
    with pytest.warns(UserWarning, match=r"Closing the effect checkpoint failed: Alarm\(\)"):
        fit(saving, steps=3)
    assert came and saves(tmp_path) == [2, 3]
    assert fl.store.read_manifest(tmp_path / "step-00000003")["status"] == "completed"


@pytest.mark.parametrize("background", [False, True])
def test_an_alarm_in_the_last_save_does_not_cost_the_last_state(tmp_path, alarm, background):
    came = []

    class Alarming(Disk):
        def create(self, path):
            if "step-00000003" in str(path) and not came:
                came.append(path)
                signal.raise_signal(signal.SIGALRM)
            return super().create(path)

    saving = fl.checkpoint(tmp_path, every=2, unit="step", background=background, files=Alarming())
    with pytest.warns(UserWarning, match=r"Closing the effect checkpoint failed: Alarm\(\)"):
        fit(saving, steps=3)
    assert came and saves(tmp_path) == [2, 3]
    assert fl.store.read_manifest(tmp_path / "step-00000003")["status"] == "completed"
