"""What is left where one request to a store fails, its answer is lost or its connection is cut."""

from __future__ import annotations

import errno
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import fnloop as fl
from fnloop.effects.page import Page
from fnloop.store import patience, remote, run_lock
from fnloop.store.checkpoint_errors import UnreadableError
from fnloop.store.folders import listing
from fnloop.store.lock_owner import read_owner
from fnloop.store.manifest import read_manifest
from fnloop.store.pages import PAGES, attached, detached, put_pages
from fnloop.store.patience import write_may_pass
from fnloop.store.remote import Remote
from fnloop.store.run_lock import LOCK, Lock

from . import s3, s3_killed
from .test_remote import DATA, LIKE, LONG, STEP, fit, folder, gate, keys, server, state_at, uploads

__all__ = ["folder", "gate", "server"]
QUICK = {"retries": {"max_attempts": 0}, "connect_timeout": 0.3, "read_timeout": 0.3}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "DELAYS", (0.02, 0.02))


def put(folder: Any, name: str, raw: bytes = b"x") -> None:
    folder.fs.pipe_file(f"{folder.path}/{name}", raw)


def at_step(count: int, do: Any) -> fl.base.Effect:
    return fl.effect(lambda state, metrics: do() if int(state.cursor[2]) == count else None)


# Answers that are lost


@pytest.mark.parametrize("what", ["manifest.json", "safetensors"])
def test_a_save_that_was_done_though_its_answer_was_lost_is_deleted_in_its_turn(
    gate: s3.Gate, folder: Any, tmp_path: Path, what: str
) -> None:
    lose = at_step(4, lambda: gate.set("lost", only=f"PUT .*{what}"))
    find = at_step(5, lambda: gate.set("open"))
    with pytest.warns(UserWarning, match="step-00000004 was not saved .*The run continues"):
        state = fit(folder, 9, lose, find)
    assert gate.requests and state == fit(tmp_path, 9)
    assert sorted(listing(folder)) == [8, 9] and len(keys(folder)) == 4


def test_a_save_is_done_though_what_it_replaces_cannot_be_deleted(
    gate: s3.Gate, folder: Any
) -> None:
    fl.save(state_at(1), folder)
    gate.set("500", only=r"DELETE .*safetensors")
    fl.save(state_at(1), folder, status="again")
    assert gate.requests and fl.store.read_manifest(fl.latest(folder))["status"] == "again"
    assert fl.load(folder, like=LIKE) == state_at(1)


# What a killed process leaves


@pytest.mark.filterwarnings("error")
def test_a_run_that_was_killed_in_its_first_upload_begins_anew(folder: Any, tmp_path: Path) -> None:
    put(folder, "step-00000001/state-01234567.safetensors")
    assert fl.latest(folder) is None and fl.best(folder) is None
    assert fit(folder, 3) == fit(tmp_path, 3)
    assert sorted(listing(folder)) == [2, 3] and len(keys(folder)) == 4


@pytest.mark.filterwarnings("error")
def test_one_that_was_killed_in_a_later_upload_goes_on_from_the_one_before(
    folder: Any, tmp_path: Path
) -> None:
    fit(folder, 3)
    put(folder, "step-00000004/state-01234567.safetensors")
    assert fl.latest(folder).name == "step-00000003"
    assert fit(folder, 6) == fit(tmp_path, 6)
    assert sorted(listing(folder)) == [5, 6] and len(keys(folder)) == 4


def test_a_folder_without_checkpoints_is_one_in_which_a_run_begins(
    folder: Any, tmp_path: Path
) -> None:
    put(folder, "notes.txt")
    assert fit(folder, 2) == fit(tmp_path, 2)


# The beginning of a run


def test_a_run_that_begins_in_an_outage_waits_for_its_end(
    gate: s3.Gate, folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "DELAYS", LONG)
    state = STEP.init(lambda: torch.nn.Linear(2, 1), seed=1)
    gate.set("shut")
    timer = threading.Timer(0.7, gate.set, ["open"])
    timer.start()
    fl.fit(STEP, state, DATA, steps=2, callbacks=[fl.checkpoint(folder, every=1, unit="step")])
    timer.join()
    assert fl.load(folder, like=state) == fit(tmp_path, 2)


def test_an_outage_is_not_taken_for_another_run(gate: s3.Gate, folder: Any) -> None:
    fit(folder, 2)
    before = keys(folder)

    class Meanwhile(fl.base.Effect):
        def check_run(self, run: Any) -> None:
            gate.set("503", only=r"GET .*manifest")

    with pytest.raises(OSError, match=f"{folder}.*[Tt]ry again") as caught:
        fit(folder, 4, Meanwhile())
    assert not isinstance(caught.value, FileExistsError)
    gate.set("open")
    assert keys(folder) == before
    fit(folder, 4)


def test_an_outage_is_not_taken_for_a_lost_page(gate: s3.Gate, folder: Any) -> None:
    path = fl.save(state_at(1), folder, memos={"history": {"pages": [Page(b"rows")]}})
    manifest = read_manifest(path)
    gate.set("503", only=f"GET .*{PAGES}")
    with pytest.raises(UnreadableError, match=f"{folder}/{PAGES}.*cannot be read now"):
        attached(manifest, folder, Remote())
    gate.set("open")
    assert attached(manifest, folder, Remote())[0]["history"]["pages"] == [b"rows"]


