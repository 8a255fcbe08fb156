from __future__ import annotations

import pytest
import torch
from torch import nn

import fnloop as fl
from fnloop import optim
from fnloop.optim.algorithms.sgd import sgd
from fnloop.optim.chains import chain
from fnloop.optim.transforms import (
    add_decayed_weights,
    clip_by_norm,
    clip_by_value,
    freeze,
    scale_by,
)
from fnloop.schedules.decay import constant, linear
from fnloop.values.tensors import Tensors

SHAPES = {"w": (4, 3), "b": (3,)}


def draw(seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return Tensors({n: torch.randn(s, generator=generator, dtype=dtype) for n, s in SHAPES.items()})


def clipped_by_torch(clip, grads, limit):
    leaves = {name: torch.zeros_like(g, requires_grad=True) for name, g in grads.items()}
    for name, leaf in leaves.items():
        leaf.grad = grads[name].clone()
    clip(leaves.values(), limit)
    return {name: leaf.grad for name, leaf in leaves.items()}


@pytest.mark.lightning("T25")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("max_norm", [1e-6, 0.5, 3.0, 1e3])
def test_clip_by_norm_is_that_of_torch(max_norm, dtype):
    grads = draw(0, dtype)
    ours, _ = clip_by_norm(max_norm).update(grads, {}, grads, 0)
    theirs = clipped_by_torch(torch.nn.utils.clip_grad_norm_, grads, max_norm)
    torch.testing.assert_close(dict(ours), theirs, rtol=1e-6, atol=0)


@pytest.mark.lightning("T26")
@pytest.mark.parametrize("limit", [0.1, 1.0, torch.tensor(0.3), constant(0.2)])
def test_clip_by_value_is_that_of_torch(limit):
    grads = draw(0)
    ours, _ = clip_by_value(limit).update(grads, {}, grads, 0)
    number = float(limit(0) if callable(limit) else limit)
    theirs = clipped_by_torch(torch.nn.utils.clip_grad_value_, grads, number)
    assert all(torch.equal(ours[name], theirs[name]) for name in grads)


def test_decay_before_sgd_is_the_penalty_of_torch():
    params = draw(0)
    reference = {name: p.clone().requires_grad_() for name, p in params.items()}
    torch_optimizer = torch.optim.SGD(
        [
            {"params": [reference["w"]], "weight_decay": 0.1},
            {"params": [reference["b"]], "weight_decay": 0.0},
        ],
        lr=0.1,
        momentum=0.9,
    )
    optimizer = chain(add_decayed_weights(0.1, where=["w"]), sgd(0.1, momentum=0.9))
    memory = optimizer.init(params)
    for step in range(20):
        grads = draw(step + 1)
        for name, p in reference.items():
            p.grad = grads[name]
        torch_optimizer.step()
        params, memory = optimizer.apply(grads, memory, params, step, True)
    torch.testing.assert_close(dict(params), {n: p.detach() for n, p in reference.items()})


def test_decay_keeps_the_order_and_refuses_names_that_fit_nothing():
    params = draw(0)
    updated, _ = add_decayed_weights(0.1, where=["b"]).update(draw(1), {}, params, 0)
    assert list(updated) == list(SHAPES)
    torch.testing.assert_close(updated["b"], draw(1)["b"] + 0.1 * params["b"])
    assert torch.equal(updated["w"], draw(1)["w"])
    with pytest.raises(ValueError, match="'bias' fits no parameter"):
        add_decayed_weights(0.1, where=["bias"]).init(params)


def test_scale_by_a_schedule():
    grads = draw(0)
    transform = scale_by(linear(1.0, 0.0, steps=4))
    assert transform.hyperparameters().keys() == {"scale_by.factor"}
    scaled, _ = transform.update(grads, {}, grads, 1)
    torch.testing.assert_close(scaled["w"], 0.75 * grads["w"])


def test_freeze_returns_the_parameters_themselves():
    params = draw(0)
    new, memory = freeze().apply(draw(1), {"freeze": {}}, params, 0, torch.tensor(True))
    assert new is params and memory == {"freeze": {}}
    updates, _ = freeze().update(Tensors({"w": torch.tensor([torch.nan])}), {}, params, 0)
    assert torch.equal(updates["w"], torch.zeros(1))


class Mixed(nn.Module):
    """Parameters of four dtypes, one of them 0-d."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(1.0))
        self.b = nn.Parameter(torch.ones(3, dtype=torch.float64))
        self.c = nn.Parameter(torch.ones(2, dtype=torch.float16))
        self.d = nn.Parameter(torch.ones((), dtype=torch.bfloat16))

    def forward(self, x):
        x = x.double()
        return self.a * (x * self.b).sum() + 3 * self.c.double().sum() + self.d * x.sum()


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("max_norm", [1.0, torch.tensor(1.0), torch.tensor(1.0).double()])
def test_clipping_parameters_of_several_dtypes(compiled, max_norm):
    model, x = Mixed(), torch.ones(2, 3)
    optimizer = optim.chain(optim.clip_by_norm(max_norm), optim.sgd(1.0))
    step = fl.pipe(lambda m, b: m(b), fl.grad, fl.accumulate(2), fl.update(optimizer), fl.ema(0.9))
    step = fl.compile(step, backend="aot_eager") if compiled else step
    state = step.init(model)
    after, _ = step(state, x)
    grads = {"a": 3.0, "b": 1.0, "c": 3.0, "d": 3.0}  # the mean over two examples
    norm = sum(g**2 * state.params[name].numel() for name, g in grads.items()) ** 0.5
    for name, gradient in grads.items():
        moved = (state.params[name].double() - after.params[name].double()) * norm
        assert after.params[name].dtype == state.params[name].dtype
        torch.testing.assert_close(
            moved, torch.full_like(moved, gradient), rtol=2e-2, atol=0, check_dtype=False
        )
