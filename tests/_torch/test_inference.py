import pytest
import torch
from torch import nn

import fnloop as fl
from fnloop._torch.inference import outside_inference


def net():
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))


def loss(model, batch):
    return model(batch).square().mean()


DATA = fl.Batches(torch.randn(8, 2, generator=torch.Generator().manual_seed(0)), 4)
STEP = fl.pipe(loss, fl.grad, fl.update(fl.optim.adamw(0.1)), fl.ema(0.9))
STEPS = {
    "eager": STEP,
    "compiled": fl.compile(STEP, backend="aot_eager"),
    "ensemble": fl.ensemble(STEP, 2),
}


def trained(step, state):
    return fl.fit(step, state, DATA, epochs=2)[0]


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("made", ["init", "init of a module", "load", "load of a new stage"])
def test_a_state_from_inside_of_inference_mode_is_trained_as_any_other(name, made, tmp_path):
    step, first = STEPS[name], fl.pipe(loss, fl.grad, fl.update(fl.optim.adamw(0.1)))
    module, saved = net(), fl.save(step.init(net, seed=1), tmp_path / "all")
    if made == "load of a new stage":
        first = fl.ensemble(first, 2) if name == "ensemble" else first
        saved = fl.save(first.init(net, seed=1), tmp_path / "less")

    def make():
        if made.startswith("init"):
            return step.init(net if made == "init" else module, seed=0)
        return fl.load(saved, like=step.init(net, seed=0))

    expected = make()
    with torch.inference_mode():
        state = make()
        assert torch.is_inference_mode_enabled()
    assert fl.tree_equal(trained(step, state), trained(step, expected))


def test_weights_that_are_loaded_inside_of_inference_mode_are_trained():
    weights = net().state_dict()
    expected = fl.store.load_state_dict(weights, like=STEP.init(net, seed=0))
    with torch.inference_mode():
        state = fl.store.load_state_dict(weights, like=STEP.init(net, seed=0))
    assert fl.tree_equal(trained(STEP, state), trained(STEP, expected))


@pytest.mark.parametrize("name", STEPS)
def test_a_state_that_was_changed_inside_of_inference_mode_is_refused_with_what_to_do(name):
    step = STEPS[name]
    with torch.inference_mode():
        state = fl.tree_map(torch.clone, step.init(net, seed=0))
    with pytest.raises(ValueError, match=r"fl.tree_map\(torch.clone, state\)"):
        trained(step, state)
    copied = fl.tree_map(torch.clone, state)
    assert fl.tree_equal(trained(step, copied), trained(step, step.init(net, seed=0)))


def test_outside_of_inference_mode_the_mode_of_gradients_is_left_alone():
    with torch.no_grad(), outside_inference():
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        with outside_inference():
            assert not torch.is_inference_mode_enabled()
        assert torch.is_inference_mode_enabled() and not torch.is_grad_enabled()
