"""Everything exported that a step or a run is made of, in examples for the laws on many ranks.

To be exported is to be covered: `tests/laws` fails for a stage, optimizer or callback without an
example, and `examples_of` for a schedule.
"""

from __future__ import annotations

import dataclasses
import inspect

import torch
from torch import nn

import fnloop as fl
from fnloop.stages.accumulate import Accumulate
from fnloop.stages.base import Stage
from fnloop.stages.sequence import Sequence
from tests.laws.test_transforms import EXAMPLES, STAGES, loss


class Net(nn.Module):
    """Sizes that divide unevenly, dropout, a scalar, a frozen part, and one that is not reached."""

    def __init__(self):
        super().__init__()
        self.a, self.drop, self.b = nn.Linear(4, 7), nn.Dropout(0.3), nn.Linear(7, 3)
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.shift = nn.Parameter(torch.ones(3), requires_grad=False)
        self.unused = nn.Linear(3, 3)

    def forward(self, x):
        # Sigmoid: with relu some gradients are zero, of which Adam and others take the sign.
        return self.b(self.drop(torch.sigmoid(self.a(x)))) * self.scale + self.shift


ROWS, BAD = 25, 11


def data(dtype=torch.float32):
    """Batches of 8 and of one, which most ranks have no example of; in the second one is bad."""
    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(ROWS, 4, generator=g), torch.randn(ROWS, 3, generator=g)
    x[BAD] = torch.nan
    return fl.Batches((x.to(dtype), y.to(dtype)), 8, shuffle=False)


def step_of(optimizer, *grad, after=()):
    return fl.pipe(loss, fl.grad, *grad, fl.update(optimizer), *after)


def stages():
    """Steps by name: each exported stage in all its examples."""
    found = {f"{n} {i}": s for n, many in STAGES.items() for i, s in enumerate(many)}
    found["grad 0"] = fl.pipe(loss, fl.grad, fl.update(fl.optim.adamw(0.1)))
    phases = fl.schedules.by_step({0: "a", 2: ["b", "scale"], 4: None})
    found["grad 1"] = fl.pipe(loss, fl.grad(frozen=phases), fl.update(fl.optim.adamw(0.1)))
    found["stage 0"] = fl.pipe(
        fl.stage(fl.grad(loss), "grad"), fl.update(fl.optim.adamw(0.1)), fl.ema(0.9)
    )
    found["sequence 0"] = fl.sequence(
        first=fl.pipe(loss, fl.grad(only="a"), fl.update(fl.optim.adamw(0.1)), fl.ema(0.9)),
        last=fl.pipe(loss, fl.grad(only="b"), fl.accumulate(2), fl.update(fl.optim.sgd(0.1))),
        every={"last": 2},
    )
    return found


def optimizers():
    """Optimizers by name, and everything that a chain is made of."""
    own = {
        "freeze": [
            fl.optim.by_label(
                {"no": fl.optim.freeze(), "yes": fl.optim.adam(1e-2)}, {"a.*": "no", "*": "yes"}
            )
        ],
        "from_torch": [fl.optim.from_torch(torch.optim.NAdam, lr=1e-2)],
    }
    every = {**EXAMPLES, **own}
    return {f"{name} {i}": each for name, many in every.items() for i, each in enumerate(many)}


SCHEDULES = {
    "constant": fl.schedules.constant(1.0),
    "cosine": fl.schedules.cosine(1.0, steps=5, warmup=2),
    "exponential": fl.schedules.exponential(1.0, 0.5),
    "inverse_sqrt": fl.schedules.inverse_sqrt(1.0, warmup=2),
    "join": fl.schedules.join((fl.schedules.constant(1.0), fl.schedules.constant(0.5)), (3,)),
    "linear": fl.schedules.linear(1.0, 0.01, steps=5),
    "one_cycle": fl.schedules.one_cycle(1.0, steps=6),
    "polynomial": fl.schedules.polynomial(1.0, 0.0, steps=6, power=2.0),
    "step_decay": fl.schedules.step_decay(1.0, 0.5, steps=2),
    "uniform": fl.schedules.uniform(),
    "warmup_stable_decay": fl.schedules.warmup_stable_decay(1.0, 6, warmup=2, decay=2),
}


def schedules():
    """Schedules by name."""
    exported = {
        name
        for name, value in vars(fl.schedules).items()
        if inspect.isclass(value) and issubclass(value, fl.schedules.Schedule)
    } - {"Schedule"}
    assert exported == set(SCHEDULES), "add an example of the new schedule"
    return SCHEDULES


def in_parts(stage, k):
    """The step with `k` times as many micro-batches: what `k` ranks are, in one process."""
    if isinstance(stage, Accumulate):
        return dataclasses.replace(stage, k=k * stage.k)
    if isinstance(stage, Sequence):
        return dataclasses.replace(stage, parts=tuple([in_parts(p, k) for p in stage.parts]))
    if isinstance(getattr(stage, "inner", None), Stage):
        return dataclasses.replace(stage, inner=in_parts(stage.inner, k))
    return fl.accumulate(k)(stage)
