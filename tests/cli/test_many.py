"""``--nproc``: a recipe trained in two processes, and what they print."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import fnloop as fl
from fnloop.cli.app import main
from fnloop.cli.many import processes_in
from fnloop.cli.messages import Problem
from tests.distributed.launch import ROOT

RECIPE = """
import os
import warnings

import torch
import fnloop as fl


def loss(model, batch):
    x, y = batch
    return (model(x) - y).square().mean()


def recipe(folder: str = "run", trouble: str = "") -> fl.Recipe:
    mesh = fl.mesh(timeout=60)
    step = fl.shard(fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1))), mesh)
    x = torch.linspace(-1, 1, 32)[:, None]
    data = fl.Data(fl.Batches((x, 2 * x), 8), validate=fl.Batches((x, 2 * x), 8, shuffle=False))

    def callback(state, metrics):
        if int(state.cursor[2]) == 2:
            warnings.warn("this is odd")
        if mesh.rank == 1 and int(state.cursor[2]) == 6:
            if trouble == "fails":
                raise ValueError("no more")
            if trouble == "is killed":
                os.kill(os.getpid(), 9)
        return state, metrics

    callbacks = [callback, fl.every(1, fl.validate(loss, data), unit="epoch"), fl.progress()]
    callbacks.append(fl.checkpoint(folder))
    return fl.Recipe(step, lambda: torch.nn.Linear(1, 1), data, callbacks, epochs=3, folder=folder)
"""


@pytest.fixture
def recipe(tmp_path):
    file = tmp_path / "line.py"
    file.write_text(RECIPE)
    return file


def fnloop(recipe, *arguments):
    """Run the command line beside the recipe."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "fnloop", *arguments],
        cwd=recipe.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )


@pytest.mark.lightning("T3", "S9", "I8", "X7")
def test_two_processes_train_one_run_and_print_once(recipe):
    done = fnloop(recipe, "fit", "line.py", "--nproc", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("completed") == 1
    assert done.stdout.count("last state") == 1
    for once in ("recipe ", "this is odd", "12 batches in"):
        assert done.stderr.count(once) == 1, done.stderr
    run = recipe.parent / "run"
    assert fl.latest(run).name == "step-00000012"
    again = fnloop(recipe, "fit", "line.py", "--nproc=2")
    assert again.returncode == 2 or "which is not overwritten" in again.stderr
    assert again.stderr.count("which is not overwritten") == 1


def test_an_error_on_one_rank_ends_both_with_its_name(recipe):
    done = fnloop(recipe, "fit", "line.py", "--nproc", "2", "--trouble", "fails")
    assert done.returncode == 1
    assert "fnloop fit: rank 1: ValueError: no more" in done.stderr
    assert "Rank 1 of 2 has failed, so all ranks end. ValueError: no more" in done.stderr
    assert "fnloop resume run" in done.stderr


def test_a_rank_that_is_killed_is_named(recipe):
    done = fnloop(recipe, "fit", "line.py", "--nproc", "2", "--trouble", "is killed")
    assert done.returncode == 137
    assert "Rank 1 of 2 is gone" in done.stderr
    assert "fnloop fit: rank 1 was ended by SIGKILL" in done.stderr


@pytest.mark.parametrize("number", ["0", "two", "-1", ""])
def test_a_number_of_processes(number):
    with pytest.raises(Problem, match="--nproc takes a number of processes"):
        processes_in(["a.py", "--nproc", number])


def test_processes_within_processes(recipe, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["fit", str(recipe), "--nproc", "2"]) == 2
    assert "torchrun has started already" in capsys.readouterr().err


def test_many_processes_need_a_sharded_step(recipe, monkeypatch, capsys):
    recipe.write_text(
        RECIPE.replace("fl.mesh(timeout=60)", "None")
        .replace("fl.shard(", "(")
        .replace("), mesh)", "))")
        .replace("mesh.rank == 1", "False")
    )
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["fit", str(recipe), "--folder", str(recipe.parent / "run")]) == 1
    assert "step=fl.shard(step, fl.mesh())" in capsys.readouterr().err
