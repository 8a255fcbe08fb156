"""Two ranks of which one is killed; `test_killed_ranks.py` starts this file as a script.

torch is imported once: each rank is a fork, and the ranks of a pair meet by a file.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed import FileStore

import fnloop as fl
from fnloop.distributed import whereabouts
from fnloop.store import patience
from fnloop.store.commit import sweep
from fnloop.store.files import Disk
from fnloop.store.folders import listing
from tests.distributed.store import bits, data, pipeline, step_for
from tests.store.faulty import Faulty

DISK = Disk()
STEPS = 4
ENDED, RAISED = 0, 7
"""How a rank ends that is not killed: what it did succeeded, or raised."""


class Deadly(Faulty):
    """A disk at a call of which the process is killed."""

    def due(self, call, path):
        if self.at == len(self.calls):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().due(call, path)


def pair(place, work, victim=None, at=None):
    """Run `work(mesh, files)` on two ranks, one of which is killed at a call; how they ended."""
    meeting = place / f"meeting-{time.monotonic_ns()}"
    processes = [_begun(meeting, rank, work, at if rank == victim else None) for rank in (0, 1)]
    until = time.monotonic() + 60
    ends = {}
    while len(ends) < 2:
        for process in [process for process in processes if process not in ends]:
            pid, status = os.waitpid(process, os.WNOHANG)
            if pid:
                ends[pid] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > until:
                os.kill(process, signal.SIGKILL)
        time.sleep(0.005)
    meeting.unlink(missing_ok=True)
    return [ends[process] for process in processes]


def _begun(meeting, rank, work, at):
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        store = FileStore(str(meeting), 2)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
        files = Deadly(DISK, at)
        try:
            work(fl.mesh(), files)
            code = ENDED
        except (RuntimeError, OSError):
            code = RAISED
        Path(f"{meeting}.calls-{rank}").write_text(str(len(files.calls)))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def calls_of(place, work):
    """How many calls to the disk each rank makes."""
    for old in place.glob("*.calls-*"):
        old.unlink()
    assert pair(place, work) == [ENDED, ENDED]
    return [int(next(place.glob(f"*.calls-{rank}")).read_text()) for rank in (0, 1)]


def whole(folder):
    """The newest state in a folder, by path."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is damaged
        return bits(fl.load(folder, like=pipeline().init(small, seed=9)))


def small():
    """A model of few values."""
    from tests.distributed.store import Net

    return Net(7)


def begun(mesh, plan, scale=1.0, count=0):
    """A divided state, made without training."""
    state = step_for(mesh, plan).init(small, seed=5)
    cursor = torch.tensor([0, 0, count])
    return state.replace(params=state.params.scale(scale), cursor=cursor)


def saves(place, stride, plan):
    """Kill a rank at each call of a save, of a new checkpoint and of one in the place of another.

    What is there is the old or the new one, whole; the other rank has an error, or the checkpoint
    is there; and what is left is deleted by the next run.
    """
    kills, kept = 0, []
    for count in (1, 2):
        before, folder = place / f"before-{count}", place / "run"
        old = lambda mesh, files: fl.save(begun(mesh, plan, 1.0, 1), before)  # noqa: B023, E731
        new = lambda mesh, files: fl.save(  # noqa: E731
            begun(mesh, plan, 2.0, count),  # noqa: B023
            folder,  # noqa: B023
            files=files,
        )
        assert pair(place, old) == [ENDED, ENDED]
        shutil.copytree(before, folder)
        calls = calls_of(place, new)
        states = [whole(before), whole(folder)]
        for victim in (0, 1):
            for at in range(0, calls[victim], stride):
                shutil.rmtree(folder)
                shutil.copytree(before, folder)
                ends = pair(place, new, victim, at)
                assert ends[victim] == -signal.SIGKILL, (ends, victim, at)
                found = whole(folder)
                assert found in states, (victim, at)
                kept.append(states.index(found))
                other = ends[1 - victim]
                assert other in (ENDED, RAISED), (ends, victim, at)
                assert other == RAISED or found == states[1]
                if victim == 1:
                    assert sorted(os.listdir(folder)) == [
                        path.name for path in sorted(listing(folder).values())
                    ]
                sweep(folder, DISK)
                assert whole(folder) == found
                assert all(name.startswith("step-") for name in os.listdir(folder))
                kills += 1
        shutil.rmtree(folder)
    assert set(kept) == {0, 1}
    return kills


def runs(place, stride, plan):
    """Kill a rank at each call of a run that resumes, saves, deletes and closes; and go on."""
    folder = place / "run"

    def train(mesh, files, steps=STEPS):
        step = step_for(mesh, plan)
        effect = fl.checkpoint(folder, keep=1, every=1, unit="step", files=files)
        state = step.init(small, seed=5)
        fl.fit(step, state, data(), steps=steps, callbacks=[effect], resume=folder)

    begin = lambda mesh, files: train(mesh, DISK, 1)  # noqa: E731
    assert pair(place, begin) == [ENDED, ENDED]
    before, kills = place / "begun", 0
    shutil.copytree(folder, before)
    calls = calls_of(place, train)
    expected = whole(folder)
    for victim in (0, 1):
        for at in range(victim, calls[victim], stride):
            shutil.rmtree(folder)
            shutil.copytree(before, folder)
            ends = pair(place, train, victim, at)
            assert ends[victim] == -signal.SIGKILL, (ends, victim, at)
            assert ends[1 - victim] in (ENDED, RAISED), (ends, victim, at)
            whole(folder)
            ends = pair(place, train)
            assert ends == [ENDED, ENDED], (ends, victim, at)
            assert whole(folder) == expected, (victim, at)
            names = {name for name in os.listdir(folder) if name != "pages"}
            assert names == {f"step-{STEPS:08d}"}, names
            kills += 1
    return kills


if __name__ == "__main__":
    torch.set_num_threads(1)
    whereabouts._PATIENCE = 0.2  # nobody that is killed says so later
    patience.DELAYS = (0.0, 0.0)
    os.fsync = lambda descriptor: None  # the power stays
    what, where, every, plan = sys.argv[1:]
    kills = {"saves": saves, "runs": runs}[what](Path(where), int(every), plan)
    print(json.dumps({"kills": kills}))
