"""What a profile names first: one bottleneck of each kind is planted."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import fnloop as fl
from fnloop.profiling.findings import findings_of
from fnloop.profiling.stage_clock import StageTime

from .planted import BATCHES, Sleepy, Slow, fat, loss, made, reading


def test_slow_data():
    found = fl.profile(*made(), Slow(), steps=3)
    assert found.waiting > 0.09
    assert found.advice.startswith("Data: ") and "fl.data.prefetch" in found.advice


def test_a_metric_that_reads():
    found = fl.profile(*made(reading), BATCHES)
    (read,) = found.reads
    assert read.where.startswith("planted.py:") and read.times == 1
    assert found.advice.startswith(f"Read: {read.where} reads the value of a tensor")
    assert "once a step" in found.advice


def test_a_hot_stage():
    found = fl.profile(*made(loss, Sleepy), BATCHES, steps=3)
    (stage,) = [stage for stage in found.stages if stage.name == "sleepy()"]
    assert stage.seconds >= 0.03
    assert found.advice.startswith("Stage: sleepy() is ")


def test_a_fat_tensor():
    found = fl.profile(*made(fat), BATCHES, steps=3)
    assert found.advice.startswith("Memory: ") and "f32[2048,2048]" in found.advice
    assert "planted.py:" in found.advice and "in fat" in found.advice


def test_a_step_that_is_mostly_python():
    found = fl.profile(*made(), BATCHES)
    assert found.advice.startswith("Overhead: ") and "fl.compile(step)" in found.advice


def test_a_compiled_step_is_not_told_to_compile():
    step, state = made()
    found = fl.profile(fl.compile(step, backend="aot_eager"), state, BATCHES)
    assert not any("fl.compile(step) makes" in finding for finding in found.findings)


@pytest.fixture(scope="module")
def plain():
    return dataclasses.replace(
        fl.profile(*made(), BATCHES, steps=1), kernels=1.0, reads=(), waiting=0.0
    )


def test_the_largest_part_comes_first(plain):
    some = dataclasses.replace(plain, waiting=0.3 * plain.seconds, breaks=2)
    assert [text.partition(":")[0] for text in findings_of(some)] == ["Graphs", "Data"]
    more = dataclasses.replace(some, waiting=0.8 * plain.seconds)
    assert [text.partition(":")[0] for text in findings_of(more)] == ["Data", "Graphs"]


def test_a_read_counts_for_more_on_a_gpu(plain):
    read = fl.profile(*made(reading), BATCHES, steps=1).reads
    on_cpu = dataclasses.replace(plain, reads=read, waiting=0.2 * plain.seconds)
    assert findings_of(on_cpu)[0].startswith("Data: ")
    on_gpu = dataclasses.replace(on_cpu, device="cuda")
    assert findings_of(on_gpu)[0].startswith("Read: ") and "the device" in findings_of(on_gpu)[0]


def test_ranks_that_wait_for_one_another(plain):
    shard = StageTime('shard(mesh(data=2), "zero2")', 3 * plain.seconds, 1, "grad")
    found = findings_of(dataclasses.replace(plain, stages=(*plain.stages, shard)))
    assert found[0].startswith("Ranks: ") and 'shard(mesh(data=2), "zero2")' in found[0]


def test_many_graphs(plain):
    many = dataclasses.replace(plain, compiled=True, graphs=7, steps=10)
    assert findings_of(many)[0].startswith("Graphs: 7 graphs were made in 10 steps")


def test_nothing_stands_out(plain):
    (text,) = findings_of(plain)
    assert text.startswith("Nothing stands out: ")


@pytest.mark.filterwarnings("ignore")  # of Dynamo, which looks into modes of Python
def test_breaks_of_what_torch_compile_has_made():
    def gap(a, b):
        squares = (a - b).square()
        torch._dynamo.graph_break()
        return squares.mean()

    quick = torch.compile(gap, backend="eager")
    step, state = made(lambda model, batch: quick(model(batch[0]), batch[1]))
    found = fl.profile(step, state, BATCHES, steps=1)
    assert found.breaks >= 1 and found.graphs >= 1
    assert any(each.startswith("Graphs: ") for each in found.findings)
