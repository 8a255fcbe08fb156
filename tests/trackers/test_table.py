from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest

from fnloop.trackers.table import CSV


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.lightning("L2")
def test_new_columns_widen_the_table(tmp_path: Path) -> None:
    path = tmp_path / "run.csv"
    tracker = CSV(path)
    tracker.open({"lr": 0.1}, None)
    assert path.read_text() == "step,epoch\n"
    tracker.log({"loss": 0.5}, 50, 1)
    tracker.log({"loss": math.nan, 'odd, "name"': 1e-7}, 100, 1)
    tracker.log({"val/loss": 2.0}, 110, 2)
    tracker.close("completed")
    assert rows(path) == [
        {"step": "50", "epoch": "1", "loss": "0.5", 'odd, "name"': "", "val/loss": ""},
        {"step": "100", "epoch": "1", "loss": "nan", 'odd, "name"': "1e-07", "val/loss": ""},
        {"step": "110", "epoch": "2", "loss": "", 'odd, "name"': "", "val/loss": "2.0"},
    ]
    assert [file.name for file in tmp_path.iterdir()] == ["run.csv"]


def test_a_resumed_run_keeps_the_columns(tmp_path: Path) -> None:
    path = tmp_path / "run.csv"
    path.write_text("step,epoch,val/loss,loss\n50,1,0.25,0.5\n60,1,0.")  # killed while writing
    tracker = CSV(path)
    tracker.open({}, "run.csv")
    tracker.log({"loss": 0.125}, 60, 1)
    tracker.close("completed")
    assert path.read_text() == "step,epoch,val/loss,loss\n50,1,0.25,0.5\n60,1,,0.125\n"


def test_a_new_run_takes_a_new_file(tmp_path: Path) -> None:
    CSV(tmp_path / "run.csv").open({}, None)
    with pytest.warns(UserWarning, match=r"run-2.csv"):
        CSV(tmp_path / "run.csv").open({}, None)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["run-2.csv", "run.csv"]
