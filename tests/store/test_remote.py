"""Stores that are not the local disk, against a real S3 server (if moto and s3fs are there)."""

from __future__ import annotations

import contextlib
import errno
import gc
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import fnloop as fl
from fnloop.store import patience
from fnloop.store.checkpoint_errors import CheckpointError, UnreadableError
from fnloop.store.folders import listing
from fnloop.store.manifest import amend
from fnloop.store.remote import Remote
from fnloop.values.cursor import Cursor
from fnloop.values.start import start

from . import s3


def state_at(count: int, size: int = 2) -> fl.State:
    state = start(torch.nn.Linear(size, 1), seed=0)
    params = {name: torch.full_like(p, count) for name, p in state.params.items()}
    return state.replace(params=params, cursor=Cursor(0, count, count).tensor())


LIKE = state_at(0)
LONG, DELAYS = patience.DELAYS, (0.02, 0.02)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "DELAYS", DELAYS)


@pytest.fixture(scope="module")
def server() -> Iterator[s3.Gate]:
    pytest.importorskip("s3fs")
    pytest.importorskip("moto.server")
    with s3.serving() as gate:
        yield gate


@pytest.fixture
def gate(server: s3.Gate) -> Iterator[s3.Gate]:
    yield server
    server.set("open")


@pytest.fixture
def folder(gate: s3.Gate, request: pytest.FixtureRequest) -> Any:
    return s3.folder(gate, f"runs/{abs(hash(request.node.name))}")


def keys(folder: Any) -> list[str]:
    folder.fs.invalidate_cache()
    root = folder.path.rstrip("/")
    return sorted(path.removeprefix(root + "/") for path in folder.fs.find(root))


def uploads(folder: Any) -> list[Any]:
    """Uploads in parts that nobody has ended: they cost money, and no listing shows them."""
    found = folder.fs.call_s3("list_multipart_uploads", Bucket=s3.BUCKET)
    return [
        u for u in found.get("Uploads", []) if u["Key"].startswith(folder.path.split("/", 1)[1])
    ]


# What the errors of a back-end become


class Backend(Exception):
    pass


@pytest.mark.parametrize(
    ("raised", "number"),
    [
        (Backend("who knows"), errno.EIO),
        (TimeoutError(), errno.ETIMEDOUT),
        (FileNotFoundError("gone"), errno.ENOENT),
        (PermissionError("no"), errno.EACCES),
        (NotImplementedError("no such call"), errno.ENOTSUP),
        (OSError(errno.EBUSY, "slow down"), errno.EBUSY),
        (ValueError("\x1b[2J"), errno.EIO),
    ],
    ids=repr,
)
def test_whatever_a_backend_raises_is_an_os_error(
    monkeypatch: pytest.MonkeyPatch, raised: Exception, number: int
) -> None:
    from upath import UPath

    place: Any = UPath("memory://errors/a")

    def fail(*_: Any, **__: Any) -> None:
        raise raised

    for call in ("ls", "info", "open", "pipe_file", "rm_file", "makedirs"):
        monkeypatch.setattr(place.fs, call, fail)
    remote = Remote()
    calls = [remote.make, remote.open, remote.remove, lambda path: remote.create(path).close()]
    if number != errno.ENOENT:
        calls += [remote.names, remote.exists]
    for call in calls:
        with pytest.raises(OSError) as caught:
            call(place)
        assert caught.value.errno == number
        assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 503])
