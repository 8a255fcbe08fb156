"""``compile(step, memory=...)``: the same training, with fewer activations in memory."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fnloop as fl


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inside = nn.Sequential(
            nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU(), nn.Dropout(0.2), nn.Linear(16, 8)
        )

    def forward(self, x):
        return x + self.inside(x)


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), *[Block() for _ in range(4)], nn.Linear(8, 3)
    )


def loss(model, batch):
    x, y = batch
    logits = model(x)
    return F.cross_entropy(logits, y), {"accuracy": fl.metrics.accuracy(logits, y)}


def batch(n=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 4, generator=generator), torch.randint(3, (n,), generator=generator)


def adamw():
    return fl.update(fl.optim.chain(fl.optim.clip_by_norm(1.0), fl.optim.adamw(1e-2)))


STEPS = {
    "plain": lambda: fl.pipe(loss, fl.grad, adamw()),
    "accumulate": lambda: fl.pipe(loss, fl.grad, fl.accumulate(3), adamw()),
    "bf16": lambda: fl.pipe(loss, fl.grad, fl.amp("bf16"), adamw()),
    "ema": lambda: fl.pipe(loss, fl.grad, adamw(), fl.ema(0.9)),
    "guard": lambda: fl.pipe(loss, fl.grad, adamw(), fl.guard(fl.rules.nonfinite())),
}


def trained(step, state, batches):
    reports = []
    for each in batches:
        state, metrics = step(state, each)
        reports.append(metrics)
    return state, reports


@pytest.mark.parametrize("memory", [0.5, 0])
@pytest.mark.parametrize("name", STEPS)
def test_the_bits_are_those_of_the_step_that_keeps_all(name, memory):
    step, batches = STEPS[name](), [batch(seed=i) for i in range(3)]
    whole = fl.compile(step, donate=True, backend="aot_eager")
    less = fl.compile(step, donate=True, backend="aot_eager", memory=memory)
    expected = trained(whole, whole.init(net(), seed=0), batches)
    found = trained(less, less.init(net(), seed=0), batches)
    assert fl.tree_equal(found, expected)
    assert less.graphs == 1


def test_a_population():
    step = fl.pipe(loss, fl.grad, adamw())
    states = [step.init(net(), seed=seed) for seed in range(3)]
    state = fl.tree_map(lambda *leaves: torch.stack(leaves), *states)
    many = torch.func.vmap(step, in_dims=(0, None), randomness="different")
    counts = []

    def count(graph, inputs):
        counts.append(len(graph.graph.nodes))
        return graph

    whole, less = (fl.compile(many, backend=count, memory=memory) for memory in (1, 0))
    assert fl.tree_equal(less(state, batch()), whole(state, batch()))
    assert counts[0] > counts[1]


def test_two_steps_in_turn_are_cut_each_by_itself():
    step = fl.pipe(loss, fl.grad, adamw())

    def turns(state, x):
        state, first = step(state, x)
        state, second = step(state, x)
        return state, {"first": first["loss"], "second": second["loss"]}

    both = fl.stage(turns, "step")
    whole, less = (fl.compile(both, backend="aot_eager", memory=memory) for memory in (1, 0))
    model = nn.Sequential(nn.Linear(4, 16), nn.GELU(), nn.Linear(16, 16), nn.GELU())
    state = step.init(nn.Sequential(model, nn.Linear(16, 3)), seed=0)
    assert fl.tree_equal(less(state, batch()), whole(state, batch()))


def test_it_computes_more():
    counts = []
    for memory in (1, 0.5):

        def count(graph, inputs):
            counts.append(len(graph.graph.nodes))
            return graph

        step = fl.compile(STEPS["plain"](), backend=count, memory=memory)
        step(step.init(net(), seed=0), batch())
    assert counts[1] > counts[0]


def test_with_several_steps_and_sizes_that_vary():
    options = {"backend": "aot_eager", "steps": 2, "dynamic": True}
    whole, less = (fl.compile(STEPS["plain"](), memory=m, **options) for m in (1, 0.3))
    state = whole.init(net(), seed=0)
    batches = [batch(n, n) for n in (12, 9, 10, 11)]
    expected, a = whole(state, batches[:2])
    found, b = less(state, batches[:2])
    assert fl.tree_equal((found, b), (expected, a))
    assert fl.tree_equal(less(found, batches[2:]), whole(expected, batches[2:]))
    assert less.graphs == whole.graphs == 2


def test_fit_and_a_copy_keep_the_share():
    step = fl.compile(STEPS["plain"](), backend="aot_eager", memory=0.25)
    assert step.donating().memory == 0.25
    assert "memory=0.25" in repr(step)
    state, history = fl.fit(step, step.init(net(), seed=0), [batch()], epochs=2)
    assert history.status == "completed"
    assert int(state.step) == 2


def test_a_loss_that_is_checkpointed_by_hand_too():
    from torch.utils.checkpoint import checkpoint

    def by_hand(model, batch):
        x, y = batch
        return F.cross_entropy(checkpoint(model, x, use_reentrant=False), y)

    step = fl.pipe(by_hand, fl.grad, adamw())
    whole, less = (fl.compile(step, backend="aot_eager", memory=m) for m in (1, 0))
    state = whole.init(net(), seed=0)
    assert fl.tree_equal(less(state, batch()), whole(state, batch()))


@pytest.mark.parametrize("memory", [-0.1, 1.5, float("nan"), 50])
def test_a_share_out_of_range(memory):
    with pytest.raises(ValueError, match=r"compile\(memory=.* takes a number from 0 to 1, got"):
        fl.compile(STEPS["plain"](), memory=memory)


@pytest.mark.parametrize("memory", ["half", None, True, torch.tensor(0.5)])
def test_a_share_that_is_no_number(memory):
    with pytest.raises(TypeError, match=r"compile\(memory=.* takes a number from 0 to 1, got"):
        fl.compile(STEPS["plain"](), memory=memory)


_MEASURE = """
import ctypes, pathlib, sys
import torch
from torch import nn
import fnloop as fl

def field(name):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return int(dict(line.split(":", 1) for line in lines)[name].split()[0]) * 1024

torch.manual_seed(0)
model = nn.Sequential(*[x for _ in range(12) for x in (nn.Linear(64, 64), nn.GELU())])
step = fl.compile(
    fl.pipe(lambda m, x: m(x).square().mean(), fl.grad, fl.update(fl.optim.sgd(0.1))),
    donate=True, memory=float(sys.argv[1]),
)
state, x = step.init(model, seed=0), torch.randn(16384, 64)
for _ in range(2):
    state, metrics = step(state, x)
ctypes.CDLL(None).malloc_trim(0)
pathlib.Path("/proc/self/clear_refs").write_text("5")
before = field("VmRSS")
state, metrics = step(state, x)
print(field("VmHWM") - before, float(metrics["loss"]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_machine_code_needs_less():
    found = []
    for memory in ("1", "0.4"):
        done = subprocess.run(
            [sys.executable, "-c", _MEASURE, memory],
            env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
        )
        rise, value = done.stdout.split()
        found.append((int(rise), value))
    (most, expected), (less, value) = found
    assert most > 80e6
    assert less < 0.75 * most
    assert value == expected
