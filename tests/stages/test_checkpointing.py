"""``torch.utils.checkpoint`` in a model: the same numbers, dropout included, in less memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import fnloop as fl
from tests.distributed.live import Live

WIDTH, ROWS = 32, 512


class Net(nn.Module):
    def __init__(self, again):
        super().__init__()
        self.again = again
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(WIDTH),
                nn.Linear(WIDTH, 4 * WIDTH),
                nn.GELU(),
                nn.Dropout(0.2),
                nn.Linear(4 * WIDTH, WIDTH),
            )
            for _ in range(4)
        )

    def forward(self, x):
        for layer in self.layers:
            x = x + (checkpoint(layer, x, use_reentrant=False) if self.again else layer(x))
        return x


def loss(model, x):
    return model(x).square().mean()


def batch():
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(0))


def states(step, steps=2):
    found = []
    for again in (False, True):
        state = step.init(lambda again=again: Net(again), seed=1)
        for _ in range(steps):
            state, _ = step(state, batch())
        found.append(dict(state.params))
    return found


@pytest.mark.parametrize("grad", [(), (fl.accumulate(2), fl.amp("bf16"))], ids=["plain", "parts"])
def test_numbers_are_those_of_a_model_that_keeps_all(grad):
    kept, again = states(fl.pipe(loss, fl.grad, *grad, fl.update(fl.optim.adamw(1e-2))))
    for name, p in kept.items():
        assert torch.equal(again[name], p), name


class Adapted(nn.Module):
    """Adapters in a frozen net, as PEFT has them: its first activations require gradients."""

    def __init__(self, reentrant, unused=False):
        super().__init__()
        self.frozen, self.head = nn.Linear(WIDTH, WIDTH).requires_grad_(False), nn.Linear(WIDTH, 1)
        self.adapter = nn.Linear(WIDTH, WIDTH)
        self.reentrant = reentrant
        self.unused = nn.Linear(1, 1) if unused else None

    def block(self, x):
        return self.frozen(x) + self.adapter(x)

    def forward(self, x):
        x = self.frozen(x)
        x = x.requires_grad_() if self.reentrant else x
        if self.reentrant is None:
            return self.head(self.block(x))
        return self.head(checkpoint(self.block, x, use_reentrant=self.reentrant))


@pytest.mark.parametrize("compiles", [False, True])
@pytest.mark.parametrize("grad", [(), (fl.accumulate(2), fl.amp("fp16"))], ids=["plain", "parts"])
def test_a_reentrant_checkpoint_that_would_lose_gradients_is_refused(compiles, grad):
    step = fl.pipe(loss, fl.grad, *grad, fl.update(fl.optim.sgd(0.1)))
    step = fl.compile(step, backend="aot_eager") if compiles else step
    for _ in range(2):
        with pytest.raises(
            RuntimeError, match=r"Set use_reentrant=False: checkpoint.*Without a .*adapter"
        ):
            step(step.init(Adapted(True)), batch())


def test_a_checkpoint_beside_parameters_without_gradients_is_fine():
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
    for many in (step, fl.ensemble(step, 2, mode="vmap")):
        torch.manual_seed(0)
        model = Adapted(False, unused=True)
        state, _ = many(many.init(model), batch())
        model.reentrant = None
        loss(model, batch()).backward()
        wanted = model.adapter.weight - 0.1 * model.adapter.weight.grad
        torch.testing.assert_close(
            state.params["adapter.weight"], wanted.expand_as(state.params["adapter.weight"])
        )


def test_a_step_adds_less_to_the_memory():
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
    peaks = []
    for again in (False, True):
        state = step.init(lambda again=again: Net(again), seed=1)
        state, _ = step(state, batch())
        with Live() as live:
            step(state, batch())
        peaks.append(live.peak)
    # Kept are the inputs of the four layers, and all of one layer at a time.
    assert peaks[1] < 0.45 * peaks[0]


def test_l_bfgs_evaluates_it_with_the_same_masks():
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.lbfgs(max_iter=3)))
    kept, again = states(step, steps=1)
    for name, p in kept.items():
        assert torch.equal(again[name], p), name
