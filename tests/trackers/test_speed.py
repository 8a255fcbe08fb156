"""`fl.trackers.throughput`: what it counts, against a clock that the test moves."""

from __future__ import annotations

import csv
import math
import time
from typing import Any

import pytest
import torch
from torch import nn

import fnloop as fl
from fnloop.effects.activity import Activity, watchers
from fnloop.effects.effect import Run
from fnloop.trackers.device_peaks import named_peak, peak_flops
from fnloop.values.cursor import Cursor
from fnloop.values.micro import Micro
from fnloop.values.start import start


def loss(model, batch):
    return model(batch).square().mean()


def step_of():
    return fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that moves when the test says so."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


class Ran:
    """A run whose steps take the seconds that they are given."""

    def __init__(self, effect: Any, clock: list[float], **about: Any) -> None:
        self.effect, self.clock, self.count = effect, clock, 0
        self.state = start(nn.Linear(4, 1))
        self.run = Run(step=None, state=self.state, **about)
        effect.open(self.run)

    def step(self, *batches: Any, seconds: float = 1.0) -> None:
        for i, batch in enumerate(batches, self.count + 1):
            self.effect.drawn(Cursor(0, i, i), batch)
        self.clock[0] += seconds
        for _ in batches:
            self.count += 1
            cursor = Cursor(0, self.count, self.count)
            self.effect(self.state.replace(cursor=cursor.tensor()), {})


@pytest.mark.lightning("C17", "Z3")
def test_rates_are_of_the_last_batches_without_the_first_step(clock: list[float]) -> None:
    ran = Ran(fl.trackers.throughput(window=2, flops=1000), clock)
    ran.step(torch.ones(8, 4), seconds=60.0)  # compiled, perhaps
    assert ran.run.measured() == {}
    ran.step(torch.ones(8, 4), seconds=4.0)
    expected = {"batches_per_sec": 0.25, "samples_per_sec": 2.0, "flops_per_sec": 250.0}
    assert ran.run.measured() == expected
    ran.step(torch.ones(2, 4), seconds=1.0)
    assert ran.run.measured()["samples_per_sec"] == (8 + 2) / 5
    ran.step(torch.ones(6, 4), seconds=3.0)
    assert ran.run.measured()["samples_per_sec"] == (2 + 6) / 4


@pytest.mark.lightning("C17")
def test_items_and_samples_are_what_a_function_counts(clock: list[float]) -> None:
    effect = fl.trackers.throughput(items=torch.Tensor.numel, samples=lambda batch: 3)
    ran = Ran(effect, clock)
    for rows in (8, 8, 2):
        ran.step(torch.ones(rows, 4))
    found = ran.run.measured()
    assert found["items_per_sec"] == (32 + 8) / 2 and found["samples_per_sec"] == 3.0
    grouped = Ran(fl.trackers.throughput(), clock)
    for _ in range(2):
        grouped.step(Micro((torch.ones(8, 4), torch.ones(2, 4))))
    assert grouped.run.measured()["samples_per_sec"] == 10.0
    unclear = Ran(fl.trackers.throughput(), clock)
    for _ in range(2):
        unclear.step((torch.ones(2, 4), torch.ones(3)))
    assert unclear.run.measured() == {"batches_per_sec": 1.0}
    with pytest.raises(TypeError, match="must return a whole number"):
        Ran(fl.trackers.throughput(items=lambda batch: 0.5), clock).step(torch.ones(2, 4))
    with pytest.raises(TypeError, match="would wait for the device"):
        there = torch.ones((), device="meta")
        Ran(fl.trackers.throughput(items=lambda batch: there), clock).step(torch.ones(2, 4))


def test_the_time_of_validations_and_of_compiling_is_left_out(clock: list[float]) -> None:
    ran = Ran(fl.trackers.throughput(), clock)
    ran.step(torch.ones(8, 4))
    with Activity("val", 2):
        clock[0] += 30.0
        with Activity("compiling"):
            clock[0] += 30.0
        clock[0] += 30.0
    ran.step(torch.ones(8, 4), seconds=2.0)
    assert ran.run.measured()["samples_per_sec"] == 4.0
    assert watchers() == ()  # it keeps no lines, so that others show them
    ran.effect.close("completed")


def test_a_call_of_several_steps_is_timed_at_its_end(clock: list[float]) -> None:
    ran = Ran(fl.trackers.throughput(), clock)
    for size, seconds in ((1, 9.0), (4, 2.0), (4, 2.0)):
        ran.step(*[torch.ones(8, 4)] * size, seconds=seconds)
    assert ran.run.measured()["batches_per_sec"] == 8 / 4


