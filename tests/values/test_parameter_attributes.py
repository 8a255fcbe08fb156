"""What a model has set on its parameters is there where parameters are chosen."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fnloop as fl


class Scan(nn.Module):
    """As S4 and Mamba mark their parameters."""

    def __init__(self, plain=True):
        super().__init__()
        self.decay = nn.Parameter(torch.ones(6))
        self.tied = self.decay
        if plain:
            self.decay._no_weight_decay = True
        self.linear = nn.Linear(6, 1)
        self.linear.weight.owner = self
        self.linear.bias._no_weight_decay = False

    def forward(self, x):
        marked = getattr(self.decay, "_no_weight_decay", False)
        return self.linear(x * self.decay.exp()) * (1 + marked)


def is_plain(name, p):
    return getattr(p, "_no_weight_decay", False)


def loss(model, x):
    return model(x).square().mean()


def batch():
    return torch.randn(8, 6, generator=torch.Generator().manual_seed(0))


def optimizer():
    parts = {
        "plain": fl.optim.adamw(1e-2, weight_decay=0.0),
        "decayed": fl.optim.adamw(1e-2, weight_decay=1.0),
    }
    return fl.optim.by_label(parts, lambda n, p: "plain" if is_plain(n, p) else "decayed")


@pytest.mark.parametrize("how", ["eager", "compiled", "members"])
def test_labels_by_attributes_are_the_groups_of_torch(how):
    step = fl.pipe(loss, fl.grad, fl.accumulate(2), fl.update(optimizer()))
    step = fl.compile(step, backend="aot_eager") if how == "compiled" else step
    step = fl.ensemble(step, 2) if how == "members" else step
    torch.manual_seed(0)
    model = Scan()
    state = step.init(model)
    groups = [
        [p for n, p in model.named_parameters() if is_plain(n, p) is yes] for yes in (True, False)
    ]
    assert list(map(len, groups)) == [1, 2]
    torchs = torch.optim.AdamW(
        [{"params": groups[0], "weight_decay": 0.0}, {"params": groups[1], "weight_decay": 1.0}],
        lr=1e-2,
    )
    for _ in range(5):
        state, _ = step(state, batch())
        torchs.zero_grad()
        loss(model, batch()).backward()
        torchs.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(state.params[name], p.detach().expand_as(state.params[name]))


@pytest.mark.parametrize(
    "chosen", [{"only": is_plain}, {"frozen": lambda n, p: not is_plain(n, p)}]
)
def test_what_is_trained_is_chosen_by_attributes(chosen):
    step = fl.pipe(loss, fl.grad(**chosen), fl.update(fl.optim.sgd(0.1)))
    state = step.init(Scan, seed=0)
    after, _ = step(state, batch())
    moved = [n for n in state.params if not torch.equal(state.params[n], after.params[n])]
    assert moved == ["decay"]


def test_the_model_that_comes_back_has_copies_of_them():
    model = Scan()
    model.decay.extra = [1]
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
    state, _ = step(step.init(model), batch())
    model.decay.extra.append(2)
    model.decay._no_weight_decay = False
    back = fl.to_module(state)
    assert back.decay._no_weight_decay is True and back.decay.extra == [1]
    assert back.tied is back.decay
    assert not hasattr(back.linear.weight, "owner")  # a module
    assert not vars(back.linear.bias)["_no_weight_decay"]


def test_models_that_differ_in_them_do_not_share_a_graph():
    step = fl.compile(fl.pipe(loss, fl.grad, fl.update(optimizer())), backend="aot_eager")
    torch.manual_seed(0)
    models = [Scan(), Scan(plain=False), Scan()]
    models[1].load_state_dict(models[0].state_dict())
    models[2].load_state_dict(models[0].state_dict())
    states = [step(step.init(copied), batch())[0] for copied in models]
    assert not torch.equal(states[0].params["decay"], states[1].params["decay"])
    assert torch.equal(states[0].params["decay"], states[2].params["decay"])
    assert step.graphs == 2


def test_a_class_of_its_own_is_refused_at_init():
    class Manifold(nn.Parameter):
        pass

    model = nn.Linear(2, 1)
    model.weight = Manifold(torch.ones(1, 2))
    with pytest.raises(ValueError, match="'weight' is a Manifold, and a state holds plain tensors"):
        fl.grad(loss).init(model)
