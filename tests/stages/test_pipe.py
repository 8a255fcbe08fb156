"""What is wrong in a pipeline is said where it is built."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fnloop as fl

OPTIMIZER = torch.optim.AdamW(nn.Linear(1, 1).parameters())
SGD = fl.optim.sgd(0.1)


def loss(model, batch):
    return model(batch).mean()


STEP = fl.pipe(loss, fl.grad, fl.update(SGD))


def noise(state, grads):
    return state, grads


class Distance(nn.Module):
    def forward(self, model, batch):
        return model(batch).square().mean()


@pytest.mark.lightning("H1")
@pytest.mark.parametrize("given", [Distance(), max, lambda *a: a[0](a[1]).mean(), loss])
def test_what_can_be_a_loss(given) -> None:
    assert fl.grad(given).kind == "grad"


@pytest.mark.parametrize("place", ["evaluate", "validate", "predict"])
@pytest.mark.parametrize(
    ("given", "message"),
    [(STEP, "a training step"), (nn.Linear(2, 1), "is a model"), (nn.MSELoss(), r"model\(x\), y")],
)
def test_what_is_not_evaluated(place, given, message: str) -> None:
    state, data = STEP.init(nn.Linear(2, 1)), [torch.ones(3, 2)]
    with pytest.raises(TypeError, match=message):
        if place == "validate":
            fl.validate(given, data)
        else:
            list(getattr(fl, place)(given, state, data))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (nn.Linear(2, 1), r"the model Linear, which goes into step\.init"),
        (SGD, "the optimizer sgd"),
        (fl.update(SGD), r"update\(\.\.\.\), which waits"),
        (fl.grad, "was given grad"),
        (3, "was given 3"),
    ],
)
def test_what_is_no_step(given, message: str) -> None:
    state, data = STEP.init(nn.Linear(2, 1)), [torch.ones(3, 2)]
    with pytest.raises(TypeError, match=rf"{message}.*fl\.pipe\(loss, fl\.grad"):
        fl.fit(given, state, data, epochs=1)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_loss_in_the_place_of_a_step_says_so(compiled) -> None:
    state, data = STEP.init(nn.Linear(2, 1)), [torch.ones(3, 2)]
    given = fl.compile(loss, backend="aot_eager") if compiled else loss
    with pytest.raises(TypeError, match="not callable") as error:
        fl.fit(given, state, data, epochs=1)
    assert any("may be a loss. Make a step of it: fl.pipe" in n for n in error.value.__notes__)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: fl.pipe(loss, fl.grad, torch.optim.AdamW), r"from_torch\(torch\.optim\.AdamW"),
        (lambda: fl.pipe(loss, fl.grad, OPTIMIZER), r"from_torch\(torch\.optim\.AdamW"),
        (lambda: fl.pipe(loss, fl.grad, fl.update(torch.optim.SGD)), "from_torch"),
        (lambda: fl.pipe(loss, fl.grad, fl.update(OPTIMIZER)), r"got an AdamW\. .*from_torch"),
        (lambda: fl.pipe(loss, fl.grad, SGD), r"fl\.update\(sgd"),
        (lambda: fl.pipe(loss, fl.grad, fl.update), r"fl\.update\(fl\.optim\.adamw\(1e-3\)\)"),
        (lambda: fl.pipe(loss, fl.grad, fl.accumulate), r"fl\.accumulate\(4\)"),
        (lambda: fl.pipe(loss, fl.grad, fl.amp), r'fl\.amp\("bf16"\)'),
        (lambda: fl.pipe(loss, fl.grad, fl.update(SGD), fl.ema), r"fl\.ema\(0\.999\)"),
        (lambda: fl.pipe(loss, [fl.grad, fl.update(SGD)]), r"fl\.pipe\(\*functions\)"),
        (lambda: fl.pipe(loss, fl.grad, fl.accumulate([1, 2])), r"fl\.data\.Micro"),
        (lambda: fl.pipe(loss, fl.grad, fl.accumulate(2.0)), "whole number"),
        (lambda: fl.pipe(loss, fl.grad, fl.accumulate("2")), "whole number"),
        (
            lambda: fl.pipe(loss, fl.grad, fl.update(fl.optim.adamw("1e-3"))),
            r"adamw\(lr=.*Write 1e-3, without",
        ),
        (
            lambda: fl.pipe(
                loss,
                fl.grad,
                fl.update(fl.optim.sgd(torch.optim.lr_scheduler.StepLR(OPTIMIZER, 1))),
            ),
            r"StepLR.*fl\.schedules\.cosine",
        ),
        (lambda: fl.pipe(None, fl.grad(), fl.update(SGD)), r"loss\(model, batch\), got NoneType"),
        (
            lambda: fl.pipe(loss, fl.grad, noise, fl.update(SGD)),
            r"noise takes \(state, grads\).*@fl",
        ),
        (
            lambda: fl.pipe(loss, fl.grad, fl.stage(noise, "grad"), fl.update(SGD)),
            r"noise is a stage by itself.*fl\.base\.GradStage\), with wraps = \"grad\"",
        ),
        (
            lambda: fl.pipe(loss, fl.grad, fl.update(SGD), fl.stage(noise, "step")),
            r"noise is a stage by itself.*fl\.base\.StepStage\), with wraps = \"step\"",
        ),
        (lambda: fl.stage(lambda g: g, "grad"), r"takes \(g\); .* a state and a batch"),
        (lambda: fl.pipe(nn.MSELoss(), fl.grad), r"return nn\.MSELoss\(\)\(model\(x\), y\)"),
        (lambda: fl.pipe(nn.MSELoss, fl.grad), r"return nn\.MSELoss\(\)\(model\(x\), y\)"),
        (lambda: fl.pipe(F.mse_loss, fl.grad), r"return F\.mse_loss\(model\(x\), y\)"),
        (lambda: fl.pipe(nn.Linear(2, 1), fl.grad), r"Linear is a model.*step\.init\(model\)"),
        (lambda: fl.pipe(lambda m: 0, fl.grad), r"takes \(m\)"),
        (lambda: fl.pipe(STEP, fl.grad), "update.*a training step, which is called with a state"),
    ],
)
def test_what_does_not_belong_there(build, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        build()


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        ([fl.ema(0.9)], r"ema is a stage of the pipeline.*fl\.pipe"),
        ([fl.accumulate(2)], "accumulate is a stage"),
        ([[fl.progress()]], r"got list.*\[\*list\]"),
        ("progress", r"write callbacks=\[\.\.\.\]"),
        (fl.progress(), r"write callbacks=\[\.\.\.\]"),
        ([fl.early_stopping], "write early_stopping"),
    ],
)
def test_what_is_no_callback(callbacks, message: str) -> None:
    step = fl.pipe(loss, fl.grad, fl.update(SGD))
    with pytest.raises(TypeError, match=message):
        fl.fit(step, step.init(nn.Linear(1, 1)), [torch.ones(2, 1)], epochs=1, callbacks=callbacks)


def test_every_takes_the_number_first() -> None:
    with pytest.raises(TypeError, match=r"fl\.every\(500, fl\.validate"):
        fl.every(fl.validate(loss, [torch.ones(2, 1)]), 3)


def test_a_step_takes_a_state_first() -> None:
    step = fl.pipe(loss, fl.grad, fl.update(SGD))
    for first in (nn.Linear(1, 1), torch.ones(2, 1)):
        with pytest.raises(TypeError, match=r"step\(state, batch\); got (Linear|Tensor)"):
            step(first, torch.ones(2, 1))


def test_an_optimizer_in_the_pipe_says_where_it_goes():
    with pytest.raises(TypeError, match=r"chain\(clip_by_norm\(max_norm=1\.0\), fl\.optim\."):
        fl.pipe(loss, fl.grad, fl.optim.clip_by_norm(1.0), fl.update(fl.optim.sgd(0.1)))
    with pytest.raises(TypeError, match=r"stage that applies it: fl\.update\(sgd\("):
        fl.pipe(loss, fl.grad, fl.optim.sgd(0.1))
