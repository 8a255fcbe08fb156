"""Tensors at the peak of a step's memory, and values that are read."""

from __future__ import annotations

import pytest
from torch import nn
from torch.utils.checkpoint import checkpoint

import fnloop as fl
from fnloop.profiling.allocations import allocations_of
from fnloop.profiling.stage_clock import clocked

from .planted import BATCHES, X, Y, loss, made, network, reading


def followed(step, state, batch=(X, Y)):
    return allocations_of(clocked(step), state, batch)


@pytest.mark.parametrize("width", [512, 2048])
def test_the_peak_is_that_of_the_profiler(width):
    """Seen operation by operation, and seen by the allocator."""

    def build():
        return nn.Sequential(nn.Linear(16, width), nn.GELU(), nn.Linear(width, 1))

    step, _ = made()
    found = fl.profile(step, step.init(build, seed=0), BATCHES, steps=1)
    most = max(size for _, size in found.memory)
    assert found.peak == pytest.approx(most, rel=0.02)  # kernels may have space of their own
    assert found.peak == sum(tensor.bytes for tensor in found.tensors)


def test_tensors_have_names():
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.adamw(1e-3)))
    state = step.init(network, seed=0)
    found = followed(step, state, (X[:1], Y[:1]))
    names = {(tensor.kind, tensor.name): tensor for tensor in found.tensors}
    for name, p in state.params.items():
        for path in (f"params/{name}", f"slots/update/adamw/mu/{name}"):
            assert names["new state", path].bytes == p.nbytes
    weight = names["gradient", "0.weight"]
    assert weight.tensor == "f32[32,16]" and weight.bytes == 32 * 16 * 4
    assert {kind for kind, _ in names} <= {"gradient", "new state", "temporary", "activation"}


def test_activations_have_a_line_and_a_module():
    def build():
        return nn.Sequential(nn.Linear(16, 1), nn.Linear(1, 4096), nn.Tanh(), nn.Linear(4096, 1))

    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
    found = followed(step, step.init(build, seed=0))
    largest = found.tensors[0]
    assert largest.tensor == "f32[64,4096]" and largest.bytes == 64 * 4096 * 4
    kept = {t.name: t.where for t in found.tensors if t.kind == "activation" and t.bytes > 1e6}
    assert kept["tanh"].endswith("in 2") and kept["tanh"].startswith("planted.py:")


def test_values_that_the_step_itself_reads_are_not_the_users():
    assert followed(*made()).reads == ()
    clipped = fl.optim.chain(fl.optim.clip_by_norm(1.0), fl.optim.adamw(1e-3))
    step = fl.pipe(
        loss, fl.grad, fl.amp("fp16"), fl.update(clipped), fl.guard(fl.rules.spike("loss"))
    )
    assert followed(step, step.init(network, seed=0)).reads == ()


def test_reads_of_the_users():
    step, state = made(reading)
    (read,) = followed(step, state).reads
    assert read.where.startswith("planted.py:") and read.operator == "_local_scalar_dense"

    def watching(state, batch):
        state, metrics = step_of_loss(state, batch)
        if float(metrics["loss"]) > 1e9:
            raise ArithmeticError
        return state, metrics

    step_of_loss, state = made()
    step = fl.stage(watching, "step")
    (read,) = followed(step, state).reads
    assert read.where.startswith("test_allocations.py:") and read.times == 1


def test_reads_in_each_micro_batch():
    step = fl.pipe(reading, fl.grad, fl.accumulate(4), fl.update(fl.optim.sgd(0.1)))
    (read,) = followed(step, step.init(network, seed=0)).reads
    assert read.times == 4


def test_checkpointed_activations_are_gone():
    class Deep(nn.Module):
        def __init__(self, again):
            super().__init__()
            self.again, self.first, self.last = again, nn.Linear(16, 8), nn.Linear(8, 1)
            self.wide = nn.Sequential(nn.Linear(8, 2048), nn.Tanh(), nn.Linear(2048, 8))

        def forward(self, x):
            x = self.first(x)
            for _ in range(3):
                x = checkpoint(self.wide, x, use_reentrant=False) if self.again else self.wide(x)
            return self.last(x)

    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
    peaks = [followed(step, step.init(lambda k=k: Deep(k), seed=0)).peak for k in (False, True)]
    wide = 64 * 2048 * 4
    assert peaks[0] > 3 * wide and peaks[0] - peaks[1] > wide
