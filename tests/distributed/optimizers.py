"""Every optimizer on parameters that are divided among ranks: run by ``test_optimizers.py``."""

from __future__ import annotations

import torch
from torch import nn

import fnloop as fl
from tests.distributed.laws import assert_close, assert_same_everywhere, loss, trained
from tests.distributed.scenario import main, scenario

OPTIMIZERS = {
    "adadelta": fl.optim.adadelta(1.0),
    "adafactor": fl.optim.adafactor(1e-2),
    "adagrad": fl.optim.adagrad(1e-2),
    "adam": fl.optim.adam(1e-2),
    "adamax": fl.optim.adamax(1e-2),
    "adamw": fl.optim.adamw(1e-2, weight_decay=0.1),
    "lamb": fl.optim.lamb(1e-2),
    "lion": fl.optim.lion(1e-3),
    "nadam": fl.optim.nadam(1e-2),
    "radam": fl.optim.radam(1e-2),
    "rmsprop": fl.optim.rmsprop(1e-2, momentum=0.9),
    "sgd": fl.optim.sgd(0.1, momentum=0.9, nesterov=True),
    "from_torch": fl.optim.from_torch(torch.optim.Adam, lr=1e-2),
    "by_label": fl.optim.by_label(
        {"matrix": fl.optim.muon(1e-2), "rest": fl.optim.adamw(1e-3)},
        lambda name, p: "matrix" if p.ndim == 2 else "rest",
    ),
    "masked": fl.optim.chain(
        fl.optim.masked(fl.optim.clip_by_norm(0.1, name="some"), lambda name, p: p.ndim > 1),
        fl.optim.clip_by_value(0.05),
        fl.optim.adam(1e-2),
    ),
    "frozen": fl.optim.by_label(
        {"a": fl.optim.freeze(), "b": fl.optim.sgd(0.1)}, {"a.*": "a", "*": "b"}
    ),
}


class Odd(nn.Module):
    """Sizes that do not divide evenly, a scalar, a frozen part, and one that is not reached."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 7), nn.Linear(7, 5)
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.shift = nn.Parameter(torch.zeros(5), requires_grad=False)
        self.unused = nn.Linear(3, 3)

    def forward(self, x):
        # Sigmoid: with relu some gradients are zero, of which Adam and others take the sign.
        return self.b(torch.sigmoid(self.a(x))) * self.scale + self.shift


@scenario
def every_optimizer(mesh):
    for name, optimizer in OPTIMIZERS.items():

        def step(k, optimizer=optimizer):
            stages = [fl.accumulate(k)] if k > 1 else []
            update = fl.update(fl.optim.chain(fl.optim.clip_by_norm(0.5), optimizer))
            return fl.pipe(loss, fl.grad, *stages, update, fl.ema(0.9))

        one = trained(step(mesh.data), Odd, steps=6)
        for plan in ("replicate", "zero2"):
            many = trained(fl.shard(step(1), mesh, plan), Odd, steps=6)
            try:
                assert_close(one, many, atol=2e-6)
            except AssertionError as error:
                raise AssertionError(f"{name}, {plan}: {error}") from error
            assert_same_everywhere(mesh, many[0])


@scenario
def a_part_that_one_rank_alone_reaches(mesh):
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(8, 5), nn.Linear(8, 5)

        def forward(self, x):
            return self.left(x) if bool(x[0, 0] > 0) else self.right(x)

    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(24, 8, generator=g), torch.randint(0, 5, (24,), generator=g)
    batches = [(x[i : i + 6], y[i : i + 6]) for i in range(0, 24, 6)]

    def step(k):
        stages = [fl.accumulate(k)] if k > 1 else []
        return fl.pipe(loss, fl.grad, *stages, fl.update(fl.optim.adamw(1e-2)))

    one = trained(step(mesh.data), Branches, batches, steps=8)
    for plan in ("replicate", "zero2"):
        assert_close(one, trained(fl.shard(step(1), mesh, plan), Branches, batches, steps=8))


@scenario
def a_gradient_that_is_not_finite_on_one_rank_is_skipped_by_all(mesh):
    x, y = torch.randn(8, 8, generator=torch.Generator().manual_seed(1)), torch.zeros(8).long()
    bad = x.clone()
    bad[-1] = float("inf")
    for plan in ("replicate", "zero2"):
        step = fl.shard(fl.pipe(loss, fl.grad, fl.update(fl.optim.adamw(1e-2))), mesh, plan)
        state = step.init(lambda: nn.Linear(8, 5))
        state, _ = step(state, (x, y))
        after, metrics = step(state, (bad, y))
        assert float(metrics["skipped"]) == 1
        assert int(after.step) == 1
        assert fl.tree_equal(after.params, state.params)
        after, metrics = step(after, (x, y))
        assert float(metrics["skipped"]) == 0
        assert_same_everywhere(mesh, fl.gather(after))


if __name__ == "__main__":
    main()
