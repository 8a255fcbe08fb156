"""The gradients of several losses against those of their sum."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fnloop as fl


class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 1), nn.Linear(5, 2)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        hidden = self.drop(self.body(x).tanh())
        return self.a(hidden), self.b(hidden)


def a_loss(model, batch):
    return model(batch)[0].square().mean()


def b_loss(model, batch):
    return model(batch)[1].abs().mean(), {"size": model(batch)[1].abs().max()}


def batch(n=6):
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(1))


def both(model, batch):
    a, b = model(batch)
    return a.square().mean() + b.abs().mean()


def test_it_is_the_gradient_of_the_sum_with_the_same_masks():
    stage = fl.schemes.several(a=a_loss, b=b_loss)
    state = stage.init(Heads, seed=0)
    _, grads = stage(state, batch())
    _, expected = fl.grad(both)(state, batch())
    assert list(grads.mean) == list(expected.mean)
    for name, g in expected.mean.items():
        torch.testing.assert_close(grads.mean[name], g)
    assert float(grads.metrics["loss"]) == pytest.approx(float(expected.metrics["loss"]))
    assert set(grads.metrics) == {"loss", "a/loss", "b/loss", "b/size"}
    assert int(grads.weight) == 6


def test_a_part_without_examples_adds_nothing():
    def none(model, batch):
        return fl.Mean(0.0 * model(batch)[1].sum(), 0)

    stage = fl.schemes.several(a=a_loss, b=none)
    state = stage.init(Heads, seed=0)
    _, grads = stage(state, batch())
    _, expected = fl.grad(a_loss)(state, batch())
    for name, g in expected.mean.items():
        torch.testing.assert_close(grads.mean[name], g)
    assert grads.mean["b.weight"].abs().sum() == 0
    assert float(grads.metrics["loss"]) == pytest.approx(float(expected.metrics["loss"]))


def weighted(model, batch):
    weights = (batch[:, 0] > 0).double()
    return fl.Mean((weights * model(batch)[1].abs().sum(1)).sum(), weights.sum())


def plain():
    torch.manual_seed(0)
    heads = Heads().double()
    heads.drop = nn.Identity()
    return heads


def weighted_by_hand(x):
    model, counts = plain(), x[:, 0] > 0
    a, b = model(x)
    loss = a.square().mean() + b[counts].abs().sum(1).mean()
    return loss.detach(), torch.autograd.grad(loss, [*model.parameters()])


@pytest.mark.parametrize("k", [2, 3, 4, 7])
def test_micro_batches_are_merged_by_the_weights_of_each_part(k):
    x = batch(7).double()
    nested = fl.schemes.several(b=weighted)
    loss, expected = weighted_by_hand(x)
    for other in (weighted, nested):
        stage = fl.pipe(fl.schemes.several(a=a_loss, b=other), fl.accumulate(k))
        state = stage.init(plain())
        after, grads = stage(state, x)
        for found, g in zip(grads.mean.values(), expected, strict=True):
            torch.testing.assert_close(found, g)
        assert float(grads.metrics["loss"]) == pytest.approx(float(loss))
        assert int(grads.weight) == 7 and after.context == state.context
        assert float(fl.base.loss_at(stage, state, x)) == pytest.approx(float(loss))


def test_a_stage_between_them_and_micro_batches_takes_equal_weights_only():
    x = batch(7).double()
    equal = fl.schemes.several(a=a_loss, b=both)
    state = equal.init(plain())
    expected = equal(state, x)[1].mean
    found = fl.pipe(equal, fl.amp("fp32"), fl.accumulate(3))(state, x)[1].mean
    for name, g in expected.items():
        torch.testing.assert_close(found[name], g)
    unequal = fl.schemes.several(a=a_loss, b=weighted)
    for stages in ((fl.amp("fp32"), fl.accumulate(3)), (fl.schemes.noise_scale(3),)):
        stage = fl.pipe(unequal, *stages)
        with pytest.raises(
            ValueError, match=r"differ in weight .*directly behind fl.schemes.several"
        ):
            stage(state, x)


def test_surgery_is_that_of_the_whole_batch():
    x, whole = batch().double(), fl.schemes.pcgrad(a=a_loss, b=weighted, c=both)
    state = whole.init(plain())
    expected = whole(state, x)[1].mean
    found = fl.pipe(whole, fl.accumulate(4))(state, x)[1].mean
    for name, g in expected.items():
        torch.testing.assert_close(found[name], g)


def test_the_optimizer_owns_what_some_part_trains():
    step = fl.pipe(
        fl.schemes.several(a=fl.grad(a_loss, only="a"), b=fl.grad(b_loss, only=["b.bias"])),
        fl.update(fl.optim.adam(1e-2)),
    )
    state = step.init(Heads)
    assert sorted(state["update"]["adam"]["mu"]) == ["a.bias", "a.weight", "b.bias"]
    new, _ = step(state, batch())
    assert torch.equal(new.params["body.weight"], state.params["body.weight"])


def test_errors():
    several = fl.schemes.several
    with pytest.raises(TypeError, match=r"several takes losses by name, and got none"):
        several()
    with pytest.raises(TypeError, match=r"'a' of several .* is update.*a training step"):
        several(a=fl.pipe(a_loss, fl.grad, fl.update(fl.optim.sgd(0.1))))
    with pytest.raises(TypeError, match=r"'a' of several must be a loss .* got 3"):
        several(a=3)
    with pytest.raises(ValueError, match=r"amp\('fp16'\) keeps memory, .* Put it behind"):
        several(a=fl.pipe(a_loss, fl.grad, fl.amp("fp16")))


def test_it_prints_as_it_is_written():
    step = fl.pipe(fl.schemes.several(a=a_loss, b=b_loss), fl.update(fl.optim.sgd(0.1)))
    assert repr(step).startswith("pipe(\n    several(\n        a=pipe(\n            a_loss,\n")
