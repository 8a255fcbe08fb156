from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from fnloop.cli.app import main
from fnloop.store.folders import latest
from fnloop.store.manifest import read_manifest


def _loss(weights, part):
    """The mean squared error on a part of the data, by hand."""
    import torch

    x = torch.randn(240, 2, generator=torch.Generator().manual_seed(0))[part]
    y = x @ torch.tensor([[1.0], [-2.0]]) + 0.5
    w, b = weights["slots/ema/weight"], weights["slots/ema/bias"]
    return (x @ w.T + b - y).square().mean().item()


PARTS = {"train": slice(0, 160), "val": slice(160, 200), "test": slice(200, 240)}


def test_fit_trains_and_prints_the_results_of_the_best_checkpoint(recipe, cli, numbers):
    code, out, _ = cli("fit", recipe)
    assert code == 0
    assert "completed" in out and "best checkpoint" in out
    weights = load_file("runs/line/step-00000015/state.safetensors")
    found = numbers(out)
    assert set(found) == set(PARTS)
    for part, rows in PARTS.items():
        assert found[part]["loss"] == pytest.approx(_loss(weights, rows), rel=1e-3)


def test_fit_says_at_the_start_what_it_trains(recipe, cli):
    _, _, err = cli("fit", recipe, "--lr", "0.01")
    assert "line.py" in err and "lr=0.01" in err
    assert "Linear: 3 parameters, on cpu" in err
    assert "train 160 examples in 5 batches, val 40 examples in 3 batches" in err
    assert "runs/line (new)" in err


