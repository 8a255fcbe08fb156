from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from fnloop.effects.effect import Run
from fnloop.trackers.aim import Aim
from fnloop.trackers.track import track
from fnloop.values.cursor import Cursor
from fnloop.values.metrics import Last, Mean
from fnloop.values.start import start

pytest.importorskip("aim.sdk.index_manager")


def drive(
    effect: track, counts: range, config: dict[str, Any] | None = None, status: str = "completed"
) -> None:
    state = start(torch.nn.Linear(2, 1))
    before = counts.start - 1
    state = state.replace(cursor=Cursor(0, before, before).tensor())
    effect.open(Run(step=None, state=state, config=config or {}))
    for count in counts:
        metrics: dict[str, Any] = {"loss": Mean(torch.tensor(float(count)), 1), "lr": Last(0.1)}
        if count % 4 == 0:
            metrics["val/loss"] = Mean(10.0 * count, 1)
        effect(state.replace(cursor=Cursor(0, count, count).tensor()), metrics)
    effect.close(status)


def points(metric: Any) -> list[tuple[int, float]]:
    steps, (values, *_) = metric.data.items_list()
    return sorted(zip(steps, values, strict=True))


def read(folder: Path) -> dict[str, dict[tuple[str, str], list[tuple[int, float]]]]:
    """Every run's sequences by name and subset, sorted by step."""
    from aim import Repo

    runs: dict[str, dict[tuple[str, str], list[tuple[int, float]]]] = {}
    for run in Repo(str(folder)).iter_runs():
        runs[run.hash] = {
            (metric.name, metric.context.to_dict()["subset"]): points(metric)
            for metric in run.metrics()
        }
    return runs


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from aim import Repo

    folder = tmp_path_factory.mktemp("template")
    Repo.from_path(str(folder), init=True)
    return folder


@pytest.fixture
def repository(template: Path, tmp_path: Path) -> Path:
    """An empty repository; making one takes seconds."""
    return Path(shutil.copytree(template, tmp_path / "repository"))


def test_a_run_two_runs_and_a_resumed_run_are_read_back(repository: Path) -> None:
    from aim import Repo

    config = {
        "lr": 0.1,
        "dtype": torch.bfloat16,
        "path": repository,
        "loss": torch.nn.functional.mse_loss,
        "weights": torch.ones(3, 2),
        "scale": torch.tensor(2.0),
        "nested": {"betas": (0.9, 0.999), "none": None, "nan": math.nan},
    }
    first = track(Aim(repository, experiment="trial", name="first", tags=["a"]), every=2)
    drive(first, range(1, 6), config)
    second = track(Aim(repository), every=5)
    drive(second, range(1, 6))
    memo = json.loads(json.dumps(first.memo()))

    resumed = track(Aim(repository), every=2)
    resumed.recall(memo)
    drive(resumed, range(6, 9), config, status="interrupted")

    assert resumed.memo()["runs"] == memo["runs"]
    a, b = memo["runs"][0]["run"], second.memo()["runs"][0]["run"]
    runs = read(repository)
    assert set(runs) == {a, b}
    assert runs[a]["loss", "train"] == [(2, 1.5), (4, 3.5), (5, 5.0), (6, 5.5), (8, 7.5)]
    assert runs[a]["loss", "val"] == [(4, 40.0), (8, 80.0)]
    assert runs[a]["lr", "train"] == [(step, 0.1) for step in (2, 4, 5, 6, 8)]
    assert runs[b]["loss", "train"] == [(4, 2.5), (5, 5.0)]

    repo = Repo(str(repository))
    run = repo.get_run(a)
    assert (run.name, run.experiment, run.tags) == ("first", "trial", ["a"])
    assert run["status"] == "interrupted"
    hparams = run["hparams"]
    assert hparams["lr"] == 0.1
    assert hparams["dtype"] == "torch.bfloat16"
    assert hparams["path"] == str(repository)
    assert hparams["loss"] == "torch.nn.functional.mse_loss"
    assert hparams["weights"] == "torch.float32[3, 2]"
    assert hparams["scale"] == 2.0
    assert hparams["nested"]["betas"] == [0.9, 0.999]
    assert math.isnan(hparams["nested"]["nan"])
    assert repo.list_active_runs() == []
    assert not list((repository / ".aim" / "meta" / "progress").iterdir())
    found = repo.query_metrics("metric.name == 'loss' and metric.context.subset == 'val'")
    assert {metric.run.hash for metrics in found.iter_runs() for metric in metrics} == {a, b}