@pytest.mark.lightning("Z3")
def test_the_share_of_the_peak(clock: list[float]) -> None:
    cases: Any = (
        ({"peak": 1e4}, 0.1),
        ({"peak": 1e4, "dtype": "bf16"}, 0.1),
        ({"dtype": "bf16"}, None),  # of a CPU it is not known
    )
    for arguments, share in cases:
        ran = Ran(fl.trackers.throughput(flops=1000, **arguments), clock)
        for _ in range(3):
            ran.step(torch.ones(8, 4))
        assert ran.run.measured().get("mfu") == share
    with pytest.raises(ValueError, match="expected one of"):
        peak_flops(torch.device("cpu"), "fp8")  # type: ignore[arg-type]


@pytest.mark.lightning("Z3")
@pytest.mark.parametrize(
    ("name", "dtype", "peak"),
    [  # names as torch gives them; numbers as in Lightning's table and NVIDIA's data sheets
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4e12),
        ("NVIDIA H100 PCIe", "bf16", 756e12),
        ("NVIDIA H200", "fp16", 989.4e12),
        ("NVIDIA A100-SXM4-40GB", "tf32", 156e12),
        ("NVIDIA A100 80GB PCIe", "fp32", 19.5e12),
        ("Tesla V100-SXM2-16GB", "fp16", 125e12),
        ("Tesla V100-SXM2-16GB", "bf16", None),
        ("Tesla T4", "fp16", 65e12),
        ("NVIDIA L4", "bf16", 121e12),
        ("NVIDIA L40S", "bf16", 362e12),
        ("NVIDIA A10G", "bf16", 70e12),
        ("A GPU of tomorrow", "bf16", None),
    ],
)
def test_known_peaks(name: str, dtype: Any, peak: float | None) -> None:
    assert named_peak(name, dtype) == peak


@pytest.mark.lightning("C16", "C17")
@pytest.mark.parametrize("steps", [1, 3])
def test_all_who_write_points_have_them(tmp_path, steps: int) -> None:
    step = step_of() if steps == 1 else fl.compile(step_of(), steps=steps, backend="aot_eager")
    data = fl.Batches(torch.randn(64, 4), 4)
    file = tmp_path / "a.csv"
    measuring = [
        fl.trackers.throughput(items=torch.Tensor.numel),
        fl.trackers.device_stats(),
        fl.track(fl.trackers.CSV(file), every=8),
    ]
    state = step.init(nn.Linear(4, 1), seed=1)
    state, history = fl.fit(step, state, data, epochs=2, callbacks=measuring)
    assert len(history) == 2 and watchers() == ()
    with file.open() as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == 4
    for found in (history[-1], rows[-1]):
        rate = float(found["batches_per_sec"])
        assert math.isclose(float(found["samples_per_sec"]), 4 * rate)
        assert math.isclose(float(found["items_per_sec"]), 16 * rate)
        assert float(found["device/process_bytes"]) > 1e7
    assert not any("per_sec" in name or "device" in name for name in state.slots)


@pytest.mark.lightning("C17")
def test_law_9_measuring_changes_no_bit_and_rests_when_resumed(tmp_path) -> None:
    step, data = step_of(), fl.Batches(torch.randn(64, 4), 4)
    state = step.init(nn.Linear(4, 1), seed=1)
    measuring = lambda: [fl.trackers.throughput(), fl.trackers.device_stats()]  # noqa: E731
    saving = [fl.checkpoint(tmp_path / "a")]
    plain, _ = fl.fit(step, state, data, epochs=2)
    measured, _ = fl.fit(step, state, data, epochs=2, callbacks=measuring())
    assert fl.tree_equal(plain, measured)
    fl.fit(step, state, data, epochs=1, callbacks=[*saving, *measuring()])
    resumed, history = fl.fit(
        step, state, data, epochs=2, callbacks=[*saving, *measuring()], resume=tmp_path / "a"
    )
    assert fl.tree_equal(plain, resumed)
    assert len(history["samples_per_sec"]) == 2


def test_a_smoke_run_and_every_take_it() -> None:
    step, data = step_of(), fl.Batches(torch.randn(64, 4), 4)
    state = step.init(nn.Linear(4, 1))
    effects = [fl.every(3, fl.trackers.throughput()), fl.trackers.throughput()]
    _, history = fl.fit(step, state, data, epochs=1, callbacks=effects[:1])
    assert history[-1]["samples_per_sec"] > 0
    fl.fit(step, state, data, callbacks=effects[1:], smoke=True)