def test_fit_leaves_history_curves_and_configuration(recipe, cli, curves):
    _, out, _ = cli("fit", recipe, "--lr", "0.02")
    with open("runs/line/history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[-1]["epoch"] == "3" and rows[-1]["step"] == "15"
    assert float(rows[-1]["val/loss"]) < float(rows[0]["val/loss"])
    with open("runs/line/curves.png", "rb") as file:
        assert file.read(8) == b"\x89PNG\r\n\x1a\n"
    assert curves == [
        "loss"
    ]  # of training and validation; not those that stay the same, such as sgd.lr
    saved = yaml.safe_load(Path("runs/line/config.yaml").read_text())
    assert saved["lr"] == 0.02 and saved["note"] is None and saved["epochs"] == 3
    for file in ("history.csv", "curves.png"):
        assert f"runs/line/{file}" in out


@pytest.mark.lightning("C21", "H11")
def test_the_configuration_is_in_the_checkpoints(trained):
    config = read_manifest(latest(trained))["config"]
    assert config["lr"] == 0.05 and config["sgd.lr"] == 0.05 and config["note"] is None


def test_without_matplotlib_one_line_says_so(recipe, cli, curves, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    code, out, _ = cli("fit", recipe)
    assert code == 0
    [line] = [line for line in out.splitlines() if line.startswith("curves")]
    assert "pip install fnloop[plot]" in line


def test_the_reason_of_an_early_stop_is_told(recipe, cli):
    code, out, _ = cli("fit", recipe, "--early", "--epochs", "9")
    assert code == 0
    assert "stopped: val/loss has not improved" in out


@pytest.mark.parametrize("flag", [True, False])
def test_resuming_after_an_early_stop_says_how_to_go_on(flag, recipe, edited, cli):
    if flag:
        edited("early: bool = False", "early: bool = False, patience: int = 1")
        edited("patience=1", "patience=patience")
    cli("fit", recipe, "--early", "--epochs", "9")
    more = " --patience 2" if flag else " (with more patience in the recipe)"
    for code, text in ((cli("fit", recipe)[0], cli("fit", recipe, "--early")[2]),):
        assert code == 2 and "to train longer:" in text and f"resume runs/line{more}" in text
    code, out, _ = cli("resume", "runs/line")
    assert code == 0 and f"go on    fnloop resume runs/line{more}" in out
    if flag:
        code, out, err = cli("resume", "runs/line", "--patience", "2")
        assert code == 0 and "step-00000015" in out, err


@pytest.mark.lightning("C21", "I6")
def test_the_saved_configuration_makes_the_same_run(recipe, cli):
    cli("fit", recipe, "--lr", "0.02", "--batch-size", "40")
    code, _, err = cli("fit", "--config", "runs/line/config.yaml", "--folder", "runs/again")
    assert code == 0, err
    first, second = (latest(f"runs/{name}") for name in ("line", "again"))
    assert (first / "state.safetensors").read_bytes() == (second / "state.safetensors").read_bytes()


@pytest.mark.lightning("I2")
def test_print_config_trains_nothing_and_is_a_valid_config(recipe, cli, tmp_path):
    code, out, _ = cli("fit", recipe, "--lr", "0.02", "--print-config")
    assert code == 0 and not os.path.exists("runs")
    assert yaml.safe_load(out) == {
        "recipe": "line.py",
        "lr": 0.02,
        "batch_size": 32,
        "epochs": 3,
        "folder": "runs/line",
        "early": False,
        "note": None,
    }
    (tmp_path / "mine.yaml").write_text(out)
    assert cli("fit", "--config", "mine.yaml", "--print-config")[1] == out


def test_a_second_fit_is_refused_with_the_ways_out(trained, recipe, cli):
    before = sorted(trained.rglob("*"))
    code, _, err = cli("fit", recipe, "--lr", "0.02")
    assert code == 2
    assert "runs/line has a run already (completed, epoch 3, 15 batches)" in err
    assert "to train longer:" in err and "fnloop resume runs/line --epochs 6" in err
    assert f"fnloop fit {recipe} --lr 0.02 --resume --epochs 6" in err
    assert f"fnloop fit {recipe} --lr 0.02 --folder runs/line-2" in err
    assert sorted(trained.rglob("*")) == before
    command = ["fit", str(recipe), "--lr", "0.02", "--folder", "runs/line-2"]
    assert cli(*command)[0] == 0


def test_what_it_says_is_not_said_twice(trained, recipe, edited, cli, caplog):
    _, _, err = cli("fit", recipe, "--folder=runs/line", "--lr", "0.02")
    assert f"fnloop fit {recipe} --lr 0.02 --folder runs/line-2\n" in err
    code, _, err = cli("resume", "runs/line", "--lr", "0.02")
    assert code == 0 and (err + caplog.text).count("0.02\n") == 1
    assert "what has changed:\n  sgd.lr: 0.05 -> 0.02\n" in caplog.text
    edited("epochs=epochs", "epochs=3")
    edited("epochs: int = 3, ", "")
    (trained / "config.yaml").write_text("recipe: ../../line.py\n")
    _, _, err = cli("fit", recipe)
    assert err.count("with more epochs in the recipe") == 1


def test_a_checkpoint_that_does_not_fit(trained, recipe, edited, cli):
    edited("torch.nn.Linear(2, 1)", "torch.nn.Linear(2, batch_size // 32)")
    code, _, err = cli("resume", "runs/line", "--batch-size", "64", "--epochs", "4")
    assert code == 1 and "prune" not in err and "the last good state" not in err
    assert "does not fit the recipe:" in err and "checkpoint  the recipe\n" in err
    assert "--batch_size was 32, and is 64.\n" in err
    assert "to go on with the run:  fnloop resume runs/line, with its own flags\n" in err
    again = "line.py --config runs/line/config.yaml --batch-size 64 --epochs 4 --folder runs/line-2"
    assert f"to train the new one:   fnloop fit {again}" in err
    assert cli("fit", *again.split())[0] == 0
    edited("batch_size // 32", "2")
    code, _, err = cli("resume", "runs/line")
    assert "No flag is another than then: the recipe is, or what it imports." in err


def test_start_over_is_one_of_them(trained, recipe, cli):
    command = ["fit", str(recipe), "--lr", "0.02", "--overwrite"]
    assert f"fnloop {' '.join(command)}," in cli(*command[:-1])[2]
    code, _, err = cli(*command, "--resume")
    assert code == 2 and "choose one" in err
    before = read_manifest(latest(trained))["run"]
    assert cli(*command, "--epochs", "1")[0] == 0
    assert latest(trained).name == "step-00000005"
    assert read_manifest(latest(trained))["run"] != before
    assert yaml.safe_load((trained / "config.yaml").read_text())["lr"] == 0.02


def test_fit_resume_on_a_new_folder_starts_there(recipe, cli):
    assert cli("fit", recipe, "--resume")[0] == 0
    assert latest("runs/line").name == "step-00000015"


def _bits(folder):
    weights = load_file(latest(folder) / "state.safetensors")
    return {name: tensor for name, tensor in weights.items() if name.startswith("params/")}


@pytest.mark.lightning("I4")
@pytest.mark.parametrize("command", ["resume", "fit"])
def test_resume_goes_on_to_the_bit_with_the_flags_of_the_run(command, recipe, cli, caplog):
    cli("fit", recipe, "--lr", "0.02", "--folder", "runs/whole", "--epochs", "6")
    cli("fit", recipe, "--lr", "0.02", "--epochs", "3")
    where = ["resume", "runs/line"] if command == "resume" else ["fit", recipe, "--resume"]
    code, _, err = cli(*where, "--epochs", "6")
    assert code == 0, err
    assert caplog.text.endswith("what has changed:\n  epochs: 3 -> 6\n"), caplog.text
    whole, parts = _bits("runs/whole"), _bits("runs/line")
    assert whole and all((whole[name] == parts[name]).all() for name in whole)
    assert yaml.safe_load(Path("runs/line/config.yaml").read_text())["epochs"] == 6


def test_resume_of_a_finished_run_trains_nothing_and_shows_its_results(trained, cli, numbers):
    before = (latest(trained) / "state.safetensors").read_bytes()
    code, out, _ = cli("resume", trained)
    assert code == 0 and "test" in numbers(out)
    assert "go on    fnloop resume runs/line --epochs 6" in out
    assert (latest(trained) / "state.safetensors").read_bytes() == before
    with open(trained / "history.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 3


def test_a_run_that_was_moved_resumes_in_its_new_place(trained, cli):
    os.rename("runs", "moved")
    code, _, err = cli("resume", "moved/line", "--recipe", "line.py", "--epochs", "4")
    assert code == 0, err
    assert latest("moved/line").name == "step-00000020" and not os.path.exists("runs")


def test_resume_from_elsewhere_without_a_folder_flag_is_refused(edited, cli, monkeypatch):
    edited('folder: str = "runs/line",\n', "\n")
    recipe = edited("make = torch", 'folder = "runs/line"\n    make = torch')
    assert cli("fit", recipe)[0] == 0
    os.mkdir("elsewhere")
    monkeypatch.chdir("elsewhere")
    code, _, err = cli("resume", "../runs/line")
    assert code == 1
    assert "describes a run in runs/line, not in ../runs/line" in err


def test_the_folder_defaults_to_that_of_the_checkpoints(edited, cli):
    recipe = edited(", folder=folder)", ")")
    assert cli("fit", recipe)[0] == 0
    assert os.path.exists("runs/line/config.yaml")


def test_without_a_folder_nothing_is_written(edited, cli, tmp_path, numbers):
    edited(", folder=folder)", ")")
    recipe = edited('fl.checkpoint(folder, monitor="val/loss"),', "")
    code, out, err = cli("fit", recipe)
    assert code == 0
    assert "nothing is saved" in err and "last state" in out and "test" in numbers(out)
    assert [path.name for path in tmp_path.iterdir()] == ["line.py"]


def test_a_read_only_run_folder_is_told(recipe, cli):
    os.mkdir("runs")
    Path("runs/line").touch()  # root may write anywhere, but not below a file
    code, _, err = cli("fit", recipe)
    assert code == 1
    assert "runs/line (Not a directory)" in err and "read-only" in err
    assert "Traceback" not in err


def test_an_error_while_training_shows_the_users_line_and_how_to_go_on(edited, cli):
    recipe = edited(
        "    x, y = batch\n",
        "    x, y = batch\n"
        "    if torch.is_grad_enabled() and os.path.exists('runs/line/step-00000005'):\n"
        "        x = x[:, :1]\n",
    )
    code, _, err = cli("fit", recipe)
    assert code == 1
    assert "RuntimeError: mat1 and mat2 shapes cannot be multiplied" in err
    assert "line.py:" in err and "return (model(x) - y).square().mean()" in err
    assert "fnloop resume runs/line" in err
    assert "Traceback" not in err
    assert os.path.exists("runs/line/history.csv")


def test_a_recipe_without_an_end_is_told(edited, cli):
    code, _, err = cli("fit", edited("epochs=epochs, ", ""))
    assert code == 1 and "epochs=" in err and "steps=" in err


@pytest.mark.parametrize(
    ("number", "code", "conclusion"), [("SIGINT", 130, True), ("SIGTERM", 143, False)]
)
def test_a_signal_ends_in_good_order(edited, tmp_path, number, code, conclusion):
    """In a process of its own: the signal, the exit code and the output are the real ones."""
    recipe = edited("    x, y = batch\n", "    import time; time.sleep(0.01)\n    x, y = batch\n")
    command = [sys.executable, "-m", "fnloop", "fit", str(recipe), "--epochs", "100000"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 60
    while not latest("runs/line") and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(getattr(signal, number))
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code, err.decode()
    assert b"\ninterrupted" in out and b"fnloop resume runs/line" in out
    assert (b"best checkpoint" in out) == conclusion and b"Traceback" not in err
    manifest = read_manifest(latest("runs/line"))
    assert manifest["status"] == "interrupted"
    stopped = manifest["cursor"]["count"]

    # The next job goes on from there, to the bit: 40 batches are as many as a run without a stop.
    assert main(["resume", "runs/line", "--epochs", str(stopped // 5 + 2)]) == 0
    whole = ["fit", str(recipe), "--epochs", str(stopped // 5 + 2)]
    whole += ["--folder", "runs/whole"]
    assert main(whole) == 0
    resumed, never = latest("runs/line"), latest("runs/whole")
    assert resumed.name == never.name
    assert read_manifest(resumed)["leaves"] == read_manifest(never)["leaves"]


def test_a_time_limit_may_be_the_only_end(edited, cli):
    recipe = edited("epochs=epochs, ", "seconds=1.0, ")
    code, out, err = cli("fit", recipe)
    assert code == 0 and "stopped: the time limit of 1 seconds" in out, err
    assert latest("runs/line") is not None


def test_a_resume_that_fails_leaves_the_configuration_alone(edited, cli):
    recipe = edited("torch.nn.Linear(2, 1)", "torch.nn.Linear(2, 2 if early else 1)")
    assert cli("fit", recipe, "--epochs", 1)[0] == 0
    before = Path("runs/line/config.yaml").read_text()
    code, _, err = cli("resume", "runs/line", "--early", "true", "--epochs", 2)
    assert code == 1 and "does not fit" in err
    assert Path("runs/line/config.yaml").read_text() == before


def test_with_fewer_epochs_than_were_done_nothing_is_done(trained, cli, caplog):
    before = Path("runs/line/config.yaml").read_text()
    code, _, _ = cli("resume", "runs/line", "--epochs", 1)
    assert code == 0 and "nothing is left to do: 3 epochs and 15 batches are done" in caplog.text
    assert Path("runs/line/config.yaml").read_text() == before


def test_a_last_state_that_is_not_on_the_disk_is_no_success(edited, cli):
    recipe = edited(
        "    callbacks = [\n",
        "    class Full(fl.store.files.Disk):\n"
        "        def free(self, folder):\n"
        "            return 0\n"
        "    callbacks = [\n",
    )
    recipe = edited(
        'fl.checkpoint(folder, monitor="val/loss")', "fl.checkpoint(folder, files=Full())"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        code, _, err = cli("fit", recipe)
    assert code == 1 and "disk has 0 B left" in err and "The last state was not saved" in err
