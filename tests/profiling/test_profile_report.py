"""What a profile writes: a trace that Perfetto opens, a picture, nothing else."""

from __future__ import annotations

import dataclasses
import gzip
import itertools
import json

import pytest

import fnloop as fl
from fnloop.profiling.names_in_trace import STEP
from fnloop.trees.show import bytes_text

from .planted import BATCHES, loss, made, network


@pytest.fixture(scope="module")
def found():
    step = fl.pipe(loss, fl.grad, fl.amp("bf16"), fl.update(fl.optim.adamw(1e-3)))
    return fl.profile(step, step.init(network, seed=0), BATCHES, steps=2)


@pytest.mark.lightning("F4")
def test_a_trace_is_what_perfetto_reads(found, tmp_path):
    """The format of chrome://tracing: complete events with a name, a thread and microseconds."""
    whole, packed = found.save_trace(tmp_path / "a.json"), found.save_trace(tmp_path / "b.json.gz")
    trace = json.loads(whole.read_text(encoding="utf-8"))
    assert json.loads(gzip.decompress(packed.read_bytes())) == trace
    events = trace["traceEvents"]
    complete = [e for e in events if e["ph"] == "X"]
    for each in complete:
        assert isinstance(each["name"], str) and each["ts"] >= 0 and each["dur"] >= 0
        assert "pid" in each and "tid" in each
    names = {each["name"] for each in complete}
    ranges = {STEP, "stage: loss", "stage: grad", "stage: amp('bf16')", "module: 0 (Linear)"}
    assert ranges <= names and "aten::addmm" in names
    assert any(each["name"] == "[memory]" for each in events)


def test_ranges_of_stages_are_nested_as_stages_are(found, tmp_path):
    trace = json.loads(found.save_trace(tmp_path / "a.json").read_text())

    def spans(name):
        events = [e for e in trace["traceEvents"] if e["name"] == name and e["ph"] == "X"]
        return sorted((e["ts"], e["ts"] + e["dur"]) for e in events)

    path = ["stage: update(adamw())", "stage: amp('bf16')", "stage: grad", "stage: loss"]
    for outer, inner in itertools.pairwise(path):
        pairs = list(zip(spans(outer), spans(inner), strict=True))
        assert pairs and all(a <= c and d <= b for (a, b), (c, d) in pairs), (outer, inner)


def test_nothing_is_written_unless_asked(found, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    str(found), found.advice, found.plot()
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"A trace is a file called \.json or \.json\.gz"):
        found.save_trace("trace.txt")
    found.save_trace("new/trace.json")
    assert [str(p) for p in sorted(tmp_path.rglob("*"))] == [
        str(tmp_path / "new"),
        str(tmp_path / "new" / "trace.json"),
    ]


def test_a_picture(found, tmp_path):
    pytest.importorskip("matplotlib")
    figure = found.plot(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    times, modules, memory, tensors = figure.axes
    names = [label.get_text() for label in times.get_yticklabels()]
    assert names[:3] == ["waiting for data", "loss, forward", "grad, backward"]
    shown = {label.get_text() for label in modules.get_yticklabels()}
    assert shown == {f"{module.path} ({module.kind})" for module in found.modules}
    assert memory.get_lines() or memory.collections
    assert len(tensors.get_yticklabels()) >= 2


def test_activations_of_many_modules_are_put_together(found):
    pytest.importorskip("matplotlib")
    some = found.tensors[0]._replace(kind="activation", bytes=1000)
    places = [f"layers.{i}.{part}" for i in range(5) for part in ("qkv", "out", "up", "down")]
    deep = dataclasses.replace(found, tensors=tuple(some._replace(place=place) for place in places))
    names = [tick.get_text() for tick in deep.plot().axes[3].get_yticklabels()]
    assert names == [f"activations of layers.{i}" for i in range(5)]


def test_a_picture_of_a_step_without_modules():
    pytest.importorskip("matplotlib")
    step, state = made()
    found = dataclasses.replace(
        fl.profile(step, state, BATCHES, steps=1), modules=(), tensors=(), memory=()
    )
    assert found.plot().axes[1].get_title(loc="left") == "time by operator"


def test_table_and_picture_tell_of_the_same_time_around_the_stages(found):
    inside = sum(stage.seconds for stage in found.stages)
    slow = dataclasses.replace(
        found, seconds=3 * inside, waiting=inside, fastest=2 * inside, slowdown=0.97
    )
    labels = [tick.get_text() for tick in slow.plot().axes[0].get_yticklabels()]
    table = str(slow).split("stage   ")[0]
    assert "around the stages" in labels
    assert "33%" in table[table.index("around the stages") :]
    assert "the step takes as long" in " ".join(str(slow).split())

    few = dataclasses.replace(found, seconds=1.05 * inside, waiting=0.0, fastest=1.05 * inside)
    labels = [tick.get_text() for tick in few.plot().axes[0].get_yticklabels()]
    assert "around the stages" not in labels
    assert "around the stages" not in str(few)


def test_what_disturbs_a_step_is_no_time_around_its_stages(found):
    inside = sum(stage.seconds for stage in found.stages)
    disturbed = dataclasses.replace(found, seconds=4 * inside, waiting=0.0, fastest=inside)
    text = str(disturbed)
    assert "around the stages" not in text and "The shortest step took" in text
    row = next(line for line in text.splitlines() if line.startswith("beyond the shortest step"))
    assert row.split()[-1] == "75%"
    labels = [tick.get_text() for tick in disturbed.plot().axes[0].get_yticklabels()]
    assert "beyond the shortest step" in labels


def test_table_and_picture_have_one_peak(found):
    _, _, memory, tensors = found.plot().axes
    (line,) = memory.get_lines()
    unit = {"kB": 1e3, "MB": 1e6, "bytes": 1.0}[memory.get_ylabel()]
    assert max(line.get_ydata()) * unit == pytest.approx(found.peak)
    assert found.peak == sum(tensor.bytes for tensor in found.tensors)
    assert bytes_text(found.peak) in tensors.get_title("left") and bytes_text(found.peak) in str(
        found
    )
