"""Runs of `fl.fit` in processes that are killed; `test_kill.py` starts this file as a script.

torch is imported once: each run is a fork. What the forks tell is in shared memory, so that it is
there however they end.
"""

from __future__ import annotations

import collections
import ctypes
import hashlib
import json
import logging
import mmap
import os
import random
import shutil
import signal
import struct
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

import fnloop as fl
from fnloop.store import keeper
from fnloop.store.folders import listing
from fnloop.trees.paths import tree_items

for _name in fl.__all__:  # names are imported when they are first used: here, not in each fork
    getattr(fl, _name)

STEPS = 6
GENERATOR = torch.Generator().manual_seed(0)
X, Y = torch.randn(40, 6, generator=GENERATOR), torch.randint(0, 3, (40,), generator=GENERATOR)
PHASES = ("load", "train", "save", "delete")
KILL = 1001  # as in faultio.c


class Variant(NamedTuple):
    """What a run is made of."""

    amp: str
    optimizer: str
    data: str
    background: bool
    keep: int
    monitor: bool

    @classmethod
    def number(cls, n: int) -> Variant:
        """One of twenty."""
        n %= 20
        return cls(
            "fp16" if n % 3 else "bf16",
            "sgd" if n % 5 == 0 else "adamw",
            "loader" if n % 4 == 1 else "batches",
            bool(n % 2),
            1 + n % 3 % 2,
            n % 7 == 3,
        )


class Board:
    """What a process tells, in memory that outlives it."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 64)

    def wipe(self) -> None:
        self.memory[:] = struct.pack("qqq", -1, 0, 0) + bytes(40)

    @property
    def begun(self) -> int:
        """Batches that the state had had when the run began; -1: it has not."""
        return struct.unpack_from("q", self.memory, 0)[0]

    @begun.setter
    def begun(self, count: int) -> None:
        struct.pack_into("q", self.memory, 0, count)

    @property
    def acknowledged(self) -> int:
        """The newest checkpoint that the run could count on."""
        return struct.unpack_from("q", self.memory, 8)[0]

    @acknowledged.setter
    def acknowledged(self, count: int) -> None:
        struct.pack_into("q", self.memory, 8, count)

    @property
    def phase(self) -> int:
        return struct.unpack_from("q", self.memory, 16)[0]

    @phase.setter
    def phase(self, phase: int) -> None:
        struct.pack_into("q", self.memory, 16, phase)

    @property
    def digest(self) -> bytes:
        """Of the last state."""
        return self.memory[24:56]

    @digest.setter
    def digest(self, digest: bytes) -> None:
        self.memory[24:56] = digest


BOARD = Board()


class Notes(fl.base.Effect):
    """It comes after the checkpoint: what it sees is saved, or with a thread soon will be."""

    name = "notes"

    def __init__(self, behind: int) -> None:
        self.behind = behind

    def open(self, run: Any) -> None:
        BOARD.begun, BOARD.phase = int(run.state.cursor[2]), PHASES.index("train")

    def __call__(self, state: fl.State, metrics: Any) -> None:
        BOARD.acknowledged = max(BOARD.begun, int(state.cursor[2]) - self.behind)


def loss(model: Any, batch: Any) -> Any:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def pipeline(variant: Variant) -> tuple[Any, fl.State]:
    """The step, and the state that a run begins with."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))
    optimizer = (
        fl.optim.adamw(0.02) if variant.optimizer == "adamw" else fl.optim.sgd(0.1, momentum=0.9)
    )
    step = fl.pipe(
        loss, fl.grad, fl.accumulate(2), fl.amp(variant.amp), fl.update(optimizer), fl.ema(0.9)
    )
    return step, step.init(model, seed=0)


def train(variant: Variant, folder: Path, steps: int = STEPS) -> fl.State:
    """The whole run, or what is left of it."""
    step, begin = pipeline(variant)
    data: Any = fl.Batches((X[:32], Y[:32]), batch_size=10, seed=3)  # four an epoch, one is short
    if variant.data == "loader":
        examples = torch.utils.data.TensorDataset(X[:32], Y[:32])
        data = torch.utils.data.DataLoader(examples, batch_size=10, shuffle=True)
    saving = fl.checkpoint(
        folder,
        keep=variant.keep,
        monitor="val/loss" if variant.monitor else None,
        every=1,
        unit="step",
        background=variant.background,
    )
    callbacks = [
        fl.every(2, fl.validate(loss, fl.Batches((X[32:], Y[32:]), 8), params="ema"), unit="step"),
        fl.early_stopping("val/loss", patience=3),
        saving,
        Notes(2 if variant.background else 0),  # at most two are under way
    ]
    return fl.fit(step, begin, data, steps=steps, callbacks=callbacks, resume=folder)[0]


