"""`State.calls` counts every call of the step, and randomness counts it."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import nn

import fnloop as fl
from fnloop.stages.guard import guard


class Net(nn.Module):
    """Its output shows the mask of its dropout."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(40))
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(self.weight) * x.mean()


def loss(model, x):
    return model(x).square().mean(), {"mask": fl.Last(model.drop(torch.ones(40)).detach())}


def step_of(*after, grad=()):
    return fl.pipe(loss, fl.grad, *grad, fl.update(fl.optim.sgd(0.1)), *after)


GOOD, BAD = torch.ones(4, 1), torch.full((4, 1), torch.nan)
STEPS = {
    "update": step_of(),
    "accumulate": step_of(grad=[fl.accumulate(2)]),
    "amp": step_of(grad=[fl.amp("fp16")]),
    "ema": step_of(fl.ema(0.9)),
    "guard": step_of(guard(fl.rules.nonfinite("loss"))),
    "rewind": step_of(guard(fl.rules.nonfinite("loss"), then="rewind")),
    "lifted": fl.stage(lambda state, x: (state.replace(step=state.step + 1), {}), "step"),
}


@pytest.mark.lightning("M7")
@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("compiled", [False, True])
def test_they_move_by_one_whatever_happens(name, compiled):
    step = fl.compile(STEPS[name], backend="aot_eager") if compiled else STEPS[name]
    state = step.init(Net(), seed=3)
    assert state.calls.dtype == torch.int64 and state.calls.is_cpu and int(state.calls) == 0
    for i, x in enumerate([GOOD, BAD, BAD, GOOD], 1):
        state, _ = step(state, x)
        assert int(state.calls) == i and state.calls.dtype == torch.int64
        assert int(state.key) == 3
    assert int(state.step) == {"lifted": 4, "rewind": 1}.get(name, 2)


def test_masks_change_after_a_skipped_step_and_compiled_ones_are_the_same():
    step = step_of()
    fast = fl.compile(step, backend="aot_eager")
    a = b = step.init(Net())
    masks = []
    for x in (BAD, BAD, GOOD, GOOD):
        before = a
        a, metrics = step(a, x)
        assert torch.equal(step(before, GOOD)[1]["mask"].value(), metrics["mask"].value())
        masks.append(metrics["mask"].value())
        b, metrics = fast(b, x)
        assert torch.equal(masks[-1], metrics["mask"].value())
    assert fl.tree_diff(a, b) == "" or torch.allclose(a.params["weight"], b.params["weight"])
    for i in range(4):
        for j in range(i):
            assert not torch.equal(masks[i], masks[j])


def test_they_are_saved_and_a_run_goes_on_with_them(tmp_path):
    step = step_of()
    state = step.init(Net())
    for x in (GOOD, BAD, GOOD):
        state, _ = step(state, x)
    loaded = fl.load(fl.save(state, tmp_path), like=step.init(Net()))
    assert int(loaded.calls) == 3
    assert fl.tree_diff(step(state, GOOD), step(loaded, GOOD)) == ""


@fl.tree
class Tally(fl.base.StepStage):
    """A stage of a user's own, whose memory counts the calls, taken back or not."""

    wraps: ClassVar[Any] = "step"
    label: ClassVar[str] = "tally"
    inner: Any
    survives: bool
    name: str = "tally"

    def init_state(self, state):
        return {"calls": torch.zeros((), dtype=torch.int64)}

    def taken_back(self, memory):
        return {} if self.survives else memory

    def __call__(self, state, x):
        after, metrics = self.inner(state, x)
        return after.put(self.name, {"calls": after[self.name]["calls"] + 1}), metrics


def too_high(state, metrics):
    return state, {**metrics, "bad": metrics["loss"].value() > 10}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("then", ["skip", "rewind"])
@pytest.mark.parametrize("survives", [False, True])
def test_a_guard_asks_a_stage_what_is_taken_back(survives, then, compiled):
    def tally(inner):
        return Tally(inner, survives)

    step = step_of(tally, guard(too_high, then=then, every=1))
    step = fl.compile(step, backend="aot_eager") if compiled else step
    state = step.init(Net())
    high = torch.full((4, 1), 100.0)
    counts = []
    for x in (GOOD, high, high, GOOD):
        state, metrics = step(state, x)
        counts.append((int(state["tally"]["calls"]), float(metrics["guard"])))
    if survives:
        assert counts == [(1, 0), (2, 1), (3, 1), (4, 0)]
    else:
        back = 1 if then == "skip" else 0
        assert counts == [(1, 0), (back, 1), (back, 1), (back + 1, 0)]


def test_a_stream_of_ones_own_is_a_function_of_key_calls_part_and_name():
    drawn = []

    def noisy(state, x):
        with fl.randomness(state, "noise"):
            drawn.append(torch.rand(3))
        with fl.randomness(state, "other"):
            drawn.append(torch.rand(3))
        return fl.grad(loss)(state, x)

    step = fl.pipe(fl.stage(noisy, "grad"), fl.accumulate(2), fl.update(fl.optim.sgd(0.1)))
    state = step.init(Net())
    before = torch.get_rng_state()
    after, _ = step(state, BAD)
    step(after, GOOD)
    assert torch.equal(before, torch.get_rng_state())
    assert len({tuple(x.tolist()) for x in drawn}) == len(drawn) == 8
    drawn.clear()
    step(state, GOOD)
    first = list(drawn)
    drawn.clear()
    step(state.replace(step=state.step + 5), GOOD)
    assert all(map(torch.equal, first, drawn))


def test_a_gradient_stage_may_copy_the_state_inside_accumulate():
    def cautious(state, x):
        copied = fl.tree_map(torch.clone, state)
        after, grads = fl.grad(loss)(copied, x)
        return fl.tree_map(torch.clone, after), grads

    plain = step_of(grad=[fl.accumulate(2)])
    step = fl.pipe(fl.stage(cautious, "grad"), fl.accumulate(2), fl.update(fl.optim.sgd(0.1)))
    state = plain.init(Net())
    assert fl.tree_diff(plain(state, GOOD), step(state, GOOD)) == ""
    half = fl.pipe(
        fl.stage(cautious, "grad"), fl.accumulate(2), fl.amp("fp16"), fl.update(fl.optim.sgd(0.1))
    )
    half(half.init(Net()), GOOD)
