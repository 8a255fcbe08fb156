"""The power is lost after every call of a save: what was acknowledged is found, and never less."""

from __future__ import annotations

import contextlib
import errno
import functools
import gc
import hashlib
import itertools
import random
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from fnloop.effects import claims
from fnloop.effects.effect import Run
from fnloop.store import keeper, tensor_file, writing
from fnloop.store import manifest as manifests
from fnloop.store.checkpoint import checkpoint
from fnloop.store.checkpoint_errors import CheckpointError
from fnloop.store.commit import discard, remove_tree
from fnloop.store.folders import listing
from fnloop.store.load import load, load_at
from fnloop.store.manifest import read_manifest
from fnloop.store.save import save
from fnloop.trees.equal import tree_equal
from fnloop.values.cursor import Cursor
from fnloop.values.metrics import Mean
from fnloop.values.start import start
from fnloop.values.state import State

from .crashing import Crashing, Image, Objects
from .faulty import Faulty

CHUNK = 500  # bytes that are written at once, so that a file takes several calls
FOLDER = Path("/runs/a")
LIKE = start(torch.nn.Linear(2, 1, bias=False), seed=0)


@functools.cache
def state_at(count: int, version: int = 0) -> State:
    """All of the state follows from what its weight says."""
    weight = torch.tensor([[float(count), float(version) + 0.5]])
    cursor = Cursor(0, count, count).tensor()
    return LIKE.replace(params={"weight": weight}, cursor=cursor, step=torch.tensor(count))


class Judge:
    """Loads every crash state, and compares what it finds with what was acknowledged.

    Attributes:
        begun: Count and version of the newest state of which a save has begun.
        acknowledged: Count and version of the newest of which one was acknowledged, if any.
        verdicts: How many states were "fine"; found "nothing" though a save was acknowledged;
            had "lost" that, and led to an older one; were "wrong" without anybody noticing.
    """

    def __init__(self, most: int = 16, seed: int = 0) -> None:
        self.most, self.chance = most, random.Random(seed)
        self.begun = (0, 0)
        self.acknowledged: tuple[int, int] | None = None
        self.verdicts: Counter[str] = Counter()
        self.found: dict[frozenset[Any], tuple[int, int] | str] = {}

    def __call__(self, disk: Crashing) -> None:
        for image in disk.crashes(self.most, self.chance):
            self.verdicts[self.judge(image)] += 1

    def judge(self, image: Image) -> str:
        found = self.find(image)
        if isinstance(found, str):
            nothing = self.acknowledged is None and found == "nothing"
            return "fine" if nothing else found
        if found > self.begun:
            return "wrong"
        return "lost" if self.acknowledged and found < self.acknowledged else "fine"

    def find(self, image: Image) -> tuple[int, int] | str:
        """Count and version of what is loaded; each distinct state is loaded once."""
        key = frozenset(image.items())
        if key not in self.found:
            self.found[key] = self.loaded(Crashing(image))
        return self.found[key]

    def loaded(self, disk: Crashing) -> tuple[int, int] | str:
        try:
            state = load(FOLDER, like=LIKE, files=disk)
        except CheckpointError:
            return "nothing"
        count, version = (int(value) for value in state.params["weight"][0])
        return (count, version) if tree_equal(state, state_at(count, version)) else "wrong"

    def acknowledge(self) -> None:
        self.acknowledged = self.begun

    def save(self, disk: Crashing, count: int, version: int = 0) -> None:
        self.begun = (count, version)
        save(state_at(count, version), FOLDER, files=disk)
        self.acknowledge()


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Skipped checkpoints are warned of, thousands of times."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# What happens


def three_saves(judge: Judge, disk: Crashing) -> None:
    for count in (1, 2, 3):
        judge.save(disk, count)


def one_place(judge: Judge, disk: Crashing) -> None:
    """Each save replaces the one before."""
    for version in (0, 1, 2):
        judge.save(disk, 7, version)


def a_run(judge: Judge, disk: Crashing, steps: int = 5, **settings: Any) -> None:
    """What `fit` does with the effect: open or resume, steps, close."""
    effect = checkpoint(FOLDER, every=1, unit="step", files=disk, **settings)
    run = Run(step=None, state=state_at(0), effects=[effect])
    found = load_at(FOLDER, LIKE, disk)
    if disk.exists(FOLDER / ".lock"):  # of this very process, which is to be taken for a dead one
        disk.remove(FOLDER / ".lock")
    if found is not None:
        run.state, run.continues, run.id = found.state, found.path, found.manifest["run"]
        effect.recall(found.manifest["memos"][effect.name])
    begin = Cursor.of(run.state.cursor).count
    effect.open(run)
    for count in range(begin + 1, begin + 1 + steps):
        judge.begun = max(judge.begun, (count, 0))
        run.state = state_at(count)
        effect(run.state, {"loss": Mean(1.0 / count if count % 2 else 9.0, 1)})
        judge.acknowledged = (count, 0)
    effect.close("completed")
    last = FOLDER / f"step-{begin + steps:08d}"
    assert read_manifest(last, files=disk)["status"] == "completed"