def test_a_page_that_is_interrupted_does_not_appear(folder: Any) -> None:
    class Stops(Remote):
        def create(self, path: Any) -> Any:
            upload = super().create(path)
            write = upload.write

            def stop(data: Any) -> int:
                write(data[:2])
                raise KeyboardInterrupt

            upload.write = stop  # pyright: ignore
            return upload

    pages = detached({"history": [Page(b"rows")]})[1]
    with pytest.raises(KeyboardInterrupt):
        put_pages(pages, folder, Stops())
    assert keys(folder) == []


# The lock


def test_a_lock_that_could_not_be_given_back_does_not_keep_its_own_process_out(
    gate: s3.Gate, folder: Any
) -> None:
    lock = Lock(folder, Remote())
    lock.take()
    with pytest.raises(FileExistsError, match="this very process"):
        Lock(folder, Remote()).take()
    gate.set("shut")
    lock.release()
    gate.set("open")
    assert keys(folder) == [LOCK]
    again = Lock(folder, Remote())
    again.take()
    again.release()
    assert keys(folder) == []


def test_a_sign_of_life_that_fails_leaves_the_lock(gate: s3.Gate, folder: Any) -> None:
    lock = Lock(folder, Remote())
    lock.take()
    owner = read_owner(folder / LOCK, Remote())
    gate.set("500", only=f"PUT .*{LOCK}")
    with pytest.raises(OSError, match="try again"):
        run_lock._renew(folder / LOCK, Remote(), owner)  # type: ignore[arg-type]
    gate.set("open")
    assert keys(folder) == [LOCK]
    lock.release()


# Connections that are cut, and servers that do not answer


@pytest.mark.parametrize("only", ["PUT .*safetensors", "PUT .*manifest", "GET ", "HEAD "])
def test_a_connection_that_is_reset(gate: s3.Gate, folder: Any, only: str) -> None:
    """After any number of bytes, of a request or of its answer."""
    fl.save(state_at(1, 20_000), folder)
    like, cut = state_at(0, 20_000), 0
    for count in range(2, 10):
        gate.bytes = 10 ** (count - 3) if count < 8 else 90_000
        gate.set("cut", only=only)
        try:
            fl.save(state_at(count, 20_000), folder)
            saved = count
        except OSError as error:
            assert str(folder) in str(error)
            saved = count - 1
        cut += gate.mode == "open"
        gate.set("cut", only=only)
        loaded = fl.load(folder, like=like)
        assert int(loaded.cursor[2]) >= saved and loaded == state_at(int(loaded.cursor[2]), 20_000)
        gate.set("open")
        fl.save(state_at(count, 20_000), folder)
    assert cut >= 3 and uploads(folder) == []


def test_a_server_that_never_answers_is_an_error_that_names_the_folder(
    gate: s3.Gate, folder: Any
) -> None:
    quick = type(folder)(str(folder), **{**folder.storage_options, "config_kwargs": QUICK})
    fl.save(state_at(1), quick)
    gate.set("silent")
    with pytest.raises(OSError, match=f"{folder}.*[Tt]imeout.*try again"):
        fl.save(state_at(2), quick)
    gate.set("open")
    assert fl.load(quick, like=LIKE) == state_at(1)


def test_an_upload_that_a_restarted_server_has_forgotten_may_be_tried_again(
    mortal: s3_killed.Mortal, part: int
) -> None:
    folder = s3_killed.folder(mortal, "server", "forgotten", s3.CLIENT, default_block_size=part)
    upload = Remote().create(folder / "large")
    for _ in range(3):
        upload.write(bytes(part))
    assert uploads(folder)
    mortal.kill("server")
    mortal.start("server")
    assert not uploads(folder)
    with pytest.raises(OSError, match="does not know the upload any more") as caught:
        upload.close()
    upload.abort()
    assert caught.value.errno == errno.EIO and write_may_pass(caught.value)
    assert keys(folder) == []


def test_the_last_state_is_uploaded_anew_where_a_restarted_server_has_forgotten_it(
    mortal: s3_killed.Mortal, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = s3_killed.folder(mortal, "server", "last", s3.CLIENT, default_block_size=part)
    close, restarts = remote._Upload.close, list[int]()

    def restarting(upload: Any) -> None:
        if not restarts and upload._stream is not None:
            restarts.append(1)
            mortal.kill("server")
            mortal.start("server")
        close(upload)

    monkeypatch.setattr(remote._Upload, "close", restarting)
    step = fl.pipe(lambda m, x: m(x).square().mean(), fl.grad, fl.update(fl.optim.sgd(1e-9)))
    begin = step.init(lambda: torch.nn.Linear(4_000_000, 1), seed=0)
    data = [torch.ones(1, 4_000_000)]
    saving = fl.checkpoint(folder, every=2, unit="step")  # so, only when it is closed
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state, _ = fl.fit(step, begin, data, steps=1, callbacks=[saving])
    assert restarts and fl.load(folder, like=begin) == state
