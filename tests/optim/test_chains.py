from __future__ import annotations

import pytest
import torch
from torch import nn

import fnloop as fl
from fnloop import optim
from fnloop.optim.algorithms.adam import adamw
from fnloop.optim.algorithms.sgd import sgd
from fnloop.optim.chains import chain
from fnloop.optim.transforms import clip_by_norm, freeze
from fnloop.schedules.decay import cosine
from fnloop.values.tensors import Tensors


@pytest.mark.lightning("T25", "X3")
def test_clipping_before_adamw_is_torch_s_loop():
    generator = torch.Generator().manual_seed(0)
    draw = lambda: Tensors({n: torch.randn(s, generator=generator) for n, s in shapes.items()})  # noqa: E731
    shapes = {"w": (4, 3), "b": (3,)}
    params = draw()
    reference = {name: p.clone().requires_grad_() for name, p in params.items()}
    torch_optimizer = torch.optim.AdamW(list(reference.values()), lr=0.01)
    optimizer = chain(clip_by_norm(1.5), adamw(0.01))
    memory = optimizer.init(params)
    for step in range(50):
        grads = draw()
        for name, p in reference.items():
            p.grad = grads[name].clone()
        torch.nn.utils.clip_grad_norm_(reference.values(), 1.5)
        torch_optimizer.step()
        params, memory = optimizer.apply(grads, memory, params, step, True)
    torch.testing.assert_close(dict(params), {n: p.detach() for n, p in reference.items()})


def test_memory_and_hyperparameters_are_flat_by_name():
    optimizer = chain(clip_by_norm(1.0), chain(sgd(0.1, momentum=0.9), adamw(0.2)))
    params = Tensors({"w": torch.ones(2)})
    assert list(optimizer.init(params)) == ["clip_by_norm", "sgd", "adamw"]
    assert optimizer.names() == ("clip_by_norm", "sgd", "adamw")
    assert optimizer.resolve(0, {"adamw.lr": 0.5, "sgd.lr": 2.0}).hyperparameters() == {
        "sgd.lr": 0.2,
        "sgd.weight_decay": 0.0,
        "adamw.lr": 0.1,
        "adamw.weight_decay": 0.01,
    }


def test_earlier_memory_also_stays_where_the_step_is_not_finite():
    optimizer = chain(sgd(0.1, momentum=0.9), optim.scale_by(0.5))
    params = Tensors({"w": torch.ones(2)})
    memory = optimizer.init(params)
    grads = Tensors({"w": torch.tensor([1.0, torch.nan])})
    _, new = optimizer.apply(grads, memory, params, 0, torch.tensor(False))
    assert torch.equal(new["sgd"]["momentum"]["w"], torch.zeros(2))


def test_two_of_one_name_are_an_error():
    with pytest.raises(ValueError, match=r"named 'sgd'.*name="):
        chain(sgd(0.1), sgd(0.2))
    assert chain(sgd(0.1), sgd(0.2, name="second")).names() == ("sgd", "second")


def test_what_is_no_optimizer_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        chain()
    with pytest.raises(TypeError, match="must be called"):
        chain(clip_by_norm(1.0), adamw)
    with pytest.raises(TypeError, match="from_torch"):
        chain(torch.optim.SGD([torch.ones(1)], lr=0.1))


def test_repr_reads_as_it_is_written():
    text = repr(chain(clip_by_norm(1.0), adamw(cosine(0.1, steps=10))))
    assert text.startswith("chain(clip_by_norm(max_norm=1.0")
    assert "adamw(lr=cosine(peak=0.1, steps=10" in text


def test_ending_in_freeze_nothing_moves():
    optimizer = chain(adamw(0.1), freeze())
    params = Tensors({"w": torch.ones(2)})
    new, memory = optimizer.apply(params, optimizer.init(params), params, 0, True)
    assert torch.equal(new["w"], params["w"]) and optimizer.makes == "zeros"
    assert float(memory["adamw"]["count"]) == 1.0


FREEZING = {
    "by_label": optim.by_label(
        {"head": optim.sgd(1.0), "body": optim.freeze()}, {"head": "head", "*": "body"}
    ),
    "nested": optim.by_label(
        {
            "head": optim.sgd(1.0),
            "body": optim.by_label({"all": optim.freeze()}, {"*": "all"}),
        },
        {"head": "head", "*": "body"},
    ),
    "masked": optim.masked(optim.sgd(1.0), ["head"]),
    "masked freeze": optim.chain(optim.masked(optim.freeze(), ["body"]), optim.sgd(1.0)),
}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", FREEZING)
def test_a_frozen_gradient_counts_in_no_norm(name, compiled):
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("body", nn.Linear(3, 3))
    model.add_module("head", nn.Linear(3, 1))
    x = torch.randn(8, 3)
    optimizer = optim.chain(optim.clip_by_norm(0.1), FREEZING[name])
    step = fl.pipe(lambda m, b: m(b).square().sum(), fl.grad, fl.update(optimizer))
    step = fl.compile(step, backend="aot_eager") if compiled else step
    state = step.init(model)
    after, _ = step(state, x)
    model.body.requires_grad_(False)  # torch's way to freeze
    model(x).square().sum().backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    torch.optim.SGD(model.head.parameters(), 1.0).step()
    for parameter, value in model.named_parameters():
        torch.testing.assert_close(after.params[parameter], value.detach())
    assert after.params["body.weight"].equal(state.params["body.weight"])


def test_without_frozen_parameters_the_gradients_are_the_same_object():
    params = Tensors({"a": torch.ones(2), "b": torch.ones(3)})
    plain = optim.chain(optim.clip_by_norm(0.1), optim.sgd(1.0))
    assert plain._used(params, params) is params
    alone = optim.chain(optim.clip_by_value(0.1), optim.masked(optim.sgd(1.0), ["a"]))
    assert alone._used(params, params) is params, "nothing mixes"
