"""What a user sees of an error in code of their own."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest

import fnloop as fl

ROOT = str(Path(fl.__file__).parent)
SCRIPT = """
import json, sys, traceback
import torch
from torch import nn
from torch.utils.data import DataLoader
import fnloop as fl

class Broken(torch.utils.data.Dataset):
    def __len__(self):
        return 12

    def __getitem__(self, i):
        return {}["label"]  # here

def shape(model, batch):
    return torch.cat([model(batch), torch.ones(3, 2)]).mean()  # here

def key(model, batch):
    return model(batch["image"]).mean()  # here

def right(model, batch):
    return model(batch).mean()

def chained(model, batch):
    try:
        return model(batch["image"]).mean()
    except (KeyError, IndexError) as error:
        raise ValueError("no image") from error  # here

def wrong(model, batch):
    return "text"

def callback(state, metrics):
    raise ValueError("mine")  # here

def fit(loss, data=None, compiled=False, callbacks=()):
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.adamw(1e-2)))
    step = fl.compile(step, backend="aot_eager") if compiled else step
    data = data or fl.Batches(torch.ones(12, 3), 4)
    fl.fit(step, step.init(nn.Linear(3, 1), seed=0), data, epochs=1, callbacks=callbacks)

keyed = fl.Batches({"x": torch.ones(12, 3)}, 4)
cases = {
    "shape": lambda: fit(shape),
    "shape, compiled": lambda: fit(shape, compiled=True),
    "key": lambda: fit(key, keyed),
    "key, compiled": lambda: fit(key, keyed, compiled=True),
    "chained": lambda: fit(chained, keyed),
    "callback": lambda: fit(right, callbacks=[callback]),
    "every": lambda: fit(right, callbacks=[fl.every(2, callback, name="mine")]),
    "effect": lambda: fit(right, callbacks=[fl.effect(callback)]),
    "validation": lambda: fit(right, callbacks=[fl.every(1, fl.validate(shape, keyed))]),
    "dataset": lambda: fit(right, DataLoader(Broken(), 4)),
    "worker": lambda: fit(right, DataLoader(Broken(), 4, num_workers=1)),
    "fnloop's": lambda: fit(wrong),
}
told = {}
for name, case in cases.items():
    try:
        case()
    except Exception as error:
        told[name] = traceback.format_exc()
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """The tracebacks, short and in Python's development mode."""
    file = tmp_path_factory.mktemp("script") / "train.py"
    file.write_text(SCRIPT)

    def run(*options):
        command = [sys.executable, "-W", "ignore", *options, str(file)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=240)
        return json.loads(ended.stdout)

    return run(), run("-X", "dev")


def frames(text):
    """Lines of the traceback that name a frame, those of fnloop apart."""
    lines = [line for line in text.splitlines() if line.startswith("  File ")]
    own = [line for line in lines if ROOT in line]
    # Python says of the same line that it is repeated.
    return own, [line for line, _ in itertools.groupby(line for line in lines if ROOT not in line)]


NAMES = [
    *("shape", "shape, compiled", "key", "key, compiled", "chained"),
    *("callback", "every", "effect", "validation", "dataset"),
]


@pytest.mark.parametrize("name", NAMES)
def test_of_fnloop_only_the_function_that_was_called_is_in_the_traceback(shown, name):
    short, whole = shown[0][name], shown[1][name]
    own, others = frames(short)
    assert len(own) == 1 and "in fit" in own[0], short
    assert others == frames(whole)[1]
    assert len(frames(whole)[0]) >= 4
    assert "# here" in short or name == "validation"
    left = f"{len(frames(whole)[0]) - 1} of its own frames left out above (python -X dev shows"
    *_, told, last = short.splitlines()
    assert left in told and "error.state" in last
    assert "left out" not in whole


def test_a_note_names_the_users_line_where_others_come_after_it(shown):
    assert ":16, return torch.cat([model(batch), torch.ones(3, 2)])" in shown[0]["shape, compiled"]
    assert "your line" not in shown[0]["key"]


def test_an_error_of_a_worker_has_the_workers_traceback(shown):
    short, whole = shown[0]["worker"], shown[1]["worker"]
    assert "# here" in short and "Original Traceback" in short
    assert frames(short)[1] == frames(whole)[1]
    assert len(short.splitlines()) < len(whole.splitlines()) - 8


def test_where_fnloop_raises_the_traceback_is_whole(shown):
    assert shown[0]["fnloop's"] == shown[1]["fnloop's"]
    assert "wrong" in shown[0]["fnloop's"] and len(frames(shown[0]["fnloop's"])[0]) > 4