def digest_of(state: fl.State) -> bytes:
    total = hashlib.sha256()
    for path, leaf in sorted(tree_items(state)):
        total.update(f"{path} {leaf.dtype} {tuple(leaf.shape)} ".encode())
        total.update(leaf.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return total.digest()


def start(work: Callable[[], fl.State]) -> int:
    """A process that does `work` and notes the digest of what it returns."""
    BOARD.wipe()
    process = os.fork()
    if process:
        return process
    try:
        BOARD.digest = digest_of(work())
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def end(process: int) -> bool:
    """Wait for it; whether it was killed."""
    status = os.waitpid(process, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "it failed"
    return os.WIFSIGNALED(status)


def note_phases() -> None:
    """Let the board show what a process is at when it is killed."""
    for name, phase in (("save", "save"), ("discard", "delete")):
        original = getattr(keeper, name)

        def noted(*args: Any, original: Any = original, phase: str = phase, **named: Any) -> Any:
            before, BOARD.phase = BOARD.phase, PHASES.index(phase)
            result = original(*args, **named)
            BOARD.phase = before
            return result

        setattr(keeper, name, noted)


def random_kills(root: Path, runs: int, seed: int) -> dict[str, Any]:
    """Each run is killed two or three times, at any time, and then comes to its end."""
    note_phases()
    chance, seen = random.Random(seed), collections.Counter[str]()
    expected: dict[Variant, bytes] = {}
    seconds = 0.0  # that a run takes, about; other programs make it vary
    for n in range(runs):
        variant, folder = Variant.number(n), root / str(n)
        if variant not in expected:
            began = time.monotonic()
            end(start(lambda: train(variant, folder)))  # noqa: B023
            seconds = seconds or time.monotonic() - began
            expected[variant] = BOARD.digest
            shutil.rmtree(folder)
        wanted = chance.choice([2, 2, 2, 3])
        acknowledged = kills = 0
        while True:
            process = start(lambda: train(variant, folder))  # noqa: B023
            if kills < wanted:
                left = seconds * (STEPS + 1 - acknowledged) / (STEPS + 1)
                time.sleep(chance.uniform(0, left))
                os.kill(process, signal.SIGKILL)
            killed = end(process)
            assert BOARD.begun in (-1, *range(acknowledged, STEPS + 1)), "a checkpoint was lost"
            seen["resumed"] += BOARD.begun > 0
            if killed:
                kills += 1
                seen["killed in " + PHASES[BOARD.phase]] += 1
                acknowledged = max(acknowledged, BOARD.acknowledged)
                seconds *= 1.01
            elif kills == wanted:
                break
            else:  # it was faster, and is to begin anew
                seen["escaped"] += 1
                assert BOARD.digest == expected[variant]
                shutil.rmtree(folder)
                acknowledged = kills = 0
                seconds *= 0.9
        seen["kills"] += kills
        seen["equal"] += BOARD.digest == expected[variant]
        left_over = [name for name in os.listdir(folder) if not name.startswith("step-")]
        assert not left_over, left_over
        assert len(os.listdir(folder)) <= variant.keep + variant.monitor, os.listdir(folder)
        shutil.rmtree(folder)
    return dict(seen)


def kill_at_each_call(root: Path) -> dict[str, Any]:
    """Die just before the n-th system call that has to do with the folder, for every n.

    The run that is killed resumes at step 1, and saves, deletes the checkpoint before, and closes.
    """
    library = ctypes.CDLL(None)  # faultio.c, which is preloaded
    seen = collections.Counter[str]()
    variant = Variant("fp16", "adamw", "batches", background=False, keep=1, monitor=False)
    base, folder = root / "base", root / "runs"
    end(start(lambda: train(variant, base, steps=1)))
    first, (_, like) = BOARD.digest, pipeline(variant)
    shutil.copytree(base, folder)
    end(start(lambda: train(variant, folder, steps=2)))
    second = BOARD.digest
    shutil.rmtree(folder)

    def armed(n: int) -> fl.State:
        library.arm(n, KILL, str(folder).encode())
        return train(variant, folder, steps=2)

    for n in range(10**6):
        shutil.copytree(base, folder)
        killed = end(start(lambda: armed(n)))  # noqa: B023
        counts = listing(folder)
        assert counts.keys() <= {1, 2} and counts, counts
        assert max(counts) >= BOARD.acknowledged
        loaded = digest_of(fl.load(folder, like=like))
        assert loaded == (first, second)[max(counts) - 1]
        end(start(lambda: train(variant, folder, steps=2)))
        assert BOARD.digest == second
        assert os.listdir(folder) == ["step-00000002"]
        assert len(os.listdir(folder / "step-00000002")) == 2
        shutil.rmtree(folder)
        if not killed:
            return dict(seen)
        seen["kills"] += 1
        seen[f"step {max(counts)} was left"] += 1
    raise AssertionError("it never ended")


def main(root: str, what: str, *numbers: str) -> None:
    torch.set_num_threads(1)
    logging.disable()
    warnings.filterwarnings("error", category=UserWarning)  # such as: a checkpoint was skipped
    os.fsync = lambda descriptor: None  # slow, and whoever is merely killed needs it not
    task: Any = {"random": random_kills, "each": kill_at_each_call}[what]
    print(json.dumps(task(Path(root), *map(int, numbers))))


if __name__ == "__main__":
    main(*sys.argv[1:])
