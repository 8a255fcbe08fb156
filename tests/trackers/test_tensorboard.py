from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fnloop.trackers.tensorboard import TensorBoard


@pytest.mark.lightning("L1")
def test_a_run_is_read_back_and_resumed(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    tracker = TensorBoard(tmp_path)
    tracker.open({"lr": 0.1}, None)
    tracker.log({"loss": 0.5}, 50, 1)
    tracker.close("interrupted")
    again = TensorBoard(tmp_path)
    again.open({"lr": 0.1}, tracker.id)
    again.log({"loss": 0.25, "val/loss": 2.0}, 100, 2)
    again.close("completed")
    other = TensorBoard(tmp_path)
    other.open({}, None)
    other.close("completed")

    assert (tracker.id, again.id, other.id) == ("run-1", "run-1", "run-2")
    read = events.EventAccumulator(str(tmp_path / "run-1"))
    read.Reload()
    assert [(e.step, e.value) for e in read.Scalars("loss")] == [(50, 0.5), (100, 0.25)]
    assert [(e.step, e.value) for e in read.Scalars("val/loss")] == [(100, 2.0)]
    assert [(e.step, e.value) for e in read.Scalars("epoch")] == [(50, 1.0), (100, 2.0)]
    assert b'"lr": 0.1' in read.Tensors("config/text_summary")[0].tensor_proto.string_val[0]


def test_without_tensorboard_the_error_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r"pip install fnloop\[tensorboard\]"):
        TensorBoard(tmp_path / "tb").open({}, None)
    assert not list(tmp_path.iterdir())


def test_a_resumed_run_does_not_go_on_in_the_folder_of_another(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    first, second = TensorBoard(tmp_path / "a"), TensorBoard(tmp_path / "b")
    for tracker in (first, second):
        tracker.open({}, None)
        tracker.close("completed")
    assert first.id == second.id == "run-1" and first.place == tmp_path / "a" / "run-1"
    moved = TensorBoard(tmp_path / "b")
    moved.place_before = first.place
    moved.open({}, first.id)
    moved.close("completed")
    assert moved.id == "run-2"
