"""Precisions of modules, against nested torch.autocast written into the model by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import fnloop as fl
from fnloop.loop.hyperparameters import hyperparameters


class Net(nn.Module):
    """Optionally with float32 in the head, or float16 in the body, by hand."""

    def __init__(self, by_hand=(), recomputed=False):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.Linear(16, 16))
        self.head = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 3))
        self.by_hand, self.recomputed = by_hand, recomputed

    def forward(self, x):
        if "body" in self.by_hand:
            with torch.autocast("cpu", dtype=torch.float16):
                h = self.body(x)
        else:
            h = self.body(x)
        if "head" in self.by_hand:
            with torch.autocast("cpu", enabled=False):
                return self.head(h.float())
        return checkpoint(self.head, h, use_reentrant=False) if self.recomputed else self.head(h)


def net(*by_hand, **settings):
    torch.manual_seed(0)
    return Net(by_hand, **settings)


def loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y)


def batch():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(8, 6, generator=generator)
    return x, x[:, :3].argmax(1)


def step_of(amp, compiled=False):
    step = fl.pipe(loss, fl.grad, amp, fl.update(fl.optim.adamw(1e-2)))
    return fl.compile(step, backend="aot_eager") if compiled else step


def after(step, model, steps=3):
    state = step.init(model)
    for _ in range(steps):
        state, metrics = step(state, batch())
    return state, metrics


CASES = {
    "a head in float32": ("bf16", {"head": "fp32"}, ("head",)),
    "the innermost counts": ("bf16", {"*": "bf16", "head.*": "fp32"}, ("head",)),
    "the last glob counts": ("bf16", {"h*": "bf16", "*ea*": "fp32"}, ("head",)),
    "a body in float16": ("bf16", {"body": "fp16", "head": "fp32"}, ("body", "head")),
    "float32 but for the body": ("fp32", {"body": "fp16"}, ("body", "head")),
}


@pytest.mark.parametrize(
    ("case", "compiled"), [*((case, False) for case in CASES), ("float32 but for the body", True)]
)
@pytest.mark.lightning("T5")
def test_modules_run_in_their_precision_as_nested_autocast_has_it(case, compiled):
    base, modules, by_hand = CASES[case]
    state, metrics = after(step_of(fl.amp(base, modules=modules), compiled), net())
    autocast = fl.amp("fp16" if "body" in by_hand else "bf16")
    right, expected = after(step_of(autocast, compiled), net(*by_hand))
    assert fl.tree_diff(dict(state.params), dict(right.params)) == ""
    assert state.slots.keys() == right.slots.keys(), "with a loss scale where there is float16"
    assert float(metrics["loss"]) == float(expected["loss"])
    plain, _ = after(step_of(fl.amp("bf16")), net())
    assert plain.params != state.params


def test_what_the_modules_see():
    model, seen = net(), {}
    for name, module in model.named_modules():
        module.register_forward_hook(lambda _, x, y, n=name: seen.update({n: y.dtype}))
    step = step_of(fl.amp("bf16", modules={"*.1": "fp32"}))  # the norm, and the last layer
    state, _ = step(step.init(model), batch())
    half, single = torch.bfloat16, torch.float32
    assert [seen[name] for name in ("body.0", "body.1", "body.2")] == [half, single, half]
    assert [seen[name] for name in ("head.0", "head.1")] == [half, single]
    assert not any("forward" in vars(m) for m in state.skeleton.module.modules())


def test_what_is_computed_again_in_the_backward_pass_is_in_the_same_precision():
    amp = fl.amp("bf16", modules={"head": "fp32"})
    again, _ = after(step_of(amp), net(recomputed=True))
    kept, _ = after(step_of(amp), net())
    assert fl.tree_diff(dict(kept.params), dict(again.params)) == ""


def test_a_weight_in_two_half_precisions():
    """torch keeps one converted copy of a weight, and would give the second module the first's."""

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(self.a(x)).float()

    amp = fl.amp("bf16", modules={"b": "fp16"})
    step = fl.pipe(lambda m, x: m(x).square().mean(), fl.grad, amp, fl.update(fl.optim.sgd(0.1)))
    _, metrics = step(step.init(Tied()), torch.ones(2, 3))
    assert float(metrics["skipped"]) == 0


def test_an_error_leaves_the_model_as_it_was():
    class Failing(Net):
        def forward(self, x):
            raise KeyError("here")

    step = step_of(fl.amp("bf16", modules={"head": "fp32"}))
    state = step.init(Failing())
    with pytest.raises(KeyError):
        step(state, batch())
    assert not any("forward" in vars(m) for m in state.skeleton.module.modules())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("bf16", {"hed": "fp32"}), ValueError, r"'hed' fits no module.*There are: body, body\.0"),
        (("bf16", ["head"]), TypeError, "takes a dict or None, got a list"),
        (("fp16", 2.0**10), TypeError, r"takes a dict.*got 1024\.0"),
        (("bf16", {0: "fp32"}), TypeError, "takes precisions by the names of modules"),
        (("bf16", {"head": "fp64"}), ValueError, r"modules=\{'head': \.\.\.\}.*got 'fp64'"),
        (("fp64", {"head": "fp32"}), ValueError, "stores all parameters in one dtype"),
    ],
)
def test_what_has_no_meaning_is_refused(arguments, error, message):
    precision, modules = arguments
    with pytest.raises(error, match=message):
        after(step_of(fl.amp(precision, modules=modules)), net())


def test_a_model_that_is_a_tree_has_no_modules():
    @fl.tree
    class Line:
        slope: torch.Tensor

        def __call__(self, x):
            return self.slope * x

    step = fl.pipe(lambda m, x: m(x).mean(), fl.grad, fl.amp("bf16", modules={"a": "fp32"}))
    with pytest.raises(TypeError, match=r"a tree, which has none: write torch\.autocast"):
        step(step.init(Line(torch.ones(1))), torch.ones(2, 1))


def test_it_prints_as_it_is_written():
    amp = fl.amp("bf16", modules={"head": "fp32"})(fl.grad(loss))
    assert amp.describe() == "amp('bf16', modules={'head': 'fp32'})"
    assert amp == fl.amp("bf16", modules={"head": "fp32"})(fl.grad(loss))
    assert amp != fl.amp("bf16")(fl.grad(loss))
    orders = [fl.amp("bf16", dict(pairs)) for pairs in (BOTH, BOTH[::-1])]
    assert orders[0](fl.grad(loss)) != orders[1](fl.grad(loss)), "the last one counts"


BOTH = (("head", "fp32"), ("h*", "bf16"))


def test_trackers_and_resumed_runs_name_them():
    found = hyperparameters(step_of(fl.amp("bf16", {"head": "fp32"})))
    assert (found["amp.precision"], found["amp.modules.head"]) == ("bf16", "fp32")
