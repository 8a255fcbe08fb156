"""A store that is killed, stopped or cut off while a run saves to it and resumes from it."""

from __future__ import annotations

import collections
import random
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

import fnloop as fl
from fnloop.store import keeper
from fnloop.store.folders import listing
from fnloop.store.manifest import MANIFEST

from . import s3, s3_killed

STEPS = 20
DATA = fl.Batches(torch.arange(96.0).reshape(48, 2), 2)
QUICK = {"retries": {"max_attempts": 0}, "connect_timeout": 0.3, "read_timeout": 0.3}


class Trial:
    """A run to be disturbed, and what is known of it.

    Attributes:
        width: Numbers in its model.
        whole: Its state after each step, if nothing disturbs it.
        acknowledged: The newest count that was saved.
        phase: What it is at.
    """

    def __init__(self, folder: Path, width: int = 2) -> None:
        self.width, self.whole = width, list[fl.State]()
        self.acknowledged, self.phase = 0, "begin"
        self.step = fl.pipe(
            lambda m, x: m(x.repeat(1, width // 2)).square().mean(),
            fl.grad,
            fl.update(fl.optim.sgd(1e-9 if width > 2 else 0.01)),
        )
        self.whole.append(self.begin())
        self.fit(folder, STEPS, fl.effect(lambda state, metrics: self.whole.append(state)))

    def begin(self) -> fl.State:
        return self.step.init(lambda: torch.nn.Linear(self.width, 1), seed=1)

    def fit(self, folder: Any, steps: int, *more: Any, **options: Any) -> fl.State:
        """The run, or what is left of it."""
        saving = fl.checkpoint(folder, keep=2, every=1, unit="step", **options)
        callbacks = [*more, saving]
        state, _ = fl.fit(
            self.step, self.begin(), DATA, steps=steps, callbacks=callbacks, resume=folder
        )
        return state

    def check(self, files: Path, acknowledged: int) -> None:
        """What has a manifest is whole, and what was acknowledged is there, or a newer one.

        Args:
            files: The disk of a server that is dead: it is read as any disk.
            acknowledged: The newest count that was saved before.
        """
        found = [path for path in listing(files).values() if (path / MANIFEST).exists()]
        for path in found:
            loaded = fl.load(path, like=self.whole[0])
            assert loaded == self.whole[int(loaded.cursor[2])], path
        newest = max((int(path.name.removeprefix("step-")) for path in found), default=0)
        assert newest >= acknowledged, "a checkpoint was lost"

    def note(self, patch: pytest.MonkeyPatch) -> None:
        """Note from now on what is saved, and what the run is at."""

        def noted(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **named: Any) -> Any:
                before, self.phase = self.phase, name
                try:
                    result = original(*args, **named)
                finally:
                    self.phase = before
                if name == "save":
                    self.acknowledged = int(args[0].cursor[2])
                return result

            return call

        for name in ("save", "discard", "amend"):
            patch.setattr(keeper, name, noted(name, getattr(keeper, name)))

    def enter(self, phase: str) -> Any:
        """An effect that notes that a run has begun with its steps, which take a little time."""

        def noted(state: fl.State, metrics: Any) -> None:
            self.phase = phase
            time.sleep(0.01)

        return fl.effect(noted)


class Trouble:
    """A thread that kills a process at random instants, and starts it again.

    Args:
        server: The server.
        name: "server" or "relay": what is killed.
        stops: Whether it is stopped first, so that connections are taken and never answered. One
            in two times it then goes on.
        trial: The run that it disturbs.
        files: Where the server keeps the run's objects.
        chance: Random numbers.
        rest: Seconds, at most, from one time to the next.
    """

    def __init__(
        self,
        server: s3_killed.Mortal,
        name: str,
        stops: bool,
        trial: Trial,
        files: Path,
        chance: random.Random,
        rest: float,
    ) -> None:
        self.seen = collections.Counter[str]()
        self._server, self._name, self._stops = server, name, stops
        self._trial, self._files, self._chance, self._rest = trial, files, chance, rest
        self._done, self._fault = threading.Event(), list[BaseException]()
        self._thread = threading.Thread(target=self._meddle)

    def __enter__(self) -> Trouble:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        for fault in self._fault:
            raise fault

    def _meddle(self) -> None:
        try:
            while not self._done.wait(self._chance.uniform(0.0, self._rest)):
                self._bring_down()
        except BaseException as error:
            self._fault.append(error)

    def _bring_down(self) -> None:
        if self._stops:
            self.seen["stopped"] += 1
            self._server.stop(self._name)
            time.sleep(self._chance.uniform(0.0, 0.5))
            if self._chance.random() < 0.5:
                self._server.go_on(self._name)
                return
        acknowledged, phase = self._trial.acknowledged, self._trial.phase
        self._server.kill(self._name)
        try:
            self.seen["kills"] += 1
            self.seen[f"killed in {phase}"] += 1
            if self._name == "relay":
                time.sleep(0.05)  # the server ends what it is at
            self._trial.check(self._files, acknowledged)
            time.sleep(self._chance.uniform(0.0, 0.2))
        finally:
            self._server.start(self._name)


def disturbed(
    server: s3_killed.Mortal, trial: Trial, number: int, chance: random.Random, rest: float
) -> collections.Counter[str]:
    """A run in three parts, each resumed from the one before, whose store is killed all the time.

    It ends in the same bits, or where the store is away for too long says so and can be resumed.
    """
    name = ("server", "relay")[number % 2]
    stops, background = number % 3 == 2, bool(number // 2 % 2)
    key = f"runs/{trial.width}-{number}"
    files = server.files / key
    large = trial.width > 2  # its uploads take a while
    options = {"default_block_size": s3_killed.PART} if large else {}
    client = s3.CLIENT if large else QUICK
    place = s3_killed.folder(server, name, key, client=client, **options)
    trial.acknowledged = 0
    seen = collections.Counter[str](runs=1)
    with Trouble(server, name, stops, trial, files, chance, rest) as trouble:
        for steps in (STEPS // 3, 2 * STEPS // 3, STEPS):
            trial.phase = "resume"
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                try:
                    state = trial.fit(place, steps, trial.enter("train"), background=background)
                    assert state == trial.whole[steps]
                    seen["parts that ended"] += 1
                except OSError as error:  # it could not begin
                    said = str(error)
                    assert key in said and ("answer" in said or "try again" in said), said
                    state = getattr(error, "state", trial.whole[0])
                    assert state == trial.whole[int(state.cursor[2])]
                    seen["parts that did not begin"] += 1
            for warning in caught:
                said = str(warning.message)
                seen["warnings"] += 1
                assert key in said, said
                assert re.search("The run continues|no longer needed|The last state", said), said
                seen["last states not saved"] += "The last state of the run is not saved" in said
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert trial.fit(place, STEPS) == trial.whole[STEPS]
    assert fl.load(place, like=trial.whole[0]) == trial.whole[STEPS]
    trial.check(files, STEPS)
    left = sorted(str(file.relative_to(files)) for file in files.rglob("*") if file.is_file())
    whole = [*files.glob(f"*/{MANIFEST}")]
    assert len(left) == 2 * len(whole) <= 4, " ".join(left)
    return seen + trouble.seen


def battery(
    server: s3_killed.Mortal,
    trial: Trial,
    runs: Iterable[int],
    patch: pytest.MonkeyPatch,
    rest: float = 0.8,
) -> collections.Counter[str]:
    trial.note(patch)
    chance, total = random.Random(0), collections.Counter[str]()
    for number in runs:
        total += disturbed(server, trial, number, chance, rest)
    print(f"\n{dict(total)}")
    return total


def test_runs_outlive_a_store_that_is_killed_now_and_then(
    mortal: s3_killed.Mortal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert battery(mortal, Trial(tmp_path), (0, 6), monkeypatch, rest=1.5)["kills"] >= 4


@pytest.mark.slow
def test_runs_outlive_a_store_that_is_killed_all_the_time(
    mortal: s3_killed.Mortal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = battery(mortal, Trial(tmp_path), range(24), monkeypatch)
    assert seen["kills"] >= 100 and seen["stopped"] >= 20
    assert seen["killed in save"] >= 30 and seen["killed in resume"] >= 10


@pytest.mark.slow
def test_uploads_in_parts_outlive_a_store_that_is_killed(
    mortal: s3_killed.Mortal, part: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = battery(mortal, Trial(tmp_path, 3_000_000), range(6), monkeypatch)  # 12 MB
    assert seen["killed in save"] >= 10
