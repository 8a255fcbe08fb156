"""What the eager update costs as the number of parameters grows."""

from __future__ import annotations

import gc
import statistics
import time

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import fnloop as fl

WIDTH = 8


class Operations(TorchDispatchMode):
    """Notes the operations that Python asks torch for; a multi-tensor one is one of them."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is not torch.ops.aten.view.default:  # joining many tensors is one call: views, cat
            self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def model(leaves):
    generator = torch.Generator().manual_seed(0)
    return nn.ParameterList([torch.randn(WIDTH, generator=generator) for _ in range(leaves)])


def ready(leaves, optimizer, *around):
    """A step without forward and backward pass: its gradients are there; and its state."""
    names = [str(i) for i in range(leaves)]
    generator = torch.Generator().manual_seed(1)
    mean = fl.Tensors({name: torch.randn(WIDTH, generator=generator) for name in names})
    grads = fl.Grads(mean, torch.tensor(1), torch.tensor(True), {})
    gradients = fl.stage(lambda state, batch: (state, grads), "grad")
    step = fl.pipe(gradients, fl.update(optimizer), *around)
    return step, step.init(model(leaves))


def operations(leaves, optimizer, *around):
    step, state = ready(leaves, optimizer, *around)
    state, _ = step(state, None)
    with Operations() as seen:
        after, metrics = step(state, None)
    assert float(metrics["skipped"]) == 0
    assert not torch.equal(after.params["0"], state.params["0"])
    return seen.names


STEPS = {
    "sgd": (fl.optim.sgd(0.1),),
    "sgd, momentum": (fl.optim.sgd(0.1, momentum=0.9, nesterov=True),),
    "sgd, dampening": (fl.optim.sgd(0.1, momentum=0.9, dampening=0.1, weight_decay=0.1),),
    "adam": (fl.optim.adam(0.1),),
    "adamw": (fl.optim.adamw(0.1),),
    "adamw, amsgrad": (fl.optim.adamw(0.1, amsgrad=True),),
    "adamw, schedule": (fl.optim.adamw(fl.schedules.cosine(0.1, steps=100)),),
    "adagrad": (fl.optim.adagrad(0.1),),
    "adadelta": (fl.optim.adadelta(0.1),),
    "adamax": (fl.optim.adamax(0.1),),
    "nadam": (fl.optim.nadam(0.1),),
    "rmsprop": (fl.optim.rmsprop(0.1, momentum=0.9, centered=True),),
    "lion": (fl.optim.lion(0.1),),
    "clip_by_norm": (fl.optim.chain(fl.optim.clip_by_norm(1.0), fl.optim.adamw(0.1)),),
    "clip_by_value": (fl.optim.chain(fl.optim.clip_by_value(1.0), fl.optim.adamw(0.1)),),
    "ema": (fl.optim.adamw(0.1), fl.ema(0.9)),
    "ema, schedule": (fl.optim.adamw(0.1), fl.ema(fl.schedules.linear(0.9, 0.99, steps=100))),
}


@pytest.mark.parametrize("case", STEPS)
def test_more_parameters_are_no_more_operations(case):
    few, many = operations(10, *STEPS[case]), operations(200, *STEPS[case])
    assert many == few
    assert any("_foreach_" in name or "_fused_" in name for name in few)


def test_operations_leaf_by_leaf_would_be_seen():
    xs = fl.Tensors({str(i): torch.ones(2) for i in range(20)})
    with Operations() as seen:
        xs.add(xs)
    assert len(seen.names) == 1
    wanted = fl.Tensors({name: x.clone().requires_grad_() for name, x in xs.items()})
    with Operations() as seen:
        wanted.add(xs)  # kernels for many tensors know no derivative
    assert len(seen.names) == 20


@pytest.mark.parametrize("bad", [None, torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_search_for_what_is_not_finite_changes_nothing(dtype, bad):
    xs = [torch.ones(3, 2, dtype=dtype) for _ in range(50)] + [torch.ones(()), torch.empty(0)]
    if bad is not None:
        xs[31][2, 1] = bad
    before, versions = [x.clone() for x in xs], [x._version for x in xs]
    # As it is called: half-precision gradients are float32 by then.
    named = fl.Tensors({str(i): x for i, x in enumerate(xs)}).wide()
    with Operations() as seen:
        found = named.all_finite()
    assert found.dtype == torch.bool and bool(found) == (bad is None)
    if bad is None:  # else each is looked at by itself, since only their norm may have overflowed
        assert len(seen.names) < 12
    assert [x._version for x in xs] == versions
    for x, kept in zip(xs, before, strict=True):
        torch.testing.assert_close(x, kept, rtol=0, atol=0, equal_nan=True)


def torch_adamw(leaves):
    parameters = list(model(leaves).parameters())
    for parameter in parameters:
        parameter.grad = torch.randn(WIDTH)
    return torch.optim.AdamW(parameters, lr=1e-3, fused=True).step


def fnloop_step(leaves, *parts):
    step, state = ready(leaves, *parts)

    def one():
        nonlocal state
        state, _ = step(state, None)

    return one


def seconds(functions, rounds=15):
    """The median seconds of one call of each, taken in turn."""
    samples = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            gc.collect()
            gc.disable()
            start = time.process_time()
            for _ in range(5):
                function()
            samples[name].append((time.process_time() - start) / 5)
            gc.enable()
    return {name: statistics.median(times) for name, times in samples.items()}


@pytest.mark.slow
@pytest.mark.parametrize("case", ["sgd, momentum", "adamw", "clip_by_norm", "ema", "lion"])
def test_time_is_linear_in_the_number_of_parameters(case):
    sizes = (300, 3000)
    times = seconds({n: fnloop_step(n, *STEPS[case]) for n in sizes})
    small, large = (times[n] / n for n in sizes)
    assert large < 2.5 * small  # small tensors that fall out of the caches take longer
    assert large < 40e-6


@pytest.mark.slow
@pytest.mark.parametrize("leaves", [10, 100, 1000, 10_000])
def test_adamw_is_near_the_fused_one_of_torch(leaves):
    # It makes new parameters and moments, where that of torch writes over the old ones.
    times = seconds(
        {"torch": torch_adamw(leaves), "fnloop": fnloop_step(leaves, fl.optim.adamw(1e-3))}
    )
    assert times["fnloop"] < 2.5 * times["torch"]
