"""BatchNorm's statistics for averaged parameters, against torch's own and by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fnloop as fl
from fnloop.loop.statistics import refresh_statistics

X = torch.randn(103, 3, generator=torch.Generator().manual_seed(0)) * 2 + 100
Y = X.sum(1, keepdim=True).sin()


def loss(model, batch):
    return nn.functional.mse_loss(model(batch[0]), batch[1])


def network():
    layers = [nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8)]
    return nn.Sequential(*layers, nn.Dropout(0.0), nn.Linear(8, 1))


@pytest.fixture(scope="module")
def trained():
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.adamw(0.05)), fl.ema(0.9))
    return fl.fit(step, step.init(network, seed=0), fl.Batches((X, Y), 20), epochs=4)[0]


def test_one_batch_is_what_torch_computes(trained) -> None:
    module = fl.to_module(trained, params="ema")
    torch.optim.swa_utils.update_bn([(X,)], module)
    found = refresh_statistics(loss, trained, (X, Y), params="ema")
    assert found.buffers.keys() == trained.buffers.keys()
    for name, buffer in found.buffers.items():
        if "running" in name:
            torch.testing.assert_close(buffer, module.state_dict()[name], rtol=1e-5, atol=1e-5)
    assert fl.tree_equal(found.params, trained.params)


def test_short_batches_count_for_what_they_are(trained) -> None:
    inputs = fl.to_module(trained, params="ema")[0](X).detach().double()  # of the first BatchNorm
    for size in (103, 50, 33, 25):  # 103 = 2 * 50 + 3
        found = refresh_statistics(loss, trained, fl.Batches((X, Y), size), params="ema")
        mean, variance = found.buffers["1.running_mean"], found.buffers["1.running_var"]
        torch.testing.assert_close(mean.double(), inputs.mean(0), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(variance.double(), inputs.var(0), rtol=1e-4, atol=1e-5)


@pytest.mark.lightning("C11")
def test_averaged_weights_are_evaluated_with_their_own_statistics(trained) -> None:
    data = fl.Batches((X, Y), 20)
    fresh = refresh_statistics(loss, trained, data, params="ema")
    expected = fl.evaluate(loss, fresh, data, params="ema")
    assert fl.evaluate(loss, trained, data, params="ema", statistics=data) == expected
    callback = fl.validate(loss, data, params="ema", statistics=data)
    state, metrics = callback(trained, {})
    assert state is trained and float(metrics["val/loss"]) == expected["loss"]
    assert fl.evaluate(loss, trained, data, params="ema") != expected


def test_images_and_the_state_and_the_model_are_left_alone() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten())
    state = fl.grad(lambda m, x: m(x).mean()).init(model)
    before = fl.tree_map(torch.clone, state)
    images = torch.rand(5, 1, 4, 4)
    found = refresh_statistics(lambda m, x: m(x), state, fl.Batches(images, 2))
    pixels = model[0](images).detach()
    torch.testing.assert_close(found.buffers["1.running_mean"], pixels.mean((0, 2, 3)))
    assert fl.tree_equal(state, before)
    assert not any(m._forward_pre_hooks for m in state.skeleton.module.modules())


def test_what_has_no_statistics_is_refused() -> None:
    state = fl.grad(lambda m, x: m(x).mean()).init(nn.Linear(1, 1))
    with pytest.raises(ValueError, match="no BatchNorm"):
        refresh_statistics(lambda m, x: m(x), state, [torch.ones(2, 1)])
    with pytest.raises(ValueError, match="no batch"):
        refresh_statistics(lambda m, x: m(x), state, [])
