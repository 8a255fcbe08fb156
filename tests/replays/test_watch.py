from __future__ import annotations

import threading

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import fnloop as fl
from fnloop.replays.watch import Watch, is_bad, watched
from fnloop.stages.grad import Grad


def loss(model, batch):
    return model(batch).square().mean()


STEP = fl.pipe(loss, fl.grad, fl.accumulate(2), fl.update(fl.optim.sgd(0.1)), fl.ema(0.9))


def test_a_watched_step_prints_and_behaves_as_the_step():
    state, batch = STEP.init(nn.Linear(2, 1)), torch.rand(4, 2)
    again = watched(STEP)
    assert repr(again) == repr(STEP)
    assert again(state, batch)[0] == STEP(state, batch)[0]
    assert again.init(state) == state


def test_the_step_that_is_watched_is_not_changed():
    before = list(STEP.stages())
    again = list(watched(STEP).stages())
    assert all(a is b for a, b in zip(STEP.stages(), before, strict=True))
    assert isinstance(again[0], Grad) and type(again[0]) is not Grad
    assert again[0].loss is not before[0].loss and before[0].loss.call is loss


def test_the_outermost_gradients_are_kept_once_and_as_copies():
    state, batch, watch = STEP.init(nn.Linear(2, 1)), torch.rand(4, 2), Watch()
    with watch.watching(state.skeleton):
        watched(STEP)(state, batch)
    [grads] = watch.grads
    reference = fl.pipe(loss, fl.grad)(state, batch)[1]
    assert float(grads.weight) == 4.0
    for name, mean in reference.mean.items():
        assert torch.allclose(grads.mean[name], mean)


def test_the_micro_batch_is_named():
    batch = torch.rand(6, 2)
    batch[4] = torch.nan
    state, watch = STEP.init(nn.Linear(2, 1)), Watch()
    with watch.watching(state.skeleton):
        watched(STEP)(state, batch)
    assert "in micro-batch 2" in watch.outputs[0].note
    assert watch.culprit.offset == 3 and len(watch.culprit.batch) == 3


def test_nothing_is_seen_outside_the_block_nor_by_other_threads():
    state, watch = STEP.init(nn.Linear(2, 1)), Watch()
    bad = torch.full((4, 2), torch.nan)
    again = watched(STEP)
    again(state, bad)
    with watch.watching(state.skeleton):
        thread = threading.Thread(target=again, args=(state, bad))
        thread.start()
        thread.join()
    again(state, bad)
    assert watch.outputs == [] and watch.grads == []


def test_a_checkpointed_forward_pass_is_seen_in_the_order_of_the_first_run():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 1)

        def forward(self, x):
            return self.b(checkpoint(self.a, x, use_reentrant=False))

    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
    state, watch = step.init(Net()), Watch()
    with watch.watching(state.skeleton):
        watched(step)(state, torch.full((2, 2), torch.inf))
    assert [bad.path for bad in watch.outputs[:3]] == ["a", "b", "model"]


def test_tied_parameters_go_by_their_first_name():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
    state, watch = step.init(model), Watch()
    with watch.watching(state.skeleton):
        watched(step)(state, torch.full((2, 2), torch.inf))
    paths = {bad.path for bad in watch.arrived if bad.kind == "gradient"}
    assert paths == {"params/0.weight", "params/0.bias", "params/1.bias"}


def test_inside_transforms_nothing_is_looked_at():
    state, watch = STEP.init(nn.Linear(2, 1)), Watch()
    with watch.watching(state.skeleton):
        stage = watched(fl.pipe(loss, fl.grad))
        mean = torch.func.vmap(lambda b: stage(state, b)[1].mean)(torch.rand(3, 4, 2))
    assert mean["weight"].shape == (3, 1, 2) and watch.grads == []


def test_gradients_of_weight_zero_are_not_bad():
    _, grads = fl.pipe(loss, fl.grad)(STEP.init(nn.Linear(2, 1)), torch.full((2, 2), torch.nan))
    assert is_bad(grads)
    assert not is_bad(grads.replace(weight=grads.weight * 0))
