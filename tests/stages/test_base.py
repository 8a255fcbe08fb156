"""Stages of one's own: hyperparameters, and errors of wrongly written classes."""

from __future__ import annotations

import copy
import functools
import pickle
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

import fnloop as fl
from fnloop import testing


def loss(model, batch):
    return model(batch).square().mean()


@fl.tree
class Noise(fl.base.GradStage):
    wraps: ClassVar[str] = "grad"
    label: ClassVar[str] = "noise"
    inner: Any
    std: Any = 0.01
    shift: Any = 0.0

    def __call__(self, state, batch):
        std, shift = self.at(state, "std", "shift")
        after, grads = self.inner(state, batch)
        with fl.randomness(state, "noise"):
            mean = grads.mean.map_named(lambda g: g + shift + std * torch.randn_like(g))
        last = fl.Last(torch.as_tensor(std, dtype=torch.float64))
        return after, grads.replace(mean=mean, metrics={**grads.metrics, "noise.std": last})


BATCH = torch.tensor([[1.0, 2.0], [-1.0, 3.0]])


def noisy(std):
    noise = functools.partial(Noise, std=std)
    return fl.pipe(loss, fl.grad, noise, fl.update(fl.optim.sgd(0.01)))


def start(step, seed=0):
    return step.init(lambda: nn.Linear(2, 1), seed)


def test_a_stage_has_schedules():
    step = noisy(fl.schedules.linear(1.0, 0.0, steps=4))
    state, values = start(step), []
    for _ in range(5):
        state, metrics = step(state, BATCH)
        values.append(float(metrics["noise.std"]))
    assert values == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_numbers_and_tensors_are_values_too():
    tensor = torch.tensor(0.5)
    stage = Noise(fl.grad(loss), 2, tensor)
    assert stage.at(start(stage), "shift", "std") == [tensor, 2]


def test_a_stage_with_a_schedule_keeps_the_laws():
    step = noisy(fl.schedules.linear(1.0, 0.0, steps=4))
    testing.check_compiles(step, start(step), [BATCH, BATCH])
    testing.check_vmaps(step, [start(step, seed) for seed in range(3)], BATCH)
    testing.check_layouts(step, start(step), BATCH)
    testing.check_repeatable(step, start(step), BATCH)


def test_settings_in_the_place_of_the_wrapped_stage():
    for std in (0.1, torch.tensor(0.1), fl.schedules.constant(0.1)):
        with pytest.raises(
            TypeError, match=r"noise wraps .*functools\.partial\(Noise, std=\.\.\.\)"
        ):
            fl.pipe(loss, fl.grad, Noise(std), fl.update(fl.optim.sgd(0.1)))


def test_a_stage_class_is_a_tree():
    class Plain(fl.base.GradStage):
        wraps: ClassVar[str] = "grad"
        inner: Any

    class More(Noise):
        decay: float = 0.5

    class Callback(fl.base.Callback):
        name: str = "mine"

    with pytest.raises(
        TypeError, match=r"Plain is no tree, .* as inner\. Write @fl\.tree on the line above"
    ):
        fl.pipe(loss, fl.grad, Plain)
    with pytest.raises(TypeError, match=r"More is no tree, .* as decay"):
        fl.pipe(loss, fl.grad, More)
    with pytest.raises(TypeError, match=r"Callback is no tree, .* as name"):
        Callback()


def test_a_subclass_without_fields_needs_no_decorator():
    class Louder(Noise):
        label: ClassVar[str] = "louder"

    assert "louder" in repr(fl.pipe(loss, fl.grad, Louder))


def test_stages_are_copied_and_pickled():
    stage = fl.pipe(fl.metrics.accuracy, fl.grad, fl.accumulate(2))
    for same in (copy.copy(stage), copy.deepcopy(stage), pickle.loads(pickle.dumps(stage))):
        assert repr(same) == repr(stage)


@fl.tree
class Count(fl.base.StepStage):
    wraps: ClassVar[str] = "step"
    inner: Any
    first: Any = 0
    name: str = "count"

    def init_state(self, state):
        return {"count": self.first}


@pytest.mark.parametrize("first", [0, 1.5, "one"])
def test_memory_is_made_of_tensors(first):
    step = functools.partial(Count, first=first)(fl.pipe(loss, fl.grad, fl.update(fl.optim.lion())))
    message = f"'count' has .* at slots/count/count.*torch.tensor\\({first!r}\\)"
    with pytest.raises(TypeError, match=message):
        start(step)


def test_a_callback_that_sets_itself_up_needs_no_decorator():
    class Steps(fl.base.Callback):
        label: ClassVar[str] = "steps"

        def __init__(self, most):
            self.most = most

        def __call__(self, state, x):
            return state, x

    assert Steps(3).most == 3


def test_a_stage_class_that_sets_itself_up_is_told_what_to_write_instead():
    class Mine(fl.base.StepStage):
        def __init__(self, k):
            self.k = k

    with pytest.raises(TypeError, match=r"Write @fl\.tree .*class Mine\. .*in place of __init__"):
        Mine(3)


def test_a_stage_without_fields_and_decorator_prints_as_itself():
    class Still(fl.base.StepStage):
        def __call__(self, state, x):
            return state, {}

    class Counting(fl.base.Callback):
        def __init__(self, start):
            self.start = start

    assert repr(Still()) == "Still()" and repr(Counting(3)) == "Counting()"
    state = Still().init(nn.Linear(2, 1))
    assert fl.fit(Still(), state, [torch.ones(1, 2)], epochs=1)[1].status == "completed"