Scenario = Callable[..., None]

SCENARIOS: dict[str, Scenario] = {
    "three saves": three_saves,
    "saves in one place": one_place,
    "a run that keeps one": functools.partial(a_run, keep=1),
    "a run that keeps two": functools.partial(a_run, keep=2),
    "a run that keeps the best and the last": functools.partial(a_run, keep=1, monitor="loss"),
}


def play(scenario: Scenario, most: int = 16, lies: str = "") -> Judge:
    judge = Judge(most)
    scenario(judge, Crashing(watch=judge, chunk=CHUNK, lies=lies))
    return judge


def go_on(scenario: Scenario, judge: Judge, disk: Crashing) -> None:
    """What the next process does, after one that died."""
    with mock.patch.object(claims, "_CLAIMS", Counter()):  # what a process knows of its own runs
        if isinstance(scenario, functools.partial):
            scenario(judge, disk, steps=2)
        else:
            count, version = judge.begun
            judge.save(disk, count, version + 1)


def play_twice(
    scenario: Scenario,
    most: int,
    every: int = 1,
    offset: int = 0,
    judge: Callable[[int], Judge] = Judge,
) -> Judge:
    """A process is killed after each call (each `every`-th one); the power goes in the next."""
    first, second = Judge(), judge(most)
    moments = itertools.count(offset)

    def killed_here(disk: Crashing) -> None:
        if next(moments) % every == 0:
            second.begun, second.acknowledged = first.begun, first.acknowledged
            go_on(scenario, second, disk.copy(second))

    scenario(first, Crashing(watch=killed_here, chunk=CHUNK))
    return second


def counted(judges: Iterable[Judge]) -> str:
    verdicts = sum((judge.verdicts for judge in judges), Counter[str]())
    return f"{dict(verdicts)}, {sum(len(judge.found) for judge in judges)} of them distinct"


# What must never happen


@pytest.mark.lightning("K7")
def test_every_crash_state_leads_to_what_was_acknowledged_or_newer() -> None:
    judges = [play(scenario, most=64) for scenario in SCENARIOS.values()]
    print("\npower loss:", counted(judges))
    assert all(set(judge.verdicts) == {"fine"} for judge in judges)
    assert sum(judge.verdicts["fine"] for judge in judges) >= 10_000
    assert sum(len(judge.found) for judge in judges) >= 2_500, "they differ"


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_power_may_go_in_the_process_after_one_that_was_killed(scenario: str) -> None:
    judge = play_twice(SCENARIOS[scenario], most=8, every=13, offset=5)
    print(f"\nkilled, then power loss: {scenario}:", counted([judge]))
    assert set(judge.verdicts) == {"fine"}
    assert judge.verdicts["fine"] >= 300


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_many_more_crash_states(scenario: str) -> None:
    judges = [play(SCENARIOS[scenario], most=1024), play_twice(SCENARIOS[scenario], most=32)]
    print(f"\npower loss: {scenario}:", *(counted([judge]) for judge in judges), sep="\n  ")
    assert all(set(judge.verdicts) == {"fine"} for judge in judges)
    assert sum(judge.verdicts["fine"] for judge in judges) >= 20_000


def test_a_failing_call_and_then_a_power_loss() -> None:
    """What is undone after an error (and not synchronised) loses nothing either."""
    judges: list[Judge] = []
    for scenario in (three_saves, one_place):
        log = Faulty(Crashing(chunk=CHUNK))
        scenario(Judge(), log)
        for at in range(0, len(log.calls), 3):
            judge = Judge(most=4)
            disk = Faulty(Crashing(watch=judge, chunk=CHUNK), at, errno.EIO)
            with contextlib.suppress(OSError):
                scenario(judge, disk)
            judges.append(judge)
    print("\na failing call, then power loss:", counted(judges))
    assert all(set(judge.verdicts) <= {"fine"} for judge in judges)
    assert len(judges) > 50


def test_the_next_run_tidies_up_after_a_power_loss() -> None:
    images: dict[frozenset[Any], tuple[Image, Judge]] = {}
    judge = Judge()

    def note(disk: Crashing) -> None:
        for image in disk.crashes(4, judge.chance):
            then = Judge()
            then.begun, then.acknowledged = judge.begun, judge.acknowledged
            images.setdefault(frozenset(image.items()), (image, then))

    a_run(judge, Crashing(watch=note, chunk=CHUNK), keep=1)
    chosen = judge.chance.sample(list(images), 40)
    for image, then in map(images.__getitem__, chosen):
        disk = Crashing(image)
        a_run(then, disk, steps=1, keep=1)
        assert then.judge(disk.image()) == "fine"
        (name,) = disk.names(FOLDER)
        assert name == f"step-{then.acknowledged[0]:08d}"
        assert sorted(disk.names(FOLDER / name)) == ["manifest.json", "state.safetensors"]