def test_the_status_of_http_says_what_it_is(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    from upath import UPath

    place: Any = UPath("memory://errors/b")
    error: Any = Backend("it says")
    error.code = status
    monkeypatch.setattr(place.fs, "open", lambda *_: (_ for _ in ()).throw(error))
    with pytest.raises(OSError, match="Backend: it says") as caught:
        Remote().open(place)
    assert patience.read_may_pass(caught.value) == (status != 404)


@pytest.mark.parametrize("mode", ["shut", "503", "403"])
def test_an_outage_is_an_os_error_whatever_is_done(gate: s3.Gate, folder: Any, mode: str) -> None:
    """It never looks as if nothing were there: the run would begin anew, or tidy up too much."""
    path = fl.save(state_at(1), folder)
    before = keys(folder)
    gate.set(mode)
    for call in (
        lambda: fl.save(state_at(2), folder),
        lambda: fl.latest(folder),
        lambda: fl.best(folder),
        lambda: fl.store.read_manifest(path),
        lambda: fl.load(folder, like=LIKE),
        lambda: fl.load(path, like=LIKE),
        lambda: amend(path, Remote(), status="stopped"),
        lambda: fit(folder, 1),
    ):
        with pytest.raises(OSError, match=str(folder)):
            call()
    gate.set("open")
    assert keys(folder) == before
    assert fl.load(folder, like=LIKE) == state_at(1)


@pytest.mark.parametrize("mode", ["shut", "503"])
@pytest.mark.filterwarnings("error")
def test_reading_waits_for_an_outage_to_end(
    gate: s3.Gate, folder: Any, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "DELAYS", LONG)
    for count in (1, 2):
        fl.save(state_at(count), folder)
    gate.set(mode)
    timer = threading.Timer(0.8, gate.set, ["open"])
    timer.start()
    assert fl.load(folder, like=LIKE) == state_at(2)
    timer.join()


@pytest.mark.filterwarnings("error")
def test_an_outage_in_the_middle_of_a_read_takes_no_older_checkpoint(
    gate: s3.Gate, folder: Any
) -> None:
    for count in (1, 2):
        fl.save(state_at(count), folder)
    gate.set("503", only=r"GET .*state-.*safetensors")
    with pytest.raises(UnreadableError, match=r"step-00000002.*cannot be read now.*not damage"):
        fl.load(folder, like=LIKE)
    assert gate.requests


def test_what_another_process_saves_is_seen(gate: s3.Gate, folder: Any) -> None:
    """The reader has listed the folder before, and remembers what was there."""
    from upath import UPath

    assert fl.latest(folder) is None and fl.best(folder) is None
    writer = UPath(str(folder), skip_instance_cache=True, **folder.storage_options)
    assert writer.fs is not folder.fs
    for count in (1, 2):
        monitor = {"name": "val/loss", "mode": "min", "value": -float(count)}
        fl.save(state_at(count), writer, monitor=monitor)
        assert fl.latest(folder).name == fl.best(folder).name == f"step-0000000{count}"
        assert fl.load(folder, like=LIKE) == state_at(count)
    newest = fl.latest(folder)
    fl.save(state_at(2), writer, status="replaced")
    assert fl.store.read_manifest(newest)["status"] == "replaced"
    assert fl.load(folder, like=LIKE) == state_at(2)


# Uploads that do not end


def large(count: int) -> fl.State:
    """More than s3fs keeps back: it is uploaded in parts."""
    return state_at(count, size=15_000_000)


def test_an_upload_that_fails_is_aborted(gate: s3.Gate, folder: Any) -> None:
    fl.save(state_at(1), folder)
    gate.set("500", only=r"POST .*uploadId=")
    with pytest.raises(OSError, match="step-00000002 was not saved"):
        fl.save(large(2), folder)
    gate.set("open")
    assert uploads(folder) == []
    assert all("step-00000001" in key for key in keys(folder))


def test_an_upload_that_is_interrupted_is_aborted(gate: s3.Gate, folder: Any) -> None:
    class Interrupted(BaseException):
        pass

    class Stops(Remote):
        def create(self, path: Any) -> Any:
            upload = super().create(path)
            write, calls = upload.write, []

            def stop(data: Any) -> int:
                calls.append(len(data))
                if len(calls) == 3:
                    raise Interrupted
                return write(data)

            upload.write = stop  # pyright: ignore
            return upload

    model = torch.nn.Sequential(*[torch.nn.Linear(15_000_000, 1) for _ in range(2)])
    with pytest.raises(Interrupted):
        fl.save(start(model), folder, files=Stops())
    assert uploads(folder) == [] and keys(folder) == []


@pytest.mark.parametrize("kind", ["s3", "memory"])
def test_an_interrupt_never_leaves_half_a_manifest(
    request: pytest.FixtureRequest, kind: str
) -> None:
    """At whatever call the second Ctrl-C comes: the old manifest is there, or the new one."""
    place: Any = "memory://interrupted/a"
    if kind == "s3":
        place = request.getfixturevalue("folder")
    path = fl.save(state_at(1), place)
    calls = interrupted_at(10**9, lambda: amend(path, Remote(), status="counted"))
    assert calls > 300
    for at in range(0, calls, calls // 20):
        interrupted_at(at, lambda at=at: amend(path, Remote(), status=f"try {at}"))
        gc.collect(0)  # what was left open is closed
        assert fl.store.read_manifest(path)["status"].startswith(("counted", "try"))
        assert fl.load(path, like=LIKE) == state_at(1)


def interrupted_at(at: int, work: Callable[[], Any]) -> int:
    """Do some work with a ``KeyboardInterrupt`` at a call or a return; how many of these came."""
    seen = 0

    def count(*_: Any) -> None:
        nonlocal seen
        seen += 1
        if seen > at:
            sys.setprofile(None)
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt, OSError):
        sys.setprofile(count)
        work()
        sys.setprofile(None)
    return seen


# Runs


STEP = fl.pipe(lambda m, x: m(x).square().mean(), fl.grad, fl.update(fl.optim.adamw(0.01)))
DATA = fl.Batches(torch.arange(48.0).reshape(24, 2), 2)


def fit(folder: Any, steps: int, *more: Any, **options: Any) -> fl.State:
    state = STEP.init(lambda: torch.nn.Linear(2, 1), seed=1)
    saving = fl.checkpoint(folder, keep=2, every=1, unit="step", **options)
    return fl.fit(STEP, state, DATA, steps=steps, callbacks=[*more, saving], resume=folder)[0]


@pytest.mark.parametrize(
    ("mode", "background"), [("shut", False), ("shut", True), ("503", False), ("slow", False)]
)
def test_a_run_outlives_an_outage(
    gate: s3.Gate, folder: Any, tmp_path: Path, mode: str, background: bool
) -> None:
    @fl.effect
    def trouble(state: fl.State, metrics: Any) -> None:
        count = int(state.cursor[2])
        if count in (4, 6):
            gate.set(mode if count == 4 else "open")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        state = fit(folder, 9, trouble, background=background)
    told = [str(warning.message) for warning in caught]
    if not background and mode != "slow":
        assert any("was not saved" in text or "can be written" in text for text in told)
    assert all("The run continues" in text or "no longer needed" in text for text in told), told
    assert state == fit(tmp_path, 9)
    assert fl.load(folder, like=state) == state
    assert sorted(listing(folder)) == [8, 9] and len(keys(folder)) == 4
    assert fl.store.read_manifest(fl.latest(folder))["status"] == "completed"
    assert fit(folder, 12) == fit(tmp_path, 12)


def test_the_last_state_waits_for_an_outage_to_end(
    gate: s3.Gate, folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "DELAYS", LONG)

    @fl.effect
    def trouble(state: fl.State, metrics: Any) -> None:
        if int(state.cursor[2]) == 3:
            gate.set("shut")
            threading.Timer(0.7, gate.set, ["open"]).start()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the save of step 3 fails
        state = fit(folder, 3, trouble)
    assert fl.load(folder, like=state) == state
    assert fl.store.read_manifest(fl.latest(folder))["status"] == "completed"


def test_a_run_that_cannot_reach_its_store_does_not_begin(gate: s3.Gate, folder: Any) -> None:
    gate.set("shut")
    state = STEP.init(lambda: torch.nn.Linear(2, 1), seed=1)
    with pytest.raises(OSError, match=f"No checkpoint can be written to {folder}.*EndpointConn"):
        fl.fit(STEP, state, DATA, steps=2, callbacks=[fl.checkpoint(folder)])


@pytest.mark.slow
def test_runs_outlive_outages_at_every_moment(gate: s3.Gate, folder: Any, tmp_path: Path) -> None:
    """The gate opens and shuts all the time; each run ends in the same bits, or says why not."""
    whole = fit(tmp_path, 24)
    for number in range(4):
        place, done = folder / str(number), threading.Event()

        def meddle(number: int = number, done: threading.Event = done) -> None:
            while not done.wait(0.05 + number * 0.01):
                gate.set(("shut", "500", "503", "slow")[number % 4])
                time.sleep(0.05)
                gate.set("open")

        meddler = threading.Thread(target=meddle)
        meddler.start()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for steps in (8, 16, 24):
                    with contextlib.suppress(OSError, CheckpointError):
                        fit(place, steps, background=bool(number % 2))
        finally:
            done.set()
            meddler.join()
            gate.set("open")
        assert fit(place, 24) == whole
        assert fl.load(place, like=whole) == whole