PROCESSES = """
import multiprocessing, sys
import aim.sdk.index_manager
from fnloop.trackers.aim import Aim

def one(folder, rank, barrier):
    tracker = Aim(folder)
    barrier.wait()
    tracker.open({}, None)
    tracker.log({"loss": float(rank)}, 1, 1)
    tracker.close("completed")

context = multiprocessing.get_context("fork")  # none has opened the repository yet
barrier = context.Barrier(3)
children = [context.Process(target=one, args=(sys.argv[1], rank, barrier)) for rank in range(3)]
for child in children:
    child.start()
for child in children:
    child.join()
sys.exit(any(child.exitcode for child in children))
"""


def test_processes_may_open_a_fresh_repository_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROCESSES, str(tmp_path)]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    losses = sorted(run["loss", "train"][0] for run in read(tmp_path).values())
    assert losses == [(1, 0.0), (1, 1.0), (1, 2.0)]


def test_a_run_that_is_not_there_is_started_anew(repository: Path) -> None:
    effect = track(Aim(repository), every=1)
    effect.recall({"runs": [{"tracker": "Aim", "run": "0" * 24}], "window": {}})
    with pytest.warns(UserWarning, match="no run 0000.* a new run is started"):
        drive(effect, range(1, 2))
    assert list(read(repository)) == [effect.memo()["runs"][0]["run"]]


def test_without_aim_the_run_goes_to_a_file_with_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "aim", None)
    effect = track(Aim(tmp_path), every=2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        drive(effect, range(1, 3), {"lr": 0.1})
    assert len(caught) == 1
    assert "Aim cannot be imported" in str(caught[0].message)

    memo = effect.memo()
    resumed = track(Aim(tmp_path), every=2)
    resumed.recall(memo)
    with pytest.warns(UserWarning, match="Aim cannot be imported"):
        drive(resumed, range(3, 5))
    (file,) = tmp_path.iterdir()
    assert file.name == f"{memo['runs'][0]['run']}.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert lines == [
        {"config": {"lr": 0.1}},
        {"step": 2, "epoch": 1, "loss": 1.5, "lr": 0.1},
        {"step": 4, "epoch": 1, "loss": 3.5, "lr": 0.1, "val/loss": 40.0},
    ]


def test_long_integers_and_bytes_of_file_names_are_kept_as_text(repository: Path) -> None:
    config = {"n": 1 << 70, "few": [-(1 << 65), 3], "file": "\udc80", "most": (1 << 63) - 1}
    effect = track(Aim(repository), every=1)
    drive(effect, range(1, 2), config)
    from aim import Repo

    (run,) = Repo(str(repository)).iter_runs()
    kept = run["hparams"]
    assert kept["n"] == str(1 << 70) and kept["few"] == [str(-(1 << 65)), 3]
    assert kept["file"] == "\\udc80" and kept["most"] == (1 << 63) - 1


def test_an_evaluation_called_train_is_no_second_training_curve(repository: Path) -> None:
    effect = track(Aim(repository), every=1)
    state = start(torch.nn.Linear(2, 1))
    effect.open(Run(step=None, state=state))
    metrics = {"loss": Mean(1.0, 1), "train/loss": Mean(2.0, 1)}
    effect(state.replace(cursor=Cursor(0, 1, 1).tensor()), metrics)
    effect.close("completed")
    (curves,) = read(repository).values()
    assert curves[("loss", "train")] == [(1, 1.0)]
    assert curves[("train/loss", "train")] == [(1, 2.0)]
