from __future__ import annotations

import pytest
import torch

from fnloop.optim.algorithms.adam import adamw
from fnloop.optim.algorithms.sgd import sgd
from fnloop.optim.chains import chain
from fnloop.optim.labels import by_label
from fnloop.optim.transforms import clip_by_norm, freeze
from fnloop.schedules.decay import constant
from fnloop.values.tensors import Tensors

PARAMS = Tensors({"head.w": torch.ones(2, 2), "body.w": torch.ones(2, 2), "head.b": torch.ones(2)})
GRADS = PARAMS.scale(3.0)


def test_each_label_is_its_own_torch_optimizer():
    optimizer = by_label(
        {"head": sgd(0.1, momentum=0.9), "body": adamw(0.01), "none": freeze()},
        {"head.b": "none", "head": "head", "*": "body"},
    )
    generator = torch.Generator().manual_seed(0)
    reference = {name: p.clone().requires_grad_() for name, p in PARAMS.items()}
    theirs = [
        torch.optim.SGD([reference["head.w"]], lr=0.1, momentum=0.9),
        torch.optim.AdamW([reference["body.w"]], lr=0.01),
    ]
    params, memory = PARAMS, optimizer.init(PARAMS)
    for step in range(20):
        grads = PARAMS.map_named(lambda p: torch.randn(p.shape, generator=generator))
        for name, p in reference.items():
            p.grad = grads[name]
        for torch_optimizer in theirs:
            torch_optimizer.step()
        params, memory = optimizer.apply(grads, memory, params, step, True)
    assert list(params) == list(PARAMS)
    torch.testing.assert_close(dict(params), {n: p.detach() for n, p in reference.items()})
    assert params["head.b"] is PARAMS["head.b"]


def test_memory_and_hyperparameters_have_the_label_in_front():
    optimizer = by_label(
        {"a": chain(clip_by_norm(1.0), adamw(0.5)), "b": sgd(constant(0.1))},
        lambda name, p: "a" if name.startswith("head") else "b",
    )
    assert set(optimizer.init(PARAMS)) == {"a.clip_by_norm", "a.adamw", "b.sgd"}
    assert optimizer.names() == ("a.clip_by_norm", "a.adamw", "b.sgd")
    assert optimizer.resolve(7, {"a.adamw.lr": 0.1, "b.sgd.lr": 2.0}).hyperparameters() == {
        "a.adamw.lr": 0.05,
        "a.adamw.weight_decay": 0.01,
        "b.sgd.lr": 0.2,
        "b.sgd.weight_decay": 0.0,
    }


def test_one_inside_another():
    inner = by_label({"w": sgd(1.0), "b": freeze()}, {"*.w": "w", "*.b": "b"})
    outer = by_label({"head": inner, "rest": sgd(0.5)}, {"head": "head", "*": "rest"})
    assert set(outer.init(PARAMS)) == {"head.w.sgd", "head.b.freeze", "rest.sgd"}
    new, _ = outer.apply(GRADS, outer.init(PARAMS), PARAMS, 0, True)
    assert {n: float(p.flatten()[0]) for n, p in new.items()} == {
        "head.w": -2.0,
        "body.w": -0.5,
        "head.b": 1.0,
    }


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"head": "a"}, r"'body\.w' has label None"),
        (lambda name, p: "c", r"'head\.w' has label 'c'; .* 'a', 'b'"),
        ({"*": "a", "tail": "b"}, "'tail' fits no parameter"),
    ],
)
def test_labels_that_do_not_fit_are_errors(labels, message):
    with pytest.raises(ValueError, match=message):
        by_label({"a": sgd(0.1), "b": freeze()}, labels).init(PARAMS)


def test_optimizers_and_transforms_do_not_mix():
    with pytest.raises(ValueError, match="must go through an optimizer"):
        by_label({"a": sgd(0.1), "b": clip_by_norm(1.0)}, {"*": "a"})
    assert by_label({"a": freeze(), "b": clip_by_norm(1.0)}, {"*": "a"}).makes == "gradients"


def test_what_is_no_optimizer_is_refused():
    with pytest.raises(TypeError, match="'a' must be an optimizer"):
        by_label({"a": sgd}, {"*": "a"})
