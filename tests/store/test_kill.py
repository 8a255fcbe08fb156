"""Processes that are killed while they save: what was saved before is always found and whole."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

SCRIPT = '''
import os, random, shutil, signal, sys, time
import torch
from fnloop.effects import Run
from fnloop.store import checkpoint, latest, load, read_manifest, save
from fnloop.values import Cursor, start

torch.set_num_threads(1)
root = sys.argv[1]
begin = start(torch.nn.Linear(50, 50), seed=0)

def state_at(count, version=0):
    params = {name: torch.full_like(p, 2.0 * count + version) for name, p in begin.params.items()}
    return begin.replace(params=params, cursor=Cursor(0, count, count).tensor())

def verified(folder):
    """The count of the latest checkpoint, each value of which must be its own."""
    if latest(folder) is None:
        return 0
    state = load(folder, like=begin)
    count = Cursor.of(state.cursor).count
    values = {v for p in state.params.values() for v in p.unique().tolist()}
    assert values in ({2.0 * count}, {2.0 * count + 1}), (count, values)
    return count

def acknowledge(count):
    os.pwrite(log, b"%08d" % count, 0)

def train(folder, steps):
    count = verified(folder)
    effect = checkpoint(folder, keep=1, every=1, unit="step")
    run = Run(step=None, state=state_at(count), effects=[effect])
    if count:
        effect.recall(read_manifest(latest(folder))["memos"]["checkpoint"])
    effect.open(run)
    for count in range(count + 1, count + 1 + steps):
        effect(state_at(count), {})
        acknowledge(count)
        save(state_at(count, version=1), folder, memos=run.memos())

def child(work):
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException as error:
            print("child failed", repr(error), flush=True)
            os._exit(1)
        os._exit(0)
    return pid

def check(folder):
    found, acknowledged = verified(folder), int(os.pread(log, 8, 0))
    assert found >= acknowledged, (found, acknowledged)
    visible = [name for name in os.listdir(folder) if not name.startswith(".")]
    assert len(visible) <= 2, visible

log = os.open(os.path.join(root, "log"), os.O_RDWR | os.O_CREAT)

def random_kills(times):
    folder = os.path.join(root, "random")
    os.mkdir(folder)
    acknowledge(0)
    generator = random.Random(0)
    for _ in range(times):
        pid = child(lambda: train(folder, 10**6))
        time.sleep(generator.uniform(0.01, 0.1))
        os.kill(pid, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        check(folder)
    print("random kills", times, "reached", verified(folder))

CALLS = ["mkdir", "open", "rename", "replace", "fsync", "unlink", "rmdir"]

def kill_at_each_call():
    """Die just before the n-th call that touches the file system, for every n."""
    os.fsync = lambda descriptor: None  # slow, and without effect on who is merely killed
    for n in range(10**6):
        folder = os.path.join(root, "call", str(n))
        os.makedirs(folder)
        acknowledge(0)
        calls = [0]

        def die_at(original):
            def call(*arguments, **keywords):
                calls[0] += 1
                if calls[0] > n:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(*arguments, **keywords)
            return call

        def work():
            for name in CALLS:
                setattr(os, name, die_at(getattr(os, name)))
            train(folder, 2)

        status = os.waitpid(child(work), 0)[1]
        check(folder)
        if not os.WIFSIGNALED(status):
            assert os.WEXITSTATUS(status) == 0
            break
        assert os.WEXITSTATUS(os.waitpid(child(lambda: train(folder, 0)), 0)[1]) == 0
        left = [name for name in os.listdir(folder) if name.startswith(".")]
        assert not left, left
        shutil.rmtree(folder)
    print("calls", n)

random_kills(10)
kill_at_each_call()
'''


def test_what_was_saved_survives_a_kill_at_any_time(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())
    assert int(lines["random kills 10 reached"]) > 0
    assert int(lines["calls"]) > 40, "kills at so many different calls"
