from __future__ import annotations

import copy
from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fnloop as fl
from fnloop.replays.replay import replay
from fnloop.rules.finiteness import nonfinite
from fnloop.stages.grad import Grad
from fnloop.stages.guard import guard
from fnloop.testing import check_pure
from fnloop.trees.paths import tree_paths


def net():
    return nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 3)
    )


def loss(model, batch):
    x, y = batch
    scores = model(x)
    return F.cross_entropy(scores, y), {"accuracy": fl.metrics.accuracy(scores, y)}


def with_state(model, batch, state):
    return loss(model, batch)


def weighted(model, batch):
    x, y = batch
    each = F.cross_entropy(model(x), y, reduction="none")
    return fl.Mean((each * (y + 1)).sum(), (y + 1).sum())


def lifted(state, batch):
    """A user's own gradient stage: twice the gradients."""
    state, grads = Grad(loss)(state, batch)
    return state, grads.replace(mean=grads.mean.scale(2.0))


@fl.tree
class Halved(fl.base.GradStage):
    """One that asks what it wraps, and calls it in its own way."""

    wraps: ClassVar[str] = "grad"
    label: ClassVar[str] = "halved"
    inner: Any

    def __call__(self, state, x):
        assert isinstance(self.inner, Grad)
        assert self.inner.loss is not None
        state, grads = self.inner(state, x)
        return state, grads.replace(weight=grads.weight * 2)


ADAM = fl.optim.chain(fl.optim.clip_by_norm(0.5), fl.optim.adamw(1e-2))
PIPELINES = {
    "plain": fl.pipe(loss, fl.grad, fl.update(ADAM)),
    "state": fl.pipe(with_state, fl.grad, fl.update(ADAM)),
    "mean": fl.pipe(weighted, fl.grad, fl.update(fl.optim.sgd(0.1))),
    "ema": fl.pipe(loss, fl.grad, fl.update(ADAM), fl.ema(0.9)),
    "accumulate": fl.pipe(loss, fl.grad, fl.accumulate(3), fl.update(ADAM)),
    "bf16": fl.pipe(loss, fl.grad, fl.accumulate(2), fl.amp("bf16"), fl.update(ADAM), fl.ema(0.9)),
    "fp16": fl.pipe(loss, fl.grad, fl.amp("fp16", init_scale=256.0), fl.update(ADAM)),
    "lifted": fl.pipe(fl.stage(lifted, "grad"), fl.update(ADAM), fl.ema(0.9)),
    "own": fl.pipe(loss, fl.grad, Halved, fl.update(ADAM)),
    "guard": fl.pipe(loss, fl.grad, fl.update(ADAM), guard(nonfinite())),
    "torch": fl.pipe(loss, fl.grad, fl.update(fl.optim.from_torch(torch.optim.Adam, lr=0.01))),
}


@pytest.fixture
def batch():
    return torch.randn(12, 4), torch.randint(0, 3, (12,))


@pytest.mark.parametrize("name", PIPELINES)
def test_a_replayed_step_is_the_step_to_the_bit(name, batch):
    step = PIPELINES[name]
    state = step.init(net(), seed=3)
    for _ in range(2):
        state, _ = step(state, batch)
    after, metrics = step(state, batch)
    found = replay(step, state, batch)
    assert found.after == after and found.before is state
    assert fl.metrics.numbers(found.metrics) == fl.metrics.numbers(metrics)
    assert found.loss == float(metrics["loss"])
    assert found.first_nonfinite is None and found.nonfinite == () and not found.skipped
    assert set(found.gradients) == set(state.params)


@pytest.mark.parametrize("name", ["plain", "accumulate", "mean", "bf16", "fp16"])
def test_gradients_are_those_of_the_mean_loss(name, batch):
    step = PIPELINES[name]
    model = net()
    model[1], model[2] = nn.Identity(), nn.Identity()  # what depends on the parts, and on chance
    state = step.init(model)
    found = replay(step, state, batch)
    reference = copy.deepcopy(model)
    with torch.autocast("cpu", torch.bfloat16, enabled=name == "bf16"):
        value = weighted(reference, batch) if name == "mean" else loss(reference, batch)[0]
    if name == "mean":
        value = value.total / value.weight
    value.backward()
    tolerance = 0.02 if name in ("bf16", "fp16") else 1e-5
    for key, parameter in reference.named_parameters():
        expected = parameter.grad
        assert torch.allclose(found.gradients[key], expected, atol=tolerance, rtol=tolerance), key
        assert found.norms[key].gradient == pytest.approx(float(expected.norm()), rel=0.05)
    flat = torch.cat([p.grad.flatten() for p in reference.parameters()])
    assert found.gradient_norm == pytest.approx(float(flat.norm()), rel=0.05)


def test_norms_of_updates_are_of_what_the_step_changed(batch):
    step = PIPELINES["plain"]
    state = step.init(net())
    found = replay(step, state, batch)
    for name, norms in found.norms.items():
        change = found.after.params[name] - state.params[name]
        assert norms.update == pytest.approx(float(change.norm()), rel=1e-4)
        assert norms.parameter == pytest.approx(float(state.params[name].norm()), rel=1e-6)


