from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from fnloop.trackers.jsonl import JSONL


def lines(path: Path) -> list[dict[str, object]]:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


@pytest.mark.lightning("L2")
def test_config_then_points_and_a_resumed_run_appends(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run.jsonl"
    tracker = JSONL(path)
    tracker.open({"lr": 0.1}, None)
    tracker.log({"loss": 0.5, "bad": math.nan}, 50, 1)
    assert len(lines(path)) == 2  # each point is on disk at once
    tracker.close("interrupted")

    again = JSONL(path)
    again.open({"lr": 0.1}, tracker.id)
    again.log({"loss": 0.25, "val/loss": -math.inf}, 100, 2)
    again.close("completed")
    assert lines(path) == [
        {"config": {"lr": 0.1}},
        {"step": 50, "epoch": 1, "loss": 0.5, "bad": "nan"},
        {"step": 100, "epoch": 2, "loss": 0.25, "val/loss": "-inf"},
    ]


def test_half_a_line_of_a_killed_run_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text('{"config": {}}\n{"step": 1, "epoch": 1}\n{"step": 2, "ep')
    tracker = JSONL(path)
    tracker.open({}, "run.jsonl")
    tracker.log({}, 2, 1)
    tracker.close("completed")
    assert lines(path) == [{"config": {}}, {"step": 1, "epoch": 1}, {"step": 2, "epoch": 1}]


def test_a_new_run_never_writes_into_an_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    first, second = JSONL(path), JSONL(path)
    first.open({"run": 1}, None)
    with pytest.warns(UserWarning, match=r"holds an earlier run; .* run-2.jsonl"):
        second.open({"run": 2}, None)
    second.close("completed")
    first.close("completed")
    resumed = JSONL(path)
    resumed.open({"run": 2}, second.id)
    resumed.log({}, 9, 1)
    resumed.close("completed")
    assert resumed.path == tmp_path / "run-2.jsonl"
    assert lines(path) == [{"config": {"run": 1}}]
    assert lines(resumed.path) == [{"config": {"run": 2}}, {"step": 9, "epoch": 1}]
