"""Files that grow, on disks that fail: full, read-only, gone."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import fnloop as fl
from fnloop.trackers import run_files
from fnloop.trackers.run_files import append

STEP = fl.pipe(lambda m, x: m(x).square().mean(), fl.grad, fl.update(fl.optim.sgd(0.01)))
DATA = fl.Batches(torch.arange(48.0).reshape(24, 2) / 48, 2)


def trained(folder: Path, at: int, until: int, begin: Any, end: Any) -> list[str]:
    """A run of 24 steps in which something happens before and after some; what it warns of."""

    @fl.effect
    def trouble(state: fl.State, metrics: Any) -> None:
        count = int(state.cursor[2])
        if count == at:
            begin()
        elif count == until:
            end()

    trackers = [
        fl.trackers.JSONL(folder / "a.jsonl"),
        fl.trackers.CSV(folder / "a.csv"),
        fl.trackers.TensorBoard(folder / "board"),
    ]
    validate = fl.every(7, fl.validate(lambda m, x: m(x).square().mean(), DATA), unit="step")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        state = STEP.init(torch.nn.Linear(2, 1), seed=0)
        fl.fit(
            STEP,
            state,
            DATA,
            steps=24,
            callbacks=[validate, fl.track(*trackers, every=1), trouble],
        )
    return [str(warning.message) for warning in caught]


def steps_in(folder: Path) -> dict[str, list[int]]:
    lines = [json.loads(line) for line in (folder / "a.jsonl").read_text().splitlines()]
    assert [*lines[0]] == ["config"]
    with (folder / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        "jsonl": [line["step"] for line in lines[1:]],
        "csv": [int(row["step"]) for row in rows],
        "tensorboard": [event.step for event in board(folder / "board" / "run-1")],
    }


def board(folder: Path) -> list[Any]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder))
    read.Reload()
    return read.Scalars("loss")


WHOLE = {name: [*range(1, 25)] for name in ("jsonl", "csv", "tensorboard")}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO], ids=errno.errorcode.get)
def test_a_dozen_steps_of_a_failing_disk_lose_no_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    real = Path.open

    def failing(path: Path, mode: str = "r", *rest: Any, **more: Any) -> Any:
        if "a" in mode and tmp_path in path.parents:
            raise OSError(number, os.strerror(number), str(path))
        return real(path, mode, *rest, **more)

    told = trained(
        tmp_path,
        4,
        16,
        lambda: monkeypatch.setattr(Path, "open", failing),
        lambda: monkeypatch.setattr(Path, "open", real),
    )
    assert steps_in(tmp_path) == WHOLE
    assert len(told) <= 3 and all("Training goes on; its points are kept" in text for text in told)
    assert sorted(os.listdir(tmp_path)) == ["a.csv", "a.jsonl", "board"]


def test_a_folder_that_was_moved_away_and_back_loses_no_line(tmp_path: Path) -> None:
    folder, aside = tmp_path / "run", tmp_path / "aside"
    told = trained(folder, 4, 16, lambda: folder.rename(aside), lambda: aside.rename(folder))
    assert steps_in(folder) == WHOLE
    assert not aside.exists()
    assert all("its points are kept" in text for text in told), told


def test_a_folder_that_was_deleted_is_told_of(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"

    def delete() -> None:
        while folder.exists():  # a tracker may write in the middle of it
            shutil.rmtree(folder, ignore_errors=True)

    told = trained(folder, 4, 99, delete, None)
    assert not folder.exists()
    lost = [text for text in told if " lacks " in text]
    assert len(lost) == 3 and all(f"the folder {folder}" in text for text in lost)
    assert capfd.readouterr().err.count("Traceback") == 0


def test_a_file_that_was_deleted_begins_anew_with_its_first_line(tmp_path: Path) -> None:
    told = trained(tmp_path, 12, 99, lambda: (tmp_path / "a.jsonl").unlink(), None)
    steps = steps_in(tmp_path)["jsonl"]
    assert told == [] and steps and steps == [*range(25 - len(steps), 25)]


def test_what_a_full_disk_takes_half_of_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a"
    append(file, b"one\n")

    class Half:
        def __init__(self, path: Path) -> None:
            self.file = os.fdopen(os.open(path, os.O_APPEND | os.O_WRONLY), "ab", 0)
            self.calls = 0

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: Any) -> None:
            self.file.close()

        def write(self, data: Any) -> int:
            self.calls += 1
            if self.calls > 1:
                raise OSError(errno.ENOSPC, "full")
            return self.file.write(data[:2])

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    with monkeypatch.context() as patch:
        patch.setattr(run_files.Path, "open", lambda path, *_, **__: Half(path))
        with pytest.raises(OSError, match="full"):
            append(file, b"two\n")
    append(file, b"two\n")
    assert file.read_bytes() == b"one\ntwo\n"


@pytest.mark.parametrize("kind", ["JSONL", "CSV", "TensorBoard", "Aim", "WandB"])
@pytest.mark.parametrize("path", [str, lambda url: pytest.importorskip("upath").UPath(url)])
def test_a_url_is_not_taken_for_a_folder_of_that_name(kind: str, path: Any) -> None:
    with pytest.raises(ValueError, match=rf"{kind} writes to a disk, and memory://a/b is a URL"):
        tracker = getattr(fl.trackers, kind)
        tracker("p", path("memory://a/b")) if kind == "WandB" else tracker(path("memory://a/b"))
