"""Packed and differentiated, over every exported stage and optimizer; a step under plain vmap."""

from __future__ import annotations

import inspect

import pytest
import torch

import fnloop as fl
from fnloop import testing
from fnloop.testing import LawError
from fnloop.trees.paths import map_with_path
from tests.laws.steps import (
    ALONE,
    EXAMPLES,
    EXPORTED,
    FUNCTIONS,
    OPTIMIZERS,
    SCHEMES,
    STAGES,
    STEPS,
    batch,
    loss,
    net,
    state_of,
    step_of,
)


def as_tensors(tree):
    """The numbers among the hyperparameters as float64 tensors.

    But for those of a loss scale, which is float32: differences would be those of its rounding.
    """

    def convert(path, leaf):
        kept = type(leaf) is not float or not leaf or path.endswith(SCALES)
        return leaf if kept else torch.tensor(leaf, dtype=torch.float64)

    return map_with_path(convert, tree)


SCALES = ("init_scale", "min_scale", "growth", "backoff")


def test_every_exported_stage_and_optimizer_has_an_example():
    stages = {
        name
        for name, value in EXPORTED.items()
        if getattr(value, "__module__", "").startswith("fnloop.stages")
        and (inspect.isfunction(value) or issubclass(value, fl.base.Callback))
        and value is not fl.base.Callback
    }
    assert stages - {"pipe", "scale"} <= set(STAGES), "add an example of the new stage"
    assert set(OPTIMIZERS) == set(EXAMPLES) | ALONE, "add an example of the new optimizer"
    for name, many in EXAMPLES.items():
        kinds = [type(part) for example in many for part in parts_of(example)]
        assert OPTIMIZERS[name] in kinds
    for name in ("accumulate", "amp", "ema", "guard", "update", "grad", "nonfinite", "spike"):
        assert any(name in {p.label for p in s.stages()} for s in STAGES[name])


def test_every_scheme_has_an_example():
    schemes = {n for n, f in vars(fl.schemes).items() if not n.startswith("_") and callable(f)}
    assert schemes - FUNCTIONS == set(SCHEMES), "add an example of the new scheme"


def parts_of(optimizer):
    yield optimizer
    for value in vars(optimizer).values():
        inner = value.values() if isinstance(value, dict) else value
        for part in inner if isinstance(value, (dict, tuple, list)) else [value]:
            if isinstance(part, fl.optim.Optimizer):
                yield from parts_of(part)


@pytest.fixture(params=STEPS, ids=str)
def step(request):
    return STEPS[request.param]


def test_it_does_not_matter_how_tensors_are_stored(step):
    testing.check_layouts(step, state_of(step), batch())


def test_law_12_derivatives_are_right(step, monkeypatch):
    if "muon" in repr(step):  # differences say nothing of what is rounded to bfloat16 underway
        monkeypatch.setattr(torch.Tensor, "bfloat16", lambda tensor: tensor)
    step = as_tensors(step)
    state = state_of(step, dtype=torch.float64)
    testing.check_differentiable(step, state, batch(dtype=torch.float64), steps=3)


def test_a_loss_scale_takes_tensors_as_well():
    numbers = {"init_scale": 2.0**10, "growth": 4.0, "backoff": 0.25, "min_scale": 2.0**9}
    tensors = {name: torch.tensor(n, dtype=torch.float64) for name, n in numbers.items()}
    steps = [step_of(grad=[fl.amp("fp16", **given, interval=1)]) for given in (numbers, tensors)]
    states = [state_of(step) for step in steps]
    for x in (batch()[0], batch()[0] * torch.nan, batch()[0] * torch.nan):
        for i, step in enumerate(steps):
            testing.check_stable(step, states[i], (x, batch()[1]))
            states[i], _ = step(states[i], (x, batch()[1]))
        assert fl.tree_diff(*states) == ""
    assert float(states[0]["amp"]["scale"]) == 2.0**9


def test_a_sweep_over_a_decay_and_a_weight_of_the_loss():
    @fl.tree
    class weighted:
        weight: torch.Tensor

        def __call__(self, model, batch):
            return self.weight * loss(model, batch)[0]

    def step_with(weight, decay):
        return fl.pipe(weighted(weight), fl.grad, fl.update(fl.optim.sgd(0.1)), fl.ema(decay))

    weights, decays = torch.tensor([0.5, 2.0]), torch.tensor([0.5, 0.9])
    state = step_with(weights[0], 0.5).init(net)
    batch()
    swept, reports = torch.func.vmap(lambda w, d: step_with(w, d)(state, batch()))(weights, decays)
    for i in range(2):
        after, metrics = step_with(weights[i], float(decays[i]))(state, batch())
        assert float(metrics["loss"]) == pytest.approx(float(reports["loss"].value()[i]))
        for name, average in after["ema"].items():
            torch.testing.assert_close(swept["ema"][name][i], average)
            torch.testing.assert_close(swept.params[name][i], after.params[name])


def test_from_torch_refuses_to_be_vmapped_and_differentiated():
    optimizer = fl.optim.from_torch(torch.optim.NAdam, lr=1e-2)
    step = step_of(optimizer)
    state = step.init(net)
    x, y = batch()
    with pytest.raises(RuntimeError, match="cannot be"):
        torch.func.vmap(lambda x: step(state, (x, y))[1]["loss"].value())(x.expand(2, 7, 4))
    wanted = {name: p.clone().requires_grad_() for name, p in state.params.items()}
    with pytest.raises(RuntimeError, match="cannot be differentiated"):
        step(state.replace(params=wanted), batch())
    testing.check_layouts(step, state, batch())


# A check that cannot fail is worthless.


def test_differentiable_sees_a_derivative_that_is_lost():
    inner = step_of(fl.optim.sgd(0.1))

    def detached(state, x):
        after, metrics = inner(state, x)
        return after.replace(params=after.params.detach()), metrics

    state = state_of(inner, dtype=torch.float64)
    with pytest.raises(LawError, match="law 12, derivatives: through"):
        testing.check_differentiable(fl.stage(detached, "step"), state, batch(dtype=torch.float64))


def test_vmaps_sees_a_member_that_sees_the_others():
    def one_for_all(state, x):
        noise = torch.rand(())  # of torch's own generator
        return state.replace(params=state.params.add(noise)), {}

    step = fl.stage(one_for_all, "step")
    states = [step_of().init(net, seed=seed) for seed in range(2)]
    with pytest.raises(LawError, match="vmap: member 0 of"):
        testing.check_vmaps(step, states, batch())


def test_layouts_sees_a_step_that_goes_by_storages():
    def by_storage(state, x):
        params = state.params.zip_map(lambda p: p / p.numel())
        return state.replace(params=params), {}

    with pytest.raises(LawError, match="layouts: "):
        testing.check_layouts(fl.stage(by_storage, "step"), step_of().init(net), batch())
