"""A run with one bad example in its data, and what ``fnloop replay`` finds."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
import warnings

import pytest
import torch
from safetensors.torch import load_file

RECIPE = '''
import torch
from torch import nn
from torch.nn import functional as F
import fnloop as fl


class Contrast(nn.Module):
    """Each channel with mean zero and deviation one; 0 / 0 where a channel is constant."""

    def forward(self, x):
        flat = x.flatten(2)
        return ((flat - flat.mean(2, True)) / flat.std(2, keepdim=True)).view_as(x)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 1)
        self.stem.weight.data = torch.tensor([-1.0, -0.5, 0.5, 1.0]).view(4, 1, 1, 1)
        self.blocks = nn.ModuleList([nn.Tanh(), Contrast(), nn.Conv2d(4, 4, 3)])
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(4 * 6 * 6, 3)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x) if isinstance(block, Contrast) else block(x)
        return self.head(self.drop(x.flatten(1)))


def loss(model, batch):
    return F.cross_entropy(model(batch["image"]), batch["label"])


def plateau(state, metrics):
    """A stage that changes the state: the learning rate falls at every eighth batch."""
    if int(state.cursor[2]) % 8 == 0:
        state = fl.scale(state, "adamw.lr", 0.5)
    return state, metrics


def recipe(where: int = -1, k: int = 5, wrap: str = "", folder: str = "runs/planted",
           patience: int = 0, lr: float = 1e-2, epochs: int = 3) -> fl.Recipe:
    make = torch.Generator().manual_seed(0)
    images = torch.rand(120, 1, 8, 8, generator=make)
    labels = torch.randint(0, 3, (120,), generator=make)
    if where >= 0:
        images[where] = 0.5
    data = fl.Batches({"image": images, "label": labels}, batch_size=12)
    parts = [loss, fl.grad]
    if wrap == "accumulate":
        parts += [fl.accumulate(3)]
    if wrap == "amp":
        parts += [fl.amp("bf16")]
    optimizer = fl.optim.chain(fl.optim.clip_by_norm(1.0), fl.optim.adamw(lr))
    step = fl.pipe(*parts, fl.update(optimizer), fl.ema(0.9))
    callbacks = [
        plateau,
        fl.checkpoint(folder, every=k, unit="step", keep=None),
        fl.track(fl.trackers.JSONL(f"{folder}/steps.jsonl"), every=1),
    ]
    if patience:
        callbacks.append(fl.early_stopping("loss", patience=patience, min_delta=1e9))
    return fl.Recipe(step, Net, data, callbacks, epochs=epochs, folder=folder)
'''


@pytest.fixture
def planted(tmp_path):
    file = tmp_path / "planted.py"
    file.write_text(RECIPE)
    return file


def steps_of(folder):
    """The metrics that the run itself has noted, by step."""
    rows = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
    return {row["step"]: row for row in rows if "loss" in row or "skipped" in row}


def shown(out, name):
    return next(line.split()[1] for line in out.splitlines() if line.startswith(name + " "))


@pytest.mark.lightning("T32")
@pytest.mark.parametrize("wrap", ["", "accumulate", "amp"])
def test_the_bad_example_and_the_layer_that_it_breaks_are_named(wrap, planted, tmp_path, cli):
    where = int(torch.randint(0, 120, ()))
    code, _, err = cli("fit", planted, "--where", where, "--wrap", wrap)
    assert code == 0, err
    folder = tmp_path / "runs" / "planted"
    skipped = [step for step, row in steps_of(folder).items() if row["skipped"]]
    assert len(skipped) == 3, where  # once in each epoch
    code, out, err = cli("replay", folder, "--step", skipped[1], "--save", "step.safetensors")
    assert code == 0, err
    assert f"Step {skipped[1]}, in epoch " in out and ": skipped" in out
    assert "first value that is not finite is in the output of blocks.1 (Contrast)" in out
    assert "What went into it was finite" in out
    index = int(re.search(r"Example (\d+) of the batch does it", out)[1])
    assert f"Example {index} of the batch is example {where} of the data." in out
    saved = load_file("step.safetensors")
    flat = saved["batch/image"].flatten(1)
    assert (flat.amax(1) == flat.amin(1)).nonzero().flatten().tolist() == [index]
    assert not saved["gradients/stem.weight"].isfinite().all()
    assert torch.equal(saved["before/params/stem.weight"], saved["after/params/stem.weight"])


def test_without_a_number_the_first_skipped_step_is_found(planted, tmp_path, cli):
    cli("fit", planted, "--where", 77)
    folder = tmp_path / "runs" / "planted"
    skipped = [step for step, row in steps_of(folder).items() if row["skipped"]]
    code, out, err = cli("replay", folder)
    assert code == 0, err
    assert (
        f"Step {skipped[0]}, in epoch " in out
        and ": skipped" in out
        and "blocks.1 (Contrast)" in out
    )


def test_a_run_without_a_skipped_step_has_none_to_find(planted, cli):
    cli("fit", planted)
    code, _, err = cli("replay", "runs/planted")
    assert code == 1 and "No step of this run was skipped" in err


@pytest.mark.parametrize("step", [1, 3, 5, 6, 13, 16, 24])
def test_a_replayed_step_has_the_loss_of_the_history_to_the_last_digit(step, planted, cli):
    """Before the first checkpoint, on one, right after one, and in the middle of an epoch."""
    code, _, err = cli("fit", planted)
    assert code == 0, err
    with open("runs/planted/history.csv", newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["10", "20", "30"]
    row = steps_of(planted.parent / "runs" / "planted")[step]
    code, out, err = cli("replay", "runs/planted", "--step", step)
    assert code == 0, err
    assert f"Step {step}, in epoch " in out and ": taken" in out
    assert float(shown(out, "loss")) == row["loss"]
    assert float(shown(out, "adamw.lr")) == row["adamw.lr"]
    assert ("the initial state" in err) == (step <= 5)


def test_the_state_after_the_replayed_step_is_the_checkpoint_to_the_bit(planted, cli):
    cli("fit", planted)
    for begin in ([], ["--checkpoint", "runs/planted/step-00000005"]):
        code, _, err = cli(
            "replay", "runs/planted", "--step", 15, "--save", "a.safetensors", *begin
        )
        assert code == 0, err
        assert "step-00000010" in err or begin
        ours = load_file("a.safetensors")
        theirs = load_file("runs/planted/step-00000015/state.safetensors")
        compared = [name for name in theirs if name != "cursor"]  # the loop moves it
        assert any(name.startswith("slots/ema/") for name in compared)
        for name in compared:
            assert torch.equal(ours[f"after/{name}"], theirs[name]), name


def test_a_checkpoint_is_taken_for_where_to_begin(planted, cli):
    cli("fit", planted)
    code, out, err = cli("replay", "runs/planted/step-00000005", "--step", 7)
    assert (
        code == 0 and "step-00000005" in err and "Step 7, in epoch " in out and ": taken" in out
    ), err
    late = "runs/planted/step-00000010"
    code, _, err = cli("replay", "runs/planted", "--step", 7, "--checkpoint", late)
    assert code == 2 and "needs one that is older" in err


def test_a_damaged_checkpoint_is_passed_over(planted, cli):
    cli("fit", planted)
    file = planted.parent / "runs/planted/step-00000010/state.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    row = steps_of(planted.parent / "runs" / "planted")[12]
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        code, out, err = cli("replay", "runs/planted", "--step", 12)
    assert code == 0 and "warning: " in err and "step-00000005" in err
    assert float(shown(out, "loss")) == row["loss"]


def test_a_step_is_replayed_with_the_flags_that_it_had(planted, cli):
    cli("fit", planted, "--epochs", 2)
    folder = planted.parent / "runs" / "planted"
    before = steps_of(folder)
    assert cli("resume", "runs/planted", "--epochs", 3, "--lr", 0.5)[0] == 0
    after = steps_of(folder)
    for step in (12, 18, 22, 28):
        code, out, err = cli("replay", "runs/planted", "--step", step)
        assert code == 0, err
        assert float(shown(out, "loss")) == (before if step <= 20 else after)[step]["loss"], step


def test_where_no_checkpoint_is_left_between_two_flags_that_is_told(planted, cli):
    cli("fit", planted, "--epochs", 1)
    assert cli("resume", "runs/planted", "--epochs", 3, "--lr", 0.5)[0] == 0
    for path in (planted.parent / "runs" / "planted").glob("step-*"):
        if path.name != "step-00000030":
            shutil.rmtree(path)
    code, _, err = cli("replay", "runs/planted", "--step", 12)
    assert code == 1 and "was resumed with other flags after 10 batches" in err


def test_a_step_after_the_end_of_the_run(planted, cli):
    cli("fit", planted, "--patience", 3)
    code, _, err = cli("replay", "runs/planted", "--step", 25)
    assert code == 2 and re.search(r"This run has \d+ batches \(stopped\)", err)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runs/planted", "--step", "0"], "counted from 1"),
        (["runs/none", "--step", "1"], "There is no run"),
        (["runs/planted", "--step", "1", "--save", "a.pt"], "expected a file called .safetensors"),
        (["runs/planted", "--step", "x"], "--step"),
    ],
)
def test_wrong_arguments(arguments, message, planted, cli):
    code, _, err = cli("replay", *arguments)
    assert code == 2 and message in err


def test_a_long_way_shows_how_far_it_is(planted, cli):
    cli("fit", planted)
    err = cli("replay", "runs/planted", "--step", 5)[2]
    assert re.search(r"replayed .* 4 batches in", err)
    assert "replayed" not in cli("replay", "runs/planted", "--step", 6)[2]


LOADERS = {
    "a DataLoader": """torch.utils.data.DataLoader(
        [{"image": i, "label": l} for i, l in zip(images, labels)], batch_size=12, shuffle=True)""",
    "a function of the epoch": """lambda epoch: [
        {"image": images[i : i + 12] * (epoch + 1), "label": labels[i : i + 12]}
        for i in range(0, 120, 12)]""",
    "an iterator": """iter([
        {"image": images[j : j + 12] * (1 + i / 360), "label": labels[j : j + 12]}
        for i in range(0, 360, 12) for j in [i % 120]])""",
}


@pytest.mark.parametrize("kind", LOADERS)
def test_the_batch_is_found_again_in_other_kinds_of_data(kind, planted, tmp_path, cli):
    text = planted.read_text()
    batches = 'fl.Batches({"image": images, "label": labels}, batch_size=12)'
    assert batches in text
    planted.write_text(text.replace(batches, LOADERS[kind]))
    if kind == "an iterator":
        planted.write_text(planted.read_text().replace("epochs=epochs", "steps=30"))
    code, _, err = cli("fit", planted)
    assert code == 0, err
    rows = steps_of(tmp_path / "runs" / "planted")
    for step in (3, 13, 16):
        code, out, err = cli("replay", "runs/planted", "--step", step)
        assert code == 0, err
        assert float(shown(out, "loss")) == rows[step]["loss"], step
        assert ("the initial state" in err) == (step == 3 or kind == "an iterator")


def test_as_a_process_of_its_own(planted, cli):
    cli("fit", planted, "--where", 40)
    folder = planted.parent / "runs" / "planted"
    step = next(step for step, row in steps_of(folder).items() if row["skipped"])
    command = [sys.executable, "-m", "fnloop", "replay", str(folder), "--step", str(step)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=planted.parent)
    assert done.returncode == 0, done.stderr
    assert "the output of blocks.1 (Contrast)" in done.stdout
