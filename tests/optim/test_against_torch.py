"""Every optimizer that torch has follows torch's over 100 steps."""

from __future__ import annotations

import itertools

import pytest
import torch

from fnloop import optim
from fnloop.values.tensors import Tensors

SHAPES = {"b": (3,), "conv": (2, 2, 3, 3), "gain": ()}
STEPS = 100


def options(**choices):
    """Every combination of the choices; of those of the penalty, none and both."""
    penalties = choices.pop("penalty", [{}])
    return [
        {**dict(zip(choices, values, strict=True)), **penalty}
        for *values, penalty in itertools.product(*choices.values(), penalties)
    ]


def renamed(keywords, **names):
    return {names.get(key, key): value for key, value in keywords.items()}


def betas(keywords):
    b1, b2 = keywords.pop("betas")
    return {**keywords, "b1": b1, "b2": b2}


# The sign of the gradient and the penalty are tried together: their order matters.
PENALTY = {"penalty": [{}, {"weight_decay": 0.1, "maximize": True}]}

# torch's class, ours, torch's keywords, and these as ours
CASES = [
    *(
        (torch.optim.SGD, optim.sgd, kw, dict)
        for kw in [
            *options(lr=[0.05], momentum=[0.0, 0.9], **PENALTY),
            *options(lr=[0.05], momentum=[0.9], dampening=[0.0, 0.3], weight_decay=[0.1]),
            *options(lr=[0.05], momentum=[0.9], nesterov=[True], **PENALTY),
        ]
    ),
    *(
        (theirs, ours, kw, betas)
        for theirs, ours in ((torch.optim.Adam, optim.adam), (torch.optim.AdamW, optim.adamw))
        for kw in options(lr=[0.01], betas=[(0.8, 0.95)], amsgrad=[False, True], **PENALTY)
    ),
    *(
        (torch.optim.Adamax, optim.adamax, kw, betas)
        for kw in options(lr=[0.01], betas=[(0.8, 0.95)], **PENALTY)
    ),
    *(
        (
            torch.optim.NAdam,
            optim.nadam,
            kw,
            lambda kw: betas(renamed(kw, decoupled_weight_decay="decoupled")),
        )
        for kw in options(
            lr=[0.01], betas=[(0.8, 0.95)], decoupled_weight_decay=[False, True], **PENALTY
        )
    ),
    *(
        (
            torch.optim.RAdam,
            optim.radam,
            kw,
            lambda kw: betas(renamed(kw, decoupled_weight_decay="decoupled")),
        )
        for kw in options(
            lr=[0.01],
            betas=[(0.8, 0.95), (0.9, 0.5)],
            decoupled_weight_decay=[False, True],
            **PENALTY,
        )
    ),
    *(
        (torch.optim.RMSprop, optim.rmsprop, kw, dict)
        for kw in options(
            lr=[0.01], alpha=[0.9], centered=[False, True], momentum=[0.0, 0.9], **PENALTY
        )
    ),
    *(
        (
            torch.optim.Adagrad,
            optim.adagrad,
            kw,
            lambda kw: renamed(kw, initial_accumulator_value="initial_accumulator"),
        )
        for kw in options(
            lr=[0.1], lr_decay=[0.0, 0.1], initial_accumulator_value=[0.0, 0.5], **PENALTY
        )
    ),
    *((torch.optim.Adadelta, optim.adadelta, kw, dict) for kw in options(lr=[1.0], **PENALTY)),
    *(
        (
            torch.optim.Adafactor,
            optim.adafactor,
            kw,
            lambda kw: {
                **{k: v for k, v in kw.items() if k not in ("eps", "d")},
                "eps1": kw["eps"][0],
                "eps2": kw["eps"][1],
                "clip_threshold": kw["d"],
            },
        )
        for kw in [
            *options(lr=[0.05], eps=[(None, 1e-3)], d=[1.0, 1.2], **PENALTY),
            {"lr": 10.0, "eps": (0.1, 2.0), "d": 1.2},
        ]
    ),
    *(
        (
            torch.optim.Muon,
            optim.muon,
            kw,
            lambda kw: renamed(kw, adjust_lr_fn="adjust_lr"),
        )
        for kw in options(
            lr=[0.05],
            weight_decay=[0.0, 0.1],
            nesterov=[False, True],
            adjust_lr_fn=["original", "match_rms_adamw"],
        )
    ),
]


def label(value):
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, type):
        return value.__name__ if value.__name__[0].isupper() else ""
    if isinstance(value, dict):
        return ",".join(f"{k}={v}" for k, v in value.items() if k not in ("lr", "betas"))
    return ""


@pytest.fixture
def default_dtype(dtype):
    # torch keeps its steps, and NAdam's product of momenta, in the default dtype.
    torch.set_default_dtype(dtype)
    yield
    torch.set_default_dtype(torch.float32)


RUNS = [
    (*case, dtype)
    for case in CASES
    for dtype in (torch.float64, torch.float32)
    if dtype == torch.float64 or case[2].get("weight_decay")
]


@pytest.mark.parametrize(("theirs", "ours", "keywords", "translate", "dtype"), RUNS, ids=label)
def test_100_steps(theirs, ours, keywords, translate, dtype, default_dtype):
    generator = torch.Generator().manual_seed(0)
    shapes = {"w": (5, 3), "v": (3, 7)} if theirs is torch.optim.Muon else SHAPES
    start = Tensors(
        {n: torch.randn(s, generator=generator, dtype=dtype) for n, s in shapes.items()}
    )
    optimizer = ours(**translate(dict(keywords)))
    modules = {n: p.clone().requires_grad_() for n, p in start.items()}
    reference = theirs(list(modules.values()), **keywords)
    updated, applied = start, start
    updated_memory = applied_memory = optimizer.init(start)
    for step in range(STEPS):
        # A pull towards zero, so that the sequence also depends on where the parameters are.
        noise = {n: torch.randn(s, generator=generator, dtype=dtype) for n, s in shapes.items()}
        for name, p in modules.items():
            p.grad = noise[name] + 0.1 * p.detach()
        reference.step()
        grads = Tensors({n: noise[n] + 0.1 * p for n, p in updated.items()})
        updates, updated_memory = optimizer.update(grads, updated_memory, updated, step)
        updated = updated.add(updates)
        grads = Tensors({n: noise[n] + 0.1 * p for n, p in applied.items()})
        applied, applied_memory = optimizer.apply(grads, applied_memory, applied, step, True)
    # Muon iterates in bfloat16, where one rounding apart is 2**-8.
    rtol, atol = (1e-9, 1e-11) if dtype == torch.float64 else (2e-4, 2e-5)
    for name, p in modules.items():
        torch.testing.assert_close(updated[name], p.detach(), rtol=rtol, atol=atol)
        torch.testing.assert_close(applied[name], p.detach(), rtol=rtol, atol=atol)


def test_every_class_of_torch_is_covered_or_named_here():
    without_ours = {"ASGD", "LBFGS", "Optimizer", "Rprop", "SparseAdam"}
    classes = {name for name in dir(torch.optim) if isinstance(getattr(torch.optim, name), type)}
    assert classes - without_ours == {theirs.__name__ for theirs, *_ in CASES}