def test_what_the_user_has_is_left_as_it_was(batch):
    step, model = PIPELINES["plain"], net()
    state = step.init(model)
    state, _ = step(state, batch)
    generator = torch.get_rng_state()
    replay(step, state, batch)
    hooks = [m for m in (*model.modules(), *state.skeleton.module.modules()) if m._forward_hooks]
    assert hooks == [] and torch.equal(torch.get_rng_state(), generator)
    check_pure(step, state, batch)


def test_hooks_are_gone_also_after_a_step_that_fails(batch):
    def fails(model, batch):
        model(batch[0])
        raise ZeroDivisionError

    step = fl.pipe(fails, fl.grad, fl.update(fl.optim.sgd(0.1)))
    state = step.init(net())
    with pytest.raises(ZeroDivisionError):
        replay(step, state, batch)
    assert not any(m._forward_hooks for m in state.skeleton.module.modules())


class Root(nn.Module):
    """Finite forward where the input is zero, but not backward."""

    def forward(self, x):
        return x.sqrt()


def squared(model, batch):
    return (model(batch).square()).mean()


def rooted():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), Root(), nn.Linear(2, 1))
    nn.init.ones_(model[0].weight)
    return model


def test_a_gradient_that_arises_in_the_backward_pass_is_found_where_it_arises():
    step = fl.pipe(squared, fl.grad, fl.update(fl.optim.sgd(0.1)))
    batch = torch.rand(6, 2)
    batch[4] = 0.0
    found = replay(step, step.init(rooted()), batch)
    first = found.first_nonfinite
    assert (first.kind, first.path) == ("gradient", "params/0.weight")
    assert "not finite already where it reaches the output of 0 (Linear)" in first.note
    assert "finite at the output of 1 (Root)" in first.note
    assert [suspect.index for suspect in found.examples] == [4]
    assert found.skipped and torch.isfinite(torch.tensor(found.loss))
    assert "its gradient not finite" in str(found)


def test_gradients_are_listed_from_the_loss_backwards():
    step = fl.pipe(squared, fl.grad, fl.update(fl.optim.sgd(0.1)))
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), Root())
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    paths = [bad.path for bad in replay(step, step.init(model), torch.rand(3, 2)).nonfinite]
    assert [path.rpartition("/")[2][0] for path in paths] == ["1", "1", "0", "0"]


def test_a_module_output_comes_before_the_loss_and_names_its_place():
    class Two(nn.Module):
        def forward(self, x):
            return x, (x - x) / (x - x)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.two = nn.Linear(2, 2), Two()

        def forward(self, x):
            a, b = self.two(self.first(x))
            return a + b

    step = fl.pipe(squared, fl.grad, fl.update(fl.optim.sgd(0.1)))
    found = replay(step, step.init(Net()), torch.rand(3, 2))
    assert found.first_nonfinite.path == "two[1]"
    assert found.first_nonfinite.count == 6 and found.first_nonfinite.rows == (0, 1, 2)
    assert [bad.path for bad in found.nonfinite[:3]] == ["two[1]", "model", "loss"]
    assert "went into it was finite" in found.first_nonfinite.note


def test_a_batch_that_is_bad_comes_before_the_modules():
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
    x, y = torch.randn(8, 4), torch.randint(0, 3, (8,))
    x[5, 2] = torch.nan
    model = nn.Linear(4, 3)
    found = replay(step, step.init(model), (x, y))
    first = found.first_nonfinite
    assert (first.kind, first.path, first.count, first.index) == ("batch", "batch/0", 1, (5, 2))
    assert [suspect.index for suspect in found.examples] == [5]


@pytest.mark.parametrize("slot", ["params", "ema", "optimizer"])
def test_a_state_that_was_bad_before_is_said_to_be(slot, batch):
    step = PIPELINES["ema"]
    state, _ = step(step.init(net()), batch)
    bad = torch.full_like(state.params["0.weight"], torch.inf)
    if slot == "params":
        state = state.replace(params={**state.params, "0.weight": bad})
        path = "params/0.weight"
    elif slot == "ema":
        state = state.put("ema", fl.Tensors({**state["ema"], "0.weight": bad}))
        path = "slots/ema/0.weight"
    else:
        name = next(p for p in tree_paths(state["update"]) if p.endswith("/0.weight"))
        where = name.split("/")
        memory = copy.copy(state["update"])
        moments = fl.Tensors({**memory[where[0]][where[1]], "0.weight": bad})
        memory[where[0]] = {**memory[where[0]], where[1]: moments}
        state = state.put("update", memory)
        path = f"slots/update/{name}"
    found = replay(step, state, batch)
    assert path in [bad.path for bad in found.nonfinite if bad.kind == "state"]
    if found.first_nonfinite is not None:
        assert found.first_nonfinite.path == path
        assert "already bad before step 1: replay an earlier step" in str(found)
    assert (found.first_nonfinite is not None) == (slot != "ema")  # an average spoils nothing