@pytest.mark.parametrize("scenario", [three_saves, one_place], ids=["three saves", "in one place"])
def test_a_store_without_renames_holds_a_whole_checkpoint_after_every_call(
    scenario: Scenario,
) -> None:
    judge = Judge()
    scenario(judge, Objects(watch=judge, chunk=CHUNK))
    assert set(judge.verdicts) == {"fine"}
    assert judge.verdicts["fine"] >= 8


# That all this can fail


SHORT_RUN = functools.partial(a_run, keep=1, steps=2)


@pytest.mark.parametrize("lies", ["file", "folder"])
@pytest.mark.parametrize("scenario", [three_saves, one_place, SHORT_RUN], ids=[*SCENARIOS][:3])
def test_a_disk_that_lies_loses_checkpoints_and_is_caught(scenario: Scenario, lies: str) -> None:
    verdicts = play(scenario, most=6, lies=lies).verdicts
    assert verdicts["nothing"] + verdicts["lost"] > 20, verdicts
    assert not verdicts["wrong"], "the digests tell"


def test_without_digests_such_a_disk_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Blind:
        def __init__(self, data: Any = b"") -> None:
            self.update = lambda data: None
            self.digest, self.hexdigest = lambda: bytes(32), lambda: "0" * 64

    monkeypatch.setattr(hashlib, "sha256", Blind)
    assert play(SHORT_RUN, most=6, lies="file").verdicts["wrong"] > 5


def test_bytes_that_were_not_written_are_noticed_before_the_checkpoint_counts() -> None:
    judge = Judge()
    with pytest.raises(OSError, match="step-00000001 was not saved"):
        three_saves(judge, Crashing(watch=judge, chunk=CHUNK, lies="write"))
    assert judge.acknowledged is None and set(judge.verdicts) == {"fine"}


@pytest.fixture
def writes_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short writes are taken for whole ones."""
    for module in (manifests, tensor_file):
        monkeypatch.setattr(
            module, "write_all", lambda output, data: output.write(memoryview(data))
        )


def test_a_writer_that_does_not_go_on_after_a_short_write_is_caught(writes_once: None) -> None:
    judge = Judge()
    with pytest.raises(OSError, match="what was read again is not what was written"):
        three_saves(judge, Crashing(watch=judge, chunk=100))
    assert judge.acknowledged is None


def test_one_that_does_not_read_again_either_loses_what_it_acknowledges(
    writes_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = lambda folder, leaves, files: tensor_file.digests(leaves)  # noqa: E731
    monkeypatch.setattr(writing, "_read_again", digests)
    monkeypatch.setattr(writing, "_compare_manifest", lambda folder, files: None)
    judge = Judge()
    three_saves(judge, Crashing(watch=judge, chunk=100))
    assert judge.verdicts["nothing"] > 5


def test_a_replacement_that_deletes_first_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def commit(temporary: Path, target: Path, files: Any) -> None:
        if files.exists(target):
            remove_tree(target, files)
        files.rename(temporary, target)
        files.sync(target.parent)

    monkeypatch.setattr(writing, "commit", commit)
    assert play(one_place).verdicts["nothing"] > 20


def test_deleting_before_the_commit_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def save_late(state: State, folder: Path, **about: Any) -> Path:
        for path in listing(folder, about["files"]).values():
            discard(path, about["files"])
        return save(state, folder, **about)

    monkeypatch.setattr(keeper, "save", save_late)
    assert play(SCENARIOS["a run that keeps one"]).verdicts["nothing"] > 20


def test_a_next_process_that_does_not_synchronise_first_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Strict(Judge):
        def judge(self, image: Image) -> str:
            assert super().judge(image) == "fine", "nothing is left"
            return "fine"

    class Hasty(Crashing):
        """It leaves out what the store does before it tidies up, and only that."""

        def sync(self, folder: Path) -> None:
            if sys._getframe(1).f_code.co_name != "sweep":
                super().sync(folder)

    monkeypatch.setattr("tests.store.test_power_loss.Crashing", Hasty)
    # When the failed run is collected, its lock is not given back: that would be judged too.
    monkeypatch.setattr("fnloop.store.run_lock._drop", lambda *_: None)
    with pytest.raises(AssertionError, match="nothing is left"):
        play_twice(SHORT_RUN, most=6, judge=Strict)
    gc.collect()
