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


def test_runs_are_compared_by_their_hyperparameters(tmp_path: Path) -> None:
    """As the server of the tab HParams does, of what it has read."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing import (
        data_provider,
        plugin_event_multiplexer,
    )
    from tensorboard.context import RequestContext
    from tensorboard.plugins.base_plugin import TBContext
    from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

    for rate, status in ((0.1, "completed"), (0.2, "failed")):
        tracker = TensorBoard(tmp_path)
        tracker.open({"lr": rate, "loss": "mse", "deep": {"on": True, "none": None}}, None)
        tracker.log({"val/loss": 10 * rate}, 5, 1)
        tracker.close(status)

    many = plugin_event_multiplexer.EventMultiplexer().AddRunsFromDirectory(str(tmp_path))
    many.Reload()
    provider = data_provider.MultiplexerDataProvider(many, str(tmp_path))
    context = backend_context.Context(TBContext(data_provider=provider))
    metadata = context.hparams_metadata(RequestContext(), "")
    experiment = context.experiment_from_metadata(
        RequestContext(),
        "",
        True,
        metadata,
        context.hparams_from_data_provider(RequestContext(), "", limit=100),
        100,
    )
    assert {info.name for info in experiment.hparam_infos} == {"lr", "loss", "deep.on"}
    request = api_pb2.ListSessionGroupsRequest(
        start_index=0,
        slice_size=10,
        include_metrics=True,
        allowed_statuses=[api_pb2.STATUS_SUCCESS, api_pb2.STATUS_RUNNING, api_pb2.STATUS_UNKNOWN],
        col_params=[api_pb2.ColParams(metric=api_pb2.MetricName(tag="val/loss"))],
    )
    handler = list_session_groups.Handler(RequestContext(), context, "", request)
    found = {}
    for group in handler.run().session_groups:
        losses = [m.value for m in group.metric_values if m.name.tag == "val/loss"]
        found[group.hparams["lr"].number_value] = (group.sessions[0].status, *losses)
    assert found == {
        0.1: (api_pb2.STATUS_SUCCESS, pytest.approx(1.0)),
        0.2: (api_pb2.STATUS_UNKNOWN, pytest.approx(2.0)),
    }
