"""BatchNorm's statistics for averaged parameters, against torch's own and by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fnloop as fl
from fnloop.values.averaged import choose_params

from .averaged_digits import AVERAGES, run

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


def bare(state):
    """The module of averaged parameters, with the live statistics, for torch to work on."""
    return fl.to_module(state.replace(params=choose_params(state, "ema")))


def test_one_batch_is_what_torch_computes(trained) -> None:
    module = bare(trained)
    torch.optim.swa_utils.update_bn([(X,)], module)
    found = fl.refresh_batchnorm(loss, trained, (X, Y), params="ema")
    averaged = fl.to_module(found, params="ema").state_dict()
    for name, buffer in module.state_dict().items():
        if "running" in name:
            torch.testing.assert_close(averaged[name], buffer, rtol=1e-5, atol=1e-5)
            assert torch.equal(found.buffers[name], trained.buffers[name])
    assert fl.tree_equal(found.params, trained.params)


def test_batches_are_those_of_torch_and_what_lies_between_them(trained) -> None:
    x, module = X[:100], bare(trained)
    torch.optim.swa_utils.update_bn([(part,) for part in x.split(20)], module)
    data = fl.Batches((x, Y[:100]), 20, shuffle=False)
    found = fl.to_module(fl.refresh_batchnorm(loss, trained, data, params="ema"), params="ema")
    theirs = module[1].running_mean.double(), module[1].running_var.double()
    torch.testing.assert_close(found[1].running_mean.double(), theirs[0], rtol=1e-5, atol=1e-5)
    means = torch.stack([part.mean(0) for part in module[0](x).detach().double().split(20)])
    # The sum of squares of all is that within the batches, and that of their means.
    squares = 5 * 19 * theirs[1] + 20 * (means - means.mean(0)).square().sum(0)
    torch.testing.assert_close(found[1].running_var.double(), squares / 99, rtol=1e-4, atol=1e-5)


def test_short_batches_count_for_what_they_are(trained) -> None:
    inputs = bare(trained)[0](X).detach().double()  # of the first BatchNorm
    for size in (103, 50, 33, 25):  # 103 = 2 * 50 + 3
        data = fl.Batches((X, Y), size)
        found = fl.to_module(fl.refresh_batchnorm(loss, trained, data, params="ema"), params="ema")
        torch.testing.assert_close(
            found[1].running_mean.double(), inputs.mean(0), rtol=1e-5, atol=1e-5
        )
        torch.testing.assert_close(
            found[1].running_var.double(), inputs.var(0), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("average", AVERAGES)
def test_averages_on_digits_are_as_good_as_with_the_statistics_of_torch(average) -> None:
    for seed in range(6):
        found = run(AVERAGES[average], seed)
        assert found["own"].accuracy == pytest.approx(found["torch's"].accuracy, abs=0.01)
        assert found["own"].loss == pytest.approx(found["torch's"].loss, abs=0.01)
        if average == "`fl.ema(0.99)`":  # neither is a default
            assert min(found["live"].loss, found["averaged"].loss) > found["own"].loss + 0.1


def test_averages_are_not_run_with_statistics_of_others(trained) -> None:
    data = fl.Batches((X, Y), 20)
    for run_it in (
        lambda: fl.evaluate(loss, trained, data, params="ema"),
        lambda: fl.validate(loss, data, params="ema")(trained, {}),
        lambda: list(fl.predict(lambda m, b: m(b[0]), trained, (X, Y), params="ema")),
        lambda: fl.to_module(trained, params="ema"),
    ):
        with pytest.raises(ValueError, match=r"own belong to the live parameters.*refresh_batchn"):
            run_it()
    live = fl.evaluate(loss, trained, data, params="ema", statistics="live")
    assert live == fl.evaluate(loss, fl.grad(loss).init(bare(trained)), data)
    with pytest.raises(ValueError, match=r"takes training data, or \"live\", got 'train'"):
        fl.evaluate(loss, trained, data, params="ema", statistics="train")


def test_that_is_told_at_the_start_of_a_run() -> None:
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)), fl.ema(0.9))
    late = fl.every(3, fl.validate(loss, (X, Y), params="ema"), unit="epoch")
    with pytest.raises(ValueError, match="statistics=train_data") as error:
        fl.fit(step, step.init(network), fl.Batches((X, Y), 50), epochs=5, callbacks=[late])
    assert int(error.value.state.calls) <= 1  # type: ignore[attr-defined]


@pytest.mark.lightning("C11")
def test_averages_are_evaluated_with_their_own(trained) -> None:
    data = fl.Batches((X, Y), 20)
    fresh = fl.refresh_batchnorm(loss, trained, data, params="ema")
    expected = fl.evaluate(loss, fresh, data, params="ema")
    assert fl.evaluate(loss, trained, data, params="ema", statistics=data) == expected
    assert fl.evaluate(loss, fresh, data) == fl.evaluate(loss, trained, data)
    both = fl.Data(train=data, validate=data)
    assert fl.evaluate(loss, trained, both, params="ema") == expected
    sets = fl.evaluate(loss, trained, {"a": data, "b": data}, params="ema", statistics=data)
    assert sets == {"a/loss": expected["loss"], "b/loss": expected["loss"]}
    for callback in (
        fl.validate(loss, data, params="ema", statistics=data),
        fl.validate(loss, both, params="ema"),
        fl.validate(loss, fl.Data(setup=lambda: both), params="ema"),
    ):
        state, metrics = callback(trained, {})
        assert state is trained and float(metrics["val/loss"]) == expected["loss"]
    module = fl.to_module(fresh, params="ema").eval()
    assert loss(module, (X, Y)).item() == pytest.approx(expected["loss"])


def test_they_are_of_the_average_as_it_was_and_are_saved_with_it(trained, tmp_path) -> None:
    data = fl.Batches((X, Y), 20)
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.adamw(0.05)), fl.ema(0.9))
    fresh = fl.refresh_batchnorm(loss, trained, data, params="ema")
    loaded = fl.load(fl.save(fresh, tmp_path), like=fresh)
    assert loaded == fresh
    after, _ = step(fresh, (X, Y))
    plain, _ = step(trained, (X, Y))
    assert fl.tree_equal(after["ema"], plain["ema"]) and after.buffers == plain.buffers
    with pytest.raises(ValueError, match=r"'ema\.statistics' .* as it was 1 calls ago"):
        fl.evaluate(loss, after, data, params="ema")
    again = fl.refresh_batchnorm(loss, after, data, params="ema")
    assert fl.evaluate(loss, again, data, params="ema")


def test_a_loader_is_read_only_where_it_is_asked_for(trained) -> None:
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), 20)
    with pytest.raises(ValueError, match="statistics=train_data"):
        fl.evaluate(loss, trained, fl.Data(train=loader, validate=(X, Y)), params="ema")
    assert fl.evaluate(loss, trained, (X, Y), params="ema", statistics=loader)


def test_a_part_of_a_sequence_and_a_frozen_norm() -> None:
    part = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)), fl.ema(0.9))
    step = fl.sequence(only=part)
    state, _ = step(step.init(network, seed=0), (X, Y))
    fresh = fl.refresh_batchnorm(loss, state, (X, Y), params="only/ema")
    assert fl.evaluate(loss, fresh, (X, Y), params="only/ema")
    frozen = network()
    for layer in (frozen[1], frozen[4]):
        layer.eval()
    state, _ = part(part.init(frozen), (X, Y))
    assert fl.evaluate(loss, state, (X, Y), params="ema")


def test_images_and_the_state_and_the_model_are_left_alone() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten())
    state = fl.grad(lambda m, x: m(x).mean()).init(model)
    before = fl.tree_map(torch.clone, state)
    images = torch.rand(5, 1, 4, 4)
    found = fl.refresh_batchnorm(lambda m, x: m(x), state, fl.Batches(images, 2))
    pixels = model[0](images).detach()
    torch.testing.assert_close(found.buffers["1.running_mean"], pixels.mean((0, 2, 3)))
    assert fl.tree_equal(state, before)
    assert not any(m._forward_pre_hooks for m in state.skeleton.module.modules())


def test_the_live_parameters_have_theirs_in_the_buffers(trained) -> None:
    module = fl.to_module(trained)
    torch.optim.swa_utils.update_bn([(X,)], module)
    found = fl.refresh_batchnorm(loss, trained, (X, Y))
    for name, buffer in module.state_dict().items():
        if "running" in name:
            torch.testing.assert_close(found.buffers[name], buffer, rtol=1e-5, atol=1e-5)
    assert found.slots == trained.slots


def test_what_has_no_statistics_is_refused(trained) -> None:
    state = fl.grad(lambda m, x: m(x).mean()).init(nn.Linear(1, 1))
    with pytest.raises(ValueError, match="has no BatchNorm"):
        fl.refresh_batchnorm(lambda m, x: m(x), state, [torch.ones(2, 1)])
    with pytest.raises(ValueError, match="data has no batch"):
        fl.refresh_batchnorm(loss, trained, [])
    with pytest.raises(ValueError, match="function that was given runs no BatchNorm"):
        fl.refresh_batchnorm(lambda m, b: m[0](b[0]), trained, (X, Y))
    with pytest.raises(TypeError, match="iterator, and an epoch of it would be gone"):
        fl.refresh_batchnorm(loss, trained, iter([(X, Y)]))
