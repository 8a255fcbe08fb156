"""The norms of gradients as metrics."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fnloop as fl


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head, self.spare = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(2, 2)

    def forward(self, x):
        return self.head(self.body(x).tanh())


def loss(model, x):
    return 5 * model(x).square().mean()


def net():
    torch.manual_seed(0)
    return Net()


X = torch.linspace(-1, 2, 15).reshape(5, 3)
GROUPS = {"body": "body", "weights": ["*.weight"], "spare": "spare"}


def expected():
    model = net()
    loss(model, X).backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    def norm(chosen):
        return float(torch.stack([grads[n].norm() for n in chosen]).norm())

    return norm(grads), {
        "body": norm([n for n in grads if n.startswith("body")]),
        "weights": norm([n for n in grads if n.endswith("weight")]),
        "spare": 0.0,  # which the loss does not reach
    }


def step_of(*after, optimizer=None):
    return fl.pipe(
        loss,
        fl.grad,
        fl.accumulate(2),
        fl.update(
            fl.optim.chain(
                fl.optim.norms(name="before"),
                fl.optim.norms(GROUPS),
                fl.optim.clip_by_norm(0.5),
                fl.optim.norms(GROUPS, name="after"),
                optimizer or fl.optim.adamw(0.1),
            )
        ),
        *after,
    )


@pytest.mark.lightning("Z2")
@pytest.mark.parametrize("compiled", [False, True])
def test_they_are_those_of_a_plain_backward_before_and_after_clipping(compiled):
    step = fl.compile(step_of(), backend="aot_eager") if compiled else step_of()
    state, metrics = step(step.init(net()), X)
    whole, groups = expected()
    assert whole > 0.5
    assert float(metrics["before"]) == pytest.approx(whole, rel=1e-4)
    for label, norm in groups.items():
        assert float(metrics[f"norm.{label}"]) == pytest.approx(norm, rel=1e-4)
        assert float(metrics[f"after.{label}"]) == pytest.approx(norm * 0.5 / whole, rel=1e-4)
    # They change nothing.
    chain = fl.optim.chain(fl.optim.clip_by_norm(0.5), fl.optim.adamw(0.1))
    plain = fl.pipe(loss, fl.grad, fl.accumulate(2), fl.update(chain))
    plain = fl.compile(plain, backend="aot_eager") if compiled else plain
    assert fl.tree_equal(state.params, plain(plain.init(net()), X)[0].params)


def test_a_skipped_step_reports_none():
    step = step_of(fl.ema(0.9))
    state, first = step(step.init(net()), X)
    after, metrics = step(state, X * torch.nan)
    assert float(metrics["before"].weight) == 0 and after["update"] == state["update"]
    merged = fl.metrics.merge([first, metrics])
    assert float(merged["after.body"]) == float(first["after.body"])


def test_labels_and_masks_pass_them_on():
    heads = fl.optim.by_label(
        {"a": fl.optim.chain(fl.optim.norms(), fl.optim.sgd()), "b": fl.optim.adamw()},
        {"body": "a", "*": "b"},
    )
    masked = fl.optim.masked(fl.optim.norms(name="weights"), ["*.weight"])
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.chain(masked, heads)))
    _, metrics = step(step.init(net()), X)
    groups = expected()[1]
    assert float(metrics["a.norm"]) == pytest.approx(groups["body"], rel=1e-4)
    assert float(metrics["weights"]) == pytest.approx(groups["weights"], rel=1e-4)


def test_what_is_discarded_is_zero():
    heads = fl.optim.by_label(
        {"a": fl.optim.freeze(), "b": fl.optim.sgd()}, {"body": "a", "*": "b"}
    )
    chain = fl.optim.chain(fl.optim.norms({"body": "body", "head": "head"}), heads)
    _, metrics = (step := fl.pipe(loss, fl.grad, fl.update(chain)))(step.init(net()), X)
    assert float(metrics["norm.body"]) == 0 < float(metrics["norm.head"])


def test_a_name_that_is_taken_and_a_pattern_that_fits_nothing_are_refused():
    def named(model, x):
        return loss(model, x), {"norm": x.norm()}

    step = fl.pipe(named, fl.grad, fl.update(fl.optim.chain(fl.optim.norms(), fl.optim.sgd())))
    with pytest.raises(ValueError, match=r"reports a metric named 'norm', which fl.update reports"):
        step(step.init(net()), X)
    chain = fl.optim.chain(fl.optim.norms({"body": "boddy"}), fl.optim.sgd())
    with pytest.raises(ValueError, match="norms: 'boddy' fits no parameter"):
        fl.pipe(loss, fl.grad, fl.update(chain)).init(net())
