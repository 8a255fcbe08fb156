"""What is read from traces, against PyTorch's own tables and traces made by hand."""

from __future__ import annotations

import json

import pytest
from torch.profiler import ProfilerActivity, profile, record_function

from fnloop.profiling.following import Ranges, following
from fnloop.profiling.names_in_trace import MODULE, STEP
from fnloop.profiling.trace_events import read_trace
from fnloop.values.skeleton import dissect

from .planted import X, network


def event(name, start, length, **args):
    kind = "cpu_op" if "::" in name else "user_annotation"
    about = {"args": args} if args else {}
    return {"ph": "X", "cat": kind, "name": name, "ts": start, "dur": length, "tid": 1, **about}


def allocation(at, size, total, device=0):
    about = {"Bytes": size, "Total Allocated": total, "Device Type": device}
    return {"ph": "i", "name": "[memory]", "ts": at, "args": about}


BACKWARD = "autograd::engine::evaluate_function: "
BY_HAND = [
    event(STEP, 0, 1000, x=0),
    event("aten::late", 1200, 100),  # outside of it
    event("stage: grad", 100, 800),
    event("module: a (Block)", 100, 400),
    event("module: a.b (Linear)", 150, 100),
    event("aten::linear", 160, 80, **{"Sequence number": 7}),
    event("aten::mm", 170, 50, **{"Sequence number": 7}),
    event("aten::item", 300, 10, **{"Sequence number": 8}),  # has the number of what comes next
    event("aten::add", 320, 20, **{"Sequence number": 8}),
    event(BACKWARD + "AddBackward0", 600, 30, **{"Sequence number": 8}),
    event(BACKWARD + "MmBackward0", 700, 100, **{"Sequence number": 7}),
    event("aten::mm", 710, 60),
    event("aten::mm", 720, 40),  # dispatched a second time
    allocation(50, 100, 5100),
    allocation(60, 1000, 900, device=1),
    allocation(600, 400, 5500),
    allocation(700, -500, 5000),
    allocation(1300, 100, 9000),
]


def test_a_trace_made_by_hand():
    found = read_trace({"traceEvents": BY_HAND}, on_cpu=True)
    assert found.seconds == pytest.approx(1e-3)
    operators = {each.name: (round(1e6 * each.seconds), each.calls) for each in found.operators}
    assert operators == {
        "aten::linear": (30, 1),
        "aten::mm": (50 + 60, 2),
        "aten::item": (10, 1),
        "aten::add": (20, 1),
        "AddBackward0": (30, 1),
        "MmBackward0": (40, 1),
    }
    modules = {m.path: (m.kind, *(round(1e6 * t) for t in m[2:4]), m.calls) for m in found.modules}
    assert modules == {"a": ("Block", 300, 30, 1), "a.b": ("Linear", 100, 100, 1)}
    assert {name: round(1e6 * t) for name, t in found.kernels.items()} == {"grad": 240}
    assert [(round(1e6 * t), size) for t, size in found.memory] == [
        (0, 0),
        (50, 100),
        (600, 500),
        (700, 0),
    ]


def test_the_shortest_of_several_steps_counts():
    later = [{**each, "ts": each["ts"] + 5000} for each in BY_HAND]
    longer = [event(STEP, 0, 1100, x=0), *BY_HAND[1:]]
    found = read_trace({"traceEvents": [*longer, *later]}, on_cpu=True)
    assert found.seconds == pytest.approx(1e-3)
    assert {each.name: each.calls for each in found.operators}["aten::mm"] == 2


def test_kernels_of_a_device_take_the_place_of_operators():
    kernel = {"ph": "X", "cat": "kernel", "name": "gemm", "ts": 400, "dur": 250, "tid": 9}
    found = read_trace({"traceEvents": [*BY_HAND, kernel, kernel]}, on_cpu=False)
    assert [(o.name, round(1e6 * o.seconds), o.calls) for o in found.operators] == [
        ("gemm", 500, 2)
    ]
    assert [size for _, size in found.memory] == [0, 1000]


def test_operators_agree_with_the_table_of_pytorch(tmp_path):
    model = network()
    skeleton, _, _ = dissect(model)
    ranges = Ranges()
    with (
        following(skeleton, ranges.enter, ranges.leave),
        profile(activities=[ProfilerActivity.CPU]) as recorded,
        record_function(STEP),
    ):
        model(X).square().mean().backward()
    file = tmp_path / "trace.json"
    recorded.export_chrome_trace(str(file))
    found = read_trace(json.loads(file.read_text()), on_cpu=True)
    theirs = dict[str, list[float]]()
    for each in recorded.key_averages():
        own = theirs.setdefault(each.key.removeprefix(BACKWARD), [0, 0.0])
        own[0] = max(own[0], each.count)  # autograd has an event around each of its functions
        own[1] += each.self_cpu_time_total
    ours = {each.name: each for each in found.operators}
    assert ours.keys() == {name for name in theirs if not name.startswith((STEP, MODULE))}
    for name, each in ours.items():
        assert each.calls == theirs[name][0], name
        assert 1e6 * each.seconds == pytest.approx(theirs[name][1], abs=2), name