def test_an_update_that_overflows_is_told_from_a_gradient_that_does():
    step = fl.pipe(squared, fl.grad, fl.update(fl.optim.sgd(1e38)))
    found = replay(step, step.init(nn.Linear(2, 1)), torch.full((4, 2), 1e3))
    assert found.first_nonfinite.kind == "update"
    assert found.first_nonfinite.path.startswith("params/") and not found.skipped


def test_a_mask_of_minus_infinity_is_no_fault():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mask", torch.tensor([0.0, -torch.inf, 0.0]))

        def forward(self, x):
            return x + self.mask

    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
    model = nn.Sequential(nn.Linear(4, 3), Masked())
    x, y = torch.randn(8, 4), torch.zeros(8, dtype=torch.long)
    found = replay(step, step.init(model), (x, y))
    assert found.first_nonfinite is None and "without consequence" in str(found)
    x[3] = torch.inf  # now the same output has nan, in one row
    assert replay(step, step.init(model), (x, y)).first_nonfinite.path == "batch/0"
    y[2] = 1  # the forbidden class: the loss is infinite, and the mask is not to blame alone
    found = replay(step, step.init(model), (torch.randn(8, 4), y))
    assert found.first_nonfinite.kind == "loss"
    assert [suspect.index for suspect in found.examples] == [2]


def test_a_compiled_step_is_replayed_uncompiled(batch):
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
    fast = fl.compile(step, backend="aot_eager")
    state = fast.init(nn.Linear(4, 3))
    found = replay(fast, state, batch)
    after, metrics = fast(state, batch)
    assert "equal to rounding" in str(found)
    assert found.loss == pytest.approx(float(metrics["loss"]), rel=1e-5)
    assert torch.allclose(found.after.params["weight"], after.params["weight"], atol=1e-6)


def test_a_model_that_is_a_tree_has_gradients_in_order_too():
    @fl.tree
    class Line:
        w: torch.Tensor
        b: torch.Tensor

        def __call__(self, x):
            return (x * self.w).sqrt() + self.b

    step = fl.pipe(squared, fl.grad, fl.update(fl.optim.sgd(0.1)))
    state = step.init(Line(torch.ones(()), torch.ones(())))
    found = replay(step, state, torch.tensor([1.0, 2.0, 0.0]))
    assert found.after == step(state, torch.tensor([1.0, 2.0, 0.0]))[0]
    assert found.first_nonfinite.path == "params/w" and found.examples[0].index == 2


def test_a_bare_step_has_module_outputs_and_no_gradients():
    def step(state, batch):
        def run(model):
            return model(batch).log().mean().detach()

        value, _ = state.skeleton.call(run, state.params, state.buffers, training=True)
        return state.replace(step=state.step + 1), {"loss": fl.Mean(value.double(), 1.0)}

    stage = fl.stage(step, "step")
    found = replay(stage, stage.init(nn.Linear(2, 1)), torch.full((2, 2), torch.inf))
    assert found.gradients == {} and found.gradient_norm is None
    assert "gradients were not seen" in str(found)
    assert {bad.kind for bad in found.nonfinite} >= {"batch", "forward"}
    assert found.first_nonfinite is None or found.first_nonfinite.kind == "batch"


def test_a_batch_of_weight_zero_is_a_skip_and_no_fault():
    def empty(model, batch):
        return fl.Mean(model(batch).sum() * 0, torch.zeros(()))

    step = fl.pipe(empty, fl.grad, fl.update(fl.optim.sgd(0.1)))
    found = replay(step, step.init(nn.Linear(2, 1)), torch.ones(3, 2))
    assert found.skipped and found.first_nonfinite is None
    assert "has weight zero" in str(found)


def test_a_loss_scale_that_overflows_is_explained(batch):
    step = fl.pipe(loss, fl.grad, fl.amp("fp16", init_scale=1e30), fl.update(fl.optim.sgd(0.1)))
    found = replay(step, step.init(nn.Linear(4, 3)), batch)
    assert found.skipped and "multiplied by 1e+30 (fl.amp)" in str(found)


def test_the_report_of_a_small_model_is_under_a_screenful(batch):
    step = PIPELINES["ema"]
    x, y = batch
    x[3] = torch.nan
    text = str(replay(step, step.init(net()), (x, y)))
    assert len(text.splitlines()) < 40 and max(map(len, text.splitlines())) <= 112
    for name in ("0.weight", "accuracy", "norm of the gradient", "f32[12,4]"):
        assert name in text


def test_the_report_of_a_large_model_shows_the_largest_gradients(batch):
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(12)], nn.Linear(4, 3))
    found = replay(step, step.init(model), batch)
    text = str(found)
    assert "and 16 more parameters" in text
    largest = max(found.norms, key=lambda name: found.norms[name].gradient)
    lines = text.splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("norms of"))
    assert lines[head + 1].split()[0] == largest
