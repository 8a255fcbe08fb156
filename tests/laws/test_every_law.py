"""``check_laws``: what it finds, what it leaves out, and that it says why."""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fnloop as fl
from fnloop.testing import LawError, check_laws

SLOW = {"check_compiles": "takes a second", "check_resumes": "takes a second"}


def loss(model, batch):
    return model(batch).square().mean()


def step_of(loss, *stages):
    return fl.pipe(loss, fl.grad, *stages, fl.update(fl.optim.adamw(1e-2)))


def batch():
    return torch.randn(7, 2, generator=torch.Generator().manual_seed(0))


def linear():
    return nn.Linear(2, 1)


@fl.tree
class Rounded(fl.base.GradStage):
    """Not differentiable, without saying so; and it moves its memory in a skipped step."""

    wraps: ClassVar[Any] = "grad"
    label: ClassVar[str] = "rounded"
    inner: Any
    name: str = "rounded"

    def init_state(self, state):
        return torch.zeros((), dtype=torch.int64)

    def __call__(self, state, x):
        after, grads = self.inner(state, x)
        return after.put(self.name, after[self.name] + 1), grads.replace(mean=grads.mean.detach())


def test_all_that_is_broken_is_told_at_once_and_the_rest_is_held():
    step = step_of(loss, Rounded)
    with pytest.raises(LawError) as told:
        check_laws(step, step.init(linear, seed=0), batch())
    text = str(told.value)
    assert "breaks 2 laws" in text
    assert "check_skips: law 10" in text and "slots/rounded" in text
    assert "check_differentiable: law 12" in text and "smooth model" in text
    assert 'leave_out={"check_differentiable": "why"}' in text
    whys = {"check_skips": "it counts calls", "check_differentiable": "cut on purpose"}
    checked = check_laws(step, step.init(linear, seed=0), batch(), leave_out=whys)
    assert checked.left_out.items() >= whys.items()
    assert not set(checked.held) & set(whys) and "check_compiles" in checked.held
    assert "check_skips           it counts calls" in str(checked)


def test_an_error_that_is_no_law_error_is_one_of_them():
    @fl.tree
    class Looks(fl.base.GradStage):
        wraps: ClassVar[Any] = "grad"
        inner: Any

        def __call__(self, state, x):
            after, grads = self.inner(state, x)
            return after, grads.replace(mean=grads.mean.scale(float(grads.mean.norm().detach())))

    step = step_of(loss, Looks)
    with pytest.raises(LawError, match=r"check_vmaps: RuntimeError: vmap: .*\.item\(\)") as told:
        check_laws(step, step.init(linear, seed=0), batch())
    assert "check_compiles: CompileError" in str(told.value)


def test_a_gradient_stage_is_held_to_laws_of_steps_too():
    stage = fl.pipe(loss, fl.grad, fl.accumulate(2))
    checked = check_laws(stage, stage.init(linear, seed=0), batch())
    assert {"check_compiles", "check_skips", "check_resumes"} <= set(checked.held)


def dropped(model, batch):
    return F.dropout(model(batch), 0.5).square().mean()


def normed():
    return nn.Sequential(nn.Linear(2, 3, bias=False), nn.BatchNorm1d(3), nn.Tanh())


@pytest.mark.parametrize(
    ("loss", "network", "x", "name", "why"),
    [
        (dropped, linear, batch(), "check_accumulates", "draws random numbers"),
        (loss, normed, batch(), "check_accumulates", "batch statistics"),
        (loss, normed, batch(), "check_differentiable", "writes to buffers"),
        (loss, linear, batch()[:1], "check_accumulates", "have no two examples"),
        (lambda m, x: m(x).square().mean(), lambda: nn.Embedding(5, 2), torch.arange(5),
         "check_skips", "give bad="),
        (lambda m, x: m.weight.square().sum() + 0 * len(x), linear, batch(),
         "check_skips", "finite where the batch is nan"),
    ],
)  # fmt: skip
def test_a_law_that_is_not_about_it_is_left_out_with_the_reason(loss, network, x, name, why):
    step = step_of(loss)
    checked = check_laws(step, step.init(network, seed=0), x, leave_out=SLOW)
    assert why in checked.left_out[name]


def test_a_callback_is_held_to_those_of_callbacks():
    step = step_of(loss)
    state, metrics = step(step.init(linear, seed=0), batch())
    stopping = fl.early_stopping("loss", patience=3)
    checked = check_laws(stopping, stopping.init(state, metrics), metrics)
    assert checked.held == ("check_pure", "check_repeatable", "check_init", "check_stable")
    assert "callbacks=lambda: [callback]" in checked.left_out["check_resumes"]


def test_a_step_of_ones_own_that_skips_nothing_breaks_law_10():
    gradients = fl.pipe(loss, fl.grad)

    def descent(state, x):
        after, grads = gradients(state, x)
        params = state.params.sub(grads.mean.scale(0.1))
        return after.replace(params=params, step=state.step + 1), grads.metrics

    step = fl.stage(descent, "step")
    with pytest.raises(LawError, match=r"breaks one law(.|\n)*check_skips: law 10"):
        check_laws(step, step.init(linear, seed=0), batch(), leave_out=SLOW)


def test_what_is_given_wrongly_is_told():
    step = step_of(loss)
    with pytest.raises(ValueError, match=r"'skips', which is no check .* check_skips"):
        check_laws(step, step.init(linear, seed=0), batch(), leave_out={"skips": "no"})
    with pytest.raises(TypeError, match=r"takes a stage.* fl.stage\(f, kind\)"):
        check_laws(functools.partial(max, 1), step.init(linear, seed=0), batch())


def test_half_precision_holds_within_its_own_tolerances():
    def cross_entropy(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1])

    x = torch.randn(32, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    step = fl.pipe(cross_entropy, fl.grad, fl.update(fl.optim.sgd(0.1)))
    net = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2)).bfloat16()
    state, given = step.init(net, seed=0), (x, (x[:, 0] > 0).long())
    with pytest.raises(LawError, match="check_vmaps"):
        check_laws(step, state, given, leave_out=SLOW)
    held = check_laws(step, state, given, leave_out=SLOW, rtol=0.02, atol=0.02).held
    assert "check_vmaps" in held and "check_layouts" in held
