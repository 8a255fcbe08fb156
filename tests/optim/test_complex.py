"""Complex parameters: pairs of reals, as ``torch.optim`` takes them."""

from __future__ import annotations

import functools

import pytest
import torch

import fnloop as fl
from fnloop import optim
from fnloop.transforms.plan import packed
from fnloop.values.tensors import Tensors

SHAPES = {"w": (3, 2), "b": (2,), "gain": ()}
B = {"betas": (0.8, 0.95)}
OURS = {"b1": 0.8, "b2": 0.95}

CASES = {
    "adam": (optim.adam(0.1, **OURS), torch.optim.Adam, {"lr": 0.1, **B}),
    "adam, penalty": (
        optim.adam(0.1, weight_decay=0.1, **OURS),
        torch.optim.Adam,
        {"lr": 0.1, "weight_decay": 0.1, **B},
    ),
    "adamw": (optim.adamw(0.1, **OURS), torch.optim.AdamW, {"lr": 0.1, **B}),
    "amsgrad": (
        optim.adam(0.1, amsgrad=True, **OURS),
        torch.optim.Adam,
        {"lr": 0.1, "amsgrad": True, **B},
    ),
    "nadam": (optim.nadam(0.1, **OURS), torch.optim.NAdam, {"lr": 0.1, **B}),
    "radam": (
        optim.radam(0.1, b1=0.9, b2=0.5),
        torch.optim.RAdam,
        {"lr": 0.1, "betas": (0.9, 0.5)},
    ),
    "radam, adapted": (
        optim.radam(0.1, b1=0.8, b2=0.999),
        torch.optim.RAdam,
        {"lr": 0.1, "betas": (0.8, 0.999)},
    ),
    "rmsprop": (optim.rmsprop(0.1), torch.optim.RMSprop, {"lr": 0.1}),
    "rmsprop, centered": (
        optim.rmsprop(0.1, centered=True),
        torch.optim.RMSprop,
        {"lr": 0.1, "centered": True},
    ),
    "rmsprop, momentum": (
        optim.rmsprop(0.1, momentum=0.9),
        torch.optim.RMSprop,
        {"lr": 0.1, "momentum": 0.9},
    ),
    "adagrad": (optim.adagrad(0.1), torch.optim.Adagrad, {"lr": 0.1}),
    "adagrad, decay": (
        optim.adagrad(0.1, lr_decay=0.1, weight_decay=0.1),
        torch.optim.Adagrad,
        {"lr": 0.1, "lr_decay": 0.1, "weight_decay": 0.1},
    ),
    "adadelta": (optim.adadelta(1.0), torch.optim.Adadelta, {"lr": 1.0}),
    "adamax": (optim.adamax(0.1, **OURS), torch.optim.Adamax, {"lr": 0.1, **B}),
    "sgd": (optim.sgd(0.1), torch.optim.SGD, {"lr": 0.1}),
    "sgd, momentum": (
        optim.sgd(0.1, momentum=0.9, dampening=0.1, weight_decay=0.1),
        torch.optim.SGD,
        {"lr": 0.1, "momentum": 0.9, "dampening": 0.1, "weight_decay": 0.1},
    ),
    "sgd, nesterov": (
        optim.sgd(0.1, momentum=0.9, nesterov=True),
        torch.optim.SGD,
        {"lr": 0.1, "momentum": 0.9, "nesterov": True},
    ),
}
for name, (_, cls, keywords) in list(CASES.items()):
    CASES[f"from_torch, {name}"] = (optim.from_torch(cls, **keywords), cls, keywords)


def draw(seed, dtype=torch.complex64):
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(s, generator=generator, dtype=dtype) for n, s in SHAPES.items()}


def complex_parts(tensors):
    return all(t.is_complex() for t in tensors.values())


