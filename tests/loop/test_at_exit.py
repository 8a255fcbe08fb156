"""A loop over `fl.run` that is open when the process ends is closed, in peace."""

import json
import subprocess
import sys

import pytest

import fnloop as fl

BEGIN = """
import builtins, os, sys
import torch
from torch import nn
import fnloop as fl

def loss(model, batch):
    return model(batch[0]).square().mean()

def begin(data):
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.adamw(1e-2)))
    callbacks = [
        fl.checkpoint("run", every=2, unit="step", background=True),
        fl.track(fl.trackers.JSONL("a.jsonl"), every=1),
    ]
    loop = fl.run(step, step.init(nn.Linear(3, 1)), data, steps=9, callbacks=callbacks)
    for _ in range(3):
        next(loop)
    return loop

batches = fl.Batches((torch.ones(12, 3),), 4)
"""
ENDS = {
    "of a module": "loop = begin(fl.data.prefetch(batches))",
    "in a cycle": "class Holder: pass\nholder = Holder()\nholder.it = holder, begin(batches)",
    "of a library": "nn.loop = begin(fl.data.prefetch(batches))",
    "with workers": (
        "pairs = torch.utils.data.TensorDataset(torch.ones(12, 3))\n"
        "loop = begin(torch.utils.data.DataLoader(pairs, 4, num_workers=1))"
    ),
    "sys.exit": "loop = begin(batches)\nsys.exit()",
}


def end(tmp_path, script):
    command = [sys.executable, "-c", BEGIN + script]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("script", ENDS.values(), ids=ENDS.keys())
def test_a_loop_that_is_open_at_the_end_of_the_process_is_closed(tmp_path, script):
    ended = end(tmp_path, script)
    assert (ended.returncode, ended.stderr) == (0, "")
    newest = fl.latest(tmp_path / "run")
    assert newest.name == "step-00000003"
    assert fl.store.read_manifest(newest)["status"] == "stopped"
    assert not (tmp_path / "run" / ".lock").exists()
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines[1:]] == [1, 2, 3]


def test_a_loop_that_was_closed_or_that_a_fork_has_copied_is_left_alone(tmp_path):
    ended = end(
        tmp_path,
        "loop = begin(batches)\n"
        "import warnings\n"
        "warnings.simplefilter('ignore', DeprecationWarning)  # since Python 3.12, of threads\n"
        "if not os.fork():\n"
        "    nn.kept = loop  # so that nothing but the end could close it\n"
        "    import atexit\n"
        "    atexit._run_exitfuncs()\n"
        "    os._exit(0)\n"
        "os.wait()\n"
        "import time\n"
        "while fl.latest('run') is None:\n"
        "    time.sleep(0.01)  # the save of step 2 is written in the background\n"
        "print(fl.latest('run').name)\n"
        "loop.close()\n"
        "print(fl.latest('run').name)\n",
    )
    assert (ended.stdout, ended.stderr) == ("step-00000002\nstep-00000003\n", "")