RUNS = [
    (name, path)
    for name in CASES
    for path in ("apply", "update", "vmap")
    if path != "vmap" or not name.startswith("from_torch")
]


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize(("name", "path"), RUNS)
def test_five_steps_are_those_of_torch(name, dtype, path):
    optimizer, cls, keywords = CASES[name]
    start = draw(0, dtype)
    leaves = {n: p.clone().requires_grad_() for n, p in start.items()}
    reference = cls(list(leaves.values()), **keywords)
    params = Tensors(start)
    memory = optimizer.init(params)
    for step in range(5):
        grads = draw(step + 1, dtype)
        for n, p in leaves.items():
            p.grad = grads[n].clone()
        reference.step()
        if path == "apply":
            params, memory = optimizer.apply(Tensors(grads), memory, params, step, True)
        elif path == "update":
            updates, memory = optimizer.update(Tensors(grads), memory, params, step)
            params = params.add(updates)
        else:
            one = fl.tree_map(lambda leaf: leaf[None], (Tensors(grads), memory, params))
            made = torch.func.vmap(functools.partial(apply, optimizer, step))(*one)
            params, memory = fl.tree_map(lambda leaf: leaf[0], made)
    assert complex_parts(params)
    # torch keeps some products of the momenta in float32, whatever the parameters are.
    rtol, atol = (1e-4, 1e-5) if dtype == torch.complex64 else (1e-6, 1e-7)
    expected = {n: p.detach() for n, p in leaves.items()}
    torch.testing.assert_close(dict(params), expected, rtol=rtol, atol=atol)


def apply(optimizer, step, grads, memory, params):
    return optimizer.apply(grads, memory, params, step, True)


class Wave(torch.nn.Module):
    def __init__(self):
        super().__init__()
        for name, value in draw(3).items():
            self.register_parameter(name, torch.nn.Parameter(value))
        self.real = torch.nn.Linear(2, 2)

    def forward(self, x):
        z = (x.to(torch.complex64) @ self.w + self.b) * self.gain
        return z.abs() + self.real(z.real)


def loss(model, x):
    return model(x).square().mean()


@pytest.mark.parametrize(
    "optimizer",
    [
        optim.lion(0.01, weight_decay=0.1),
        optim.lamb(0.01),
        optim.prodigy(0.1, d0=0.01),
        optim.schedule_free(optim.sgd(0.1)),
        optim.chain(optim.clip_by_value(0.1), optim.sgd(0.1)),
        optim.chain(optim.clip_by_norm(0.1), optim.adamw(0.01)),
        optim.chain(optim.add_decayed_weights(0.1), optim.scale_by(0.5), optim.sgd(0.1)),
    ],
    ids=repr,
)
def test_others_run_and_stay_finite(optimizer):
    step = fl.pipe(loss, fl.grad, fl.update(optimizer), fl.ema(0.9))
    state = step.init(Wave())
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    fl.testing.check_layouts(step, state, x)
    for each in (state, packed(state)):
        first = float(step(each, x)[1]["loss"])
        for _ in range(5):
            each, metrics = step(each, x)
        assert each.params.all_finite() and float(metrics["skipped"]) == 0
        assert each.params["w"].is_complex() and not torch.equal(
            each.params["w"], state.params["w"]
        )
        assert float(metrics["loss"]) < first


def test_clipping_by_value_cuts_both_parts():
    grads = Tensors({"z": torch.tensor([3 + 0.5j, -0.2 - 4j])})
    clipped, _ = optim.clip_by_value(1.0).update(grads, {}, grads, 0)
    assert clipped["z"].tolist() == pytest.approx([1 + 0.5j, -0.2 - 1j])


def test_clipping_by_norm_is_that_of_torch():
    grads = Tensors(draw(1))
    clipped, _ = optim.clip_by_norm(0.5).update(grads, {}, grads, 0)
    leaves = [torch.zeros_like(g, requires_grad=True) for g in grads.values()]
    for leaf, g in zip(leaves, grads.values(), strict=True):
        leaf.grad = g.clone()
    torch.nn.utils.clip_grad_norm_(leaves, 0.5)
    for got, leaf in zip(clipped.values(), leaves, strict=True):
        torch.testing.assert_close(got, leaf.grad)


@pytest.mark.parametrize(
    "optimizer", [optim.muon(), optim.adafactor(), optim.soap()], ids=["muon", "adafactor", "soap"]
)
def test_what_has_no_meaning_for_complex_numbers_says_so(optimizer):
    kind = type(optimizer).__name__
    params = Tensors({"w": torch.ones(2, 2, dtype=torch.complex64), "v": torch.ones(2, 2)})
    message = rf"{kind} is not defined for complex parameters \(w c64\[2,2\]\)\..*by_label"
    with pytest.raises(TypeError, match=message):
        optimizer.init(params)
    with pytest.raises(TypeError, match=message.replace("w c64", ".*c64").replace("2,2", ".*")):
        fl.pipe(loss, fl.grad, fl.update(optimizer)).init(Wave())
